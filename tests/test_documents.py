"""What the documents name exists."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import tyro
from encoded_images import picture
from small import small_config

from adios_ray.cli import Command, main
from adios_ray.commands.evaluate import PARTS, All, Evaluate, Transfer
from adios_ray.data.shards import open_shards, verify
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, save_weights

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "adios_ray"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_walks_of_the_architecture_name_functions_that_exist() -> None:
    rows = re.findall(r"^\| (`\w+/[^|]*) \| ([^|]*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    walks = [cell for row in rows for cell in row if ".py`" in cell]
    assert len(walks) >= 15
    for cell in walks:
        for file, functions in re.findall(r"`([\w/]+\.py)`((?:,? `\w+`)*)", cell):
            source = (PACKAGE / file).read_text()
            for function in re.findall(r"`(\w+)`", functions):
                assert re.search(rf"def {function}\(", source), f"{file} has no {function}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_a_document_exist(document: Path) -> None:
    text = document.read_text()
    named = re.findall(r"`((?:adios_ray|experiments|benchmarks|tests|search_spaces|docs)/[\w./-]+)`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_the_page_of_the_format_writes_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "shards.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert {split: sum(e.rows for e in entries) for split, entries in verify("mine").splits.items()} == dict.fromkeys(
        ("train", "val", "test"), 20
    )
    split = open_shards("mine").split("val")
    assert split.labels.tolist() == [0, 1] * 10 and (split.heights == 480).all() and (split.widths == 640).all()


@pytest.mark.slow
def test_the_commands_and_the_code_of_the_page_on_masks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    networks = Networks(small_config(Path("data")), 64, 4)
    save_weights(Path("byol.safetensors"), Weights(networks.config, 64, 4, "made for a test", networks.state_dict()))
    (tmp_path / "photographs" / "sub").mkdir(parents=True)
    (tmp_path / "photographs" / "sub" / "a.jpg").write_bytes(picture(0, 40, 56))
    page = (ROOT / "docs" / "masks.md").read_text()
    commands = re.findall(r"^    adios-ray (.*)$", page, re.MULTILINE)
    assert [main(shlex.split(command)) for command in commands] == [0] * 5
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    results: list[dict[str, torch.Tensor]] = [{} for _ in blocks]
    for block, names in zip(blocks, results, strict=True):
        exec(block, names)
    assert results[1]["hidden"].shape == (2, 3, 3, 64, 64) and results[2]["masks"].shape == (1, 3, 64, 64)
    assert results[3]["encoded"].shape == (2, 5, 192)


def test_the_commands_of_the_page_on_evaluation_can_be_read() -> None:
    lines = re.findall(
        r"^    adios-ray (evaluate (?!KIND).*)$", (ROOT / "docs" / "evaluation.md").read_text(), re.MULTILINE
    )
    kinds = set()
    for line in lines:
        command = tyro.cli(Command, args=line.split())
        assert isinstance(command, Evaluate)
        kinds.add(type(command.kind))
    assert kinds == {All, Transfer, *map(type, PARTS.values())}

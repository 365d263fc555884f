"""What the documents name exists."""

import ast
import functools
import inspect
import pkgutil
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import tyro
from encoded_images import picture
from made_up_run import make_run
from small import small_config

import adios_ray
from adios_ray.api import LoadedRun
from adios_ray.cli import EXAMPLES, Command, main
from adios_ray.commands.evaluate import Evaluate
from adios_ray.commands.evaluation_kinds import PARTS, All, Transfer
from adios_ray.data.shards import open_shards, verify
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.errors import DatasetError
from adios_ray.experiment.command import read_arguments
from adios_ray.experiment.config import DEMO_IMAGE_SIZE, DEMO_IMAGES, ExperimentConfig
from adios_ray.experiment.presets import preset_config
from adios_ray.experiment.remarks import remarks
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, save_weights
from adios_ray.search.spaces import load_space
from adios_ray.tracking.records import write_config
from adios_ray.tracking.report import verdicts
from adios_ray.training.trainer import Trainer
from adios_ray.validation import parse

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "adios_ray"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_walks_of_the_architecture_name_functions_that_exist() -> None:
    rows = re.findall(r"^\| (`\w+/[^|]*) \| ([^|]*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    walks = [cell for row in rows for cell in row if ".py`" in cell]
    assert len(walks) >= 15
    for cell in walks:
        for file, functions in re.findall(r"`([\w/]+\.py)`((?:,? `\w+`)*)", cell):
            source = (PACKAGE / file).read_text()
            for function in re.findall(r"`(\w+)`", functions):
                assert re.search(rf"def {function}\(", source), f"{file} has no {function}"


def test_the_architecture_names_every_module_and_package() -> None:
    table = "\n".join(re.findall(r"^\| .* \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE))
    layers = table.partition("| where |")[0]
    modules = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert [name for name in sorted(modules | packages) if f"`{name}`" not in layers] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_a_document_exist(document: Path) -> None:
    text = document.read_text()
    named = re.findall(r"`((?:adios_ray|experiments|benchmarks|tests|search_spaces|docs)/[\w./-]+)`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert not missing


@functools.cache
def anchors(document: Path) -> set[str]:
    """List the anchors of a document: of its headings, and of the objects that mkdocstrings describes."""
    text = re.sub(r"```.*?```", "", reference.on_page_markdown(document.read_text()), flags=re.DOTALL)
    headings = (re.sub(r"[^\w\s-]", "", line).strip().lower() for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[\s-]+", "-", heading) for heading in headings} | set(
        re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_anchors_that_a_document_links_exist(document: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text()):
        assert anchor in anchors(document.parent / file if file else document), f"{file}#{anchor}"


def test_what_mkdocstrings_describes_exists() -> None:
    names = [name for document in DOCUMENTS for name in re.findall(r"^::: (\S+)$", document.read_text(), re.MULTILINE)]
    assert names and all(pkgutil.resolve_name(name) for name in names)


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 100


@pytest.mark.parametrize("page", ["configuration", "search_spaces", "run_directory", "errors", "commands"])
def test_generated_references_are_complete(page: str) -> None:
    text = reference.on_page_markdown((ROOT / "docs" / "reference" / f"{page}.md").read_text())
    assert "<!--" not in text
    assert not re.findall(r"^\| `.*\| *\|$", text, re.MULTILINE), "fields without a meaning"
    assert page == "run_directory" or not re.findall(r"\bNone\b", text), "YAML has null, and command lines nothing"
    expected = {
        "configuration": ["| `masking.slots` † | integer, ≥ 2, ≤ 64 | `4` | Number of masks N"],
        "search_spaces": [
            "| `factor` | number, > 1 | `1.25` |",
            "| `low` | integer |  | Smallest value. |",
            "| `values` | list of any, at least 2 of them |",
        ],
        "run_directory": ["| `donor` | text |"],
        "errors": ["├── InputError (ValueError)"],
        "commands": ["| `--storage` | `runs` | Directory or URI (s3://, gs://, ...) that contains"],
    }
    assert [row for row in expected[page] if row not in text] == []


def test_the_reference_has_every_configuration_value() -> None:
    text = reference.on_page_markdown((ROOT / "docs" / "reference" / "configuration.md").read_text())
    schema = ExperimentConfig.model_json_schema()
    sections = {key: value["$ref"].rpartition("/")[2] for key, value in schema["properties"].items() if "$ref" in value}
    paths = set(schema["properties"]) - set(sections)
    paths |= {f"{key}.{name}" for key, kind in sections.items() for name in schema["$defs"][kind]["properties"]}
    assert len(paths) > 70 and {path for path in paths if f"| `{path}`" not in text} == set()


def texts(module: ast.Module) -> Iterator[str]:
    """Iterate over the texts of a module, without its documentation; values within them are left out."""
    nodes = list(ast.walk(module))
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "{}".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_errors_with_cures_are_errors_of_the_package() -> None:
    cells = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "reference" / "errors.md").read_text(), re.MULTILINE)
    parts = [
        part for cell in cells for quoted in re.findall(r"`([^`]+)`", cell) for part in re.split(r" ?\.\.\. ?", quoted)
    ]
    said = "\n".join(text for path in PACKAGE.rglob("*.py") for text in texts(ast.parse(path.read_text())))
    assert len(parts) > 20 and [part for part in parts if part not in said] == []


def test_the_reference_has_every_command_with_its_options() -> None:
    text = reference.on_page_markdown((ROOT / "docs" / "reference" / "commands.md").read_text())
    sections = {section.split()[0]: section for section in text.split("\n## ")[1:]}
    assert set(sections) == set(EXAMPLES)
    for name, example in ((name, example) for name, examples in EXAMPLES.items() for example in examples):
        assert example in sections[name]
        # An option of an example is one of the table's, except in commands whose settings have pages of their own.
        flags = re.findall(r" (--[\w-]+)", example) if name not in ("train", "evaluate") else ()
        assert all(f"| `{flag}` |" in sections[name] for flag in flags)


def test_the_page_of_the_notebook_has_its_pictures() -> None:
    text = reference.on_page_markdown((ROOT / "docs" / "quickstart.md").read_text())
    assert text.count("](data:image/png;base64,") == 2 and "](start.md)" in text and "<style" not in text
    assert "<table>" in text and "<table " not in text  # others are wider than a phone, without scrolling


def test_a_page_that_loads_from_elsewhere_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class Shown:
        class file:
            src_uri = "a.md"

    local = '<link rel="stylesheet" href="a.css"><img src="a.png"><a href="https://arxiv.org">paper</a>'
    reference.on_post_page(local, Shown)
    assert not caplog.records
    reference.on_post_page('<script src="https://cdn.example/x.js"></script>', Shown)
    assert "cdn.example" in caplog.text


def test_the_page_of_the_format_writes_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "shards.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert {split: sum(e.rows for e in entries) for split, entries in verify("mine").splits.items()} == dict.fromkeys(
        ("train", "val", "test"), 20
    )
    split = open_shards("mine").split("val")
    assert split.labels.tolist() == [0, 1] * 10 and (split.heights == 480).all() and (split.widths == 640).all()


def blocks(document: str) -> list[str]:
    """Return the Python blocks of a document, by its path."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.fixture
def finished_run(objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRun:
    """Write a run with its best checkpoint and data where documents name them, stand in for trainings, and enter."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(objects_dir, "data/mine")
    Path("runs").mkdir()
    make_run(Path("runs/RUN"))
    write_config(Path("runs/RUN"), {"seed": 0, "data_dir": "data/mine"})
    run = adios_ray.load_run("runs/RUN")
    trainer = Trainer(small_config(Path("data/mine")), torch.device("cpu"))
    trainer.save(run.best_checkpoint)
    trainer.save(Path("encoder.safetensors"))

    def train(data_dir: str | None = None, **settings: Any) -> LoadedRun:
        parse(ExperimentConfig, settings)
        return run

    monkeypatch.setattr(adios_ray, "train", train)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/start.md", "docs/weights.md", "docs/reference/python.md"])
def test_the_code_of_a_page_runs(document: str, finished_run: LoadedRun, capsys: pytest.CaptureFixture[str]) -> None:
    block = blocks(document)[0]  # the second one of weights.md: test_weights.py
    names: dict[str, Any] = {}
    exec(block, names)
    if "encoder" in names:
        features = names["encoder"](torch.zeros(2, 3, 32, 32))
        assert features.ndim == 2 and len(features) == 2
    if "run" in names:
        assert names["run"].path == finished_run.path and capsys.readouterr().out


def without_documentation(code: str) -> list[str]:
    """Return the statements of a module as text, without documentation."""
    module = ast.parse(code)
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return [ast.unparse(node) for node in module.body]


@pytest.mark.parametrize(
    ("page", "file"), [("add_a_scheme", "masking/schemes/grid.py"), ("add_an_objective", "objectives/vicreg.py")]
)
def test_a_page_that_walks_through_a_file_shows_its_code(page: str, file: str) -> None:
    shown = [part for block in blocks(f"docs/{page}.md") for part in without_documentation(block)]
    assert shown and set(shown) <= set(without_documentation((PACKAGE / file).read_text()))


def test_every_verdict_is_explained() -> None:
    explained = " ".join(f"{(ROOT / 'docs' / page).read_text()}" for page in ("troubleshooting.md", "report.md"))
    explained = " ".join(explained.split())
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(verdicts))) if isinstance(node, ast.Call)]
    sentences = [call.args[1] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Verdict"]
    pieces = [piece for s in sentences for piece in (s.values if isinstance(s, ast.JoinedStr) else [s])]
    parts = [piece.value for piece in pieces if isinstance(piece, ast.Constant)]
    assert len(sentences) >= len(verdicts.JUDGES)
    assert [part for part in parts if str(part).strip() not in explained] == []


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


def commands(document: Path) -> Iterator[list[str]]:
    """Iterate over the commands of a document that can be read: those without placeholders."""
    text = document.read_text().replace("\\\n", " ")
    for line in re.findall(
        r"^ *(?:\.venv/bin/)?(?:adios-ray|python experiments/pbt_in100\.py) .*$", text, re.MULTILINE
    ):
        words = shlex.split(line.split(" # ")[0], comments=True)
        if not re.search(r"\[|\.\.\.|evaluate KIND|--dataset NAME|export KIND", line):
            yield words[1:] if words[0].endswith("adios-ray") else ["train", *words[2:]]


@pytest.mark.slow
def test_the_commands_of_all_documents_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {tuple(words) for document in DOCUMENTS for words in commands(document)}
    found |= {tuple(shlex.split(example)[1:]) for example in EXAMPLES["train"]}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    run_dir = tmp_path / "runs" / "RUN"
    run_dir.mkdir(parents=True)
    write_config(run_dir, ExperimentConfig().model_dump(mode="json"))
    for words in sorted(found):
        if words[0] == "train":
            config = read_arguments("", words[1:], "pbt_in100", "pbt_demo")
            if "--resume" not in words and Path(config.space).is_file():  # not a space that is yet to be written
                said = remarks(config, load_space(config.space, config.scheduler, config.search))
                assert not [remark for remark in said if "interval_epochs" in remark], words
        else:
            tyro.cli(Command, args=words)
    assert len(found) > 60


def test_the_first_page_says_what_the_demo_does() -> None:
    demo, page = preset_config("demo"), (ROOT / "docs" / "start.md").read_text()
    assert f"renders {DEMO_IMAGES:,} small images" in page and demo.epochs == 6 and "six epochs each" in page
    assert f"runs/objects-{DEMO_IMAGES}-{DEMO_IMAGE_SIZE}px" in page and f"epoch_{demo.epochs:05d} --images" in page


def reader_of_the_page() -> Callable[[Path], ImageFiles]:
    """Define the reader that the page on adding a data set shows."""
    names: dict[str, Any] = {}
    exec(blocks("docs/add_a_data_set.md")[0], names)
    reader: Callable[[Path], ImageFiles] = names["source"]
    return reader


def test_the_reader_of_the_page_on_data_sets_reads_one(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "file,split,label\n./a.png,Training,cat\nb.png,train,dog\nc.png,test,cat\nd.png,test, dog\n"
    )
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(picture(0, 40, 56))
    source = reader_of_the_page()(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.listing() == {"train": ["a.png", "b.png"], "test": ["c.png", "d.png"]}
    assert [source.load(item, 32).label for item in source.listing()["test"]] == [0, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"file;split;label\na.png;train;cat\n", "line 2: expected file, split"),
        (b"split,label\ntrain,cat\n", "line 2: expected file, split"),
        (b"file,split,label\na.png,train,cat\nb.png,train\n", "line 3: expected file, split"),
        (b"file,split,label\na.png,mine,cat\n", "line 2: expected file, split"),
        (b"file,split,label\na.png,train,caf\xe9\n", "expected file, split"),
        (b"file,split,label\n../a.png,train,cat\n", "names ../a.png, which is outside"),
    ],
)
def test_the_reader_of_the_page_on_data_sets_refuses_other_tables(tmp_path: Path, rows: bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(rows)
    with pytest.raises(DatasetError, match=message):
        reader_of_the_page()(tmp_path)


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

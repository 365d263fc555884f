"""Copies of images within and across splits, and the files that a data set was made from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from adios_ray.commands.data import _in_lines
from adios_ray.data import source_files
from adios_ray.data.duplicates import Pixels, duplicates_text, find_duplicates
from adios_ray.data.prepare import prepare
from adios_ray.data.shards import open_shards, verify
from adios_ray.data.sources.folder import source as folder_source
from adios_ray.errors import DatasetError

SIZE = 32


def draw(path: Path, seed: int) -> None:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path)


def image(split: str, item: str, pixels: int, stratum: str = "cat") -> Pixels:
    """Make an image of the given content."""
    return Pixels(split, item, stratum, bytes([pixels]))


def test_one_of_each_stays_that_of_the_split_that_is_evaluated() -> None:
    images = [
        *(image("train", "t1", 1), image("train", "t2", 1), image("train", "t3", 2), image("train", "t4", 9, "dog")),
        *(image("val", "v1", 1), image("val", "v2", 3), image("test", "e1", 2), image("test", "e2", 9)),
        image("unlabeled", "u1", 3, "unlabeled"),
    ]
    found, copies = find_duplicates(images)
    assert copies == {*(("train", f"t{n}") for n in range(1, 5)), ("unlabeled", "u1")} and found.images == 5
    assert found.across == {"test, train": 2, "val, train": 2, "val, unlabeled": 1}
    assert found.two_labels == 1 and found.examples[0] == ("e2", "t4")
    assert find_duplicates(images[::-1]) == (found, copies)
    text = duplicates_text(found)
    assert "5 images are exact copies of others" in text and "2 of train are in test too" in text
    assert "1 of the copies have another label: e2 and t4" in text and "--drop-duplicates" in text
    assert duplicates_text(find_duplicates(images[:1])[0]) == ""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Ten pictures in each class and split; two of train are in test too, one of them under another class."""
    root = tmp_path / "images"
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("cat", "dog")):
            for k in range(10):
                draw(root / split / name / f"{k}.png", 100 * number + 10 * label + k)
    (root / "train" / "cat" / "copy.png").write_bytes((root / "test" / "cat" / "0.png").read_bytes())
    draw(root / "train" / "cat" / "1.png", 210)  # the dog of test/dog/0.png
    return root


def stored_ids(directory: Path) -> list[str]:
    """Source ids of the rows of train."""
    ids: list[str] = pa.ipc.open_file(directory / "train-00000.arrow").read_all()["source_id"].to_pylist()
    return ids


def make(root: Path, output: Path, **options: Any) -> Any:
    """Prepare a folder."""
    return prepare(folder_source(root), output, SIZE, {"dataset": "folder", "source": str(root)}, **options)


@pytest.mark.ray
def test_everything_is_accounted_for_and_copies_are_left_out_on_request(
    ray_cluster: None, photographs: Path, tmp_path: Path
) -> None:
    (photographs / "train" / "cat" / "cut.png").write_bytes((photographs / "val/cat/0.png").read_bytes()[:99])
    (photographs / "train" / "dog" / "notes.txt").write_text("none")
    said: list[str] = []
    kept = make(photographs, tmp_path / "kept", max_bad_fraction=0.1, say=said.append)
    account = kept.manifest.account
    assert (
        said[0].startswith("3 splits, 2 classes: ") and "passed over, not an image: 1 (train/dog/notes.txt)" in said[0]
    )
    assert (account.found, account.read, kept.refused) == (63, 61, 1)
    assert account.duplicates.across == {"test, train": 2} and account.duplicates.two_labels == 1
    lines = _in_lines("kept", kept).splitlines()
    assert "63 found = 61 read + 1 refused + 1 passed over" in lines
    assert any(line.startswith("refused: train/cat/cut.png: ") for line in lines)
    made = make(photographs, tmp_path / "dropped", max_bad_fraction=0.1, drop_duplicates=True)
    assert made.images == {"train": 19, "val": 20, "test": 20}
    assert made.manifest.account.duplicates.dropped == 2
    assert made.manifest.account.passed_over["exact copy of another image"].number == 2
    verify(str(tmp_path / "dropped"))
    whole, rest = (open_shards(str(tmp_path / name)).split("train") for name in ("kept", "dropped"))
    ids = {name: stored_ids(tmp_path / name) for name in ("kept", "dropped")}
    assert set(ids["kept"]) - set(ids["dropped"]) == {"train/cat/copy.png", "train/cat/1.png"}
    for row, item in enumerate(ids["dropped"]):
        np.testing.assert_array_equal(rest.images[0][row], whole.images[0][ids["kept"].index(item)])


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("split", "content", "options", "reason"),
    [
        ("train", None, {"drop_duplicates": True}, "all images are copies that --drop-duplicates leaves out"),
        ("val", b"", {"max_bad_fraction": 1.0}, "all images are refused"),
    ],
)
def test_a_split_of_which_nothing_is_left_makes_no_data_set(
    split: str, content: bytes | None, options: dict[str, Any], reason: str, photographs: Path, tmp_path: Path
) -> None:
    for path in (photographs / split).rglob("*.png"):
        of_test = photographs / "test" / path.relative_to(photographs / split)
        if of_test.exists():
            path.write_bytes(of_test.read_bytes() if content is None else content)
        else:
            path.unlink()
    with pytest.raises(DatasetError, match=f"nothing is left of {split}; {reason}: .* leave the split out"):
        make(photographs, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.ray
def test_a_source_that_has_changed_is_noticed_and_one_that_has_moved_is_the_same(
    ray_cluster: None, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "set"
    make(photographs, output)
    assert make(photographs, output).complete_before
    moved = photographs.rename(tmp_path / "elsewhere")
    (moved / "train" / "cat" / "2.png").touch()
    assert make(moved, output).complete_before
    assert make(moved, output, check_content=True).complete_before
    content = (moved / "train" / "cat" / "2.png").read_bytes()
    (moved / "train" / "cat" / "2.png").write_bytes(content[:-20] + bytes(20))
    # Equal names and sizes, and times of a copy: only content tells, that of some images without being asked.
    for check_content in (False, True):
        with pytest.raises(DatasetError, match=r"1 changed \(train/cat/2.png\)"):
            make(moved, output, check_content=check_content)
    monkeypatch.setattr(source_files, "_COMPARED", 0)
    assert make(moved, output).complete_before
    draw(moved / "train" / "dog" / "new.png", 999)
    (moved / "val" / "cat" / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"1 new \(train/dog/new.png\); 1 removed \(val/cat/3.png\)"):
        make(moved, output)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["source_files"]["file"] == "files.arrow"

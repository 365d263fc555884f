"""Folders as people have them: every file is an image, or is passed over for a reason that is counted."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_images import upload
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from s3 import s3_server

from adios_ray.config import FolderLayout
from adios_ray.data.prepare import prepare
from adios_ray.data.sources.folder import OUTSIDE
from adios_ray.data.sources.folder import source as folder_source
from adios_ray.data.sources.walk import BROKEN_LINK, HIDDEN, NO_FILE, NO_IMAGE, RAW, TOOLS, walk
from adios_ray.errors import DatasetError, RefusedImageError
from adios_ray.store import Store


def plant(root: Path, *items: str) -> Path:
    """Write a small image at each path."""
    for item in items:
        (root / item).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(item), 0, 0)).save(root / item, format="PNG")
    return root


def counted(root: Path) -> dict[str, int]:
    """Count what a walk passes over, by reason."""
    return {reason: number for reason, (number, _) in walk(root).passed_over.items()}


def test_every_file_is_an_image_or_passed_over_for_a_reason(tmp_path: Path) -> None:
    plant(tmp_path, "cat/1.png", "cat/no_ending", "cat/photo.JFIF", "cat/.hidden.png", "cat/.ipynb_checkpoints/1.png")
    plant(tmp_path, "cat/@eaDir/1.png/THUMB.jpg", "$RECYCLE.BIN/x.png", "__MACOSX/cat/._1.png", "lost+found/#12.png")
    for name in ("cat/Thumbs.db", "notes.txt", "cat/._1.png"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    (tmp_path / "dog").mkdir()
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "cat" / "long.png").symlink_to("n" * 300)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path / "cat" / "pipe.png")
    found = walk(tmp_path)
    assert sorted(found.images) == ["cat/1.png", "cat/no_ending", "cat/photo.JFIF"] and found.empty == ["dog"]
    assert counted(tmp_path) == {HIDDEN: 3, TOOLS: 4, NO_IMAGE: 2, BROKEN_LINK: 2, NO_FILE: 2}
    assert found.found == 16 == len(found.images) + found.passed_over.total
    assert "notes.txt" in found.passed_over[NO_IMAGE].examples


def test_raw_files_of_cameras_are_passed_over(tmp_path: Path) -> None:
    """They are TIFFs of a thumbnail, beside the photograph that the camera has written too."""
    plant(tmp_path, "cat/IMG_1.JPG")
    for name in ("IMG_1.DNG", "IMG_2.nef", "IMG_3.CR2"):
        Image.new("RGB", (8, 8)).save(tmp_path / "cat" / name, "TIFF")
    assert folder_source(tmp_path).listing() == {"train": ["cat/IMG_1.JPG"]} and counted(tmp_path) == {RAW: 3}
    (tmp_path / "cat" / "IMG_1.JPG").unlink()
    with pytest.raises(DatasetError, match=r"no images in .*; passed over: raw file of a camera \(3\)"):
        folder_source(tmp_path)


def test_empty_folders_are_named(tmp_path: Path) -> None:
    (plant(tmp_path, "cat/1.png", "fox/1.png") / "dog").mkdir()
    assert folder_source(tmp_path).notes == ("empty folders: dog",)


def test_links_are_followed_and_loops_do_no_harm(tmp_path: Path) -> None:
    root, elsewhere = plant(tmp_path / "images", "cat/1.png"), plant(tmp_path / "elsewhere", "cat/2.png", "fox/3.png")
    (root / "cat" / "batch2").symlink_to(elsewhere / "cat")
    (root / "fox").symlink_to(elsewhere / "fox")
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "cat" / "self").symlink_to("self")
    assert sorted(walk(root).images) == ["cat/1.png", "cat/batch2/2.png", "fox/3.png"]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    root, scandir = plant(tmp_path, "cat/1.png", "fox/2.png", "lost+found/3.png"), os.scandir

    def failing(path: Any) -> Any:
        if Path(path).name in ("fox", "lost+found"):
            raise OSError(error, os.strerror(error), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(DatasetError, match=f"fox cannot be read: {os.strerror(error)}"):
        walk(root)
    with pytest.raises(OSError, match=f"{os.strerror(error)}.*(fox|found)"):
        Store(root).find()


@pytest.mark.parametrize(
    "names", [("Train", "Val", "Test"), ("training", "validation", "testing"), ("TRAIN", "dev", "test")]
)
def test_splits_by_the_names_that_people_use(tmp_path: Path, names: tuple[str, ...]) -> None:
    plant(tmp_path, *(f"{name}/{kind}/1.png" for name in names for kind in ("cat", "dog")))
    listing = folder_source(tmp_path).listing()
    assert {split: len(items) for split, items in listing.items()} == {"train": 2, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            ("bus/1.png", "train/1.png", "truck/1.png"),
            "train may be splits beside bus, truck.*--layout splits.*--layout classes",
        ),
        (
            ("images/train/cat/1.png", "images/val/cat/1.png"),
            "one level too many .--source .*/images.*--layout classes",
        ),
        (("pets/cat/1.png", "pets/dog/1.png"), "one level too many .--source .*/pets.*--layout classes"),
        (("train/cat/1.png", "2.png"), "2.png beside the folders train.*--layout splits.*--layout flat"),
        (("val/cat/1.png", "test/cat/1.png"), "no folder called train, only test, val: add it.*--layout classes"),
        (("train/a/1.png", "val/a/1.png", "valid/a/1.png"), "both val and valid, which are the same split"),
    ],
)
def test_what_can_be_read_in_two_ways_is_an_error_with_both(
    tmp_path: Path, items: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        folder_source(plant(tmp_path, *items))


def test_class_folders_are_no_splits(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no folder called train: add it, or take the folders as classes"):
        folder_source(plant(tmp_path, "cat/1.png", "dog/1.png"), layout="splits")


@pytest.mark.parametrize(
    ("layout", "listing", "outside"),
    [
        ("splits", {"train": ["train/cat/1.png"]}, 2),
        ("classes", {"train": ["bus/2.png", "train/cat/1.png"]}, 1),
        ("flat", {"train": ["3.png", "bus/2.png", "train/cat/1.png"]}, 0),
    ],
)
def test_an_option_chooses_the_layout(
    tmp_path: Path, layout: FolderLayout, listing: dict[str, list[str]], outside: int
) -> None:
    source = folder_source(plant(tmp_path, "train/cat/1.png", "bus/2.png", "3.png"), layout=layout)
    assert source.listing() == listing
    assert (source.passed_over[OUTSIDE].number if outside else 0) == outside == source.passed_over.total


def test_class_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    source = folder_source(
        plant(tmp_path, f"train/{composed}/1.png", f"val/{decomposed}/2.png", f"test/{composed}/3.png")
    )
    assert source.classes == (composed,)
    assert source.load(f"val/{decomposed}/2.png", 8).label == 0


def test_missing_classes_are_named_once_and_may_be_allowed(tmp_path: Path) -> None:
    plant(
        tmp_path, *(f"{split}/{kind}/1.png" for split in ("train", "test") for kind in ("cat", "fox")), "val/cat/1.png"
    )
    (tmp_path / "val" / "fox").mkdir()
    with pytest.raises(DatasetError, match="--allow-missing-classes") as caught:
        folder_source(tmp_path)
    assert str(caught.value).count("fox") == 1
    assert folder_source(tmp_path, allow_missing_classes=True).classes == ("cat", "fox")
    plant(tmp_path, "val/owl/1.png")
    with pytest.raises(DatasetError, match="train has no images of owl: add some, or remove the class$"):
        folder_source(tmp_path, allow_missing_classes=True)


@pytest.mark.parametrize("make", [lambda root: root / "train", lambda root: root / "train" / "cat"])
def test_a_folder_of_one_class_is_a_class(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    plant(tmp_path, "train/cat/1.png", "train/cat/2.png")
    assert len(folder_source(make(tmp_path)).listing()["train"]) == 2


@pytest.mark.parametrize(("kind", "root"), [("zip", ""), ("zip", "cat"), ("tar", ""), ("tar", "cat"), ("tar", ".")])
def test_an_archive_is_read_as_a_uri(tmp_path: Path, kind: str, root: str) -> None:
    plant(tmp_path / "set", "cat/1.png", "cat/2.png")
    packed = "." if root == "." else "cat"
    archive = shutil.make_archive(str(tmp_path / "set"), kind, tmp_path / "set", packed)
    source = folder_source(f"{kind}://{root}::{archive}")
    items = [f"{'' if root == 'cat' else 'cat/'}{number}.png" for number in (1, 2)]
    assert source.listing() == {"train": items} and source.files().keys() == {*items}
    assert source.load(items[0], 8).image[0, 0].tolist() == [len("cat/1.png"), 0, 0]


def test_of_empty_objects_no_byte_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers a range of an empty object with an error; a job that wrote the place may have left some."""
    uri = f"memory://{tmp_path.name}/images"
    plant(tmp_path, "cat/photo", "cat/2.png")
    for name in ("cat/_SUCCESS", "cat/sub_$folder$", "cat/empty.png"):
        (tmp_path / name).touch()
    upload(tmp_path, uri)
    read = Store.read

    def strict(store: Store, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        if not store.size(name) and start is not None:
            raise OSError("InvalidRange")
        return read(store, name, start, stop)

    monkeypatch.setattr(Store, "read", strict)
    source = folder_source(uri)
    assert source.listing() == {"train": ["cat/2.png", "cat/empty.png", "cat/photo"]}
    assert source.passed_over == {NO_IMAGE: (2, ("cat/_SUCCESS", "cat/sub_$folder$"))}
    with pytest.raises(RefusedImageError, match="empty file"):
        source.load("cat/empty.png", 8)
    monkeypatch.setattr(Store, "size", lambda store, name: None)  # all that are asked for fail
    with pytest.raises(DatasetError, match=f"{uri}/cat/photo cannot be read: InvalidRange"):
        folder_source(uri)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("key", ["LastModified", "last_modified", "mtime"])
def test_objects_that_have_changed_are_noticed_by_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    uri, plain = f"memory://{tmp_path.name}/images", MemoryFileSystem.find
    upload(plant(tmp_path / "images", *(f"cat/{number}.png" for number in range(10, 30))), uri)
    told = dict.fromkeys(plain(Store(uri).files, Store(uri).root), datetime(2026, 1, 1, tzinfo=UTC))

    def find(files: MemoryFileSystem, path: str, detail: bool = True) -> dict[str, Any]:
        return {name: {**info, key: told[name]} for name, info in plain(files, path, detail=detail).items()}

    untimed = folder_source(uri)
    prepare(untimed, tmp_path / "earlier", 16, {"source": uri})
    monkeypatch.setattr(MemoryFileSystem, "find", find)
    source = folder_source(uri)
    assert set(source.files().values()) == {(untimed.files()["cat/10.png"][0], 1_767_225_600 * 10**9)}
    prepare(source, tmp_path / "out", 16, {"source": uri})
    for place in ("earlier", "out"):
        assert prepare(source, tmp_path / place, 16, {"source": uri}).complete_before
    told[f"{Store(uri).root}/cat/12.png"] += timedelta(seconds=1)
    with pytest.raises(DatasetError, match=r"the source has changed since .*out was made: 1 changed \(cat/12.png\)"):
        prepare(source, tmp_path / "out", 16, {"source": uri})
    assert prepare(source, tmp_path / "earlier", 16, {"source": uri}).complete_before
    assert prepare(source, tmp_path / "out", 16, {"source": f"{uri}-moved"}).complete_before


@pytest.mark.slow
def test_a_folder_at_a_uri_is_read_as_one_on_disk(tmp_path: Path) -> None:
    plant(tmp_path, "train/cat/1.png", "train/cat/photo", "val/cat/2.png", "test/cat/3.png", "train/@eaDir/1.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("none")
    with s3_server() as server:
        bucket = server.uri
        upload(tmp_path, f"{bucket}/images")
        ours, theirs = folder_source(tmp_path), folder_source(f"{bucket}/images")
        assert theirs.listing() == ours.listing() and theirs.passed_over == ours.passed_over
        assert {name: size for name, (size, _) in theirs.files().items()} == {
            name: size for name, (size, _) in ours.files().items()
        }
        now = time.time_ns()
        assert all(now - 10**12 < changed_ns <= now for _, changed_ns in theirs.files().values())
        item = "train/cat/photo"
        np.testing.assert_array_equal(theirs.load(item, 8).image, ours.load(item, 8).image)
        assert theirs.checksum(item) == ours.checksum(item) == theirs.load(item, 8).content
        with pytest.raises(RefusedImageError, match="cannot be read: No such file"):
            theirs.load("train/cat/gone.png", 8)

"""Images in tar files: the layouts that people have, and an account of everything that is not used."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from encoded_images import labels_of, picture, squeezed, upload
from s3 import s3_server

from adios_ray.data.prepare import prepare
from adios_ray.data.shards import open_shards
from adios_ray.data.sources.base import NO_LABEL, ReadInBlocks
from adios_ray.data.sources.encoded import Place
from adios_ray.data.sources.webdataset import TarImages, source
from adios_ray.data.splits import plan_splits
from adios_ray.errors import DatasetError, RefusedImageError
from adios_ray.store import Store


def write_tar(path: Path, members: Mapping[str, bytes | str | dict[str, Any]], **options: Any) -> None:
    """Write members in order, as ``webdataset.TarWriter`` does: text as it is, mappings as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            text = json.dumps(content) if isinstance(content, dict) else content
            data = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def samples(count: int, classes: int = 3, first: int = 0) -> dict[str, bytes | str | dict[str, Any]]:
    """Members of a shard: images and the numbers of their classes."""
    members: dict[str, bytes | str | dict[str, Any]] = {}
    for number in range(first, first + count):
        members[f"{number:05d}.cls"] = str(number % classes)
        members[f"{number:05d}.png"] = picture(number)
    return members


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two files of train and one of val, 40 + 9 images, with class names beside them."""
    write_tar(tmp_path / "set/imagenet-train-000000.tar", samples(25))
    write_tar(tmp_path / "set/imagenet-train-000001.tar", samples(15, first=25))
    write_tar(tmp_path / "set/imagenet-val-000000.tar", samples(9))
    (tmp_path / "set/classes.txt").write_text("ant\nbee/fly\ncat, big\n")
    return tmp_path / "set"


def test_numbered_classes_with_names_beside_the_files(shards: Path) -> None:
    read = source(shards)
    assert read.classes == ("ant", "bee/fly", "cat, big") and read.passed_over == {}
    assert {split: len(items) for split, items in read.listing().items()} == {"train": 40, "val": 9}
    assert labels_of(read, "train") == [n % 3 for n in range(40)] and not isinstance(read, ReadInBlocks)
    item = read.listing()["train"][1]
    assert item.startswith("bee%2Ffly/imagenet-train-000000.tar#00001@") and item.endswith(f"+{len(picture(1))}")
    for number, item in enumerate(read.listing()["train"]):
        sample = read.load(item, 16)
        np.testing.assert_allclose(sample.image, squeezed(picture(number), 16), atol=1, rtol=0)
        assert (sample.height, sample.width) == (12, 20)
    assert len(pickle.dumps(read)) < 700
    val = plan_splits({"train": read.listing()["train"]}, {"train": None, "val": 6, "test": 3})["val"]
    assert sorted(map(read.stratum, val)) == ["ant"] * 2 + ["bee/fly"] * 2 + ["cat, big"] * 2


def test_numbers_without_names_are_sorted_as_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(12, classes=12))
    assert source(tmp_path).classes == tuple(map(str, range(12))) and labels_of(source(tmp_path), "train")[10] == 10


@pytest.mark.parametrize("field", ["label", "cls", "class"])
@pytest.mark.parametrize("values", [["bee", "ant"], [1, 0], ["1", "0"]])
def test_labels_in_json(tmp_path: Path, field: str, values: list[Any]) -> None:
    members: dict[str, Any] = {}
    for number, value in enumerate(values):
        members |= {f"./n/{number}.JPEG": picture(number), f"./n/{number}.json": {"other": 3, field: value}}
    write_tar(tmp_path / "a.TAR", members)
    read = source(tmp_path)
    assert read.classes == (("ant", "bee") if "ant" in values else ("0", "1"))
    assert labels_of(read, "train") == [1, 0] and "#n%2F0@" in read.listing()["train"][0]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_header(tmp_path: Path, format: int) -> None:
    long = "directory-of-many-images/" + "x" * (60 if format == tarfile.USTAR_FORMAT else 200)
    write_tar(tmp_path / "a.tar", {f"{long}.WebP": picture(0), f"{long}.CLS": " wasp\n"}, format=format)
    read = source(tmp_path)
    assert read.classes == ("wasp",) and labels_of(read, "train") == [0]


def test_every_member_is_used_or_accounted_for(tmp_path: Path) -> None:
    twins = {f"twin{n}.{ending}": picture(n) for n in range(6) for ending in ("jpg", "png")}
    odd: dict[str, Any] = {
        **{"ok.txt": "caption", "ok.seg.png": picture(0), ".hidden.png": picture(0), "noending": "", "sub/.x": ""},
        **{"bare.png": picture(0), "minus.png": picture(0), "minus.cls": "-1", "field.png": picture(0)},
        **{"field.json": {"x": 1}, "list.png": picture(0), "list.json": {"label": [1]}, "cut.png": picture(0)},
        **{"cut.json": "{", "lonely.cls": "1", "deep.png": picture(0), "deep.json": "[" * 100_000},
    }
    write_tar(tmp_path / "train.tar", {"ok.png": picture(0), "ok.cls": "1", **twins, **odd})
    with tarfile.open(tmp_path / "train.tar", "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "ok.png"
        tar.addfile(link)
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    (tmp_path / "train.idx").write_text("v1.2")
    write_tar(tmp_path / "unlabeled-0.tar", {"u.png": picture(0)})
    read = source(tmp_path)
    counts = {reason: count for reason, (count, _) in read.passed_over.items()}
    assert counts == {
        "not a .tar file": 1,
        "neither an image nor a label by its ending": 1,
        "an image with a longer ending, as KEY.NAME.png": 1,
        "not named KEY.ENDING": 3,
        "a link or special file": 1,
        "a label without an image of its key": 1,
        "one of several images of its key": 12,
        "its label cannot be read": 3,
        "no label": 3,
    }
    assert read.passed_over["no label"][1] == ("train.tar#bare", "train.tar#minus", "train.tar#field")
    assert len(read.passed_over["one of several images of its key"][1]) == 10
    assert {split: len(items) for split, items in read.listing().items()} == {"train": 1, "unlabeled": 1}
    assert labels_of(read, "unlabeled") == [NO_LABEL]


def test_images_without_any_label_share_one_class(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": picture(0), "2.jpg": picture(1), "2.json": {"caption": "x"}})
    read = source(tmp_path / "a.tar")
    assert read.classes == ("unlabeled",) and labels_of(read, "train") == [0, 0]
    assert read.notes == ("no labels: .json has caption, but no label or cls or class",)
    write_tar(tmp_path / "b/test.tar", {"1.jpg": picture(0), "1.json": {"label": -1}})
    assert source(tmp_path / "b").notes == ()
    (tmp_path / "a.tar").rename(tmp_path / "train.tar")
    shutil.rmtree(tmp_path / "b")
    write_tar(tmp_path / "unlabeled.tar", {"3.jpg": picture(2)})
    assert labels_of(source(tmp_path), "train") == [0, 0] and labels_of(source(tmp_path), "unlabeled") == [NO_LABEL]


def test_folders_in_tar_files_are_no_classes(tmp_path: Path) -> None:
    """As where a tree of class folders was packed: its classes would be lost, and its splits mixed."""
    folders = [f"./{split}/{kind}" for split in ("train", "Val") for kind in ("ant", "bee")]
    write_tar(tmp_path / "data.tar", {f"{folder}/1.png": picture(0) for folder in folders})
    with pytest.raises(DatasetError, match="folders Val, train, which may be splits: .*--dataset folder"):
        source(tmp_path)
    (tmp_path / "data.tar").rename(tmp_path / "train.tar")
    assert source(tmp_path).notes == (
        "no labels: images are in the folders Val/ant, Val/bee, train/ant, train/bee; if these are classes, unpack the "
        "tar files and take --dataset folder",
    )
    write_tar(tmp_path / "train.tar", {f"{folder}/1.{end}": "x" for folder in folders for end in ("png", "cls")})
    assert source(tmp_path).notes == ()


def test_splits_are_folders_beside_each_other(tmp_path: Path) -> None:
    names = ["home/dev/data/train/1", "home/dev/data/train/test/2", "home/dev/more/3"]
    write_tar(tmp_path / "data.tar", {f"{name}.{end}": "ant" for name in names for end in ("png", "cls")})
    assert len(source(tmp_path).listing()["train"]) == 3
    write_tar(tmp_path / "more.tar", {"home/dev/data/Val/1.png": picture(0)})
    with pytest.raises(DatasetError, match="folders Val, train, which may be splits"):
        source(tmp_path)


def test_splits_that_differ(tmp_path: Path, shards: Path) -> None:
    write_tar(tmp_path / "a/train.tar", {"1.jpg": picture(0), "1.cls": "ant"})
    write_tar(tmp_path / "a/test/0.tar", {"1.jpg": picture(0), "1.cls": "bee"})
    with pytest.raises(DatasetError, match="a: test has no images of ant; train has no images of bee: add some"):
        source(tmp_path / "a")
    write_tar(tmp_path / "a/train.tar", {f"{name}.{end}": name for name in ("ant", "bee") for end in ("jpg", "cls")})
    assert source(tmp_path / "a", allow_missing_classes=True).classes == ("ant", "bee")
    with pytest.raises(DatasetError, match="a: test has no images of ant: .* with --allow-missing-classes$"):
        source(tmp_path / "a")
    write_tar(tmp_path / "b/train.tar", {"1.jpg": picture(0), "1.cls": "ant", "2.jpg": picture(0), "2.cls": "7"})
    with pytest.raises(DatasetError, match=r"b mix numbers \(7\) and names \(ant\)"):
        source(tmp_path / "b")
    (shards / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DatasetError, match="set names 2 classes, but has the labels 2"):
        source(shards)
    (shards / "classnames.txt").write_text("ant\nbee\ncat\n")
    with pytest.raises(DatasetError, match="differ between classes.txt and classnames.txt"):
        source(shards)
    (shards / "classes.txt").unlink()
    write_tar(shards / "extra.tar", samples(3))
    with pytest.raises(DatasetError, match="1 of 4 files in .* do not say their split, though others do: extra.tar"):
        source(shards)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "train.tar.gz").write_bytes(b"x")
    with pytest.raises(DatasetError, match="has no .tar files"):
        source(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="train.tar.gz is compressed, .*: decompress it"):
        source(tmp_path)
    with pytest.raises(DatasetError, match="train.tar.gz is compressed"):
        source(tmp_path / "train.tar.gz")
    write_tar(tmp_path / "a/train.tar", {"1.txt": "x"})
    with pytest.raises(DatasetError, match=r"a has no images that can be used: neither an image .* \(1\)"):
        source(tmp_path / "a")


def test_names_that_are_not_utf_8_are_one_line(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("café.png"))
    with pytest.raises(DatasetError, match=r"train.tar .*the name b'caf\\xe9.png' is not UTF-8: rename"):
        source(tmp_path)


@pytest.mark.parametrize("padding", [0, 512, 10240])
def test_archives_one_after_the_other_are_read_to_the_last(shards: Path, padding: int) -> None:
    """The keys of the second are those of the first, as where shards that were numbered alike are joined."""
    first, second = shards / "imagenet-train-000000.tar", shards / "imagenet-val-000000.tar"
    expected = source(shards)
    images = [content for split in ("train", "val") for content in contents_of(expected, split)]
    joined = shards.parent / "joined" / "train.tar"
    joined.parent.mkdir()
    joined.write_bytes(first.read_bytes() + bytes(padding) + second.read_bytes())
    read = source(joined)
    assert contents_of(read, "train") == images[:25] + images[40:] and not read.passed_over
    assert labels_of(read, "train") == [n % 3 for n in (*range(25), *range(9))]


def contents_of(read: TarImages, split: str) -> list[bytes]:
    """Read the encoded images of a split."""
    return [read.content(Place.of(item)) for item in read.listing()[split]]


@pytest.mark.parametrize(
    "damage", ["text", "empty", "cut", "cut between members", "garbage", "garbage behind the end", "second cut"]
)
def test_damaged_files_are_named(shards: Path, damage: str) -> None:
    path = shards / "imagenet-val-000000.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        start = tar.getmembers()[8].offset
    path.write_bytes(
        {
            "text": b"this is not a tar file" * 100,
            "empty": b"",
            "cut": content[: start + 520],
            "cut between members": content[:start],
            "garbage": content[:start] + b"\xff" * 512 + content[start + 512 :],
            "second cut": content + content[: start + 520],
            "garbage behind the end": content + b"\xff" * 512,
        }[damage]
    )
    with pytest.raises(DatasetError, match="imagenet-val-000000.tar cannot be read, or is damaged: "):
        source(shards)


def test_damaged_images_are_refused(tmp_path: Path) -> None:
    contents: dict[str, bytes | str | dict[str, Any]] = {
        "1.png": b"",
        "2.png": picture(0)[:-40],
        "3.png": "text",
        "4.png": picture(0, height=7),
    }
    write_tar(tmp_path / "train.tar", contents)
    read = source(tmp_path)
    reasons = ["empty file", "damaged PNG: ", "not an image in one of the formats", "20 x 7 pixels: a side is below 8"]
    for item, reason in zip(read.listing()["train"], reasons, strict=True):
        with pytest.raises(RefusedImageError, match=reason):
            read.load(item, 16)


@pytest.mark.slow
def test_at_a_uri_exactly_the_bytes_are_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        bucket = server.uri
        upload(shards, f"{bucket}/some/set")
        ours, theirs = source(shards), source(f"{bucket}/some/set")
        assert ours.listing() == theirs.listing() and ours.classes == theirs.classes
        sizes = []
        read = Store.read

        def measured(self: Store, *arguments: Any) -> bytes:
            content = read(self, *arguments)
            sizes.append(len(content))
            return content

        monkeypatch.setattr(Store, "read", measured)
        assert labels_of(theirs, "val") == labels_of(ours, "val")
        assert sizes == [len(picture(number)) for number in range(9)] * 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_prepared_shards_hold_the_images(shards: Path, tmp_path: Path) -> None:
    read = source(shards)
    summary = prepare(read, tmp_path / "out", 16, {"dataset": "webdataset"}, test_images=6)
    assert summary.images == {"train": 34, "val": 9, "test": 6} and summary.refused == 0
    for entry in open_shards(tmp_path / "out").manifest.entries:
        batch = pa.ipc.open_file(tmp_path / "out" / entry.file).get_batch(0)
        for item, label in zip(batch["source_id"].to_pylist(), batch["label"].to_pylist(), strict=True):
            assert read.classes[label] == read.stratum(item)

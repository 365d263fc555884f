"""Folders of images: how they are listed."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from encoded_images import noise
from PIL import Image

from adios_ray.data.decode import DecodeOptions
from adios_ray.data.sources.folder import source as folder_source
from adios_ray.errors import DatasetError, RefusedImageError


def plant(root: Path, *items: str) -> Path:
    """Make small pictures at the given paths."""
    for item in items:
        path = root / item
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, 3)).save(path, "PNG")
    return root


def test_splits_with_classes(tmp_path: Path) -> None:
    items = ["test/b/1.png", "test/a/1.png", "train/b/2.JPG", "train/a/9.tiff", "train/a/10.WebP", "validation/a/1.gif"]
    source = folder_source(plant(tmp_path, *items, "validation/b/sub/x.bmp", "train/a/.hidden.png", "train/.x/y.png"))
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    assert source.classes == ("a", "b")
    assert source.listing() == {
        "train": ["train/a/10.WebP", "train/a/9.tiff", "train/b/2.JPG"],
        "val": ["validation/a/1.gif", "validation/b/sub/x.bmp"],
        "test": ["test/a/1.png", "test/b/1.png"],
    }
    assert [source.load(item, 8).label for item in source.listing()["val"]] == [0, 1]


def test_a_photograph_comes_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(noise(24, 40, 3)).save(tmp_path / "a" / "1.png")
    sample = folder_source(tmp_path).load("a/1.png", 16)
    assert sample.image.shape == (16, 16, 3) and (sample.height, sample.width) == (24, 40)


def test_classes_without_splits_are_all_train(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "cat/1.png", "ant/images/1.png", "test/1.png"), layout="classes")
    assert source.classes == ("ant", "cat", "test")
    assert source.listing() == {"train": ["ant/images/1.png", "cat/1.png", "test/1.png"]}
    assert [source.load(item, 8).label for item in source.listing()["train"]] == [0, 1, 2]


def test_a_flat_folder_has_one_class(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "b.png", "a.png"))
    assert source.classes == ("unlabeled",) and source.listing() == {"train": ["a.png", "b.png"]}
    assert source.load("a.png", 8).label == 0 and source.load("a.png", 8).instances is None


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    plant(tmp_path / "all", "ant/1.png", "cat/1.png")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert folder_source(tmp_path / "some").listing() == {"train": ["cat/1.png"]}


def test_classes_must_be_those_of_every_split(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    with pytest.raises(DatasetError, match="train has no images of c; val has no images of b: add some"):
        folder_source(tmp_path)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no images in"),
        (["train/a/1.png", "val/a/.x.png"], "no images in .*val"),
        (["train/a/1.png", "val/a/1.png", "validation/a/1.png"], "both val and validation"),
        (["a/1.png", "1.png"], r"both class folders \(a\) and images beside them, such as 1.png: .*--layout"),
        (
            ["training_set/a/1.png", "test_set/a/1.png"],
            r"two ways: test_set, training_set may be splits, by words in their names .*--layout classes",
        ),
        (["seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"], "seg_pred, seg_test, seg_train may be splits"),
        (
            ["a/train/1.png", "a/test/1.png", "b/train/1.png", "b/test/1.png"],
            r"test, train in a, b may be splits \(which come first: test/a\), .*--layout classes",
        ),
        (["train/a/1.png", "test/a/1.png", "eval/a/1.png"], "both eval and test"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, items: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        folder_source(plant(tmp_path, *items))


def test_what_may_be_splits_can_be_classes(tmp_path: Path) -> None:
    items = ["test tube/train/1.png", "test tube/test/1.png", "train station/train/2.png", "train station/test/2.png"]
    with pytest.raises(DatasetError, match="two ways"):
        folder_source(plant(tmp_path, *items))
    assert folder_source(tmp_path, layout="classes").listing() == {"train": sorted(items)}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        folder_source(tmp_path / "nowhere")


def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png")
    os.rename(tmp_path / "a" / "1.png", os.fsencode(tmp_path / "a") + b"/\xff.png")
    with pytest.raises(DatasetError, match=r"xff\.png' is not UTF-8"):
        folder_source(tmp_path)


def test_a_pickled_source_decodes_but_does_not_carry_the_listing(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(50))))
    sent = pickle.dumps(source)
    assert len(sent) < 700 and len(source.listing()["train"]) == 100
    received = pickle.loads(sent)
    assert received.load("train/b/7.png", 8).label == 1 and received.listing() == {}


def test_images_without_labels_beside_those_of_train(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "train/a/1.png", "train/b/1.png", "unlabeled/x/2.png", "unlabeled/1.png"))
    assert source.classes == ("a", "b")
    assert source.listing()["unlabeled"] == ["unlabeled/1.png", "unlabeled/x/2.png"]
    assert [source.load(item, 8).label for item in source.listing()["unlabeled"]] == [-1, -1]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "a/1.png", "a/2.png"))
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(RefusedImageError, match="^cannot be read: No such file or directory$"):
        source.load("a/1.png", 32)


def test_a_refusal_does_not_name_the_folder(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "a/1.png"))
    (tmp_path / "a" / "1.png").write_text("<html>404</html>")
    with pytest.raises(RefusedImageError, match="not an image") as caught:
        source.load("a/1.png", 32)
    assert str(tmp_path) not in str(caught.value)


def test_decoding_follows_the_options_of_the_source(tmp_path: Path) -> None:
    source = replace(folder_source(plant(tmp_path, "a/1.png")), options=DecodeOptions(max_pixels=63))
    with pytest.raises(RefusedImageError, match="more than --max-pixels 63"):
        source.load("a/1.png", 32)

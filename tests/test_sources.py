"""The named data sets: each is built here in its published layout, and read back."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tyro
from encoded_images import noise, picture
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from adios_ray.cli import main
from adios_ray.commands.data import Prepare
from adios_ray.data.plan import deciding, image_counts, make_plan, plan_jobs
from adios_ray.data.prepare import prepare
from adios_ray.data.shard_task import layout_of
from adios_ray.data.shards import open_shards
from adios_ray.data.sources import backgrounds, cifar, clevr, flowers102, imagenet, inaturalist, stl10, webdataset
from adios_ray.data.sources.catalog import CATALOG
from adios_ray.data.sources.folder import source as folder_source
from adios_ray.data.sources.image_files import read_image_file
from adios_ray.data.sources.named import CIFAR100 as CIFAR100_CLASSES
from adios_ray.data.sources.named import shortage
from adios_ray.data.splits import plan_splits
from adios_ray.errors import DatasetError, RefusedImageError

Pixels = npt.NDArray[np.uint8]
SYNSETS = imagenet.synsets()


def plant(path: Path, pixels: Pixels | None = None, value: int = 0) -> None:
    """Save a picture; a small one of one gray if none is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8) if pixels is None else pixels).save(path, "PNG")


def labels_of(source: Any, split: str) -> dict[str, Any]:
    """Load the label of each item of a split, with the source pickled as for a worker."""
    sent = pickle.loads(pickle.dumps(source))
    return {item: sent.load(item, 32).label for item in source.listing()[split]}


# ImageNet: the 100 classes, two others, and three layouts of the validation images.


def plant_train(base: Path) -> None:
    """Write one training image of each of the 100 classes, and one of another."""
    for synset in (*SYNSETS, "n99999999"):
        plant(base / "train" / synset / f"{synset}_1.JPEG")


def plant_flat(folder: Path) -> None:
    """Write 102 validation images; classes are in reverse order, and the first and the last are not among the 100."""
    for number in range(1, 103):
        plant(folder / f"ILSVRC2012_val_{number:08d}.JPEG", value=number)


ORDER = ("n00000001", *reversed(SYNSETS), "n99999999")


def plant_devkit(root: Path) -> None:
    """Write the development kit, with class numbers that are seven times the positions in ORDER."""
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = [(7 * number, synset, "a word, another") for number, synset in enumerate(ORDER, start=1)]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=fields)[:, None]})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{7 * n}\n" for n in range(1, 103)))


def in_folders(root: Path) -> Path:
    """Write the validation images in folders of synsets."""
    plant_train(root)
    for number, synset in enumerate(ORDER, start=1):
        plant(root / "val" / synset / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root


def flat_with_devkit(root: Path) -> Path:
    """Write the validation images in one folder, with the development kit."""
    plant_train(root)
    plant_flat(root / "val")
    plant_devkit(root)
    return root


def from_kaggle(root: Path) -> Path:
    """Write Kaggle's layout: the validation images in one folder, with a CSV file of solutions."""
    plant_train(root / "ILSVRC/Data/CLS-LOC")
    plant_flat(root / "ILSVRC/Data/CLS-LOC/val")
    lines = [f"ILSVRC2012_val_{n:08d},{synset} 1 2 30 40 {synset} 5 6 7 8 " for n, synset in enumerate(ORDER, start=1)]
    text = "\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n"
    (root / "LOC_val_solution.csv").write_text(text, encoding="utf-8-sig")  # as spreadsheets save it
    return root


@pytest.mark.parametrize("layout", [in_folders, flat_with_devkit, from_kaggle])
def test_imagenet100_is_selected_and_labeled(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    source = imagenet.source(layout(tmp_path))
    assert source.classes == SYNSETS and len(SYNSETS) == 100 and SYNSETS[0] == "n01558993"
    train, test = labels_of(source, "train"), labels_of(source, "test")
    assert {Path(item).parts[1]: label for item, label in train.items()} == {name: k for k, name in enumerate(SYNSETS)}
    numbers = {int(item[-13:-5]): label for item, label in test.items()}
    assert numbers == {number: SYNSETS.index(name) for number, name in enumerate(ORDER, start=1) if name in SYNSETS}


def test_a_part_of_imagenet_is_noted(tmp_path: Path) -> None:
    assert imagenet.source(in_folders(tmp_path)).notes == (
        "train has 100 of the 126,689 images of ImageNet100",
        "test has 100 of the 5,000 images of ImageNet100",
    )
    assert shortage({"train": ["a", "b"]}, "a pair", {"train": 2}) == ()


def test_imagenet_errors_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="train, .*val not found"):
        imagenet.source(tmp_path)
    plant_train(tmp_path)
    plant_flat(tmp_path / "val")
    with pytest.raises(DatasetError, match="neither .*devkit.* nor .*LOC_val_solution.csv is there"):
        imagenet.source(tmp_path)
    for rows, message in (
        ("ImageId,Prediction\nILSVRC2012_val_00000001,n1", "line 2 has no ImageId and PredictionString"),
        ("ImageId,PredictionString\nval_1,n1 1\nval_1,n2 1", "lists val_1 as n1 and as n2"),
    ):
        (tmp_path / imagenet.SOLUTION).write_text(rows)
        with pytest.raises(DatasetError, match=f"LOC_val_solution.csv:? {message}"):
            imagenet.source(tmp_path)
    (tmp_path / imagenet.SOLUTION).unlink()
    plant_devkit(tmp_path)
    for image in (tmp_path / "train" / SYNSETS[3]).iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match=f"train has no images of 1 of the 100 classes: {SYNSETS[3]}"):
        imagenet.source(tmp_path)


# CIFAR: pickled batches.

NAMES = [b"cat", b"dog", b"sparrow"]


def plant_cifar(folder: Path, label_key: bytes, names_key: bytes, files: tuple[str, ...], meta: str) -> Pixels:
    """Write four images per batch, labels 0 1 2 0, pickled as by Python 2; return the pixels of all batches."""
    folder.mkdir(parents=True)
    pixels = noise(len(files), 4, 3072)
    for name, content in zip(files, pixels, strict=True):
        write_pickle(folder / name, {b"data": content, label_key: [0, 1, 2, 0], b"batch_label": b"a batch"})
    write_pickle(folder / meta, {names_key: NAMES})
    return pixels


class _Python2(pickle._Pickler):
    """Pickler that writes text and bytes as Python 2's strings, as in the published files."""

    def save_string(self, text: str | bytes) -> None:
        """Write the opcode BINSTRING."""
        content = text.encode() if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(content)) + content)  # type: ignore[attr-defined]
        self.memoize(text)  # type: ignore[attr-defined]

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # type: ignore[dict-item]


def write_pickle(path: Path, content: object) -> None:
    """Write a pickle as Python 2 did."""
    with path.open("wb") as file:
        _Python2(file, protocol=2).dump(content)


CIFAR10 = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
VERSIONS: dict[str, Any] = {
    "cifar10": (cifar.cifar10, "cifar-10-batches-py", (b"labels", b"label_names", CIFAR10, "batches.meta")),
    "cifar100": (
        cifar.cifar100,
        "cifar-100-python",
        (b"fine_labels", b"fine_label_names", ("train", "test"), "meta"),
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("inside", [True, False])
def test_cifar_batches(tmp_path: Path, version: str, inside: bool) -> None:
    read, folder, layout = VERSIONS[version]
    pixels = plant_cifar(tmp_path / folder, *layout)
    source = read(tmp_path / folder if inside else tmp_path)
    title, number = version.upper().replace("R1", "R-1"), 4 * (len(pixels) - 1)
    parts = f"train has {number} of the 50,000 images of {title}", f"test has 4 of the 10,000 images of {title}"
    assert source.notes == parts
    assert source.classes == ("cat", "dog", "sparrow")
    train, test = source.listing()["train"], source.listing()["test"]
    assert len(train) == 4 * (len(pixels) - 1) and len(test) == 4
    assert {source.stratum(item) for item in (*train, *test)} == set(source.classes)
    assert {source.file_of(item) for item in (*train, *test)} | {layout[-1]} == source.files().keys()
    assert list(labels_of(source, "train").values()) == [0, 1, 2, 0] * (len(pixels) - 1)
    for items, rows in ((train, pixels[:-1].reshape(-1, 3, 32, 32)), (test, pixels[-1].reshape(-1, 3, 32, 32))):
        for item, row in zip(items, rows, strict=True):
            np.testing.assert_array_equal(source.load(item, 32).image, row.transpose(1, 2, 0))
    larger = source.load(test[1], 48)
    assert larger.image.shape == (48, 48, 3) and (larger.height, larger.width) == (32, 32)


def test_batches_that_python_3_wrote_for_python_2(tmp_path: Path) -> None:
    content = {b"data": noise(3, 3072), b"labels": [1, 0, 2]}
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol=2))
    read = cifar.read_batch(tmp_path / "batch")
    np.testing.assert_array_equal(read[b"data"], content[b"data"])
    assert read[b"labels"] == [1, 0, 2]


@pytest.mark.parametrize("pixels", [noise(3, 3072).copy(order="F"), noise(3, 3072).reshape(3, 32, 32, 3)])
def test_batches_in_another_order_of_bytes_are_refused(pixels: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": pixels, b"labels": [1, 0, 2]}, protocol=2))
    with pytest.raises(DatasetError, match="batch is damaged or not a batch of CIFAR: .* not stored as rows of 3072"):
        cifar.read_batch(tmp_path / "batch")


def test_torchvision_reads_the_same_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, folder, layout = VERSIONS["cifar10"]
    plant_cifar(tmp_path / folder, *layout)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    theirs, ours = datasets.CIFAR10(tmp_path, train=True), cifar.cifar10(tmp_path)
    items = ours.listing()["train"]
    assert list(labels_of(ours, "train").values()) == theirs.targets and ours.classes == tuple(theirs.classes)
    np.testing.assert_array_equal(np.stack([ours.load(item, 32).image for item in items]), theirs.data)


class Attack:
    """A hostile object: ``pickle`` creates a file when it loads it."""

    def __init__(self, path: Path) -> None:
        """Choose the file."""
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that ``pickle`` would make."""
        return Path.touch, (self.path,)


def test_a_hostile_batch_executes_nothing(tmp_path: Path) -> None:
    read, folder, layout = VERSIONS["cifar10"]
    plant_cifar(tmp_path / folder, *layout)
    trap = tmp_path / "trap"
    write_pickle(tmp_path / folder / "data_batch_3", {b"data": Attack(trap), b"labels": [0]})
    with pytest.raises(DatasetError, match="data_batch_3 is damaged or not a batch of CIFAR"):
        read(tmp_path)
    write_pickle(tmp_path / folder / "data_batch_3", {b"data": noise(4, 3072), b"labels": Attack(trap)})
    with pytest.raises(DatasetError, match="data_batch_3"):
        read(tmp_path)
    assert not trap.exists()


def test_cifar_errors_name_what_is_wrong(tmp_path: Path) -> None:
    read, folder, layout = VERSIONS["cifar10"]
    plant_cifar(tmp_path / folder, *layout)
    write_pickle(tmp_path / folder / "test_batch", {b"data": noise(4, 3072), b"labels": [0, 1, 2, 3]})
    with pytest.raises(DatasetError, match="test_batch .*do not match"):
        read(tmp_path)
    (tmp_path / folder / "test_batch").unlink()
    with pytest.raises(DatasetError, match="lacks test_batch: --source is the folder that holds cifar-10-batches-py"):
        read(tmp_path)


def test_folders_of_other_images_are_not_cifar(tmp_path: Path) -> None:
    for name in ("train/coat/1.png", "test/coat/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    with pytest.raises(DatasetError, match="is not CIFAR-10, which has no class coat"):
        cifar.cifar10(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "coat").rename(tmp_path / split / "cat")
    notes = cifar.cifar10(tmp_path).notes
    assert notes[:2] == ("1 of the 10 classes of CIFAR-10 are there", "train has 1 of the 50,000 images of CIFAR-10")
    with pytest.raises(DatasetError, match="is not CIFAR-100, which has no class cat"):
        cifar.cifar100(tmp_path)
    assert len(set(CIFAR100_CLASSES)) == 100


def test_cifar_as_folders_of_classes(tmp_path: Path) -> None:
    plant(tmp_path / "train" / "cat" / "1.png")
    plant(tmp_path / "test" / "cat" / "1.png")
    assert cifar.cifar10(tmp_path).listing() == {"train": ["train/cat/1.png"], "test": ["test/cat/1.png"]}


# STL-10: binaries, stored by columns.


def plant_stl(root: Path) -> Path:
    """Write six labeled images, two test images, five without labels, and two folds."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part, count in (("train", 6), ("test", 2), ("unlabeled", 5)):
        noise(count, 3, 96, 96).tofile(folder / f"{part}_X.bin")
    np.array([1, 2, 10, 1, 2, 3], np.uint8).tofile(folder / "train_y.bin")
    np.array([10, 1], np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("airplane bird car cat deer dog horse monkey ship truck".replace(" ", "\n"))
    (folder / "fold_indices.txt").write_text("0 2 4\n1 3 5\n")
    return root


@pytest.fixture
def stl(tmp_path: Path) -> Path:
    """Write the binaries of STL-10; return the folder that holds theirs."""
    return plant_stl(tmp_path)


def test_stl10_binaries_are_those_of_torchvision(stl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    source = stl10.source(stl)
    assert {split: len(items) for split, items in source.listing().items()} == {"train": 6, "test": 2, "unlabeled": 5}
    for split, part in (("train", "train"), ("test", "test"), ("unlabeled", "unlabeled")):
        theirs = datasets.STL10(stl, split=part)
        images = np.stack([source.load(item, 96).image for item in source.listing()[split]])
        np.testing.assert_array_equal(images, theirs.data.transpose(0, 2, 3, 1))
        sample = source.load(source.listing()[split][0], 96)
        assert (sample.height, sample.width) == (96, 96)
        assert list(labels_of(source, split).values()) == theirs.labels.tolist()


def test_a_fold_of_stl10_leaves_nothing_out(stl: Path) -> None:
    whole, fold = stl10.source(stl).listing(), stl10.source(stl / "stl10_binary", fold=1).listing()
    assert [item.rpartition("/")[2] for item in fold["train"]] == ["1", "3", "5"]
    source = stl10.source(stl, fold=1)
    assert set(labels_of(source, "unlabeled").values()) == {-1} and len(fold["unlabeled"]) == 5 + 3
    assert fold["test"] == whole["test"]
    assert source.notes == (  # of the whole, which the fold parts in another way
        "train has 6 of the 5,000 images of STL-10",
        "test has 2 of the 8,000 images of STL-10",
        "unlabeled has 5 of the 100,000 images of STL-10",
    )
    with pytest.raises(DatasetError, match="there is no fold 2: .*has 2, the first is 0"):
        stl10.source(stl, fold=2)
    for line in ("0 2 x", "-1 2", "0 6", ""):
        (stl / "stl10_binary" / "fold_indices.txt").write_text(f"{line}\n1 3 5\n")
        with pytest.raises(DatasetError, match="line 1 of .*fold_indices.txt does not name images out of 6"):
            stl10.source(stl, fold=0)


def test_stl10_errors_name_what_is_wrong(stl: Path) -> None:
    folder = stl / "stl10_binary"
    with (folder / "unlabeled_X.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DatasetError, match="unlabeled_X.bin has 138241 bytes, which is not a whole number of images"):
        stl10.source(stl)
    np.array([1, 11], np.uint8).tofile(folder / "test_y.bin")
    with pytest.raises(DatasetError, match="test_y.bin does not hold one of 10 classes for each of 2 images"):
        stl10.source(stl)
    (folder / "test_y.bin").unlink()
    with pytest.raises(DatasetError, match="lacks test_y.bin"):
        stl10.source(stl)


# Flowers: .mat files.


@pytest.mark.parametrize("inside", [True, False])
def test_flowers_splits_and_labels(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "flowers-102"
    for number in range(1, 8):
        plant(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[3, 1, 2, 3, 1, 2, 3]], np.uint8)})
    splits = {"trnid": [[2, 1, 6]], "valid": [[4, 5, 3]], "tstid": [[7]]}
    savemat(folder / "setid.mat", {key: np.array(value, np.uint16) for key, value in splits.items()})
    with pytest.raises(DatasetError, match="test has no images of 001, 002: add some, or remove the class"):
        flowers102.source(tmp_path)
    savemat(folder / "setid.mat", {**{k: np.array(v, np.uint16) for k, v in splits.items()}, "tstid": [[7, 2, 3]]})
    source = flowers102.source(folder if inside else tmp_path)
    assert source.classes == ("001", "002", "003")
    assert labels_of(source, "train") == {"jpg/image_00001.jpg": 2, "jpg/image_00002.jpg": 0, "jpg/image_00006.jpg": 1}
    assert list(labels_of(source, "val").values()) == [1, 2, 0]
    savemat(folder / "imagelabels.mat", {"labels": np.array([[3, 1, 2]], np.uint8)})
    with pytest.raises(DatasetError, match="names image 6, imagelabels.mat has 3"):
        flowers102.source(tmp_path)


def test_a_damaged_mat_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "jpg").mkdir()
    for name in ("imagelabels.mat", "setid.mat"):
        (tmp_path / name).write_bytes(b"MATLAB 5.0 MAT-file, cut off")
    with pytest.raises(DatasetError, match="imagelabels.mat is damaged, or lacks one of labels"):
        flowers102.source(tmp_path)


# iNaturalist: JSON.


def plant_inaturalist(root: Path, name: str, content: Mapping[str, int]) -> None:
    """Write the annotations of a split from {file name: category}, with identifiers that are not positions."""
    for number, file in enumerate(content):
        plant(root / file, value=number)
    annotations = {
        "images": [{"id": 100 - i, "file_name": file, "width": 8} for i, file in enumerate(content)],
        "annotations": [{"id": i, "image_id": 100 - i, "category_id": c} for i, c in enumerate(content.values())],
        "categories": [{"id": 5, "name": "Bufo bufo"}, {"id": 12, "name": "Apis"}, {"id": 9, "name": "Apis"}],
    }
    (root / f"{name}2018.json").write_text(json.dumps(annotations))


@pytest.mark.parametrize("as_text", [(), ("id",), ("category_id", "image_id"), ("id", "category_id", "image_id")])
def test_inaturalist_annotations(tmp_path: Path, as_text: tuple[str, ...]) -> None:
    train = {"train_val2018/Animalia/5/a.jpg": 5, "train_val2018/x/12/b.jpg": 12, "train_val2018/y/9/c.jpg": 9}
    plant_inaturalist(tmp_path, "train", train)
    plant_inaturalist(tmp_path, "val", {"train_val2018/Animalia/5/d.jpg": 5, "train_val2018/y/9/e.jpg": 9})
    for path in tmp_path.glob("*.json"):
        content = json.loads(path.read_text())
        for each in (each for listed in content.values() for each in listed):
            each |= {name: str(each[name]) for name in as_text if name in each}
        path.write_text(json.dumps(content))
    source = inaturalist.source(tmp_path)
    assert source.classes == ("00005 Bufo bufo", "00009 Apis", "00012 Apis")
    assert labels_of(source, "train") == dict(zip(sorted(train), [0, 2, 1], strict=True))
    assert list(labels_of(source, "test").values()) == [0, 1]


def test_inaturalist_with_categories_that_share_a_folder(tmp_path: Path) -> None:
    plant_inaturalist(tmp_path, "train", {"all/a.jpg": 5, "all/b.jpg": 12})
    plant_inaturalist(tmp_path, "val", {"all/c.jpg": 12})
    assert labels_of(inaturalist.source(tmp_path), "train") == {"all/a.jpg": 0, "all/b.jpg": 1}


@pytest.mark.parametrize("name", ["../a.jpg", "all/../../a.jpg", "/etc/a.jpg"])
def test_a_list_names_no_files_outside(name: str, tmp_path: Path) -> None:
    root = tmp_path / "inat"
    plant_inaturalist(root, "train", {"all/a.jpg": 5, "./all//b.jpg": 12})
    plant_inaturalist(root, "val", {"all/c.jpg": 12})
    assert sorted(labels_of(inaturalist.source(root), "train")) == ["all/a.jpg", "all/b.jpg"]
    content = json.loads((root / "train2018.json").read_text())
    content["images"][0]["file_name"] = name
    (root / "train2018.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=f"train2018.json names {name}, which is outside the data set"):
        inaturalist.source(root)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(RefusedImageError, match="is not a regular file"):
            read_image_file(tmp_path / name)


def test_an_image_that_is_listed_twice_is_read_once_and_has_one_class(tmp_path: Path) -> None:
    plant_inaturalist(tmp_path, "train", {"all/a.jpg": 5, "all/b.jpg": 12})
    plant_inaturalist(tmp_path, "val", {"all/c.jpg": 5, "all/d.jpg": 12})
    path = tmp_path / "train2018.json"
    content = json.loads(path.read_text())
    content["annotations"] *= 2
    path.write_text(json.dumps(content))
    plan = make_plan(inaturalist.source(tmp_path), image_counts())
    assert sorted(plan.splits["train"]) == ["all/a.jpg", "all/b.jpg"] and plan.images + plan.passed_over.total == 6
    assert "note: 2 images listed more than once, read once: all/a.jpg, all/b.jpg" in plan.text()
    content["annotations"][0] = {**content["annotations"][0], "category_id": 12}
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="all/a.jpg is listed as 00005 Bufo bufo and as 00012 Apis: remove one"):
        inaturalist.source(tmp_path)


def test_inaturalist_folders_of_torchvision(tmp_path: Path) -> None:
    for folder in ("2021_train_mini", "2021_valid"):
        for name in ("00000_Animalia_Apis", "00001_Plantae_Rosa"):
            plant(tmp_path / folder / name / "x.jpg")
    source = inaturalist.source(tmp_path)
    assert source.classes == ("00000_Animalia_Apis", "00001_Plantae_Rosa")
    assert list(labels_of(source, "test").values()) == [0, 1]


def test_inaturalist_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=re.escape("must hold one 2021_train*; it has none")):
        inaturalist.source(tmp_path)
    plant_inaturalist(tmp_path, "train", {"a/b.jpg": 5})
    with pytest.raises(DatasetError, match=re.escape("must hold one val*.json; it has none")):
        inaturalist.source(tmp_path)
    plant_inaturalist(tmp_path, "val", {"a/c.jpg": 77})
    with pytest.raises(DatasetError, match="val2018.json annotates 77, which it does not list"):
        inaturalist.source(tmp_path)
    (tmp_path / "val2018.json").write_text('{"images": []}')
    with pytest.raises(DatasetError, match="does not hold images, annotations and categories"):
        inaturalist.source(tmp_path)
    for text in ('{"images"', "[" * 100_000):
        (tmp_path / "val2018.json").write_text(text)
        with pytest.raises(DatasetError, match="val2018.json is not JSON"):
            inaturalist.source(tmp_path)
    (tmp_path / "val2018.json").write_text('{"images": [{}], "annotations": [], "categories": []}')
    with pytest.raises(DatasetError, match="val2018.json is not in the format of iNaturalist: KeyError: 'id'"):
        inaturalist.source(tmp_path)


# CLEVR: scenes, and the pictures with masks of ADIOS' authors.


def scene(name: str, *things: tuple[str, str]) -> dict[str, Any]:
    """Describe a scene in CLEVR's JSON, from the color and shape of each object."""
    return {"image_filename": name, "objects": [{"color": c, "shape": s, "size": "small"} for c, s in things]}


def test_clevr_scenes(tmp_path: Path) -> None:
    folder = tmp_path / "CLEVR_v1.0"
    (folder / "scenes").mkdir(parents=True)
    for part in ("train", "val"):
        wide = np.zeros((32, 48, 3), np.uint8)
        wide[:, :24] = 200  # a crop of the middle would show 16 of these 24 columns
        plant(folder / "images" / part / f"CLEVR_{part}_000000.png", wide)
    train = [scene("CLEVR_train_000000.png", ("yellow", "cube"), ("gray", "sphere"), ("yellow", "cube"))]
    (folder / "scenes" / "CLEVR_train_scenes.json").write_text(json.dumps({"scenes": train}))
    val = [scene("CLEVR_val_000000.png", ("red", "cylinder"))]
    (folder / "scenes" / "CLEVR_val_scenes.json").write_text(json.dumps({"scenes": val}))
    source = clevr.source(tmp_path)
    assert len(source.classes) == 24 and source.multi_label and not source.has_instances
    label = np.asarray(source.load("images/train/CLEVR_train_000000.png", 32).label)
    assert [name for name, there in zip(source.classes, label, strict=True) if there] == ["yellow cube", "gray sphere"]
    sample = source.load("images/val/CLEVR_val_000000.png", 32)
    assert source.classes[int(np.argmax(sample.label))] == "red cylinder" and np.sum(sample.label) == 1
    assert (sample.image[:, :14] > 190).all() and (sample.image[:, 18:] < 10).all()
    assert sample.height == sample.width  # the central view is all of it: no object that the label names is lost
    twice = [scene("x", ("red", "cube")), scene("x", ("blue", "cube"))]
    (folder / "scenes" / "CLEVR_val_scenes.json").write_text(json.dumps({"scenes": twice}))
    with pytest.raises(DatasetError, match="describes images/val/x twice, with different objects"):
        clevr.source(tmp_path)
    (folder / "scenes" / "CLEVR_val_scenes.json").write_text(json.dumps({"scenes": [scene("x", ("pink", "cube"))]}))
    with pytest.raises(DatasetError, match="CLEVR_val_scenes.json is not a list of CLEVR's scenes"):
        clevr.source(tmp_path)
    (folder / "scenes" / "CLEVR_val_scenes.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="CLEVR_val_scenes.json is not a list of CLEVR's scenes: maximum recursion"):
        clevr.source(tmp_path)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Write ten pictures with up to three objects, of 8 colors and 3 shapes in total, with masks."""
    folder = tmp_path / "clevr"
    colors, shapes = torch.zeros(10, 3), torch.zeros(10, 3)
    colors[0], shapes[0] = torch.tensor([8, 1, 8]), torch.tensor([3, 2, 3])
    colors[1, 1], shapes[1, 1] = 5, 1
    for number in range(10):
        masks = np.zeros((4, 16, 24), np.uint8)
        masks[0] = 255
        if number == 0:
            masks[0, :8], masks[1, :8, :12], masks[3, :8, 12:] = 0, 255, 255
        plant(folder / "images" / f"{number}.png", noise(16, 24, 3))
        for k, mask in enumerate(masks):
            plant(folder / "masks" / f"{number}_{k}.png", mask)
    torch.save(colors, folder / "color.pt")
    torch.save(shapes, folder / "shape.pt")
    return tmp_path


def test_clevr_with_masks(release: Path) -> None:
    source = clevr.source(release)
    sample = pickle.loads(pickle.dumps(source)).load("images/0.png", 16)
    color, shape, classes = np.array([8, 1, 8]), np.array([3, 2, 3]), 8
    expected = np.zeros(24)
    expected[color + classes * (shape - 1) - 1] = 1  # as ADIOS' authors number them
    np.testing.assert_array_equal(sample.label, expected)
    assert sample.instances is not None
    np.testing.assert_array_equal(sample.instances[:7, :7], 1)
    np.testing.assert_array_equal(sample.instances[:7, 9:], 3)
    np.testing.assert_array_equal(sample.instances[9:], 0)
    assert np.flatnonzero(source.load("images/5.png", 16).label).size == 0
    assert np.flatnonzero(source.load("images/1.png", 16).label).tolist() == [4]
    listing = source.listing()
    assert len(listing["train"]) == 7 and len({*listing["train"], *listing["test"]}) == 10


def test_clevr_with_the_authors_split(release: Path) -> None:
    torch.save(torch.tensor([9, 1, 2]), release / "clevr" / "train_indices.pt")
    torch.save(torch.tensor([0, 3]), release / "clevr" / "val_indices.pt")
    listing = clevr.source(release).listing()
    assert listing == {"train": [f"images/{i}.png" for i in (1, 2, 9)], "test": ["images/0.png", "images/3.png"]}


@pytest.mark.parametrize("indices", [[0, 10], [-1, 3], []])
def test_splits_of_clevr_name_pictures_that_are_there(indices: list[int], release: Path) -> None:
    torch.save(torch.tensor([9, 1, 2]), release / "clevr" / "train_indices.pt")
    torch.save(torch.tensor(indices), release / "clevr" / "val_indices.pt")
    with pytest.raises(DatasetError, match="val_indices.pt does not name pictures out of 10"):
        clevr.source(release)


def test_a_picture_of_clevr_that_lacks_a_mask_is_refused(release: Path) -> None:
    source = clevr.source(release)
    item = next(item for item in source.kinds if (release / f"clevr/masks/{Path(item).stem}_3.png").exists())
    (release / f"clevr/masks/{Path(item).stem}_2.png").unlink()
    with pytest.raises(RefusedImageError, match=rf"lacks the mask {Path(item).stem}_2.png, though not the next one"):
        source.load(item, 16)


def test_masks_are_as_many_as_the_objects_need(release: Path) -> None:
    source, masks = clevr.source(release), release / "clevr" / "masks"
    (masks / "0_3.png").unlink()  # of the last object
    with pytest.raises(RefusedImageError, match=r"^lacks the mask 0_3.png, though it has 3 objects$"):
        source.load("images/0.png", 16)
    for number in (2, 3):
        (masks / f"1_{number}.png").unlink()  # of no object
    assert source.load("images/1.png", 16).instances is not None


@pytest.mark.usefixtures("without_ray")
def test_masks_that_have_changed_are_noticed(release: Path, tmp_path: Path) -> None:
    masks, read = release / "clevr" / "masks", partial(clevr.source, release)
    (masks / "Thumbs.db").touch()
    assert read().files().keys() == {
        *("shape.pt", "color.pt", *read().kinds),
        *(f"masks/{number}_*.png" for number in range(10)),
    }

    def digests() -> dict[str, str]:
        source = read()
        decided = deciding(source, {}, source.files())
        jobs = plan_jobs(make_plan(source, image_counts()).splits, layout_of(source, 32), *decided)
        return {item: job.digest for job in jobs for item in job.items}

    before = digests()
    for name, source in (("earlier", replace(read(), has_instances=False)), ("out", read())):  # it listed no masks
        prepare(source, tmp_path / name, 32, {})
        assert prepare(read(), tmp_path / name, 32, {}).complete_before
    plant(masks / "3_1.png", np.eye(16, 24, dtype=np.uint8))
    after = digests()
    assert all((after[item] != before[item]) == (before[item] == before["images/3.png"]) for item in before)
    with pytest.raises(DatasetError, match=r"out was made: 1 changed \(masks/3_\*.png\)"):
        prepare(read(), tmp_path / "out", 32, {})


def test_clevr_errors_name_what_is_wrong(release: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds neither CLEVR's scenes and images nor shape.pt"):
        clevr.source(tmp_path / "clevr" / "images")
    torch.save(torch.ones(10, 3), release / "clevr" / "shape.pt")
    with pytest.raises(DatasetError, match="do not describe the same objects"):
        clevr.source(release)
    torch.save(Attack(tmp_path / "trap"), release / "clevr" / "shape.pt")
    with pytest.raises(DatasetError, match="shape.pt is not a stored tensor"):
        clevr.source(release)
    assert not (tmp_path / "trap").exists()


def test_a_ground_truth_names_classes_of_the_kit(tmp_path: Path) -> None:
    root = flat_with_devkit(tmp_path)
    (path,) = root.rglob("ILSVRC2012_validation_ground_truth.txt")
    path.write_text(path.read_text().replace("140", "1400", 1))
    with pytest.raises(DatasetError, match="ground_truth.txt has 1400, which is no number of a class in .*meta.mat"):
        imagenet.source(root)


# The backgrounds challenge: folders.


def test_backgrounds_variations(tmp_path: Path) -> None:
    plant(tmp_path / "bg_challenge" / "fg_mask" / "val" / "00_dog" / "x.npy")
    for variation in ("original", *backgrounds.VARIATIONS):
        for name in ("00_dog", "01_bird"):
            plant(tmp_path / "bg_challenge" / variation / "val" / name / "x.JPEG")
    source = backgrounds.source(tmp_path)
    assert source.classes == ("00_dog", "01_bird")
    assert set(source.listing()) == {"test", *backgrounds.VARIATIONS}
    assert list(labels_of(source, "mixed_rand").values()) == [0, 1]
    assert set(plan_splits(source.listing(), {"train": None, "val": None, "test": None})) == set(source.listing())
    plant(tmp_path / "bg_challenge" / "original" / "train" / "00_dog" / "y.JPEG")
    plant(tmp_path / "bg_challenge" / "original" / "train" / "01_bird" / "y.JPEG")
    assert list(labels_of(backgrounds.source(tmp_path), "train").values()) == [0, 1]
    with pytest.raises(DatasetError, match="no_fg/val not found"):
        (tmp_path / "bg_challenge" / "no_fg").rename(tmp_path / "elsewhere")
        backgrounds.source(tmp_path)


# Files of labels and splits, which hold no image.


def flowers(root: Path) -> Path:
    """Write six flowers of two classes in three splits."""
    for number in range(1, 7):
        plant(root / "jpg" / f"image_{number:05d}.jpg", value=number)
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]], np.uint8)})
    savemat(
        root / "setid.mat",
        {key: np.array([[n, n + 1]], np.uint16) for n, key in ((1, "trnid"), (3, "valid"), (5, "tstid"))},
    )
    return root


def annotated(root: Path) -> Path:
    """Write two annotated images in each of two splits."""
    for name in ("train", "val"):
        plant_inaturalist(root, name, {f"{name}/1.jpg": 9, f"{name}/2.jpg": 5})
    return root


def tars(root: Path) -> Path:
    """Write twelve images in a tar file, and the names of their classes."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "train.tar", "w") as tar:
        for number in range(12):
            for ending, content in (("png", picture(number)), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (root / "classes.txt").write_text("ant\nbee\n")
    return root


def linked_kaggle(root: Path) -> Path:
    """Write Kaggle's layout with the images behind a link."""
    from_kaggle(root)
    (root / "ILSVRC").rename(root.parent / "elsewhere")
    (root / "ILSVRC").symlink_to(root.parent / "elsewhere")
    return root


def swap(one: str, other: str) -> Callable[[Path], None]:
    """Make a function that exchanges two words of a text."""

    def exchange(path: Path) -> None:
        path.write_text(other.join(part.replace(other, one) for part in path.read_text().split(one)))

    return exchange


def exchange_labels(path: Path) -> None:
    """Exchange the labels of the first two images in a tar file, whose size stays the same."""
    with tarfile.open(path) as tar:
        first, second = (tar.getmember(f"{number}.cls").offset_data for number in range(2))
    content = bytearray(path.read_bytes())
    content[first], content[second] = content[second], content[first]
    path.write_bytes(content)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("plant_source", "read", "file", "change"),
    [
        (plant_stl, stl10.source, "train_y.bin", lambda path: path.write_bytes(path.read_bytes()[::-1])),
        (
            flowers,
            flowers102.source,
            "imagelabels.mat",
            lambda path: savemat(path, {"labels": np.array([[2, 1] * 3], np.uint8)}),
        ),
        (
            flowers,
            flowers102.source,
            "setid.mat",
            lambda path: savemat(
                path, {key: np.array([[n, n + 1]], np.uint16) for n, key in ((5, "trnid"), (3, "valid"), (1, "tstid"))}
            ),
        ),
        (annotated, inaturalist.source, "train2018.json", swap('"category_id": 9', '"category_id": 5')),
        (linked_kaggle, imagenet.source, "../../../LOC_val_solution.csv", swap(*SYNSETS[:2])),
        (
            flat_with_devkit,
            imagenet.source,
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            swap("140", "210"),
        ),
        (tars, webdataset.source, "classes.txt", swap("ant", "bee")),
        (tars, webdataset.source, "train.tar", exchange_labels),
    ],
)
def test_labels_that_have_changed_are_noticed(
    tmp_path: Path,
    plant_source: Callable[[Path], Path],
    read: Callable[[Path], Any],
    file: str,
    change: Callable[[Path], Any],
) -> None:
    """The size and the time of change stay the same: the content tells."""
    source = read(plant_source(tmp_path / "source"))
    before = replace(source, described_in=())  # as earlier versions listed the files
    for name, made_from in (("new", source), ("earlier", before)):
        prepare(made_from, tmp_path / name, 16, {})
        assert prepare(source, tmp_path / name, 16, {}).complete_before
    path = Path(os.path.normpath(source.root / file))
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    with pytest.raises(
        DatasetError, match=rf"the source has changed since .*new was made: 1 changed \({re.escape(file)}\)"
    ):
        prepare(read(tmp_path / "source"), tmp_path / "new", 16, {})


@pytest.mark.usefixtures("without_ray")
def test_of_an_image_in_two_splits_one_stays(tmp_path: Path) -> None:
    root = flowers(tmp_path / "source")
    splits = {"trnid": [[1, 2, 5]], "valid": [[3, 4]], "tstid": [[5, 6]]}
    savemat(root / "setid.mat", {key: np.array(value, np.uint16) for key, value in splits.items()})
    made = prepare(flowers102.source(root), tmp_path / "out", 16, {}, drop_duplicates=True)
    assert made.images == {"train": 2, "val": 2, "test": 2}
    assert "jpg/image_00005.jpg" in open_shards(tmp_path / "out").split("test").source_ids.to_pylist()


@pytest.mark.usefixtures("without_ray")
def test_other_classes_are_another_source(tmp_path: Path) -> None:
    source = flowers102.source(flowers(tmp_path / "source"))
    prepare(source, tmp_path / "out", 16, {})
    for classes, message in (
        (("001", "003"), r"other classes \(002, 003\)"),
        (("002", "001"), "another order of the classes"),
    ):
        with pytest.raises(DatasetError, match=message):
            prepare(replace(source, classes=classes), tmp_path / "out", 16, {})


@pytest.mark.usefixtures("without_ray")
def test_of_a_source_that_was_moved_some_images_are_compared(tmp_path: Path) -> None:
    for number in range(40):
        for name, gray in (("first", number), ("other", number + 100)):
            (tmp_path / name / "cat").mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), gray).save(tmp_path / name / "cat" / f"{number}.bmp")  # all of one size
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    prepare(folder_source(tmp_path / "first"), tmp_path / "out", 16, {"source": "first"})
    said: list[str] = []
    again = partial(prepare, output=tmp_path / "out", image_size=16, say=said.append)
    assert again(folder_source(tmp_path / "first"), recipe={"source": "first"}).complete_before and not said
    assert again(folder_source(tmp_path / "copy"), recipe={"source": "copy"}).complete_before
    assert said == [f"note: {tmp_path}/out was made from first, for which copy is taken"]
    with pytest.raises(DatasetError, match=r"the source has changed since .*out was made: 32 changed \("):
        again(folder_source(tmp_path / "other"), recipe={"source": "other"})


# By name: the catalog, downloads and their page.


def test_every_name_has_an_entry_that_can_be_imported() -> None:
    for name, entry in CATALOG.items():
        with pytest.raises((DatasetError, ValueError)):
            entry.source(*((1, 0) if entry.rendered else (Path("/nowhere"),)))
        assert entry.download is None or hasattr(datasets, entry.download[0]), name


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve the files of the temporary directory; the value is the server's address."""

    class Quiet(SimpleHTTPRequestHandler):
        """Handler that does not log."""

        def log_message(self, format: str, *args: object) -> None:
            """Drop the message."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.slow
def test_download_fetches_checks_and_reads(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, layout = VERSIONS["cifar10"]
    plant_cifar(tmp_path / folder, *layout)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / folder, folder)
    fetched = tmp_path / "fetched"
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server}/cifar.tar.gz")
    command = ["prepare", "--dataset", "cifar10", "--source", str(fetched), "--output", str(tmp_path / "out")]
    assert main([*command, "--download"]) == 2
    assert "CIFAR10 could not be fetched" in capsys.readouterr().err  # its checksum is not the published one
    assert not (fetched / folder).exists()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", None)
    CATALOG["cifar10"].fetch(fetched)
    assert len(cifar.cifar10(fetched).listing()["train"]) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "imagenet100", "--source", ".", "--download"], "cannot be downloaded; it comes from: image-net"),
        (["--dataset", "cifar10", "--source", ".", "--fold", "1"], "--fold is for --dataset stl10, not for cifar10"),
        (["--dataset", "folder", "--source", "."], "--dataset folder needs --image-size"),
        (["--dataset", "stl10"], "--dataset stl10 needs --source"),
        (["--dataset", "stl10", "--source", "/nowhere"], "lacks train_X.bin"),
        (
            ["--dataset", "stl10", "--source", "/nowhere"],
            "holds stl10_binary; if files are missing, --download fetches them",
        ),
        (["--dataset", "cifar10", "--source", "/nowhere"], "-py; if files are missing, --download fetches them"),
    ],
)
def test_bad_commands_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_content_is_compared_of_files_of_single_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder, layout = VERSIONS["cifar10"]
    plant_cifar(tmp_path / folder, *layout)
    command = ["prepare", "--dataset", "cifar10", "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*command, "--check-content"]) == 2
    message = "error: --check-content compares files of single images, not those of --dataset cifar10\n"
    assert capsys.readouterr().err == message and not (tmp_path / "out").exists()


PAGE = Path(__file__).parent.parent / "docs" / "datasets.md"
COMMANDS = re.findall(r"^ +adios-ray (prepare .*--(?:source|num-images).*)$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "NAME" not in command])
def test_the_commands_of_the_page_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = tyro.cli(Prepare, args=command.split()[1:])
    entry = CATALOG[parsed.dataset]
    assert entry.download is not None or not parsed.download
    assert parsed.image_size or entry.image_size


def test_the_page_has_every_data_set() -> None:
    named = {word for command in COMMANDS for word in command.split()}
    text = PAGE.read_text()
    assert all(f"`{name}`" in text for name in CATALOG)
    assert set(CATALOG) - named == {"imagenet100", "cifar100"}  # beside a sibling with the same command

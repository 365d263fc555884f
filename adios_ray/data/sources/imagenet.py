"""ImageNet100 and ImageNet100-S: 100 synsets of ILSVRC-2012 (ADIOS paper, section 4) at two image sizes."""

import csv
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

from adios_ray.data.sources.folder import images, of_classes
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.data.sources.matlab import read_mat
from adios_ray.data.sources.named import shortage
from adios_ray.data.sources.passed_over import first_of
from adios_ray.errors import DatasetError

DEVKIT = Path("ILSVRC2012_devkit_t12", "data")
SOLUTION = "LOC_val_solution.csv"
_KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
_NUMBER = re.compile(r"ILSVRC2012_val_0*(\d+)\.JPEG$")


def synsets() -> tuple[str, ...]:
    """Return the WordNet ids of the 100 classes, sorted; a label is an index into them."""
    return tuple(resources.files(__package__).joinpath("imagenet100_synsets.txt").read_text().split())


def source(root: Path) -> ImageFiles:
    """Read the 100 classes from a folder of ILSVRC-2012; other classes in it are ignored.

    ``root`` (or ``root/ILSVRC/Data/CLS-LOC``, in Kaggle's layout) contains ``train/<synset>/*.JPEG`` and ``val``. The
    latter contains folders of synsets too, or all images directly; their classes are then read from the development kit
    (``ILSVRC2012_devkit_t12`` in ``root``) or from Kaggle's ``LOC_val_solution.csv``. The validation images become the
    test split.

    Raises:
        DatasetError: If a class, the validation images or their classes are missing.
    """
    base = root / _KAGGLE if (root / _KAGGLE).is_dir() else root
    train, val = base / "train", base / "val"
    if missing := [str(folder) for folder in (train, val) if not folder.is_dir()]:
        raise DatasetError(
            f"{', '.join(missing)} not found: --source is the folder that holds ImageNet's train and val"
        )
    wanted = synsets()
    found = {name: list(images(train / name, base)) for name in wanted}
    held_out = {name: list(images(val / name, base)) for name in wanted}
    described_in: tuple[Path, ...] = ()
    if not any(held_out.values()):
        classes, described_in = _classes(root, val)
        held_out = _flat(base, val, classes)
    for folder, by_class in ((train, found), (val, held_out)):
        if lacking := [name for name in wanted if not by_class[name]]:
            raise DatasetError(f"{folder} has no images of {len(lacking)} of the 100 classes: {first_of(lacking)}")
    read = of_classes(base, {"train": found, "test": held_out}, described_in=described_in)
    notes = shortage(read.items, "ImageNet100", {"train": 126_689, "test": 5_000})
    return replace(read, notes=(*read.notes, *notes))


def _classes(root: Path, val: Path) -> tuple[Mapping[int, str], tuple[Path, ...]]:
    """Read the synset of each validation image by its number; returns the files that say it, too.

    Raises:
        DatasetError: If there are none.
    """
    solution, kit = root / SOLUTION, root / DEVKIT
    if solution.is_file():
        return _kaggle_classes(solution), (solution,)
    if kit.is_dir():
        names, truth = kit / "meta.mat", kit / "ILSVRC2012_validation_ground_truth.txt"
        return _devkit_classes(names, truth), (names, truth)
    raise DatasetError(f"{val} has no folders of synsets, and neither {kit} nor {solution} is there with the classes")


def _flat(base: Path, val: Path, classes: Mapping[int, str]) -> dict[str, list[str]]:
    """List the validation images of a folder without class folders by class."""
    found: dict[str, list[str]] = {name: [] for name in synsets()}
    for item in sorted(images(val, base)):
        number = _NUMBER.search(item)
        if number is not None and (name := classes.get(int(number[1]), "")) in found:
            found[name].append(item)
    return found


def _kaggle_classes(path: Path) -> Mapping[int, str]:
    """Read Kaggle's solution, whose prediction column begins with the synset.

    Raises:
        DatasetError: If a row cannot be read, or an image is of two classes.
    """
    classes: dict[int, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for row in rows:
            try:
                number, synset = int(row["ImageId"].rpartition("_")[2]), row["PredictionString"].split()[0]
            except (KeyError, AttributeError, IndexError, ValueError):
                raise DatasetError(f"{path}: line {rows.line_num} has no ImageId and PredictionString") from None
            if classes.setdefault(number, synset) != synset:
                raise DatasetError(f"{path} lists {row['ImageId']} as {classes[number]} and as {synset}")
    return classes


def _devkit_classes(meta: Path, truth: Path) -> Mapping[int, str]:
    """Read the development kit: line n of the ground truth is the class of image n."""
    (synsets_of_kit,) = read_mat(meta, "synsets")
    names = {str(int(row["ILSVRC2012_ID"].item())): str(row["WNID"].item()) for row in synsets_of_kit}
    lines = truth.read_text().split()
    if unknown := [line for line in lines if line not in names]:
        raise DatasetError(f"{truth} has {unknown[0]}, which is no number of a class in {meta}")
    return {number: names[line] for number, line in enumerate(lines, start=1)}

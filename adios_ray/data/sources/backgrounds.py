"""The backgrounds challenge (Xiao et al. 2021): ImageNet-9 and its seven variations."""

from pathlib import Path
from typing import get_args

from adios_ray.config import Variation
from adios_ray.data.sources.folder import by_class, of_classes
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.errors import DatasetError

ORIGINAL = "original"
VARIATIONS: tuple[Variation, ...] = tuple(name for name in get_args(Variation) if name != ORIGINAL)
FOLDER = "bg_challenge"


def source(root: Path) -> ImageFiles:
    """Read the challenge's folders ``<variation>/val/<class>/*`` below ``root``, or below ``root/bg_challenge``.

    The original images are the test split; each variation is a split of its own name. Training images
    (``original/train``), if present, are the train split.

    Raises:
        DatasetError: If a variation is missing or lacks a class.
    """
    base = root / FOLDER if (root / FOLDER).is_dir() else root
    folders = {"test": base / ORIGINAL / "val"} | {name: base / name / "val" for name in VARIATIONS}
    if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        raise DatasetError(f"{', '.join(missing)} not found: --source is the folder of the eight variations")
    if (base / ORIGINAL / "train").is_dir():
        folders["train"] = base / ORIGINAL / "train"
    return of_classes(base, {split: by_class(folder, base) for split, folder in folders.items()})

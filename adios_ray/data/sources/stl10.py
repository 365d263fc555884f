"""STL-10: the binary files of the release, with the unlabeled images and the folds."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from adios_ray.data.decode import square
from adios_ray.data.shards import Bytes
from adios_ray.data.sources.base import NO_LABEL, SHORT_SIDE, UNLABELED, ListedSource, Sample
from adios_ray.data.sources.named import STL10, shortage
from adios_ray.errors import DatasetError, RefusedImageError

SIDE = 96
FOLDER = "stl10_binary"
_SIZES = {"train": 5_000, "test": 8_000, UNLABELED: 100_000}


class Binaries(ListedSource):
    """The files ``<part>_X.bin``. Items are ``<part>/<class>/<row>``, or ``<part>/<row>`` where there is no label."""

    def file_of(self, item: str) -> str:
        """Name the file of the pixels."""
        return f"{item.partition('/')[0]}_X.bin"

    def stratum(self, item: str) -> str:
        """Name the class; UNLABELED where there is none."""
        return name[0] if (name := item.split("/")[1:-1]) else UNLABELED

    def load(self, item: str, image_size: int) -> Sample:
        """Load one image, resized to ``image_size`` (bicubic).

        Raises:
            RefusedImageError: If the file has no such row.
        """
        part, *name, row = item.split("/")
        pixels = _pixels(self.root / f"{part}_X.bin")
        if int(row) >= len(pixels):
            raise RefusedImageError(f"{part}_X.bin has only {len(pixels)} images")
        image = np.ascontiguousarray(pixels[int(row)].transpose(2, 1, 0))
        label = self.classes.index(name[0]) if name else NO_LABEL
        return Sample(square(Image.fromarray(image), image_size).pixels, label, None, SIDE, SIDE)


@lru_cache(maxsize=3)
def _pixels(path: Path) -> Bytes:
    """Memory-map a file as uint8 [images, 3, column, row]: color planes, each stored by columns."""
    return np.memmap(path, np.uint8, "r").reshape(-1, 3, SIDE, SIDE)


def source(root: Path, fold: int | None = None) -> Binaries:
    """Read STL-10 from the folder that contains ``stl10_binary``, or from that folder itself.

    Args:
        root: The folder.
        fold: Index of one of the ten folds: train has its 1,000 images, and the other labeled images join the unlabeled
            ones. None gives train all 5,000.

    Raises:
        DatasetError: If files are missing or damaged, or there is no such fold.
    """
    base = root / FOLDER if (root / FOLDER).is_dir() else root
    pixels = [f"{part}_X.bin" for part in ("train", "test", UNLABELED)]
    described_in = ["train_y.bin", "test_y.bin", "class_names.txt", *(["fold_indices.txt"] if fold is not None else [])]
    if missing := [name for name in (*pixels, *described_in) if not (base / name).is_file()]:
        raise DatasetError(f"{base} lacks {', '.join(missing)}: --source is the folder that holds {FOLDER}")
    classes = tuple((base / "class_names.txt").read_text().split())
    if classes != STL10:
        raise DatasetError(f"{base / 'class_names.txt'} does not name the classes of STL-10: {', '.join(STL10)}")
    train = [f"train/{classes[label]}/{row}" for row, label in enumerate(_labels(base, "train", len(classes)))]
    test = [f"test/{classes[label]}/{row}" for row, label in enumerate(_labels(base, "test", len(classes)))]
    unlabeled = [f"unlabeled/{row}" for row in range(_count(base / "unlabeled_X.bin"))]
    notes = shortage({"train": train, "test": test, UNLABELED: unlabeled}, "STL-10", _SIZES)
    if fold is not None:
        chosen = _fold(base / "fold_indices.txt", fold, len(train))
        # Without a class in their names, these items are loaded as unlabeled.
        unlabeled += [f"train/{row}" for row in range(len(train)) if row not in chosen]
        train = [train[row] for row in sorted(chosen)]
    items = {"train": train, "test": test, UNLABELED: unlabeled}
    return Binaries(
        root=base.absolute(),
        classes=classes,
        items=items,
        described_in=tuple(described_in),
        resize=SHORT_SIDE,
        notes=notes,
    )


def _count(path: Path) -> int:
    images, rest = divmod(path.stat().st_size, 3 * SIDE * SIDE)
    if rest or not images:
        raise DatasetError(f"{path} has {path.stat().st_size} bytes, which is not a whole number of images")
    return images


def _labels(base: Path, part: str, classes: int) -> npt.NDArray[np.int64]:
    labels = np.fromfile(base / f"{part}_y.bin", np.uint8).astype(np.int64) - 1
    images = _count(base / f"{part}_X.bin")
    if len(labels) != images or labels.min() < 0 or labels.max() >= classes:
        raise DatasetError(f"{base / part}_y.bin does not hold one of {classes} classes for each of {images} images")
    return labels


def _fold(path: Path, fold: int, images: int) -> frozenset[int]:
    """Read the rows of the training images in one fold."""
    lines = path.read_text().splitlines()
    if not 0 <= fold < len(lines):
        raise DatasetError(f"there is no fold {fold}: {path} has {len(lines)}, the first is 0")
    words = lines[fold].split()
    chosen = frozenset(int(word) for word in words if word.isdecimal() and int(word) < images)
    if not words or len(chosen) < len(set(words)):
        raise DatasetError(f"line {fold + 1} of {path} does not name images out of {images}")
    return chosen

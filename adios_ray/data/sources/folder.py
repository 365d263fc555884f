"""Folders of image files, one folder a class: the layout that torchvision calls ImageFolder."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from adios_ray.data.shards import Bytes, DatasetError
from adios_ray.data.sources.base import RefusedImageError, Sample

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SMALLEST_SIDE = 8
SCALED_DECODING = 1.85
UNLABELLED = "unlabelled"

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class FolderSource:
    """Images below a folder: ``root/<split>/<class>/*``, ``root/<class>/*`` or ``root/*``.

    Split folders are train, val (or validation) and test; without them everything is train. Below a class folder the
    images may lie at any depth. Items are paths relative to the root. Images without class folders share the one
    class "unlabelled". Names that begin with a dot are passed over.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def multi_label(self) -> bool:
        """Every image has one class."""
        return False

    @property
    def has_instances(self) -> bool:
        """Image files come without instance maps."""
        return False

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, sorted.

        Raises:
            DatasetError: If the splits differ in their classes, or the folder cannot be used.
        """
        splits = Counter(name for by_class in self._tree.values() for name in by_class)
        if odd := {name for name, count in splits.items() if count < len(self._tree)}:
            having = "; ".join(
                f"{split} has {', '.join(sorted(odd & by_class.keys())[:5]) or 'none of them'}"
                for split, by_class in self._tree.items()
            )
            raise DatasetError(f"{len(odd)} class folders of {self.root} are not in every split: {having}")
        return tuple(sorted(splits))

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Paths relative to the root, sorted, for each split."""
        return {split: sorted(chain.from_iterable(by_class.values())) for split, by_class in self._tree.items()}

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one file: RGB, upright, short side resized to ``image_size`` (bicubic), centre cropped.

        Raises:
            RefusedImageError: If the file cannot be decoded or a side has fewer than 8 pixels.
        """
        folder = item.split("/", 2)[1 if self._has_splits else 0]
        return Sample(decode(self.root / item, image_size), self._labels.get(folder, 0), None)

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}

    @cached_property
    def _has_splits(self) -> bool:
        return (self.root / "train").is_dir()

    @cached_property
    def _tree(self) -> dict[str, dict[str, list[str]]]:
        """Items of each class of each split."""
        if not self.root.is_dir():
            raise DatasetError(f"{self.root} is not a folder")
        folders = _split_folders(self.root) if self._has_splits else {"train": self.root}
        tree = {split: _by_class(folder, self.root) for split, folder in folders.items()}
        if empty := [str(folders[split]) for split, by_class in tree.items() if not by_class]:
            raise DatasetError(f"no images in {', '.join(empty)} (looked for {' '.join(EXTENSIONS)})")
        return tree

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs to decode: not the listing, which may hold millions of names."""
        return {"root": self.root.absolute(), "classes": self.classes, "_has_splits": self._has_splits}


def _split_folders(root: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for name, split in _SPLITS.items():
        if (root / name).is_dir() and folders.setdefault(split, root / name) != root / name:
            raise DatasetError(f"{root} has both val and validation; remove or rename one of them")
    return folders


def _by_class(folder: Path, root: Path) -> dict[str, list[str]]:
    """Images of each class folder; where there are no class folders, all of them as "unlabelled"."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    by_class = {name: list(_images(folder / name, root)) for name in names}
    by_class = {name: images for name, images in by_class.items() if images}
    loose = list(_images(folder, root, depth=0))
    if loose and by_class:
        raise DatasetError(f"{folder} has both class folders and images beside them, such as {loose[0]}")
    return {UNLABELLED: loose} if loose else by_class


def _images(folder: Path, root: Path, depth: int | None = None) -> Iterator[str]:
    """Paths relative to the root of the images in a folder and, unless ``depth`` is 0, below it."""
    for directory, folders, files in os.walk(folder):
        folders[:] = [] if depth == 0 else [name for name in folders if not name.startswith(".")]
        prefix = Path(directory).relative_to(root).as_posix()
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield _as_text(name if prefix == "." else f"{prefix}/{name}")


def _as_text(item: str) -> str:
    try:
        item.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"the file name {os.fsencode(item)!r} is not UTF-8; rename the file") from None
    return item


def decode(path: Path, image_size: int) -> Bytes:
    """Decode an image file to RGB, uint8 [image_size, image_size, 3].

    JPEGs are decoded at a half, a quarter or an eighth of their size where that leaves at least 1.85 times
    ``image_size``: the result differs from that of a full decode by less than 2 of 255 on average.

    Raises:
        RefusedImageError: If the file cannot be decoded or a side has fewer than 8 pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _square(image, image_size)
    except RefusedImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise RefusedImageError(_reason(path, error)) from error


def _square(image: Image.Image, image_size: int) -> Bytes:
    """Load, resize and crop an opened image."""
    if min(image.size) < SMALLEST_SIDE:
        raise RefusedImageError(f"{image.width} x {image.height} pixels: a side is below {SMALLEST_SIDE}")
    enough = math.ceil(SCALED_DECODING * image_size)
    drafted = image.draft("RGB", (enough, enough))
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # A reduced JPEG ends in a partly covered pixel: its extent is a fraction.
    width, height = drafted[1][2:] if drafted else image.size
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    small = as_rgb(image).resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)
    if orientation != 1:
        small.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(small, in_place=True)
    return np.asarray(small)


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB: transparency goes on white, 16 bits are scaled to 8.

    Raises:
        RefusedImageError: If the values have no range that could be scaled to 8 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    elif image.mode == "F":
        raise RefusedImageError("floating-point pixels have no fixed range")
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise RefusedImageError("integer pixels outside the 16-bit range")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _reason(path: Path, error: Exception) -> str:
    """Why a file was refused, without its path."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    if path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "more pixels than the limit against decompression bombs"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in one of the formats {', '.join(_FORMATS)}"
    return f"damaged: {error}"

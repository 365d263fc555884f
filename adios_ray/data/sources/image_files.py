"""Image files with their classes: what most sources are, and how an image file becomes pixels."""

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from adios_ray.data.shards import Bytes
from adios_ray.data.sources.base import NO_LABEL, UNLABELED, ListedSource, Sample
from adios_ray.errors import RefusedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SMALLEST_SIDE = 8


def sniff(head: bytes) -> str | None:
    """Name the format of an image by its first bytes; None if it is none."""
    for name, magic in {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}.items():
        if head.startswith(magic):
            return name
    return None


SCALED_DECODING = 1.85

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
_ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF orientations that turn a picture by a quarter."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ListedSource):
    """Image files, each of one class. Items are paths relative to the root.

    Attributes:
        labels: Index of the class by item, or by the folder that holds the item.
    """

    labels: Mapping[str, int] = field(repr=False)

    def stratum(self, item: str) -> str:
        """Name the class of an item; an item without a label has none."""
        label = self._label(item)
        return UNLABELED if label == NO_LABEL else self.classes[label]

    def files(self) -> Mapping[str, tuple[int, int]]:
        """Look up size and time of change of each image file; -1 where there is none, which is refused later."""
        found = {}
        for item in chain.from_iterable(self.items.values()):
            try:
                status = os.stat(self.root / item)
                found[item] = status.st_size, status.st_mtime_ns
            except OSError:
                found[item] = -1, -1
        return found

    def _label(self, item: str) -> int:
        return self.labels[item if item in self.labels else item.rpartition("/")[0]]

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one file: RGB, upright, the whole picture squeezed into a square (bicubic, antialiased).

        Raises:
            RefusedImageError: If the file cannot be decoded or a side has fewer than 8 pixels.
        """
        picture = decode(self.root / item, image_size)
        return Sample(picture.pixels, self._label(item), None, picture.height, picture.width)


class Picture(NamedTuple):
    """A whole photograph squeezed into a square.

    Attributes:
        pixels: RGB, uint8 [S, S, 3].
        height: Pixels of the upright original.
        width: Pixels of the upright original.
    """

    pixels: Bytes
    height: int
    width: int


def decode(path: Path, image_size: int) -> Picture:
    """Decode an image file and squeeze the whole picture into a square of ``image_size`` pixels a side.

    JPEGs are decoded at a half, a quarter or an eighth of their size where that leaves both sides at least 1.85 times
    ``image_size``: the result differs from that of a full decode by less than 2 of 255 on average.

    Raises:
        RefusedImageError: If the file cannot be decoded or a side has fewer than 8 pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return square(image, image_size)
    except RefusedImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise RefusedImageError(_reason(path, error)) from error


def square(image: Image.Image, image_size: int) -> Picture:
    """Load and squeeze an opened image; see ``decode``.

    Raises:
        RefusedImageError: If a side has fewer than 8 pixels, or the values have no fixed range.
    """
    if min(image.size) < SMALLEST_SIDE:
        raise RefusedImageError(f"{image.width} x {image.height} pixels: a side is below {SMALLEST_SIDE}")
    enough = math.ceil(SCALED_DECODING * image_size)
    full_size = image.size
    drafted = image.draft("RGB", (enough, enough))
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    width, height = full_size if drafted else image.size  # loading turns a TIFF upright
    # A reduced JPEG ends in a partly covered pixel: its extent is a fraction.
    extent = drafted[1] if drafted else (0.0, 0.0, width, height)
    small = as_rgb(image).resize((image_size, image_size), Image.Resampling.BICUBIC, box=extent)
    if orientation != 1:
        small.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(small, in_place=True)
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
    return Picture(np.asarray(small), height, width)


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

"""Decoding of image files to squares of pixels, and the source of image files with one class each."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from adios_ray.data.shards import Bytes
from adios_ray.data.sources.base import ListedSource, Sample
from adios_ray.errors import RefusedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SMALLEST_SIDE = 8
SCALED_DECODING = 1.85

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # not all of Pillow's: EPS would start Ghostscript
_ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF orientations that turn a picture by a quarter turn."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ListedSource):
    """Image files with one class each. Items are paths relative to the root.

    Attributes:
        labels: Class index by item, or by the folder that contains the item.
    """

    labels: Mapping[str, int] = field(repr=False)

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one file: RGB, upright, the whole picture squeezed into a square (bicubic, antialiased).

        Raises:
            RefusedImageError: If the file cannot be decoded or a side has fewer than 8 pixels.
        """
        picture = decode(self.root / item, image_size)
        label = self.labels[item if item in self.labels else item.rpartition("/")[0]]
        return Sample(picture.pixels, label, None, picture.height, picture.width)


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
            # After the general filter, since the filter added last is matched first.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return square(image, image_size)
    except RefusedImageError:
        raise
    except Exception as error:  # decoders raise almost any exception on damaged files
        raise RefusedImageError(_reason(path, error)) from error


def square(image: Image.Image, image_size: int) -> Picture:
    """Load an opened image and squeeze it into a square; see ``decode``.

    Raises:
        RefusedImageError: If a side has fewer than 8 pixels, or the values have no fixed range.
    """
    if min(image.size) < SMALLEST_SIDE:
        raise RefusedImageError(f"{image.width} x {image.height} pixels: a side is below {SMALLEST_SIDE}")
    enough = math.ceil(SCALED_DECODING * image_size)
    full_size = image.size
    drafted = image.draft("RGB", (enough, enough))  # reduces a JPEG while decoding; None for other formats
    image.load()
    # After loading, which turns a TIFF upright and removes its orientation.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    width, height = full_size if drafted else image.size
    # The last pixel of a reduced JPEG may be partly covered: its extent is a fraction.
    extent = drafted[1] if drafted else (0.0, 0.0, width, height)
    small = as_rgb(image).resize((image_size, image_size), Image.Resampling.BICUBIC, box=extent)
    if orientation != 1:  # turned after shrinking, which is cheaper
        small.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(small, in_place=True)
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
    return Picture(np.asarray(small), height, width)


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB: transparency is composited on white, 16 bits are scaled to 8.

    Raises:
        RefusedImageError: If the values have no fixed range to scale to 8 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise RefusedImageError("integer pixels outside the 16-bit range")
        # Pillow's own conversion clips at 255; 257 = 65535 / 255 keeps the range.
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise RefusedImageError("floating-point pixels have no fixed range")
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    """Describe why a file was refused, without its path: the manifest lists the item beside the reason."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    if path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "more pixels than the limit against decompression bombs"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in one of the formats {', '.join(_FORMATS)}"
    return f"damaged: {error}"

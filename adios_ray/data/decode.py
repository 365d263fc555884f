"""Decodes one encoded image: from the bytes of a file to a square of RGB pixels, or a refusal with its reason.

The format is recognized by its magic number, and only that format's decoder sees the bytes. Sizes are checked from the
header, before pixels are allocated.
"""

import io
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

from adios_ray.data.image_formats import FORMATS, SNIFFED_BYTES, sniff
from adios_ray.data.image_headers import bare_png, claimed_size, jpeg_header, orientation_in_exif, orientation_in_xmp
from adios_ray.data.shards import Bytes
from adios_ray.errors import RefusedImageError, UsageError

SMALLEST_SIDE = 8
SCALED_DECODING = 1.5
"""A JPEG is decoded so that its sides have at least this many times the pixels of the square."""

# Pillow's own limit, a quarter of a GiB in 24-bit pixels: images that other tools decode are not refused here.
_MAX_PIXELS = 2**30 // 12
# A progressive JPEG has about ten scans. Each one visits all coefficients, however few bytes it has: thousands of tiny
# scans would take minutes. libjpeg-turbo's own fuzzers stop at this number.
_MAX_SCANS = 500
_SUBFILE_TYPE, _PHOTOMETRIC, _DNG_VERSION = 254, 262, 50706
"""The TIFF tags NewSubfileType, PhotometricInterpretation and DNGVersion."""
_REDUCED = (1, 3, 5, 7)
"""Values of NewSubfileType by which a picture is a smaller version of another one in its file."""
_BELOW = 2**14
"""Values below this leave two of 16 bits empty."""
_DARK = "16-bit values leave most of their range empty (--stretch scales them)"
_TRANSPARENT = "transparent everywhere: shown as if it were not"
_SEVERAL = "several pages or frames, of which the first is used"

_Stretch = Literal["file"] | int | None
_UNSUPPORTED = re.compile(r"unknown|unsupported|not supported|not available|cannot handle|not implemented", re.I)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image with this EXIF orientation is turned upright."""
_ON_ITS_SIDE = (5, 6, 7, 8)


@dataclass(frozen=True)
class DecodeOptions:
    """What is decoded, and how.

    Attributes:
        max_pixels: Largest number of pixels that are decoded at once. JPEGs that can be reduced while they are
            decoded may have more.
        stretch: Range of 16-bit values: "file" scales by each file's own maximum, a number from 9 to 16 is their bit
            depth, None stands for all 16 bits.
        smallest_side: Images with a shorter side in pixels are refused.

    Raises:
        UsageError: If a value is out of range.
    """

    max_pixels: int = _MAX_PIXELS
    stretch: _Stretch = None
    smallest_side: int = SMALLEST_SIDE

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_pixels < 1:
            raise UsageError(f"--max-pixels {self.max_pixels} must be at least 1")
        if self.stretch not in (None, "file", *range(9, 17)):
            raise UsageError(f"--stretch {self.stretch} must be file, or a bit depth from 9 to 16")


class Picture(NamedTuple):
    """A whole photograph squeezed into a square.

    Attributes:
        pixels: RGB, uint8 [S, S, 3].
        height: Pixels of the upright original.
        width: Pixels of the upright original.
        note: What the user should know about the decoding, if anything.
    """

    pixels: Bytes
    height: int
    width: int
    note: str | None = None


def decode(content: bytes, image_size: int, options: DecodeOptions = DecodeOptions()) -> Picture:
    """Decode an image file and squeeze the whole upright picture into a square (bicubic, antialiased).

    JPEGs are decoded at a fraction of their size where that leaves both sides at least 1.5 times ``image_size``: the
    result differs from that of a full decode by less than 2 of 255 on average. Of several pages or frames the first is
    used.

    Args:
        content: The bytes of the file.
        image_size: Pixels a side of the square.
        options: Limits and range of values.

    Raises:
        RefusedImageError: If the image cannot be decoded, has too many pixels, or too short a side.
    """
    if not content:
        raise RefusedImageError("empty file")
    kind = sniff(content[:SNIFFED_BYTES])
    if kind is None:
        raise RefusedImageError(f"not an image in one of the formats {', '.join(FORMATS)}")
    try:
        if kind == "JPEG":
            return _decode_jpeg(content, image_size, options)
        return _decode_other(kind, content, image_size, options)
    except RefusedImageError:
        raise
    except Image.DecompressionBombError as error:
        raise RefusedImageError(f"{kind} above a fixed limit of Pillow's: {error}") from error
    except MemoryError as error:
        raise RefusedImageError(f"{kind} needs more memory than there is") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        problem = "unsupported" if _UNSUPPORTED.search(str(error)) else "damaged"
        raise RefusedImageError(f"{problem} {kind}: {error or type(error).__name__}") from error


def square(image: Image.Image, image_size: int) -> Picture:
    """Squeeze an upright image that is in memory.

    Raises:
        RefusedImageError: If a side has fewer than 8 pixels, or the values have no fixed range.
    """
    _check_sides(image.size)
    pixels, note = _squeeze(image, image_size)
    return Picture(pixels, image.height, image.width, note)


def _squeeze(
    image: Image.Image,
    image_size: int,
    extent: tuple[float, float] | None = None,
    orientation: int = 1,
    stretch: _Stretch = None,
) -> tuple[Bytes, str | None]:
    """Resize the extent (width, height) of a loaded image to a square and turn it upright."""
    note = None
    if image.mode.startswith("I"):
        image, note = _from_16_bits(image, stretch)
    box = (0.0, 0.0, *(extent or image.size))
    colors, transparent = _as_rgb(image)
    small = colors.resize((image_size, image_size), Image.Resampling.BICUBIC, box)
    return np.asarray(small.transpose(_TURNS[orientation]) if orientation in _TURNS else small), note or transparent


def _as_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Convert a loaded image of 8 bits a channel to RGB: transparent pixels are shown on white.

    If all are transparent, which is noted, the alpha channel was left empty by a program that does not use it.

    Raises:
        RefusedImageError: If the values have no range that could be scaled to 8 bits.
    """
    if image.mode == "F":
        raise RefusedImageError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() == (0, 0):
            return layer.convert("RGB"), _TRANSPARENT
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB"), None


def _from_16_bits(image: Image.Image, stretch: _Stretch) -> tuple[Image.Image, str | None]:
    """Scale gray values of 16 bits to 8, and note what cannot be meant so."""
    values = np.asarray(image)
    largest = int(values.max())
    if values.min() < 0 or largest > 0xFFFF:
        raise RefusedImageError("integer pixels outside the 16-bit range")
    top = max(largest, 1) if stretch == "file" else 2 ** (stretch or 16) - 1
    note = None
    if stretch is None and largest < _BELOW:
        note = _DARK
    elif largest > top:
        note = "16-bit values above the bit depth that --stretch gives were clipped"
    # A table needs a byte a pixel; dividing would need eight or sixteen.
    table = np.round(np.arange(0x10000).clip(max=top) * (255 / top)).astype(np.uint8)
    return Image.fromarray(table[values]), note


def _check_sides(size: tuple[int, int], smallest: int = SMALLEST_SIDE) -> None:
    if min(size) < smallest:
        raise RefusedImageError(f"{size[0]} x {size[1]} pixels: a side is below {smallest}")


def _check_pixels(size: tuple[int, int], options: DecodeOptions, what: str = "pixels") -> None:
    if size[0] * size[1] > options.max_pixels:
        raise RefusedImageError(
            f"{size[0]} x {size[1]} {what}, {size[0] * size[1]:,} in all: more than --max-pixels {options.max_pixels}"
        )


def _picture(pixels: Bytes, size: tuple[int, int], orientation: int, note: str | None) -> Picture:
    width, height = size[::-1] if orientation in _ON_ITS_SIDE else size
    return Picture(pixels, height, width, note)


def _decode_jpeg(content: bytes, image_size: int, options: DecodeOptions) -> Picture:
    header = jpeg_header(content)
    _check_sides(header.size, options.smallest_side)
    width, height = header.size
    # The inverse DCT makes blocks of 1, 2, 4 or 8 pixels a side, so that the decoder itself reduces the image.
    enough = SCALED_DECODING * image_size / min(header.size)
    eighths = next((n for n in (1, 2, 4) if n >= 8 * enough), 8)
    reduced = (-(-width * eighths // 8), -(-height * eighths // 8))
    # Coefficients of several scans are kept for the whole image, however much it is reduced.
    _check_pixels(header.size if header.buffered else reduced, options)
    if header.buffered and (scans := content.count(b"\xff\xda")) > _MAX_SCANS:
        raise RefusedImageError(f"JPEG of {scans} scans, more than {_MAX_SCANS}")
    # Not Pillow's factory, which reads the directory of an MPO's further pictures and stumbles over a damaged one.
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(content), "")
    if image.size != header.size:  # else the checks above were of another image
        raise RefusedImageError("damaged JPEG: several headers")
    drafted = image.draft("RGB", (width * eighths // 8, height * eighths // 8))
    image.load()
    # A reduced JPEG ends in a partly covered pixel: its extent is a fraction.
    pixels, note = _squeeze(image, image_size, drafted[1][2:] if drafted else None, header.orientation)
    return _picture(pixels, header.size, header.orientation, note)


def _decode_other(kind: str, content: bytes, image_size: int, options: DecodeOptions) -> Picture:
    if claimed := claimed_size(kind, content):
        _check_pixels(claimed, options)
    exif, xmp, animated = b"", b"", False
    if kind == "PNG":
        content, exif, xmp, animated = bare_png(content)
    image = _open(kind, content)
    if kind == "TIFF" and (_DNG_VERSION in _tags(image) or _tags(image).get(_SUBFILE_TYPE) in _REDUCED):
        raise RefusedImageError("raw file of a camera, of which only a preview can be decoded: convert it to an image")
    _check_sides(image.size, options.smallest_side)
    _check_pixels(image.size, options)
    if image.mode == "F":
        raise RefusedImageError("floating-point pixels have no fixed range")
    if kind == "TIFF":
        _mend_tiff(image, options)
        orientation = 1  # loading turns a TIFF upright
    else:
        in_exif = orientation_in_exif(exif or image.info.get("exif") or b"")
        orientation = in_exif or orientation_in_xmp(xmp or image.info.get("xmp") or b"") or 1
    image.load()
    if options.stretch is not None and _bits(kind, content, image) == 16 and not image.mode.startswith("I"):
        raise RefusedImageError(
            "--stretch is for gray values: of 16-bit colors and transparency 8 bits are read; convert the image"
        )
    pixels, note = _squeeze(image, image_size, None, orientation, options.stretch)
    if kind == "TIFF" and image.mode.startswith("I") and _tags(image).get(_PHOTOMETRIC) == 0:
        pixels = 255 - pixels  # white is zero: of 8 bits Pillow inverts the values itself
    notes = [note, _note_on_colors(kind, content, image), _SEVERAL if animated or _has_more(image) else None]
    return _picture(pixels, image.size, orientation, "; ".join(filter(None, notes)) or None)


def _open(kind: str, content: bytes) -> ImageFile.ImageFile:
    """Open with the one decoder of the format.

    Image.open would compare the size with a limit that is global, and try further formats on a damaged file.
    """
    if kind == "HEIF":
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            raise RefusedImageError("HEIF, which needs the package pillow-heif: install adios_ray[heif]") from error
        heif: ImageFile.ImageFile = HeifImageFile(io.BytesIO(content), "")
        return heif
    if kind not in Image.OPEN:
        Image.init()
    if kind not in Image.OPEN:
        raise RefusedImageError(f"{kind}, which this version of Pillow cannot decode")
    return Image.OPEN[kind][0](io.BytesIO(content), "")


def _has_more(image: ImageFile.ImageFile) -> bool:
    """Tell whether further pages or frames follow a loaded picture; not, where what follows is damaged."""
    with suppress(Exception):  # some decoders look at it only now
        return bool(getattr(image, "is_animated", False))
    return False


def _tags(tiff: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF."""
    tags: Mapping[int, Any] = tiff.tag_v2  # type: ignore[attr-defined]  # only images that are opened as TIFF have it
    return tags


def _mend_tiff(image: ImageFile.ImageFile, options: DecodeOptions) -> None:
    """Keep loading from following tags that may be malformed, and from allocating more than the image."""
    tags = _tags(image)
    tile = (tags.get(322, 0), tags.get(323, 0))  # TileWidth, TileLength
    _check_pixels(tile, options, "pixels a tile")
    try:
        exif = image.getexif()
    except Exception:  # malformed; from now on it is known as far as it could be read
        exif = image.getexif()
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
        exif.pop(ifd, None)
    exif[ExifTags.Base.Orientation] = tags.get(ExifTags.Base.Orientation, 1)


def _bits(kind: str, content: bytes, image: Image.Image) -> int:
    """Read how many bits a channel has."""
    if kind == "PNG":
        return content[24]  # in the header, which is the first chunk
    return max(_tags(image).get(258, (8,))) if kind == "TIFF" else 8


def _note_on_colors(kind: str, content: bytes, image: Image.Image) -> str | None:
    """Note 16-bit colors that fill a small part of their range: Pillow hands out their upper 8 bits alone."""
    bands = image.getbands()
    if _bits(kind, content, image) != 16 or bands[:3] != ("R", "G", "B"):
        return None
    counts = np.reshape(image.histogram(), (len(bands), 256))[:3].sum(axis=0)
    largest = int(counts.nonzero()[0].max())
    return "16-bit colors leave most of their range empty" if largest < _BELOW >> 8 else None

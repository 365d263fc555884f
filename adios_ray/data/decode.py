"""Decodes one encoded image: from the bytes of a file to a square of RGB pixels, or a refusal with its reason.

The format is recognized by its magic number, and only that format's decoder sees the bytes. Sizes are checked from the
header, before pixels are allocated.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

from adios_ray.data.shards import Bytes
from adios_ray.errors import RefusedImageError, UsageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "PCX", "SGI", "QOI")
"""What is decoded. HEIF needs the package pillow-heif; an MPO is a JPEG with further pictures behind the first.

Not among them: TGA and DIB without a file header have no magic number, so that any file might be one; ICO holds one
picture in several sizes; EPS, WMF and the stubs run or need other programs.
"""
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff",
    ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c",
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".pcx", ".sgi", ".bw", ".rgb", ".rgba", ".qoi",
)  # fmt: skip
"""File name endings of these formats, in lower case."""
SNIFFED_BYTES = 32
SMALLEST_SIDE = 8
SCALED_DECODING = 1.5
"""A JPEG is decoded so that its sides have at least this many times the pixels of the square."""

# Pillow's own limit, a quarter of a GiB in 24-bit pixels: images that other tools decode are not refused here.
_MAX_PIXELS = 2**30 // 12
# A progressive JPEG has about ten scans. Each one visits all coefficients, however few bytes it has: thousands of tiny
# scans would take minutes. libjpeg-turbo's own fuzzers stop at this number.
_MAX_SCANS = 500
_RAW_PROFILE = b"Raw profile type exif\0"
_MAX_PROFILE = 2**20
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
"""How a segment of a JPEG begins that holds XMP."""
_XMP_KEYWORD = b"XML:com.adobe.xmp\0"
"""How a text of a PNG begins that is XMP."""
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)([1-8])")
_PHOTOMETRIC = 262
"""The TIFF tag PhotometricInterpretation."""
_BELOW = 2**14
"""Values below this leave two of 16 bits empty."""
_DARK = "16-bit values leave most of their range empty (--stretch scales them)"

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
            raise UsageError(f"max_pixels is {self.max_pixels}, not positive")
        if self.stretch not in (None, "file", *range(9, 17)):
            raise UsageError(f"stretch is {self.stretch!r}, neither 'file' nor a bit depth from 9 to 16")


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
    result differs from that of a full decode by less than 2 of 255 on average. Animations show their first frame.

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
        return (_decode_jpeg if kind == "JPEG" else _decode_other)(kind, content, image_size, options)
    except RefusedImageError:
        raise
    except Image.DecompressionBombError as error:
        raise RefusedImageError(f"{kind} above a fixed limit of Pillow's: {error}") from error
    except MemoryError as error:
        raise RefusedImageError(f"{kind} needs more memory than there is") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        problem = "unsupported" if _UNSUPPORTED.search(str(error)) else "damaged"
        raise RefusedImageError(f"{problem} {kind}: {error or type(error).__name__}") from error


def sniff(head: bytes) -> str | None:
    """Recognize the format of an image by its first 32 bytes; None if it is none of ``FORMATS``."""
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, 32, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if head[8:11] in (b"hei", b"hev") or head[8:12] in (b"mif1", b"msf1") else None
    if head.startswith(b"RIFF"):
        return "WEBP" if head[8:12] == b"WEBP" else None
    if head.startswith(b"BM"):  # two letters alone would take a text for a picture
        return "BMP" if head[15:18] == bytes(3) else None
    if re.match(rb"P[1-6fF]\s", head):
        return "PPM"
    if re.match(rb"\n[\x00\x02-\x05][\x00\x01][\x01\x02\x04\x08]", head):
        return "PCX"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\x01\xda": "SGI",
    b"qoif": "QOI",
}


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
    small = as_rgb(image).resize((image_size, image_size), Image.Resampling.BICUBIC, box)
    return np.asarray(small.transpose(_TURNS[orientation]) if orientation in _TURNS else small), note


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of 8 bits a channel to RGB: transparent pixels are shown on white.

    Raises:
        RefusedImageError: If the values have no range that could be scaled to 8 bits.
    """
    if image.mode == "F":
        raise RefusedImageError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")


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


class _JpegHeader(NamedTuple):
    """What the markers before the first scan say.

    Attributes:
        size: Width and height.
        channels: Number of color components.
        buffered: Whether the decoder keeps the coefficients of the whole image: it is progressive, or has a scan for
            each component.
        orientation: By EXIF or, without, by XMP, 1 to 8.
    """

    size: tuple[int, int]
    channels: int
    buffered: bool
    orientation: int


def _decode_jpeg(kind: str, content: bytes, image_size: int, options: DecodeOptions) -> Picture:
    header = _jpeg_header(content)
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


def _jpeg_header(content: bytes) -> _JpegHeader:
    """Read the markers before the first scan.

    Raises:
        RefusedImageError: If there is no scan, or its samples are not those of an ordinary JPEG.
    """
    at, size, channels, progressive = 2, (0, 0), 0, False
    orientation: int | None = None
    by_xmp: int | None = None
    try:
        while (marker := content[at + 1]) != 0xDA or content[at] != 0xFF:
            if content[at] != 0xFF or marker in (0x00, 0xFF):  # decoders skip fill bytes and garbage
                at += 1
                continue
            start, length = at + 4, 2
            if not (marker == 0x01 or 0xD0 <= marker <= 0xD8):  # these stand alone
                length += int.from_bytes(content[at + 2 : at + 4], "big")
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                bits, height, width, channels = struct.unpack_from(">BHHB", content, start)
                size, progressive = (width, height), marker in (0xC2, 0xCA)
                if bits != 8 or marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                    raise RefusedImageError(f"unsupported JPEG: {bits} bits, coding process {marker - 0xC0}")
            elif marker == 0xE1 and content.startswith(b"Exif\0\0", start):
                orientation = _orientation(content[start : at + length])
            elif marker == 0xE1 and content.startswith(_XMP, start):
                by_xmp = _orientation_in_xmp(content[start : at + length])
            at += length
        in_scan = content[at + 4]
    except (IndexError, struct.error):
        raise RefusedImageError("damaged JPEG: cut short before its pixels") from None
    return _JpegHeader(size, channels, progressive or in_scan < channels, orientation or by_xmp or 1)


def _orientation(exif: bytes) -> int | None:
    """Read the orientation that an EXIF block gives, from 1 to 8; None without, or where the block is malformed."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == ExifTags.Base.Orientation:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), block, entry + 8)
                return int(value) if value in _TURNS else 1
    except struct.error:
        pass
    return None


def _orientation_in_xmp(block: bytes) -> int | None:
    """Read the orientation that a block of XMP gives, from 1 to 8; None without."""
    found = _XMP_ORIENTATION.search(block)
    return int(found[1]) if found else None


def _decode_other(kind: str, content: bytes, image_size: int, options: DecodeOptions) -> Picture:
    if claimed := _claimed_size(kind, content):
        _check_pixels(claimed, options)
    exif = xmp = None
    if kind == "PNG":
        content, exif, xmp = _bare_png(content)
    image = _open(kind, content)
    _check_sides(image.size, options.smallest_side)
    _check_pixels(image.size, options)
    if image.mode == "F":
        raise RefusedImageError("floating-point pixels have no fixed range")
    if kind == "TIFF":
        _mend_tiff(image, options)
        orientation = 1  # loading turns a TIFF upright
    else:
        in_exif = _orientation(exif or image.info.get("exif") or b"")
        orientation = in_exif or _orientation_in_xmp(xmp or image.info.get("xmp") or b"") or 1
    image.load()
    if options.stretch is not None and _bits(kind, content, image) == 16 and not image.mode.startswith("I"):
        raise RefusedImageError(
            "--stretch is for gray values: of 16-bit colors and transparency 8 bits are read; convert the image"
        )
    pixels, note = _squeeze(image, image_size, None, orientation, options.stretch)
    if kind == "TIFF" and image.mode.startswith("I") and image.tag_v2.get(_PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
        pixels = 255 - pixels  # white is zero: of 8 bits Pillow inverts the values itself
    return _picture(pixels, image.size, orientation, note or _note_on_colors(kind, content, image))


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


def _claimed_size(kind: str, content: bytes) -> tuple[int, int] | None:
    """Read width and height from the headers of the formats whose decoders allocate on opening."""
    head = content[:30].ljust(30, b"\0")
    if kind == "GIF":
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if kind != "WEBP":
        return None
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _bare_png(content: bytes) -> tuple[bytes, bytes, bytes]:
    """Leave out of a PNG what is not needed for its pixels: texts and profiles may be of any size, and damaged.

    Returns:
        The PNG, its EXIF block and its XMP; these are empty if it has none.

    Raises:
        RefusedImageError: If a chunk that is needed is cut short or has a wrong checksum.
    """
    chunks: list[bytes | memoryview] = [content[:8]]
    exif = profile = xmp = b""
    for kind, chunk, intact in _png_chunks(content):
        critical = not kind[0] & 0x20  # the case of the first letter says so
        if critical and not intact:
            raise RefusedImageError(f"damaged PNG: chunk {kind.decode('latin1')} is cut short or has a wrong checksum")
        if critical or kind == b"tRNS" and intact:
            chunks.append(chunk)
        elif kind == b"eXIf" and intact:
            exif = bytes(chunk[8:-4])
        elif kind in (b"tEXt", b"zTXt") and intact:
            profile = profile or _raw_profile(kind, chunk[8:-4])
        elif kind == b"iTXt" and intact and bytes(chunk[8:][: len(_XMP_KEYWORD)]) == _XMP_KEYWORD:
            xmp = bytes(chunk[8:-4])  # standards ask that it is not compressed
    chunks.append(_PNG_END)  # a file may lack its end alone
    return b"".join(chunks), exif or profile, xmp


def _raw_profile(kind: bytes, text: memoryview) -> bytes:
    """Read the EXIF block that a text of a PNG holds in hexadecimal, as before there was a chunk for it; else empty."""
    if bytes(text[: len(_RAW_PROFILE)]) != _RAW_PROFILE:
        return b""
    stored = text[len(_RAW_PROFILE) :][:_MAX_PROFILE]
    try:
        lines = zlib.decompressobj().decompress(stored[1:], _MAX_PROFILE) if kind == b"zTXt" else bytes(stored)
        digits = b"".join(b"".join(lines.split(b"\n")[3:]).split())  # after an empty line, the kind and the length
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())
    except (ValueError, zlib.error):  # malformed
        return b""


_PNG_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield kind, bytes and whether they are intact, of each chunk before IEND."""
    at, view = 8, memoryview(content)
    while at + 8 <= len(content):
        kind, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4], "big")
        if kind == b"IEND":
            return
        checksum = int.from_bytes(content[end - 4 : end], "big")
        yield kind, view[at:end], end <= len(content) and zlib.crc32(view[at + 4 : end - 4]) == checksum
        at = end


def _mend_tiff(image: ImageFile.ImageFile, options: DecodeOptions) -> None:
    """Keep loading from following tags that may be malformed, and from allocating more than the image."""
    tags = image.tag_v2  # type: ignore[attr-defined]
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
    return max(image.tag_v2.get(258, (8,))) if kind == "TIFF" else 8  # type: ignore[attr-defined]


def _note_on_colors(kind: str, content: bytes, image: Image.Image) -> str | None:
    """Note 16-bit colors that fill a small part of their range: Pillow hands out their upper 8 bits alone."""
    bands = image.getbands()
    if _bits(kind, content, image) != 16 or bands[:3] != ("R", "G", "B"):
        return None
    counts = np.reshape(image.histogram(), (len(bands), 256))[:3].sum(axis=0)
    largest = int(counts.nonzero()[0].max())
    return "16-bit colors leave most of their range empty" if largest < _BELOW >> 8 else None

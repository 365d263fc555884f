"""Reads what an encoded image says of itself, without decoding its pixels: size, color components, orientation."""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import ExifTags

from adios_ray.errors import RefusedImageError

_RAW_PROFILE = b"Raw profile type exif\0"
_MAX_PROFILE = 2**20
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
"""How a segment of a JPEG begins that holds XMP."""
_XMP_KEYWORD = b"XML:com.adobe.xmp\0"
"""How a text of a PNG begins that is XMP."""
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)([1-8])")


class JpegHeader(NamedTuple):
    """Properties of a JPEG that precede its first scan.

    Attributes:
        size: Width and height.
        buffered: Whether the decoder keeps the coefficients of the whole image: it is progressive, or has a scan for
            each component.
        orientation: By EXIF or, without, by XMP, 1 to 8.
    """

    size: tuple[int, int]
    buffered: bool
    orientation: int


def jpeg_header(content: bytes) -> JpegHeader:
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
                orientation = orientation_in_exif(content[start : at + length])
            elif marker == 0xE1 and content.startswith(_XMP, start):
                by_xmp = orientation_in_xmp(content[start : at + length])
            at += length
        in_scan = content[at + 4]
    except (IndexError, struct.error):
        raise RefusedImageError("damaged JPEG: cut short before its pixels") from None
    return JpegHeader(size, progressive or in_scan < channels, orientation or by_xmp or 1)


def orientation_in_exif(exif: bytes) -> int | None:
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
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return None


def orientation_in_xmp(block: bytes) -> int | None:
    """Read the orientation that a block of XMP gives, from 1 to 8; None without."""
    found = _XMP_ORIENTATION.search(block)
    return int(found[1]) if found else None


def claimed_size(kind: str, content: bytes) -> tuple[int, int] | None:
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


class BarePng(NamedTuple):
    """A PNG without what is not needed for the pixels of its first picture.

    Attributes:
        content: The PNG.
        exif: The EXIF block that it had, or empty.
        xmp: The XMP that it had, or empty.
        animated: Whether it had further frames.
    """

    content: bytes
    exif: bytes
    xmp: bytes
    animated: bool


def bare_png(content: bytes) -> BarePng:
    """Leave out of a PNG what is not needed for its pixels: texts and profiles may be of any size, and damaged.

    Raises:
        RefusedImageError: If a chunk that is needed is cut short or has a wrong checksum.
    """
    chunks: list[bytes | memoryview] = [content[:8]]
    exif = profile = xmp = b""
    animated = False
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
        elif kind == b"fdAT" and intact:  # pixels of an animation's frames but the first
            animated = True
    chunks.append(_PNG_END)  # a file may lack its end alone
    return BarePng(b"".join(chunks), exif or profile, xmp, animated)


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

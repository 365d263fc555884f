"""The formats of images that are decoded, by file name ending and by magic number."""

import re

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "PCX", "SGI", "QOI")
"""Formats that are decoded. HEIF needs the package pillow-heif; of an MPO, several JPEGs in one, the first is read.

Not among them: TGA and DIB without a file header have no magic number, so that any file might be one; ICO holds one
picture in several sizes; EPS, WMF and the stubs run or need other programs.
"""
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff",
    ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c",
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".pcx", ".sgi", ".bw", ".rgb", ".rgba", ".qoi",
)  # fmt: skip
"""File name endings of these formats, in lower case."""
RAW_EXTENSIONS = (
    ".dng", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".cr2", ".pef", ".srw", ".3fr", ".fff", ".iiq", ".mef", ".mos",
    ".erf", ".dcr", ".kdc", ".rwl",
)  # fmt: skip
"""File name endings of cameras' raw files, in lower case: TIFFs by their magic number, whose picture is a preview."""
SNIFFED_BYTES = 32


def sniff(head: bytes) -> str | None:
    """Recognize the format of an image by its first 32 bytes; None if it is none of ``FORMATS``."""
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, 32, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if head[8:11] in (b"hei", b"hev") or head[8:12] in (b"mif1", b"msf1") else None
    if head.startswith(b"RIFF"):
        return "WEBP" if head[8:12] == b"WEBP" else None
    if head[8:11] == b"CR\2":  # Canon's raw files, which are TIFFs otherwise
        return None
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

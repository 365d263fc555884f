"""Decoding of one image: every odd kind of file that a folder may hold, and what is refused with which reason."""

import io
import struct
import sys
import textwrap
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from encoded_images import noise
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin, TiffTags, features

from adios_ray.data.decode import DecodeOptions, Picture, decode, square
from adios_ray.data.image_formats import EXTENSIONS, FORMATS, sniff
from adios_ray.errors import RefusedImageError, UsageError

Pixels = npt.NDArray[np.uint8]
SEVERAL = "several pages or frames, of which the first is used"

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
GARBLED = {
    "zeros": b"Exif\0\0" + bytes(8),
    "text": b"Exif\0\0b'Exif'",
    "short": b"Exif\0\0II*\0",
    "far": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "endless": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(24),
    "nine": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
}
"""EXIF blocks that do not give an orientation."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    """Open the image with Pillow."""
    return Image.open(io.BytesIO(content))


def difference(a: Pixels, b: Pixels) -> float:
    """Return the mean absolute difference."""
    return float(np.abs(a.astype(int) - b).mean())


def refusal(content: bytes, **options: Any) -> str:
    """Return why an image is refused."""
    with pytest.raises(RefusedImageError) as caught:
        decode(content, 32, DecodeOptions(**options))
    return str(caught.value)


def shapes(height: int, width: int) -> Pixels:
    """Draw coarse and fine shapes with hard edges, fainter the finer, as in photographs, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / 40
    layers = [sum(np.sign(np.sin(x * f + i) + np.cos(y * f * 0.7)) / f for f in (1, 2.3, 5, 11)) for i in range(3)]
    return (127.5 + 60 * np.stack(layers, axis=-1)).clip(0, 255).astype(np.uint8)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """Draw a 32 x 32 picture of two colors."""
    image = Image.new(mode, (32, 32), left)
    image.paste(right, (16, 0, 32, 32))
    return image


def naive(image: Image.Image, size: int) -> Pixels:
    """Squeeze the whole picture into a square."""
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(16, 16), (32, 64), (64, 32), (8, 24)])
def test_the_whole_picture_is_squeezed_and_its_size_kept(shape: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*shape, 3))
    picture = decode(encoded(image, "PNG"), 16)
    np.testing.assert_allclose(picture.pixels, naive(image, 16), atol=1, rtol=0)
    assert (picture.height, picture.width) == shape and picture.note is None


@pytest.mark.parametrize("shape", [(375, 500), (501, 333), (260, 1000), (1000, 250), (64, 63)])
@pytest.mark.parametrize("size", [16, 32, 96])
def test_reduced_decoding_is_close_to_full_decoding(shape: tuple[int, int], size: int) -> None:
    jpeg = encoded(Image.fromarray(shapes(*shape)), "JPEG", quality=92)
    png = encoded(opened(jpeg), "PNG")  # is always decoded in full
    reduced, full = decode(jpeg, size), decode(png, size)
    assert difference(reduced.pixels, full.pixels) <= 2.0
    assert (reduced.height, reduced.width) == (full.height, full.width) == shape


def test_gray_becomes_three_equal_channels() -> None:
    gray = noise(16, 16, 1)[:, :, 0]
    png = encoded(Image.fromarray(gray), "PNG")
    np.testing.assert_array_equal(decode(png, 16).pixels, np.stack([gray] * 3, axis=-1))


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    png = encoded(Image.fromarray(values), "PNG")
    decoded = decode(png, 16).pixels
    np.testing.assert_array_equal(decoded[:, :, 1], np.round(values / 257))


def test_cmyk_jpeg() -> None:
    jpeg = encoded(halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "JPEG", quality=100)
    decoded = decode(jpeg, 32).pixels.astype(int)
    assert np.abs(decoded[:, :15] - RED).max() <= 4 and np.abs(decoded[:, 17:] - BLUE).max() <= 4


def palette_with_transparency() -> Image.Image:
    """Draw a left half in palette color 0, which is transparent, and a right half in color 1, blue."""
    image = Image.new("P", (32, 32), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (16, 0, 32, 32))
    image.info["transparency"] = 0
    return image


def rgb_with_transparent_red() -> Image.Image:
    """Draw an RGB picture in which the color red stands for transparent."""
    image = halves(RED, BLUE)
    image.info["transparency"] = RED
    return image


@pytest.mark.parametrize(
    "make",
    [
        palette_with_transparency,
        rgb_with_transparent_red,
        lambda: halves((255, 0, 0, 0), (0, 0, 255, 255), "RGBA"),
        lambda: halves((255, 0, 0, 0), (0, 0, 255, 255), "RGBA").quantize(4),
    ],
    ids=["P", "RGB", "RGBA", "PA"],
)
def test_transparency_goes_on_white(make: Callable[[], Image.Image]) -> None:
    png = encoded(make(), "PNG")
    decoded = decode(png, 32).pixels
    assert (decoded[:, :16] == WHITE).all() and (decoded[:, 16:] == BLUE).all()


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (halves((*RED, 0), (*BLUE, 0), "RGBA"), "PNG"),
        (halves((*RED, 0), (*BLUE, 0), "RGBA"), "TIFF"),
        (halves((76, 0), (29, 0), "LA"), "PNG"),
    ],
)
def test_a_picture_that_is_transparent_everywhere_is_shown_as_if_it_were_not(image: Image.Image, kind: str) -> None:
    """Programs write a channel of zeros that none of them reads."""
    decoded = decode(encoded(image, kind), 32)
    left, right = (RED, BLUE) if image.mode == "RGBA" else ((76,) * 3, (29,) * 3)
    assert (decoded.pixels[:, :15] == left).all() and (decoded.pixels[:, 17:] == right).all()
    assert decoded.note == "transparent everywhere: shown as if it were not"


def test_half_transparent_gray_goes_on_white() -> None:
    png = encoded(Image.new("LA", (16, 16), (0, 128)), "PNG")
    assert (decode(png, 16).pixels == 127).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP", "AVIF"])
def test_exif_orientation_6_is_turned_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise: the left half comes to lie on top
    content = encoded(halves(RED, BLUE), kind, exif=exif, quality=100)
    decoded = decode(content, 32).pixels.astype(int)
    assert np.abs(decoded[:14] - RED).max() <= 12 and np.abs(decoded[18:] - BLUE).max() <= 12


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_turned_image_is_the_upright_one(kind: str, orientation: int) -> None:
    upright = Image.fromarray(noise(64, 32, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encoded(upright.transpose(TURNS[orientation]), kind, exif=exif), 16)
    np.testing.assert_allclose(picture.pixels, naive(upright, 16), atol=1, rtol=0)
    assert (picture.height, picture.width) == (64, 32)


def test_a_reduced_photograph_on_its_side_keeps_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    jpeg = encoded(Image.fromarray(shapes(333, 501)), "JPEG", quality=92, exif=exif)
    upright = opened(jpeg).transpose(Image.Transpose.ROTATE_90)
    picture = decode(jpeg, 32)
    assert (picture.height, picture.width) == upright.size[::-1] == (501, 333)
    assert difference(picture.pixels, naive(upright, 32)) <= 2.0


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "AVIF", "TIFF"])
def test_of_several_pictures_the_first_is_used_and_that_is_noted(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = decode(content, 16)
    assert np.abs(found.pixels.astype(int) - RED).max() <= 6 and found.note == SEVERAL
    if kind in ("PNG", "GIF", "TIFF"):  # damage behind the first picture does no harm
        assert np.array_equal(decode(content[:-40], 16).pixels, found.pixels)
    assert decode(encoded(frames[0], kind), 16).note is None


def test_all_that_is_to_be_known_of_an_image_is_noted() -> None:
    pages = [Image.fromarray(ramp(3000)) for _ in range(2)]
    note = decode(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]), 16).note
    assert note == f"16-bit values leave most of their range empty (--stretch scales them); {SEVERAL}"


PHOTO = Image.fromarray(shapes(48, 64))


# Formats


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("MPO", {"quality": 95}),
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
        ("PPM", {}),
        ("AVIF", {"quality": 95}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
        ("PCX", {}),
        ("SGI", {}),
        ("QOI", {}),
    ],
)
def test_formats(kind: str, options: dict[str, Any]) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    content = encoded(PHOTO, kind, **options)
    assert sniff(content[:32]) == ("JPEG" if kind == "MPO" else kind)
    picture = decode(content, 32)
    assert difference(picture.pixels, naive(PHOTO, 32)) < 6
    assert (picture.height, picture.width, picture.note) == (48, 64, None)


def test_heif_is_decoded_by_its_plug_in() -> None:
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(PHOTO).save(buffer, quality=95)
    assert sniff(buffer.getvalue()[:32]) == "HEIF"
    assert difference(decode(buffer.getvalue(), 32).pixels, naive(PHOTO, 32)) < 6


def test_heif_is_refused_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "HEIF, which needs the package pillow-heif" in refusal(b"\0\0\0\x18ftypheic" + bytes(20))


def test_endings_are_those_that_pillow_knows() -> None:
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO", "DIB")}
    assert known <= set(EXTENSIONS)
    assert set(EXTENSIONS) - known <= {".heic", ".heics", ".heif", ".heifs", ".hif"}


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"P",
        b"BM",
        b"BMW and Benz, a comparison",
        b"P5s are images",
        b"\n\nfree",
        b"%!PS-Adobe",
        b"%PDF-1.7",
        b"8BPS",
    ]
    + [
        b"II*\0\x10\0\0\0CR\2\0",
        b"RIFF1234WAVEfmt ",
        b"\0\0\0\x18ftypmp42",
        b"<html>404</html>",
        bytes(32),
        b"\xd7\xcd\xc6\x9a",
    ],
)
def test_what_is_no_image_is_not_taken_for_one(head: bytes) -> None:
    assert sniff(head) is None


# EXIF


@pytest.mark.parametrize("exif", GARBLED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_garbled_exif_leaves_the_image_as_stored(kind: str, exif: str) -> None:
    content = encoded(halves(RED, BLUE), kind, exif=GARBLED[exif], quality=95)
    assert difference(decode(content, 32).pixels, np.asarray(halves(RED, BLUE))) < 6


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("tag", [0x8769, 0x8825])
def test_garbled_exif_of_a_tiff(tag: int, compression: str | None) -> None:
    options = {"tiffinfo": {0x112: 6, tag: 0x7FFFFF00}, "compression": compression}
    picture = decode(encoded(halves(RED, BLUE), "TIFF", **options), 32)
    assert (picture.pixels[:14] == RED).all() and (picture.pixels[18:] == BLUE).all()


# PNG


def raw_profile(block: bytes) -> bytes:
    """Write an EXIF block as text, as ImageMagick does."""
    lines = "\n".join(textwrap.wrap(block.hex(), 72))
    return f"\nexif\n{len(block):8}\n{lines}\n".encode()


def xmp(orientation: int, attribute: bool = True) -> bytes:
    """Write an orientation as XMP, as an attribute or an element."""
    written = (
        f' tiff:Orientation="{orientation}">' if attribute else f"><tiff:Orientation>{orientation}</tiff:Orientation>"
    )
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description{written}</rdf:Description></x:xmpmeta>'.encode()


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_orientation_by_xmp_alone_is_followed(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    text, options = xmp(orientation, attribute=orientation % 2 == 0), dict[str, Any]()
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", text.decode())
    else:
        options["xmp"] = text
    content = encoded(halves(RED, BLUE), kind, quality=100, **options)
    upright = np.asarray(ImageOps.exif_transpose(opened(content)).convert("RGB"))
    assert difference(decode(content, 32).pixels, upright) < 2
    if kind == "AVIF":  # it is written without an orientation in EXIF
        return
    # EXIF goes before it.
    exif = Image.Exif()
    exif[0x0112] = 1
    both = encoded(halves(RED, BLUE), kind, quality=100, exif=exif, **options)
    assert difference(decode(both, 32).pixels, np.asarray(opened(both).convert("RGB"))) < 2


@pytest.mark.parametrize("kind", ["eXIf", "tEXt", "zTXt"])
@pytest.mark.parametrize("place", [1, -1])
def test_exif_of_a_png_wherever_it_stands(kind: str, place: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = b"Raw profile type exif\0"
    data = {
        "eXIf": exif.tobytes().removeprefix(b"Exif\0\0"),
        "tEXt": text + raw_profile(exif.tobytes()),
        "zTXt": text + b"\0" + zlib.compress(raw_profile(exif.tobytes())),
    }[kind]
    parts = chunks(encoded(halves(RED, BLUE), "PNG"))
    parts.insert(place, chunk(kind.encode(), data))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    np.testing.assert_array_equal(decode(content, 32).pixels, np.asarray(ImageOps.exif_transpose(opened(content))))


@pytest.mark.parametrize("data", [b"", b"\nexif\n 9\nno digits", b"\nexif\n 3\n457", b"\nexif"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt"])
def test_garbled_exif_as_text_leaves_a_png_as_stored(kind: str, data: bytes) -> None:
    parts = chunks(encoded(halves(RED, BLUE), "PNG"))
    parts.insert(1, chunk(kind.encode(), b"Raw profile type exif\0" + data))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    np.testing.assert_array_equal(decode(content, 32).pixels, np.asarray(halves(RED, BLUE)))


def chunks(png: bytes) -> list[bytes]:
    """List the chunks of a PNG."""
    found, at = [], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        found.append(png[at:end])
        at = end
    return found


def chunk(kind: bytes, data: bytes, checksum: int = 0) -> bytes:
    """Make one chunk, with a wrong checksum unless that is 0."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ checksum)


def png_with(*extra: bytes) -> bytes:
    """Put chunks into the photograph after its header."""
    png = encoded(PHOTO, "PNG")
    header, *rest = chunks(png)
    return png[:8] + header + b"".join(extra) + b"".join(rest)


@pytest.mark.parametrize(
    "extra",
    {
        "large text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
        "text bomb": b"".join(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20))) for _ in range(70)),
        "large profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**21))),
        "broken profile": chunk(b"iCCP", b"icc\0\0what"),
        "checksum": chunk(b"tEXt", b"Comment\0hello", checksum=1),
        "checksum of transparency": chunk(b"tRNS", bytes(6), checksum=1),
        "checksum of exif": chunk(b"eXIf", b"MM\0*", checksum=1),
        "short exif": chunk(b"eXIf", b"MM\0*"),
        "short gamma": chunk(b"gAMA", b""),
        "unknown": chunk(b"abCD", bytes(2**16)),
    }.items(),
    ids=lambda item: item[0],
)
def test_chunks_beside_the_pixels_do_no_harm(extra: tuple[str, bytes]) -> None:
    np.testing.assert_array_equal(decode(png_with(extra[1]), 32).pixels, naive(PHOTO, 32))


def test_a_png_without_its_end_is_whole() -> None:
    np.testing.assert_array_equal(decode(encoded(PHOTO, "PNG")[:-12], 32).pixels, naive(PHOTO, 32))


def test_a_png_cut_anywhere_in_its_pixels_is_damaged() -> None:
    png = encoded(PHOTO, "PNG")
    for length in range(33, len(png) - 12, 97):
        assert refusal(png[:length]).startswith("damaged PNG: "), length


def test_a_png_that_lacks_some_of_its_pixels_is_damaged() -> None:
    header, data, end = chunks(encoded(PHOTO, "PNG"))
    shortened = chunk(b"IDAT", data[8:-4][: len(data) // 2])
    assert refusal(b"\x89PNG\r\n\x1a\n" + header + shortened + end).startswith("damaged PNG: ")


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_the_pixels_is_damage(kind: bytes) -> None:
    png = bytearray(encoded(PHOTO.quantize(8), "PNG"))
    at = png.index(kind)
    png[at + 4 + int.from_bytes(png[at - 4 : at], "big")] ^= 1
    assert refusal(bytes(png)) == f"damaged PNG: chunk {kind.decode()} is cut short or has a wrong checksum"


def test_a_valid_exif_chunk_and_a_long_text_go_together() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 2**21, zip=True)
    content = encoded(PHOTO.transpose(Image.Transpose.ROTATE_180), "PNG", exif=exif, pnginfo=text)
    np.testing.assert_array_equal(decode(content, 32).pixels, naive(PHOTO, 32))


# Sizes


def claiming(width: int, height: int, kind: str, **options: Any) -> bytes:
    """Make a small file whose header claims a size."""
    content = bytearray(encoded(Image.new("RGB", (64, 64)), kind, **options))
    if kind == "PNG":
        header = chunk(b"IHDR", struct.pack(">II", width, height) + content[24:29])
        return bytes(content[:8]) + header + bytes(content[33:])
    if kind == "JPEG":
        at = next(at for marker in (b"\xff\xc0\0", b"\xff\xc2\0") if (at := content.find(marker)) > 0)
        content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        content[18:26] = struct.pack("<II", width, height)
    elif kind == "TIFF":
        image = opened(bytes(content))
        tags = {256: width, 257: height}
        at = int.from_bytes(content[4:8], "little")
        for entry in range(at + 2, at + 2 + 12 * int.from_bytes(content[at : at + 2], "little"), 12):
            if (tag := int.from_bytes(content[entry : entry + 2], "little")) in tags:
                content[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, tags[tag])
        assert image.size == (64, 64)
    elif kind == "WEBP":
        content[26:30] = struct.pack("<HH", width, height)
    elif kind == "AVIF":
        at = content.index(b"ispe") + 8
        content[at : at + 8] = struct.pack(">II", width, height)
    elif kind == "JPEG2000":
        at = content.index(b"ihdr") + 4
        content[at : at + 8] = struct.pack(">II", height, width)
    return bytes(content)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("AVIF", {}),
        ("JPEG2000", {}),
    ],
)
@pytest.mark.parametrize("size", [(9_999, 9_998), (16_000, 15_999)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int], kind: str, options: dict[str, Any]) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    reason = refusal(claiming(*size, kind, **options))
    assert f"{size[0]} x {size[1]} pixels, {size[0] * size[1]:,} in all: more than --max-pixels 89478485" in reason


def test_a_tile_larger_than_its_tiff_is_refused() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in (50_000, 50_001):  # Pillow does not write the tags of tiles
        tags.tagtype[tag], tags[tag] = TiffTags.LONG, 60_000
    content = encoded(Image.new("RGB", (64, 64)), "TIFF", tiffinfo=tags)
    for private, tag in ((50_000, 322), (50_001, 323)):
        content = content.replace(struct.pack("<HH", private, TiffTags.LONG), struct.pack("<HH", tag, TiffTags.LONG))
    assert "60000 x 60000 pixels a tile" in refusal(content)


def test_the_limit_can_be_moved() -> None:
    png, side = encoded(PHOTO, "PNG"), PHOTO.width * PHOTO.height
    assert decode(png, 32, DecodeOptions(max_pixels=side)).width == PHOTO.width
    assert f"64 x 48 pixels, 3,072 in all: more than --max-pixels {side - 1}" in refusal(png, max_pixels=side - 1)


@pytest.mark.slow
def test_the_limit_is_on_what_a_jpeg_is_reduced_to() -> None:
    large = Image.fromarray(shapes(800, 1000))
    baseline, progressive = (encoded(large, "JPEG", progressive=progressive) for progressive in (False, True))
    assert decode(baseline, 32, DecodeOptions(max_pixels=20_000)).width == 1000
    assert "1000 x 800 pixels" in refusal(progressive, max_pixels=20_000)
    assert "125 x 100 pixels" in refusal(baseline, max_pixels=10_000)


def by_component(jpeg: bytes) -> bytes:
    """Claim that the first scan of a JPEG has one component alone, as of a file with a scan for each."""
    at = jpeg.index(b"\xff\xda")
    return jpeg[:at] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + jpeg[at + 14 :]


def test_a_jpeg_with_a_scan_for_each_component_is_not_reduced() -> None:
    jpeg = by_component(claiming(20_000, 20_000, "JPEG"))
    assert "20000 x 20000 pixels, 400,000,000 in all" in refusal(jpeg)


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    jpeg = encoded(PHOTO, "JPEG", progressive=True)
    at = jpeg.rindex(b"\xff\xda")
    assert refusal(jpeg[:at] + jpeg[at:-2] * 1000 + jpeg[-2:]).startswith("JPEG of 10")


def test_a_photograph_of_many_pixels_is_decoded() -> None:
    wide = encoded(Image.new("RGB", (12_000, 900), RED), "JPEG")
    picture = decode(wide, 32, DecodeOptions(max_pixels=400_000))
    assert (picture.height, picture.width) == (900, 12_000)
    assert np.abs(picture.pixels.astype(int) - RED).max() <= 2


@pytest.mark.slow
def test_a_photograph_of_200_megapixels_is_decoded() -> None:
    picture = decode(encoded(Image.new("RGB", (20_000, 10_000), RED), "JPEG"), 96)
    assert (picture.height, picture.width) == (10_000, 20_000)
    assert np.abs(picture.pixels.astype(int) - RED).max() <= 2


# 16 bits


def ramp(largest: int) -> npt.NDArray[np.uint16]:
    """Return values from 0 to the largest, uint16 [64, 64]."""
    return np.linspace(0, largest, 64 * 64).round().astype(np.uint16).reshape(64, 64)


def gray(largest: int, kind: str = "PNG", **options: Any) -> Picture:
    """Decode a ramp."""
    return decode(encoded(Image.fromarray(ramp(largest)), kind), 64, DecodeOptions(**options))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_dark_16_bit_values_are_noted(kind: str) -> None:
    picture = gray(3750, kind)
    assert picture.note is not None and "--stretch" in picture.note
    np.testing.assert_array_equal(picture.pixels[:, :, 0], np.round(ramp(3750) / 257))
    assert gray(2**14, kind).note is None


@pytest.mark.parametrize(("stretch", "largest"), [("file", 3750), (12, 4095), (10, 1023), (16, 65535), ("file", 65535)])
def test_16_bit_values_are_stretched(stretch: Any, largest: int) -> None:
    picture = gray(largest, stretch=stretch)
    assert picture.note is None and picture.pixels.max() == 255
    np.testing.assert_allclose(picture.pixels[:, :, 0], ramp(largest) * (255 / largest), atol=0.51)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_whose_zero_is_white(compression: str | None) -> None:
    options = {"compression": compression, "tiffinfo": {262: 0}}
    eight = encoded(Image.fromarray(ramp(255).astype(np.uint8)), "TIFF", **options)  # Pillow inverts what it stores
    np.testing.assert_array_equal(decode(eight, 64).pixels[:, :, 0], ramp(255))
    sixteen = encoded(Image.fromarray(ramp(65535)), "TIFF", **options)
    np.testing.assert_allclose(decode(sixteen, 64).pixels[:, :, 0], 255 - ramp(65535) / 257, atol=0.51)


@pytest.mark.parametrize("colors", [2, 4, 6])  # gray with alpha, RGB, RGBA
def test_16_bit_colors_are_not_stretched(colors: int) -> None:
    """Pillow reads their upper 8 bits alone."""
    channels = {2: 3, 4: 2, 6: 4}[colors]
    header = struct.pack(">IIBBBBB", 16, 16, 16, colors, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x0f\xff" * 16 * channels for _ in range(16)))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert decode(content, 16).pixels.shape == (16, 16, 3)
    assert refusal(content, stretch=12).startswith("--stretch is for gray values")


@pytest.mark.parametrize("stretch", ["file", 12])
def test_stretching_keeps_zero_white(stretch: Any) -> None:
    content = encoded(Image.fromarray(ramp(4095)), "TIFF", tiffinfo={262: 0})
    picture = decode(content, 64, DecodeOptions(stretch=stretch))
    np.testing.assert_allclose(picture.pixels[:, :, 0], 255 - ramp(4095) * (255 / 4095), atol=0.51)


def test_values_above_the_bit_depth_are_noted() -> None:
    picture = gray(5000, stretch=12)
    assert picture.note == "16-bit values above the bit depth that --stretch gives were clipped"
    assert (picture.pixels[-1] == 255).all()


def test_a_black_16_bit_image_stays_black() -> None:
    assert gray(0, stretch="file").pixels.max() == 0


def test_8_bits_are_not_stretched() -> None:
    dark = Image.fromarray(noise(32, 32, 3) // 16)
    np.testing.assert_array_equal(decode(encoded(dark, "PNG"), 32, DecodeOptions(stretch="file")).pixels, dark)


def test_dark_16_bit_colors_are_noted() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    rows = (b"\0" + struct.pack(">H", 3750) * 48) * 16
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert decode(png, 16).note == "16-bit colors leave most of their range empty"


@pytest.mark.parametrize("options", [{"stretch": 8}, {"stretch": 17}, {"stretch": "max"}, {"max_pixels": 0}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DecodeOptions(**options)


# Refusals


def raw(tag: int, value: int | bytes) -> bytes:
    """Encode a thumbnail as the first picture of a raw file, with a tag that says so."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[tag], tags[tag] = TiffTags.LONG if isinstance(value, int) else TiffTags.BYTE, value
    return encoded(PHOTO, "TIFF", tiffinfo=tags)


def test_a_tiff_whose_first_picture_is_whole_is_no_raw_file() -> None:
    assert decode(raw(254, 2), 32).note is None  # one page of several


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated JPEG": (lambda: encoded(PHOTO, "JPEG")[:-300], "damaged JPEG: .*truncated"),
    "JPEG without pixels": (lambda: encoded(PHOTO, "JPEG")[:200], "damaged JPEG: cut short before its pixels"),
    "truncated WebP": (lambda: encoded(PHOTO, "WEBP")[:-300], "damaged WEBP: "),
    "truncated GIF": (lambda: encoded(PHOTO, "GIF")[:-900], "damaged GIF: .*truncated"),
    "truncated TIFF": (lambda: encoded(PHOTO, "TIFF")[:300], "damaged TIFF: "),
    "empty": (lambda: b"", "^empty file$"),
    "text": (lambda: b"<html>404</html>", "^not an image in one of the formats JPEG, PNG"),
    "PostScript": (lambda: encoded(PHOTO, "EPS"), "not an image in one of the formats"),
    "narrow": (lambda: encoded(Image.new("RGB", (200, 7)), "PNG"), "200 x 7 pixels: a side is below 8"),
    "narrow JPEG": (lambda: encoded(Image.new("RGB", (7, 200)), "JPEG"), "7 x 200 pixels: a side is below 8"),
    "DNG": (lambda: raw(50706, bytes([1, 4, 0, 0])), "raw file of a camera, of which only a preview"),
    "NEF": (lambda: raw(254, 1), "raw file of a camera, of which only a preview"),
    "float": (lambda: encoded(Image.new("F", (16, 16)), "TIFF"), "floating-point"),
    "32 bits": (lambda: encoded(Image.new("I", (16, 16), 70_000), "TIFF"), "outside the 16-bit range"),
    "12-bit JPEG": (lambda: encoded(PHOTO, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(RefusedImageError, match=reason):
        decode(make(), 32)


def test_a_square_in_memory_needs_8_pixels_too() -> None:
    with pytest.raises(RefusedImageError, match="a side is below 8"):
        square(Image.new("RGB", (7, 9)), 16)
    assert square(PHOTO, 16)[1:] == (48, 64, None)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage
def test_damage_is_refused_and_nothing_else_is_raised() -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "PCX", "SGI", "QOI"):
        whole = encoded(PHOTO, kind)
        for _ in range(25):
            content = bytearray(whole)
            for at in random.integers(0, min(len(content), 400), 3):
                content[at] = random.integers(256)
            try:
                assert decode(bytes(content), 16, DecodeOptions(max_pixels=10**6)).pixels.shape == (16, 16, 3)
            except RefusedImageError as error:
                assert str(error)

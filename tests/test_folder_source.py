"""Folders of images: how they are listed, and unusual kinds of files in them."""

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from adios_ray.data.sources.folder import source as folder_source
from adios_ray.data.sources.image_files import decode
from adios_ray.errors import DatasetError, RefusedImageError

Pixels = npt.NDArray[np.uint8]

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    """Draw random pixels, [height, width, channels]."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def shapes(height: int, width: int) -> Pixels:
    """Draw shapes with hard edges, finer ones fainter as in a photograph, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / 40
    layers = [sum(np.sign(np.sin(x * f + i) + np.cos(y * f * 0.7)) / f for f in (1, 2.3, 5, 11)) for i in range(3)]
    return (127.5 + 60 * np.stack(layers, axis=-1)).clip(0, 255).astype(np.uint8)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """Make a 32 x 32 picture whose halves have two colors."""
    image = Image.new(mode, (32, 32), left)
    image.paste(right, (16, 0, 32, 32))
    return image


def naive(image: Image.Image, size: int) -> Pixels:
    """Squeeze the whole picture into a square."""
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def plant(root: Path, *items: str) -> Path:
    """Make small pictures at the given paths."""
    for item in items:
        path = root / item
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8)).save(path, "PNG")
    return root


def test_splits_with_classes(tmp_path: Path) -> None:
    items = ["test/b/1.png", "test/a/1.png", "train/b/2.JPG", "train/a/9.tiff", "train/a/10.WebP", "validation/a/1.gif"]
    source = folder_source(plant(tmp_path, *items, "validation/b/sub/x.bmp", "train/a/.hidden.png", "train/.x/y.png"))
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    assert source.classes == ("a", "b")
    assert source.listing() == {
        "train": ["train/a/10.WebP", "train/a/9.tiff", "train/b/2.JPG"],
        "val": ["validation/a/1.gif", "validation/b/sub/x.bmp"],
        "test": ["test/a/1.png", "test/b/1.png"],
    }
    assert [source.load(item, 8).label for item in source.listing()["val"]] == [0, 1]


def test_a_photograph_comes_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(noise(24, 40)).save(tmp_path / "a" / "1.png")
    sample = folder_source(tmp_path).load("a/1.png", 16)
    assert sample.image.shape == (16, 16, 3) and (sample.height, sample.width) == (24, 40)


def test_classes_without_splits_are_all_train(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "cat/1.png", "ant/images/1.png", "test/1.png"))
    assert source.classes == ("ant", "cat", "test")
    assert source.listing() == {"train": ["ant/images/1.png", "cat/1.png", "test/1.png"]}
    assert [source.load(item, 8).label for item in source.listing()["train"]] == [0, 1, 2]


def test_a_flat_folder_has_one_class(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "b.png", "a.png"))
    assert source.classes == ("unlabeled",) and source.listing() == {"train": ["a.png", "b.png"]}
    assert source.load("a.png", 8).label == 0 and source.load("a.png", 8).instances is None


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    plant(tmp_path / "all", "ant/1.png", "cat/1.png")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert folder_source(tmp_path / "some").listing() == {"train": ["cat/1.png"]}


def test_classes_must_be_those_of_every_split(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    with pytest.raises(DatasetError, match="2 class folders .* train has b; val has c"):
        folder_source(tmp_path)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no images in"),
        (["train/a/1.png", "val/a/.x.png"], "no images in .*val"),
        (["train/a/1.png", "val/a/1.png", "validation/a/1.png"], "both val and validation"),
        (["a/1.png", "1.png"], "both class folders and images beside them, such as 1.png"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, items: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        folder_source(plant(tmp_path, *items))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        folder_source(tmp_path / "nowhere")


def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png")
    os.rename(tmp_path / "a" / "1.png", os.fsencode(tmp_path / "a") + b"/\xff.png")
    with pytest.raises(DatasetError, match=r"xff\.png' is not UTF-8"):
        folder_source(tmp_path)


def test_a_pickled_source_decodes_but_does_not_carry_the_listing(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(50))))
    sent = pickle.dumps(source)
    assert len(sent) < 500 and len(source.listing()["train"]) == 100
    received = pickle.loads(sent)
    assert received.load("train/b/7.png", 8).label == 1 and received.listing() == {}


def test_images_without_labels_beside_those_of_train(tmp_path: Path) -> None:
    source = folder_source(plant(tmp_path, "train/a/1.png", "train/b/1.png", "unlabeled/x/2.png", "unlabeled/1.png"))
    assert source.classes == ("a", "b")
    assert source.listing()["unlabeled"] == ["unlabeled/1.png", "unlabeled/x/2.png"]
    assert [source.load(item, 8).label for item in source.listing()["unlabeled"]] == [-1, -1]


@pytest.mark.parametrize("shape", [(16, 16), (32, 64), (64, 32), (8, 24)])
def test_the_whole_picture_is_squeezed_and_its_size_kept(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*shape))
    image.save(tmp_path / "x.png")
    picture = decode(tmp_path / "x.png", 16)
    np.testing.assert_allclose(picture.pixels, naive(image, 16), atol=1, rtol=0)
    assert (picture.height, picture.width) == shape


@pytest.mark.parametrize("shape", [(375, 500), (501, 333), (260, 1000), (1000, 250), (64, 63)])
@pytest.mark.parametrize("size", [16, 32, 96])
def test_reduced_decoding_is_close_to_full_decoding(tmp_path: Path, shape: tuple[int, int], size: int) -> None:
    Image.fromarray(shapes(*shape)).save(tmp_path / "x.jpg", quality=92)
    Image.open(tmp_path / "x.jpg").save(tmp_path / "x.png")  # a PNG is always decoded in full
    reduced, full = decode(tmp_path / "x.jpg", size), decode(tmp_path / "x.png", size)
    assert np.abs(reduced.pixels.astype(int) - full.pixels).mean() <= 2.0
    assert (reduced.height, reduced.width) == (full.height, full.width) == shape


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    gray = noise(16, 16, 1)[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode(tmp_path / "x.png", 16).pixels, np.stack([gray] * 3, axis=-1))


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "x.png")
    decoded = decode(tmp_path / "x.png", 16).pixels
    np.testing.assert_array_equal(decoded[:, :, 1], np.round(values / 257))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK").save(tmp_path / "x.jpg", quality=100)
    decoded = decode(tmp_path / "x.jpg", 32).pixels.astype(int)
    assert np.abs(decoded[:, :15] - RED).max() <= 4 and np.abs(decoded[:, 17:] - BLUE).max() <= 4


def palette_with_transparency() -> Image.Image:
    """Make a palette picture: the left half is color 0, which is transparent; the right half is color 1, blue."""
    image = Image.new("P", (32, 32), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (16, 0, 32, 32))
    image.info["transparency"] = 0
    return image


def rgb_with_transparent_red() -> Image.Image:
    """Make an RGB picture in which the color red means transparent."""
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
def test_transparency_goes_on_white(tmp_path: Path, make: Callable[[], Image.Image]) -> None:
    make().save(tmp_path / "x.png")
    decoded = decode(tmp_path / "x.png", 32).pixels
    assert (decoded[:, :16] == WHITE).all() and (decoded[:, 16:] == BLUE).all()


def test_half_transparent_gray_goes_on_white(tmp_path: Path) -> None:
    Image.new("LA", (16, 16), (0, 128)).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", 16).pixels == 127).all()


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "png", "webp"])
def test_exif_orientation_6_is_turned_upright(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise: the left half ends on top
    halves(RED, BLUE).save(tmp_path / f"x.{suffix}", exif=exif, quality=100)
    decoded = decode(tmp_path / f"x.{suffix}", 32).pixels.astype(int)
    assert np.abs(decoded[:14] - RED).max() <= 12 and np.abs(decoded[18:] - BLUE).max() <= 12


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_turned_image_is_the_upright_one(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = Image.fromarray(noise(64, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(TURNS[orientation]).save(tmp_path / f"x.{suffix}", exif=exif)
    picture = decode(tmp_path / f"x.{suffix}", 16)
    np.testing.assert_allclose(picture.pixels, naive(upright, 16), atol=1, rtol=0)
    assert (picture.height, picture.width) == (64, 32)


def test_a_reduced_photograph_on_its_side_keeps_its_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(shapes(333, 501)).save(tmp_path / "x.jpg", quality=92, exif=exif)
    upright = Image.open(tmp_path / "x.jpg").transpose(Image.Transpose.ROTATE_90)
    picture = decode(tmp_path / "x.jpg", 32)
    assert (picture.height, picture.width) == upright.size[::-1] == (501, 333)
    assert np.abs(picture.pixels.astype(int) - naive(upright, 32)).mean() <= 2.0


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (decode(tmp_path / "x.gif", 16).pixels == RED).all()


def encoded(image: Image.Image, kind: str) -> bytes:
    """Encode an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """Make a PNG whose header claims ``side`` pixels a side, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PHOTO = Image.fromarray(shapes(64, 64))


REFUSED = {
    "truncated.jpg": (encoded(PHOTO, "JPEG")[:-300], "damaged: .*truncated"),
    "truncated.png": (encoded(PHOTO, "PNG")[:-300], "damaged: "),
    "empty.png": (b"", "empty file"),
    "text.jpg": (b"this is a text", "not an image in one of the formats JPEG, PNG"),
    "postscript.jpg": (encoded(PHOTO, "EPS"), "not an image in one of the formats"),
    "warned.png": (huge_png(10_000), "decompression bombs"),
    "bomb.png": (huge_png(30_000), "decompression bombs"),
    "narrow.png": (encoded(Image.new("RGB", (200, 7)), "PNG"), "200 x 7 pixels: a side is below 8"),
    "float.tiff": (encoded(Image.new("F", (16, 16)), "TIFF"), "floating-point"),
    "int.tiff": (encoded(Image.new("I", (16, 16), 70_000), "TIFF"), "outside the 16-bit range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RefusedImageError, match=reason) as caught:
        decode(tmp_path / name, 32)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_went_away_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedImageError, match="cannot be read: No such file"):
        decode(tmp_path / "gone.jpg", 32)

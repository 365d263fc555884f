"""Masks of any images as files, the exported occlusion model, masks of tokens."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageOps
from s3 import s3_server
from small import SIZE, small_config
from torch import Tensor
from torch.nn import functional

import adios_ray
from adios_ray.cli import main
from adios_ray.data.pixels import MEAN, STD
from adios_ray.devices import best_device
from adios_ray.errors import CheckpointError, ConfigError, UsageError
from adios_ray.masking.occlusion import OcclusionModel
from adios_ray.models import onnx
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, save_weights
from adios_ray.places import check_output_file
from adios_ray.store import Store
from adios_ray.tracking.pictures import slot_colors

pytestmark = pytest.mark.slow

SLOTS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write weights whose occlusion model has distinct masks."""
    torch.manual_seed(0)
    networks = Networks(small_config(Path("data"), masking={"slots": SLOTS, "levels": 5}), SIZE, 4)
    assert networks.occlusion is not None
    with torch.no_grad():
        networks.occlusion.head.weight.mul_(10)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, Weights(networks.config, SIZE, 4, "made for a test", networks.state_dict()))
    return path


def drawn(path: Path, height: int, width: int, mode: str = "RGB", **options: Any) -> Path:
    """Save an image of smooth random colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.random.default_rng(height * width).integers(0, 256, (3, 3, 3), np.uint8)
    picture = Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    picture.save(path, **options)
    return path


def normalized(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Normalize an image uint8 [S, S, 3] to [1, 3, S, S]."""
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def direct(checkpoint: Path, image: Path, height: int, width: int) -> npt.NDArray[np.float32]:
    """Compute masks [N, H, W] with torch alone."""
    masks = adios_ray.load_occlusion_model(checkpoint)(normalized(squeezed(image)))
    return np.asarray(functional.interpolate(masks, (height, width), mode="bilinear", antialias=True)[0])


def squeezed(image: Path) -> npt.NDArray[np.uint8]:
    """Squeeze an upright image of 8 bits a channel into the model's square."""
    with Image.open(image) as picture:
        upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def masks(checkpoint: Path, images: Path, output: Path, *options: str) -> int:
    """Run the command."""
    return main(["masks", "--checkpoint", str(checkpoint), "--images", str(images), "--output", str(output), *options])


def listed(folder: Path) -> list[str]:
    """List the files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def soft_npz(path: Path) -> npt.NDArray[np.float32]:
    """Read a file of soft masks, and check that they sum to one."""
    with np.load(path) as file:
        assert file.files == ["masks"]
        soft: npt.NDArray[np.float32] = file["masks"]
    assert soft.dtype == np.float32 and soft.min() >= 0
    np.testing.assert_allclose(soft.sum(axis=0), 1, rtol=0, atol=1e-6)
    return soft


def test_arrays_are_the_models_output_at_the_images_size(checkpoint: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    images = {
        "native.png": drawn(tmp_path / "in" / "native.png", SIZE, SIZE),
        "portrait.png": drawn(tmp_path / "in" / "portrait.png", 90, 40),
        "deep/er/landscape.png": drawn(tmp_path / "in" / "deep" / "er" / "landscape.png", 41, 97),
        "native.webp": drawn(tmp_path / "in" / "native.webp", 50, 60, lossless=True),
        "gray.png": drawn(tmp_path / "in" / "gray.png", 20, 30, "L"),
        "transparent.png": drawn(tmp_path / "in" / "transparent.png", 30, 20, "RGBA"),
        "cmyk.tif": drawn(tmp_path / "in" / "cmyk.tif", 33, 34, "CMYK"),
        "turned.png": drawn(tmp_path / "in" / "turned.png", 20, 60, exif=exif),
        "one.png": drawn(tmp_path / "in" / "one.png", 1, 1),
        "line.png": drawn(tmp_path / "in" / "line.png", 1, 300),
    }
    assert masks(checkpoint, tmp_path / "in", tmp_path / "out", "--format", "npz") == 0
    assert listed(tmp_path / "out") == sorted([*(f"{name}.masks.npz" for name in images), "masks.json"])
    for name, image in images.items():
        with Image.open(image) as picture:
            width, height = picture.size[::-1] if name == "turned.png" else picture.size
        soft = soft_npz(tmp_path / "out" / f"{name}.masks.npz")
        assert soft.shape == (SLOTS, height, width)
        # Convolutions of a batch round differently from those of one image.
        np.testing.assert_allclose(soft, direct(checkpoint, image, height, width), rtol=0, atol=1e-5, err_msg=name)


def test_the_model_has_the_layout_of_the_device(
    checkpoint: Path, objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[tuple[torch.device, bool]] = []
    monkeypatch.setattr(OcclusionModel, "choose_layout", lambda model, *of, compiled: chosen.append((*of, compiled)))
    assert masks(checkpoint, drawn(tmp_path / "a.png", SIZE, SIZE), tmp_path / "out") == 0
    sheet = ["--data-dir", str(objects_dir), "--output", str(tmp_path / "sheet.png")]
    assert main(["masks", "--checkpoint", str(checkpoint), *sheet]) == 0
    assert chosen == [(best_device(), False)] * 2


def test_at_the_models_own_size_arrays_are_exact(checkpoint: Path, tmp_path: Path) -> None:
    image = drawn(tmp_path / "native.png", SIZE, SIZE)
    assert masks(checkpoint, image, tmp_path / "out", "--format", "npz") == 0
    expected = direct(checkpoint, image, SIZE, SIZE)
    np.testing.assert_array_equal(soft_npz(tmp_path / "out" / "native.png.masks.npz"), expected)


def test_pictures_are_the_masks_to_a_level(checkpoint: Path, tmp_path: Path) -> None:
    image = drawn(tmp_path / "in" / "a.png", 50, 70)
    expected = direct(checkpoint, image, 50, 70)
    for output, options in (("soft", ()), ("hard", ("--hard", "--overlay")), ("index", ("--hard", "--format", "npz"))):
        assert masks(checkpoint, tmp_path / "in", tmp_path / output, *options) == 0
    for slot in range(SLOTS):
        with Image.open(tmp_path / "soft" / f"a.png.mask{slot}.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_allclose(np.asarray(picture) / 255, expected[slot], rtol=0, atol=1 / 255)
    with Image.open(tmp_path / "hard" / "a.png.masks.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), expected.argmax(axis=0))
        colors = np.array([list(bytes.fromhex(color[1:])) for color in slot_colors(SLOTS)])
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colors[expected.argmax(axis=0)])
    index = np.load(tmp_path / "index" / "a.png.masks.npz")["masks"]
    assert index.dtype == np.uint8
    np.testing.assert_array_equal(index, expected.argmax(axis=0))
    # A column of cells: the image, its masks in color, and what each mask leaves.
    with Image.open(image) as picture, Image.open(tmp_path / "hard" / "a.png.overlay.png") as overlay:
        cells = np.asarray(overlay)
        assert overlay.size == (2 * 70, (2 + SLOTS) * (2 * 50 + 4) - 4)
        pixels = np.asarray(picture).repeat(2, axis=0).repeat(2, axis=1).astype(int)
    hidden = (expected.argmax(axis=0) == 1).repeat(2, axis=0).repeat(2, axis=1)
    left = cells[3 * 104 : 3 * 104 + 100].astype(int)
    assert (left[hidden] == 0).all()
    assert np.abs(left - pixels)[~hidden].mean() < 3, "squeezed and resized back"


def test_what_is_no_image_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adios_ray.tracking.mask_files.BATCH", 2)
    for name in ("a/x.png", "a/x.jpg", "b/x.png", "b/y.png", "z.png"):
        drawn(tmp_path / "in" / name, 20, 20)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    long = drawn(tmp_path / "in" / f"{'n' * 226}.png", 20, 20)
    cut = (tmp_path / "in" / "z.png").read_bytes()[:60]
    (tmp_path / "in" / "a" / "cut\n.png").write_bytes(cut)
    assert masks(checkpoint, tmp_path / "in", tmp_path / "out", "--hard") == 0
    captured = capsys.readouterr()
    assert "refused: a/cut\\n.png: damaged PNG" in captured.err and "7/7" in captured.err
    assert "passed over: not an image: 1 files, notes.txt" in captured.out
    assert "5 images, 3 masks each, 2 refused: masks.json has the reasons" in captured.out
    names = [f"{name}.masks.png" for name in ("a/x.jpg", "a/x.png", "b/x.png", "b/y.png", "z.png")]
    assert listed(tmp_path / "out") == sorted([*names, "masks.json"])
    summary = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert (summary["images"], summary["slots"], summary["hard"]) == (5, SLOTS, True)
    assert sorted(summary["refused"]) == ["a/cut\n.png", long.name] and summary["passed_over"] == {
        "not an image": [1, ["notes.txt"]]
    }


def test_single_files_keep_their_places_below_the_folder_they_share(checkpoint: Path, tmp_path: Path) -> None:
    files = [drawn(tmp_path / name, 20, 20) for name in ("p/a/x.png", "p/b/x.png", "p/b/c/x.png")]
    unnamed = files[0].rename(tmp_path / "p" / "a" / "x")  # what is named need not look like an image
    inputs = [str(path) for path in (unnamed, *files[1:], tmp_path / "p" / "b" / "c")]
    assert (
        main(["masks", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "o"), "--hard", "--images", *inputs])
        == 0
    )
    assert listed(tmp_path / "o") == ["a/x.masks.png", "b/c/x.png.masks.png", "b/x.png.masks.png", "masks.json"]


def test_a_run_that_could_use_no_image_is_not_in_the_way_of_the_next(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert masks(checkpoint, tmp_path / "text.png", tmp_path / "out") == 2
    assert listed(tmp_path / "out") == ["masks.json"]  # has the reasons
    assert masks(checkpoint, drawn(tmp_path / "a.png", 20, 20), tmp_path / "out") == 0


def test_a_second_run_is_refused_or_replaces_all_masks(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, output = drawn(tmp_path / "a.png", 20, 20), tmp_path / "out"
    assert masks(checkpoint, image, output, "--overlay") == 0
    (output / "notes.txt").write_text("mine")
    before = listed(output)
    assert masks(checkpoint, image, output, "--hard") == 2
    assert "is not empty: choose another folder, or replace its masks by --overwrite" in capsys.readouterr().err
    assert listed(output) == before
    assert masks(checkpoint, image, output, "--hard", "--overwrite") == 0
    assert listed(output) == ["a.png.masks.png", "masks.json", "notes.txt"]


def test_nothing_of_others_is_overwritten(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = drawn(tmp_path / "mine" / "in" / "a.png", 20, 20)
    drawn(tmp_path / "mine" / "in" / "scan.mask0.png", 20, 20)
    (tmp_path / "mine" / "masks.json").write_text('{"mine": 1}')
    drawn(tmp_path / "mine" / "other.masks.png", 20, 20)
    before = listed(tmp_path)
    for images in (image, image.parent):
        assert masks(checkpoint, images, tmp_path / "mine", "--overwrite") == 2
        assert f"contains --images {images}: choose a folder of its own" in capsys.readouterr().err
    elsewhere = drawn(tmp_path / "b.png", 20, 20)
    assert masks(checkpoint, elsewhere, tmp_path / "mine", "--overwrite") == 2
    assert "has files that are no masks, and no masks.json of an earlier run" in capsys.readouterr().err
    assert listed(tmp_path) == sorted([*before, "b.png"])
    # An interrupted run leaves masks alone.
    assert masks(checkpoint, elsewhere, tmp_path / "out", "--hard") == 0
    (tmp_path / "out" / "masks.json").unlink()
    assert masks(checkpoint, elsewhere, tmp_path / "out", "--hard", "--overwrite") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output o", "give --images, files or folders of images, or --data-dir, a prepared data set"),
        ("--images 5 --output o", "--images 5 is a number, which is for --data-dir: name files or folders"),
        ("--images in --data-dir d --output o", "give either --images, files or folders of images, or --data-dir"),
        ("--images none in --output o", "none does not exist"),
        ("--images empty --output o", "there are no images in empty"),
        ("--images in --output in/masks", "--output in/masks is inside --images in"),
        ("--images in --output file", "--output file cannot be written: "),
        ("--images in --stretch 3 --output o", "--stretch 3 must be file, or a bit depth from 9 to 16"),
        ("--data-dir d --format npz --output o", "--format npz is for --images; --data-dir draws a PNG"),
        ("--data-dir d --stretch 12 --overlay --output o", "--overlay, --stretch is for --images"),
    ],
)
def test_errors_are_one_line_before_anything_is_written(
    options: str,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path / "in" / "a.png", 8, 8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = listed(tmp_path)
    assert main(["masks", "--checkpoint", str(checkpoint), *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert listed(tmp_path) == before


def test_a_run_without_usable_images_fails(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_text("no image")
    assert masks(checkpoint, tmp_path / "a.png", tmp_path / "out") == 2
    assert "none of the 1 images can be used" in capsys.readouterr().err
    assert "a.png" in json.loads((tmp_path / "out" / "masks.json").read_text())["refused"]


def test_an_exported_occlusion_model_is_the_same(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "masker.safetensors"
    export = ["export", "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main([*export, "--occlusion"]) == 0
    assert "occlusion model, 3 masks, 32 pixels" in capsys.readouterr().out
    info = json.loads(output.with_suffix(".json").read_text())
    assert (info["part"], info["slots"], info["levels"], info["image_size"]) == ("occlusion model", SLOTS, 5, SIZE)
    assert (info["mean"], info["std"], info["origin"]) == (list(MEAN), list(STD), "made for a test")
    x = torch.randn(2, 3, SIZE, SIZE)
    ours, theirs = adios_ray.load_occlusion_model(output), adios_ray.load_occlusion_model(checkpoint)
    assert torch.equal(ours(x), theirs(x)) and not ours.training
    other = OcclusionModel(info["image_size"], info["slots"], info["width"], info["norm"], info["levels"])
    other.load_state_dict(safetensors.torch.load_file(output))
    assert torch.equal(other(x), theirs(x)), "the description is all that is needed"
    assert masks(output, drawn(tmp_path / "a.png", 20, 20), tmp_path / "out") == 0
    with pytest.raises(ConfigError, match="is an exported occlusion model, where an exported encoder is needed"):
        adios_ray.load_encoder(output)
    assert main([*export, "--occlusion", "--naming", "timm"]) == 2
    assert "--naming is for an encoder as safetensors" in capsys.readouterr().err
    output.write_bytes(output.read_bytes()[:-1] + b"0")
    with pytest.raises(CheckpointError, match="its checksum is another one"):
        adios_ray.load_occlusion_model(output)


@pytest.mark.parametrize("occlusion", [True, False])
def test_onnx_equals_torch(occlusion: bool, checkpoint: Path, tmp_path: Path) -> None:
    output, options = tmp_path / "m.onnx", ["--occlusion"] * occlusion
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(output), *options]) == 0
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    model = adios_ray.load_occlusion_model(checkpoint) if occlusion else adios_ray.load_encoder(checkpoint)
    name = "masks" if occlusion else "features"
    for size in (1, 2, 5):
        pixels = torch.randint(0, 256, (size, SIZE, SIZE, 3), dtype=torch.uint8)
        images, x = pixels.permute(0, 3, 1, 2) / 255, torch.cat([normalized(image.numpy()) for image in pixels])
        with torch.no_grad():
            expected = model(x).numpy()
        (given,) = session.run([name], {"images": images.numpy()})
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["image_size"] == str(SIZE) and metadata["origin"] == "made for a test"
    assert "RGB in [0, 1]" in metadata["images"] and name in metadata
    assert str(Path(adios_ray.__file__).parent).encode() not in output.read_bytes(), "no paths of this machine"
    check_output_file(output, onnx.MARK)


def test_onnx_without_its_packages_says_what_to_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "m.onnx")]) == 2
    assert "pip install 'adios_ray[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_masks_of_tokens_are_means_over_patches(checkpoint: Path) -> None:
    occlusion, x = adios_ray.load_occlusion_model(checkpoint), torch.randn(2, 3, SIZE, SIZE)
    whole, tokens = occlusion(x), occlusion.token_masks(x, patch=8)
    assert tokens.shape == (2, SLOTS, 16)
    corners = [(row, column) for row in range(0, SIZE, 8) for column in range(0, SIZE, 8)]
    parts = [whole[:, :, row : row + 8, column : column + 8].mean(dim=(2, 3)) for row, column in corners]
    torch.testing.assert_close(tokens, torch.stack(parts, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(tokens.sum(dim=1), torch.ones(2, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(occlusion.token_masks(x, 8.0), tokens, rtol=0, atol=0)  # type: ignore[arg-type]
    unusable: tuple[Any, ...] = (0, -8, 7, 64, 0.5, "8", None, [8])
    for patch in unusable:
        with pytest.raises(UsageError, match=re.escape(f"patch {patch!r} does not divide the images' side of 32")):
            occlusion.token_masks(x, patch)
    with pytest.raises(UsageError, match=r"takes images \[B, 3, 32, 32\], not \[2, 3, 64, 64\]"):
        occlusion(torch.randn(2, 3, 64, 64))


def test_checkpoint_and_outputs_at_uris(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 50), (200, 30, 30)).save(tmp_path / "a.png")
    with s3_server() as server:
        store = Store(server.uri)
        store.put(checkpoint, "in/weights.safetensors")
        source = f"{server.uri}/in/weights.safetensors"
        export = ["export", "--occlusion", "--checkpoint"]
        assert main([*export, source, "--output", f"{server.uri}/out/model.safetensors"]) == 0
        assert store.find() == ["in/weights.safetensors", "out/model.json", "out/model.safetensors"]
        assert main([*export, str(checkpoint), "--output", str(tmp_path / "own.safetensors")]) == 0
        assert store.read("out/model.safetensors") == (tmp_path / "own.safetensors").read_bytes()
        command = [
            "masks",
            "--checkpoint",
            source,
            "--images",
            str(tmp_path / "a.png"),
            "--output",
            f"{server.uri}/masks",
        ]
        assert main(command) == 0
        assert masks(checkpoint, tmp_path / "a.png", tmp_path / "own") == 0
        local = {path.relative_to(tmp_path / "own").as_posix() for path in (tmp_path / "own").rglob("*.*")}
        assert set(Store(f"{server.uri}/masks").find()) == local
        capsys.readouterr()
        assert main(command) == 2 and f"--output {server.uri}/masks is not empty" in capsys.readouterr().err
        assert main([*command[:-1], "s3://no-bucket/masks"]) == 2  # before masks are made
        assert "storage s3://no-bucket/masks cannot be written to" in capsys.readouterr().err

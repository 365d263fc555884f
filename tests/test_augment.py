"""The batched views against torchvision's transforms, one image at a time."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from adios_ray.config import AugmentConfig
from adios_ray.data import augment, kernels, pixels
from adios_ray.data.augment import (
    Sides,
    ViewParameters,
    apply_geometry,
    apply_view,
    center_view,
    denormalize,
    draw_parameters,
    pack_views,
    render_views,
)

ALWAYS = AugmentConfig(
    jitter_probability=1.0,
    grayscale_probability=1.0,
    blur_probability=1.0,
    solarize_probability=1.0,
    flip_probability=1.0,
)
NEVER = AugmentConfig(
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=0.0,
    solarize_probability=0.0,
    flip_probability=0.0,
)
MIXED = AugmentConfig(
    brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, grayscale_probability=0.3, solarize_probability=0.3
)
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and deviation of its channels
MANY = 20_000
SAFE_P = 1e-4  # with a fixed seed, a p-value below this means that the distributions differ


def pictures(count: int, size: int) -> Tensor:
    """Make smooth colors, noise, and patches of black, white, gray and pure red: uint8 [count, size, size, 3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").permute(0, 2, 3, 1)
    images = (255 * smooth + 20 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    for number, color in enumerate([(0, 0, 0), (255, 255, 255), (99, 99, 99), (255, 0, 0)]):
        images[:, 4 * number : 4 * number + 4, : size // 2] = torch.tensor(color, dtype=torch.uint8)
    return images


def planes(count: int, size: int = 32) -> Tensor:
    """Convert ``pictures`` to float32 [3, count, size, size] in [0, 1]."""
    return pictures(count, size).permute(3, 0, 1, 2).float().contiguous() / 255


def draw(config: AugmentConfig, count: int, size: int, epoch: int = 0, stream: str = "view_a") -> ViewParameters:
    """Draw the parameters of the first ``count`` samples."""
    return draw_parameters(config, 7, stream, epoch, np.arange(count, dtype=np.int64), *square(count, size))


def square(count: int, size: int) -> tuple[Sides, Sides]:
    """Return heights and widths of ``count`` square images."""
    sides = np.full(count, size, np.int32)
    return sides, sides


def each(x: Tensor, operation: Callable[[Tensor, float], Tensor], values: Tensor) -> Tensor:
    """Apply torchvision's ``operation`` with each image's own value to planes [3, B, H, W]."""
    return torch.stack([operation(x[:, i], float(value)) for i, value in enumerate(values)], dim=1)


def naive_crop(image: Tensor, parameters: ViewParameters, row: int, size: int, mode: InterpolationMode) -> Tensor:
    """Crop, resize and flip one float image [C, S, S] as torchvision does."""
    top, left, height, width = (int(number) for number in parameters.boxes[row])
    image = reference.resized_crop(image, top, left, height, width, [size, size], mode, antialias=True)
    return reference.horizontal_flip(image) if parameters.flip[row] else image


def naive_view(image: Tensor, parameters: ViewParameters, row: int, size: int) -> Tensor:
    """Make one view of one uint8 image [S, S, 3] with torchvision's functions alone."""
    x = naive_crop(image.permute(2, 0, 1).float() / 255, parameters, row, size, InterpolationMode.BICUBIC).clamp(0, 1)
    operations: list[Callable[[Tensor, float], Tensor]] = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]
    for number in parameters.order[row].tolist() if parameters.jitter[row] else []:
        x = operations[number](x, float(parameters.factors[row, number]))
    if parameters.grayscale[row]:
        x = reference.rgb_to_grayscale(x, num_output_channels=3)
    if parameters.blur[row]:
        x = reference.gaussian_blur(x, [13, 13], [float(parameters.sigma[row])] * 2)
    if parameters.solarize[row]:
        x = reference.solarize(x, 0.5)
    normalized: Tensor = reference.normalize(x, *IMAGENET)
    return normalized


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    """Compare with an absolute tolerance alone."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("factor_range", [(0.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_linear_adjustments_match_torchvision(name: str, factor_range: tuple[float, float]) -> None:
    factors = torch.linspace(*factor_range, 8)
    none = torch.zeros(8)
    gray = 1 - factors if name == "saturation" else none
    mean = 1 - factors if name == "contrast" else none
    expected = each(planes(8), getattr(reference, f"adjust_{name}"), factors)
    x = planes(8)
    pixels.blend_(x, factors, gray, mean)
    close(x, expected, 1e-5)


def test_neutral_blend_changes_no_bit() -> None:
    x, ones, zeros = planes(4), torch.ones(4), torch.zeros(4)
    pixels.blend_(x, ones, zeros, zeros)
    assert torch.equal(x, planes(4))


def turned_at_once(x: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue of planes as other devices than a CPU do."""
    return torch.stack(pixels.adjust_hue(x, shifts))


def turned_one_by_one(x: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue of planes as a CPU does."""
    planes = x.flatten(2).contiguous().numpy().copy()
    for number, shift in enumerate(shifts.numpy()):
        red, green, blue = planes[:, number]
        kernels.turn_hue(red, green, blue, shift)
    return torch.from_numpy(planes).view_as(x)


TURNED = pytest.mark.parametrize("turned", [turned_at_once, turned_one_by_one])


@TURNED
def test_hue_matches_torchvision_up_to_half_a_turn_both_ways(turned: Callable[[Tensor, Tensor], Tensor]) -> None:
    shifts = torch.linspace(-0.5, 0.5, 11)
    close(turned(planes(11), shifts), each(planes(11), reference.adjust_hue, shifts), 1e-5)


@TURNED
def test_hue_of_every_corner_edge_and_nearly_gray_color_matches_torchvision(
    turned: Callable[[Tensor, Tensor], Tensor],
) -> None:
    levels = torch.tensor([0.0, 1e-6, 0.25, 0.5, 0.5 + 1e-6, 1.0])
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 1, 12, 18)
    for shift in (-0.5, -0.1, 0.0, 1 / 3, 0.5):
        shifts = torch.tensor([shift])
        close(turned(x, shifts), each(x, reference.adjust_hue, shifts), 1e-5)


@TURNED
def test_hue_leaves_grays_and_a_third_of_a_turn_permutes_channels(turned: Callable[[Tensor, Tensor], Tensor]) -> None:
    gray = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(3, -1, -1, -1)
    assert torch.equal(turned(gray, torch.tensor([0.3])), gray)
    x = planes(1)
    close(turned(x, torch.tensor([1 / 3])), x[[2, 0, 1]], 1e-6)


def test_grayscale_and_solarize_match_torchvision() -> None:
    x = planes(4)
    gray = pixels.grayscale(x).expand(3, -1, -1, -1)
    close(gray, each(x, lambda image, _: reference.rgb_to_grayscale(image, 3), torch.zeros(4)), 1e-6)
    close(pixels.solarize(x), each(x, lambda image, _: reference.solarize(image, 0.5), torch.zeros(4)), 0)


@pytest.mark.parametrize("size", [7, 32, 97])
def test_blur_matches_torchvision(size: int) -> None:
    images, config = pictures(6, size), NEVER.model_copy(update={"blur_probability": 1.0, "min_crop_scale": 1.0})
    sigmas = torch.tensor([0.1, 0.43, 0.5, 1.0, 2.0, pixels.NO_BLUR])
    parameters = draw(config, 6, size)._replace(boxes=torch.tensor([[0.0, 0.0, size, size]] * 6), sigma=sigmas)
    x = images.permute(3, 0, 1, 2).float() / 255
    expected = each(x, lambda image, sigma: reference.gaussian_blur(image, [13, 13], [sigma] * 2), sigmas)
    seen = apply_view(images, parameters, size) * torch.tensor(pixels.STD)[:, None, None]
    close(seen + torch.tensor(pixels.MEAN)[:, None, None], expected.transpose(0, 1), 1e-5)


@pytest.mark.parametrize("sizes", [(96, 96), (128, 96), (96, 32), (40, 96)])
@pytest.mark.parametrize(
    ("kernel", "mode"),
    [(pixels.BICUBIC, InterpolationMode.BICUBIC), (pixels.BILINEAR, InterpolationMode.BILINEAR)],
)
def test_crop_resize_and_flip_match_torchvision(
    sizes: tuple[int, int], kernel: pixels.Kernel, mode: InterpolationMode
) -> None:
    stored, out = sizes
    x, parameters = planes(12, stored), draw(AugmentConfig(), 12, stored)
    parameters.boxes[0] = torch.tensor([0.0, 0.0, stored, stored])
    parameters.boxes[1] = torch.tensor([stored - 1.0, 3.0, 1.0, 5.0])
    expected = torch.stack([naive_crop(x[:, row], parameters, row, out, mode) for row in range(12)], dim=1)
    crops = augment._stored_crops(parameters.boxes, parameters.sizes, parameters.flip, stored)
    by_rows = x.permute(1, 2, 3, 0)
    close(augment._crop(by_rows, crops, out, kernel), expected, 1e-4)
    close(torch.stack(augment._crop_by_matrices(by_rows, crops, out, kernel, 1)), expected, 1e-4)


@pytest.mark.parametrize("config", [AugmentConfig(), MIXED, ALWAYS, NEVER], ids=["default", "mixed", "always", "never"])
@pytest.mark.parametrize("sizes", [(96, 96), (48, 32)])
def test_whole_view_matches_a_loop_of_torchvision(config: AugmentConfig, sizes: tuple[int, int]) -> None:
    stored, out = sizes
    images, parameters = pictures(48, stored), draw(config, 48, stored)
    expected = torch.stack([naive_view(images[row], parameters, row, out) for row in range(48)])
    close(apply_view(images, parameters, out), expected, 1e-4)


def two_views(config: AugmentConfig, count: int) -> list[ViewParameters]:
    """Draw two views of photographs of many proportions, so that crops are fractional in stored pixels."""
    sides = np.random.default_rng(0).integers(20, 500, (2, count), dtype=np.int32)
    samples = np.arange(count, dtype=np.int64)
    return [draw_parameters(config, 7, stream, 0, samples, *sides) for stream in ("view_a", "view_b")]


@pytest.mark.parametrize("config", [AugmentConfig(), MIXED, ALWAYS, NEVER], ids=["default", "mixed", "always", "never"])
@pytest.mark.parametrize("sizes", [(48, 32), (24, 40)])
def test_operations_on_all_images_equal_those_on_one_after_another(
    config: AugmentConfig, sizes: tuple[int, int]
) -> None:
    stored, out = sizes
    images, views = pictures(48, stored), two_views(config, 48)
    if config is ALWAYS:  # every order of the colors twice, on the same images
        orders = torch.tensor([*itertools.permutations(range(4))] * 2)
        views = [view._replace(order=orders) for view in views]
    together = render_views(images, pack_views(views, stored), out)
    for view, parameters in zip(together, views, strict=True):
        close(view, apply_view(images, parameters, out), 1e-5)


def test_layout_changes_no_pixel() -> None:
    images, packed = pictures(5, 32), pack_views(two_views(MIXED, 5), 32)
    planar, last = (render_views(images, packed, 24, channels_last) for channels_last in (False, True))
    assert torch.equal(planar, last)
    assert all(view.is_contiguous() for view in planar)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in last)


@pytest.mark.long
def test_compiled_views_equal_those_made_operation_by_operation() -> None:
    images, packed = pictures(16, 48), pack_views(two_views(MIXED, 16), 48)
    compiled = torch.compile(render_views, dynamic=False, fullgraph=True)
    close(compiled(images, packed, 32), render_views(images, packed, 32), 1e-5)


def test_the_narrowest_blur_changes_no_bit() -> None:
    blurred, parameters = ALWAYS.model_copy(update={"solarize_probability": 0.0}), draw(ALWAYS, 4, 32)
    parameters = draw(blurred, 4, 32)._replace(sigma=torch.full((4,), pixels.NO_BLUR))
    sharp = parameters._replace(blur=torch.zeros(4, dtype=torch.bool))
    assert torch.equal(apply_view(pictures(4, 32), parameters, 32), apply_view(pictures(4, 32), sharp, 32))


def test_image_depends_neither_on_its_batch_nor_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    images, parameters = pictures(9, 48), draw(MIXED, 9, 48)
    masks = images.permute(0, 3, 1, 2)
    made = []
    for threads in (1, 2, 20):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        made.append((apply_view(images, parameters, 32), apply_geometry(masks, parameters, 32)))
    for row in range(9):
        own = ViewParameters(*(values[row : row + 1] for values in parameters))
        view, mask = apply_view(images[row : row + 1], own, 32), apply_geometry(masks[row : row + 1], own, 32)
        assert all(torch.equal(view[0], views[row]) and torch.equal(mask[0], moved[row]) for views, moved in made)


def test_no_images_make_no_views() -> None:
    images, parameters = pictures(1, 48)[:0], draw(MIXED, 0, 48)
    assert apply_view(images, parameters, 32).shape == (0, 3, 32, 32)
    assert apply_geometry(images.permute(0, 3, 1, 2), parameters, 32).shape == (0, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["full", "no directory"])
def test_views_are_made_where_compiled_code_cannot_be_kept(problem: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    if problem == "no directory":
        cache.touch()
    # A full disk: no file may have any content.
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));" if problem == "full" else ""
    code = f"""
import resource, torch, numpy as np
from adios_ray.config import AugmentConfig
from adios_ray.data.augment import apply_view, draw_parameters
{limit}
sides = np.full(2, 16)
parameters = draw_parameters(AugmentConfig(), 0, "view_a", 0, np.arange(2), sides, sides)
views = apply_view(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), parameters, 8)
assert views.isfinite().all()
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    kept = [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size]
    assert not kept


def test_view_is_decided_by_seed_stream_epoch_and_sample_alone() -> None:
    samples = np.array([5, 900, 17, 3], dtype=np.int64)
    forward = draw_parameters(MIXED, 1, "view_a", 2, samples, *square(4, 96))
    backward = draw_parameters(MIXED, 1, "view_a", 2, samples[::-1].copy(), *square(4, 96))
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(forward, backward, strict=True))
    for seed, stream, epoch in [(0, "view_a", 2), (1, "view_b", 2), (1, "view_a", 3)]:
        other = draw_parameters(MIXED, seed, stream, epoch, samples, *square(4, 96))
        assert (forward.factors != other.factors).all()
        assert (forward.boxes != other.boxes).any(dim=1).all()


def as_features(boxes: Tensor, size: int) -> dict[str, Any]:
    """Compute area, log aspect ratio and relative position of boxes [n, 4], as arrays."""
    top, left, height, width = boxes.double().T
    return {
        "area": (height * width).numpy(),
        "log ratio": (width / height).log().numpy(),
        "top": ((top + 0.5) / (size - height + 1)).numpy(),
        "left": ((left + 0.5) / (size - width + 1)).numpy(),
    }


@pytest.mark.parametrize("min_scale", [0.08, 0.9])
@pytest.mark.slow
def test_crops_are_distributed_as_torchvisions(min_scale: float) -> None:
    image = torch.empty(3, 96, 96)
    theirs = [RandomResizedCrop.get_params(image, [min_scale, 1.0], [3 / 4, 4 / 3]) for _ in range(MANY // 2)]
    boxes = draw(AugmentConfig(min_crop_scale=min_scale), MANY, 96).boxes
    expected = as_features(torch.tensor(theirs), 96)
    for name, values in as_features(boxes, 96).items():
        assert stats.ks_2samp(values, expected[name]).pvalue > SAFE_P, name
    np.testing.assert_allclose(np.corrcoef(boxes.numpy().T), np.corrcoef(np.array(theirs).T), atol=0.05)


@pytest.mark.parametrize("min_scale", [0.0001, 0.08, 1.0])
def test_crops_are_whole_pixels_inside_the_image(min_scale: float) -> None:
    top, left, height, width = boxes = draw(AugmentConfig(min_crop_scale=min_scale), MANY, 32).boxes.T
    assert torch.equal(boxes, boxes.round())
    assert (torch.stack([top, left]) >= 0).all() and (torch.stack([height, width]) >= 1).all()
    assert (top + height <= 32).all() and (left + width <= 32).all()


def test_crop_falls_back_to_the_whole_image_when_no_attempt_fits() -> None:
    draws = np.full((1, 22), 0.999999)
    assert augment._boxes(draws, 0.08, *square(1, 96)).tolist() == [[0, 0, 96, 96]]
    draws[0, [3, 13]] = 0.5  # the fourth attempt is a square of area 0.54
    assert augment._boxes(draws, 0.08, *square(1, 96))[0, 2:].tolist() == [71, 71]


def test_jitter_is_distributed_as_torchvisions() -> None:
    config = AugmentConfig()
    bounds = [[0.6, 1.4], [0.6, 1.4], [0.8, 1.2], [-0.1, 0.1]]
    theirs = np.array([ColorJitter.get_params(*bounds)[1:] for _ in range(MANY // 4)], dtype=np.float64)
    parameters = draw(config, MANY, 96)
    for number in range(4):
        assert stats.ks_2samp(parameters.factors[:, number].numpy(), theirs[:, number]).pvalue > SAFE_P, number
    low, high = 0.1, 2.0  # of SimCLR
    assert stats.kstest(parameters.sigma.numpy(), stats.uniform(low, high - low).cdf).pvalue > SAFE_P
    codes = (parameters.order * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = torch.unique(codes, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > SAFE_P


@pytest.mark.parametrize(
    ("choice", "probability"),
    [("flip", 0.5), ("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.5), ("solarize", 0.3)],
)
def test_choices_have_their_probabilities(choice: str, probability: float) -> None:
    chosen = getattr(draw(AugmentConfig(solarize_probability=0.3), MANY, 96), choice)
    assert stats.binomtest(int(chosen.sum()), MANY, probability).pvalue > SAFE_P
    assert getattr(draw(ALWAYS, MANY, 96), choice).all()
    assert not getattr(draw(NEVER, MANY, 96), choice).any()


def test_choices_and_strengths_are_uncorrelated() -> None:
    parameters = draw(AugmentConfig(solarize_probability=0.3), MANY, 96)
    drawn = parameters._replace(boxes=parameters.boxes[:, :1], order=parameters.order[:, :1])._asdict()
    columns = [values.double().reshape(MANY, -1) for name, values in drawn.items() if name != "sizes"]
    correlations = np.corrcoef(torch.cat(columns, dim=1).numpy().T)
    assert np.abs(correlations - np.eye(len(correlations))).max() < 5 / MANY**0.5


def centroid(weights: Tensor) -> Tensor:
    """Compute the centers of mass of maps [B, H, W] as rows and columns, [B, 2]."""
    total = weights.sum(dim=(1, 2))
    rows = (weights.sum(dim=2) * torch.arange(weights.shape[1])).sum(dim=1) / total
    columns = (weights.sum(dim=1) * torch.arange(weights.shape[2])).sum(dim=1) / total
    return torch.stack([rows, columns], dim=1)


def test_masks_move_with_their_images() -> None:
    axis = torch.arange(96.0)
    blob = torch.exp(-((axis[:, None] - 40) ** 2 + (axis - 55) ** 2) / (2 * 8**2))
    images = (255 * blob).to(torch.uint8)[None, :, :, None].expand(16, -1, -1, 3)
    config = NEVER.model_copy(update={"flip_probability": 0.5, "min_crop_scale": 0.5})
    parameters = draw(config, 16, 96)
    assert 0 < parameters.flip.sum() < 16
    seen = denormalize(apply_view(images, parameters, 64))[..., 0].float()
    masks = apply_geometry(blob[None, None].expand(16, 2, -1, -1), parameters, 64)
    assert masks.shape == (16, 2, 64, 64)
    assert (centroid(seen) - centroid(masks[:, 1])).abs().max() < 0.5


def test_masks_that_share_every_pixel_still_do_and_stay_in_range() -> None:
    owner = torch.randint(0, 3, (8, 48, 48), generator=torch.Generator().manual_seed(0))
    masks = torch.nn.functional.one_hot(owner, 3).permute(0, 3, 1, 2)
    moved = apply_geometry(masks, draw(AugmentConfig(), 8, 48), 32)
    assert moved.min() >= 0 and moved.max() <= 1 + 1e-6
    close(moved.sum(dim=1), torch.ones(8, 32, 32), 1e-5)


@pytest.mark.parametrize("out_size", [32, 48])
def test_center_view_is_the_whole_image_resized_and_normalized(out_size: int) -> None:
    images = pictures(3, 48)
    x = images.permute(0, 3, 1, 2).float() / 255
    x = reference.resize(x, [out_size, out_size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    close(
        center_view(images, *square(3, 48), out_size),
        reference.normalize(x, *IMAGENET),
        1e-5,
    )


def test_denormalize_inverts_the_center_view() -> None:
    images = pictures(3, 32)
    assert torch.equal(denormalize(center_view(images, *square(3, 32), 32)), images)
    assert denormalize(torch.full((1, 3, 2, 2), 99.0)).tolist() == [[[[255] * 3] * 2] * 2]

"""Views of photographs stored squeezed into squares, against crops of the originals."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from adios_ray.config import AugmentConfig, CentralView
from adios_ray.data import augment, kernels, pixels
from adios_ray.data.augment import (
    ViewParameters,
    apply_geometry,
    apply_view,
    center_view,
    denormalize,
    draw_parameters,
)
from adios_ray.data.decode import square

STORED, VIEW = 64, 32
SIZES = ((120, 200), (200, 120), (90, 90), (333, 250), (60, 480), (480, 60), (8, 20_000))
PLAIN = AugmentConfig(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0, solarize_probability=0.0)


def sides(count: int, size: tuple[int, int]) -> tuple[augment.Sides, augment.Sides]:
    """Return heights and widths of ``count`` photographs of one size."""
    return np.full(count, size[0], np.int32), np.full(count, size[1], np.int32)


def photograph(height: int, width: int) -> Image.Image:
    """Draw smooth waves and a disc with a hard edge."""
    y, x = np.mgrid[:height, :width] / 30.0
    waves = [np.sin(x * a + b) * np.cos(y * a - b) for a, b in ((0.7, 0.0), (1.0, 1.0), (1.3, 2.0))]
    image = 120 + 90 * np.stack(waves, axis=-1)
    image[(x - width / 70) ** 2 + (y - height / 80) ** 2 < 1.5] = (240, 20, 60)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def squeezed(image: Image.Image, stored: int = STORED) -> Tensor:
    """Squeeze a photograph as it is stored, uint8 [1, stored, stored, 3]."""
    return torch.from_numpy(square(image, stored).pixels.copy())[None]


def as_pixels(view: Tensor) -> npt.NDArray[np.float64]:
    """Convert one normalized view [1, 3, S, S] to pixels from 0 to 255, [S, S, 3]."""
    return denormalize(view)[0].double().numpy()


def naive_box(draws: npt.NDArray[np.float64], min_scale: float, height: int, width: int) -> list[int]:
    """Restate torchvision's RandomResizedCrop.get_params with given random numbers: top, left, height, width."""
    for attempt in range(10):
        target_area = height * width * (min_scale + (1.0 - min_scale) * draws[attempt])
        aspect_ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[10 + attempt])
        w, h = round(math.sqrt(target_area * aspect_ratio)), round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return [math.floor(draws[20] * (height - h + 1)), math.floor(draws[21] * (width - w + 1)), h, w]
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("min_scale", [0.08, 0.5])
def test_boxes_are_those_of_torchvision_for_the_same_draws(min_scale: float) -> None:
    draws = np.random.default_rng(0).random((60 * len(SIZES), 22))
    heights, widths = np.repeat(SIZES, 60, axis=0).T
    expected = [naive_box(*row) for row in zip(draws, [min_scale] * len(draws), heights, widths, strict=True)]
    np.testing.assert_array_equal(augment._boxes(draws, min_scale, heights, widths), expected)
    central = [box[0] == (height - box[2]) // 2 > 0 for box, height in zip(expected, heights, strict=True)]
    assert any(central[60 * 5 : 60 * 6])  # the fallback was needed


def test_the_last_resort_is_torchvisions() -> None:
    for height, width in SIZES:
        theirs = RandomResizedCrop.get_params(torch.empty(1, height, width), [1e9, 1e9], [3 / 4, 4 / 3])
        ours = augment._boxes(np.full((1, 22), 0.3), 1e9, *sides(1, (height, width)))
        np.testing.assert_array_equal(ours[0], theirs)


def test_crops_of_a_wide_photograph_are_distributed_as_torchvisions() -> None:
    image, samples = torch.empty(3, 240, 400), np.arange(20_000, dtype=np.int64)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    boxes = draw_parameters(AugmentConfig(), 7, "view_a", 0, samples, *sides(20_000, (240, 400))).boxes
    for column in range(4):
        assert stats.ks_2samp(boxes[:, column].numpy(), theirs[:, column].numpy()).pvalue > 1e-4, column


def naive_matrix(start: float, length: float, stored: int, out: int, kernel: pixels.Kernel) -> npt.NDArray[np.float64]:
    """Compute interpolation weights in a loop: the kernel times the part of each pixel that the crop covers."""
    matrix, scale = np.zeros((out, stored)), length / out
    for row in range(out):
        center = start + (row + 0.5) * scale
        for pixel in range(stored):
            covered = max(0.0, min(pixel + 1, start + length) - max(pixel, start))
            distance = torch.tensor(abs(pixel + 0.5 - center) / max(scale, 1.0), dtype=torch.float64)
            matrix[row, pixel] = covered * float(kernel.weight(distance))
        matrix[row] /= matrix[row].sum()
    return matrix


@pytest.mark.parametrize("kernel", [pixels.BICUBIC, pixels.BILINEAR], ids=["bicubic", "bilinear"])
@pytest.mark.parametrize("out", [7, 20])
@pytest.mark.slow
def test_fractional_crops_of_an_axis_against_a_loop(kernel: pixels.Kernel, out: int) -> None:
    crops = [(0.0, 24.0), (3.25, 11.5), (0.6, 3.1), (23.7, 0.3), (10.5, 1.0), (5.0, 0.2), (7.1, 16.9), (2.0, 9.0)]
    start, length = (torch.tensor(numbers) for numbers in zip(*crops, strict=True))
    upright = torch.zeros(len(crops), dtype=torch.bool)
    matrix = pixels.interpolation_taps(start, length, upright, 24, out, kernel, dense=True).weights
    expected = np.stack([naive_matrix(*crop, 24, out, kernel) for crop in crops])
    np.testing.assert_allclose(matrix, expected, atol=2e-5)
    mirrored = pixels.interpolation_taps(start, length, ~upright, 24, out, kernel, dense=True).weights
    np.testing.assert_allclose(mirrored.flip(1), matrix, atol=2e-5)
    taps = pixels.interpolation_taps(start, length, upright, 24, out, kernel)
    for number, (places, weights) in enumerate(zip(taps.pixels.int().numpy(), taps.weights.numpy(), strict=True)):
        seen = np.empty((out, 24), np.float32)
        kernels.weighted_rows(np.eye(24, dtype=np.float32), 0, 24, kernels.Taps(places, weights), seen)
        np.testing.assert_allclose(seen, expected[number], atol=2e-5)


def test_nothing_outside_a_crop_is_seen() -> None:
    parameters = draw_parameters(PLAIN, 3, "view_a", 0, np.arange(40, dtype=np.int64), *sides(40, (333, 250)))
    dark, light = (torch.full((40, STORED, STORED, 3), value, dtype=torch.uint8) for value in (0, 255))
    inside = torch.randint(0, 256, (40, STORED, STORED, 3), generator=torch.Generator().manual_seed(0))
    for row in range(40):
        top, left, height, width = (parameters.boxes[row] * STORED / torch.tensor([333, 250, 333, 250])).tolist()
        rows = slice(math.floor(top + 1e-4), math.ceil(top + height - 1e-4))
        columns = slice(math.floor(left + 1e-4), math.ceil(left + width - 1e-4))
        for image in (dark, light):
            image[row, rows, columns] = inside[row, rows, columns].to(torch.uint8)
    assert (dark != light).flatten(1).any(dim=1).float().mean() > 0.9
    views = [apply_view(images, parameters, VIEW) for images in (dark, light)]
    torch.testing.assert_close(*views, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES[:6])
def test_a_view_shows_where_its_crop_is(size: tuple[int, int]) -> None:
    """Read positions from a photograph whose red grows to the right and green downwards."""
    axis = (torch.arange(STORED) + 0.5) * 255 / STORED
    ramps = torch.stack([axis.expand(STORED, -1), axis[:, None].expand(-1, STORED), torch.zeros(STORED, STORED)], -1)
    images = ramps.round().to(torch.uint8).expand(20, -1, -1, -1)
    parameters = draw_parameters(PLAIN, 5, "view_a", 1, np.arange(20, dtype=np.int64), *sides(20, size))
    assert 0 < parameters.flip.sum() < 20
    seen = denormalize(apply_view(images, parameters, VIEW)).double() / 255
    place = (torch.arange(VIEW) + 0.5) / VIEW
    for row in range(20):
        top, left, height, width = parameters.boxes[row].tolist()
        across = left + (place.flip(0) if parameters.flip[row] else place) * width
        inner = slice(VIEW // 4, -VIEW // 4)  # kernels are cut off at the edges of a crop, which biases positions there
        assert (seen[row, inner, inner, 0] - across[inner] / size[1]).abs().max() < 1.5 / 255
        assert (seen[row, inner, inner, 1].T - (top + place[inner] * height) / size[0]).abs().max() < 1.5 / 255


@pytest.mark.parametrize("size", [(120, 200), (200, 130), (128, 128)])
def test_a_view_is_nearly_a_crop_of_the_original(size: tuple[int, int]) -> None:
    """Allow 2.5 of 255 on average for lost detail; a crop that is off by 2 % differs by more than 4."""
    original = photograph(*size)
    differences: list[float] = []
    shifted: list[float] = []
    for sample in range(12):
        parameters = draw_parameters(PLAIN, 1, "view_a", 0, np.array([sample]), *sides(1, size))
        view = as_pixels(apply_view(squeezed(original), parameters, VIEW))
        top, left, height, width = (int(number) for number in parameters.boxes[0])
        for offset, found in ((0, differences), (round(0.02 * size[1]), shifted)):
            box = (left + offset, top, left + offset + width, top + height)
            theirs = original.crop(box).resize((VIEW, VIEW), Image.Resampling.BICUBIC)
            theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if parameters.flip[0] else theirs
            found.append(np.abs(view - np.asarray(theirs)).mean())
    assert np.mean(differences) < 2.5 and np.mean(shifted) > 4


def test_masks_are_cropped_as_their_photographs() -> None:
    """Check that a mask equal to the image's red stays equal to it, for photographs of any shape in one batch."""
    heights, widths = np.array([120, 200, 90, 60]), np.array([200, 120, 90, 480])
    parameters = draw_parameters(PLAIN, 2, "view_b", 0, np.arange(4, dtype=np.int64), heights, widths)
    axis = torch.linspace(-1, 1, STORED)
    blob = 255 * torch.exp(-3 * ((axis[:, None] - 0.1) ** 2 + (axis + 0.2) ** 2))
    images = blob.round().to(torch.uint8)[None, :, :, None].expand(4, -1, -1, 3)
    seen = denormalize(apply_view(images, parameters, VIEW))[..., 0].float()
    masks = apply_geometry(images[..., 0][:, None], parameters, VIEW)[:, 0]
    assert (seen - masks).abs().max() < 4 and seen.std() > 20


def their_center(original: Image.Image, view: CentralView) -> npt.NDArray[np.float64]:
    """Make the central view of an original with torchvision's functions."""
    if view == "square":
        cropped = reference.center_crop(original, [min(original.size)] * 2)
        return np.asarray(reference.resize(cropped, [VIEW, VIEW], InterpolationMode.BICUBIC), dtype=float)
    resized = reference.resize(original, [256], InterpolationMode.BICUBIC)
    return np.asarray(reference.center_crop(resized, [VIEW, VIEW]), dtype=float)


@pytest.mark.parametrize("view", ["square", "resize-256"])
@pytest.mark.parametrize("size", [(300, 500), (500, 330), (256, 256)])
def test_the_central_view_is_that_of_the_original(size: tuple[int, int], view: CentralView) -> None:
    original = photograph(*size)
    seen = as_pixels(center_view(squeezed(original, 256), *sides(1, size), VIEW, view))
    assert np.abs(seen - their_center(original, view)).mean() < 1.5
    other = their_center(original, "square" if view == "resize-256" else "resize-256")
    assert np.abs(seen - other).mean() > 10


def test_a_central_view_does_not_depend_on_its_batch() -> None:
    heights, widths = np.array([120, 90, 200]), np.array([200, 90, 120])
    images = torch.cat([squeezed(photograph(h, w)) for h, w in zip(heights, widths, strict=True)])
    together = center_view(images, heights, widths, VIEW)
    for row in range(3):
        own = slice(row, row + 1)
        alone = center_view(images[own], heights[own], widths[own], VIEW)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=0 if row == 1 else 1e-6)


def test_a_square_of_another_size_than_its_photograph_is_a_square() -> None:
    images = squeezed(photograph(90, 90))
    of_its_own, of_90 = (center_view(images, *sides(1, (side, side)), VIEW) for side in (STORED, 90))
    assert torch.equal(of_its_own, of_90)
    drawn = [draw_parameters(PLAIN, 0, "view_a", 0, np.array([4]), *sides(1, (s, s))) for s in (STORED, STORED * 3)]
    boxes = [parameters.boxes[0] / parameters.sizes[0, 0] for parameters in drawn]
    torch.testing.assert_close(boxes[0], boxes[1], rtol=0, atol=1 / STORED)  # whole pixels of either


def test_parameters_of_a_photograph_do_not_depend_on_the_others() -> None:
    heights, widths = np.array([120, 90, 480]), np.array([200, 90, 60])
    together = draw_parameters(AugmentConfig(), 0, "view_a", 0, np.arange(3, dtype=np.int64), heights, widths)
    for row in range(3):
        own = slice(row, row + 1)
        alone = draw_parameters(AugmentConfig(), 0, "view_a", 0, np.array([row]), heights[own], widths[own])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))
    assert isinstance(together, ViewParameters) and together.sizes.tolist() == [[120, 200], [90, 90], [480, 60]]

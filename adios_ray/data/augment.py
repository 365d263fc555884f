"""Random views of image batches, on the device of the images.

What happens to an image is decided by (seed, stream, epoch, sample) alone and drawn on the CPU; the pixels are then
changed in batches, without a synchronisation with the device.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adios_ray.config import AugmentConfig
from adios_ray.data import pixels
from adios_ray.data.randomness import uniforms

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP_ATTEMPTS = 10
ASPECT_RATIOS = (3 / 4, 4 / 3)
BLUR_SIGMAS = (0.1, 2.0)
COLOUR_OPERATIONS = (
    pixels.adjust_brightness,
    pixels.adjust_contrast,
    pixels.adjust_saturation,
    pixels.adjust_hue,
)
_DRAWS = 2 * CROP_ATTEMPTS + 16


class ViewParameters(NamedTuple):
    """What is done to each image of a batch; tensors on the CPU.

    Attributes:
        boxes: Crops as top, left, height, width in stored pixels, float32 [B, 4].
        flip: Mirrored left to right, bool [B].
        jitter: Colours changed, bool [B].
        order: Order of brightness, contrast, saturation, hue (0-3), int64 [B, 4].
        factors: Their factors, the last the hue's shift in turns, float32 [B, 4].
        greyscale: Without colour, bool [B].
        blur: Blurred, bool [B].
        sigma: The blur's standard deviation in pixels, float32 [B].
        solarise: Bright pixels inverted, bool [B].
    """

    boxes: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    greyscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarise: Tensor


def draw_parameters(
    config: AugmentConfig, seed: int, stream: str, epoch: int, samples: npt.NDArray[np.int64], stored_size: int
) -> ViewParameters:
    """Decide what happens to the images ``samples`` (int64 [B]) of side ``stored_size`` in one view of one epoch."""
    draws = uniforms(seed, stream, epoch, samples, _DRAWS)
    crops, rest = draws[:, : 2 * CROP_ATTEMPTS + 2], draws[:, 2 * CROP_ATTEMPTS + 2 :]
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = BLUR_SIGMAS
    return ViewParameters(
        boxes=torch.from_numpy(_boxes(crops, config.min_crop_scale, stored_size)),
        flip=torch.from_numpy(rest[:, 0] < config.flip_probability),
        jitter=torch.from_numpy(rest[:, 1] < config.jitter_probability),
        order=torch.from_numpy(np.argsort(rest[:, 2:6], axis=1)),
        factors=torch.from_numpy((neutral + strengths * (2 * rest[:, 6:10] - 1)).astype(np.float32)),
        greyscale=torch.from_numpy(rest[:, 10] < config.greyscale_probability),
        blur=torch.from_numpy(rest[:, 11] < config.blur_probability),
        sigma=torch.from_numpy((low + (high - low) * rest[:, 12]).astype(np.float32)),
        solarise=torch.from_numpy(rest[:, 13] < config.solarise_probability),
    )


def _boxes(draws: npt.NDArray[np.float64], min_scale: float, size: int) -> npt.NDArray[np.float32]:
    """Crops of random area and aspect ratio: the first of ten attempts that fits, else the whole image.

    Args:
        draws: Uniform numbers, [B, 22]: area and ratio of each attempt, then the position.
        min_scale: Smallest share of the image's area.
        size: Side of the image.

    Returns:
        Top, left, height, width as whole numbers, float32 [B, 4].
    """
    area = (min_scale + (1 - min_scale) * draws[:, :CROP_ATTEMPTS]) * size * size
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = np.exp(low + (high - low) * draws[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS])
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= size) & (heights > 0) & (heights <= size)
    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)
    width = np.where(found, np.take_along_axis(widths, first, axis=1)[:, 0], size)
    height = np.where(found, np.take_along_axis(heights, first, axis=1)[:, 0], size)
    top, left = (np.floor(draws[:, -2:].T * (size - np.stack([height, width]) + 1))).astype(np.float64)
    return np.stack([top, left, height, width], axis=1).astype(np.float32)


def apply_view(images: Tensor, parameters: ViewParameters, out_size: int) -> Tensor:
    """Crop, flip, change colours, blur and normalise.

    Args:
        images: uint8 [B, S, S, 3].
        parameters: Of the same B images.
        out_size: Side of the view.

    Returns:
        Normalised float32 [B, 3, out_size, out_size].
    """
    rows, columns = _matrices(parameters, images.shape[1], out_size, images.device)
    x = pixels.resample(images.float() / 255, rows, columns).clamp_(0, 1)
    for position in range(len(COLOUR_OPERATIONS)):
        for number, operation in enumerate(COLOUR_OPERATIONS):
            chosen = _indices(parameters.jitter & (parameters.order[:, position] == number), x.device)
            factors = parameters.factors[:, number].to(x.device, non_blocking=True)
            if len(chosen):
                x[chosen] = operation(x[chosen], factors[chosen])
    if len(chosen := _indices(parameters.greyscale, x.device)):
        x[chosen] = pixels.greyscale(x[chosen]).expand(-1, 3, -1, -1)
    if len(chosen := _indices(parameters.blur, x.device)):
        x[chosen] = pixels.gaussian_blur(x[chosen], parameters.sigma.to(x.device, non_blocking=True)[chosen])
    if len(chosen := _indices(parameters.solarise, x.device)):
        x[chosen] = pixels.solarise(x[chosen])
    return normalise(x)


def apply_geometry(maps: Tensor, parameters: ViewParameters, out_size: int) -> Tensor:
    """Crop, resize and flip maps as their images were.

    Args:
        maps: For example ground-truth masks, [B, K, S, S].
        parameters: Of the same B images.
        out_size: Side of the view.

    Returns:
        float32 [B, K, out_size, out_size], clamped to the range of the input's values.
    """
    rows, columns = _matrices(parameters, maps.shape[-1], out_size, maps.device)
    values = maps.float()
    moved = pixels.resample(values.permute(0, 2, 3, 1), rows, columns)
    return moved.clamp_(values.min(), values.max())


def centre_view(images: Tensor, out_size: int) -> Tensor:
    """Whole images without randomness, for evaluation.

    Args:
        images: uint8 [B, S, S, 3].
        out_size: Side of the view.

    Returns:
        Normalised float32 [B, 3, out_size, out_size].
    """
    x = images.permute(0, 3, 1, 2).float() / 255
    return normalise(x if x.shape[-1] == out_size else pixels.resize_square(x, out_size))


def normalise(x: Tensor) -> Tensor:
    """Subtract ImageNet's mean colour and divide by its standard deviation, [B, 3, H, W]."""
    return (x - x.new_tensor(MEAN).view(1, 3, 1, 1)) / x.new_tensor(STD).view(1, 3, 1, 1)


def _matrices(
    parameters: ViewParameters, stored_size: int, out_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Crop and resize as one matrix an axis; a flip reverses the columns' rows."""
    top, left, height, width = parameters.boxes.to(device, non_blocking=True).unbind(1)
    rows = pixels.interpolation_matrix(top, height, stored_size, out_size)
    columns = pixels.interpolation_matrix(left, width, stored_size, out_size)
    flip = parameters.flip.to(device, non_blocking=True)[:, None, None]
    return rows, torch.where(flip, columns.flip(1), columns)


def _indices(chosen: Tensor, device: torch.device) -> Tensor:
    return chosen.nonzero()[:, 0].to(device, non_blocking=True)

"""Batched pixel operations with parameters per image, by torchvision's exact definitions.

Images are planar: three planes [B, H, W] of float32 in [0, 1], one tensor or a sequence. No operation depends on the
other images of the batch, and none makes the host wait for the device.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's channels, by which images are normalized."""
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
BLUR_RADIUS = 6
NO_BLUR = 1e-3
"""Standard deviation so small that all weights beside the central one underflow to 0."""
Planes = Tensor | Sequence[Tensor]
"""Red, green and blue: [3, B, H, W], or three tensors [B, H, W]."""
TAPS_AT_ONCE = 4
"""Numbers of taps, where they are few, are multiples of this one."""
_LEAST_WEIGHT = 1e-18  # the product of two is still a normal number
_TINY = 1e-30  # keeps the division finite for gray pixels, whose chroma is 0; it is then multiplied by that 0


class Kernel(NamedTuple):
    """An interpolation kernel.

    Attributes:
        support: Distance, in pixels of the coarser grid, at and beyond which the weight is 0.
        weight: Function from distances >= 0 to weights that are not normalized.
    """

    support: int
    weight: Callable[[Tensor], Tensor]


def _cubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    x = x.clamp(max=2)  # where ``far`` is 0
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)


BILINEAR = Kernel(1, lambda x: (1 - x).clamp_(min=0))
"""Triangle kernel: results stay in the range of the pixels."""
BICUBIC = Kernel(2, _cubic)
"""Keys' cubic convolution with a = -1/2: sharper, but results overshoot the range of the pixels."""


class Taps(NamedTuple):
    """Each pixel of a resized axis as a weighted sum of stored pixels.

    Attributes:
        pixels: Their numbers, [B, out_size, T]; inside the crop where weights are 0.
        weights: Their weights, which sum to 1, float32 [B, out_size, T].
    """

    pixels: Tensor
    weights: Tensor


def interpolation_taps(
    start: Tensor,
    length: Tensor,
    mirrored: Tensor,
    stored_size: int,
    out_size: int,
    kernel: Kernel,
    dense: bool = False,
) -> Taps:
    """Compute weights that crop one axis and resize it, antialiased, with half-pixel centers.

    A pixel that is partly inside a crop is weighted by the part of its extent that is inside; others have weight 0.

    Args:
        start: Start of each crop in pixels, possibly fractional, float32 [B].
        length: Length of each crop in pixels, possibly fractional, > 0, float32 [B].
        mirrored: Whether to reverse the result, bool [B].
        stored_size: Pixels of the axis.
        out_size: Pixels after resizing.
        kernel: BILINEAR or BICUBIC.
        dense: Whether to weigh all stored pixels, in order, so that the weights are a matrix: more arithmetic, but
            without indices, for GPUs. Otherwise only those in reach of the kernel, in a multiple of ``TAPS_AT_ONCE``.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / out_size
    position = torch.arange(out_size, dtype=torch.float32, device=start.device)[:, None] + 0.5
    center = start + torch.where(mirrored[:, None, None], out_size - position, position) * scale
    stretch = scale.clamp(min=1)  # antialiasing: the kernel widens when shrinking, never narrows when enlarging
    if dense:
        pixel = torch.arange(stored_size, dtype=torch.float32, device=start.device)
    else:
        # A bound from sizes that the host knows; the exact number depends on ``length``, which is on the device.
        taps = math.ceil(2 * kernel.support * max(stored_size / out_size, 1)) + 1
        reached = torch.arange(taps + -taps % TAPS_AT_ONCE, dtype=torch.float32, device=start.device)
        pixel = (center - kernel.support * stretch).floor_() + reached
    weights = kernel.weight((pixel + 0.5 - center).abs_().div_(stretch))
    weights = weights * torch.minimum((start + length) - pixel, pixel + (1 - start)).clamp_(0, 1)
    # Taps beyond the crop have weight 0, so clamping their indices adds nothing to the border pixels.
    first, last = start.floor().clamp(0, stored_size - 1), (start + length).ceil().sub_(1).clamp(0, stored_size - 1)
    return Taps(pixel.clamp(first, last).expand_as(weights), weights / weights.sum(dim=2, keepdim=True))


def transform_rows(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply V pairs of matrices to each image, in two products for all channels and all V.

    Args:
        x: Images by rows, [B, S, C, S]: each row is its C channels, one after the other.
        rows: Matrices of the vertical axis, those of the same image adjacent, [B * V, H, S].
        columns: Matrices of the horizontal axis, [B * V, W, S].

    Returns:
        [B * V, H, C, W].
    """
    images, side, channels, width = x.shape
    # The V matrices of an image, one below the other, are one matrix: the image is read once and never repeated.
    x = torch.bmm(rows.reshape(images, -1, side), x.reshape(images, side, -1))
    x = torch.bmm(x.view(len(rows), -1, width), columns.mT)
    return x.view(len(rows), -1, channels, columns.shape[1])


def grayscale(x: Planes) -> Tensor:
    """Compute luma (ITU-R 601-2), [B, H, W]."""
    red, green, blue = GRAY_WEIGHTS
    return (x[0] * red).add_(x[1], alpha=green).add_(x[2], alpha=blue)


def blend_(x: Planes, own: Tensor, gray: Tensor, mean: Tensor | None = None) -> None:
    """Blend each image, in place, with its gray image and its mean gray, clamped: torchvision's linear adjustments.

    With a factor f, the weights are (f, 0, 0) for brightness, (f, 1 - f, 0) for saturation and (f, 0, 1 - f) for
    contrast; (1, 0, 0) changes no bit.

    Args:
        x: Images.
        own: Weight of the image, [B].
        gray: Weight of its gray image, [B].
        mean: Weight of the mean of its gray image, [B]; None leaves the mean out.
    """
    luma = grayscale(x)
    base = luma * gray[:, None, None]
    if mean is not None:
        base.add_(mean[:, None, None] * luma.mean(dim=(1, 2), keepdim=True))
    for plane in x:
        torch.addcmul(base, plane, own[:, None, None], out=plane).clamp_(0, 1)


def adjust_hue(x: Planes, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the hue of images by ``shift`` [B] turns of the color circle, in [-1/2, 1/2]; return three planes.

    Value and saturation of HSV are kept. HSV in closed form: the hue in sixths of a turn, in [-3, 3], is
    1 - r' + g' + b' away from red, towards the greater of green and blue, where r' = (r - min) / (max - min). In the
    inverse, each channel is a trapezoid of the hue.
    """
    red, green, blue = x
    low = torch.minimum(red, green).minimum(blue)
    chroma = torch.maximum(red, green).maximum(blue).sub_(low)
    from_red = (green + blue).sub_(red).sub_(low).add_(chroma).div_(chroma.clamp(min=_TINY))
    hue = from_red.copysign_(green - blue).add_(6 * shift[:, None, None])
    hue.sub_((hue / 6).round_(), alpha=6)  # wrapped back to [-3, 3]
    trapezoids = (2 - hue.abs(), (hue + 1).abs_().sub_(1), (hue - 1).abs_().sub_(1))
    red, green, blue = (torch.addcmul(low, chroma, height.clamp_(0, 1)) for height in trapezoids)
    return red, green, blue


def blur_taps(sigma: Tensor, size: int) -> Taps:
    """Compute how an axis is blurred by a Gaussian of 13 taps with reflected borders; for CPUs.

    Args:
        sigma: Standard deviations in pixels, > 0, [B].
        size: Pixels of the axis, > 6.

    Returns:
        The pixels that each one becomes a sum of, [size, 16], and their weights for each image, [B, 16].
    """
    distance = torch.arange(size)[:, None] + torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    reflected = size - 1 - (size - 1 - distance.abs()).abs()
    weights = _blur_weights(sigma)
    missing = (0, -weights.shape[1] % TAPS_AT_ONCE)
    return Taps(functional.pad(reflected, missing), functional.pad(weights, missing))


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Compute matrices [B, size, size] that blur an axis as ``blur_taps`` do; the identity for ``NO_BLUR``."""
    weights = _blur_weights(sigma)
    taps = weights.shape[1]
    # [source, target, tap]: 1 where the tap of the target is the source, or its reflection at a border.
    units = functional.pad(torch.eye(size, device=sigma.device), (BLUR_RADIUS, BLUR_RADIUS), mode="reflect")
    reached = units.unfold(1, taps, 1)
    return (weights @ reached.permute(2, 1, 0).reshape(taps, -1)).view(-1, size, size)


def _blur_weights(sigma: Tensor) -> Tensor:
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    # CPUs multiply subnormal numbers a hundred times as slowly, and weights as small as these change no sum.
    weights = functional.threshold(weights, _LEAST_WEIGHT, 0)
    return weights / weights.sum(dim=1, keepdim=True)


def solarize(x: Tensor) -> Tensor:
    """Invert the values that are at least one half."""
    return torch.where(x >= 0.5, 1 - x, x)


def resize_square(x: Tensor, out_size: int) -> Tensor:
    """Resize [3, B, S, S] to [3, B, out_size, out_size], antialiased bicubic, clamped to [0, 1]."""
    resized = functional.interpolate(x, size=(out_size, out_size), mode="bicubic", antialias=True)
    return resized.clamp_(0, 1)

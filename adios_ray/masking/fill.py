"""The content of hidden pixels: x (1 - m) + m fill(x). The paper leaves zeros, the mean color of normalized images.

A fill is a function of the view and of one random number for each image, never of the mask. It is made once for a view
and serves all N masks, both passes of an alternating step, and micro-batches, which split the images only after they
are filled.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.devices import copied_to
from adios_ray.masking.schemes import Draws

BLUR_SIGMA = 10 / 224
"""Standard deviation of the blur as a share of the image's side: 10 of 224 pixels in the code of Chin et al. 2024."""
HIGHPASS_SIGMA = 5 / 224
"""That of the blur which a high-pass subtracts: 5 of 224 pixels in the same code."""
SUPPORT = 3
"""Reach of the Gaussian in standard deviations; 0.3 % of its weight is beyond."""
# SplitMix64's increment and factors (Steele et al. 2014), as in ``data/counter_random.py``, but signed.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))


def hide(x: Tensor, mask: Tensor, fill: Tensor | None = None) -> Tensor:
    """Replace hidden pixels, with gradient to the mask.

    Args:
        x: Normalized images [B, 3, S, S].
        mask: [B, 1, S, S] in [0, 1]; 1 hides the pixel.
        fill: Content of hidden pixels, [B, 3, S, S]; None makes them 0.

    Returns:
        x (1 - m) + m fill, [B, 3, S, S].
    """
    visible = x * (1 - mask)
    return visible if fill is None else torch.addcmul(visible, mask, fill)


def make_fill(name: str, x: Tensor, draws: Draws) -> Tensor | None:
    """Make what hidden pixels of a view become.

    Args:
        name: A value of ``masking.fill``.
        x: Normalized images [B, 3, S, S].
        draws: One uniform number in [0, 1) for each image, [B]; noise and mix use it.

    Returns:
        [B, 3, S, S], or None for "zero".
    """
    return None if name == "zero" else FILLS[name](x, draws)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian with reflected borders.

    Args:
        x: Images [B, 3, S, S].
        sigma: Standard deviation as a share of the side S, below 1/3.
    """
    size = x.shape[-1]
    radius = round(SUPPORT * sigma * size)
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    weights = (-0.5 * (taps / (sigma * size)) ** 2).softmax(dim=0)  # a Gaussian that sums to 1
    # Reflected unit vectors: column i of the matrix has the weights of all pixels in pixel i of the result. A product
    # with it costs the same for every sigma.
    units = functional.pad(torch.eye(size, dtype=x.dtype, device=x.device), (radius, radius), mode="reflect")
    matrix = units.unfold(1, len(taps), 1) @ weights
    return matrix.T @ x @ matrix


def noise(x: Tensor, draws: Draws) -> Tensor:
    """Draw independent normal values with the mean and deviation of normalized pixels, 0 and 1.

    They are numbers of SplitMix64, whose state follows from the image's own draw, by the formula of Box and Muller.
    """
    # Of all images at once, by counters: generators would need a call for each image.
    seeds, values = copied_to(torch.from_numpy((draws * 2**53).astype(np.int64)), x.device), x[0].numel()
    counters = torch.arange(1, -(-values // 2) + 1, device=x.device) * _GOLDEN
    bits = _mixed(_mixed(seeds)[:, None] + counters)
    first, second = ((half & 0xFFFFFFFF).to(x.dtype) for half in (bits, bits >> 32))
    radius, angle = ((first + 0.5) * 2**-32).log().mul(-2).sqrt(), second * (2 * math.pi * 2**-32)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :values]
    return torch.empty_like(x).copy_(normal.view_as(x))


def _mixed(values: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64 to int64 values: every input bit reaches every output bit."""
    for shift, factor in _FACTORS:
        # Shifts of signed numbers repeat the sign.
        values = (values ^ (values >> shift & 2 ** (64 - shift) - 1)) * factor
    return values


def mix(x: Tensor, draws: Draws) -> Tensor:
    """Choose another image of the worker's batch for each image, each of the others equally likely."""
    others = len(x) - 1
    partners = (np.arange(len(x)) + 1 + (draws * others).astype(np.int64)) % len(x)
    return x[copied_to(torch.from_numpy(partners), x.device)]


FILLS: Mapping[str, Callable[[Tensor, Draws], Tensor]] = {
    "blur": lambda x, draws: blur(x, BLUR_SIGMA),
    "highpass": lambda x, draws: x - blur(x, HIGHPASS_SIGMA),
    "noise": noise,
    "mix": mix,
}
"""Fills by name; "zero" needs none."""

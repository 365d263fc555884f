"""Standard errors over images: of means, and by the jackknife of measures that are no means."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from adios_ray.data.counter_random import permutation

BLOCKS = 10
"""Blocks of images of the jackknife, each of which costs the measure once more."""


def standard_error(outcomes: Tensor) -> float | None:
    """Estimate the standard error of the mean of outcomes [M]: their standard deviation over sqrt(M).

    Returns:
        None for fewer than two outcomes.
    """
    if len(outcomes) < 2:
        return None
    return float(outcomes.double().std(correction=1)) / math.sqrt(len(outcomes))


def jackknife(measure: Callable[[Tensor], float], images: int, blocks: int = BLOCKS) -> float | None:
    """Estimate a measure's standard error over images by the delete-a-group jackknife (Kott 2001).

    The images are parted at random, but the same way at each call, into G blocks. With theta_g the measure without
    block g, the squared error is (G - 1) / G times the sum over g of (theta_g - mean of theta)^2.

    Args:
        measure: Computes the measure of some of the images, whose indices it is given, int64 [m], ascending.
        images: Number of images M.
        blocks: Number of blocks G; M where there are fewer images.

    Returns:
        None for fewer than two images, or where a measure without one block is not finite.
    """
    blocks = min(blocks, images)
    if blocks < 2:
        return None
    # At random: consecutive images may be of one class, and every tenth image, of all classes alike.
    block = torch.from_numpy(permutation(0, 0, images)) % blocks
    left_out = torch.tensor(
        [measure((block != number).nonzero()[:, 0]) for number in range(blocks)], dtype=torch.float64
    )
    if not left_out.isfinite().all():
        return None
    return math.sqrt((blocks - 1) / blocks * float((left_out - left_out.mean()).square().sum()))

"""The price of a mask that takes nothing or everything (paper, Equation 7), and of masks of equal size."""

import math

import torch
from torch import Tensor

POLE_MARGIN = 1e-4


def sparsity(masks: Tensor) -> Tensor:
    """p(m) = 1 / sin(pi * mean of m) for each mask, at least 1 (paper, Equation 7).

    The mean is kept ``POLE_MARGIN`` away from the poles at 0 and 1, where value and slope would be infinite; the
    gradient still passes, so that a mask at a pole is pushed away from it.

    Args:
        masks: [B, N, H, W] in [0, 1].

    Returns:
        [B, N], finite.
    """
    mean = masks.mean(dim=(2, 3))
    inside = mean + (mean.clamp(POLE_MARGIN, 1 - POLE_MARGIN) - mean).detach()
    return 1 / torch.sin(math.pi * inside)


def size_entropy(masks: Tensor, views: int = 1) -> Tensor:
    """Sum the negative entropies of the images' mask sizes: E = sum of softmax(s) log softmax(s).

    A term of the authors' code that the paper does not have. s are the mean values of an image's masks, those of both
    views in one softmax where both are masked.

    Args:
        masks: [views * B, N, H, W] in [0, 1], one view after the other.
        views: Masked views of each image, 1 or 2.

    Returns:
        A scalar in [-B log(views * N), 0].
    """
    sizes = torch.cat(masks.mean(dim=(2, 3)).chunk(views), dim=1)
    logarithms = sizes.log_softmax(dim=1)
    return (logarithms.exp() * logarithms).sum()

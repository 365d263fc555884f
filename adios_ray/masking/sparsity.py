"""Penalties on masks: on those that remove nothing or everything (paper, Equation 7), and on unequal sizes."""

import math

import torch
from torch import Tensor

POLE_MARGIN = 1e-4
"""Smallest distance of a mask's mean from 0 and 1; the penalty is then at most 3,183."""


def sparsity(masks: Tensor) -> Tensor:
    """Compute p(m) = 1 / sin(pi * mean of m) for each mask (paper, Equation 7).

    The mean is kept ``POLE_MARGIN`` away from the poles at 0 and 1, where value and slope would be infinite.

    Args:
        masks: [B, N, S, S] in [0, 1].

    Returns:
        [B, N], at least 1 and finite.
    """
    mean = masks.mean(dim=(2, 3))
    # A straight-through clamp: its value is clamped, its gradient is 1. Plain clamp() has gradient 0 outside, and would
    # leave a mask at a pole where it is.
    inside = mean + (mean.clamp(POLE_MARGIN, 1 - POLE_MARGIN) - mean).detach()
    return 1 / torch.sin(math.pi * inside)


def size_entropy(masks: Tensor, views: int) -> Tensor:
    """Sum the negative entropies of the images' mask sizes: E = sum of softmax(s) log softmax(s).

    A term of the authors' code, not in the paper. s are the mean values of an image's masks; where both views are
    masked, one softmax is over the masks of both.

    Args:
        masks: [views * B, N, S, S] in [0, 1], one view after the other.
        views: Masked views of each image, 1 or 2.

    Returns:
        A scalar in [-B log(views * N), 0].
    """
    sizes = torch.cat(masks.mean(dim=(2, 3)).chunk(views), dim=1)
    logarithms = sizes.log_softmax(dim=1)
    return (logarithms.exp() * logarithms).sum()

"""Interfaces of masking schemes that are not learned.

A mask of 1 removes the pixel. Functions take uniform random numbers, one row for each image, instead of drawing them,
so that an image's masks depend on its own row alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Draws = npt.NDArray[np.float64]
IDS = 255
"""Largest number of an object in an instance map."""


class PatternScheme(NamedTuple):
    """A scheme whose masks do not depend on the image.

    Attributes:
        draws: Uniform numbers needed for each image.
        make: Maps these numbers, [B, draws], and the image's side S to masks [B, 1, S, S].
    """

    draws: int
    make: Callable[[Draws, int], Tensor]


class ObjectScheme(NamedTuple):
    """A scheme whose masks are made from instance maps.

    Masks are made at the stored resolution, since they are cropped, resized and flipped together with their image.

    Attributes:
        make: Maps instance maps, uint8 [B, S, S] with 0 for the background, the number of slots, and uniform numbers
            [B, ``IDS``] to masks, bool [B, N, S, S].
        of_another_image: Whether the maps are taken from other images.
    """

    make: Callable[[Tensor, int, Draws], Tensor]
    of_another_image: bool = False


def remove_cells(order: Draws, count: int | npt.NDArray[np.int64], side: int, image_size: int) -> Tensor:
    """Remove cells of a square grid that covers the image, whatever its size.

    Args:
        order: [B, side * side]; the cells with the smallest numbers are removed.
        count: How many, for all images or for each, [B, 1].
        side: Cells a side.
        image_size: Side S in pixels.

    Returns:
        Zeros and ones, float32 [B, 1, S, S].
    """
    ranks = order.argsort(axis=1).argsort(axis=1)
    grid = torch.from_numpy((ranks < count).astype(np.float32)).view(-1, 1, side, side)
    return functional.interpolate(grid, (image_size, image_size), mode="nearest")

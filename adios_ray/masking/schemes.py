"""Masking schemes that are not learned, as baselines (paper, Section 4.2, Figure 9).

A mask of 1 removes the pixel. Functions take uniform random numbers, one row for each image, instead of drawing them,
so that an image's masks depend on its own row alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Draws = npt.NDArray[np.float64]

PATCHES_A_SIDE = 6
"""The paper's patches of 16 pixels in images of 96."""
PATCHES_REMOVED = 0.75
BLOCKS = 64
BLOCKS_REMOVED = 0.3
SMALLEST_BLOCK = 64 / 96**2
"""Share of the image's area: the paper's 64 pixels in images of 96."""
BLOCK_RATIOS = (0.3, 1 / 0.3)
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


def patch_masks(draws: Draws, image_size: int) -> Tensor:
    """Remove three quarters of the square patches on a grid (He et al. 2021).

    Args:
        draws: [B, 36]; the patches with the smallest numbers are removed.
        image_size: Side S in pixels.

    Returns:
        Zeros and ones, float32 [B, 1, S, S].
    """
    count = PATCHES_A_SIDE**2
    removed = np.zeros((len(draws), count), np.float32)
    np.put_along_axis(removed, np.argsort(draws, axis=1)[:, : round(PATCHES_REMOVED * count)], 1, axis=1)
    grid = torch.from_numpy(removed).view(-1, 1, PATCHES_A_SIDE, PATCHES_A_SIDE)
    return functional.interpolate(grid, (image_size, image_size), mode="nearest")


def block_masks(draws: Draws, image_size: int) -> Tensor:
    """Remove rectangles until three tenths of the image are removed (Bao et al. 2021, Algorithm 1).

    A block's area is between 64 pixels of 96 x 96 and what remains to be removed, so that the last block overshoots by
    hardly more than the smallest one. Its aspect ratio is log-uniform between 0.3 and 3.3, as in that paper's code. At
    most 64 blocks are tried, which sufficed for each of 100,000 images.

    Args:
        draws: [B, 256]: area, ratio, top and left of each block.
        image_size: Side S in pixels.

    Returns:
        Zeros and ones, float32 [B, 1, S, S].
    """
    size, pixels = np.arange(image_size), image_size**2
    low, high = (math.log(ratio) for ratio in BLOCK_RATIOS)
    mask = np.zeros((len(draws), image_size, image_size), bool)
    # One block of all images at a time; images that have enough removed take no further ones.
    for area, ratio, top, left in draws.T.reshape(BLOCKS, 4, -1):
        missing = BLOCKS_REMOVED - mask.mean(axis=(1, 2))
        if not (missing > 0).any():
            break
        wanted = (SMALLEST_BLOCK + area * np.maximum(missing - SMALLEST_BLOCK, 0)) * pixels
        aspect = np.exp(low + ratio * (high - low))
        height = np.clip(np.rint(np.sqrt(wanted * aspect)), 1, image_size)
        width = np.clip(np.rint(np.sqrt(wanted / aspect)), 1, image_size)
        first_row = np.floor(top * (image_size - height + 1))
        first_column = np.floor(left * (image_size - width + 1))
        rows = (size >= first_row[:, None]) & (size < (first_row + height)[:, None]) & (missing > 0)[:, None]
        columns = (size >= first_column[:, None]) & (size < (first_column + width)[:, None])
        mask |= rows[:, :, None] & columns[:, None, :]
    return torch.from_numpy(mask[:, None].astype(np.float32))


def object_masks(instances: Tensor, slots: int, draws: Draws) -> Tensor:
    """Put one object into each slot and everything else into the last slot, as in the authors' code.

    If there are more objects than slots, a random subset is chosen; slots without an object are empty.

    Args:
        instances: Instance maps, uint8 [B, S, S]; 0 is the background.
        slots: Number of masks N, at least 2.
        draws: Uniform numbers [B, ``IDS``], one for each possible object; the smallest are chosen.

    Returns:
        Bool [B, N, S, S].
    """
    objects = _drawn_objects(instances, slots - 1, draws)
    return torch.cat([objects, ~objects.any(dim=1, keepdim=True)], dim=1)


def box_masks(instances: Tensor, slots: int, draws: Draws) -> Tensor:
    """Put the bounding box of one object into each slot; otherwise like ``object_masks``."""
    objects = _drawn_objects(instances, slots - 1, draws)
    boxes = _span(objects.any(dim=3))[:, :, :, None] & _span(objects.any(dim=2))[:, :, None, :]
    return torch.cat([boxes, ~boxes.any(dim=1, keepdim=True)], dim=1)


def foreground_masks(instances: Tensor, slots: int, draws: Draws) -> Tensor:
    """Put all objects into one slot and the background into another, bool [B, 2, S, S]; ``slots`` is ignored."""
    foreground = instances > 0
    return torch.stack([foreground, ~foreground], dim=1)


def _drawn_objects(instances: Tensor, count: int, draws: Draws) -> Tensor:
    """Choose ``count`` objects in a random order, bool [B, count, S, S]; empty masks where there are fewer."""
    present = torch.zeros(len(instances), IDS + 1, dtype=torch.bool)
    present.scatter_(1, instances.flatten(1).long(), True)
    # One number for each possible object: the order of two objects does not depend on which others are present.
    keys = torch.from_numpy(draws).masked_fill(~present[:, 1:], math.inf)
    order = keys.argsort(dim=1)[:, :count]
    chosen = torch.where(keys.gather(1, order) < math.inf, order + 1, -1)
    return instances[:, None].long() == chosen[:, :, None, None]


def _span(occupied: Tensor) -> Tensor:
    """Fill between the first and the last True of bool [B, N, S]."""
    forward, backward = occupied.cummax(dim=2).values, occupied.flip(2).cummax(dim=2).values.flip(2)
    return forward & backward


PATTERN_SCHEMES: Mapping[str, PatternScheme] = {
    "mae": PatternScheme(PATCHES_A_SIDE**2, patch_masks),
    "beit": PatternScheme(4 * BLOCKS, block_masks),
}
OBJECT_SCHEMES: Mapping[str, ObjectScheme] = {
    "ground-truth": ObjectScheme(object_masks),
    "fg-bg": ObjectScheme(foreground_masks),
    "box": ObjectScheme(box_masks),
    "shuffle": ObjectScheme(object_masks, of_another_image=True),
}

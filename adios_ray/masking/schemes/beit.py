"""Random blocks (Bao et al. 2021)."""

import math

import numpy as np
import torch
from torch import Tensor

from adios_ray.masking.schemes.base import Draws, PatternScheme

BLOCKS = 64
BLOCKS_REMOVED = 0.3
SMALLEST_BLOCK = 64 / 96**2
"""Share of the image's area: the paper's 64 pixels in images of 96."""
BLOCK_RATIOS = (0.3, 1 / 0.3)


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


BEIT = PatternScheme(4 * BLOCKS, block_masks)

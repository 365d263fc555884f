"""Random cells of a grid, as in Masked Siamese ConvNets (Jing et al. 2022), with the numbers of Chin et al. 2024."""

import numpy as np
from torch import Tensor

from adios_ray.masking.schemes.base import Draws, PatternScheme, remove_cells

CELLS_A_SIDE = 7
"""Cells of 32 pixels in images of 224."""
REMOVED = (0.05, 0.25)
"""Bounds of the share of cells that are removed from a query in the code of Chin et al."""


def grid_masks(draws: Draws, image_size: int) -> Tensor:
    """Remove a random share of the cells of a grid, at random places.

    Not taken over: the same code takes another mask for each color channel in some images and removes all but a square
    in others (focal masks), and it balances object and background by the saliency of a pretrained network. The noise
    inside its masks is ``masking.fill noise``.

    Args:
        draws: [B, 50]: the share, then a number for each cell; those with the smallest numbers are removed.
        image_size: Side S in pixels.

    Returns:
        Zeros and ones, float32 [B, 1, S, S].
    """
    low, high = REMOVED
    count = np.floor((low + (high - low) * draws[:, :1]) * CELLS_A_SIDE**2).astype(np.int64)
    return remove_cells(draws[:, 1:], count, CELLS_A_SIDE, image_size)


GRID = PatternScheme(1 + CELLS_A_SIDE**2, grid_masks)

"""Filtered noise (ColorMAE, Hinojosa et al. 2024), in the color that the paper found best: green, a middle band."""

import numpy as np
from torch import Tensor

from adios_ray.masking.schemes.base import Draws, PatternScheme, remove_cells

CELLS_A_SIDE = 14
"""The paper's patches of 16 pixels in images of 224."""
REMOVED = 0.75
SIGMAS = (0.75, 1.5)
"""Standard deviations in cells of the two Gaussians whose difference is the filter. Our choice, since the paper's code
downloads finished noise: the filter is strongest at 0.2 cycles a cell, in the middle between 0 and 1/2."""


def green_noise_masks(draws: Draws, image_size: int) -> Tensor:
    """Remove three quarters of the patches: those where band-pass noise is lowest.

    Args:
        draws: White noise, [B, 196], a number for each patch.
        image_size: Side S in pixels.

    Returns:
        Zeros and ones, float32 [B, 1, S, S].
    """
    return remove_cells(green_noise(draws), round(REMOVED * CELLS_A_SIDE**2), CELLS_A_SIDE, image_size)


def green_noise(draws: Draws) -> Draws:
    """Filter white noise by the difference of two Gaussians, which suppresses low and high frequencies.

    The filter wraps around the image's borders, so that its noise has the same statistics everywhere.

    Args:
        draws: [B, 196].

    Returns:
        [B, 196], with mean 0 in each image.
    """
    white = draws.reshape(-1, CELLS_A_SIDE, CELLS_A_SIDE)
    squared = np.fft.fftfreq(CELLS_A_SIDE)[:, None] ** 2 + np.fft.rfftfreq(CELLS_A_SIDE) ** 2
    narrow, wide = (np.exp(-2 * (np.pi * sigma) ** 2 * squared) for sigma in SIGMAS)
    filtered: Draws = np.fft.irfft2(np.fft.rfft2(white) * (narrow - wide), s=white.shape[1:])
    return filtered.reshape(len(draws), -1)


COLORMAE = PatternScheme(CELLS_A_SIDE**2, green_noise_masks)

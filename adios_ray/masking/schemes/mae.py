"""Random patches (He et al. 2021)."""

from torch import Tensor

from adios_ray.masking.schemes.base import Draws, PatternScheme, remove_cells

PATCHES_A_SIDE = 6
"""The paper's patches of 16 pixels in images of 96."""
PATCHES_REMOVED = 0.75


def patch_masks(draws: Draws, image_size: int) -> Tensor:
    """Remove three quarters of the square patches on a grid.

    Args:
        draws: [B, 36]; the patches with the smallest numbers are removed.
        image_size: Side S in pixels.

    Returns:
        Zeros and ones, float32 [B, 1, S, S].
    """
    return remove_cells(draws, round(PATCHES_REMOVED * PATCHES_A_SIDE**2), PATCHES_A_SIDE, image_size)


MAE = PatternScheme(PATCHES_A_SIDE**2, patch_masks)

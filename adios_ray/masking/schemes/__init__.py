"""Masking schemes that are not learned, as baselines (paper, Section 4.2, Figure 9), one a file."""

from collections.abc import Mapping

from adios_ray.masking.schemes.base import IDS, Draws, ObjectScheme, PatternScheme
from adios_ray.masking.schemes.beit import BEIT
from adios_ray.masking.schemes.colormae import COLORMAE
from adios_ray.masking.schemes.grid import GRID
from adios_ray.masking.schemes.mae import MAE
from adios_ray.masking.schemes.objects import BOX, FOREGROUND, GROUND_TRUTH, SHUFFLE

__all__ = ["IDS", "OBJECT_SCHEMES", "PATTERN_SCHEMES", "Draws"]

PATTERN_SCHEMES: Mapping[str, PatternScheme] = {"mae": MAE, "beit": BEIT, "grid": GRID, "colormae": COLORMAE}
OBJECT_SCHEMES: Mapping[str, ObjectScheme] = {
    "ground-truth": GROUND_TRUTH,
    "fg-bg": FOREGROUND,
    "box": BOX,
    "shuffle": SHUFFLE,
}

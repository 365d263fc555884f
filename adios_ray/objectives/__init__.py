"""The distances that encoder and occlusion model fight over, one file each."""

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Objective, View
from adios_ray.objectives.byol import BYOL
from adios_ray.objectives.simclr import SimCLR
from adios_ray.objectives.simsiam import SimSiam

__all__ = ["OBJECTIVES", "Objective", "View", "build_objective"]

OBJECTIVES: dict[str, type[Objective]] = {"simclr": SimCLR, "simsiam": SimSiam, "byol": BYOL}


def build_objective(config: ObjectiveConfig, features: int) -> Objective:
    """The configured objective with its heads on ``features``-wide backbone outputs."""
    return OBJECTIVES[config.name](config, features)

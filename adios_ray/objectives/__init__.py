"""The distances that encoder and occlusion model fight over, one file each."""

import importlib

from adios_ray.config import OBJECTIVES, ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective

__all__ = ["Embedding", "Objective", "build_objective", "objective_class"]


def objective_class(name: str) -> type[Objective]:
    """Import the class of an objective, by a name of ``config.OBJECTIVES``."""
    module, _, defined = OBJECTIVES[name].partition(":")
    found: type[Objective] = getattr(importlib.import_module(f"{__name__}.{module}"), defined)
    return found


def build_objective(config: ObjectiveConfig, features: int, image_size: int) -> Objective:
    """The configured objective with its heads on ``features``-wide outputs of a backbone for ``image_size`` pixels."""
    return objective_class(config.name)(config, features, image_size)

"""The distances that encoder and occlusion model fight over, one file each."""

import importlib

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Objective, View

__all__ = ["Objective", "View", "build_objective", "objective_class"]


def objective_class(name: str) -> type[Objective]:
    """The subclass of ``Objective`` that the file ``objectives/<name>.py`` defines."""
    module = importlib.import_module(f"{__name__}.{name}")
    defined = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Objective) and value.__module__ == module.__name__
    ]
    (only,) = defined
    return only


def build_objective(config: ObjectiveConfig, features: int, image_size: int) -> Objective:
    """The configured objective with its heads on ``features``-wide outputs of a backbone for ``image_size`` pixels."""
    return objective_class(config.name)(config, features, image_size)

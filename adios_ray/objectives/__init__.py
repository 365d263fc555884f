"""Self-supervised objectives, one a file: the loss that the encoder minimizes and the occlusion model maximizes."""

import importlib

from adios_ray.config import OBJECTIVES
from adios_ray.objectives.base import Embedding, Objective

__all__ = ["Embedding", "Objective", "objective_class"]


def objective_class(name: str) -> type[Objective]:
    """Import the class of an objective, by a name of ``config.OBJECTIVES``."""
    # By name, since the table is in config, which is read without torch; and only the configured file is imported.
    module, _, defined = OBJECTIVES[name].defined.partition(":")
    found: type[Objective] = getattr(importlib.import_module(f"{__name__}.{module}"), defined)
    return found

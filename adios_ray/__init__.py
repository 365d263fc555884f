"""ADIOS (adversarial masking for self-supervised learning) trained by a population that tunes itself."""

from pathlib import Path
from typing import TYPE_CHECKING

from adios_ray.errors import (
    AdiosRayError,
    CheckpointError,
    ConfigError,
    DatasetError,
    InputError,
    RecordError,
    RunError,
    StorageError,
)

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"
__all__ = [
    "AdiosRayError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "InputError",
    "RecordError",
    "RunError",
    "StorageError",
    "load_encoder",
    "load_occlusion_model",
]


def load_encoder(path: str | Path) -> "nn.Module":
    """The encoder that a training made, to be used without the rest of this package.

    Args:
        path: A weights file, a checkpoint directory of a run, or an exported encoder with its JSON beside it.

    Returns:
        A module in evaluation mode from images [B, 3, S, S], normalized with ImageNet's mean and deviation, to features
        [B, F].

    Raises:
        ConfigError: If the file is missing or something else.
        CheckpointError: If it is damaged.
    """
    from adios_ray.models import export  # here, because it imports torch

    return export.load_encoder(Path(path))


def load_occlusion_model(path: str | Path) -> "nn.Module":
    """The occlusion model that a training made.

    Args:
        path: A weights file or a checkpoint directory of a run.

    Returns:
        A module in evaluation mode from images [B, 3, S, S] of the side it was trained for, normalized as for
        ``load_encoder``, to masks [B, N, S, S] in [0, 1] that sum to one at every pixel.

    Raises:
        ConfigError: If the file is missing or something else, or has no occlusion model.
        CheckpointError: If it is damaged.
    """
    from adios_ray.models import export

    return export.load_occlusion_model(Path(path))

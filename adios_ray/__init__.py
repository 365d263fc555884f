"""ADIOS (adversarial masking for self-supervised learning) with population based training on Ray."""

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

    from adios_ray.masking.occlusion import OcclusionModel

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
    """Load a trained encoder, for use without the rest of this package.

    Args:
        path: A weights file, a checkpoint directory of a run, or an exported encoder with its JSON beside it.

    Returns:
        A module in evaluation mode from images [B, 3, S, S], normalized with ImageNet's mean and standard deviation, to
        features [B, F].

    Raises:
        ConfigError: If the file is missing or of another kind.
        CheckpointError: If it is damaged.
    """
    from adios_ray.models import export  # here, since it imports torch: "import adios_ray" alone stays fast

    return export.load_encoder(path)


def load_occlusion_model(path: str | Path) -> "OcclusionModel":
    """Load a trained occlusion model.

    Args:
        path: A weights file, a checkpoint directory of a run, or an exported occlusion model with its JSON beside it.

    Returns:
        A module in evaluation mode from images [B, 3, S, S] of the side S that it was trained on, normalized as for
        ``load_encoder``, to masks [B, N, S, S] in [0, 1] that sum to one at every pixel; 1 removes the pixel. Its
        ``token_masks(x, patch)`` averages them over the patches of a vision transformer, [B, N, L].

    Raises:
        ConfigError: If the file is missing or of another kind, or has no occlusion model.
        CheckpointError: If it is damaged.
    """
    from adios_ray.models import export

    return export.load_occlusion_model(path)

"""ADIOS (adversarial masking for self-supervised learning) with population based training on Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

    from adios_ray.api import LoadedRun
    from adios_ray.config import CentralView
    from adios_ray.evaluation.result import EvaluationResult
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
    "evaluate",
    "load_encoder",
    "load_occlusion_model",
    "load_run",
    "train",
]


def train(
    data_dir: str | Path | None = None,
    *,
    preset: str | None = None,
    family: str | None = None,
    space: str | Path | None = None,
    **settings: Any,
) -> "LoadedRun":
    """Train a population that tunes itself, like ``adios-ray train``; returns when the run has finished.

    It joins the Ray cluster of this process, of ``RAY_ADDRESS`` or of ``ray start``, or starts one on this machine.

    Args:
        data_dir: Directory or URI of a data set made by ``adios-ray prepare``; not needed with ``preset="demo"``.
        preset: ``demo``, or the data set of published settings: ``in100s``, ``in100``, ``stl10``, ``clevr``.
        family: Source of the published settings: ``paper`` or ``authors``.
        space: YAML file of a search space, or the name of one that comes with the package; None takes ``pbt_in100``,
            or ``pbt_demo`` for the demo.
        **settings: Any configuration value: ``epochs=100``, ``population=8``, ``name="first"``, and for those in
            sections ``masking={"slots": 6, "sparsity_weight": 0.4}``. With a ``name``, the same call again resumes
            the run, or returns it if it has finished.

    Returns:
        The run.

    Raises:
        ConfigError: If a setting is unknown, out of range, or does not fit the data, storage or cluster.
        DatasetError: If the data set cannot be used.
        RunError: If the run could not finish; the same call with a ``name`` resumes it.
    """
    from adios_ray import api

    return api.train(data_dir, preset=preset, family=family, space=space, **settings)


def evaluate(
    checkpoint: str | Path | Sequence[str | Path],
    data_dir: str | Path,
    kind: str = "knn",
    *,
    split: Literal["val", "test"] = "test",
    view: "CentralView | None" = None,
    averaged: bool = False,
    seed: int = 0,
    **options: Any,
) -> "EvaluationResult":
    """Evaluate a frozen encoder by one of the field's protocols, like ``adios-ray evaluate``.

    Args:
        checkpoint: Checkpoint directory of a run, or a weights file; of several, scores are means, with errors.
        data_dir: Directory or URI of a data set made by ``adios-ray prepare``.
        kind: ``knn``, ``linear``, ``clustering``, ``multilabel``, ``segmentation``, ``labelfree``, ``robustness``,
            ``transfer`` or ``all``.
        split: Split that is reported; settings are chosen on val.
        view: Part of each photograph, ``square`` or ``resize-256``; None takes the checkpoint's.
        averaged: Whether to evaluate the checkpoints' averaged weights.
        seed: Seed of everything that is drawn, >= 0.
        **options: Options of the kind, such as ``epochs=50`` of ``linear``.

    Returns:
        Scores by name with standard errors, settings, and checksums of weights and data.

    Raises:
        UsageError: If there is no such kind or option, or its value is out of range.
        CheckpointError: If a checkpoint cannot be used.
        DatasetError: If the data set cannot be used.
        EvaluationError: If the data do not allow this evaluation.
    """
    from adios_ray import api

    return api.evaluate(checkpoint, data_dir, kind, split=split, view=view, averaged=averaged, seed=seed, **options)


def load_run(path: str | Path) -> "LoadedRun":
    """Open a run directory for reading, finished or in progress: its tables need neither torch nor Ray.

    Args:
        path: The run directory.

    Returns:
        The run: ``results``, ``exploits``, ``refusals`` and ``drops`` as pyarrow tables (``.to_pandas()``), ``config``,
        ``summary``, ``best_checkpoint``, ``masks(trial, epoch)``.

    Raises:
        ConfigError: If it is not a run directory.
    """
    from adios_ray import api

    return api.load_run(path)


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

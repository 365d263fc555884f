"""Train, evaluate, and read runs and weights from Python: the functions that ``adios_ray`` offers under its own name.

Each imports torch and Ray itself, if it needs them.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from adios_ray.config import CentralView, Seed, Strict, replaced
from adios_ray.errors import ConfigError, RecordError, UsageError
from adios_ray.places import require_local
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking import decisions, records, results, run_masks
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.results import COLUMNS
from adios_ray.tracking.run_masks import MaskFile
from adios_ray.validation import leaves, parse

if TYPE_CHECKING:
    from torch import nn

    from adios_ray.evaluation.result import EvaluationResult
    from adios_ray.masking.occlusion import OcclusionModel


@dataclass(frozen=True)
class LoadedRun:
    """A run directory, read when asked for: also that of a run in progress.

    Attributes:
        path: The run directory.
    """

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as in ``config.json``."""
        return records.read_config(self.path)

    @cached_property
    def results(self) -> pa.Table:
        """A row for each report, by trial and epoch; searched values are columns named by their paths."""
        rows = results.read_results(self.path)
        searched = dict.fromkeys(path for row in rows for path in row.values)
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
        return pa.table(columns | {path: [row.values.get(path) for row in rows] for path in searched})

    @cached_property
    def exploits(self) -> pa.Table:
        """A row for each copy, in the order of the decisions: trial, donor, their scores, z, p, and values.

        With ``explore_without_copy`` also for each change of values without a copy: its donor is the trial itself.
        Searched values before and after are columns ``old.PATH`` and ``new.PATH``.
        """
        return _table(
            {
                **exploit.model_dump(exclude={"old", "new", "scores"}),
                "score": exploit.scores.get(exploit.trial),
                "donor_score": exploit.scores.get(exploit.donor),
                **{f"old.{path}": value for path, value in exploit.old.items()},
                **{f"new.{path}": value for path, value in exploit.new.items()},
            }
            for exploit in decisions.read_lineage(self.path)
        )

    @cached_property
    def refusals(self) -> pa.Table:
        """A row for each refused copy, in the order of the decisions."""
        return _table(refusal.model_dump(exclude={"refused"}) for refusal in decisions.read_refusals(self.path))

    @cached_property
    def drops(self) -> pa.Table:
        """A row for each trial that left in the opening."""
        return _table(drop.model_dump(exclude={"dropped"}) for drop in decisions.read_drops(self.path))

    @property
    def summary(self) -> RunSummary | None:
        """The outcome; None while the run has not finished."""
        return records.read_summary(self.path)

    @property
    def best_checkpoint(self) -> Path:
        """The best trial's last checkpoint.

        Raises:
            RecordError: If the run has not finished.
        """
        if (summary := self.summary) is None:
            raise RecordError(f"{self.path} has no summary: the run has not finished; checkpoints/ has those so far")
        return RunDirectory(self.path).checkpoint(summary.best_trial, summary.best_epoch)

    def mask_epochs(self, trial: str) -> list[int]:
        """List the epochs at which a trial's masks were stored, ascending."""
        return run_masks.mask_epochs(self.path, trial)

    def masks(self, trial: str, epoch: int) -> MaskFile:
        """Read the masks of the run's fixed validation images.

        Raises:
            FileNotFoundError: If none were stored at this epoch.
            RecordError: If the file is damaged.
        """
        return run_masks.read_masks(self.path, trial, epoch)


def _table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make a table of rows, with the columns of all of them."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def load_run(path: str | Path) -> LoadedRun:
    """Open a run directory for reading, finished or in progress: its tables need neither torch nor Ray.

    Args:
        path: The run directory.

    Returns:
        The run: ``results``, ``exploits``, ``refusals`` and ``drops`` as pyarrow tables (``.to_pandas()``), ``config``,
        ``summary``, ``best_checkpoint``, ``masks(trial, epoch)``.

    Raises:
        ConfigError: If it is not a run directory.
        UsageError: If it is a URI.
    """
    run = RunDirectory(require_local(_place(path, "path"), "path"))
    if not run.config.is_file():
        raise ConfigError(f"{path} is not a run directory: it has no {run.config.name}")
    return LoadedRun(run.path)


def train(
    data_dir: str | Path | None = None,
    *,
    preset: Literal["demo", "in100s", "in100", "stl10", "clevr"] | None = None,
    family: Literal["paper", "authors"] | None = None,
    space: str | Path | None = None,
    **settings: Any,
) -> LoadedRun:
    """Train a population that tunes itself, like ``adios-ray train``; returns when the run has finished.

    It joins the Ray cluster of this process, of ``RAY_ADDRESS`` or of ``ray start``, or starts one on this machine.

    Args:
        data_dir: Directory or URI of a data set made by ``adios-ray prepare``; not needed with ``preset="demo"``.
        preset: ``demo``, or the data set of published settings: ``in100s``, ``in100``, ``stl10``, ``clevr``.
        family: Source of the published settings: ``paper`` or ``authors``.
        space: YAML file of a search space, or the name of one that comes with the package; None takes ``pbt_in100``,
            or ``pbt_demo`` for the demo.
        **settings: Any configuration value: ``epochs=100``, ``population=8``, ``name="first"``, and for those in
            sections ``augment={"hue": 0.5, "saturation": 0.8}``. A value that the space searches is given to the first
            trial alone. With a ``name``, the same call again resumes the run, or returns it if it has finished.

    Returns:
        The run.

    Raises:
        UsageError: If ``resume`` is given (a ``name`` resumes a run), or ``storage`` is a URI.
        ConfigError: If a setting is unknown, out of range, or does not fit the data, storage or cluster.
        DatasetError: If the data set cannot be used.
        RunError: If the run could not finish; the same call with a ``name`` resumes it.
    """
    from adios_ray.experiment import runner
    from adios_ray.experiment.command import default_space, named_space
    from adios_ray.experiment.presets import preset_config

    if "resume" in settings:
        raise UsageError("train starts runs, or resumes that of a name: give name=, or use `adios-ray train --resume`")
    changes = dict(leaves(settings))
    chosen = (changes.get(path) for path in ("objective.name", "backbone.name", "masking.scheme"))
    defaults = preset_config(preset, family, *chosen)
    changes["space"] = named_space(_place(space, "space") if space is not None else default_space(preset))
    if data_dir is not None:
        changes["data_dir"] = _place(data_dir, "data_dir")
    config = replaced(defaults, changes, "train")
    require_local(config.storage, "storage")  # a run at a URI leaves nothing on this machine to be read
    return LoadedRun(runner.start(config))


KindName = Literal[
    "knn", "linear", "clustering", "multilabel", "segmentation", "labelfree", "robustness", "transfer", "all"
]


class _Common(Strict):
    """Arguments that every kind of evaluation accepts."""

    split: Literal["val", "test"]
    view: CentralView | None
    averaged: bool
    seed: Seed


def evaluate(
    checkpoint: str | Path | Sequence[str | Path],
    data_dir: str | Path,
    kind: KindName = "knn",
    *,
    split: Literal["val", "test"] = "test",
    view: CentralView | None = None,
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
        view: Part of each photograph, ``square`` or ``resize-256``; None takes the checkpoint's, or ``square`` where
            the stored images have fewer than 256 pixels a side.
        averaged: Whether to evaluate the checkpoints' averaged weights.
        seed: Seed of everything that is drawn, >= 0.
        **options: Options of the kind, such as ``epochs=50`` of ``linear``.

    Returns:
        Scores by name with standard errors, settings, and checksums of weights and data.

    Raises:
        UsageError: If there is no such kind or option, or a value is out of range.
        ConfigError: If a checkpoint is missing, or of another kind, or its backbone or view takes no such images.
        CheckpointError: If a checkpoint is damaged, or does not fit its configuration.
        DatasetError: If the data set cannot be used.
        EvaluationError: If the data do not allow this evaluation.
    """
    from rich.console import Console

    from adios_ray.commands.evaluate import Evaluate
    from adios_ray.commands.evaluation_kinds import KINDS

    several = checkpoint if isinstance(checkpoint, Sequence) and not isinstance(checkpoint, str) else [checkpoint]
    checkpoints = [_place(each, "checkpoint") for each in several]
    place = _place(data_dir, "data_dir")
    given = {"split": split, "view": view, "averaged": averaged, "seed": seed}
    common = parse(_Common, given, "evaluate", UsageError)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(f"there is no evaluation {kind!r}: choose one of {', '.join(KINDS)}")
    known = [field.name for field in fields(KINDS[kind])]  # type: ignore[arg-type]  # every kind is a dataclass
    if unknown := [name for name in options if name not in known]:
        raise UsageError(f"evaluation {kind} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    chosen = parse(KINDS[kind], options, f"evaluation {kind}", UsageError)
    return Evaluate(
        kind=chosen,  # type: ignore[arg-type]  # one of the kinds, by KINDS
        checkpoint=tuple(checkpoints),
        data_dir=place,
        **dict(common),
    ).result(Console(quiet=True))


def _place(value: Any, name: str) -> str:
    """Return an argument that names a path or URI as text.

    Raises:
        UsageError: If it is something else.
    """
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} = {value!r} must be a path or a URI")
    return os.fspath(value)


def load_encoder(path: str | Path, *, averaged: bool = False) -> "nn.Module":
    """Load a trained encoder, for use without the rest of this package.

    Args:
        path: A weights file, a checkpoint directory of a run, or an exported encoder with its JSON beside it.
        averaged: Whether to take the averaged weights (``evaluation.average_weights``), not those of the last step; not
            of an exported encoder.

    Returns:
        A module in evaluation mode from images [B, 3, S, S], normalized with ImageNet's mean and standard deviation, to
        features [B, F].

    Raises:
        ConfigError: If the file is missing or of another kind, or averaged weights are asked for that it does not have.
        CheckpointError: If it is damaged.
    """
    from adios_ray.models import export

    return export.load_encoder(_place(path, "path"), averaged)


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

    return export.load_occlusion_model(_place(path, "path"))

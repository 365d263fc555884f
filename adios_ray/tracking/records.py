"""Configuration, token and summary of a run.

These files are replaced atomically. Reading them needs neither Ray nor torch, as with all records.
"""

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, model_validator

from adios_ray.errors import RecordError
from adios_ray.files import atomic_write
from adios_ray.measures import MEASURES, Measure
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.formatting import LABELS
from adios_ray.validation import Record, parse, read_json

EARLIER_NAMES = {path.rpartition(".")[2]: path for path in LABELS}
"""Earlier versions always recorded these four values, searched or not, under the last part of their paths."""


class _Evaluation(BaseModel):
    fitness: str = "knn"


class _Measured(BaseModel):
    evaluation: _Evaluation = _Evaluation()


def measure_of(config: Mapping[str, Any], run_dir: Path) -> Measure:
    """Look up the measure that a run's configuration names; k-NN if it names none.

    Raises:
        RecordError: If it names none that is known, or has no such section.
    """
    path = RunDirectory(run_dir).config
    name = parse(_Measured, config, str(path), RecordError).evaluation.fitness
    if name not in MEASURES:
        raise RecordError(f"{path}: evaluation.fitness {name!r} is not one of {', '.join(MEASURES)}")
    return MEASURES[name]


class RunSummary(Record):
    """The outcome of a finished run: ``summary.json``. Accuracies are 0 to 1; fitness is in its measure's units."""

    best_trial: str
    """The trial with the best mean holdout fitness of its last reports."""
    best_fitness: float
    """Mean holdout fitness of the best trial's last reports, by which it was chosen."""
    best_standard_error: float | None = None
    """Standard error of ``best_fitness`` over images; None where it is unknown."""
    best_epoch: int
    """Epoch of its last report."""
    first_best_fitness: float
    """Best holdout fitness among the trials' first reports."""
    control: str | None = None
    """The best of the trials that kept the configured values; None without any."""
    gain: float | None = None
    """Fitness of the best trial minus that of the control, on the test split; on val in earlier versions."""
    gain_standard_error: float | None = None
    """Standard error of ``gain`` over images, paired where their outcomes are known; None where it is unknown."""
    test_fitness: float
    """Fitness of the best trial on the test split."""
    test_standard_error: float | None = None
    """Standard error of ``test_fitness`` over images; None where it is unknown."""
    test_accuracy: float = math.nan
    """Accuracy of the best trial on the test split; nan for measures without labels, and in earlier versions."""

    test_images: int | None = None
    """Number of test images; None in earlier versions."""
    chance: float | None = None
    """Accuracy of guessing, 1 / number of classes; None where images have several labels each."""
    majority: float | None = None
    """Share of the test images that are of the most frequent class; None where images have several labels each, and in
    earlier versions."""
    multi_label: bool = False
    """Whether images have several labels each; False in earlier versions."""
    seconds: float
    """Seconds that the run took, over all its drivers."""
    exploits: int
    """Copies of weights."""
    refusals: int = 0
    """Copies that were refused because the donor was not better by enough."""
    slot_changes: int
    """Decisions that changed the number of masks N."""
    epochs: int
    """Epochs of the run."""
    population: int
    """Number of trials."""
    dataset: str
    """Name of the data set."""
    command: str
    """The command line that repeats the run; in earlier versions that of the driver that finished it."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_version(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Translate earlier versions: fitness on test was called an accuracy, and several labels had a chance."""
        if "test_fitness" not in fields:
            fields = {"test_fitness" if name == "test_accuracy" else name: value for name, value in fields.items()}
        return fields | ({"chance": None} if fields.get("multi_label") else {})

    @property
    def imbalanced(self) -> bool:
        """Whether always naming the most frequent class is right half as often again as guessing."""
        return self.majority is not None and self.chance is not None and self.majority > 1.5 * self.chance

    @property
    def compared(self) -> str:
        """The trials behind ``gain``, for people."""
        if self.control == self.best_trial:
            return f"{self.best_trial} is itself the control"
        return f"{self.best_trial} minus {self.control}"


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration, which must hold JSON-compatible values only."""
    atomic_write(RunDirectory(run_dir).config, (json.dumps(config, indent=2) + "\n").encode())


def write_token(run_dir: Path) -> None:
    """Give a new run its token; a resumed run keeps its own."""
    atomic_write(RunDirectory(run_dir).token, secrets.token_hex(8).encode())


def read_token(run_dir: Path) -> str | None:
    """Read the run's token; None in runs of earlier versions."""
    path = RunDirectory(run_dir).token
    return path.read_text() if path.exists() else None


def write_summary(run_dir: Path, summary: RunSummary) -> None:
    """Write ``summary.json``."""
    atomic_write(RunDirectory(run_dir).summary, (summary.model_dump_json(indent=2) + "\n").encode())


def read_config(run_dir: Path) -> dict[str, Any]:
    """Read the resolved configuration; empty if there is no file.

    Raises:
        RecordError: If the file is not a JSON object.
    """
    path = RunDirectory(run_dir).config
    return read_json(dict[str, Any], path, RecordError) if path.exists() else {}


def read_summary(run_dir: Path) -> RunSummary | None:
    """Read the outcome; None while the run has not finished.

    Raises:
        RecordError: If the file has other fields.
    """
    path = RunDirectory(run_dir).summary
    return read_json(RunSummary, path, RecordError) if path.exists() else None

"""An overview of the runs in a storage directory."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adios_ray.data.claim import TRAINING, holder_of
from adios_ray.errors import InputError
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.formatting import duration
from adios_ray.tracking.lineage import best_row
from adios_ray.tracking.records import Row, RunSummary, measure_of, read_config, read_results, read_summary

State = Literal["running", "finished", "interrupted", "damaged"]


class RunStatus(NamedTuple):
    """The state of a run, by its files.

    Attributes:
        name: Name of its directory.
        state: See ``state_of``; damaged: a file cannot be read, and ``best`` says which.
        best: Its best result, for people.
        epochs: Epochs of its furthest trial, and all that were asked for; both 0 if unknown.
        age_s: Seconds since it last wrote a report, or since it began.
    """

    name: str
    state: State
    best: str
    epochs: tuple[int, int]
    age_s: float

    def text(self) -> str:
        """Describe the run in one line."""
        reached = f"epoch {self.epochs[0]} of {self.epochs[1]}, " if self.epochs[1] else ""
        return f"{self.name}: {self.state}, {reached}{self.best}, {duration(self.age_s)} ago"


def runs_in(storage: Path) -> list[RunStatus]:
    """Find all runs in a storage directory, the one that reported last first."""
    found = [_status(path.parent) for path in storage.glob(f"*/{RunDirectory(storage).config.name}")]
    return sorted(found, key=lambda run: run.age_s)


def state_of(run_dir: Path, summary: RunSummary | None) -> State:
    """Tell a run's state: finished if it has a summary, running while its driver is alive, else interrupted."""
    if summary is not None:
        return "finished"
    return "running" if holder_of(run_dir, TRAINING) is not None else "interrupted"


def _status(path: Path) -> RunStatus:
    run = RunDirectory(path)
    last = run.results if run.results.is_file() else run.config
    age_s = max(time.time() - last.stat().st_mtime, 0.0)
    try:
        config, summary, rows = read_config(path), read_summary(path), read_results(path)
    except InputError as error:
        return RunStatus(path.name, "damaged", str(error), (0, 0), age_s)
    epochs = max((row.epoch for row in rows), default=0), config.get("epochs", 0)
    return RunStatus(path.name, state_of(path, summary), _best(config, summary, rows), epochs, age_s)


def _best(config: Mapping[str, Any], summary: RunSummary | None, rows: Sequence[Row]) -> str:
    """Describe the best result: of a finished run that on the test split, else the best report."""
    measure = measure_of(config)
    if summary is not None:
        found = measure.scores_text(summary.test_fitness, summary.test_standard_error, summary.test_accuracy)
        return f"best {summary.best_trial}: {found} on test"
    row = best_row(rows)
    if row is None:
        return "no report yet"
    return f"best {row.trial}: {measure.scores_text(row.fitness, row.standard_error, row.accuracy)} on val"

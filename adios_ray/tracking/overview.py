"""An overview of the runs in a storage directory."""

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from adios_ray.data.claim import TRAINING, holder_of
from adios_ray.errors import ConfigError, InputError
from adios_ray.measures import Measure
from adios_ray.retry import promptly
from adios_ray.run_directory import RunDirectory
from adios_ray.store import Location, Store, copy_in_parallel, local_path
from adios_ray.tracking.formatting import duration
from adios_ray.tracking.lineage import best_row
from adios_ray.tracking.records import RunSummary, measure_of, read_config, read_summary
from adios_ray.tracking.results import Row, read_results

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


def runs_in(storage: Location) -> list[RunStatus]:
    """Find all runs in a storage directory or at a URI, the one that reported last first.

    Raises:
        ConfigError: If there is no such directory, a local one is itself a run, or a URI does not answer or must not be
            read.
    """
    if (path := local_path(storage)) is not None:
        if not path.is_dir():
            raise ConfigError(f"--storage {storage} is no directory: name the --storage of adios-ray train")
        if RunDirectory(path).config.is_file() and _is_run(path):
            raise ConfigError(
                f"--storage {storage} is a run: name the directory that holds it, {path.resolve().parent}"
            )
        return _runs_below(path)
    with tempfile.TemporaryDirectory(prefix="adios_ray-") as directory:
        try:
            _copy_runs(Store(storage), Path(directory))
        except OSError as error:
            raise ConfigError(f"--storage {storage} cannot be read: {error}") from None
        return _runs_below(Path(directory))


def _runs_below(storage: Path) -> list[RunStatus]:
    folders = [path.parent for path in storage.glob(f"*/{RunDirectory(storage).config.name}")]
    return sorted((_status(folder) for folder in folders if _is_run(folder)), key=lambda run: run.age_s)


def _is_run(folder: Path) -> bool:
    """Tell whether a folder with a ``config.json`` is of a run: other programs write files of that name, too."""
    run = RunDirectory(folder)
    return any(path.exists() for path in (run.space, run.results))


def _copy_runs(store: Store, directory: Path) -> None:
    """Copy the files that a status is read from, with their times: by these is told whether a driver is alive."""
    run = RunDirectory(Path())
    files = (run.config.name, run.space.name, run.summary.name, run.results.name, TRAINING.file)

    def copy(name: str) -> None:
        target = directory / name
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            store.fetch(name, target)
            changed = store.changed(name)
            os.utime(target, (changed, changed))

    names = [f"{folder}/{file}" for folder in promptly(store.names) for file in files]
    copy_in_parallel(copy, names)


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
        best, state = _best(measure_of(config, path), summary, rows), state_of(path, summary)
    except (InputError, OSError) as error:  # whatever is wrong with one run, the others are listed
        return RunStatus(path.name, "damaged", str(error), (0, 0), age_s)
    epochs = max((row.epoch for row in rows), default=0), config.get("epochs", 0)
    return RunStatus(path.name, state, best, epochs, age_s)


def _best(measure: Measure, summary: RunSummary | None, rows: Sequence[Row]) -> str:
    """Describe the best result: of a finished run that on the test split, else the best report."""
    if summary is not None:
        found = measure.scores_text(summary.test_fitness, summary.test_standard_error, summary.test_accuracy)
        return f"best {summary.best_trial}: {found} on test"
    row = best_row(rows)
    if row is None:
        return "no report yet"
    return f"best {row.trial}: {measure.scores_text(row.fitness, row.standard_error, row.accuracy)} on val"

"""All that a report shows of one run, read once from the run's files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from adios_ray.config import EVOLVING, EvaluationConfig
from adios_ray.errors import RecordError
from adios_ray.files import complete_lines
from adios_ray.measures import Measure
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking import decisions, lineage, records, results, run_masks
from adios_ray.tracking.comparison import Difference, History, Score, compared
from adios_ray.tracking.decisions import Drop, Exploit, Refusal
from adios_ray.tracking.lineage import Ancestor
from adios_ray.tracking.log import Event, read_events
from adios_ray.tracking.outcomes import read_outcomes
from adios_ray.tracking.overview import State, state_of
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.results import Row
from adios_ray.tracking.run_masks import MaskFile
from adios_ray.validation import parse, parse_json, read_json


@dataclass(frozen=True)
class Bounds:
    """The range of a searched number."""

    low: float
    high: float
    logarithmic: bool

    def position(self, value: float) -> float:
        """Return where a value is between ``low`` (0) and ``high`` (1), on the parameter's scale."""
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)


@dataclass(frozen=True)
class RunData:
    """The records of a run.

    Attributes:
        path: The run directory.
        rows: Reports, by trial and epoch.
        exploits: Copies of weights in the order of their decisions.
        refusals: Refused copies, likewise.
        drops: Trials that left in the opening, likewise.
        summary: The outcome; None of a run that has not finished.
        config: The resolved configuration.
        space: The search space as plain values; empty if none is stored.
        controls: Trials that keep the configured values and their weights.
        restarted: Epoch at which each trial had finished before the run was made longer; 0 if it had not.
        dataset: Checksum of the data; None in runs of earlier versions.
        members: Number of trials in the population; hyperopt adds each when it starts.
        events: Everything that happened, in its order; nothing in runs of earlier versions.
        damaged_events: What is wrong with each line of the events that cannot be read.
        uri: URI of the run if ``path`` is a copy.
    """

    path: Path
    rows: Sequence[Row]
    exploits: Sequence[Exploit] = ()
    refusals: Sequence[Refusal] = ()
    drops: Sequence[Drop] = ()
    summary: RunSummary | None = None
    config: Mapping[str, Any] | None = None
    space: Mapping[str, Any] | None = None
    controls: frozenset[str] = frozenset()
    restarted: Mapping[str, int] = field(default_factory=dict)
    dataset: str | None = None
    members: int = 0
    events: Sequence[Event] = ()
    damaged_events: Sequence[str] = ()
    uri: str | None = None

    @cached_property
    def state(self) -> State | Literal["not finished"]:
        """The run's state; of a copy, which lacks the driver's file, whether it has finished is all that is known."""
        if self.uri is not None and self.summary is None:
            return "not finished"
        return state_of(self.path, self.summary)

    @property
    def where(self) -> str:
        """The run's directory or URI, for command lines."""
        return str(self.path.resolve() if self.uri is None else self.uri)

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.path.resolve().name

    @cached_property
    def measure(self) -> Measure:
        """The measure of fitness."""
        return records.measure_of(self.config or {}, self.path)

    @cached_property
    def measured_by(self) -> dict[str, Any]:
        """The settings, by path, that must be those of another run for fitness to be comparable."""
        given, defaults = (self.config or {}).get("evaluation", {}), EvaluationConfig()
        names = "fitness", *self.measure.settings
        # Runs of earlier versions lack settings that did not exist.
        return {f"evaluation.{name}": given.get(name, getattr(defaults, name)) for name in names}

    @cached_property
    def by_trial(self) -> dict[str, list[Row]]:
        """Reports by trial."""
        return {trial: list(group) for trial, group in groupby(self.rows, key=lambda row: row.trial)}

    @cached_property
    def best(self) -> tuple[str, int] | None:
        """Trial and epoch of the summary's best report, or of the best so far; None before the first number."""
        if self.summary is not None and self.summary.best_trial in self.by_trial:
            return self.summary.best_trial, self.summary.best_epoch
        best = lineage.best_row(self.rows)
        return (best.trial, best.epoch) if best else None

    @property
    def without_a_score(self) -> bool:
        """Whether every trial has reported, and none a number: all diverged or collapsed; resuming would not help."""
        # A grid has a trial for each combination, and an opening more than remain.
        known = self.members > 0 and (self.space or {}).get("search") != "hyperopt"
        trials = self.members if known else (self.config or {}).get("population")
        every = not isinstance(trials, int) or len(self.by_trial) >= trials
        return bool(self.rows) and every and self.best is None

    @cached_property
    def path_of_best(self) -> list[Ancestor]:
        """The ancestry of the best report, oldest first."""
        return lineage.ancestry(self.exploits, *self.best) if self.best else []

    @cached_property
    def ancestral_rows(self) -> list[Row]:
        """The reports of the best weights and their ancestors, by epoch."""
        return self._along(self.path_of_best)

    def _along(self, path: Iterable[Ancestor]) -> list[Row]:
        return [
            row for part in path for row in self.by_trial.get(part.trial, ()) if part.after < row.epoch <= part.until
        ]

    @property
    def scheduler(self) -> str:
        """The scheduler's name; "" in runs that stored no space."""
        return str((self.space or {}).get("scheduler", ""))

    @property
    def evolves(self) -> bool:
        """Whether trials are changed while they train."""
        return self.scheduler in EVOLVING or bool(self.exploits)

    @cached_property
    def searched(self) -> list[str]:
        """Paths of the searched values."""
        return list(dict.fromkeys(path for row in self.rows for path in row.values))

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """The values that occur, as text and sorted, of each searched value that is not always a number."""
        return {
            path: sorted({str(row.values.get(path)) for row in self.rows})
            for path in self.searched
            if not all(isinstance(row.values.get(path), int | float) for row in self.rows)
        }

    @cached_property
    def bounds(self) -> dict[str, Bounds]:
        """The range of each searched number that has one."""
        return {
            path: Bounds(parameter["low"], parameter["high"], parameter.get("scale") == "log")
            for path, parameter in (self.space or {}).get("parameters", {}).items()
            if "low" in parameter and "high" in parameter
        }

    @cached_property
    def mask_epochs(self) -> dict[int, str]:
        """The trial that stored masks of the best weights or their ancestors, by epoch."""
        found = {}
        for part in self.path_of_best:
            # Masks of the epoch at which weights were copied in are still of the trial's own.
            first = 0 if part.after == 0 else part.after + 1
            for epoch in run_masks.mask_epochs(self.path, part.trial):
                if first <= epoch <= part.until:
                    found[epoch] = part.trial
        return found

    @cached_property
    def last_masks(self) -> MaskFile | None:
        """The newest stored masks of the best weights that can be read; None without any."""
        for epoch in sorted(self.mask_epochs, reverse=True):
            # The section of masks names those that cannot.
            with suppress(RecordError, OSError):
                return run_masks.read_masks(self.path, self.mask_epochs[epoch], epoch)
        return None

    @cached_property
    def has_holdout(self) -> bool:
        """Whether validation images that no decision used were set aside; small sets have none to spare."""
        return any(math.isfinite(row.holdout_fitness) and row.holdout_fitness != row.fitness for row in self.rows)

    def final_rows(self) -> list[Row]:
        """Return the last report of each trial that has a number."""
        valid = {trial: [r for r in rows if math.isfinite(r.fitness)] for trial, rows in self.by_trial.items()}
        return [rows[-1] for rows in valid.values() if rows]

    @cached_property
    def remaining(self) -> dict[str, list[Row]]:
        """Reports by trial, without the trials that left in the opening."""
        left = {drop.trial for drop in self.drops}
        return {trial: rows for trial, rows in self.by_trial.items() if trial not in left}

    @cached_property
    def lost_controls(self) -> bool:
        """Whether the run has controls, all of which diverged or collapsed."""
        last = [self.by_trial[trial][-1].fitness for trial in self.controls if trial in self.by_trial]
        return bool(last) and len(last) == len(self.controls) and all(map(math.isnan, last))

    @cached_property
    def comparable(self) -> dict[str, dict[int, Row]]:
        """Reports with a number, by trial and epoch.

        Trials that left in the opening, or have no number in their last report, are left out.
        """
        return {
            trial: {row.epoch: row for row in rows if math.isfinite(row.fitness)}
            for trial, rows in self.remaining.items()
            if math.isfinite(rows[-1].fitness)
        }

    def rows_at_common_epoch(self, trials: Iterable[str]) -> list[Row]:
        """Return the reports of comparable trials at the last epoch that all of them have; empty if there is none."""
        found = [self.comparable[trial] for trial in trials]
        # Not the least of their last epochs: a trial that copied a donor ahead of it has skipped some.
        epoch = max(set.intersection(*map(set, found)), default=None) if found else None
        return [] if epoch is None else [rows[epoch] for rows in found]

    def rows_at_one_epoch(self) -> list[Row]:
        """Return reports of comparable trials at the last epoch, of an evolving run in training the last common one."""
        if self.evolves and self.summary is None:
            return self.rows_at_common_epoch(self.comparable)
        last = max((epoch for rows in self.comparable.values() for epoch in rows), default=0)
        return [rows[last] for rows in self.comparable.values() if last in rows]

    def history(self, row: Row) -> History:
        """Return the scores of a report's weights and their ancestors, as a decision about the trial knew them.

        Reports without a number are left out, and those before the run was made longer.
        """
        rows, restarted = self._along(lineage.ancestry(self.exploits, row.trial, row.epoch)), self.restarted
        return tuple(
            _score(each) for each in rows if math.isfinite(each.fitness) and each.epoch > restarted.get(row.trial, 0)
        )

    def difference(self, first: Row, second: Row) -> Difference:
        """Compare two reports, paired where outcomes of the same images are stored."""
        outcomes = (read_outcomes(self.path, row.trial, row.epoch) for row in (first, second))
        return compared(_score(first), _score(second), *outcomes)


def _score(row: Row) -> Score:
    return Score(row.epoch, row.fitness, row.standard_error, row.trial)


def read_run(run_dir: Path, uri: str | None = None, summary: RunSummary | None = None) -> RunData:
    """Read the files of a run, or of a copy of the run at ``uri``, as they are now; ``summary`` if none is there yet.

    Raises:
        RecordError: If a file of the run is damaged.
    """
    rows = results.read_results(run_dir)
    population = _read_population(RunDirectory(run_dir))
    # Later rows of a trial are of weights that a copy of a donor behind it has replaced, until it reports again.
    epochs = {name: member.epoch for name, member in population.members.items() if member.epoch is not None}
    return RunData(
        run_dir,
        [row for row in rows if row.epoch <= epochs.get(row.trial, row.epoch)],
        decisions.read_lineage(run_dir),
        decisions.read_refusals(run_dir),
        decisions.read_drops(run_dir),
        summary or records.read_summary(run_dir),
        records.read_config(run_dir),
        _read_space(RunDirectory(run_dir).space),
        frozenset(name for name, member in population.members.items() if member.control),
        {name: member.restarted_epoch for name, member in population.members.items()},
        population.dataset,
        len(population.members),
        *read_events(run_dir),
        uri,
    )


class _Parameter(BaseModel):
    low: float | None = None
    high: float | None = None


class _Space(BaseModel):
    """The part of a search space that a report reads; ``SearchSpace`` itself belongs to a higher layer."""

    scheduler: str = ""
    interval_epochs: int = 1
    parameters: dict[str, _Parameter] = {}


def _read_space(path: Path) -> dict[str, Any]:
    """Read a search space as plain values: nothing is drawn here."""
    try:
        values = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecordError(f"{path} is a {type(values).__name__}, expected a mapping of options")
    parse(_Space, values, str(path), RecordError)
    return values


class _Member(BaseModel):
    control: bool = False
    epoch: int | None = None
    restarted_epoch: int = 0


class _Population(BaseModel):
    """The part of the population's snapshot, or of a line of its journal, that a report reads."""

    members: dict[str, _Member] = {}
    dataset: str | None = None


def _read_population(run: RunDirectory) -> _Population:
    """Read the population's snapshot, with its members as the journal has them last."""
    snapshot = read_json(_Population, run.population, RecordError) if run.population.exists() else _Population()
    members = dict(snapshot.members)
    for line in complete_lines(run.journal).splitlines():
        with suppress(RecordError):  # the population's own reader complains
            members |= parse_json(_Population, line, str(run.journal), RecordError).members
    return snapshot.model_copy(update={"members": members})

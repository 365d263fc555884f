"""A population that trains in one process, on problems whose truth is known: no network, no cluster."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from in_process import InProcess, MakeScheduler, Position

from adios_ray.backend.line import Reply
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.experiment.evolution import make_scheduler
from adios_ray.experiment.verdict import LAST_REPORTS
from adios_ray.retry import Result
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.opening import Rung
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState
from adios_ray.tracking.run import Run
from adios_ray.trial_report import TrialReport
from adios_ray.validation import parse

MEMORY = Path("/dev/shm")
"""Directory that Linux keeps in memory, because a population journals every report."""
WEIGHT, RATE, SLOTS = "masking.sparsity_weight", "optimizer.encoder_lr", "masking.slots"

Weights = tuple[Any, ...]
Values = dict[str, Any]
Measured = dict[str, Any]
"""Fields of a report."""


class Problem(Protocol):
    """A model of training.

    Attributes:
        start: Weights of a new trial.
        epochs: Epochs of a trial.
    """

    start: Weights
    epochs: int

    def train(self, weights: Weights, config: TrialConfig, epoch: int, random: np.random.Generator) -> Weights:
        """Return the weights after one more epoch, counted from 1."""

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the true fitness of weights."""

    def measure(self, weights: Weights, config: TrialConfig, random: np.random.Generator) -> Measured:
        """Return what a report says of the fitness."""

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return how long an epoch takes."""


class Reported(NamedTuple):
    """A report."""

    trial: str
    epoch: int
    fitness: float


class Stored(NamedTuple):
    """A checkpoint.

    Attributes:
        weights: The weights.
        ancestor: Trial in which they began.
        holdout: Fitness on the holdout at their last reports, by which the trial is chosen at the end.
    """

    weights: Weights
    ancestor: str
    holdout: tuple[float, ...]


class Decided(NamedTuple):
    """A copy: the true fitness of donor and trial at the decision."""

    donor: float
    trial: float


class KnownTruth:
    """A population that trains in this process on a problem, and stands in for its own records.

    Attributes:
        exploits: The copies so far.
        refusals: How many copies were refused.
        reports: All reports so far.
        members: The population.
    """

    def __init__(
        self, space: SearchSpace, problem: Problem, initial: list[Values], seed: int, directory: Path, controls: int = 0
    ) -> None:
        """Create the population.

        Args:
            space: The search space.
            problem: What is trained.
            initial: First values of each trial.
            seed: Seed of the decisions and of the noise.
            directory: Where the population keeps its journal.
            controls: How many trials, from the first on, keep their values.
        """
        self.directory, self.storage, self.problem = directory, RunStorage(directory), problem
        self.exploits, self.refusals = list[Decided](), 0
        self.reports = list[Reported]()
        self._random = np.random.default_rng(seed)
        self._stored: dict[Path, Stored] = {}
        state = PopulationState(next_decision_epoch=space.interval_epochs)
        for number, values in enumerate(initial):
            state.add(f"trial_{number:02d}", values, control=number < controls)
        RunDirectory(directory).make_folders()
        state.save(directory)
        config = parse(TrialConfig, {"epochs": problem.epochs, "seed": seed})
        self._process = InProcess(config, state, cast(Run, self), self._train)
        self.members = self._process.members

    def run(self, make: MakeScheduler, workers: int | None = None, budget: int = 0) -> None:
        """Train every trial to its end, in the order in which epochs are over.

        Args:
            make: Builds the scheduler.
            workers: Trials that train at once; None for all initial ones.
            budget: Epochs until which new trials start where earlier ones have ended; without, only the initial ones.
        """
        names = list(self.members.state.members) or [f"trial_{number:02d}" for number in range(budget)]
        enough = (lambda: len(self.reports) >= budget) if budget else (lambda: False)
        self._process.drive(make, names, workers, self.problem.seconds, enough)

    def _train(self, name: str, position: Position) -> Reply:
        before = Stored(self.problem.start, name, ())
        if position.checkpoint:
            before = self._stored[position.checkpoint.path]
        epoch = position.epoch + 1
        weights = self.problem.train(before.weights, position.config, epoch, self._random)
        measured = self.problem.measure(weights, position.config, self._random)
        report = TrialReport(epoch=epoch, done=epoch >= self.problem.epochs, **measured)
        held = report.fitness if math.isnan(report.holdout_fitness) else report.holdout_fitness
        path = self.directory / name / str(len(self._stored))
        self._stored[path] = Stored(weights, before.ancestor, (*before.holdout, held)[-LAST_REPORTS:])
        self.reports.append(Reported(name, epoch, report.fitness))
        return Reply(report, Pointer(path=path, sha256=""))

    def report(self, *_: object) -> None:
        """Keep no rows."""

    def write(self, action: Callable[[], None]) -> None:
        """See ``Run.write``."""
        action()

    def read(self, action: Callable[[], Result]) -> Result:
        """See ``Run.read``."""
        return action()

    def note(self, *_: object, **__: object) -> None:
        """Drop a note."""

    def hold(self, *_: object) -> None:
        """Show nothing of trials that wait."""

    def refusal(self, **_: object) -> None:
        """Count a refused copy."""
        self.refusals += 1

    def drop(self, **_: object) -> None:
        """Forget a trial that leaves in an opening."""

    def exploit(self, trial: str, donor: str, **_: object) -> None:
        """Keep the truth behind a copy."""
        if donor != trial:
            self.exploits.append(Decided(self.truth(donor), self.truth(trial)))

    def truth(self, trial: str) -> float:
        """Return the true fitness of a trial's weights."""
        return self.problem.truth(self._holds(trial).weights, self._process.at[trial].config)

    def ancestors(self) -> list[str]:
        """List the trials in which the weights of each trial began."""
        return [self._holds(name).ancestor for name in self._finished()]

    def best(self) -> float:
        """Return the true fitness of the trial that a run would choose at the end."""
        return self.truth(max(self._finished(), key=lambda name: fmean(self._holds(name).holdout)))

    def _finished(self) -> list[str]:
        """List the trials that have weights, in the order in which they started."""
        return [name for name, at in self._process.at.items() if at.checkpoint]

    def _holds(self, trial: str) -> Stored:
        """Return what a trial has trained."""
        pointer = self._process.at[trial].checkpoint
        assert pointer is not None
        return self._stored[pointer.path]


def evolve(
    space: SearchSpace, problem: Problem, initial: list[Values], seed: int, halvings: tuple[Rung, ...] = ()
) -> KnownTruth:
    """Train a population under the scheduler of a space, after the halvings of an opening."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        controls = space.controls_among(halvings[-1].survivors if halvings else len(initial))
        population = KnownTruth(space, problem, initial, seed, Path(directory), controls)
        if halvings:
            population.members.state.next_decision_epoch = halvings[0].epoch
        population.run(lambda members, room: make_scheduler(space, members, room, len(initial), halvings))
        return population


def space_of(parameters: dict[str, Any], **options: Any) -> SearchSpace:
    """Make a search space."""
    return parse(SearchSpace, {"parameters": parameters, **options})

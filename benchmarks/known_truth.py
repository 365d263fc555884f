"""A population that trains in one process, on problems whose truth is known: no network, no cluster."""

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from ray.tune.experiment import Trial

from adios_ray.backend.admission import Admission
from adios_ray.backend.channel import ChannelCalls
from adios_ray.backend.line import Reply
from adios_ray.backend.trial import REPLY
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.search.population import Population
from adios_ray.search.scheduler import STOP, LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState
from adios_ray.tracking.run import Run
from adios_ray.trial_report import TrialReport
from adios_ray.validation import parse

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


class Asked(NamedTuple):
    """A report, and whether it stopped the trial."""

    trial: str
    epoch: int
    fitness: float
    stopped: bool


class Decided(NamedTuple):
    """A copy: the true fitness of donor and trial at the decision."""

    donor: float
    trial: float


@dataclass(eq=False)
class _Trial:
    """The part of a Tune trial that schedulers read."""

    config: dict[str, Any]
    status: str = Trial.RUNNING


@dataclass
class InProcess:
    """A population that trains in this process, and stands in for its channel and its records.

    Attributes:
        space: The search space.
        problem: What is trained.
        initial: First values of each trial.
        seed: Seed of the decisions and of the noise.
        exploits: The copies so far.
        refusals: How many copies were refused.
        asked: All reports so far.
        members: The population.
    """

    space: SearchSpace
    problem: Problem
    initial: list[Values]
    seed: int
    directory: Path
    exploits: list[Decided] = field(default_factory=list)
    refusals: int = 0
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the population."""
        self.config = parse(TrialConfig, {"epochs": self.problem.epochs, "seed": self.seed})
        self._random = np.random.default_rng(self.seed)
        self._held: set[str] = set()
        self._at: dict[str, tuple[Pointer | None, TrialConfig, int]] = {}
        self._stored: dict[Path, tuple[Weights, str, int]] = {}
        state = PopulationState(next_decision_epoch=self.space.interval_epochs)
        for number, values in enumerate(self.initial):
            state.add(f"trial_{number:02d}", values)
        state.save(self.directory)
        self.members = Population(self.config, state, cast(Run, self), cast(ChannelCalls, self))

    def register(self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool) -> None:
        """Take in a trial."""
        self._at[trial] = checkpoint, config, epoch

    def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig) -> None:
        """Copy weights into a trial."""
        self._at[trial] = checkpoint, config, epoch

    def hold(self, trials: Iterable[str], held: bool) -> None:
        """Hold trials at the barrier, or release them."""
        self._held = self._held | set(trials) if held else self._held - set(trials)

    def report(self, *_: object) -> None:
        """Keep no rows."""

    def note(self, text: str) -> None:
        """Drop a note."""

    def refusal(self, **_: object) -> None:
        """Count a refused copy."""
        self.refusals += 1

    def exploit(self, trial: str, donor: str, **_: object) -> None:
        """Keep the truth behind a copy."""
        if donor != trial:
            self.exploits.append(Decided(self.truth(donor), self.truth(trial)))

    def truth(self, trial: str) -> float:
        """Return the true fitness of a trial's weights."""
        checkpoint, config, _ = self._at[trial]
        assert checkpoint is not None
        return self.problem.truth(self._stored[checkpoint.path][0], config)

    def run(
        self,
        make: Callable[[Population, Admission], LiveScheduler],
        workers: int | None = None,
        budget: int = 0,
    ) -> None:
        """Train every trial to its end, in the order in which epochs are over.

        Args:
            make: Builds the scheduler.
            workers: Trials that train at once; None for all initial ones.
            budget: Epochs until which new trials start where earlier ones have ended.
        """
        names = list(self.members.state.members)
        trials: dict[str, _Trial] = {}
        scheduler = make(self.members, Admission(len(names), lambda: len(names)))
        queue: list[tuple[float, int, str]] = []

        def start(name: str, now: float) -> None:
            trials[name] = _Trial({"trial": name})
            scheduler.on_trial_add(None, cast(Trial, trials[name]))
            push(name, now)

        def push(name: str, now: float) -> None:
            heapq.heappush(queue, (now + self.problem.seconds(name, self._at[name][1]), int(name[6:]), name))

        for number in range(workers or len(names)):
            start(f"trial_{number:02d}", 0.0)
        idle: set[str] = set()
        while queue:
            now, _, name = heapq.heappop(queue)
            reply = self._train(name)
            assert reply.report is not None
            stopped = False
            if reply.report.done:
                scheduler.on_trial_complete(None, cast(Trial, trials[name]), {REPLY: reply})
            else:
                stopped = scheduler.on_trial_result(None, cast(Trial, trials[name]), {REPLY: reply}) == STOP
            self.asked.append(Asked(name, reply.report.epoch, reply.report.fitness, stopped))
            if not stopped and not reply.report.done:
                idle.add(name)
            elif len(self.asked) < budget:
                start(f"trial_{len(trials):02d}", now)
            for other in sorted(idle - self._held):
                idle.remove(other)
                push(other, now)

    def _train(self, name: str) -> Reply:
        checkpoint, config, epoch = self._at[name]
        before = self._stored[checkpoint.path][0] if checkpoint else self.problem.start
        weights = self.problem.train(before, config, epoch + 1, self._random)
        ancestor = self._stored[checkpoint.path][1] if checkpoint else name
        path = Path(name) / str(len(self._stored))
        self._stored[path] = weights, ancestor, epoch + 1
        pointer = Pointer(path=path, sha256="")
        self._at[name] = pointer, config, epoch + 1
        measured = self.problem.measure(weights, config, self._random)
        return Reply(TrialReport(epoch=epoch + 1, done=epoch + 1 >= self.problem.epochs, **measured), pointer)

    def ancestors(self) -> list[str]:
        """List the trials in which the weights of each trial began."""
        return [self._stored[pointer.path][1] for pointer, _, _ in self._at.values() if pointer is not None]

    def best(self) -> float:
        """Return the true fitness of the trial that scores best at the end."""
        members = self.members.state.members
        return self.truth(max(members, key=lambda name: (members[name].score or -math.inf, -members[name].number)))

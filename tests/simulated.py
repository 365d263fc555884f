"""Tune, the channel and the trials, simulated in one process: closed-form scores, no cluster, reports in any order."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, cast

from ray.tune.experiment import Trial

from adios_ray.backend.admission import Admission
from adios_ray.backend.channel import ChannelCalls
from adios_ray.backend.line import Line, Lines, Request
from adios_ray.backend.trial import REPLY
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.run_directory import RunDirectory
from adios_ray.search.pbt import PopulationBasedTraining
from adios_ray.search.population import Population
from adios_ray.search.scheduler import CONTINUE, PAUSE, STOP, LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState
from adios_ray.search.suggest import make_suggest
from adios_ray.tracking.records import Exploit, append_exploit, begin_lineage, read_lineage
from adios_ray.tracking.run import Run
from adios_ray.trial_report import TrialReport


class SimulatedChannel:
    """The channel's own memory, without the processes that wait for it."""

    def __init__(self) -> None:
        """Begin without trials."""
        self.lines = Lines()
        self.register = self.lines.register

    def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig) -> None:
        """As the channel does; the checkpoint must be there."""
        assert checkpoint.path.is_dir(), f"{trial} was sent to {checkpoint.path}, which is gone"
        self.lines[trial].load(checkpoint, epoch, config)

    def hold(self, trials: Sequence[str], held: bool) -> None:
        """As the channel does."""
        for trial in trials:
            self.lines[trial].hold(held)

    def preempt(self, trial: str) -> None:
        """As the channel does."""
        self.lines[trial].preempt()


class SimulatedRun:
    """Records the lineage in files as a run does, and the reports in memory."""

    def __init__(self, directory: Path) -> None:
        """Record into an existing directory."""
        self.directory = directory
        self.reports: list[tuple[str, int, float]] = []

    def report(self, trial: str, report: TrialReport, values: dict[str, Any], config: TrialConfig) -> None:
        """Keep a report."""
        self.reports.append((trial, report.epoch, report.fitness))

    def exploit(self, **fields: Any) -> None:
        """Write an exploit down; the clock stands still."""
        append_exploit(self.directory, Exploit(time=datetime(2026, 1, 1, tzinfo=UTC), **fields))

    def note(self, text: str) -> None:
        """Say nothing."""


@dataclass(eq=False)
class SimulatedTrial:
    """What schedulers look at in one of Tune's trials, and what its actor does.

    Attributes:
        config: The trial's name.
        status: As Tune has it.
        missed: Whether the actor is new.
        pausing: Whether Tune has yet to stop the actor, as the scheduler has decided.
        request: What the actor waits for; where it has died, this stays in the channel.
    """

    config: dict[str, Any]
    status: str = Trial.PENDING
    missed: bool = True
    pausing: bool = False
    request: Request | None = None

    def should_recover(self) -> bool:
        """Tune starts it again."""
        return True


class CrashedError(Exception):
    """The driver was killed."""


class StuckError(Exception):
    """Every trial waits, and nothing that could happen would end that."""


def optimum(config: TrialConfig) -> float:
    """Score per epoch under a configuration: best at lambda 0.6 and a learning rate of 0.1."""
    lr, weight = config.optimizer.encoder_lr, config.masking.sparsity_weight
    return 1.0 - abs(weight - 0.6) - 0.3 * abs(math.log10(lr / 0.1))


@dataclass
class Simulation:
    """A population that is trained by simulated trials.

    Attributes:
        directory: The run's directory.
        space: What is searched.
        config: What the trials have in common.
        population: Number of trials.
        count_places: Places in the cluster, asked at each step.
        random: Decides who reports next.
        loses_actor: Asked at each step whether a trial's actor dies.
        fitness: Of a trial at an epoch, given its name, configuration and the score of its weights before.
    """

    directory: Path
    space: SearchSpace
    config: TrialConfig
    population: int
    count_capacity: Callable[[], int]
    random: Random
    fitness: Callable[[str, int, TrialConfig, float], float] = field(
        default=lambda trial, epoch, config, before: before + optimum(config)
    )
    on_step: Callable[["Simulation"], None] = field(default=lambda simulation: None)
    loses_actor: Callable[[], bool] = lambda: False

    def fresh(self) -> None:
        """Write a new population down."""
        (self.directory / "checkpoints").mkdir(parents=True)
        state = PopulationState(next_decision_epoch=self.space.interval_epochs)
        if self.space.search != "hyperopt":
            suggest = make_suggest(self.space, self.config, state)
            for number in range(self.population):
                state.add(f"trial_{number:02d}", suggest(f"trial_{number:02d}"))
        state.save(self.directory)

    def drive(self, make: Callable[[Population, Admission], LiveScheduler] | None = None) -> PopulationState:
        """Do what a driver does until all trials have ended; may be called again after a crash."""
        state = PopulationState.load(self.directory)
        state.save(self.directory)
        begin_lineage(self.directory, state.exploits)
        todo = state.unfinished(f"trial_{number:02d}" for number in range(self.population))
        self.channel, self.run = SimulatedChannel(), SimulatedRun(self.directory)
        self.members = Population(self.config, state, cast(Run, self.run), cast(ChannelCalls, self.channel))
        admission = Admission(len(todo), self.count_capacity)
        admission.capacity = lambda: self.capacity  # type: ignore[method-assign]  # counted at every step
        self.scheduler = make(self.members, admission) if make else _evolution(self.space, self.members, admission)
        self.trials: dict[str, SimulatedTrial] = {}
        while any(trial.status != Trial.TERMINATED for trial in self.trials.values()) or len(self.trials) < len(todo):
            self.capacity = max(1, self.count_capacity())
            if self.loses_actor():
                self._lose_actor()
            self._start(todo)
            if not self._pause():
                self._report()
            self.on_step(self)
        return state

    def _start(self, todo: Sequence[str]) -> None:
        """Start what the scheduler lets start."""
        while len(self.trials) < len(todo) and self.scheduler.admission.free:
            trial = SimulatedTrial({"trial": todo[len(self.trials)]})
            self.trials[trial.config["trial"]] = trial
            self.scheduler.on_trial_add(None, trial)
            trial.status = Trial.RUNNING
        while chosen := self.scheduler.choose_trial_to_run(None):
            assert chosen.status == Trial.PAUSED
            chosen.status = Trial.RUNNING

    def _pause(self) -> bool:
        """Perhaps a trial that is to be paused is; until then it runs for Tune, and others go on."""
        pausing = [trial for trial in self.trials.values() if trial.pausing]
        if not pausing or (self._able() and self.random.random() < 0.5):
            return False
        trial = self.random.choice(pausing)
        trial.status, trial.pausing = Trial.PAUSED, False
        return True

    def _able(self) -> list[tuple[str, SimulatedTrial]]:
        """Trials that can ask, train, or hear what their requests have come to."""
        return [
            (name, trial)
            for name, trial in self.trials.items()
            if trial.status == Trial.RUNNING
            and not trial.pausing
            and (trial.request is None or trial.request.reply or self.channel.lines[name].training is not None)
        ]

    def _report(self) -> None:
        """One trial that can, comes to its next report, leaves its place, or begins to wait."""
        able = self._able()
        if not able:
            lines = self.channel.lines
            raise StuckError(str([(n, t.status, lines[n].held, lines[n].request) for n, t in self.trials.items()]))
        name, trial = self.random.choice(able)
        line = self.channel.lines[name]
        self._ask(trial, line)
        if line.training is not None:
            self._train(name, line)
        if trial.request is None or trial.request.reply is None:
            return
        reply, trial.request, trial.missed = trial.request.reply, None, False
        result = {REPLY: reply}
        if reply.report is not None and reply.report.done:
            self.scheduler.on_trial_complete(None, trial, result)
            trial.status = Trial.TERMINATED
        else:
            self._react(trial, self.scheduler.on_trial_result(None, trial, result))

    def _ask(self, trial: SimulatedTrial, line: Line) -> None:
        """Have the trial's actor ask for the next report, unless it has."""
        trial.request = trial.request or line.ask(trial.missed)

    def _train(self, name: str, line: Line) -> None:
        """Train to the next report: the checkpoint's file holds the score of the weights."""
        before = 0.0
        if line.checkpoint:
            before = float((line.checkpoint.path / "score").read_text())
        epoch = line.epoch + 1
        fitness = self.fitness(name, epoch, line.config, before)
        directory = RunDirectory(self.directory).checkpoint(name, epoch)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "score").write_text(repr(fitness if math.isfinite(fitness) else before))
        assert line.training is not None
        report = TrialReport(epoch=epoch, fitness=fitness, done=epoch >= self.config.epochs)
        line.answer(line.training, report, Pointer(path=directory, sha256=""))

    def _lose_actor(self) -> None:
        """The actor of a running trial dies, perhaps with a report that nobody has heard; Tune starts it again."""
        running = [(name, trial) for name, trial in self.trials.items() if trial.status == Trial.RUNNING]
        if not running:
            return
        name, trial = self.random.choice(running)
        line = self.channel.lines[name]
        if not trial.pausing and self.random.random() < 0.5:
            self._ask(trial, line)
            if line.training is not None:
                self._train(name, line)
        trial.status = Trial.ERROR  # as Tune has it at this moment
        self.scheduler.on_trial_error(None, trial)
        trial.status, trial.missed, trial.pausing, trial.request = Trial.PENDING, True, False, None
        self.scheduler.on_trial_add(None, trial)
        trial.status = Trial.RUNNING

    def _react(self, trial: SimulatedTrial, decision: str) -> None:
        if decision == PAUSE:
            trial.pausing = True
        elif decision == STOP:
            trial.status = Trial.TERMINATED
        else:
            assert decision == CONTINUE

    def lineage(self) -> list[tuple[int, str, str, dict[str, Any]]]:
        """Epoch, trial, donor and values of each exploit."""
        return [(e.epoch, e.trial, e.donor, e.new) for e in read_lineage(self.directory)]


def _evolution(space: SearchSpace, members: Population, admission: Admission) -> PopulationBasedTraining:
    return PopulationBasedTraining(
        members, admission, space, lambda name, donor, random: space.explore(donor.values, random)
    )

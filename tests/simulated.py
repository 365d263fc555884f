"""A simulation of Tune, the channel and the trials in one process: closed-form scores, reports in any order."""

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
from adios_ray.backend.faults import Fault
from adios_ray.backend.line import Line, Lines, Note, Reply, Request
from adios_ray.backend.trial import REPLY
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.experiment.evolution import make_scheduler
from adios_ray.retry import Result
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.opening import rungs
from adios_ray.search.population import Population
from adios_ray.search.scheduler import CONTINUE, PAUSE, STOP
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState
from adios_ray.search.suggest import fill
from adios_ray.tracking.decisions import Drop, Exploit, Refusal, append_decision, begin_lineage, read_lineage
from adios_ray.tracking.run import Run
from adios_ray.trial_report import TrialReport


class SimulatedChannel:
    """The channel's own state, without the processes that wait for it."""

    def __init__(self) -> None:
        """Start without trials."""
        self.lines = Lines()
        self.register = self.lines.register

    def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig) -> None:
        """See ``Channel.load``; the checkpoint must exist."""
        assert checkpoint.path.is_dir(), f"{trial} is to load {checkpoint.path}, which was deleted"
        self.lines[trial].load(checkpoint, epoch, config)

    def hold(self, trials: Sequence[str], held: bool) -> None:
        """See ``Channel.hold``."""
        for trial in trials:
            self.lines[trial].hold(held)

    def preempt(self, trial: str) -> None:
        """See ``Channel.preempt``."""
        self.lines[trial].preempt()


class SimulatedRun:
    """Records the lineage in files, as a run does, and reports and notes in memory."""

    def __init__(self, directory: Path, storage: RunStorage | None = None) -> None:
        """Record into an existing directory; of a storage at a URI, its directory on this node."""
        self.directory, self.storage = directory, storage or RunStorage(directory)
        self.reports: list[tuple[str, int, float]] = []
        self.notes: list[str] = []

    def write(self, action: Callable[[], None]) -> None:
        """Write into the directory, which nothing disturbs."""
        action()

    def read(self, action: Callable[[], Result]) -> Result:
        """Read from the directory, which nothing disturbs."""
        return action()

    def report(self, trial: str, report: TrialReport, values: dict[str, Any], config: TrialConfig) -> None:
        """Keep a report."""
        self.reports.append((trial, report.epoch, report.fitness))

    def exploit(self, **fields: Any) -> None:
        """Append an exploit to the lineage, always with the same time."""
        append_decision(self.directory, Exploit(time=datetime(2026, 1, 1, tzinfo=UTC), **fields))

    def refusal(self, **fields: Any) -> None:
        """Append a refused copy to the lineage, always with the same time."""
        append_decision(self.directory, Refusal(time=datetime(2026, 1, 1, tzinfo=UTC), **fields))

    def drop(self, **fields: Any) -> None:
        """Append a trial that left in the opening to the lineage, always with the same time."""
        append_decision(self.directory, Drop(time=datetime(2026, 1, 1, tzinfo=UTC), **fields))

    def hold(self, trials: Sequence[str], held: bool) -> None:
        """Show nothing of who waits."""

    def note(self, text: str, kind: str = "note", trial: str = "", epoch: int | None = None) -> None:
        """Keep a note."""
        self.notes.append(text)

    def trial_note(self, trial: str, text: str, details: str = "", kind: str = "note") -> None:
        """Keep a note."""
        self.notes.append(f"{trial}: {text}")


@dataclass(eq=False)
class SimulatedTrial:
    """The part of a Tune trial that schedulers read, with the state of its actor.

    Attributes:
        config: Holds the trial's name.
        status: Tune's status of the trial.
        missed: Whether the actor is new.
        pausing: Whether the scheduler has decided PAUSE and Tune has not stopped the actor yet.
        request: The request that the actor waits for; if the actor dies, it stays in the channel.
        error_file: Where Tune writes errors.
    """

    config: dict[str, Any]
    status: str = Trial.PENDING
    missed: bool = True
    pausing: bool = False
    request: Request | None = None
    error_file: None = None


class CrashedError(Exception):
    """The driver was killed."""


class StuckError(Exception):
    """Deadlock: every trial waits, and no event could end that."""


def optimum(config: TrialConfig) -> float:
    """Return the score per epoch under a configuration: best at lambda 0.6 and a learning rate of 0.1."""
    lr, weight = config.optimizer.encoder_lr, config.masking.sparsity_weight
    return 1.0 - abs(weight - 0.6) - 0.3 * abs(math.log10(lr / 0.1))


@dataclass
class Simulation:
    """A population of simulated trials, and the driver that trains it.

    Attributes:
        directory: The run directory.
        space: The search space.
        config: What the trials have in common.
        population: Number of trials, after an opening.
        count_capacity: Returns how many trials fit into the cluster; called at each step.
        random: Chooses which trial reports next.
        fitness: Returns a trial's fitness from its name, epoch, configuration and the score of its weights before.
        details: Returns further fields of a trial's report from its name, epoch and fitness.
        on_step: Called after each step.
        fails: Returns whether a trial's workers cannot train, from its name and configuration.
        loses_actor: Returns whether a trial's actor dies; called at each step.
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
    details: Callable[[str, int, float], dict[str, Any]] = field(default=lambda trial, epoch, fitness: {})
    on_step: Callable[["Simulation"], None] = field(default=lambda simulation: None)
    fails: Callable[[str, TrialConfig], bool] = lambda trial, config: False
    loses_actor: Callable[[], bool] = lambda: False

    def fresh(self) -> None:
        """Save a new population."""
        self.directory.mkdir(parents=True)
        RunDirectory(self.directory).make_folders()
        halvings = rungs(self.space.opening, self.population)
        state = PopulationState(next_decision_epoch=halvings[0].epoch if halvings else self.space.interval_epochs)
        if self.space.search != "hyperopt":
            fill(state, self.space, self.config, self._names(), self.population)
        state.save(self.directory)

    def _names(self) -> list[str]:
        return [f"trial_{number:02d}" for number in range(self.space.trials(self.population))]

    def drive(self) -> PopulationState:
        """Run as the driver until all trials have ended; may be called again after a crash."""
        state = PopulationState.load(self.directory)
        state.save(self.directory)
        begin_lineage(self.directory, state.lineage_lines)
        todo = state.unfinished(self._names())
        self.channel, self.run = SimulatedChannel(), SimulatedRun(self.directory)
        self.members = Population(self.config, state, cast(Run, self.run), cast(ChannelCalls, self.channel))
        admission = Admission(len(todo), self.count_capacity)
        admission.capacity = lambda: self.capacity  # type: ignore[method-assign]  # counted at every step
        halvings = rungs(self.space.opening, self.population)
        self.scheduler = make_scheduler(self.space, self.members, admission, len(self._names()), halvings)
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
        """Start all trials that the scheduler admits."""
        while len(self.trials) < len(todo) and self.scheduler.admission.free:
            trial = SimulatedTrial({"trial": todo[len(self.trials)]})
            self.trials[trial.config["trial"]] = trial
            self._add(trial)
        self._resume()

    def _add(self, trial: SimulatedTrial) -> None:
        """Hand a pending trial to the scheduler, which may end it before its actor starts."""
        self.scheduler.on_trial_add(None, trial)
        self._resume()
        if trial.status == Trial.PENDING:
            trial.status = Trial.RUNNING

    def _resume(self) -> None:
        """Resume the paused trials that the scheduler chooses."""
        while chosen := self.scheduler.choose_trial_to_run(self):
            assert chosen.status == Trial.PAUSED
            chosen.status = Trial.RUNNING

    def stop_trial(self, trial: SimulatedTrial) -> None:
        """End a trial without a request, as Tune's controller does for its scheduler."""
        assert trial.status in (Trial.PENDING, Trial.PAUSED)
        self.scheduler.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED

    def _pause(self) -> bool:
        """Perhaps stop the actor of a pausing trial; until then Tune lists it as running while others continue."""
        pausing = [trial for trial in self.trials.values() if trial.pausing]
        # At random, so that others report in between: a second trial must not be preempted while one is still leaving.
        if not pausing or (self._able() and self.random.random() < 0.5):
            return False
        trial = self.random.choice(pausing)
        trial.status, trial.pausing = Trial.PAUSED, False
        return True

    def _able(self) -> list[tuple[str, SimulatedTrial]]:
        """List the trials that can request a report, train, or receive a reply."""
        return [
            (name, trial)
            for name, trial in self.trials.items()
            if trial.status == Trial.RUNNING
            and not trial.pausing
            and (trial.request is None or trial.request.reply or self.channel.lines[name].training is not None)
        ]

    def _report(self) -> None:
        """Let one able trial reach its next report, be preempted, or start to wait."""
        able = self._able()
        if not able:
            lines = self.channel.lines
            raise StuckError(str([(n, t.status, lines[n].held, lines[n].request) for n, t in self.trials.items()]))
        name, trial = self.random.choice(able)
        line = self.channel.lines[name]
        self._ask(trial, line)
        if line.training is not None and self.fails(name, line.config):
            self._fail(name, trial)
            return
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
            self._react(trial, self.scheduler.on_trial_result(None, trial, result), result)

    def _ask(self, trial: SimulatedTrial, line: Line) -> None:
        """Have the trial's actor request the next report, unless it has already."""
        trial.request = trial.request or line.ask(trial.missed)

    def _fail(self, name: str, trial: SimulatedTrial) -> None:
        """Let the trial's workers fail, at first with a restart, and then for good."""
        self.scheduler.on_note(Note(name, "its workers failed", "", "restart"))
        if self.random.random() < 0.5:
            self.give_up(trial)

    def give_up(self, trial: SimulatedTrial) -> None:
        """Let the trial's workers have failed for good."""
        result = {REPLY: Reply(None, None, Fault("out of memory", ""))}
        trial.missed, trial.request = True, None  # the actor's request stays in the channel
        self._react(trial, self.scheduler.on_trial_result(None, trial, result), result)

    def _train(self, name: str, line: Line) -> None:
        """Train to the next report; the checkpoint holds the score of the weights, which is its checksum too."""
        before = 0.0
        if line.checkpoint:
            before = float((line.checkpoint.path / "score").read_text())
        epoch = line.epoch + 1
        fitness = self.fitness(name, epoch, line.config, before)
        directory = RunDirectory(self.directory).checkpoint(name, epoch)
        directory.mkdir(parents=True, exist_ok=True)
        score = repr(fitness if math.isfinite(fitness) else before)
        (directory / "score").write_text(score)
        assert line.training is not None
        details = self.details(name, epoch, fitness)
        report = TrialReport(epoch=epoch, fitness=fitness, done=epoch >= self.config.epochs, **details)
        line.answer(line.training, report, Pointer(path=directory, sha256=score).after(line.checkpoint))

    def _lose_actor(self) -> None:
        """Kill the actor of a running trial, perhaps with a report that was not delivered; Tune restarts it."""
        running = [(name, trial) for name, trial in self.trials.items() if trial.status == Trial.RUNNING]
        if not running:
            return
        name, trial = self.random.choice(running)
        line = self.channel.lines[name]
        # Half of the actors die after their workers have answered: the report is in the channel, but was not delivered.
        if not trial.pausing and self.random.random() < 0.5:
            self._ask(trial, line)
            if line.training is not None:
                self._train(name, line)
        trial.status = Trial.ERROR  # Tune sets this before it calls the scheduler
        self.scheduler.on_trial_error(None, trial)
        trial.status, trial.missed, trial.pausing, trial.request = Trial.PENDING, True, False, None
        self._add(trial)

    def _react(self, trial: SimulatedTrial, decision: str, result: dict[str, Any]) -> None:
        if decision == PAUSE:
            trial.pausing = True
        elif decision == STOP:
            self.scheduler.on_trial_complete(None, trial, result)  # as Tune does
            trial.status = Trial.TERMINATED
        else:
            assert decision == CONTINUE

    def lineage(self) -> list[tuple[int, str, str, dict[str, Any]]]:
        """List epoch, trial, donor and values of each exploit."""
        return [(e.epoch, e.trial, e.donor, e.new) for e in read_lineage(self.directory)]

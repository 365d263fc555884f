"""Populations that train in this process: the package's own decisions over any training, without Ray's processes."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from ray.tune.experiment import Trial

from adios_ray.backend.admission import Admission
from adios_ray.backend.channel import ChannelCalls
from adios_ray.backend.line import Reply
from adios_ray.backend.trial import REPLY
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.search.population import Population
from adios_ray.search.scheduler import CONTINUE, STOP, LiveScheduler
from adios_ray.search.state import PopulationState
from adios_ray.tracking.run import Run


class Position(NamedTuple):
    """The point from which a trial continues.

    Attributes:
        checkpoint: Its weights; None for fresh ones.
        config: The configuration it trains under.
        epoch: Epochs completed.
    """

    checkpoint: Pointer | None
    config: TrialConfig
    epoch: int


Train = Callable[[str, Position], Reply]
"""Trains the trial of a name from a position to its next report."""
MakeScheduler = Callable[[Population, Admission], LiveScheduler]


@dataclass(eq=False)
class _Trial:
    """The part of a Tune trial that schedulers read."""

    config: dict[str, Any]
    status: str = Trial.PENDING


class InProcess:
    """A population whose trials take turns in this process; stands in for Tune and for the channel.

    Attributes:
        members: The population.
        at: Where each trial continues.
    """

    def __init__(self, config: TrialConfig, state: PopulationState, run: Run, train: Train) -> None:
        """Continue from a state that has been saved into the run's directory.

        Args:
            config: What all trials have in common.
            state: The population, new or left by an interrupted process.
            run: Records reports and exploits.
            train: Trains a trial to its next report.
        """
        self.members = Population(config, state, run, cast(ChannelCalls, self))
        self.at: dict[str, Position] = {}
        self._train = train
        self._held: set[str] = set()
        self._left: set[str] = set()

    def register(self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool) -> None:
        """See ``Channel.register``."""
        self.at[trial] = Position(checkpoint, config, epoch)
        self.hold([trial], held)

    def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig) -> None:
        """See ``Channel.load``."""
        self.at[trial] = Position(checkpoint, config, epoch)

    def hold(self, trials: Iterable[str], held: bool) -> None:
        """See ``Channel.hold``."""
        self._held = self._held | set(trials) if held else self._held - set(trials)

    def preempt(self, trial: str) -> None:
        """See ``Channel.preempt``; where all train at once, only trials that leave in an opening are preempted."""
        self._left.add(trial)

    def drive(
        self,
        make: MakeScheduler,
        names: Sequence[str],
        at_once: int | None = None,
        seconds: Callable[[str, TrialConfig], float] = lambda name, config: 1.0,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train trials until all have ended.

        Args:
            make: Makes the scheduler.
            names: The unfinished trials, in the order in which they start.
            at_once: Trials that train at the same time, more than which no population with barriers may have; None
                takes all.
            seconds: Returns how long a trial trains to a report, which orders the reports.
            enough: Asked after each report; the rest is left untrained once it returns True.
        """
        most = len(names) if at_once is None else at_once
        scheduler = make(self.members, Admission(len(names), lambda: most))
        order = {name: number for number, name in enumerate(names)}
        trials: dict[str, _Trial] = {}
        unstarted, idle = deque(names), set[str]()
        queue: list[tuple[float, int, str]] = []
        now = 0.0
        while True:
            while unstarted and sum(trial.status == Trial.RUNNING for trial in trials.values()) < most:
                name = unstarted.popleft()
                trials[name] = _Trial({"trial": name})
                scheduler.on_trial_add(None, cast(Trial, trials[name]))
                trials[name].status = Trial.RUNNING
                idle.add(name)
            for name in sorted(idle - self._held):
                idle.remove(name)
                heapq.heappush(queue, (now + seconds(name, self.at[name].config), order[name], name))
            if enough() or not queue:
                return
            now, _, name = heapq.heappop(queue)
            trial, reply = trials[name], self._train(name, self.at[name])
            assert reply.report is not None
            self.at[name] = Position(reply.checkpoint, self.at[name].config, reply.report.epoch)
            decision = STOP
            if reply.report.done:
                scheduler.on_trial_complete(None, cast(Trial, trial), {REPLY: reply})
            else:
                decision = scheduler.on_trial_result(None, cast(Trial, trial), {REPLY: reply})
            if decision == STOP:
                trial.status = Trial.TERMINATED
            else:
                assert decision == CONTINUE, "a population with barriers trains all trials at once"
                idle.add(name)
            idle -= self._left

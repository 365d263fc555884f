"""What all schedulers of live trials have in common: records, a memory on disk, and turns."""

from abc import abstractmethod
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adios_ray.search.members import Members
from adios_ray.search.trial import REPLY
from adios_ray.search.turns import Turns, name_of

CONTINUE, PAUSE, STOP = TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP


class LiveScheduler(TrialScheduler):  # type: ignore[misc]  # Ray ships no type information
    """A Tune scheduler whose memory is the population's.

    Attributes:
        members: The population.
        turns: Who holds a place.
    """

    def __init__(self, members: Members, turns: Turns) -> None:
        """Schedule the unfinished members."""
        super().__init__()
        self.members, self.turns = members, turns
        self._leaving: str | None = None

    @abstractmethod
    def decide(self, name: str) -> str:
        """What becomes of a trial after its report: CONTINUE, PAUSE or STOP."""

    @abstractmethod
    def ready(self, name: str) -> bool:
        """Whether a trial could train now; one that waits for others could not."""

    def introduce(self, name: str) -> None:
        """Tell the channel where a trial begins."""
        self.members.register(name)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take in a trial, or take one back whose actor is started again."""
        self.turns.begin(trial)
        self.introduce(name_of(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Record a report and decide."""
        name, reply = name_of(trial), result[REPLY]
        if reply.report is None:
            self._leaving = name
            return str(PAUSE)
        if not self.members.record(name, reply):
            return str(CONTINUE)
        decision = self.decide(name)
        if decision == STOP:
            self.members[name].finished = True
        if decision == PAUSE:
            self._leaving = name
        else:
            self._stays(name)
        self.members.remember(name)
        return str(decision)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record a trial's last report."""
        name = name_of(trial)
        self.members.record(name, result[REPLY])
        self.members[name].finished = True
        self.members.remember(name)
        self._gone(name)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Go on without a trial whose actor could not be kept alive; one that Tune starts again is added once more."""
        if trial.should_recover():
            self._stays(name_of(trial))
            self.members.run.note(f"{name_of(trial)} has lost its actor; it is started again")
            return
        self.members.run.note(f"{name_of(trial)} failed and is out of the population; --resume takes it up again")
        self._gone(name_of(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Go on without a trial that was removed."""
        self._gone(name_of(trial))

    def _gone(self, name: str) -> None:
        self._stays(name)
        self.left(name)

    def _stays(self, name: str) -> None:
        """Forget that a trial was on its way out."""
        if self._leaving == name:
            self._leaving = None

    def left(self, name: str) -> None:
        """A trial has ended; those that waited for it wait no longer."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The paused trial that is furthest behind, if there is a place for it and no fresh trial to start."""
        waiting = [trial for trial in self.turns.paused() if self.ready(name_of(trial))]
        waiting.sort(key=lambda trial: (self.members[name_of(trial)].epoch, name_of(trial)))
        if waiting and self.turns.everyone_started and self.turns.free:
            self._stays(name_of(waiting[0]))
            return waiting[0]
        if (waiting or not self.turns.everyone_started or self.turns.too_many()) and not self.turns.free:
            self._ask_for_a_place()
        return None

    def scarce(self) -> bool:
        """Whether a trial that may stop now should leave its place to another one."""
        others = any(self.ready(name_of(trial)) for trial in self.turns.paused())
        return others or not self.turns.everyone_started or self.turns.too_many()

    def _ask_for_a_place(self) -> None:
        """Have one of the trials that wait for others leave its place, unless one is on its way out."""
        running = {name_of(trial) for trial in self.turns.running()}
        if self._leaving in running:
            return
        waiting = (name for name in sorted(running) if not self.ready(name))
        self._leaving = next(waiting, None)
        if self._leaving:
            self.members.channel.leave(self._leaving)

    def debug_string(self) -> str:
        """What Tune would print."""
        return type(self).__name__

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the population's own memory is the real one."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see ``save``."""

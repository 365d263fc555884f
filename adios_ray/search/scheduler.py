"""What all schedulers of live trials have in common: records, a memory on disk, and turns."""

from abc import abstractmethod
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adios_ray.backend.admission import Admission, name_of
from adios_ray.backend.trial import REPLY
from adios_ray.search.population import Population

CONTINUE, PAUSE, STOP = TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP


class LiveScheduler(TrialScheduler):  # type: ignore[misc]  # Ray ships no type information
    """A Tune scheduler whose memory is the population's.

    Attributes:
        members: The population.
        turns: Who holds a place.
    """

    def __init__(self, population: Population, admission: Admission) -> None:
        """Schedule the unfinished members."""
        super().__init__()
        self.population, self.admission = population, admission
        self._preempting: str | None = None

    @abstractmethod
    def decide(self, name: str) -> str:
        """What becomes of a trial after its report: CONTINUE, PAUSE or STOP."""

    @abstractmethod
    def ready(self, name: str) -> bool:
        """Whether a trial could train now; one that waits for others could not."""

    def introduce(self, name: str) -> None:
        """Tell the channel where a trial begins."""
        self.population.register(name)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take in a trial, or take one back whose actor is started again."""
        self.admission.admit(trial)
        self.introduce(name_of(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Record a report and decide."""
        name, reply = name_of(trial), result[REPLY]
        if reply.report is None:
            self._preempting = name
            return str(PAUSE)
        if not self.population.observe(name, reply):
            return str(CONTINUE)
        decision = self.decide(name)
        if decision == STOP:
            self.population[name].finished = True
        if decision == PAUSE:
            self._preempting = name
        else:
            self._forget_preemption(name)
        self.population.commit(name)
        return str(decision)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record a trial's last report."""
        name = name_of(trial)
        self.population.observe(name, result[REPLY])
        self.population[name].finished = True
        self.population.commit(name)
        self._trial_ended(name)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Go on without a trial whose actor could not be kept alive; one that Tune starts again is added once more."""
        if trial.should_recover():
            self._forget_preemption(name_of(trial))
            self.population.run.note(f"{name_of(trial)} has lost its actor; it is started again")
            return
        self.population.run.note(f"{name_of(trial)} failed and is out of the population; --resume takes it up again")
        self._trial_ended(name_of(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Go on without a trial that was removed."""
        self._trial_ended(name_of(trial))

    def _trial_ended(self, name: str) -> None:
        self._forget_preemption(name)
        self.trial_ended(name)

    def _forget_preemption(self, name: str) -> None:
        """Forget that a trial was on its way out."""
        if self._preempting == name:
            self._preempting = None

    def trial_ended(self, name: str) -> None:
        """A trial has ended; those that waited for it wait no longer."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The paused trial that is furthest behind, if there is a place for it and no fresh trial to start."""
        waiting = [trial for trial in self.admission.paused() if self.ready(name_of(trial))]
        waiting.sort(key=lambda trial: (self.population[name_of(trial)].epoch, name_of(trial)))
        if waiting and self.admission.all_started and self.admission.free:
            self._forget_preemption(name_of(waiting[0]))
            return waiting[0]
        if (waiting or not self.admission.all_started or self.admission.oversubscribed()) and not self.admission.free:
            self._preempt_one()
        return None

    def others_waiting(self) -> bool:
        """Whether a trial that may stop now should leave its place to another one."""
        others = any(self.ready(name_of(trial)) for trial in self.admission.paused())
        return others or not self.admission.all_started or self.admission.oversubscribed()

    def _preempt_one(self) -> None:
        """Have one of the trials that wait for others leave its place, unless one is on its way out."""
        running = {name_of(trial) for trial in self.admission.running()}
        if self._preempting in running:
            return
        waiting = (name for name in sorted(running) if not self.ready(name))
        self._preempting = next(waiting, None)
        if self._preempting:
            self.population.channel.preempt(self._preempting)

    def debug_string(self) -> str:
        """What Tune would print."""
        return type(self).__name__

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the population's own memory is the real one."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see ``save``."""

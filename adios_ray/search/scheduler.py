"""What all schedulers of live trials share: recording reports, committing the population, preempting waiting trials.

Subclasses decide about one trial at a time (``decide``) and name the trials that could train now (``ready``).
"""

from abc import abstractmethod
from collections import Counter
from typing import Any, NoReturn

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adios_ray.backend.admission import Admission, name_of
from adios_ray.backend.faults import Fault, fault_of_text
from adios_ray.backend.line import Note, Reply
from adios_ray.backend.trial import REPLY
from adios_ray.errors import FaultError
from adios_ray.ray_private import last_error
from adios_ray.run_directory import RunDirectory
from adios_ray.search.population import Population

ACTOR_RESTARTS = 20
"""How often a trial's actor is restarted without a report in between, before the run stops."""
TROUBLE = 2
"""Restarts of its workers since its last report from which on a trial may be one that cannot train either."""
CONTINUE, PAUSE, STOP = TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP


class LiveScheduler(TrialScheduler):  # type: ignore[misc]  # Ray ships no type information
    """A Tune scheduler that keeps its memory in the population's journal and preempts trials that only wait.

    Attributes:
        population: The population.
        admission: Which trials have resources.
        set_aside: Trials that cannot train while others can, with the reason. They stay at their epochs without
            resources, and no decision waits for them.
        failure: What ended the run while Tune was completing a trial.
    """

    def __init__(self, population: Population, admission: Admission) -> None:
        """Schedule the unfinished members."""
        super().__init__()
        self.population, self.admission = population, admission
        # The trial that is giving up its resources. Tune takes a while to stop its actor and lists it as running until
        # then; without this note, every call of choose_trial_to_run would preempt one more.
        self._preempting: str | None = None
        self._stopping: list[Trial] = []
        # Trials whose workers keep failing while others train, and how often each one's were started again since its
        # last report.
        self.set_aside: dict[str, Fault] = {}
        self._trouble = Counter[str]()
        self._lost = Counter[str]()
        self.failure: Exception | None = None

    @abstractmethod
    def decide(self, name: str) -> str:
        """Return what a trial does after its report: CONTINUE, PAUSE or STOP."""

    @abstractmethod
    def ready(self, name: str) -> bool:
        """Return whether a trial could train now, that is, does not wait for others."""

    @abstractmethod
    def fate_of_diverged(self, name: str) -> str:
        """Say what becomes of a trial that has diverged or failed before its last epoch."""

    def introduce(self, name: str) -> None:
        """Register a trial's starting point with the channel."""
        self.population.register(name)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take in a new trial, or one whose actor Tune restarts."""
        self.admission.admit(trial)
        self.introduce(name_of(trial))
        if self.population[name_of(trial)].finished:  # ended by a decision that was made before it started
            self._stopping.append(trial)

    def on_note(self, note: Note) -> None:
        """Show and log what a trial says, and count how often its workers are started again."""
        # Waits for storage do not count: they end, or the trial is set aside as all others that wait for it will be.
        if note.kind == "restart":
            self._trouble[note.trial] += 1
        if note.trial:
            self.population.run.trial_note(*note)
        else:
            self.population.run.note(note.text)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Record a report and decide."""
        name, reply = name_of(trial), result[REPLY]
        if reply.fault is not None:
            self._set_aside(name, reply.fault)
            return str(PAUSE)
        if reply.report is None:
            # The answer to ``channel.preempt``: the trial has nothing to report, and only Tune can free its resources.
            if self.population[name].finished:
                return str(STOP)
            self._preempting = name
            return str(PAUSE)
        if not self._observe(name, reply):
            member = self.population[name]
            if not (member.reopened and reply.report.epoch == member.epoch):
                return str(CONTINUE)
            member.finished = True
            self.population.commit(name)
            return str(STOP)
        decision = self.decide(name)
        if decision == STOP:
            self.population[name].finished = True
        if decision == PAUSE:
            self._preempting = name
        else:
            self._forget_preemption(name)
        # Before Tune acts on the decision. Where decide() has changed others too, it has committed them all at once.
        if decision == STOP or not self.population.committed(name):
            self.population.commit(name)
        return str(decision)

    def _set_aside(self, name: str, fault: Fault) -> None:
        """Set a trial aside that cannot train because of its values or its nodes, so that the others continue.

        Raises:
            FaultError: If every other trial has trouble too: then neither is the reason.
        """
        self.set_aside[name] = fault
        stops = self.admission.all_started and all(self._trouble[other] >= TROUBLE for other in self._unfinished())
        kept = f"it stays at epoch {self.population[name].epoch}, and the others continue"
        self.population.run.trial_note(
            name, f"cannot train: {fault.reason}; {'the run stops' if stops else kept}", fault.details
        )
        if stops:
            self._stop_run()
        self._preempting = name
        self.trial_set_aside(name)

    def _unfinished(self) -> list[str]:
        """List the trials that have epochs left and can train."""
        members = self.population.state.members.items()
        return [name for name, member in members if not member.finished and name not in self.set_aside]

    def _stop_run(self) -> NoReturn:
        """End the run because trials cannot train; all that was reported is journaled.

        Raises:
            FaultError: Always.
        """
        run = self.population.run.storage
        reasons = "; ".join(f"{name} cannot train: {fault.reason}" for name, fault in self.set_aside.items())
        layout = RunDirectory(run.directory)
        logs = layout.relative(layout.log(next(iter(self.set_aside))).parent)
        raise FaultError(
            f"the run stops because {reasons}. No report is lost; {run.place}/{logs} has the tracebacks. "
            f"Resume with --resume {run.place}"
        )

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record a trial's last report."""
        name = name_of(trial)
        try:
            self._observe(name, result[REPLY])
            self.population[name].finished = True
            self.population.commit(name)
            self._trial_ended(name)
        except Exception as error:  # Tune would take it for the trial's, and start its actor again
            self.failure = error

    def _observe(self, name: str, reply: Reply) -> bool:
        """Record a report; returns whether it is new."""
        del self._trouble[name]
        new = self.population.observe(name, reply)
        if new:
            del self._lost[name]
        if new and reply.report is not None and reply.report.divergence:
            fate = "it has trained its last epoch" if reply.report.done else self.fate_of_diverged(name)
            self.population.run.note(
                f"{name} diverged at {reply.report.divergence}; {fate}", trial=name, epoch=reply.report.epoch
            )
        return new

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Note that Tune restarts a trial's actor, and will add the trial again; after too many restarts, stop the run.

        Raises:
            FaultError: If the actor was lost too often since the trial's last report.
        """
        # Counted here: Tune counts over the whole life of the driver, in which a cluster may lose many nodes.
        name, cause = name_of(trial), fault_of_text(last_error(trial))
        self._lost[name] += 1
        if self._lost[name] <= ACTOR_RESTARTS:
            self._forget_preemption(name)
            self.set_aside.pop(name, None)  # it is tried again, perhaps elsewhere
            text = f"its actor was lost ({cause.reason}); Tune restarts it"
            self.population.run.trial_note(name, text, cause.details, "restart")
            return
        reason = f"its actor was lost {self._lost[name]} times without a report, at last by this: {cause.reason}"
        fault = Fault(reason, cause.details)
        self.population.run.trial_note(name, f"cannot train: {fault.reason}; the run stops", fault.details)
        self.set_aside[name] = fault
        self._stop_run()

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Continue without a trial that was removed."""
        self._trial_ended(name_of(trial))

    def _trial_ended(self, name: str) -> None:
        self._forget_preemption(name)
        self.trial_ended(name)

    def _forget_preemption(self, name: str) -> None:
        """Note that a trial keeps its resources, or has already given them up."""
        if self._preempting == name:
            self._preempting = None

    def trial_ended(self, name: str) -> None:
        """React to the end of a trial; a scheduler with barriers stops waiting for it."""

    def trial_set_aside(self, name: str) -> None:
        """React to a trial that was set aside; a scheduler with barriers stops waiting for it."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the least-trained paused trial if there is free capacity; else preempt a trial if others need it.

        Raises:
            FaultError: If all trials that have epochs left are set aside, or wait for one that is.
            Exception: What was raised while a trial was completed.
        """
        if self.failure:
            raise self.failure
        if self.set_aside and self.admission.all_started and not any(map(self.ready, self._unfinished())):
            self._stop_run()
        # Trials without a request, which ``channel.preempt`` could end: Tune stops them only when it is told to.
        ended = [trial for trial in self.admission.paused() if self.population[name_of(trial)].finished]
        for trial in (*self._stopping, *ended):
            tune_controller.stop_trial(trial)
        self._stopping.clear()
        # Trials that have never started come first, by way of ``GatedSearch``: they have trained least.
        waiting = self._waiting()
        waiting.sort(key=lambda trial: (self.population[name_of(trial)].epoch, name_of(trial)))
        if waiting and self.admission.all_started and self.admission.free:
            self._forget_preemption(name_of(waiting[0]))
            return waiting[0]
        if (waiting or not self.admission.all_started or self.admission.oversubscribed()) and not self.admission.free:
            self._preempt_one()
        return None

    def others_waiting(self) -> bool:
        """Return whether a trial that may pause now should, so that another one gets its resources."""
        return bool(self._waiting()) or not self.admission.all_started or self.admission.oversubscribed()

    def _waiting(self) -> list[Trial]:
        """List the paused trials that could train."""
        paused = self.admission.paused()
        return [trial for trial in paused if self.ready(name_of(trial)) and name_of(trial) not in self.set_aside]

    def _preempt_one(self) -> None:
        """Preempt one trial that waits at a barrier, unless another is still giving up its resources."""
        running = {name_of(trial) for trial in self.admission.running()}
        if self._preempting in running:
            return
        # Only held trials are preempted, since they lose nothing. Tune pauses a trial only upon a result, and a held
        # trial gives none: all running trials could be held while those they wait for have no resources. So the channel
        # ends its request without a report, which on_trial_result answers with PAUSE.
        waiting = (name for name in sorted(running) if not self.ready(name))
        self._preempting = next(waiting, None)
        if self._preempting:
            self.population.preempt([self._preempting])

    def debug_string(self) -> str:
        """Return the text that Tune would print."""
        return type(self).__name__

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the population's own journal is the memory that counts."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see ``save``."""

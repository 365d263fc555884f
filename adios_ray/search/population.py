"""Population based training over live trials: Tune's scheduler, with exploits that restart nothing.

A trial is told to load its donor's checkpoint under a new configuration through the population's channel, between two
of its own steps. Everything that a decision rests on is written down before the decision takes effect, so that a
killed driver comes back to the same population and, with synchronous decisions, to the same lineage.
"""

import math
import time
from random import Random
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from adios_ray.config import TrialConfig, replaced
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import Member, PopulationState
from adios_ray.tracking.records import Settings
from adios_ray.tracking.run import Run
from adios_ray.training.checkpoints import Pointer

DIVERGED_SCORE = -1.0


class LivePopulation(PopulationBasedTraining):  # type: ignore[misc]  # Ray ships no type information
    """Tune's PBT with exploits in place, a memory on disk, and a bad score for diverged trials."""

    def __init__(self, space: SearchSpace, config: TrialConfig, state: PopulationState, run: Run, channel: Any) -> None:
        """Evolve the trials named in ``state`` over ``space``.

        Args:
            space: What is searched, and how.
            config: What all trials have in common.
            state: The population, fresh or as an earlier run left it.
            run: Where reports and exploits are recorded.
            channel: Handle of the population's channel.
        """
        super().__init__(
            time_attr="epoch",
            metric="fitness",
            mode="max",
            perturbation_interval=space.interval_epochs,
            custom_explore_fn=lambda values: values,  # exploring is the search space's work, see _explored
            quantile_fraction=space.quantile_fraction,
            synch=space.synchronous,
        )
        self._space, self._config, self._state, self._run, self._channel = space, config, state, run, channel
        self._began, self._seconds_before = time.monotonic(), state.seconds

    def __getstate__(self) -> dict[str, Any]:
        """What Tune stores with its own files: nothing that is open; ``PopulationState`` is the real memory."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_run", "_channel")}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take in a trial with what is remembered of it."""
        super().on_trial_add(tune_controller, trial)
        member, state = self._member(trial), self._trial_state[trial]
        state.last_score, state.last_train_time = member.score, member.epoch
        state.last_perturbation_time = member.decided_epoch

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Record a report, and decide about the trial (synchronous: about all) where the interval is over."""
        self.record(trial, result)
        member = self._member(trial)
        if self._synch:
            if member.epoch >= self._state.next_decision_epoch:
                ray.get(self._channel.hold.remote(_name(trial), True))
                self._pass_barrier(tune_controller)
        elif member.epoch - member.decided_epoch >= self._space.interval_epochs:
            self._decide([trial])
        self._remember()
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record the last report; the others no longer wait for this trial."""
        super().on_trial_complete(tune_controller, trial, result)
        self.record(trial, result)
        self._member(trial).finished = True
        self._pass_barrier(tune_controller, without=trial)
        self._remember()

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Go on without a trial that failed for good."""
        super().on_trial_error(tune_controller, trial)
        self._run.note(f"{_name(trial)} failed and is out of the population")
        self._pass_barrier(tune_controller, without=trial)

    def record(self, trial: Trial, result: dict[str, Any]) -> None:
        """Write a report down and update what is remembered of its trial."""
        member, state = self._member(trial), self._trial_state[trial]
        fitness = float(result["fitness"])
        self._run.report(_name(trial), result, self._settings(member))
        if result["divergence"]:
            self._run.note(f"{_name(trial)} diverged at {result['divergence']}; it waits for a donor")
        member.score = fitness if math.isfinite(fitness) else DIVERGED_SCORE
        member.epoch = int(result["epoch"])
        member.checkpoint = Pointer(path=result["checkpoint/path"], sha256=result["checkpoint/sha256"])
        state.last_score, state.last_train_time, state.last_result = member.score, member.epoch, result

    def _pass_barrier(self, tune_controller: Any, without: Trial | None = None) -> None:
        """Decide about the whole population once nobody is on the way to the decision's epoch any more."""
        waiting = [trial for trial in tune_controller.get_live_trials() if trial is not without]
        epoch = self._state.next_decision_epoch
        if not self._synch or not waiting or any(self._member(trial).epoch < epoch for trial in waiting):
            return
        self._state.next_decision_epoch = epoch + self._space.interval_epochs
        self._decide(waiting)
        ray.get([self._channel.hold.remote(_name(trial), False) for trial in waiting])

    def _decide(self, trials: list[Trial]) -> None:
        """Let each of ``trials`` that scores in the lowest quantile copy from one of the highest."""
        lower, upper = self._quantiles()
        exploits = []
        for trial in trials:
            member = self._member(trial)
            member.decided_epoch = self._trial_state[trial].last_perturbation_time = member.epoch
            if trial in lower:
                random = Random(f"{self._config.seed}/{_name(trial)}/{member.epoch}")
                exploits.append((trial, *self._explored(trial, random.choice(upper), random)))
        self._state.save(self._run.directory)
        for trial, config, checkpoint in exploits:
            self._num_perturbations += 1
            ray.get(
                self._channel.load.remote(
                    _name(trial), checkpoint.model_dump(mode="json"), config.model_dump(mode="json")
                )
            )

    def _explored(self, trial: Trial, donor: Trial, random: Random) -> tuple[TrialConfig, Pointer]:
        """Make ``trial`` a changed copy of ``donor`` in the population's memory and in the lineage."""
        old, source = self._member(trial), self._member(donor)
        assert source.checkpoint is not None
        values = self._space.explore(source.values, random)
        new = source.model_copy(update={"values": values, "score": old.score})
        scores = {_name(other): self._member(other).score for other in self._trial_state}
        self._run.exploit(
            epoch=source.epoch,
            trial=_name(trial),
            donor=_name(donor),
            old=self._settings(old),
            new=self._settings(new),
            scores={name: score for name, score in scores.items() if score is not None},
        )
        self._state.exploits += 1
        self._state.members[_name(trial)] = new
        self._trial_state[trial].last_perturbation_time = new.decided_epoch
        self._trial_state[trial].last_train_time = new.epoch
        return replaced(self._config, values), source.checkpoint

    def _remember(self) -> None:
        """Write the population down, and delete what nobody goes on from any more."""
        self._state.seconds = self._seconds_before + time.monotonic() - self._began
        self._state.save(self._run.directory)
        self._state.remove_unused_checkpoints(self._run.directory)

    def _member(self, trial: Trial) -> Member:
        return self._state.members[_name(trial)]

    def _settings(self, member: Member) -> Settings:
        return settings_of(replaced(self._config, member.values))


def settings_of(config: TrialConfig) -> Settings:
    """What the population adapts, out of a trial's configuration."""
    return Settings(
        sparsity_weight=config.masking.sparsity_weight,
        encoder_lr=config.optimizer.encoder_lr,
        occlusion_lr=config.optimizer.occlusion_lr,
        slots=config.masking.slots,
    )


def _name(trial: Trial) -> str:
    return str(trial.config["trial"])

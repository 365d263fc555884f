"""Searches that start many trials and stop poor ones early, by the rule of one of Tune's own schedulers."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from adios_ray.backend.admission import Admission, name_of
from adios_ray.search.population import WORST_SCORE, Population
from adios_ray.search.scheduler import PAUSE, STOP, LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.suggest import Suggest


class _Reported:
    """All of a trial that Tune's rules read: an ID, here the name, which stays the same over restarts."""

    def __init__(self, name: str) -> None:
        """Use the name as ID."""
        self.trial_id = name


class StoppingSearch(LiveScheduler):
    """Trains each trial with fixed values until it ends or the rule stops it."""

    def __init__(self, population: Population, admission: Admission, rule: TrialScheduler, suggest: Suggest) -> None:
        """Search with a rule, which is replayed all earlier reports.

        Args:
            population: The trials so far.
            admission: Which trials may run.
            rule: Decides which trials to stop, by "epoch" and "fitness".
            suggest: Makes the values of a new trial.
        """
        super().__init__(population, admission)
        self._rule, self._suggest = rule, suggest
        self._reported: dict[str, _Reported] = {}
        for name in population.state.members:
            self._add_to_rule(name)
        # In the order of the journal, in which the rule heard them: its answer depends on what came before.
        answers = {
            observed.trial: self._ask_rule(observed.trial, observed.epochs[1], observed.scores[1])
            for observed in population.state.observations.values()
        }
        # The population knows which trials were stopped, except at what was the last epoch before the run was made
        # longer: there the rule may stop trials that ended by themselves, and would not be asked about them again.
        for name, answer in answers.items():
            member = population[name]
            if answer == STOP and not member.finished and member.epoch == member.restarted_epoch:
                member.finished = True
                population.commit(name)

    def introduce(self, name: str) -> None:
        """Suggest a new trial's values and journal them; an earlier trial keeps its own."""
        if name not in self.population.state.members:
            self.population.state.add(name, self._suggest(name))
            self.population.commit(name)
            self._add_to_rule(name)
        super().introduce(name)

    def ready(self, name: str) -> bool:
        """Return True: no trial waits for others."""
        return True

    def decide(self, name: str) -> str:
        """Stop a trial that diverged or that the rule stops."""
        member = self.population[name]
        assert member.score is not None
        return self._ask_rule(name, member.epoch, member.score)

    def fate_of_diverged(self, name: str) -> str:
        """Say that the trial is stopped: only evolving populations have donors."""
        return "it is stopped"

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record a trial's last report, with which the rule compares others."""
        was_finished = self.population[name_of(trial)].finished
        super().on_trial_complete(tune_controller, trial, result)
        if not was_finished and self.failure is None:  # else the rule would count the report twice, or lack it
            self.decide(name_of(trial))

    def _add_to_rule(self, name: str) -> None:
        self._reported[name] = _Reported(name)
        self._rule.on_trial_add(None, self._reported[name])

    def _ask_rule(self, name: str, epoch: int, score: float) -> str:
        """Tell the rule of a report, of this driver or an earlier one, and return what the trial does next."""
        # The rule is not told of failures: the number that stands for them would move its means and percentiles.
        if score == WORST_SCORE:
            return str(STOP)
        result = {"epoch": epoch, "fitness": score}
        answer = self._rule.on_trial_result(_NoController, self._reported[name], result)
        return str(STOP if answer == PAUSE else answer)


class _NoController:
    """Stands in for Tune's controller: the median rule asks it for pending trials, and would pause its own for them."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        """Return no trials: admission alone shares capacity."""
        return []


def make_rule(space: SearchSpace, epochs: int) -> TrialScheduler:
    """Build the stopping rule of a search space for trials of ``epochs`` epochs."""
    common = {"time_attr": "epoch", "metric": "fitness", "mode": "max"}
    if space.scheduler == "asha":
        return AsyncHyperBandScheduler(
            max_t=epochs,
            grace_period=min(space.grace_epochs, epochs),
            reduction_factor=space.reduction_factor,
            stop_last_trials=False,  # else reports at max_t are not recorded in their rung, for others to compare with
            **common,
        )
    if space.scheduler == "median":
        return MedianStoppingRule(
            grace_period=space.grace_epochs,
            min_samples_required=space.min_trials,
            hard_stop=False,  # the answer is PAUSE instead of STOP, after which the rule may hear from the trial again
            **common,
        )
    if space.scheduler == "none":
        return FIFOScheduler()
    raise AssertionError(f"{space.scheduler} has no stopping rule")

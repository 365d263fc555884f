"""Searches that start many trials and stop the poor ones early: a rule of Tune's decides, the population remembers."""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from adios_ray.backend.admission import Admission, name_of
from adios_ray.search.population import WORST_SCORE, Population
from adios_ray.search.scheduler import STOP, LiveScheduler
from adios_ray.search.spaces import SearchSpace

Suggest = Callable[[str], dict[str, Any]]
"""Values for a new trial, by its name."""


class _Reported:
    """What a rule of Tune's wants to know of a trial: its name, which stays the same over restarts."""

    def __init__(self, name: str) -> None:
        """Take the name."""
        self.trial_id = name


class StoppingSearch(LiveScheduler):
    """Each trial trains with the values that it was given until it ends or the rule stops it."""

    def __init__(self, population: Population, admission: Admission, rule: TrialScheduler, suggest: Suggest) -> None:
        """Search with a rule, which hears of all that was reported before.

        Args:
            population: The trials so far.
            admission: Which trials may run.
            rule: Decides about stopping, by "epoch" and "fitness".
            suggest: Makes a new trial's values.
        """
        super().__init__(population, admission)
        self._rule, self._suggest = rule, suggest
        self._reported: dict[str, _Reported] = {}
        for name in population.state.members:
            self._add_to_rule(name)
        for observed in sorted(population.state.observations.values(), key=lambda observed: observed.epochs[1]):
            self._ask_rule(observed.trial, observed.epochs[1], observed.scores[1])

    def introduce(self, name: str) -> None:
        """Make up a new trial's values, or take up one that began before."""
        if name not in self.population.state.members:
            self.population.state.add(name, self._suggest(name))
            self.population.commit(name)
            self._add_to_rule(name)
        super().introduce(name)

    def ready(self, name: str) -> bool:
        """Nobody waits for others."""
        return True

    def decide(self, name: str) -> str:
        """Stop what diverged, and what the rule stops."""
        member = self.population[name]
        assert member.score is not None
        if member.score == WORST_SCORE:
            return str(STOP)
        return self._ask_rule(name, member.epoch, member.score)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record a trial's last report; the rule compares others with it."""
        heard = self.population[name_of(trial)].finished
        super().on_trial_complete(tune_controller, trial, result)
        if not heard:
            self.decide(name_of(trial))

    def _add_to_rule(self, name: str) -> None:
        self._reported[name] = _Reported(name)
        self._rule.on_trial_add(None, self._reported[name])

    def _ask_rule(self, name: str, epoch: int, score: float) -> str:
        result = {"epoch": epoch, "fitness": score}
        return str(self._rule.on_trial_result(_NoController, self._reported[name], result))


class _NoController:
    """In place of Tune's controller: rules look in it for trials that wait, which is not theirs to know here."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        """None of them."""
        return []


def make_rule(space: SearchSpace, epochs: int) -> TrialScheduler:
    """The stopping rule of a search space for trainings of so many epochs."""
    common = {"time_attr": "epoch", "metric": "fitness", "mode": "max"}
    if space.scheduler == "asha":
        return AsyncHyperBandScheduler(
            max_t=epochs,
            grace_period=min(space.grace_epochs, epochs),
            reduction_factor=space.reduction_factor,
            stop_last_trials=False,
            **common,
        )
    if space.scheduler == "median":
        return MedianStoppingRule(grace_period=space.grace_epochs, min_samples_required=space.min_trials, **common)
    return FIFOScheduler()

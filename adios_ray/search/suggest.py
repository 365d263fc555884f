"""Where trials begin: random draws, a grid, or hyperopt's tree-structured Parzen estimator."""

from collections.abc import Callable
from random import Random
from typing import Any

from ray import tune
from ray.tune.search.hyperopt import HyperOptSearch

from adios_ray.config import TrialConfig, value_at
from adios_ray.search.spaces import Choice, Integer, Parameter, SearchSpace
from adios_ray.search.state import PopulationState

STARTUP_TRIALS = 10

Suggest = Callable[[str], dict[str, Any]]
"""Values for a new trial, by its name."""


def make_suggest(space: SearchSpace, config: TrialConfig, state: PopulationState) -> Suggest:
    """The source of new trials' values that a search space asks for.

    Args:
        space: What is searched, and how.
        config: What all trials have in common; random draws begin with its own values.
        state: The trials so far; it is looked at again for each new one.
    """
    if space.search == "hyperopt":
        return TreeParzen(space, config.seed, state)
    if space.search == "grid":
        combinations = list(space.combinations())
        return lambda name: combinations[len(state.members)]
    return lambda name: _drawn(space, config, len(state.members))


def _drawn(space: SearchSpace, config: TrialConfig, number: int) -> dict[str, Any]:
    """The first trial begins with the configured values, the others with values drawn from the space."""
    if number == 0:
        return {path: value_at(config, path) for path in space.parameters}
    return space.sample(Random(f"{config.seed}/{number}"))


class TreeParzen:
    """Values that did well before are likely (Bergstra et al. 2011); the first trials are random draws."""

    def __init__(self, space: SearchSpace, seed: int, state: PopulationState) -> None:
        """Go on after the trials of ``state``, whose values and scores hyperopt is told again."""
        self._space, self._state = space, state
        self._told: set[str] = set()
        known = [dict(member.values) for member in state.members.values()]
        self._search = HyperOptSearch(
            space={path: _distribution(parameter) for path, parameter in space.parameters.items()},
            metric="score",
            mode="max",
            points_to_evaluate=known or None,
            n_initial_points=STARTUP_TRIALS,
            random_state_seed=seed + len(known),
        )
        for name in state.members:
            self._search.suggest(name)

    def __call__(self, name: str) -> dict[str, Any]:
        """Values for the trial ``name``, after all trials that have ended."""
        for other, member in self._state.members.items():
            if member.finished and member.score is not None and other not in self._told:
                self._told.add(other)
                self._search.on_trial_complete(other, {"score": member.score})
        drawn = self._search.suggest(name)
        return {path: _typed(parameter, drawn[path]) for path, parameter in self._space.parameters.items()}


def _distribution(parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return tune.choice(parameter.values)
    if isinstance(parameter, Integer):
        return tune.choice(list(range(parameter.low, parameter.high + 1, parameter.step)))
    if parameter.scale == "log":
        return tune.loguniform(parameter.low, parameter.high)
    return tune.uniform(parameter.low, parameter.high)


def _typed(parameter: Parameter, value: Any) -> Any:
    """A plain Python value inside the bounds."""
    return value if isinstance(parameter, Choice | Integer) else parameter.clipped(float(value))

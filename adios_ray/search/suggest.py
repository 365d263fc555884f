"""Initial values of trials: random draws, a grid, or hyperopt's tree-structured Parzen estimator (TPE)."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from ray import tune

from adios_ray.config import TrialConfig
from adios_ray.search.parameters import Continuous, Parameter
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState

MOST_STARTUP_TRIALS = 10
"""Most random draws before the estimator takes over."""

Suggest = Callable[[str], dict[str, Any]]
"""Makes the values of a new trial from its name."""


def startup_trials(trials: int) -> int:
    """Return how many of a search's trials are random draws before the estimator takes over: a third, at most 10."""
    return min(MOST_STARTUP_TRIALS, -(-trials // 3))


def make_suggest(space: SearchSpace, config: TrialConfig, state: PopulationState, trials: int) -> Suggest:
    """Build the source of new trials' values that a search space names.

    Args:
        space: What is searched, and how.
        config: What all trials have in common; the first trial takes its values, except in a grid.
        state: The trials so far, read again for each new one.
        trials: How many trials the search will have.
    """
    if space.search == "hyperopt":
        return TreeParzen(space, config, state, random_trials(space, config, trials))
    if space.search == "grid":
        combinations = list(space.combinations())
        return lambda name: combinations[len(state.members)]

    def draw(name: str) -> dict[str, Any]:
        number = len(state.members)
        # The configured values are tried first: the search then contains the plain training it is compared with.
        if number < max(1, space.controls or 0):
            return space.configured(config)
        return space.sample(Random(f"{config.seed}/{number}"))

    return draw


def fill(
    state: PopulationState,
    space: SearchSpace,
    config: TrialConfig,
    names: Sequence[str],
    population: int | None = None,
) -> None:
    """Add all trials of a new population, the controls first.

    Args:
        state: Where to add them.
        space: A search space that knows the trials' values before they train: not hyperopt's.
        config: What all trials have in common.
        names: Their names.
        population: How many remain after an opening; None: all.
    """
    suggest, controls = make_suggest(space, config, state, len(names)), space.controls_among(population or len(names))
    for number, name in enumerate(names):
        state.add(name, suggest(name), control=number < controls)


def initial_values(space: SearchSpace, config: TrialConfig, population: int) -> list[dict[str, Any]]:
    """List the values with which trials will begin, as far as they are known before: none of hyperopt's."""
    if space.search == "hyperopt":
        return []
    state = PopulationState(next_decision_epoch=1)
    fill(state, space, config, [str(number) for number in range(space.trials(population))], population)
    return [member.values for member in state.members.values()]


def random_trials(space: SearchSpace, config: TrialConfig, trials: int) -> int:
    """Return how many trials hyperopt draws at random after the first one, which has the configured values."""
    # It needs one to begin with, which the configured values are if it can place them.
    fewest = 0 if space.contains(space.configured(config)) else 1
    return max(startup_trials(trials) - 1, fewest)


class TreeParzen:
    """Draws values that resemble good earlier ones (TPE, Bergstra et al. 2011).

    The first are the configured values, inside the space or not; ``random`` ones follow.
    """

    def __init__(self, space: SearchSpace, config: TrialConfig, state: PopulationState, random: int) -> None:
        """Continue after the trials of ``state``, whose values and scores are replayed to hyperopt."""
        from ray.tune.search.hyperopt import HyperOptSearch  # here: other searches need not wait for hyperopt

        self._space, self._state, self._configured, self._seed = space, state, space.configured(config), config.seed
        # Trials whose scores hyperopt accepts: those that it suggested. It cannot place values outside of the space.
        self._told = [name for name, member in state.members.items() if space.contains(member.values)]
        self._completed: set[str] = set()
        inside = space.contains(self._configured)
        first = [self._placed(self._configured)] if inside and not state.members else []
        # Ray asks for known points in this order, but numbers them in the other one, by which TPE forgets the oldest.
        replayed = self._told[::-1]
        self._search = HyperOptSearch(
            space={path: _distribution(parameter) for path, parameter in space.parameters.items()},
            metric="score",
            mode="max",
            points_to_evaluate=[self._placed(state.members[name].values) for name in replayed] or first or None,
            n_initial_points=random + inside,
        )
        for name in replayed:
            self._search.suggest(name)

    def __call__(self, name: str) -> dict[str, Any]:
        """Suggest values for the trial ``name``, after the scores of all trials that have ended."""
        if not self._state.members and not self._space.contains(self._configured):
            return self._configured
        for other in self._told:
            member = self._state.members[other]
            ended = member.finished or member.restarted_epoch  # at its first end, if it trains on now
            if ended and member.score is not None and other not in self._completed:
                self._completed.add(other)
                self._search.on_trial_complete(other, {"score": member.score})
        self._told.append(name)
        # Not from one stream: a restarted driver makes the same suggestions.
        self._search.rstate.seed((self._seed, len(self._state.members)))
        drawn = self._search.suggest(name)
        # Exponentials of drawn logarithms may miss the bounds by rounding.
        return {
            path: parameter.clipped(float(drawn[path]))
            if isinstance(parameter, Continuous)
            else parameter.options[drawn[path]]
            for path, parameter in self._space.parameters.items()
        }

    def _placed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values as hyperopt knows them: it cannot look up an option that is a list or a mapping."""
        return {
            path: values[path] if isinstance(parameter, Continuous) else parameter.options.index(values[path])
            for path, parameter in self._space.parameters.items()
        }


def _distribution(parameter: Parameter) -> Any:
    """Return how hyperopt draws a number, or the position of an option."""
    if not isinstance(parameter, Continuous):
        return tune.choice(list(range(len(parameter.options))))
    if parameter.scale == "log":
        return tune.loguniform(parameter.low, parameter.high)
    return tune.uniform(parameter.low, parameter.high)

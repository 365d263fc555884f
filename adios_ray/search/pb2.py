"""PB2's way of exploring (Parker-Holder et al. 2020): a Gaussian process over time, score and values picks a copy's."""

import math
from random import Random
from typing import Any

import numpy as np

from adios_ray.search.gaussian_process import Vector, choose
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.spaces import Continuous, Integer, Parameter, SearchSpace
from adios_ray.search.state import Member, Observation, PopulationState

FEWEST_OBSERVATIONS = 4


class PB2:
    """Maximizes an upper confidence bound on the gain in score per epoch, by a time-varying Gaussian process.

    Its data are all trials' gains between two reports, under the epoch, the score and the values at which they were
    made; values on a log scale go in as logarithms. Copies of one decision keep away from each other.
    """

    def __init__(self, space: SearchSpace, state: PopulationState) -> None:
        """Explore a space by what the population has observed."""
        self._space, self._state = space, state
        self._chosen: list[tuple[int, Vector]] = []

    def __call__(self, name: str, donor: Member, random: Random) -> dict[str, Any]:
        """Values for the trial ``name``, which becomes a copy of ``donor``; perturbed ones while little is known."""
        known = [observed for observed in self._state.observations.values() if _is_gain(observed)]
        if len(known) < FEWEST_OBSERVATIONS or donor.score is None:
            return self._space.explore(donor.values, random)
        known.sort(key=lambda observed: (observed.epochs[1], observed.trial))
        rows = np.array([[o.epochs[1], o.scores[0], *self._vector(o.values)] for o in known], dtype=np.float64)
        gains = np.array([(o.scores[1] - (o.scores[0] or 0.0)) / (o.epochs[1] - o.epochs[0]) for o in known])
        others = [vector for epoch, vector in self._chosen if epoch == donor.epoch]
        point = np.array([donor.epoch, donor.score], dtype=np.float64)
        bounds = np.array([_bounds(parameter) for parameter in self._space.parameters.values()]).T
        given = np.array(others).reshape(-1, bounds.shape[1])
        chosen = choose(rows, gains, given, point, bounds, np.random.default_rng(random.getrandbits(64)))
        self._chosen.append((donor.epoch, chosen))
        return {
            path: _value(parameter, number)
            for (path, parameter), number in zip(self._space.parameters.items(), chosen.tolist(), strict=True)
        }

    def _vector(self, values: dict[str, Any]) -> list[float]:
        return [_number(parameter, values[path]) for path, parameter in self._space.parameters.items()]


def _is_gain(observed: Observation) -> bool:
    """Whether both scores are known and neither stands for a failure."""
    before, after = observed.scores
    return before is not None and before > WORST_SCORE and after > WORST_SCORE


def _number(parameter: Parameter, value: float) -> float:
    on_log_scale = isinstance(parameter, Continuous) and parameter.scale == "log"
    return math.log(value) if on_log_scale else float(value)


def _bounds(parameter: Parameter) -> tuple[float, float]:
    assert isinstance(parameter, Continuous | Integer)
    return _number(parameter, parameter.low), _number(parameter, parameter.high)


def _value(parameter: Parameter, number: float) -> Any:
    if isinstance(parameter, Integer):
        steps = round((number - parameter.low) / parameter.step)
        return min(max(parameter.low + steps * parameter.step, parameter.low), parameter.high)
    assert isinstance(parameter, Continuous)
    return parameter.clipped(math.exp(number) if parameter.scale == "log" else number)

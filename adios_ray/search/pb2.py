"""PB2 (Parker-Holder et al. 2020): explores by a Gaussian process over time, score and values."""

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

    Its data are the gains of all trials between two reports, with the epoch, score and values they were made at; values
    on a log scale enter as logarithms. Copies that are made in one decision get values apart from each other.
    """

    def __init__(self, space: SearchSpace, state: PopulationState) -> None:
        """Explore a space by the population's observations."""
        self._space, self._state = space, state
        self._chosen: list[tuple[int, Vector]] = []

    def __call__(self, name: str, donor: Member, random: Random) -> dict[str, Any]:
        """Choose values for a copy of ``donor``; while there are too few observations, perturb the donor's."""
        known = [observed for observed in self._state.observations.values() if _is_gain(observed)]
        if len(known) < FEWEST_OBSERVATIONS or donor.score is None:
            return self._space.explore(donor.values, random)
        # Oldest first, ties by name and not by arrival: rounding in the fit depends on the order, and a restarted
        # driver must come to the same values.
        known.sort(key=lambda observed: (observed.epochs[1], observed.trial))
        parameters = self._space.parameters.items()
        rows = np.array(
            [[o.epochs[1], o.scores[0], *(_number(p, o.values[path]) for path, p in parameters)] for o in known],
            dtype=np.float64,
        )
        gains = np.array([(o.scores[1] - (o.scores[0] or 0.0)) / (o.epochs[1] - o.epochs[0]) for o in known])
        others = [vector for epoch, vector in self._chosen if epoch == donor.epoch]
        point = np.array([donor.epoch, donor.score], dtype=np.float64)
        bounds = np.array([_bounds(parameter) for _, parameter in parameters]).T
        given = np.array(others).reshape(-1, bounds.shape[1])
        chosen = choose(rows, gains, given, point, bounds, np.random.default_rng(random.getrandbits(64)))
        self._chosen.append((donor.epoch, chosen))
        return {
            path: _value(parameter, number)
            for (path, parameter), number in zip(parameters, chosen.tolist(), strict=True)
        }


def _is_gain(observed: Observation) -> bool:
    """Return whether both scores are known and neither stands for a failure."""
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

"""PB2 (Parker-Holder et al. 2020): explores by a Gaussian process over time, score and values."""

import math
from random import Random
from typing import Any

import numpy as np

from adios_ray.search.gaussian_process import Data, Surrogate
from adios_ray.search.parameters import Continuous, Integer, Parameter
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import Member, Observation, PopulationState

FEWEST_OBSERVATIONS = 4


class PB2:
    """Maximizes an upper confidence bound on the gain in score per epoch, by a time-varying Gaussian process.

    Its data are the gains of all trials between two reports, with their standard errors and the epoch, score and values
    they were made at; values on a log scale enter as logarithms. Values are chosen apart from those under which other
    trials have yet to report.
    """

    def __init__(self, space: SearchSpace, state: PopulationState) -> None:
        """Explore a space by the population's observations, and by nothing else: a restarted driver repeats it."""
        self._space, self._state = space, state
        # Fitted once for all copies of a decision: by far the greatest part of its cost.
        self._fitted: tuple[list[Observation], Surrogate] | None = None

    def __call__(self, name: str, donor: Member, random: Random) -> dict[str, Any]:
        """Choose values for a copy of ``donor``; while there are too few observations, perturb the donor's."""
        known = [observed for observed in self._state.observations.values() if _is_gain(observed)]
        if len(known) < FEWEST_OBSERVATIONS or donor.base_score is None:
            return self._space.explore(donor.values, random)
        if self._fitted is None or self._fitted[0] != known:
            self._fitted = known, self._fit(known)
        # Copies that have not reported since; not the trial itself, which is about to get other values.
        pending = [
            self._row(member.epoch, member.base_score, member.values)
            for other, member in self._state.members.items()
            if member.replaced_history is not None and other != name
        ]
        chosen = self._fitted[1].choose(
            np.array(pending, dtype=np.float64).reshape(-1, 2 + len(self._space.parameters)),
            np.array([donor.epoch, donor.base_score], dtype=np.float64),
            np.random.default_rng(random.getrandbits(64)),
        )
        return {
            path: _value(parameter, number)
            for (path, parameter), number in zip(self._space.parameters.items(), chosen.tolist(), strict=True)
        }

    def _fit(self, known: list[Observation]) -> Surrogate:
        # Oldest first, ties by name and not by arrival: rounding in the fit depends on the order, and a restarted
        # driver must come to the same values.
        known = sorted(known, key=lambda observed: (observed.epochs[1], observed.trial))
        epochs = np.array([after - before for before, after in (observed.epochs for observed in known)])
        data = Data(
            np.array([self._row(o.epochs[1], o.scores[0], o.values) for o in known], dtype=np.float64),
            np.array([o.scores[1] - (o.scores[0] or 0.0) for o in known]) / epochs,
            np.array([o.standard_error or 0.0 for o in known]) / epochs,
        )
        return Surrogate(data, np.array([_bounds(parameter) for parameter in self._space.parameters.values()]).T)

    def _row(self, epoch: int, score: float | None, values: dict[str, Any]) -> list[float | None]:
        return [epoch, score, *(_number(p, values[path]) for path, p in self._space.parameters.items())]


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

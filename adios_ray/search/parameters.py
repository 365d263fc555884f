"""Searched values: their bounds, and how they are drawn and changed."""

import math
from collections.abc import Sequence
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from adios_ray.config import Strict

MOST_EXAMPLES = 256
"""Values of one parameter that are checked before a run."""


class _Parameter(Strict):
    unit: str = ""
    """Unit of the numbers, for readers."""
    resample_probability: float | None = Field(None, ge=0, le=1)
    """Probability that this value is resampled instead of perturbed; null, or left out, takes the search space's."""


class _Bounded(_Parameter):
    low: float = Field(allow_inf_nan=False)
    """Smallest value."""
    high: float = Field(allow_inf_nan=False)
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self

    @property
    def extremes(self) -> list[Any]:
        """The values that a configuration must accept, so that it accepts all others too."""
        return [self.low, self.high]


class Continuous(_Bounded):
    """A real number, perturbed by a factor."""

    scale: Literal["linear", "log"]
    """How it is drawn: uniformly, or uniformly in its logarithm."""
    factor: float = Field(1.25, gt=1)
    """A perturbation multiplies or divides by this."""

    @model_validator(mode="after")
    def _positive_on_log_scale(self) -> Self:
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 on a log scale")
        return self

    def sample(self, random: Random) -> float:
        """Draw a value."""
        if self.scale == "log":
            return self.clipped(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return random.uniform(self.low, self.high)

    def contains(self, value: float | None) -> bool:
        """Return whether a value is inside the bounds."""
        return value is not None and self.low <= value <= self.high

    def perturb(self, value: float, random: Random) -> float:
        """Return a neighboring value inside the bounds; a drawn one for 0, which has no neighbor by a factor."""
        if value == 0:
            return self.sample(random)
        return self.clipped(value * random.choice((self.factor, 1 / self.factor)))

    def clipped(self, value: float) -> float:
        """Return the nearest value inside the bounds."""
        return min(max(value, self.low), self.high)


class Integer(_Bounded):
    """An integer, perturbed by a step."""

    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    scale: Literal["integer"]
    """Drawn uniformly from low, low + step, ... up to high."""
    step: int = Field(1, ge=1)
    """A perturbation adds or subtracts this."""

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if (self.high - self.low) % self.step:
            raise ValueError(f"high {self.high} is not a whole number of steps of {self.step} above low {self.low}")
        return self

    @property
    def options(self) -> Sequence[int]:
        """All values, ascending."""
        return range(self.low, self.high + 1, self.step)

    def sample(self, random: Random) -> int:
        """Draw a value."""
        return random.choice(self.options)

    def contains(self, value: int | None) -> bool:
        """Return whether a value is one of those that are drawn."""
        return value is not None and value in self.options

    def perturb(self, value: int, random: Random) -> int:
        """Return a neighboring value: the next one above or below that can be drawn."""
        steps, beyond = divmod(value - self.low, self.step)
        neighbor = random.choice((steps + 1, steps if beyond else steps - 1))
        return min(max(self.low + neighbor * self.step, self.low), self.high)


class Choice(_Parameter):
    """One of several values; a perturbation moves to a neighbor in their order."""

    values: list[Any] = Field(min_length=2)
    """The values, in a meaningful order."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if any(value in self.values[:position] for position, value in enumerate(self.values)):
            raise ValueError(f"values {self.values} contain a duplicate")
        return self

    @property
    def options(self) -> Sequence[Any]:
        """All values, in their order."""
        return self.values

    @property
    def extremes(self) -> list[Any]:
        """All values."""
        return self.values

    def sample(self, random: Random) -> Any:
        """Draw a value."""
        return random.choice(self.values)

    def contains(self, value: Any) -> bool:
        """Return whether a value is in the list."""
        return value in self.values

    def perturb(self, value: Any, random: Random) -> Any:
        """Return the next value or the one before; resample a value that is not in the list."""
        if not self.contains(value):
            return self.sample(random)
        position = self.values.index(value) + random.choice((1, -1))
        return self.values[min(max(position, 0), len(self.values) - 1)]


def _kind(values: Any) -> str:
    # pydantic asks with a dict when it validates and with a model when it serializes.
    given = values if isinstance(values, dict) else getattr(values, "__dict__", {})
    if "values" in given:
        return "choice"
    return "integer" if given.get("scale") == "integer" else "continuous"


Parameter = Annotated[
    Annotated[Continuous, Tag("continuous")] | Annotated[Integer, Tag("integer")] | Annotated[Choice, Tag("choice")],
    Discriminator(_kind),
]


def examples(parameter: Parameter) -> Sequence[Any]:
    """List values of a parameter: those between its bounds may be wrong where the bounds are right."""
    if isinstance(parameter, Integer):
        return parameter.options[:MOST_EXAMPLES]
    if isinstance(parameter, Continuous):  # a whole number is asked for where only the bounds are accepted
        return [*parameter.extremes, parameter.low + (parameter.high - parameter.low) / math.pi]
    return parameter.extremes

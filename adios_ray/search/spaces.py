"""Search spaces: data files that say what is searched, between which bounds, and how a value is changed."""

import math
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Discriminator, Field, Tag, model_validator

from adios_ray.config import ConfigError, Strict, TrialConfig, parse, replaced, value_at


class _Bounded(Strict):
    low: float
    """Smallest value."""
    high: float
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


class Continuous(_Bounded):
    """A number that is perturbed by a factor."""

    scale: Literal["linear", "log"]
    """How it is drawn: evenly, or evenly in its logarithm."""
    factor: float = Field(1.25, gt=1)
    """A perturbation multiplies or divides by this."""

    @model_validator(mode="after")
    def _positive_on_log_scale(self) -> Self:
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 on a log scale")
        return self

    def sample(self, random: Random) -> float:
        """A fresh value."""
        if self.scale == "log":
            return self.clipped(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return random.uniform(self.low, self.high)

    def perturb(self, value: float, random: Random) -> float:
        """A neighbouring value, inside the bounds."""
        return self.clipped(value * random.choice((self.factor, 1 / self.factor)))

    def clipped(self, value: float) -> float:
        """The nearest value inside the bounds."""
        return min(max(value, self.low), self.high)


class Integer(_Bounded):
    """A whole number that is perturbed by a step."""

    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    scale: Literal["integer"]
    """Drawn evenly from low, low + step, ... up to high."""
    step: int = Field(1, ge=1)
    """A perturbation adds or subtracts this."""

    def sample(self, random: Random) -> int:
        """A fresh value."""
        return random.choice(range(self.low, self.high + 1, self.step))

    def perturb(self, value: int, random: Random) -> int:
        """A neighbouring value, inside the bounds."""
        return min(max(value + random.choice((self.step, -self.step)), self.low), self.high)


def _kind(values: Any) -> str:
    scale = values.get("scale") if isinstance(values, dict) else getattr(values, "scale", None)
    return "integer" if scale == "integer" else "continuous"


Parameter = Annotated[
    Annotated[Continuous, Tag("continuous")] | Annotated[Integer, Tag("integer")], Discriminator(_kind)
]


class SearchSpace(Strict):
    """What a population searches and how it evolves."""

    scheduler: Literal["pbt"]
    """Population based training (Jaderberg et al. 2017)."""
    synchronous: bool
    """Decide when all trials have reached the interval, or for each trial as it does."""
    interval_epochs: int = Field(ge=1)
    """Epochs between two decisions about a trial."""
    quantile_fraction: float = Field(0.25, gt=0, le=0.5)
    """Share of the population that is replaced, and share that is copied from."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """Chance that a value is drawn afresh instead of perturbed."""
    parameters: dict[str, Parameter]
    """Configuration path of each searched value with its bounds."""

    def sample(self, random: Random) -> dict[str, Any]:
        """Fresh values for all parameters, by path."""
        return {path: parameter.sample(random) for path, parameter in self.parameters.items()}

    def explore(self, values: dict[str, Any], random: Random) -> dict[str, Any]:
        """Changed values: each drawn afresh with the resample probability, else perturbed."""
        changed = {}
        for path, parameter in self.parameters.items():
            fresh = random.random() < self.resample_probability
            changed[path] = parameter.sample(random) if fresh else parameter.perturb(values[path], random)
        return changed

    def bind(self, config: TrialConfig, origin: str = "search space") -> None:
        """Check that every path exists and that both bounds are allowed there.

        Raises:
            ConfigError: Naming the path.
        """
        for path, parameter in self.parameters.items():
            value_at(config, path)
            for bound in (parameter.low, parameter.high):
                replaced(config, {path: bound}, origin)


def load_space(path: Path) -> SearchSpace:
    """Read a search space from its YAML file.

    Raises:
        ConfigError: If the file is missing or says something that a search space cannot.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"search space {path} does not exist") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"search space {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"search space {path} is not a mapping")
    return parse(SearchSpace, values, f"search space {path}")

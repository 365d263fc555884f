"""Search spaces: data files that say what is searched, between which bounds, how values are found and changed."""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from adios_ray.config import Strict, TrialConfig, adaptable, current_path, replaced, value_at
from adios_ray.errors import ConfigError
from adios_ray.files import atomic_write
from adios_ray.validation import parse


class _Parameter(Strict):
    unit: str = ""
    """What the numbers count, for people."""
    resample_probability: float | None = Field(None, ge=0, le=1)
    """Chance that this value is drawn afresh instead of perturbed; None takes the search space's."""


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
        """The values that a configuration must allow for all others to be allowed."""
        return [self.low, self.high]


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
        """A neighboring value, inside the bounds."""
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

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if (self.high - self.low) % self.step:
            raise ValueError(f"high {self.high} is not low {self.low} and a whole number of steps of {self.step}")
        return self

    def sample(self, random: Random) -> int:
        """A fresh value."""
        return random.choice(range(self.low, self.high + 1, self.step))

    def perturb(self, value: int, random: Random) -> int:
        """A neighboring value, inside the bounds."""
        return min(max(value + random.choice((self.step, -self.step)), self.low), self.high)


class Choice(_Parameter):
    """One of some values, in an order that means something to a perturbation."""

    values: list[Any] = Field(min_length=2)
    """All that it can be."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if any(value in self.values[:position] for position, value in enumerate(self.values)):
            raise ValueError(f"values {self.values} hold one of them twice")
        return self

    @property
    def extremes(self) -> list[Any]:
        """All values."""
        return self.values

    def sample(self, random: Random) -> Any:
        """A fresh value."""
        return random.choice(self.values)

    def perturb(self, value: Any, random: Random) -> Any:
        """The next value or the one before; a fresh one for a value that is not in the list."""
        if value not in self.values:
            return self.sample(random)
        position = self.values.index(value) + random.choice((1, -1))
        return self.values[min(max(position, 0), len(self.values) - 1)]


def _kind(values: Any) -> str:
    given = values if isinstance(values, dict) else getattr(values, "__dict__", {})
    if "values" in given:
        return "choice"
    return "integer" if given.get("scale") == "integer" else "continuous"


Parameter = Annotated[
    Annotated[Continuous, Tag("continuous")] | Annotated[Integer, Tag("integer")] | Annotated[Choice, Tag("choice")],
    Discriminator(_kind),
]

Scheduler = Literal["pbt", "pb2", "asha", "median", "none"]
Search = Literal["random", "hyperopt", "grid"]

EVOLVING: tuple[Scheduler, ...] = ("pbt", "pb2")
"""Schedulers that change trials while they train."""

_OPTIONS: Mapping[str, tuple[Scheduler, ...]] = {
    "synchronous": EVOLVING,
    "interval_epochs": EVOLVING,
    "quantile_fraction": EVOLVING,
    "resample_probability": ("pbt",),
    "grace_epochs": ("asha", "median"),
    "reduction_factor": ("asha",),
    "min_trials": ("median",),
}
"""The schedulers that each option is for."""


_KEPT_POSITIVE = ("masking.sparsity_weight",)
"""Values that may be 0 in a fixed training, but not in a search: without the penalty masks collapse."""


class SearchSpace(Strict):
    """What a population searches and how it evolves."""

    scheduler: Scheduler
    """pbt: population based training (Jaderberg et al. 2017); pb2: with a Gaussian-process bandit in place of random
    perturbations (Parker-Holder et al. 2020); asha: asynchronous successive halving (Li et al. 2020); median: stop what
    is worse than the median (Golovin et al. 2017); none: train every trial to its end."""
    search: Search = "random"
    """Where trials begin: random draws, hyperopt's tree-structured Parzen estimator, or every combination."""
    synchronous: bool = True
    """pbt, pb2: decide when all trials have reached the interval, or for each trial as it does."""
    interval_epochs: int = Field(1, ge=1)
    """pbt, pb2: epochs between two decisions about a trial."""
    quantile_fraction: float = Field(0.25, gt=0, le=0.5)
    """pbt, pb2: share of the population that is replaced, and share that is copied from."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """pbt: chance that a value is drawn afresh instead of perturbed."""
    grace_epochs: int = Field(1, ge=1)
    """asha, median: epochs that every trial may train."""
    reduction_factor: float = Field(4, gt=1)
    """asha: of so many trials that reach a rung one goes on, and rungs are so many times further apart each."""
    min_trials: int = Field(3, ge=1)
    """median: other trials that must have come as far before one is stopped."""
    parameters: dict[str, Parameter]
    """Configuration path of each searched value with its bounds."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _read_earlier_paths(cls, parameters: Any) -> Any:
        """Translate paths of earlier versions, in the copy that a run of theirs keeps."""
        if not isinstance(parameters, dict):
            return parameters
        return {current_path(path): parameter for path, parameter in parameters.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for option, schedulers in _OPTIONS.items():
            changed = getattr(self, option) != type(self).model_fields[option].default
            if changed and self.scheduler not in schedulers:
                raise ValueError(f"{option} is for {' and '.join(schedulers)}, not for {self.scheduler}")
        if self.scheduler in EVOLVING and self.search != "random":
            raise ValueError(
                f"search {self.search} cannot go with {self.scheduler}, which itself chooses the values of its trials "
                "while they train; leave search out, or take asha, median or none"
            )
        if self.search == "grid" and (ranges := [p for p, x in self.parameters.items() if isinstance(x, Continuous)]):
            raise ValueError(f"search grid needs values: [...] for {', '.join(ranges)}")
        if self.scheduler == "pb2" and (choices := [p for p, x in self.parameters.items() if isinstance(x, Choice)]):
            raise ValueError(f"pb2 needs numbers with low and high for {', '.join(choices)}")
        return self

    @property
    def evolving(self) -> bool:
        """Whether trials are changed while they train."""
        return self.scheduler in EVOLVING

    def sample(self, random: Random) -> dict[str, Any]:
        """Fresh values for all parameters, by path."""
        return {path: parameter.sample(random) for path, parameter in self.parameters.items()}

    def explore(self, values: dict[str, Any], random: Random) -> dict[str, Any]:
        """Changed values: each drawn afresh with the resample probability, else perturbed."""
        changed = {}
        for path, parameter in self.parameters.items():
            own = parameter.resample_probability
            fresh = random.random() < (self.resample_probability if own is None else own)
            changed[path] = parameter.sample(random) if fresh else parameter.perturb(values[path], random)
        return changed

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of the values of a grid."""
        values = [
            range(x.low, x.high + 1, x.step) if isinstance(x, Integer) else x.extremes for x in self.parameters.values()
        ]
        for combination in itertools.product(*values):
            yield dict(zip(self.parameters, combination, strict=True))

    def bind(self, config: TrialConfig, origin: str = "search space") -> None:
        """Check that every path exists, may change where it would, and that its extreme values are allowed.

        Raises:
            ConfigError: Naming the path.
        """
        for path, parameter in self.parameters.items():
            configured = value_at(config, path)
            if self.evolving and not adaptable(path):
                raise ConfigError(
                    f"{origin}: {path} cannot change while a trial trains, so that {self.scheduler} cannot search it; "
                    "asha, median and none can"
                )
            for value in parameter.extremes:
                replaced(config, {path: value}, origin)
            logarithmic = isinstance(parameter, Continuous) and parameter.scale == "log"
            if (logarithmic or path in _KEPT_POSITIVE) and min(configured, *parameter.extremes) <= 0:
                raise ConfigError(
                    f"{origin}: {path} must stay above 0, which factors and logarithms cannot leave: raise "
                    f"{'its configured value' if configured <= 0 else 'the lowest value'}, or do not search it"
                )


def load_space(path: Path, scheduler: Scheduler | None = None, search: Search | None = None) -> SearchSpace:
    """Read a search space from its YAML file.

    Args:
        path: The file.
        scheduler: Takes the place of the file's, whose options for that are then left out.
        search: Takes the place of the file's.

    Raises:
        ConfigError: If the file is missing or says something that a search space cannot.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"search space {path} cannot be read: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"search space {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"search space {path} is not a mapping")
    if scheduler is not None and scheduler != values.get("scheduler"):
        values = {key: value for key, value in values.items() if scheduler in _OPTIONS.get(key, (scheduler,))}
        values["scheduler"] = scheduler
    if search is not None:
        values["search"] = search
    return parse(SearchSpace, values, f"search space {path}")


def save_space(space: SearchSpace, path: Path) -> None:
    """Write a search space as ``load_space`` reads it."""
    atomic_write(path, yaml.safe_dump(space.model_dump(mode="json"), sort_keys=False).encode())

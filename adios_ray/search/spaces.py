"""Search spaces: YAML files that define the searched values, and the scheduler with its options."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import to_jsonable_python

from adios_ray.config import (
    ADAPTABLE,
    EVOLVING,
    STOPPING,
    Scheduler,
    Strict,
    TrialConfig,
    by_current_paths,
    replaced,
    value_at,
)
from adios_ray.errors import ConfigError
from adios_ray.files import atomic_write
from adios_ray.measures import MEASURES
from adios_ray.places import fetched
from adios_ray.search.parameters import Choice, Continuous, Parameter, examples
from adios_ray.store import Location
from adios_ray.validation import parse, parse_yaml

Search = Literal["random", "hyperopt", "grid"]

_OPTIONS: Mapping[str, tuple[Scheduler, ...]] = {
    "synchronous": EVOLVING,
    "interval_epochs": EVOLVING,
    "quantile_fraction": EVOLVING,
    "resample_probability": ("pbt",),
    "significance": EVOLVING,
    "explore_without_copy": EVOLVING,
    "controls": EVOLVING,
    "opening": EVOLVING,
    "grace_epochs": STOPPING,
    "reduction_factor": ("asha",),
    "min_trials": ("median",),
}
"""Schedulers that each option applies to."""

CONTROLLED_POPULATION = 8
"""Smallest population of which one trial is a control unless the search space says otherwise."""

_COMMON = ("data_dir", "epochs", "evaluation.")
"""Beginnings of the paths of values that make trials comparable."""
_KEPT_POSITIVE = ("masking.sparsity_weight",)
"""Values that may be 0 in a fixed training but not in a search: without the penalty, masks collapse."""


class Opening(Strict):
    """Many trials that train for a short time, before the best of them become the population."""

    trials: int = Field(ge=2)
    """Trials that begin, more than the population."""
    epochs: int = Field(ge=1)
    """Epochs until only the population is left. They are halved once or several times, the last time at this epoch,
    each time before at half the epochs of the next."""


class SearchSpace(Strict):
    """What is searched, and how the population evolves."""

    scheduler: Scheduler
    """pbt: population based training (Jaderberg et al. 2017); pb2: with a Gaussian-process bandit instead of random
    perturbations (Parker-Holder et al. 2020); asha: asynchronous successive halving (Li et al. 2020); median: stop
    trials below the median (Golovin et al. 2017); none: train every trial to its end."""
    search: Search = "random"
    """Initial values of trials: random draws, hyperopt's tree-structured Parzen estimator, or every combination. Of the
    first two, the first trial has the configured values, inside the bounds or not."""
    synchronous: bool = True
    """pbt, pb2: decide once all trials have reached the interval; else for each trial as it reaches it."""
    interval_epochs: int = Field(1, ge=1)
    """pbt, pb2: epochs between two decisions about a trial."""
    quantile_fraction: float = Field(0.25, gt=0, le=0.5)
    """pbt, pb2: fraction of the population that is replaced, and fraction that is copied."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """pbt: probability that a value is resampled instead of perturbed."""
    significance: float | None = Field(0.1, gt=0, le=1)
    """pbt, pb2: copy only a trial that is better at this level: where all trials are alike, a decision copies with
    about this probability, less in large populations. 1, or null, copies whatever scores better. A trial that cannot
    train copies without a test."""
    explore_without_copy: bool = False
    """pbt, pb2: a trial that the test keeps from copying explores other values with its own weights."""
    controls: int | None = Field(None, ge=0)
    """pbt, pb2: trials with the configured values that are never replaced but may be copied; null, or left out,
    takes 1 from a population of 8 on, else 0."""
    opening: Opening | None = None
    """pbt, pb2: begin with more trials than the population, and halve them by their scores at equal epochs; the first
    trial, which has the configured values, and controls stay."""
    grace_epochs: int = Field(1, ge=1)
    """asha, median: epochs that every trial trains before it may be stopped."""
    reduction_factor: float = Field(4, gt=1)
    """asha: keep the best 1/reduction_factor of the trials at each rung; each rung is this factor further on."""
    min_trials: int = Field(3, ge=1)
    """median: other trials that must have reached the same epoch before one is stopped."""
    parameters: Annotated[dict[str, Parameter], BeforeValidator(by_current_paths)]
    """The searched values by configuration path; the copy in an old run directory has paths of earlier versions."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Compared with defaults instead of fields set: the copy in a run directory spells every option out.
        for option, schedulers in _OPTIONS.items():
            changed = getattr(self, option) != type(self).model_fields[option].default
            if changed and self.scheduler not in schedulers:
                raise ValueError(f"{option} is for {' and '.join(schedulers)}, not for {self.scheduler}")
        if self.scheduler in EVOLVING and self.search != "random":
            raise ValueError(
                f"search {self.search} cannot be combined with {self.scheduler}, which itself changes the values of "
                "trials while they train; leave search out, or use asha, median or none"
            )
        if self.evolving and not self.parameters:
            raise ValueError(f"{self.scheduler} needs parameters to change: name some, or take scheduler none")
        if self.search == "grid" and (ranges := [p for p, x in self.parameters.items() if isinstance(x, Continuous)]):
            raise ValueError(f"search grid needs values: [...] instead of bounds for {', '.join(ranges)}")
        if self.scheduler == "pb2" and (choices := [p for p, x in self.parameters.items() if isinstance(x, Choice)]):
            raise ValueError(f"pb2 needs numbers with low and high instead of values for {', '.join(choices)}")
        return self

    def controls_among(self, population: int) -> int:
        """Return how many of a population's trials are controls."""
        if not self.evolving:
            return 0
        return min(population, int(population >= CONTROLLED_POPULATION) if self.controls is None else self.controls)

    @property
    def evolving(self) -> bool:
        """Whether trials are changed while they train."""
        return self.scheduler in EVOLVING

    def trials(self, population: int) -> int:
        """Return how many trials there are: of a grid one for each combination, in an opening more than remain."""
        if self.search == "grid":
            return sum(1 for _ in self.combinations())
        return population if self.opening is None else self.opening.trials

    def configured(self, config: TrialConfig) -> dict[str, Any]:
        """Return the values of all parameters in a configuration, by path, as YAML and JSON have them."""
        return {path: to_jsonable_python(value_at(config, path)) for path in self.parameters}

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Return whether these values, by path, could have been drawn."""
        return all(parameter.contains(values[path]) for path, parameter in self.parameters.items())

    def sample(self, random: Random) -> dict[str, Any]:
        """Sample all parameters; values by path."""
        return {path: parameter.sample(random) for path, parameter in self.parameters.items()}

    def explore(self, values: dict[str, Any], random: Random) -> dict[str, Any]:
        """Change values: resample each with its resample probability, else perturb it."""
        changed = {}
        for path, parameter in self.parameters.items():
            own = parameter.resample_probability
            resample = random.random() < (self.resample_probability if own is None else own)
            changed[path] = parameter.sample(random) if resample else parameter.perturb(values[path], random)
        return changed

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Iterate over all combinations of a grid's values."""
        values = [x.extremes if isinstance(x, Continuous) else x.options for x in self.parameters.values()]
        for combination in itertools.product(*values):
            yield dict(zip(self.parameters, combination, strict=True))

    def variants(self) -> list[dict[str, Any]]:
        """List the searched values that may change networks or batches, each by itself, by its path."""
        fixed = {path: parameter for path, parameter in self.parameters.items() if path not in ADAPTABLE}
        return [{path: value} for path, parameter in fixed.items() for value in parameter.extremes]

    def bind(self, config: TrialConfig, origin: str = "search space", population: int | None = None) -> None:
        """Check that every path exists, may change in training where it would, and accepts its extreme values.

        Args:
            config: What the trials have in common.
            origin: Name of the search space in errors.
            population: Number of trials, if known, which an opening must exceed and controls must not reach.

        Raises:
            ConfigError: If one does not, naming the path; if a trial alone would evolve; if the opening is too small or
                too long; if decisions fall between two reports; or if they would be made by a score without labels.
        """
        if self.opening is not None:
            if population is not None and self.opening.trials <= population:
                raise ConfigError(
                    f"{origin}: opening.trials {self.opening.trials} must be more than the population of {population}: "
                    "raise it, or lower --population"
                )
            if config.next_report(self.opening.epochs - 1) >= config.epochs:
                raise ConfigError(
                    f"{origin}: opening.epochs {self.opening.epochs} must end before the last of {config.epochs} "
                    "epochs: lower it, or raise --epochs"
                )
        if population == 1 and self.evolving:
            raise ConfigError(
                f"{origin}: --population 1 leaves {self.scheduler} nothing to compare: give 2 or more, or --space "
                "single for one training"
            )
        if population is not None and (self.controls or 0) >= population:
            raise ConfigError(
                f"{origin}: controls {self.controls} must be less than the population of {population}: lower it, or "
                "raise --population"
            )
        fitness = config.evaluation.fitness
        selecting = [name for name in (self.scheduler, self.search) if name not in ("none", "random", "grid")]
        if selecting and not MEASURES[fitness].is_share:
            raise ConfigError(
                f"{origin}: evaluation.fitness {fitness} needs no labels, and {selecting[0]} cannot select by it: "
                "where it was measured, such scores preferred the worse trainings (docs/results.md). Label some "
                "images, or give --scheduler none and --search random"
            )
        reports = config.evaluation.interval_epochs
        if self.evolving and self.interval_epochs % reports:
            raise ConfigError(
                f"{origin}: trials report every {reports} epochs (evaluation.interval_epochs), so decisions cannot be "
                f"{self.interval_epochs} epochs apart (interval_epochs): make this a multiple of {reports}, or "
                f"evaluation.interval_epochs a divisor of {self.interval_epochs}"
            )
        if "seed" in self.parameters:
            raise ConfigError(f"{origin}: seed cannot be searched: each trial has one of its own, from --seed on")
        if population is not None and config.seed + self.trials(population) > 2**32:
            raise ConfigError(
                f"--seed {config.seed} is too large: trials have this one and those that follow, below 2^32"
            )
        for path, parameter in self.parameters.items():
            self._check_parameter(path, parameter, config, origin)

    def _check_parameter(self, path: str, parameter: Parameter, config: TrialConfig, origin: str) -> None:
        """Check that a path exists, may change in training where it would, and accepts its extreme values."""
        configured = value_at(config, path, origin)
        if path.startswith(_COMMON):
            raise ConfigError(f"{origin}: {path} must be the same for all trials, so it cannot be searched")
        if self.evolving and path not in ADAPTABLE:
            raise ConfigError(
                f"{origin}: {path} cannot change while a trial trains, so {self.scheduler} cannot search it; "
                "use asha, median or none"
            )
        for value in examples(parameter):
            replaced(config, {path: value}, origin)
        if self.evolving and configured is None and not isinstance(parameter, Choice):
            raise ConfigError(
                f"{origin}: {path} is not set, and {self.scheduler} changes the first trial's value: give it one"
            )
        logarithmic = isinstance(parameter, Continuous) and parameter.scale == "log"
        values = [value for value in (configured, *parameter.extremes) if value is not None]
        if (logarithmic or path in _KEPT_POSITIVE) and min(values) <= 0:
            reason = "a factor cannot perturb 0" if logarithmic else "at 0, masks collapse"
            raise ConfigError(
                f"{origin}: {path} must stay above 0 ({reason}): raise "
                f"{'its configured value' if values[0] <= 0 else 'the lowest value'}, or do not search it"
            )


def load_space(place: Location, scheduler: Scheduler | None = None, search: Search | None = None) -> SearchSpace:
    """Read a search space from its YAML file.

    Args:
        place: The file, a path or a URI.
        scheduler: Replaces the file's; options that it does not take are dropped.
        search: Replaces the file's.

    Raises:
        ConfigError: If the file cannot be read or is no valid search space.
    """
    try:
        values = parse_yaml(fetched(place).read_text(), f"search space {place}")
    except OSError as error:
        raise ConfigError(f"search space {place} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"search space {place} is no text: name a YAML file") from None
    if not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"search space {place} is {found}, expected a mapping of options")
    if scheduler is not None and scheduler != values.get("scheduler"):
        values = {key: value for key, value in values.items() if scheduler in _OPTIONS.get(key, (scheduler,))}
        values["scheduler"] = scheduler
    if search is not None:
        values["search"] = search
    return parse(SearchSpace, values, f"search space {place}")


def save_space(space: SearchSpace, path: Path) -> None:
    """Write a search space that ``load_space`` reads, without the options that its scheduler does not take."""
    left_out = {option for option, schedulers in _OPTIONS.items() if space.scheduler not in schedulers}
    values = space.model_dump(mode="json", exclude=left_out)
    atomic_write(path, yaml.safe_dump(values, sort_keys=False).encode())

"""A trial's schedule: the values that its weights were trained with from the first step, across all its donors."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from adios_ray.config import SearchedValues, TrialConfig, replaced
from adios_ray.errors import ConfigError
from adios_ray.experiment.config import read_experiment
from adios_ray.files import atomic_write
from adios_ray.run_directory import INITIAL_WEIGHTS
from adios_ray.search.state import PopulationState
from adios_ray.store import Location, Store, local_path
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.environment import environment_of
from adios_ray.tracking.lineage import copies
from adios_ray.validation import parse, read_json

_WHERE = "a finished run's is RUN/schedule.json"


class Stage(BaseModel):
    """Searched values and the epoch from which they are used."""

    from_epoch: int = Field(ge=0)
    """Epochs completed before the first one under these values."""
    trial: str
    """Trial that used them."""
    values: SearchedValues
    """Searched values by configuration path."""


class Schedule(BaseModel):
    """What is needed to train the weights of one trial of a population again, without the population."""

    config: dict[str, Any]
    """The trial's configuration as JSON values, with the seed that initialized the weights."""
    stages: list[Stage] = Field(min_length=1)
    """Stages in order of their epochs; the first begins at 0."""
    images: str | None = None
    """Checksum of the data set that a replay trains on, wherever it is; None where no replay has written it."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each worker of the run, or of the replay that wrote this; None where it was not recorded."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        begins = [stage.from_epoch for stage in self.stages]
        if begins[0] != 0 or begins != sorted(begins):
            raise ValueError(f"stages begin at epochs {begins}: the first must begin at 0, and the others follow it")
        if begins[-1] > (epochs := self.trial().epochs):
            raise ValueError(f"a stage begins at epoch {begins[-1]}, after the last of {epochs}")
        return self

    def trial(self, changes: Mapping[str, Any] | None = None) -> TrialConfig:
        """Return the configuration without searched values, with changes by path applied.

        Raises:
            ConfigError: If a change is not allowed.
        """
        return replaced(parse(TrialConfig, self.config, "schedule"), dict(changes or {}))

    def scaled(self, epochs: int) -> "Schedule":
        """Stretch the schedule over another number of epochs: stages begin at about the same share of the training."""
        own = self.trial()
        interval, ratio = own.evaluation.interval_epochs, epochs / own.epochs
        stages = [
            # Where trainings report; the last report may be less than an interval after the one before.
            stage.model_copy(update={"from_epoch": min(round(stage.from_epoch * ratio / interval) * interval, epochs)})
            for stage in self.stages
        ]
        return self.model_copy(update={"config": {**self.config, "epochs": epochs}, "stages": stages})

    def intervals(self) -> Iterator[tuple[Stage, int]]:
        """Yield each stage with the epoch at which it ends, without stages that were replaced before any epoch."""
        ends = [stage.from_epoch for stage in self.stages[1:]] + [self.trial().epochs]
        for stage, end in zip(self.stages, ends, strict=True):
            if end > stage.from_epoch:
                yield stage, end

    def save(self, path: Path) -> None:
        """Write the schedule as JSON."""
        atomic_write(path, self.model_dump_json(indent=1).encode())


def load_schedule(path: Path) -> Schedule:
    """Read a schedule; its initial weights are those beside it where the run has been moved.

    Raises:
        ConfigError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise ConfigError(f"schedule {path} does not exist; {_WHERE}")
    try:
        schedule = read_json(Schedule, path)
    except ConfigError as error:
        raise ConfigError(f"{error}; {_WHERE}") from None
    recorded, beside = schedule.config.get("initial_weights"), path.absolute().parent / INITIAL_WEIGHTS
    there = recorded and local_path(recorded)
    if there is None or there.exists() or not beside.is_file():
        return schedule
    return schedule.model_copy(update={"config": {**schedule.config, "initial_weights": str(beside)}})


def schedule_of(run_dir: Path, trial: str, place: Location) -> Schedule:
    """Build the schedule of a run's trial: its own values since its last exploit, before that its donor's, and so on.

    Args:
        run_dir: The run's directory on this node.
        trial: Name of the trial.
        place: Directory or URI of the run, whose copy of the initial weights the schedule begins with.

    Raises:
        ConfigError: If the run has no trial of that name.
        RecordError: If a file of the run is damaged.
    """
    state = PopulationState.load(run_dir)
    lineage = read_lineage(run_dir, state.lineage_lines)  # later ones are of a decision that did not take effect
    if trial not in state.members:
        raise ConfigError(f"{run_dir} has no trial {trial!r}; it has {', '.join(state.members)}")
    stages: list[Stage] = []
    current = trial
    for exploit in copies(lineage, trial):
        stages.append(Stage(from_epoch=exploit.epoch, trial=exploit.trial, values=exploit.new))
        current = exploit.donor
    stages.append(Stage(from_epoch=0, trial=current, values=state.initial[current]))
    config = read_experiment(run_dir).trial()
    own = replaced(config, {"seed": config.seed + state.members[current].number})
    if own.initial_weights is not None and Store(place).size(INITIAL_WEIGHTS) is not None:
        own = replaced(own, {"initial_weights": f"{Store(place)}/{INITIAL_WEIGHTS}"})
    threads = environment_of(run_dir).threads
    return Schedule(config=own.model_dump(mode="json"), stages=stages[::-1], threads=threads)

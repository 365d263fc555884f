"""Configuration of an experiment: a trial's configuration, the population and its resources."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

import adios_ray
from adios_ray.config import Place, Scheduler, TrialConfig
from adios_ray.errors import ConfigError
from adios_ray.places import fetched
from adios_ray.run_directory import RunDirectory
from adios_ray.search.spaces import Search
from adios_ray.store import Location
from adios_ray.validation import parse, read_json

_PACKAGE = Path(adios_ray.__file__).resolve().parent
# An installed package contains the files. In a clone, a symbolic link stands for them; copies of the clone, such as a
# job's working directory, may lack it, and then the folder beside the package is used.
SPACES = next(filter(Path.is_dir, (_PACKAGE / "search_spaces", _PACKAGE.parent / "search_spaces")))


PRESETS = _PACKAGE / "presets"
"""Folder of ``demo.yaml``, with a folder for each family: files named DATA-BACKBONE-OBJECTIVE-SCHEME."""
DEMO = "demo"
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Names that are safe in every file system, URI and name of a Ray actor."""
LONGEST_NAME = 128
"""Characters of a run's name; files and actors have names that begin with it, of which file systems take 255."""
Family = Literal["paper", "authors"]
if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[(DEMO, *sorted({path.stem.split("-")[0] for path in PRESETS.glob("*/*.yaml")}))]


def _folder_name(name: str) -> str:
    if not FOLDER_NAME.fullmatch(name):
        raise ValueError("must be letters (A-Z), digits, '_', '.' and '-', and begin with a letter, a digit or '_'")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"must be shorter: it has {len(name)} characters of at most {LONGEST_NAME}")
    return name


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):  # two processes would write into one file
        raise ValueError("must not contain a name twice")
    return names


class ExperimentConfig(TrialConfig):
    """Configuration of an experiment: the trials' settings, the population, the search, and the resources."""

    preset: PresetName | None = None
    """demo: rendered objects on CPUs, minutes. Published settings, by data set: in100s (ImageNet100 at 96 pixels),
    in100 (at 224, ADIOS-s), stl10, clevr; --objective.name, --backbone.name and --masking.scheme (or --objective,
    --backbone and --masking) choose among them."""
    family: Family | None = None
    """Source of the published settings: paper (its appendix: SGD, mean over slots), or authors (their scripts: LARS,
    sum, alternating). The paper's if not given, except for in100, which only the authors' scripts cover."""
    space: Place = str(SPACES / "pbt_in100.yaml")
    """YAML file of the search space, a path or a URI, or the name of one that comes with the package (pbt_in100,
    asha_demo, ...)."""
    scheduler: Scheduler | None = None
    """Scheduler that overrides the search space's."""
    search: Search | None = None
    """Search that overrides the search space's."""
    storage: Place = "runs"
    """Directory in which each run creates its run directory, shared by all nodes of a cluster, or a URI (s3://,
    gs://, ...), with which nodes need to share nothing."""
    name: Annotated[str, AfterValidator(_folder_name)] | None = None
    """Name of the run's directory in the storage; the same command again resumes the run of that name. If not given,
    a new name is made of the search space and the time."""
    population: int = Field(4, ge=1, le=10_000)
    """Number of trials, at least 2 with pbt and pb2, whose trials take turns where they do not fit into the cluster at
    once; with other schedulers they start when others have ended. A grid has one per combination; an opening begins
    with more."""
    workers_per_trial: int = Field(1, ge=1, le=10_000)
    """Ray Train workers that share a trial's batches."""
    gpus_per_worker: float | None = Field(None, ge=0, le=10_000)
    """GPUs of each worker, may be a fraction; 1 if not given and the cluster has GPUs."""
    cpus_per_worker: float | None = Field(None, gt=0, le=10_000)
    """CPUs of each worker, may be a fraction; if not given, they share the CPUs of the nodes that can hold a worker."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; online needs a login, offline keeps files that `wandb sync` uploads. The project is
    WANDB_PROJECT or adios_ray, the entity WANDB_ENTITY."""
    trackers: Annotated[tuple[Literal["tensorboard", "jsonl"], ...], AfterValidator(_different)] = ()
    """Further logs in the run directory: tensorboard (event files for each trial), jsonl (log.jsonl: a line of JSON for
    each report, exploit and outcome)."""
    resume: Place | None = None
    """Run directory of a run to resume, a path or a URI, under its own configuration. Only --epochs (more of them),
    --data-dir (the same images elsewhere), --cpus-per-worker, --gpus-per-worker, --wandb and --trackers may be given
    other values."""
    take_over: bool = False
    """Resume a run although its driver on another machine may be alive: for one that is known to be dead."""

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        gpus = self.gpus_per_worker or 0
        if gpus % 1 and gpus > 1:
            raise ValueError(f"--gpus-per-worker {gpus:g} must be a part of one GPU, or whole ones")
        if gpus % 1 and self.workers_per_trial > 1:  # NCCL, by which they exchange gradients, refuses to share one
            raise ValueError(
                f"--gpus-per-worker {gpus:g}: each of a trial's {self.workers_per_trial} workers needs a whole GPU; "
                "give --workers-per-trial 1 for trials that share one"
            )
        return self

    def trial(self) -> TrialConfig:
        """Return the configuration that all trials share."""
        return parse(TrialConfig, {key: getattr(self, key) for key in TrialConfig.model_fields})


DEMO_IMAGE_SIZE = 32
DEMO_IMAGES = 6000
DEMO_SEED = 0


def read_experiment(run: Location) -> ExperimentConfig:
    """Read the resolved configuration of a run, from its directory or URI.

    Raises:
        ConfigError: If it is missing or damaged.
    """
    path = fetched(f"{run}/{RunDirectory(Path()).config.name}")
    if not path.is_file():
        raise ConfigError(f"{run} is not a run directory: it has no {path.name}")
    values = read_json(dict[str, Any], path)
    # Older runs lack this key: the predictor always followed the encoder's schedule.
    values.get("optimizer", {}).setdefault("predictor_schedule", "cosine")
    return parse(ExperimentConfig, values, str(path))

"""Preflight checks: a configuration that cannot work here is refused before the first worker starts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adios_ray.config import ADAPTABLE, replaced
from adios_ray.console import say
from adios_ray.data.manifest import SCHEMA_VERSION, Manifest, ShardEntry
from adios_ray.data.rendered import objects
from adios_ray.data.shards import verify
from adios_ray.errors import ConfigError, EvaluationError
from adios_ray.evaluation.fitness import SMALLEST_PARTED
from adios_ray.experiment.config import DEMO_IMAGE_SIZE, DEMO_IMAGES, DEMO_SEED, ExperimentConfig
from adios_ray.experiment.presets import DATA_SETS
from adios_ray.experiment.trial_checks import check_trial
from adios_ray.places import check_place
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.suggest import initial_values
from adios_ray.store import Location, Store, local_path
from adios_ray.tracking.trackers.wandb import check_login

MOST_CHECKED, MOST_BUILT = 256, 32
"""Trials whose values are checked together before the first one starts, and those whose networks are built, too."""


def check_data(config: ExperimentConfig, space: SearchSpace | None = None) -> None:
    """Check that the data set is complete, has all splits, and fits the configuration and all that a space searches.

    Raises:
        ConfigError: If no data set is configured, or it does not fit the configuration.
        DatasetError: If shards are missing or damaged.
        EvaluationError: If a split is too small for the measure.
    """
    if config.data_dir is None:
        if published := DATA_SETS.get(config.preset or ""):
            raise ConfigError(
                f"preset {config.preset} needs --data-dir: make it with `adios-ray prepare --dataset {published} "
                "--source FOLDER --output PLACE`, or from images of your own by --dataset folder"
            )
        raise ConfigError(
            "no data: choose --preset demo, which renders its own images, or give --data-dir with shards made by "
            f"`adios-ray prepare` (add --preset {', '.join(DATA_SETS)} for published settings)"
        )
    manifest = verify(config.data_dir)
    _check_fits(config, space, manifest, config.data_dir)
    if (rows := manifest.images("val")) < SMALLEST_PARTED:
        say(
            f"val has {rows} images, all of which decisions and the final comparison use; from {SMALLEST_PARTED} on, "
            "each would use a half, and the best fitness would not be biased by its selection"
        )


def check_demo(config: ExperimentConfig, space: SearchSpace) -> None:
    """Check that the demo's images, which are yet to be rendered, will fit the configuration, as ``check_data``."""
    source = objects.source(DEMO_IMAGES, DEMO_SEED)
    splits = {
        split: (ShardEntry(file=f"{split}-0.arrow", rows=len(items), bytes=1, sha256=64 * "0"),)
        for split, items in source.listing().items()
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=DEMO_IMAGE_SIZE,
        multi_label=False,
        has_instances=source.has_instances,
        classes=source.classes,
        splits=splits,
        recipe={},
        refused=(),
    )
    _check_fits(config, space, manifest, "the demo's data set")


def _check_fits(config: ExperimentConfig, space: SearchSpace | None, manifest: Manifest, data: str) -> None:
    """Check a data set by its manifest, as ``check_data``; messages name it ``data``."""
    # Values that change neither networks nor batches have been checked by themselves; here it is their combinations.
    begun = initial_values(space, config.trial(), config.population)[:MOST_CHECKED] if space else []
    fixed = [{path: own for path, own in values.items() if path not in ADAPTABLE} for values in begun[:MOST_BUILT]]
    variants = {repr(values): values for values in ({}, *(space.variants() if space else ()), *fixed)}
    for values in begun:
        with _naming(values):
            replaced(config, values)
    for values in variants.values():
        with _naming(values):
            own = replaced(config, values)
            check_trial(own.trial(), manifest, data, own.workers_per_trial, own.gpus_per_worker != 0)


@contextmanager
def _naming(values: Mapping[str, Any]) -> Iterator[None]:
    """Name the searched values in errors."""
    try:
        yield
    except (ConfigError, EvaluationError) as error:
        searched = ", ".join(f"{path} = {value}" for path, value in values.items())
        raise type(error)(f"{searched} of the search space: {error}" if searched else str(error)) from None


def check_trackers(config: ExperimentConfig) -> None:
    """Check that trackers can be used, as far as that is possible without contacting a server.

    Raises:
        ConfigError: If one cannot.
    """
    if config.wandb == "online":
        check_login()


def check_job_paths(places: Mapping[str, Location | None], job: str | None) -> None:
    """Refuse relative paths in a Ray job, whose working directory is a copy on one node, deleted with the job.

    Args:
        places: What the command line names, by option; None of what it does not.
        job: ID of the Ray job; None outside of one.

    Raises:
        ConfigError: If a path is relative.
    """
    for option, place in places.items() if job else ():
        path = None if place is None else local_path(place)
        if path is not None and not path.is_absolute():
            raise ConfigError(
                f"{option} {place} is relative, and job {job} works in a copy of the working directory, {Path.cwd()}, "
                f"which other nodes lack and which is deleted after the job: give {option} an absolute path on storage "
                "that all nodes share"
            )


def check_storage(location: Location) -> str:
    """Check that storage can be written to, and return its path without symbolic links, or its URI.

    A directory is created.

    Raises:
        ConfigError: If it cannot be created or written to, or does not answer within seconds.
    """
    path = local_path(location)
    # Resolved because Ray Train refuses checkpoints whose path contains a symbolic link.
    place = str(Store(location if path is None else path.resolve()))
    if place.startswith("memory://"):
        raise ConfigError(f"storage {place} is the memory of one process, which the others do not see")
    check_place(place)
    return place

"""Preflight checks: a configuration that cannot work here is refused before the first worker starts."""

from adios_ray.config import check_image_size, check_view
from adios_ray.data.shards import Manifest, verify
from adios_ray.errors import ConfigError, DatasetError
from adios_ray.evaluation.fitness import SMALLEST_PARTED
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.measures import MEASURES
from adios_ray.models.networks import Networks
from adios_ray.models.weights import load_initial, load_weights
from adios_ray.places import check_place
from adios_ray.store import Location, Store, local_path
from adios_ray.tracking.trackers.wandb import check_login

SPLITS = ("train", "val", "test")


def check_data(config: ExperimentConfig) -> None:
    """Check that the data set is complete, has all splits, and fits the configuration.

    Raises:
        ConfigError: If no data set is configured, or it does not fit the configuration.
        DatasetError: If shards are missing or damaged.
    """
    if config.data_dir is None:
        raise ConfigError(
            "no data: choose --preset demo, which renders its own images, or give --data-dir with shards made by "
            "`adios-ray prepare` (add --preset in100s or in100 for the paper's settings)"
        )
    manifest = verify(config.data_dir)
    for split in SPLITS:
        if not manifest.splits.get(split):
            present = ", ".join(sorted(manifest.splits))
            raise DatasetError(f"{config.data_dir} has no {split!r} split (it has {present}); prepare it with one")
    try:
        check_image_size(config.image_size or manifest.image_size)
        check_view(config.evaluation.view, config.image_size or manifest.image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.masking.needs_objects and not manifest.has_instances:
        raise ConfigError(f"masking.scheme {config.masking.scheme}: {config.data_dir} has no object masks")
    if len(manifest.classes) < 2 and MEASURES[config.evaluation.fitness].is_share:
        without = ", ".join(name for name, measure in MEASURES.items() if not measure.is_share)
        raise ConfigError(
            f"evaluation.fitness {config.evaluation.fitness} needs labels, and {config.data_dir} has one class: "
            f"use one of {without}"
        )
    images = sum(entry.rows for split in manifest.training_splits for entry in manifest.splits[split])
    if config.batch_size > images:
        raise ConfigError(f"batch_size {config.batch_size} is more than the {images} training images")
    if config.batch_size % config.workers_per_trial:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared evenly by workers_per_trial {config.workers_per_trial}"
        )
    _check_networks(config, manifest)
    if (rows := sum(entry.rows for entry in manifest.splits["val"])) < SMALLEST_PARTED:
        print(
            f"val has {rows} images, all of which decisions and the final comparison use; from {SMALLEST_PARTED} on, "
            "each would use a half, and the best fitness would not be biased by its selection",
            flush=True,
        )


def check_trackers(config: ExperimentConfig) -> None:
    """Check that trackers can be used, as far as that is possible without contacting a server.

    Raises:
        ConfigError: If one cannot.
    """
    if config.wandb == "online":
        check_login()


def _check_networks(config: ExperimentConfig, manifest: Manifest) -> None:
    """Build the networks that every trial will build, and load the configured initial weights into them."""
    size, path = config.image_size or manifest.image_size, config.initial_weights
    try:
        networks = Networks(config.trial(), size, len(manifest.classes))
        if path:
            load_initial(networks, load_weights(path), path)
    except ValueError as error:  # raised for configurations and for damaged weights
        raise ConfigError(str(error)) from None


def check_storage(location: Location) -> str:
    """Check that storage can be written to, and return its path without symbolic links, or its URI.

    A directory is created.

    Raises:
        ConfigError: If it cannot be created or written to.
        StorageError: If remote storage fails for longer than five minutes.
    """
    path = local_path(location)
    # Resolved because Ray Train refuses checkpoints whose path contains a symbolic link.
    place = str(Store(location if path is None else path.resolve()))
    check_place(place)
    return place

"""Checks that a run can work, all made before the first worker starts."""

import math
import tempfile
from pathlib import Path

from adios_ray.config import ConfigError, check_image_size
from adios_ray.data.shards import Manifest, verify
from adios_ray.data.store import DatasetError
from adios_ray.models.networks import Networks
from adios_ray.models.weights import load_initial, load_weights
from adios_ray.search.experiment import ExperimentConfig

TRIAL_CPUS = 0.001
SPLITS = ("train", "val", "test")


def check_data(config: ExperimentConfig) -> None:
    """Check that the data set is whole, has all splits, and suits the configuration.

    Raises:
        ConfigError: If there is no data set, or it does not suit.
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
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.masking.needs_objects and not manifest.has_instances:
        raise ConfigError(f"masking.scheme {config.masking.scheme}: {config.data_dir} has no object masks")
    images = sum(entry.rows for split in manifest.training_splits for entry in manifest.splits[split])
    if config.batch_size > images:
        raise ConfigError(f"batch_size {config.batch_size} is more than the {images} training images")
    if config.batch_size % config.workers_per_trial:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared evenly by workers_per_trial {config.workers_per_trial}"
        )
    _check_networks(config, manifest)


def _check_networks(config: ExperimentConfig, manifest: Manifest) -> None:
    """Build what every trial will build, with the weights that it will begin with."""
    size, path = config.image_size or manifest.image_size, config.initial_weights
    try:
        networks = Networks(config.trial(), size, len(manifest.classes))
        if path:
            load_initial(networks, load_weights(path.expanduser()), path)
    except ValueError as error:  # of configuration, or of damaged weights
        raise ConfigError(str(error)) from None


def check_storage(storage: Path) -> Path:
    """Make the storage directory and check that it can be written to; returns its absolute path.

    Raises:
        ConfigError: If it cannot.
    """
    storage = storage.expanduser().absolute()
    try:
        storage.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=storage):
            pass
    except OSError as error:
        raise ConfigError(f"storage {storage} cannot be written to: {error.strerror or error}") from None
    return storage


def place(config: ExperimentConfig, cpus: float, gpus: float) -> tuple[float, float]:
    """CPUs and GPUs of each worker, so that the whole population fits at once.

    Args:
        config: The experiment.
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.

    Raises:
        ConfigError: If the population does not fit, with what is missing.
    """
    workers = config.population * config.workers_per_trial
    gpus_each = config.gpus_per_worker if config.gpus_per_worker is not None else float(gpus > 0)
    available_cpus = cpus - TRIAL_CPUS * config.population
    share = math.floor(1000 * min(available_cpus / workers, 1.0)) / 1000
    cpus_each = config.cpus_per_worker or share
    for kind, each, available in (("GPU", gpus_each, gpus), ("CPU", cpus_each, available_cpus)):
        if workers * each > available + 1e-9:
            raise ConfigError(
                f"{config.population} trials x {config.workers_per_trial} workers x {each:g} {kind}s need "
                f"{workers * each:g}, the cluster has {available:g}: lower --population or "
                f"--workers-per-trial, or set --{kind.lower()}s-per-worker to at most {available / workers:.3g}"
            )
    return cpus_each, gpus_each

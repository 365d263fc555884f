"""The check of one training before it starts: its configuration against its data set."""

from adios_ray.config import TrialConfig, check_batch, check_view
from adios_ray.data.manifest import Manifest
from adios_ray.errors import ConfigError, DatasetError
from adios_ray.evaluation.fitness import check_measurable
from adios_ray.measures import MEASURES
from adios_ray.models.networks import Networks
from adios_ray.models.weights import load_initial, load_weights
from adios_ray.training.graphs import check_recordable

HELD_OUT = ("val", "test")


def check_trial(config: TrialConfig, manifest: Manifest, data: str, workers: int = 1, gpu: bool = True) -> None:
    """Check that one trial can train on a data set and be evaluated there; its networks are built for that.

    Args:
        config: The trial's configuration.
        manifest: The manifest of the data set.
        data: Its name in messages.
        workers: Workers of the trial.
        gpu: Whether it may train on a GPU.

    Raises:
        ConfigError: If the configuration does not fit the data set, or initial weights cannot be used.
        DatasetError: If a split is missing.
        EvaluationError: If a split is too small for the measure.
    """
    check_splits(manifest, data)
    size = config.image_size or manifest.image_size
    try:
        check_view(config.evaluation.view, size, manifest.image_size)
    except ConfigError as error:
        raise ConfigError(f"{data}: {error}") from None
    if config.masking.needs_objects and not manifest.has_instances:
        raise ConfigError(f"masking.scheme {config.masking.scheme}: {data} has no object masks")
    if len(manifest.classes) < 2 and MEASURES[config.evaluation.fitness].is_share:
        without = ", ".join(name for name, measure in MEASURES.items() if not measure.is_share)
        raise ConfigError(
            f"evaluation.fitness {config.evaluation.fitness} needs labels, and {data} has one class: "
            f"label some images, or use one of {without} with --scheduler none"
        )
    networks = _check_networks(config, size, len(manifest.classes))
    check_batch(config, manifest.training_images, workers, networks.batch_norm)
    if config.cuda_graphs and gpu:
        check_recordable(networks, workers)
    for split in HELD_OUT:
        check_measurable(manifest.images(split), networks.features, config.evaluation, f"{data}: {split}")


def check_splits(manifest: Manifest, data: str) -> None:
    """Check that a data set, ``data`` in the message, has the splits that training needs.

    Raises:
        DatasetError: If one is missing.
    """
    for split in ("train", *HELD_OUT):
        if split not in manifest.splits:
            present = ", ".join(sorted(manifest.splits))
            raise DatasetError(f"{data} has no {split!r} split (it has {present}); prepare it with one")


def _check_networks(config: TrialConfig, size: int, classes: int) -> Networks:
    """Build the networks that every trial will build, load the configured initial weights, and return them."""
    path = config.initial_weights
    try:
        networks = Networks(config, size, classes)
        if path:
            load_initial(networks, load_weights(path), path)
    except ValueError as error:  # raised for configurations and for damaged weights
        raise ConfigError(str(error)) from None
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise ConfigError(
            f"the networks do not fit into this machine's memory ({str(error).splitlines()[0]}): lower the widths of "
            "objective and masking, or take a smaller backbone"
        ) from None
    return networks

"""Starting and resuming a run: everything is checked before the first worker starts."""

from datetime import datetime
from pathlib import Path

from adios_ray.backend.cluster import connected
from adios_ray.config import replaced
from adios_ray.data.prepare import prepare
from adios_ray.data.rendered import objects
from adios_ray.data.store import Store
from adios_ray.errors import ConfigError
from adios_ray.experiment.checks import check_data, check_storage
from adios_ray.experiment.config import (
    DEMO,
    DEMO_IMAGE_SIZE,
    DEMO_IMAGES,
    DEMO_SEED,
    ExperimentConfig,
    read_experiment,
)
from adios_ray.experiment.evolution import evolve, fresh_population
from adios_ray.experiment.resources import nodes, worker_resources
from adios_ray.run_directory import RunDirectory
from adios_ray.search.spaces import load_space, save_space
from adios_ray.search.state import PopulationState
from adios_ray.tracking.records import write_config


def start(config: ExperimentConfig) -> Path:
    """Run a new experiment; returns its run directory.

    Raises:
        ConfigError: If the configuration cannot work here.
        DatasetError: If the data cannot be used.
    """
    space = load_space(config.space, config.scheduler, config.search)
    space.bind(config.trial(), f"search space {config.space}")
    renders = config.data_dir is None and config.preset == DEMO
    if not renders:
        check_data(config)
    storage = check_storage(config.storage)  # last, as it makes the directory
    with connected():
        resources = worker_resources(config, nodes())
        if renders:
            config = replaced(config, {"data_dir": _render_demo_images(storage)})
        assert config.data_dir is not None
        data_dir, weights = str(Store(config.data_dir)), config.initial_weights
        paths = {"data_dir": data_dir, "initial_weights": weights and weights.expanduser().absolute()}
        config = replaced(config, {**paths, "storage": storage})
        run_dir = _new_run_directory(storage, config)
        write_config(run_dir, config.model_dump(mode="json"))
        save_space(space, RunDirectory(run_dir).space)
        fresh_population(config, space).save(run_dir)
        return evolve(config, space, run_dir, resources)


def resume(run_dir: Path) -> Path:
    """Go on with a run that was interrupted, under its own configuration and search space; returns its directory.

    Trials go on from their last reports; those that have finished are not trained again.

    Raises:
        ConfigError: If the directory is not one of a run.
        DatasetError: If the data cannot be used any more.
    """
    run_dir = run_dir.expanduser().resolve()
    PopulationState.load(run_dir)
    config, space = read_experiment(run_dir), load_space(RunDirectory(run_dir).space)
    check_data(config)
    with connected():
        return evolve(config, space, run_dir, worker_resources(config, nodes()))


def _render_demo_images(storage: Path) -> Path:
    output = storage / f"objects-{DEMO_IMAGES}-{DEMO_IMAGE_SIZE}px"
    recipe = {"dataset": "objects", "num_images": DEMO_IMAGES, "seed": DEMO_SEED}
    prepare(objects.source(DEMO_IMAGES, DEMO_SEED), output, DEMO_IMAGE_SIZE, recipe)
    return output


def _new_run_directory(storage: Path, config: ExperimentConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.space.stem}-{stamp}"
    for attempt in range(1, 100):
        directory = storage / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise ConfigError(f"storage {storage} has a hundred runs of this second already")

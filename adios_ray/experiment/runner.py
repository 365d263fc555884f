"""Start and resumption of a run; everything is checked before the first worker starts."""

import secrets
from datetime import datetime
from pathlib import Path

from adios_ray.backend.cluster import connected
from adios_ray.config import replaced
from adios_ray.data.prepare import prepare
from adios_ray.data.rendered import objects
from adios_ray.errors import ConfigError
from adios_ray.experiment.checks import check_data, check_storage, check_trackers
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
from adios_ray.retry import LASTING, retry
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.spaces import load_space, save_space
from adios_ray.search.state import PopulationState
from adios_ray.store import Location, Store, local_path
from adios_ray.tracking.records import write_config


def start(config: ExperimentConfig) -> Path:
    """Run a new experiment and return its run directory; that of a run at a URI is removed at the end.

    Raises:
        ConfigError: If the configuration cannot work on this data, storage or cluster.
        DatasetError: If the data cannot be used.
    """
    space = load_space(config.space, config.scheduler, config.search)
    space.bind(config.trial(), f"search space {config.space}")
    renders = config.data_dir is None and config.preset == DEMO
    if not renders:
        check_data(config)
    check_trackers(config)
    storage = check_storage(config.storage)  # last, because it creates the directory
    with connected():
        resources = worker_resources(config, nodes())
        if renders:
            images = f"{storage}/objects-{DEMO_IMAGES}-{DEMO_IMAGE_SIZE}px"
            recipe = {"dataset": "objects", "num_images": DEMO_IMAGES, "seed": DEMO_SEED}
            prepare(objects.source(DEMO_IMAGES, DEMO_SEED), images, DEMO_IMAGE_SIZE, recipe)
            config = replaced(config, {"data_dir": images})
        assert config.data_dir is not None
        # Absolute from here on: a resumed run may start in another directory, and workers run on other nodes.
        data_dir, weights = str(Store(config.data_dir)), config.initial_weights and str(Store(config.initial_weights))
        paths = {"data_dir": data_dir, "initial_weights": weights}
        config = replaced(config, {**paths, "storage": storage})
        run = _new_run(storage, config)
        run_dir = run.directory
        with run.driven():
            # The population last: it makes this a run directory for resume(), which then finds all files. The
            # configuration first: while it is missing, every write into the run takes the run's storage to be away.
            write_config(run_dir, config.model_dump(mode="json"))
            save_space(space, RunDirectory(run_dir).space)
            fresh_population(config, space).save(run_dir)
            evolve(config, space, run, resources)
        return run.directory


def resume(place: Location) -> Path:
    """Resume an interrupted run under its own configuration and search space, and return its run directory.

    Trials resume from their last reports; finished ones are not trained again.

    Raises:
        ConfigError: If the place is not one of a run.
        DatasetError: If the data set has become unusable.
    """
    path = local_path(place)
    run = RunStorage(place if path is None else path.resolve())
    with run.driven():
        try:
            retry(run.fetch_run, print, LASTING)
        except LASTING as error:
            raise ConfigError(f"{place} is not the place of a run: {error}") from None
        run_dir = run.directory
        PopulationState.load(run_dir)  # only to refuse a directory that is not a run's
        config, space = read_experiment(run_dir), load_space(RunDirectory(run_dir).space)
        check_data(config)
        check_trackers(config)
        with connected():
            evolve(config, space, run, worker_resources(config, nodes()))
    return run.directory


def _new_run(storage: str, config: ExperimentConfig) -> RunStorage:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{Path(config.space).stem}-{stamp}"
    if local_path(storage) is None:
        name = f"{name}-{secrets.token_hex(2)}"  # an object store cannot claim a name
    for attempt in range(1, 100):
        run = RunStorage(f"{storage}/{name if attempt == 1 else f'{name}-{attempt}'}")
        # mkdir claims the name atomically: another run may start on the same storage in this second.
        try:
            retry(run.create, print)
        except FileExistsError:
            continue
        return run
    raise ConfigError(f"storage {storage} already has 99 runs named {name}; start again a second later")

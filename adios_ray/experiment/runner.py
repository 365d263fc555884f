"""Start and resumption of a run; everything is checked before the first worker starts."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from adios_ray.backend.cluster import connected, queue_job, submitted_job
from adios_ray.backend.ray_private import autoscaler_runs
from adios_ray.config import replaced
from adios_ray.data.claim import TRAINING, Claim, claimed
from adios_ray.data.prepare import prepare
from adios_ray.data.rendered import objects
from adios_ray.data.shards import read_manifest
from adios_ray.data.store import Store
from adios_ray.errors import ConfigError
from adios_ray.experiment.checks import check_data, check_job_paths, check_storage, check_trackers
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
from adios_ray.experiment.resumption import (
    check_changes,
    check_checkpoints,
    check_same_data,
    outcome,
    save_changes,
)
from adios_ray.run_directory import RunDirectory
from adios_ray.search.spaces import SearchSpace, load_space, save_space
from adios_ray.search.state import PopulationState
from adios_ray.tracking.records import write_config


def start(config: ExperimentConfig) -> Path:
    """Run a new experiment, or resume the one of the same name, and return its run directory.

    Raises:
        ConfigError: If the configuration cannot work on this data, storage or cluster, or the run of that name has
            another one.
        DatasetError: If the data cannot be used.
        ClaimError: If another driver of the run of that name is alive.
    """
    space = load_space(config.space, config.scheduler, config.search)
    space.bind(config.trial(), f"search space {config.space}", config.population)
    check_job_paths(config, submitted_job())
    check_trackers(config)
    renders = config.data_dir is None and config.preset == DEMO
    begun = config.name and RunDirectory(config.storage.expanduser() / config.name).population.is_file()
    if not renders and not begun:  # a run that has begun may have finished, and then needs no data
        check_data(config)
    check_trackers(config)
    storage = check_storage(config.storage)  # last, because it creates the directory
    images = storage / f"objects-{DEMO_IMAGES}-{DEMO_IMAGE_SIZE}px"
    config = _with_absolute_paths(config, storage, images if renders else config.data_dir)
    run_dir = storage / config.name if config.name else _new_run_directory(storage, config)
    with _claimed(run_dir, config) as claim:
        if RunDirectory(run_dir).population.is_file():
            return _continue(run_dir, config, space, claim)
        _check_unused(run_dir)
        with connected():
            resources = worker_resources(config, nodes(), autoscaler_runs())
            if renders:
                recipe = {"dataset": "objects", "num_images": DEMO_IMAGES, "seed": DEMO_SEED}
                prepare(objects.source(DEMO_IMAGES, DEMO_SEED), images, DEMO_IMAGE_SIZE, recipe)
            assert config.data_dir is not None
            # The population last: it makes this a run directory for resume(), which then finds all files. The
            # configuration first: while it is missing, every write into the run takes the run's storage to be away.
            write_config(run_dir, config.model_dump(mode="json"))
            save_space(space, RunDirectory(run_dir).space)
            fresh_population(config, space, read_manifest(config.data_dir).checksum).save(run_dir)
            return evolve(config, space, run_dir, resources, claim)


def resume(run_dir: Path, asked: ExperimentConfig | None = None) -> Path:
    """Resume an interrupted run under its own configuration and search space, and return its directory.

    Trials resume from their last reports; finished ones are not trained again.

    Args:
        run_dir: The run directory, wherever it is now.
        asked: The configuration with changes, see ``resumption.MAY_CHANGE``; None changes nothing.

    Raises:
        ConfigError: If the directory is not a run directory, or a change is not allowed.
        CheckpointError: If checkpoints are missing.
        DatasetError: If the data set has become unusable.
        ClaimError: If another driver of the run is alive.
    """
    if asked:
        check_job_paths(asked, submitted_job())
    run_dir = run_dir.expanduser().resolve()
    PopulationState.load(run_dir)  # only to refuse a directory that is not a run's
    own, space = read_experiment(run_dir), load_space(RunDirectory(run_dir).space)
    asked = _with_absolute_paths(asked or own, run_dir.parent, (asked or own).data_dir)
    if (asked.space, asked.scheduler, asked.search) != (own.space, own.scheduler, own.search):
        space = load_space(asked.space, asked.scheduler, asked.search)
    with _claimed(run_dir, asked) as claim:
        return _continue(run_dir, asked, space, claim)


def _continue(run_dir: Path, asked: ExperimentConfig, asked_space: SearchSpace, claim: Claim) -> Path:
    """Resume a run that this driver has claimed."""
    own, space = read_experiment(run_dir), load_space(RunDirectory(run_dir).space)
    config = check_changes(run_dir, own, asked, space, asked_space)
    state = PopulationState.load(run_dir)
    state.epochs = state.epochs or own.epochs  # earlier versions did not store it
    if line := outcome(run_dir, state, config, space):
        print(line, flush=True)
        return run_dir
    state.dataset = check_same_data(state, own, config)
    check_data(config)
    check_trackers(config)
    check_checkpoints(run_dir, state)
    with connected():
        resources = worker_resources(config, nodes(), autoscaler_runs())
        save_changes(run_dir, state, own, config, space)
        return evolve(config, space, run_dir, resources, claim)


def _with_absolute_paths(config: ExperimentConfig, storage: Path, data_dir: Path | str | None) -> ExperimentConfig:
    """Make paths absolute: a resumed run may start in another directory, and workers run on other nodes."""
    weights = config.initial_weights and config.initial_weights.expanduser().absolute()
    paths = {"data_dir": data_dir and str(Store(data_dir)), "initial_weights": weights, "storage": storage}
    return replaced(config, paths)


@contextmanager
def _claimed(run_dir: Path, config: ExperimentConfig) -> Iterator[Claim]:
    """Claim a run for this driver; if it is interrupted, say how to resume."""
    say = partial(print, flush=True)
    try:
        with claimed(Store(run_dir), say, TRAINING, wait=False, take_over=config.take_over, job=queue_job()) as claim:
            yield claim
    except KeyboardInterrupt as stop:
        if RunDirectory(run_dir).population.is_file():
            stop.add_note(f"what was reported is kept: resume with --resume {run_dir}")
        raise
    finally:
        with suppress(OSError):  # refused if it is not empty; else the run was refused before it began
            run_dir.rmdir()


def _check_unused(run_dir: Path) -> None:
    """Refuse a directory with anything else than a driver leaves that is stopped before its population exists."""
    run = RunDirectory(run_dir)
    left = {run.config.name, run.space.name, TRAINING.file}
    if others := sorted(path.name for path in run_dir.iterdir() if path.name not in left and path.suffix != ".tmp"):
        raise ConfigError(f"{run_dir} is not a run directory, but contains {others[0]}: choose another --name")


def _new_run_directory(storage: Path, config: ExperimentConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.space.stem}-{stamp}"
    for attempt in range(1, 100):
        directory = storage / (name if attempt == 1 else f"{name}-{attempt}")
        # mkdir claims the name atomically: another run may start on the same storage in this second.
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise ConfigError(f"storage {storage} already has 99 runs named {name}; start again a second later")

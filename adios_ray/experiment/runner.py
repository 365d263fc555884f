"""Start and resumption of a run; everything is checked before the first worker starts."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from adios_ray.backend.autoscaling import autoscaler_runs
from adios_ray.backend.cluster import connected, queue_job, submitted_job
from adios_ray.config import replaced
from adios_ray.console import say
from adios_ray.data.claim import TRAINING, Claim, claimed
from adios_ray.data.manifest import read_manifest
from adios_ray.data.prepare import prepare
from adios_ray.data.rendered import objects
from adios_ray.errors import ConfigError
from adios_ray.experiment.checks import check_data, check_demo, check_job_paths, check_storage, check_trackers
from adios_ray.experiment.config import (
    DEMO,
    DEMO_IMAGE_SIZE,
    DEMO_IMAGES,
    DEMO_SEED,
    ExperimentConfig,
    read_experiment,
)
from adios_ray.experiment.evolution import evolve, fresh_population
from adios_ray.experiment.remarks import remarks
from adios_ray.experiment.resources import nodes, worker_resources
from adios_ray.experiment.resumption import (
    check_changes,
    check_checkpoints,
    check_same_data,
    keep_initial_weights,
    outcome,
    save_changes,
)
from adios_ray.retry import promptly, retry
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.spaces import SearchSpace, load_space, save_space
from adios_ray.search.state import PopulationState
from adios_ray.store import Location, Store, local_path, split_location
from adios_ray.tracking.records import write_config, write_token


def start(config: ExperimentConfig) -> Path:
    """Run a new experiment, or resume the one of the same name, and return its run directory.

    The directory of a run at a URI is this node's, and is removed at the end.

    Raises:
        ConfigError: If the configuration cannot work on this data, storage or cluster, or the run of that name has
            another one.
        DatasetError: If the data cannot be used.
        ClaimError: If another driver of the run of that name is alive.
        StorageError: If remote storage fails for longer than five minutes.
    """
    if config.take_over and config.name is None:
        raise ConfigError("--take-over needs the run to take over: give its --name, or --resume RUN")
    space = load_space(config.space, config.scheduler, config.search)
    space.bind(config.trial(), f"search space {config.space}", config.population)
    check_job_paths(_named_places(config), submitted_job())
    renders = config.data_dir is None and config.preset == DEMO
    begun = config.name and _has_begun(RunStorage(f"{Store(config.storage)}/{config.name}"))
    if not begun:  # a run that has begun may have finished, and then needs neither
        check_trackers(config)
        (check_demo if renders else check_data)(config, space)
    made = (path := local_path(config.storage)) is not None and not path.exists()
    storage = check_storage(config.storage)  # last, because it creates the directory
    images = f"{storage}/objects-{DEMO_IMAGES}-{DEMO_IMAGE_SIZE}px"
    config = _with_absolute_paths(config, storage, images if renders else config.data_dir)
    run = RunStorage(f"{storage}/{config.name}") if config.name else _new_run(storage, config)
    with _removed_if_empty(Path(storage)) if made else nullcontext(), _claimed(run, config, bool(begun)) as claim:
        if _has_begun(run):
            return _continue(run, config, space, claim)
        _check_unused(run)
        for remark in remarks(config, space):
            say(remark)
        with connected():
            resources = worker_resources(config, nodes(), autoscaler_runs())
            if renders:
                recipe = {"dataset": "objects", "num_images": DEMO_IMAGES, "seed": DEMO_SEED}
                prepare(objects.source(DEMO_IMAGES, DEMO_SEED), images, DEMO_IMAGE_SIZE, recipe)
            assert config.data_dir is not None
            # The population last: it makes this a run directory for resume(), which then finds all files. The
            # configuration first: while it is missing, every write into the run takes the run's storage to be away.
            write_config(run.directory, config.model_dump(mode="json"))
            save_space(space, RunDirectory(run.directory).space)
            write_token(run.directory)
            retry(partial(keep_initial_weights, run, config), say)
            fresh_population(config, space, read_manifest(config.data_dir).checksum).save(run.directory)
            return evolve(config, space, run, resources, claim)


def resume(place: Location, asked: ExperimentConfig | None = None) -> Path:
    """Resume an interrupted run under its own configuration and search space, and return its directory, as ``start``.

    Trials resume from their last reports; finished ones are not trained again.

    Args:
        place: The run's directory or URI, wherever it is now.
        asked: The configuration with changes, see ``resumption.MAY_CHANGE``; None changes nothing.

    Raises:
        ConfigError: If it is not the place of a run, or a change is not allowed.
        CheckpointError: If checkpoints are missing.
        DatasetError: If the data set has become unusable.
        ClaimError: If another driver of the run is alive.
        StorageError: If remote storage fails for longer than five minutes.
    """
    if asked:
        check_job_paths(_named_places(asked), submitted_job())
    path = local_path(place)
    run = RunStorage(place if path is None else path.resolve())
    if not _has_begun(run):
        raise ConfigError(f"{run.place} is not a run directory: it has no {_layout(run).population.name}")
    own, space = read_experiment(run.place), load_space(f"{run.place}/{_layout(run).space.name}")
    asked = _with_absolute_paths(asked or own, str(split_location(run.place)[0]), (asked or own).data_dir)
    if (asked.space, asked.scheduler, asked.search) != (own.space, own.scheduler, own.search):
        space = load_space(asked.space, asked.scheduler, asked.search)
    with _claimed(run, asked, begun=True) as claim:
        return _continue(run, asked, space, claim)


def _continue(run: RunStorage, asked: ExperimentConfig, asked_space: SearchSpace, claim: Claim) -> Path:
    """Resume a run that this driver has claimed."""
    retry(run.fetch_run, say)
    own, space = read_experiment(run.directory), load_space(_layout(run).space)
    config = check_changes(run.place, own, asked, space, asked_space)
    state = PopulationState.load(run.directory)
    state.epochs = state.epochs or own.epochs  # earlier versions did not store it
    if line := outcome(run, state, config, space):
        say(line)
        return run.directory
    state.dataset = check_same_data(state, own, config)
    kept = retry(run.fetch_initial_weights, say) if config.initial_weights else None
    check_data(config if kept is None else replaced(config, {"initial_weights": kept}), space)
    check_trackers(config)
    retry(partial(check_checkpoints, run, state), say)
    with connected():
        resources = worker_resources(config, nodes(), autoscaler_runs())
        changes = partial(save_changes, run, state, own, config, space)
        return evolve(config, space, run, resources, claim, changes)


def _named_places(config: ExperimentConfig) -> dict[str, Location | None]:
    """Collect the places that a command line names, by option."""
    return {
        "--data-dir": config.data_dir,
        "--initial-weights": config.initial_weights,
        "--storage": config.storage,
        "--resume": config.resume,
    }


def _with_absolute_paths(config: ExperimentConfig, storage: str, data_dir: str | None) -> ExperimentConfig:
    """Make paths absolute: a resumed run may start in another directory, and workers run on other nodes."""
    weights = config.initial_weights and str(Store(config.initial_weights))
    paths = {"data_dir": data_dir and str(Store(data_dir)), "initial_weights": weights, "storage": storage}
    return replaced(config, paths)


@contextmanager
def _removed_if_empty(directory: Path) -> Iterator[None]:
    """Remove a directory at the end if it is empty: then the run was refused before it began."""
    try:
        yield
    finally:
        with suppress(OSError):  # refused if it is not empty
            directory.rmdir()


@contextmanager
def _claimed(run: RunStorage, config: ExperimentConfig, begun: bool) -> Iterator[Claim]:
    """Claim a run for this driver; if it is interrupted, say how to resume it once it has ``begun``."""
    store = Store(run.place)
    try:
        with (
            _removed_if_empty(run.directory),
            claimed(store, say, TRAINING, wait=False, take_over=config.take_over, job=queue_job()) as claim,
            run.driven(claim.check),
        ):
            try:
                yield claim
            finally:  # before the driver's copy of a run at a URI is removed
                begun = begun or _layout(run).population.is_file()
    except KeyboardInterrupt as stop:
        if begun:
            stop.add_note(f"what was reported is kept: resume with --resume {run.place}")
        raise


def _has_begun(run: RunStorage) -> bool:
    """Tell whether a run is stored at its place: it has a population, which is written last.

    Raises:
        ConfigError: If the place is no directory, must not be read, does not answer within seconds, or has a part of a
            run only.
    """
    path = local_path(run.place)
    if path is not None and os.path.lexists(path) and not path.is_dir():
        raise ConfigError(f"{path} is a file or a broken link, no run directory: remove it, or choose another --name")
    layout = _layout(run)
    try:
        begun = promptly(partial(run.has, layout.population))
        needed = (layout.config, layout.space) if begun else ()
        missing = [path.name for path in needed if not promptly(partial(run.has, path))]
    except OSError as error:
        raise ConfigError(f"{run.place} cannot be read: {error}") from None
    if missing:
        raise ConfigError(
            f"{run.place} has {layout.population.name} but no {' and no '.join(missing)}: copy the whole run there"
        )
    return begun


def _check_unused(run: RunStorage) -> None:
    """Refuse a place with anything else than a driver leaves that is stopped before its population exists.

    To a URI the population is copied last.
    """
    layout = _layout(run)
    left = {layout.config.name, layout.space.name, layout.token.name, layout.initial_weights.name, TRAINING.file}
    if run.uri is not None:
        left |= layout.driver_names
    names = Store(run.place).names() - left
    if others := sorted(name for name in names if not name.startswith(".") and not name.endswith(".tmp")):
        raise ConfigError(f"{run.place} is not a run directory, but contains {others[0]}: choose another --name")


def _layout(run: RunStorage) -> RunDirectory:
    return RunDirectory(run.directory)


def _new_run(storage: str, config: ExperimentConfig) -> RunStorage:
    """Choose a name for a run, which a directory of it then holds."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{Path(config.space).stem}-{stamp}"
    if local_path(storage) is None:
        return RunStorage(f"{storage}/{name}-{secrets.token_hex(4)}")  # an object store cannot hold a name
    for attempt in range(1, 100):
        directory = Path(storage) / (name if attempt == 1 else f"{name}-{attempt}")
        # mkdir claims the name atomically: another run may start on the same storage in this second.
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return RunStorage(directory)
    raise ConfigError(f"storage {storage} already has 99 runs named {name}; start again a second later")

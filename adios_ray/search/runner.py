"""Running an experiment: check, start the population, evolve it, judge the best trial on the test split."""

import math
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from adios_ray.config import TrialConfig, replaced
from adios_ray.data.prepare import prepare
from adios_ray.data.shards import read_manifest
from adios_ray.data.sources import objects
from adios_ray.data.store import Store
from adios_ray.errors import ConfigError, RunError, StorageError
from adios_ray.files import remove_drafts
from adios_ray.measures import MEASURES
from adios_ray.run_directory import RunDirectory
from adios_ray.search.channel import ChannelCalls, start_channel
from adios_ray.search.cluster import connected
from adios_ray.search.experiment import (
    DEMO,
    DEMO_IMAGE_SIZE,
    DEMO_IMAGES,
    DEMO_SEED,
    ExperimentConfig,
    read_experiment,
)
from adios_ray.search.members import WORST_SCORE, Members
from adios_ray.search.places import Places, give_back_deserted
from adios_ray.search.population import Explore, LivePopulation
from adios_ray.search.preflight import Placement, check_data, check_storage, count_places, nodes, place
from adios_ray.search.schedule import schedule_of
from adios_ray.search.scheduler import LiveScheduler
from adios_ray.search.spaces import SearchSpace, load_space, save_space
from adios_ray.search.state import Member, PopulationState
from adios_ray.search.stopping import StoppingSearch, make_rule
from adios_ray.search.suggest import make_suggest
from adios_ray.search.trial import LiveTrial, TrialSettings
from adios_ray.search.turns import Entrance, Turns
from adios_ray.tracking.live import LiveView
from adios_ray.tracking.metrics import RayMetrics
from adios_ray.tracking.records import (
    Summary,
    begin_lineage,
    read_lineage,
    read_results,
    write_config,
    write_summary,
)
from adios_ray.tracking.report import write_report
from adios_ray.tracking.run import Run
from adios_ray.tracking.wandb import WandbLog
from adios_ray.training.checkpoints import Pointer

TRIAL_RESOURCES = {"memory": 1}
"""A byte: Tune wants something, and CPUs and GPUs belong to the workers."""
TRIAL_RESTARTS = 20
"""Of a trial's actor, by Tune."""
GIVE_BACK_S = 2.0
"""How often the places of dead controllers are given back."""


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
        placement = place(config, nodes())
        if renders:
            config = replaced(config, {"data_dir": _render_demo_images(storage)})
        assert config.data_dir is not None
        data_dir, weights = str(Store(config.data_dir)), config.initial_weights
        paths = {"data_dir": data_dir, "initial_weights": weights and weights.expanduser().absolute()}
        config = replaced(config, {**paths, "storage": storage})
        run_dir = _new_run_directory(storage, config)
        write_config(run_dir, config.model_dump(mode="json"))
        save_space(space, RunDirectory(run_dir).space)
        _fresh_population(config, space).save(run_dir)
        return _evolve(config, space, run_dir, placement)


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
        return _evolve(config, space, run_dir, place(config, nodes()))


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


def _fresh_population(config: ExperimentConfig, space: SearchSpace) -> PopulationState:
    """A population whose trials all know their values, but for a search that learns from those before."""
    state = PopulationState(next_decision_epoch=space.interval_epochs)
    if space.search == "hyperopt":
        return state
    suggest = make_suggest(space, config.trial(), state)
    for name in _names(config, space):
        state.add(name, suggest(name))
    return state


def _names(config: ExperimentConfig, space: SearchSpace) -> list[str]:
    """Names of all trials of an experiment."""
    count = sum(1 for _ in space.combinations()) if space.search == "grid" else config.population
    return [f"trial_{number:02d}" for number in range(count)]


def _evolve(config: ExperimentConfig, space: SearchSpace, run_dir: Path, placement: Placement) -> Path:
    """Train the unfinished members of a run's population to the end, and judge the best."""
    state = PopulationState.load(run_dir)
    print(f"Run directory: {run_dir}", flush=True)
    names = _names(config, space)
    unfinished = state.unfinished(names)
    if unfinished:
        remove_drafts(run_dir)
        state.save(run_dir)
        begin_lineage(run_dir, state.exploits)
        channel = start_channel(run_dir.name, len(unfinished), config.workers_per_trial)
        places = Places(run_dir, lambda: count_places(config, placement, nodes()))
        turns = Turns(len(unfinished), places.count)
        with _open_run(config, space, run_dir) as run:
            members = Members(config.trial(), state, run, ChannelCalls(channel))
            _fit(unfinished, config, run_dir, placement, _scheduler(space, members, turns), turns)
        give_back_deserted(run_dir)
    state = PopulationState.load(run_dir)
    if failed := state.unfinished(names):
        write_report(run_dir)
        raise RunError(f"not all trials finished ({', '.join(failed)}); go on with --resume {run_dir}")
    return _conclude(config, run_dir, state, placement)


def _scheduler(space: SearchSpace, members: Members, turns: Turns) -> LiveScheduler:
    """What decides about the trials."""
    if space.evolving:
        return LivePopulation(members, turns, space, _explore(space, members.state))
    suggest = make_suggest(space, members.config, members.state)
    return StoppingSearch(members, turns, make_rule(space, members.config.epochs), suggest)


def _explore(space: SearchSpace, state: PopulationState) -> Explore:
    """How copies come to values of their own."""
    if space.scheduler == "pb2":
        from adios_ray.search.bandit import Bandit  # scikit-learn takes a second to import

        return Bandit(space, state)
    return lambda name, donor, random: space.explore(donor.values, random)


def _open_run(config: ExperimentConfig, space: SearchSpace, run_dir: Path) -> Run:
    view = LiveView(config.epochs, config.population, run_dir.name, read_results(run_dir))
    values = config.model_dump(mode="json")
    wandb = None if config.wandb == "off" else WandbLog(run_dir, config.wandb, values)
    return Run(run_dir, list(space.parameters), view, RayMetrics(run_dir.name), wandb)


def _fit(
    trials: Sequence[str],
    config: ExperimentConfig,
    run_dir: Path,
    placement: Placement,
    scheduler: LiveScheduler,
    turns: Turns,
) -> None:
    """Let Tune run the trials, as many at a time as there are places."""
    settings = TrialSettings(
        trial="",
        run_dir=str(run_dir),
        channel=run_dir.name,
        workers=config.workers_per_trial,
        cpus_per_worker=placement.cpus,
        gpus_per_worker=placement.gpus,
    )
    # Trials live from their start to their end: there is no actor to reuse, as Tune advises.
    warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
    tuner = tune.Tuner(
        tune.with_resources(LiveTrial, TRIAL_RESOURCES),
        param_space={**settings, "trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(scheduler=scheduler, search_alg=Entrance(turns)),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run_dir),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            callbacks=[GiveBack(run_dir)],
        ),
    )
    try:
        tuner.fit()
    except Exception as error:  # Tune wraps what its scheduler raises, perhaps more than once
        raise _storage_error(error) or error from error


class GiveBack(tune.Callback):  # type: ignore[misc]  # Ray ships no type information
    """Gives back the places of dead controllers every few seconds while Tune runs, or their successors wait in vain."""

    def __init__(self, run_dir: Path) -> None:
        """Look after the controllers of a run."""
        self._run_dir, self._due = run_dir, 0.0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Give back what there is, if it is time."""
        if time.monotonic() > self._due:
            give_back_deserted(self._run_dir)
            self._due = time.monotonic() + GIVE_BACK_S


def _storage_error(error: BaseException | None) -> StorageError | None:
    """The storage error among an exception's causes."""
    while error is not None and not isinstance(error, StorageError):
        error = error.__cause__ or error.__context__
    return error


def _conclude(config: ExperimentConfig, run_dir: Path, state: PopulationState, placement: Placement) -> Path:
    """Judge the best trial on the test split, once, and write summary and report."""
    name, best = max(state.members.items(), key=lambda item: _comparable(item[1]))
    if best.checkpoint is None or _comparable(best) == WORST_SCORE:
        write_report(run_dir)
        raise RunError(
            f"every trial diverged; {RunDirectory(run_dir).diverged} holds the steps, lower learning rates may help"
        )
    assert config.data_dir is not None and best.score is not None
    own = replaced(config.trial(), best.values)
    judge = ray.remote(_test_fitness).options(num_cpus=placement.cpus, num_gpus=placement.gpus)
    test_accuracy = ray.get(judge.remote(own, best.checkpoint))
    manifest, rows, lineage = read_manifest(config.data_dir), read_results(run_dir), read_lineage(run_dir)
    first_epoch = min(row.epoch for row in rows)
    summary = Summary(
        best_trial=name,
        best_fitness=best.score,
        best_epoch=best.epoch,
        first_best_fitness=max(
            (row.fitness for row in rows if row.epoch == first_epoch and math.isfinite(row.fitness)), default=0.0
        ),
        test_accuracy=test_accuracy,
        chance=1 / len(manifest.classes),
        seconds=state.seconds,
        exploits=len(lineage),
        slot_changes=sum(exploit.changes_slots for exploit in lineage),
        epochs=config.epochs,
        population=config.population,
        dataset=str(manifest.recipe.get("dataset", config.data_dir)),
        command=shlex.join(sys.argv),
    )
    write_summary(run_dir, summary)
    schedule_of(run_dir, name).save(RunDirectory(run_dir).schedule)
    measure = MEASURES[config.evaluation.fitness]
    chance = f" (chance {measure.text(summary.chance)})" if measure.is_share else ""
    print(
        f"Best: {name}, {measure.label} {measure.text(best.score)} on validation, {measure.text(test_accuracy)} on test"
        f"{chance}; {summary.exploits} exploits, {summary.slot_changes} changes of N, "
        f"{summary.seconds:.0f} s"
    )
    print(f"Report: {write_report(run_dir)}", flush=True)
    return run_dir


def _comparable(member: Member) -> float:
    return WORST_SCORE if member.score is None else member.score


def _test_fitness(config: TrialConfig, checkpoint: Pointer) -> float:
    """Fitness of a checkpoint on the test split; runs as a Ray task."""
    from adios_ray.devices import best_device
    from adios_ray.training.trainer import Trainer

    trainer = Trainer(config, best_device())
    trainer.load(checkpoint, config)
    return trainer.evaluate("test")

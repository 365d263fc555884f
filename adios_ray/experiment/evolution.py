"""Training of a run's population to its end: channel, capacity, scheduler, records and trials put together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import assert_never

from adios_ray.backend.admission import Admission
from adios_ray.backend.autoscaling import NodeRequest, autoscaler_runs
from adios_ray.backend.capacity import ClusterCapacity, remove_orphaned
from adios_ray.backend.channel import ChannelCalls, channel_name, start_channel
from adios_ray.backend.loop_config import threads_of
from adios_ray.backend.preflight import check_nodes, find_node_problem, remove_probes
from adios_ray.backend.trial import TrialSettings
from adios_ray.backend.tune_run import run_trials
from adios_ray.config import STOPPING
from adios_ray.console import say
from adios_ray.data.claim import Claim
from adios_ray.errors import RunError
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.resources import WorkerResources, bundles, count_capacity, nodes
from adios_ray.experiment.verdict import conclude
from adios_ray.files import remove_drafts
from adios_ray.run_directory import MASKS, RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.opening import Rung, rungs
from adios_ray.search.pbt import PopulationBasedTraining
from adios_ray.search.population import Population
from adios_ray.search.scheduler import LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState
from adios_ray.search.stopping import StoppingSearch, make_rule
from adios_ray.search.suggest import fill, make_suggest, random_trials
from adios_ray.tracking.decisions import begin_lineage
from adios_ray.tracking.live import LiveView
from adios_ray.tracking.metrics import RayMetrics
from adios_ray.tracking.results import read_results
from adios_ray.tracking.run import Run
from adios_ray.tracking.trackers.base import TrackerName
from adios_ray.tracking.trackers.isolation import Trackers


def fresh_population(config: ExperimentConfig, space: SearchSpace, dataset: str) -> PopulationState:
    """Make a new population with the initial values of all trials.

    With hyperopt it is empty: each trial's values depend on the results of earlier trials, so they are suggested when
    the trial starts. ``dataset`` is the checksum of the data set.
    """
    halvings = rungs(space.opening, config.population)
    first = halvings[0].epoch if halvings else space.interval_epochs
    state = PopulationState(next_decision_epoch=first, epochs=config.epochs, dataset=dataset)
    if space.search != "hyperopt":
        fill(state, space, config.trial(), trial_names(config, space), config.population)
    return state


def trial_names(config: ExperimentConfig, space: SearchSpace) -> list[str]:
    """Name all trials of an experiment."""
    return [f"trial_{number:02d}" for number in range(space.trials(config.population))]


def evolve(
    config: ExperimentConfig,
    space: SearchSpace,
    storage: RunStorage,
    resources: WorkerResources,
    claim: Claim,
    changes: Callable[[], None] = lambda: None,
) -> Path:
    """Train the unfinished trials of a run's population to the end, and evaluate the best one on the test split.

    Args:
        config: The experiment's resolved configuration.
        space: The search space.
        storage: The run's files, with the population's state.
        resources: Resources of each worker.
        claim: This driver's claim on the run.
        changes: Writes what a command line changes into the run, once all nodes that are needed can train.

    Returns:
        The run directory on this node.

    Raises:
        ConfigError: If a node of the cluster lacks the storage, the data or the packages; once the run has begun, if
            the others cannot hold a trial.
        RunError: If a trial did not finish, or every trial diverged.
        FaultError: If no trial can continue, or a trial's actor is lost too often.
        StorageError: If the run's storage stays away.
        ClaimError: If another driver takes the run over; this one writes no more.
    """
    say(f"Run directory: {storage.place}")
    run_dir = storage.directory
    trials = config.population if space.opening else space.trials(config.population)
    view = LiveView(config.epochs, None if space.scheduler in STOPPING else trials, run_dir.name, read_results(run_dir))
    trackers = Trackers(_trackers(config), storage, lambda text: run.note(text))
    metrics, threads = RayMetrics(run_dir.name), threads_of(resources.cpus)
    run = Run(storage, list(space.parameters), view, metrics, trackers, claim.check, threads=threads)
    with trackers:
        state = _train(config, space, run, resources, claim, changes)
        run.write(claim.check)
        # What copies used of trials that had finished before them.
        state.remove_unused_checkpoints(storage, state.members, state.members)
        trackers.summary(conclude(config, run, state, resources))
    return run_dir


def _trackers(config: ExperimentConfig) -> list[TrackerName]:
    wandb: dict[str, list[TrackerName]] = {"off": [], "offline": ["wandb-offline"], "online": ["wandb-online"]}
    return [*wandb[config.wandb], *config.trackers]


def _train(
    config: ExperimentConfig,
    space: SearchSpace,
    run: Run,
    resources: WorkerResources,
    claim: Claim,
    changes: Callable[[], None],
) -> PopulationState:
    """Train the unfinished trials to the end, and return the population as it was written down."""
    storage, run_dir = run.storage, run.directory
    state = PopulationState.load(run_dir)
    names, halvings = trial_names(config, space), rungs(space.opening, config.population)
    _announce(config, space, len(names), halvings)
    assert config.data_dir is not None
    begun = any(member.epoch for member in state.members.values())

    def enough(passed: Collection[str]) -> bool:
        # A run that has begun continues without nodes that cannot train, as it does when such a node joins: whoever
        # resubmits it may be unable to remove them from the cluster.
        return begun and _fitting(config, resources, passed) > 0

    remove_probes(storage.place)
    seen = (storage.place, config.data_dir, resources.gpus > 0)
    checked = check_nodes(*seen, enough, run.note)
    changes()  # only now: a command that is refused changes nothing
    state = PopulationState.load(run_dir)
    # None are unfinished if the driver was stopped during the final evaluation; then only that is repeated.
    if unfinished := state.unfinished(names):
        # The lineage follows the state. An exploit is appended to the lineage before its change is journaled, so a
        # driver killed in between leaves an entry of a decision that is made again; begin_lineage drops it.
        for folder in (run_dir, *RunDirectory(run_dir).outcome_folders()):
            remove_drafts(folder)
        run.write(partial(state.save, run_dir))
        run.write(partial(begin_lineage, run_dir, state.lineage_lines))
        run.write(storage.push)
        # The channel exists before the scheduler, which registers each trial, and the trials, which look it up by name.
        look = partial(find_node_problem, *seen)
        name = channel_name(run_dir.name)
        fitting = partial(_fitting, config, resources)
        channel = start_channel(name, len(unfinished), config.workers_per_trial, checked, look, fitting)
        population = Population(config.trial(), state, run, ChannelCalls(channel))
        with run:
            _run_unfinished(config, space, population, name, resources, checked, claim)
        # Tune's callback has run for the last time: actors that were killed at the end would leave their groups.
        remove_orphaned(storage.place)
    # From disk: the verdict rests on what was written down, exactly as after a resume.
    state = run.read(partial(PopulationState.load, run_dir))
    run.read(lambda: storage.pull(MASKS))
    if failed := state.unfinished(names):
        run.write_page()
        raise RunError(f"not all trials finished ({', '.join(failed)}); resume with --resume {storage.place}")
    return state


def _fitting(config: ExperimentConfig, resources: WorkerResources, passed: Collection[str]) -> int:
    """Count the trials that fit at once into the nodes with these IDs, as far as these are still there."""
    return count_capacity(config, resources, [node for node in nodes() if node.id in passed])


def _run_unfinished(
    config: ExperimentConfig,
    space: SearchSpace,
    population: Population,
    channel: str,
    resources: WorkerResources,
    checked: Mapping[str, str],
    claim: Claim,
) -> None:
    """Run the unfinished trials on those nodes that have passed their check, and on later ones once they pass it.

    ``channel`` is the name of the channel that the population's calls reach.
    """
    run, calls, place = population.run, population.channel, population.run.storage.place
    names, halvings = trial_names(config, space), rungs(space.opening, config.population)
    unfinished = population.state.unfinished(names)
    passed = {node for node, problem in checked.items() if not problem}
    count_fitting = partial(_fitting, config, resources, passed)
    wait = partial(run.note, kind="wait")
    request = NodeRequest(place, bundles(config, resources), wait) if autoscaler_runs() else None

    def count_wanted() -> int:
        return len(set(population.state.unfinished(names)) - scheduler.set_aside.keys())

    def refresh() -> None:
        found = calls.check_nodes([node.id for node in nodes()])
        passed.clear()
        passed.update(found)
        if request:
            request.update(count_wanted(), count_fitting(), calls.refused_nodes())

    with request or nullcontext():
        capacity = ClusterCapacity(place, count_fitting, count_wanted, request is not None, wait)
        admission = Admission(len(unfinished), capacity.count)
        settings = TrialSettings(
            trial="",
            run_dir=place,
            channel=channel,
            workers=config.workers_per_trial,
            cpus_per_worker=resources.cpus,
            gpus_per_worker=resources.gpus,
        )
        scheduler = make_scheduler(space, population, admission, len(names), halvings)
        run_trials(unfinished, settings, scheduler, admission, calls, scheduler.on_note, claim.check_beats, refresh)
    if scheduler.failure:  # at the last report of all
        raise scheduler.failure


def _announce(config: ExperimentConfig, space: SearchSpace, trials: int, halvings: Sequence[Rung]) -> None:
    """Print how a search that does not begin with the whole population begins."""
    if space.search == "hyperopt":
        drawn = random_trials(space, config.trial(), trials)
        say(f"hyperopt: of {trials} trials, the first has the configured values; {drawn} are random")
    if halvings:
        kept = ", ".join(f"{rung.survivors} after epoch {rung.epoch}" for rung in halvings)
        say(f"opening: {trials} trials begin; the best continue, {kept}")


def make_scheduler(
    space: SearchSpace, population: Population, admission: Admission, trials: int, halvings: Sequence[Rung]
) -> LiveScheduler:
    """Build the scheduler that the search space names."""
    match space.scheduler:
        case "pbt":
            return PopulationBasedTraining(
                population, admission, space, lambda name, donor, random: space.explore(donor.values, random), halvings
            )
        case "pb2":
            from adios_ray.search.pb2 import PB2  # scikit-learn takes a second to import

            return PopulationBasedTraining(population, admission, space, PB2(space, population.state), halvings)
        case "asha" | "median" | "none":
            suggest = make_suggest(space, population.config, population.state, trials)
            return StoppingSearch(population, admission, make_rule(space, population.config.epochs), suggest)
        case unknown:
            assert_never(unknown)

"""Resumption of a run: what may differ from its configuration, where its data and checkpoints are now, its end."""

from adios_ray.console import say
from adios_ray.data.manifest import read_manifest
from adios_ray.errors import CheckpointError, ConfigError
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.evolution import trial_names
from adios_ray.measures import MEASURES
from adios_ray.models.weights import load_weights, save_weights
from adios_ray.retry import retry
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import Member, PopulationState
from adios_ray.store import Location, split_location
from adios_ray.tracking.records import read_summary, write_config
from adios_ray.validation import differences

MAY_CHANGE = ("epochs", "data_dir", "cpus_per_worker", "gpus_per_worker", "wandb", "trackers")
"""Settings that a resumed run takes from its command line, in ``check_changes``'s terms."""
NOT_COMPARED = ("resume", "name", "take_over", "storage", "space", "scheduler", "search")
"""Settings that concern one call or the run's place; spaces are compared by their contents."""


def check_changes(
    run: Location,
    own: ExperimentConfig,
    asked: ExperimentConfig,
    own_space: SearchSpace,
    asked_space: SearchSpace,
) -> ExperimentConfig:
    """Return a run's configuration with the changes that a command line asks for.

    Args:
        run: The run's directory or URI, named in errors.
        own: The run's configuration.
        asked: The command line's, with absolute paths; without a data directory, the run's own is kept.
        own_space: The run's search space.
        asked_space: The command line's.

    Raises:
        ConfigError: If anything else would change; names all of it, with both values.
    """
    if asked.data_dir is None:
        asked = asked.model_copy(update={"data_dir": own.data_dir})
    changes = differences(own.model_dump(mode="json"), asked.model_dump(mode="json"))
    refused = [
        f"{path} is {old} there and {new} here"
        for path, (old, new) in changes.items()
        if path not in (*MAY_CHANGE, *NOT_COMPARED)
    ]
    spaces = differences(own_space.model_dump(mode="json"), asked_space.model_dump(mode="json"))
    refused += [f"{path} of the search space is {old} there and {new} here" for path, (old, new) in spaces.items()]
    if asked.epochs < own.epochs:
        refused.append(f"epochs is {own.epochs} there and {asked.epochs} here, and may only grow")
    if refused:
        raise ConfigError(
            f"{run} is a run with another configuration: {'; '.join(refused)}. Start another run, with another "
            f"--name or without one; only {', '.join(MAY_CHANGE)} may change"
        )
    changed = {name: getattr(asked, name) for name in MAY_CHANGE}
    return own.model_copy(update=changed | {"storage": str(split_location(run)[0])})


def check_same_data(state: PopulationState, own: ExperimentConfig, config: ExperimentConfig) -> str:
    """Make sure that a run continues with the images that it began with, wherever they are stored now.

    Returns:
        The data set's checksum.

    Raises:
        ConfigError: If the data set has another checksum.
        DatasetError: If it cannot be read; for a run of an earlier version, also if the old location cannot be.
    """
    assert own.data_dir is not None and config.data_dir is not None
    before = state.dataset or read_manifest(own.data_dir).checksum
    if (now := read_manifest(config.data_dir).checksum) != before:
        raise ConfigError(
            f"data_dir {config.data_dir} is not the data set of this run, which began with {own.data_dir}: its "
            f"checksum is {now[:12]}, not {before[:12]}"
        )
    return now


def keep_initial_weights(run: RunStorage, config: ExperimentConfig) -> None:
    """Copy a new run's initial weights, if there are any, into the run, where all nodes and later drivers find them.

    Raises:
        OSError: If storage fails; the call may be repeated.
    """
    if config.initial_weights is not None:
        path = RunDirectory(run.directory).initial_weights
        save_weights(path, load_weights(config.initial_weights))
        run.publish(path)


def check_checkpoints(run: RunStorage, state: PopulationState) -> None:
    """Make sure that a run, perhaps moved or restored from a backup, has the checkpoints that its trials need.

    Raises:
        CheckpointError: If some are missing; names them.
    """
    missing = [member.checkpoint.path for member in state.members.values() if member.checkpoint and _lacks(run, member)]
    if missing:
        names = ", ".join(str(RunDirectory(run.directory).relative(path)) for path in missing)
        raise CheckpointError(
            f"{run.place} lacks the checkpoints {names}: copy them from where the run was, or restore the whole run "
            "directory from one backup"
        )


def _lacks(run: RunStorage, member: Member) -> bool:
    """Tell whether a trial cannot continue: its checkpoint is missing, and the one before it, if it still trains."""
    assert member.checkpoint is not None
    paths = [member.checkpoint.path] if member.finished else member.checkpoint.paths
    return not any(run.has_checkpoint(path) for path in paths)


def save_changes(
    run: RunStorage, state: PopulationState, own: ExperimentConfig, config: ExperimentConfig, space: SearchSpace
) -> None:
    """Write what a command line changes into a run; called again after a crash in between, it does the rest.

    Raises:
        StorageError: If remote storage fails for longer than five minutes.
    """
    run_dir, grows = run.directory, config.epochs > (state.epochs or 0)
    if config == own and not grows:
        return
    # The state first. Runs of earlier versions have the epochs at which trials finish in the configuration alone.
    state.save(run_dir)
    if config != own:
        write_config(run_dir, config.model_dump(mode="json"))
    if grows:
        for path in (RunDirectory(run_dir).summary, RunDirectory(run_dir).schedule):
            path.unlink(missing_ok=True)  # they conclude a finished run, which this one no longer is
        # At a URI, too, nothing of the run as it was may follow: neither a line of its journal, which would finish the
        # trials again, nor its conclusion.
        retry(run.push, say)
        state.extend(config.epochs, space.interval_epochs)
        state.save(run_dir)
        retry(run.push, say)


def outcome(run: RunStorage, state: PopulationState, config: ExperimentConfig, space: SearchSpace) -> str | None:
    """Describe the outcome of a finished run in one line; None if there is something left to do."""
    summary = read_summary(run.directory)
    if summary is None or state.unfinished(trial_names(config, space)) or config.epochs > (state.epochs or 0):
        return None
    measure = MEASURES[config.evaluation.fitness]
    found = measure.scores_text(summary.test_fitness, summary.test_standard_error, summary.test_accuracy)
    report = RunDirectory(run.directory).report.name
    return f"finished: {run.place}: best {summary.best_trial}, {found} on test; report {run.place}/{report}"

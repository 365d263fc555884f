"""The run of a population's trials under Ray Tune, with admission, notes, and removal of orphaned placement groups."""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import tune
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adios_ray.backend.admission import REFRESH_S, Admission, GatedSearch
from adios_ray.backend.capacity import groups, remove_orphaned
from adios_ray.backend.channel import ChannelCalls, find_channel
from adios_ray.backend.faults import fault_of
from adios_ray.backend.line import Note
from adios_ray.backend.node_checks import outside
from adios_ray.backend.trial import TUNE, LiveTrial, TrialSettings, full_name
from adios_ray.errors import AdiosRayError, RunError, check_stop
from adios_ray.ray_private import fit, named_resources
from adios_ray.store import Location, Store

TRIAL_RESOURCES = {"memory": 1}
"""One byte of memory: Tune requires some resource, and the CPUs and GPUs are for the workers."""
ORPHAN_REMOVAL_S = 2.0
"""Seconds between two scans for orphaned placement groups, for whose resources restarted trials wait."""
END_S, POLL_S = 5.0, 0.1
"""Most seconds to wait for the processes of a run that ends early, and seconds between two looks."""
NOTES_S = 0.5
"""Seconds between two looks for notes of trials."""

E = TypeVar("E", bound=BaseException)


def run_trials(
    trials: Sequence[str],
    settings: TrialSettings,
    scheduler: TrialScheduler,
    admission: Admission,
    channel: ChannelCalls,
    on_note: Callable[[Note], None],
    check_claim: Callable[[], None],
    refresh: Callable[[], None],
) -> None:
    """Run trials to their ends under Tune; ``admission`` limits how many run at a time.

    Args:
        trials: Names of the trials, in the order in which they start.
        settings: Settings that all trials share; the name is filled in.
        scheduler: Decides after each report whether a trial continues, pauses or stops.
        admission: Decides how many trials run at a time.
        channel: Carries the notes of trials.
        on_note: Called with each note as it arrives, not only with the trial's next report.
        check_claim: Raises an error once another driver has taken the run over; called often.
        refresh: Called every ``REFRESH_S`` seconds, for what depends on the nodes that are there.

    Raises:
        FaultError: If no trial can continue, or a trial's actor is lost too often.
        RunError: If the process of the channel is lost.
        StorageError: If the run's storage stays away.
        ClaimError: If another driver has taken the run over.
    """
    run = settings["run_dir"]
    storage_path, file_system = ray_storage(run)
    started = Started()
    # Tune advises reuse_actors, but a trial's actor lives from its start to its end: there is none to reuse.
    warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
    tuner = tune.Tuner(
        tune.with_resources(LiveTrial, _resources),
        param_space={**settings, "trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=GatedSearch(admission),
            trial_name_creator=lambda trial: full_name(trial.config),
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=storage_path,
            storage_filesystem=file_system,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=-1),  # the scheduler counts how often actors are lost
            callbacks=[
                Periodic(0.0, check_stop),
                Periodic(0.0, check_claim),  # ends the workers too, which write checkpoints
                Periodic(ORPHAN_REMOVAL_S, partial(remove_orphaned, run)),
                Periodic(REFRESH_S, refresh),
                Notes(channel, on_note),
                started,
            ],
        ),
    )
    try:
        fit(tuner)
    except Exception as error:  # Tune wraps what its scheduler raises, possibly more than once
        # Tune gives actors some seconds to end, and kills those in the middle of an epoch, whose groups then stay.
        with suppress(Exception):  # the first error is the one to tell; records are away where storage is
            started.kill(run)
        if own := _cause(error, AdiosRayError) or _cause(error, OSError):
            raise own from error
        if (lost := _cause(error, RayError)) and not isinstance(lost, RayTaskError):  # that is an error of the task
            raise RunError(
                f"the run stops because it has lost a process that it needs ({fault_of(lost).reason}). No report is "
                f"lost. Resume with --resume {run}"
            ) from error
        raise
    except BaseException:  # Tune does not clean up after an interruption, and the caller may stay connected to Ray
        started.kill(run)
        channel.kill()
        raise


def _resources(config: TrialSettings) -> Any:
    return named_resources(TRIAL_RESOURCES, full_name(config), partial(_labels, config["channel"]))


def _labels(channel: str) -> dict[str, str]:
    """Select the nodes on which a trial's actor may start."""
    try:
        found = find_channel(channel)
    except ValueError as error:  # by which Ray says that there is no such actor
        raise ActorDiedError from error
    return outside(ray.get(found.refused_nodes.remote()))


def ray_storage(location: Location) -> tuple[str, Any]:
    """Return a place as Ray takes it: a path, and pyarrow's view of the file system at a URI."""
    store = Store(location)
    return store.root, None if store.local is not None else PyFileSystem(FSSpecHandler(store.files))


class _DriverCallback(tune.Callback):  # type: ignore[misc]  # Ray ships no type information
    """A callback that is dropped when Tune pickles its callbacks, which are not used again."""

    def __getstate__(self) -> dict[str, Any]:
        """Keep nothing: open files and actors cannot be pickled."""
        return {}


class Periodic(_DriverCallback):
    """Calls a function at steps of Tune, at most every few seconds."""

    def __init__(self, interval_s: float, call: Callable[[], None]) -> None:
        """Take the seconds between two calls, 0 for every step, and the function, whose error ends the run."""
        self._interval_s, self._call, self._due = interval_s, call, 0.0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Call it, if the interval is over."""
        if time.monotonic() > self._due:
            self._call()
            self._due = time.monotonic() + self._interval_s


class Notes(_DriverCallback):
    """Passes on the notes of trials as they arrive."""

    def __init__(self, channel: ChannelCalls, on_note: Callable[[Note], None]) -> None:
        """Take notes from a channel."""
        self._channel, self._on_note, self._due = channel, on_note, 0.0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Pass on new notes, if the interval is over."""
        if time.monotonic() > self._due:
            self._pass_on()
            self._due = time.monotonic() + NOTES_S

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Pass on the last notes, also those before an error."""
        self._pass_on()

    def _pass_on(self) -> None:
        for note in self._channel.take_notes():
            self._on_note(note)


class Started(_DriverCallback):
    """Knows the actors of trials, to end them."""

    def __init__(self) -> None:
        """Know none."""
        self._trials: list[Trial] = []

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Note the trials."""
        self._trials = trials

    def kill(self, run: Location) -> None:
        """End the trials' processes, and release their resources."""
        for trial in self._trials:
            if actor := trial.temporary_state.ray_actor:
                ray.kill(actor)
        ends = time.monotonic() + END_S
        while groups(run) and time.monotonic() < ends:
            time.sleep(POLL_S)
            remove_orphaned(run)


def _cause(error: BaseException | None, kind: type[E]) -> E | None:
    """Find an error of a kind among an exception and its causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error

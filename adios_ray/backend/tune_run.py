"""The run of a population's trials under Ray Tune, with admission and removal of orphaned placement groups."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adios_ray.backend.admission import Admission, GatedSearch
from adios_ray.backend.capacity import remove_orphaned
from adios_ray.backend.trial import LiveTrial, TrialSettings
from adios_ray.errors import StorageError
from adios_ray.store import Location, Store

TRIAL_RESOURCES = {"memory": 1}
"""One byte of memory: Tune requires some resource, and the CPUs and GPUs are for the workers."""
TRIAL_RESTARTS = 20
"""How often Tune restarts a trial's actor before giving the trial up."""
ORPHAN_REMOVAL_S = 2.0
"""Seconds between two scans for orphaned placement groups."""


def run_trials(trials: Sequence[str], settings: TrialSettings, scheduler: TrialScheduler, admission: Admission) -> None:
    """Run trials to their ends under Tune; ``admission`` limits how many run at a time.

    Args:
        trials: Names of the trials, in the order in which they start.
        settings: Settings that all trials share; the name is filled in.
        scheduler: Decides after each report whether a trial continues, pauses or stops.
        admission: Decides how many trials run at a time.

    Raises:
        StorageError: If the run's storage stays away.
    """
    run = settings["run_dir"]
    storage_path, file_system = ray_storage(run)
    # Tune advises reuse_actors, but a trial's actor lives from its start to its end: there is none to reuse.
    warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
    tuner = tune.Tuner(
        tune.with_resources(LiveTrial, TRIAL_RESOURCES),
        param_space={**settings, "trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(scheduler=scheduler, search_alg=GatedSearch(admission)),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage_path,
            storage_filesystem=file_system,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            callbacks=[OrphanRemoval(run)],
        ),
    )
    try:
        tuner.fit()
    except Exception as error:  # Tune wraps what its scheduler raises, possibly more than once
        raise _storage_error(error) or error from error


def ray_storage(location: Location) -> tuple[str, Any]:
    """Return a place as Ray takes it: a path, and pyarrow's view of the file system at a URI."""
    store = Store(location)
    return store.root, None if store.local is not None else PyFileSystem(FSSpecHandler(store.files))


class OrphanRemoval(tune.Callback):  # type: ignore[misc]  # Ray ships no type information
    """Removes orphaned placement groups every few seconds: restarted controllers wait for the resources they hold."""

    def __init__(self, run: Location) -> None:
        """Watch the controllers of a run."""
        self._run, self._due = run, 0.0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Remove orphaned groups, if the interval is over."""
        if time.monotonic() > self._due:
            remove_orphaned(self._run)
            self._due = time.monotonic() + ORPHAN_REMOVAL_S


def _storage_error(error: BaseException | None) -> StorageError | None:
    """Find the storage error among an exception's causes."""
    while error is not None and not isinstance(error, StorageError):
        error = error.__cause__ or error.__context__
    return error

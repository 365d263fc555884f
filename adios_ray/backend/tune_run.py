"""Running the trials of a population under Ray Tune."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adios_ray.backend.admission import Admission, GatedSearch
from adios_ray.backend.capacity import remove_orphaned
from adios_ray.backend.trial import LiveTrial, TrialSettings
from adios_ray.errors import StorageError

TRIAL_RESOURCES = {"memory": 1}
"""One byte: Tune requires a resource, and CPUs and GPUs belong to the workers."""
TRIAL_RESTARTS = 20
"""How often Tune restarts a trial's actor before giving the trial up."""
ORPHAN_REMOVAL_S = 2.0
"""Seconds between two removals of orphaned placement groups."""


def run_trials(trials: Sequence[str], settings: TrialSettings, scheduler: TrialScheduler, admission: Admission) -> None:
    """Run trials to their ends, as many at a time as are admitted.

    Args:
        trials: Their names.
        settings: What all have in common; the name is filled in.
        scheduler: Decides about them.
        admission: Decides how many run at a time.

    Raises:
        StorageError: If the run's storage stays away.
    """
    run_dir = Path(settings["run_dir"])
    # Trials live from start to end: there is no actor to reuse, which is what Tune advises.
    warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
    tuner = tune.Tuner(
        tune.with_resources(LiveTrial, TRIAL_RESOURCES),
        param_space={**settings, "trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(scheduler=scheduler, search_alg=GatedSearch(admission)),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run_dir),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            callbacks=[OrphanRemoval(run_dir)],
        ),
    )
    try:
        tuner.fit()
    except Exception as error:  # Tune wraps what its scheduler raises, perhaps more than once
        raise _storage_error(error) or error from error


class OrphanRemoval(tune.Callback):  # type: ignore[misc]  # Ray ships no type information
    """Removes orphaned placement groups every few seconds; restarted controllers would wait for their resources."""

    def __init__(self, run_dir: Path) -> None:
        """Look after the controllers of a run."""
        self._run_dir, self._due = run_dir, 0.0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Remove what there is, if it is time."""
        if time.monotonic() > self._due:
            remove_orphaned(self._run_dir)
            self._due = time.monotonic() + ORPHAN_REMOVAL_S


def _storage_error(error: BaseException | None) -> StorageError | None:
    """Find the storage error among an exception's causes."""
    while error is not None and not isinstance(error, StorageError):
        error = error.__cause__ or error.__context__
    return error

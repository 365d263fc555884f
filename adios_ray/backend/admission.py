"""Admission of trials where there are more of them than the cluster has capacity for."""

import time
from collections.abc import Callable

from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

REFRESH_S = 2.0
"""Seconds between two counts of the capacity: Tune's loop asks far more often, and each count queries the cluster."""


class Admission:
    """Admits trials while the cluster has capacity, least-trained first.

    Capacity is the number of trials whose workers' resources fit into the cluster at once. It is recounted every
    ``REFRESH_S`` seconds because nodes join and leave. Tune starts every pending trial, so new trials are handed over
    one at a time (``GatedSearch``); paused ones resume when the scheduler chooses them.
    """

    def __init__(self, trials: int, count_capacity: Callable[[], int]) -> None:
        """Share the capacity among ``trials`` trials; ``count_capacity`` counts how many fit at once."""
        self._unstarted, self._count_capacity = trials, count_capacity
        self._capacity, self._due = 0, 0.0
        self._trials: dict[str, Trial] = {}

    def admit(self, trial: Trial) -> None:
        """Count a trial that Tune is about to start, for the first time or after its actor was lost."""
        self._unstarted -= name_of(trial) not in self._trials
        self._trials[name_of(trial)] = trial

    @property
    def free(self) -> bool:
        """Whether one more trial fits."""
        return self.taken() < self.capacity()

    @property
    def all_started(self) -> bool:
        """Whether all trials have been handed to Tune."""
        return not self._unstarted

    def paused(self) -> list[Trial]:
        """List trials that hold no resources until the scheduler resumes them."""
        return [trial for trial in self._trials.values() if trial.status == Trial.PAUSED]

    def running(self) -> list[Trial]:
        """List trials that hold resources."""
        return [trial for trial in self._trials.values() if trial.status == Trial.RUNNING]

    def oversubscribed(self) -> bool:
        """Tell whether more trials hold resources than fit: a node was lost."""
        return self.taken() > self.capacity()

    def capacity(self) -> int:
        """Count trials that fit at once, at least 1."""
        # Never 0, even while no node fits: one trial stays in Ray's queue and starts as soon as its resources exist.
        if time.monotonic() > self._due:
            self._capacity, self._due = max(1, self._count_capacity()), time.monotonic() + REFRESH_S
        return self._capacity

    def taken(self) -> int:
        """Count trials that hold resources, or were admitted and are about to."""
        # A pending trial counts: between its admission and the start of its actor, another one would get its resources.
        return sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._trials.values())


class GatedSearch(BasicVariantGenerator):  # type: ignore[misc]  # Ray ships no type information
    """Hands trials to Tune one at a time, each when it fits."""

    def __init__(self, admission: Admission) -> None:
        """Follow the capacity of ``admission``."""
        super().__init__()
        self._admission = admission

    def next_trial(self) -> Trial | None:
        """Return the next trial; None while no further one fits."""
        # None does not end the search: Tune asks again at its next step, until the generator itself is exhausted.
        return super().next_trial() if self._admission.free else None


def name_of(trial: Trial) -> str:
    """Return the trial's name in the population."""
    return str(trial.config["trial"])

"""Whose turn it is where there are more trials than places in the cluster."""

import time
from collections.abc import Callable

from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator

REFRESH_S = 2.0


class Admission:
    """Starts trials as places become free, those that are furthest behind first.

    A place is what one trial's workers need. How many there are is counted again and again: nodes come and go. Tune
    starts whatever is pending, so that trials are handed to it one by one (``GatedSearch``); a trial that has been paused
    it starts when it is told to.
    """

    def __init__(self, trials: int, count_capacity: Callable[[], int]) -> None:
        """Share out the places that ``count_capacity`` counts among so many trials."""
        self._unstarted, self._count_capacity = trials, count_capacity
        self._capacity, self._due = 0, 0.0
        self._trials: dict[str, Trial] = {}

    def admit(self, trial: Trial) -> None:
        """A trial is on its way to a place, the first time or after its actor was lost."""
        self._unstarted -= name_of(trial) not in self._trials
        self._trials[name_of(trial)] = trial

    @property
    def free(self) -> bool:
        """Whether there is a place for one more trial."""
        return self._taken() < self.capacity()

    @property
    def all_started(self) -> bool:
        """Whether all trials have been handed to Tune."""
        return not self._unstarted

    def paused(self) -> list[Trial]:
        """Trials that have left their places."""
        return [trial for trial in self._trials.values() if trial.status == Trial.PAUSED]

    def running(self) -> list[Trial]:
        """Trials that hold a place."""
        return [trial for trial in self._trials.values() if trial.status == Trial.RUNNING]

    def oversubscribed(self) -> bool:
        """Whether more trials hold a place than there are: a node was lost."""
        return self._taken() > self.capacity()

    def capacity(self) -> int:
        """Trials that fit at once, at least 1."""
        if time.monotonic() > self._due:
            self._capacity, self._due = max(1, self._count_capacity()), time.monotonic() + REFRESH_S
        return self._capacity

    def _taken(self) -> int:
        return sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._trials.values())


class GatedSearch(BasicVariantGenerator):  # type: ignore[misc]  # Ray ships no type information
    """Hands trials to Tune one by one, each when there is a place for it."""

    def __init__(self, admission: Admission) -> None:
        """Look at the places of ``admission``."""
        super().__init__()
        self._admission = admission

    def next_trial(self) -> Trial | None:
        """The next trial; None while all places are taken."""
        return super().next_trial() if self._admission.free else None


def name_of(trial: Trial) -> str:
    """The trial's name in the population."""
    return str(trial.config["trial"])

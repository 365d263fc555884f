"""Requests to a cluster's autoscaler, which starts and stops nodes."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import ray

from adios_ray.backend.ray_private import find_or_start_coordinator, reported_autoscaler

EXPIRY_S = 180.0
"""Seconds for which the request of a driver that was killed stays in force."""
CANCEL_TIMEOUT_S = 5.0
REPORT_TIMEOUT_S = 30.0
"""Seconds for which a cluster that has just started is waited for to tell whether it has an autoscaler."""


def autoscaler_runs() -> bool:
    """Tell whether an autoscaler adds nodes to the cluster."""
    deadline = time.monotonic() + REPORT_TIMEOUT_S
    while (answer := reported_autoscaler()) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return bool(answer)


class NodeRequest:
    """Requests nodes for the trials of a run until the end of its block, however it ends.

    A cluster has one request, which ``ray.autoscaler.sdk.request_resources`` replaces. Ray's libraries share a
    coordinator, which replaces that request every 20 s by the sum of those that it has received. A run sends it one for
    all its trials, and the requests of several runs add up. The controllers of Ray Train send none: theirs would come
    and go with each trial that starts or waits, so that nodes were stopped and started again, and would stay in force
    for three minutes where a run is interrupted.
    """

    def __init__(self, run: str, trial: Sequence[Mapping[str, float]]) -> None:
        """Request nothing yet.

        Args:
            run: The run's directory or URI, which distinguishes its request from those of others.
            trial: Resources of each worker of a trial.
        """
        self._requester, self._trial = f"adios_ray/{run}", [dict(bundle) for bundle in trial]

    def __enter__(self) -> Self:
        """Find the cluster's coordinator, or start it: it outlives this job."""
        self._coordinator = find_or_start_coordinator()
        return self

    def update(self, trials: int) -> None:
        """Request nodes for a number of trials, or renew that request."""
        self._coordinator.request_resources.remote(self._requester, self._trial * trials, EXPIRY_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Withdraw the request; should the cluster not answer, it expires."""
        # Waited for: the driver may disconnect next, and what it has not yet sent would be lost.
        ray.wait([self._coordinator.cancel_request.remote(self._requester)], timeout=CANCEL_TIMEOUT_S)

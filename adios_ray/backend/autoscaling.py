"""Requests to a cluster's autoscaler, which starts and stops nodes."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError

from adios_ray.backend.node_checks import outside
from adios_ray.ray_private import find_or_start_coordinator, reported_autoscaler, unmet_bundles

EXPIRY_S = 180.0
"""Seconds for which the request of a driver that was killed stays in force."""
CANCEL_TIMEOUT_S = 5.0
ANSWER_S = 15.0
"""Seconds after which an autoscaler has answered a request: it looks at requests every five."""
HOPE_S = 300.0
"""Seconds after which as many trials as are wanted are requested again, since others may have gone."""
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
    all its trials, and the requests of several runs add up. Ray Train sends none: its own would come and go with each
    trial that starts or waits, so that nodes were stopped and started again, and would stay in force for three minutes
    where a run is interrupted.

    The second version of the autoscaler starts no node at all for a request that is more than its cluster can ever
    hold, nor for that of others in the same sum. Where it says so, the number of trials is lowered to what it can hold.
    """

    def __init__(self, run: str, trial: Sequence[Mapping[str, float]], say: Callable[[str], None]) -> None:
        """Request nothing yet.

        Args:
            run: The run's directory or URI, which distinguishes its request from those of others.
            trial: Resources of each worker of a trial.
            say: Tells the user that no trial fits, whatever nodes the autoscaler starts.
        """
        self._requester, self._trial, self._say = f"adios_ray/{run}", [dict(bundle) for bundle in trial], say
        self._told = False
        self._asked, self._asked_at = 0, -ANSWER_S
        self._possible = 0
        self._impossible: int | None = None
        self._hopeful_at = 0.0
        self._answer: Any = None

    def __enter__(self) -> Self:
        """Find the cluster's coordinator, or start it: it outlives this job."""
        self._coordinator = find_or_start_coordinator()
        return self

    def update(self, trials: int, fitting: int = 0, refused: Sequence[str] = ()) -> None:
        """Request nodes for a number of trials, or renew that request.

        Args:
            trials: Trials that want to train.
            fitting: Trials for which there are nodes.
            refused: IDs of nodes that cannot train: without them, the autoscaler would take them for what is asked.
        """
        asked = self._most(trials, fitting)
        if asked != self._asked:
            self._asked, self._asked_at = asked, time.monotonic()
        self._find_coordinator()
        bundles = self._trial * asked
        self._answer = self._coordinator.request_resources.remote(
            self._requester, bundles, EXPIRY_S, label_selectors=[outside(refused)] * len(bundles)
        )

    def _most(self, trials: int, fitting: int) -> int:
        """Return the number of trials to ask for: all, or the most that the cluster can hold, found by bisection."""
        now = time.monotonic()
        if now - self._hopeful_at >= HOPE_S:
            self._hopeful_at, self._impossible = now, None
        if now - self._asked_at >= ANSWER_S:
            if self._asked > fitting and self._is_unmet():
                if self._asked == 1 and not self._told:
                    self._told = True
                    self._say(
                        f"the autoscaler can start no nodes for a trial, whose {len(self._trial)} workers need "
                        f"{self._trial[0]} each: unless others end, stop the run, and resume it with other "
                        "--gpus-per-worker and --cpus-per-worker"
                    )
                self._impossible = self._asked
                self._possible = self._possible if self._possible < self._asked else 0
            else:
                self._possible = max(self._possible, self._asked)
        possible = max(self._possible, fitting)
        if self._impossible is None or self._impossible <= possible:
            return trials
        return min(trials, (possible + self._impossible) // 2)

    def _is_unmet(self) -> bool:
        """Tell whether this request is among those that the autoscaler says it can never fulfill."""
        unmet = unmet_bundles()
        return all(unmet.count(bundle) >= self._asked * self._trial.count(bundle) for bundle in self._trial)

    def _find_coordinator(self) -> None:
        """Find or start the coordinator again if it was lost, as it may run on a node of another job."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            try:
                ray.get(self._answer)
            except RayError:
                self._coordinator = find_or_start_coordinator()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Withdraw the request; should the cluster not answer, it expires."""
        self._find_coordinator()
        # Waited for: the driver may disconnect next, and what it has not yet sent would be lost.
        ray.wait([self._coordinator.cancel_request.remote(self._requester)], timeout=CANCEL_TIMEOUT_S)

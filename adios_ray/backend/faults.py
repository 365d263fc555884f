"""Faults: failures of a trial's workers that say nothing about its configuration.

A training that diverged or collapsed reports that itself (``TrialReport.divergence``). Whatever else ends a worker is a
fault: a missing checkpoint, data set or package, a full disk, memory, a killed process. A trial with a fault stays at
its epoch, and its workers are started again after a growing wait; after the last wait the run stops and can be resumed.
"""

import traceback
from typing import NamedTuple

from ray.exceptions import OutOfMemoryError

WAITS_S = (0.0, 1.0, 5.0, 15.0, 45.0)
"""Seconds before each new start of a trial's workers that have failed without a report in between."""
ATTEMPTS = 1 + len(WAITS_S)
"""How often a trial's workers are started without a report in between, before the run stops."""

_NODE_MEMORY = (
    "a worker was killed because its node was low on memory: lower --micro-batch-size, or raise --cpus-per-worker so "
    "that fewer trials train at once"
)
_LOW_ON_MEMORY = "low on memory"
"""Occurs in the messages of Ray's memory monitor about processes that it has killed."""
_GUESSES = " Some common causes include"
"""Begins a long list of guesses in Ray's messages about processes that died; the details keep it."""
_OWN_ERRORS = "adios_ray.errors."
"""Prefix of this package's errors at the end of a traceback."""


class Fault(NamedTuple):
    """Why a trial's workers failed.

    Attributes:
        reason: One line for people.
        details: The whole of it, with tracebacks, for the trial's log.
    """

    reason: str
    details: str


def fault_of(error: BaseException | None) -> Fault:
    """Explain the error with which a Ray Train run ended; None stands for an end without one."""
    if error is None:
        return Fault("the Ray Train run ended by itself", "")
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return Fault(_reason(error), "".join(traceback.format_exception(error)).rstrip())
    reasons = [_reason(failure) for _, failure in sorted(failures.items())]
    # One worker's failure breaks the connections of the others. An error of this package is never such a consequence.
    reason = next((text for text in reasons if text.startswith(_OWN_ERRORS) or text == _NODE_MEMORY), reasons[0])
    details = [f"worker {rank}:\n{failure}".rstrip() for rank, failure in sorted(failures.items())]
    return Fault(reason.removeprefix(_OWN_ERRORS), "\n".join(details))


def _reason(error: BaseException) -> str:
    """Shorten an error to the last line of its text, which in a worker's traceback names the exception."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or _LOW_ON_MEMORY in text:
        return _NODE_MEMORY
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].partition(_GUESSES)[0] if lines else type(error).__name__

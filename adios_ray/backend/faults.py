"""Faults: failures of a trial's workers that say nothing about its configuration.

A training that diverged or collapsed reports that itself (``TrialReport.divergence``). Whatever else ends a worker is a
fault: a missing checkpoint, data set or package, a full disk, memory, a killed process. A trial with a fault stays at
its epoch, and its workers are started again after a growing wait; after the last attempt it is set aside, and the
others continue without it.
"""

import traceback
from typing import NamedTuple

from ray.exceptions import OutOfMemoryError, RayError

from adios_ray.errors import AdiosRayError, MemoryLimitError

WAITS_S = (0.0, 1.0, 5.0, 15.0, 45.0)
"""Seconds before each new start of a trial's workers that have failed without a report in between."""
ATTEMPTS = 1 + len(WAITS_S)
"""How often a trial's workers are started without a report in between, before it is set aside."""

_NODE_MEMORY = (
    "a worker was killed because its node was low on memory: raise --cpus-per-worker, also of a resumed run, so that "
    "fewer trials train at once, or lower --micro-batch-size of a new one"
)
_LOW_ON_MEMORY = "low on memory"
"""Occurs in the messages of Ray's memory monitor about processes that it has killed."""
_GUESSES = " Some common causes include"
"""Begins a long list of guesses in Ray's messages about processes that died; the details keep it."""


class Fault(NamedTuple):
    """Why a trial's workers failed.

    Attributes:
        reason: One line for people.
        details: The whole of it, with tracebacks, for the trial's log.
        memory: Whether memory was too small, a worker's or its node's.
    """

    reason: str
    details: str
    memory: bool = False


def fault_of(error: BaseException | None) -> Fault:
    """Explain the error with which a Ray Train run ended; None stands for an end without one."""
    if error is None:
        return Fault("the Ray Train run ended by itself", "")
    # Of a worker that died in its start; what Ray Train makes of it names no reason.
    if (failure := getattr(error, "controller_failure", None)) is not None and failure.__cause__ is not None:
        error = failure.__cause__
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return Fault(_reason(error), "".join(traceback.format_exception(error)).rstrip(), _is_of_memory(error))
    ranked = [failures[rank] for rank in sorted(failures)]
    # One worker's failure breaks the connections of the others. An error of this package is never such a consequence.
    cause = next((each for each in ranked if isinstance(each, AdiosRayError) or _lacked_memory(each)), ranked[0])
    details = ["\n".join([f"worker {rank}:", *_texts(failures[rank])]) for rank in sorted(failures)]
    return Fault(_reason(cause), "\n".join(details), _is_of_memory(cause))


def fault_of_text(error: str) -> Fault:
    """Explain an error by its text, a traceback or a message of Ray's, whose last line says what happened."""
    if _LOW_ON_MEMORY in error:
        return Fault(_NODE_MEMORY, error.strip(), memory=True)
    return Fault(_last_line(error) or "for an unknown reason", error.strip())


def _texts(error: BaseException) -> list[str]:
    """Return an error's traceback, which the worker has added as a note, or its message."""
    return list(getattr(error, "__notes__", ())) or [str(error)]


def _lacked_memory(error: BaseException) -> bool:
    return isinstance(error, OutOfMemoryError) or _LOW_ON_MEMORY in str(error)


def _is_of_memory(error: BaseException) -> bool:
    return _lacked_memory(error) or isinstance(error, MemoryLimitError)


def _last_line(text: str) -> str:
    """Return the last line of a text that is not empty, without Ray's guesses; nothing if there is none."""
    return next((line.strip().partition(_GUESSES)[0] for line in reversed(text.splitlines()) if line.strip()), "")


def _reason(error: BaseException) -> str:
    """Shorten an error to one line."""
    if _lacked_memory(error):
        return _NODE_MEMORY
    from ray.train import TrainingFailedError  # imported here because it takes a second

    error = getattr(error, "health_check_failure", error)  # why Ray Train could not reach a worker
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, RayError | TrainingFailedError):  # their last line says why a process died
        return _last_line(str(error))
    return lines[0] if isinstance(error, AdiosRayError) else f"{type(error).__name__}: {lines[0]}"

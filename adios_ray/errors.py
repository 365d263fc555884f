"""All errors that this package raises on purpose, and the exit status of a program that ends with one.

::

    AdiosRayError
    ├── InputError (ValueError)     an input cannot be used; exit status 2
    │   ├── ConfigError             a configuration, a search space, a schedule or a run directory
    │   ├── UsageError              options of a command that are out of range, or exclude each other
    │   ├── DatasetError            a data set, its manifest or its shards
    │   ├── RefusedImageError       one image that cannot be used
    │   ├── CheckpointError         a checkpoint or a file of weights that is missing, damaged or does not fit
    │   ├── EvaluationError         features, labels, masks or a setting that a measure cannot use
    │   └── RecordError             a file of a run directory that is damaged or has other content than expected
    └── RunError (RuntimeError)     a run that could not finish; exit status 1
        ├── StorageError            storage that failed for too long
        ├── FaultError              workers of one trial that failed too often, without a divergence
        ├── NodeError               a node of the cluster that cannot train
        ├── MemoryLimitError        a worker, or the measurement of a step, out of memory
        ├── ClaimError              a run or another place that another process holds, or has taken over
        └── ReplicaError            workers of one trial that hold different parameters

Each message names the object and its value, and what to do where that is known.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class AdiosRayError(Exception):
    """Base of all errors of this package."""


class InputError(AdiosRayError, ValueError):
    """An input cannot be used."""


class ConfigError(InputError):
    """A configuration cannot be used; the message names the value and what is allowed."""


class UsageError(InputError):
    """Options of a command or arguments of a call are out of range or exclude each other."""


class DatasetError(InputError):
    """A data set cannot be used; the message names the file."""


class RefusedImageError(InputError):
    """An image cannot be used; the message gives the reason."""


class CheckpointError(InputError):
    """A checkpoint or weights file is missing, damaged or does not fit; the message names the file."""


class EvaluationError(InputError):
    """A measure cannot be computed from the given data; the message names them and what the measure needs."""


class RecordError(InputError):
    """A file of a run directory is damaged or has other content than expected; the message names the file."""


class RunError(AdiosRayError, RuntimeError):
    """A run could not finish; the message gives the reason, and how to resume."""


class StorageError(RunError):
    """Storage failed for too long; the message gives the reason, and how to resume."""


class FaultError(RunError):
    """A trial's workers failed too often; the message names the trial and the reason, and how to resume."""


class NodeError(RunError):
    """A node of the cluster cannot train; the message says what it lacks."""


class MemoryLimitError(RunError):
    """A worker, or the measurement of a step, is out of memory; the message says what to lower."""


class ClaimError(RunError):
    """Another process holds a place, or has taken it over; the message names both."""


class ReplicaError(RunError):
    """Workers of one trial hold different parameters; the message names the workers."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        """Name the signal by its number."""
        super().__init__(signal.Signals(number).name)
        self.number = number


SHOW_CURSOR = b"\x1b[?25h"
"""Control sequence of terminals that makes the cursor visible."""
TOGETHER_S = 2.0
"""Seconds within which a second SIGTERM counts as the same request."""
_asked: list[tuple[int, float]] = []
"""The signal that has asked this process to stop, and when, if one has."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise ``Interrupted`` in the main thread at the first Ctrl-C, SIGTERM or SIGHUP; a second one ends the process.

    SIGTERM is what SLURM, ``docker stop``, Kubernetes and ``ray job stop`` send some seconds before they kill, SIGHUP
    what a closed terminal sends; ``nohup`` lets it be ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it receives signals
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - ignored
    before = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Keep the handlers of Ctrl-C and SIGTERM through a block that replaces them, as the start of Ray does.

    Ray's print a stack of C++ and exit by themselves.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:  # by the handler that Ray installs for SIGTERM
        handler = before[signal.SIGTERM]
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def check_stop() -> None:
    """Raise ``Interrupted`` again if a signal has asked this process to stop.

    For long loops: Python drops an exception that a handler raises inside a destructor or a callback of C.
    """
    if _asked:
        raise Interrupted(_asked[0][0])


def _stop(number: int, frame: object) -> None:
    if _asked:
        first, since = _asked[0]
        # The system and the shell both send SIGHUP for one closed terminal, SLURM and its script SIGTERM for one
        # cancelled job.
        if number == first == signal.SIGHUP:
            return
        if number == first == signal.SIGTERM and time.monotonic() - since < TOGETHER_S:
            return
        # Without any cleaning up, which may be what takes long; but a live table has hidden the cursor.
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
        os._exit(128 + number)
    _asked.append((number, time.monotonic()))
    raise Interrupted(number)


AGAIN = "run the same command again to resume"


@contextmanager
def resumable(advice: str = AGAIN) -> Iterator[None]:
    """Note on an interruption of the block how to resume, unless a block within has noted it; see ``exit_status``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not hasattr(stop, "__notes__"):
            stop.add_note(advice)
        raise


def exit_status(program: Callable[[], object], on_interrupt: str = "") -> int:
    """Run a program, and print an expected error as one line on standard error.

    Args:
        program: The program's body.
        on_interrupt: How to continue after one of these signals, added to the line that is printed, unless the
            exception has notes, which say it in its place.

    Returns:
        0 for success, 2 for an InputError or OSError, 1 for a RunError, 130 after Ctrl-C, 143 after SIGTERM, 129
        after SIGHUP, 141 where the reader of the output has closed it: by the convention of shells, 128 plus the
        signal's number. Other exceptions are bugs of this package: they propagate with their traceback.
    """
    # No program joins a cluster that it was not told of: unless this is said, Ray does, from a call of any thread that
    # comes after its shutdown.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    with stoppable():
        try:
            program()
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            # By what the handler noted first: where it interrupts a call into Ray, Ray raises an exception of its own.
            raised = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
            number = _asked[0][0] if _asked else raised
            cause = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
            advice = getattr(stop, "__notes__", [on_interrupt] if on_interrupt else [])
            _print_error("; ".join([cause, *advice]))
            return 128 + number
        except (AdiosRayError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _has_lost_reader():
                return 128 + signal.SIGPIPE
            _print_error(f"error: {_in_one_line(error)}")
            return 1 if isinstance(error, RunError) else 2
        return 0


def _print_error(line: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        print(line, file=sys.stderr)


def _has_lost_reader() -> bool:
    """Tell whether the reader of standard output, such as `head`, has closed it; what is left is dropped then."""
    output, poll = sys.stdout.fileno(), select.poll()
    poll.register(output, select.POLLOUT)
    lost = any(event & select.POLLERR for _, event in poll.poll(0))
    if lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # else Python complains when it ends
    return lost


def _in_one_line(error: Exception) -> str:
    """Return an error's message; of an error of the system, the file before the reason and no number."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(line.strip() for line in text.splitlines())

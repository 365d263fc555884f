"""Every error that this package raises on purpose, and how a program ends with one.

::

    AdiosRayError
    ├── InputError (ValueError)     something that was given cannot be used; exit status 2
    │   ├── ConfigError             a configuration, a search space, a schedule or a run directory
    │   ├── UsageError              options of a command that do not go together, or are out of range
    │   ├── DatasetError            a data set, its manifest or its shards
    │   ├── RefusedImageError       one image that cannot be used
    │   ├── CheckpointError         a checkpoint or a file of weights that is missing, damaged or does not fit
    │   └── RecordError             a file of a run directory that does not hold what it should
    └── RunError (RuntimeError)     a run that could not come to its end; exit status 1
        ├── StorageError            storage that did not come back
        ├── ReplicaError            workers of one trial that hold different parameters
        └── NonFiniteError          a term of the game that is not finite

Each message names the thing, says what is wrong with it, and what to do where that is known.
"""

import sys
from collections.abc import Callable


class AdiosRayError(Exception):
    """Base of all errors of this package."""


class InputError(AdiosRayError, ValueError):
    """Something that was given cannot be used."""


class ConfigError(InputError):
    """A configuration that cannot be used; the message names the value and what is allowed."""


class UsageError(InputError):
    """Options that do not go together or are out of range."""


class DatasetError(InputError):
    """A data set that cannot be used; the message names the file."""


class RefusedImageError(InputError):
    """An image that cannot be used; the message says why."""


class CheckpointError(InputError):
    """A checkpoint or a file of weights that is missing, damaged or does not fit; the message names the file."""


class RecordError(InputError):
    """A file of a run directory does not hold what it should; the message names the file."""


class RunError(AdiosRayError, RuntimeError):
    """A run that could not come to its end; the message says why, and how to resume it."""


class StorageError(RunError):
    """Storage that did not come back; the message says what was wrong and how to resume."""


class ReplicaError(RunError):
    """Workers of one trial that hold different parameters; the message names them."""


class NonFiniteError(RunError, ArithmeticError):
    """A term of the game that is not finite; the message names it, its slot and its value."""


INTERRUPTED = 130
"""Exit status after Ctrl-C, by the shells' convention: 128 and the signal's number."""


def exit_status(program: Callable[[], object], on_interrupt: str = "") -> int:
    """Run a program; print an expected error as one line on standard error.

    Args:
        program: The program's body.
        on_interrupt: How to continue after Ctrl-C, added to the line that it prints.

    Returns:
        0; 2 for input that cannot be used, and for what the system refuses; 1 for a run that could not come to its end;
        130 after Ctrl-C. Other exceptions are faults of this package and keep their traceback.
    """
    try:
        program()
    except KeyboardInterrupt:
        print(f"interrupted{on_interrupt and '; '}{on_interrupt}", file=sys.stderr)
        return INTERRUPTED
    except (AdiosRayError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    return 0

"""Waiting for storage that is full or has gone away, instead of losing what is to be written."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from adios_ray.errors import StorageError
from adios_ray.run_directory import RunDirectory

TIMEOUT_S = 300.0
PAUSE_S = 1.0

Result = TypeVar("Result")


def retry(action: Callable[[], Result], say: Callable[[str], None]) -> Result:
    """Do something that writes, again and again while storage refuses it.

    Args:
        action: What may be done more than once.
        say: Told once that storage refuses, and once that it is back.

    Raises:
        StorageError: If it refuses for longer than five minutes.
        OSError: At once, if something else lies in the way: no waiting takes that away.
    """
    began, told = time.monotonic(), False
    while True:
        try:
            result = action()
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if time.monotonic() - began > TIMEOUT_S:
                raise StorageError(
                    f"storage has refused for {TIMEOUT_S:.0f} s ({error}); nothing is lost: mend it and go on with "
                    "--resume and the run directory"
                ) from error
            if not told:
                say(f"storage refuses ({error}); waiting up to {TIMEOUT_S:.0f} s for it")
                told = True
            time.sleep(PAUSE_S)
        else:
            if told:
                say(f"storage is back after {time.monotonic() - began:.0f} s")
            return result


def retry_in_run(run_dir: Path, action: Callable[[], Result], say: Callable[[str], None]) -> Result:
    """``retry``, and only while the run's files are there: storage may leave an empty folder when it goes away."""

    def attempt() -> Result:
        RunDirectory(run_dir).config.stat()  # every run has one: without it, the run's storage has gone away
        return action()

    return retry(attempt, say)

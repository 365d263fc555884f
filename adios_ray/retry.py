"""Retries while storage is full or unavailable."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread, Timer
from typing import TypeVar

from adios_ray.errors import StorageError
from adios_ray.run_directory import RunDirectory

TIMEOUT_S = 300.0
"""Seconds after which a write is given up."""
PAUSE_S = 1.0
"""Seconds between two attempts."""
ANSWER_S = 20.0
"""Seconds that storage has to answer when it is accessed first, and after which a longer access is named."""
BRIEF_S = 3.0
"""Seconds that storage has to answer where a run can do without its answer, and once the run is stopped."""

WRONG_KIND = (FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors of a file or directory of the wrong kind, which does not go away."""
LASTING = (*WRONG_KIND, FileNotFoundError, PermissionError)
"""Errors after which an input or output is given up: besides, what does not exist, and access that is denied."""

ACCESS = "an access to storage"
"""Names an action that is retried, in what is said about it."""

Result = TypeVar("Result")


def retry(
    action: Callable[[], Result],
    say: Callable[[str], None],
    lasting: tuple[type[OSError], ...] = WRONG_KIND,
    name: str = ACCESS,
) -> Result:
    """Retry an access to storage for up to five minutes while storage fails.

    Args:
        action: The access; it must be safe to repeat.
        say: Prints a line once when storage first fails or the access has taken 20 s, in the second case from another
            thread, and once when it has succeeded then.
        lasting: Errors after which trying again is in vain.
        name: What is said to take long; for an action that does more than access storage.

    Returns:
        What ``action`` returns.

    Raises:
        StorageError: If storage fails for longer than five minutes.
        OSError: Immediately, if it is a lasting one, such as a directory in the way of a file.
    """
    began, told, last = time.monotonic(), Lock(), list[str]()

    def tell(text: str, end: str) -> None:
        if told.acquire(blocking=False):  # once, from two threads
            last.append(end)
            say(text)

    # It may be a long transfer, and no fault of storage.
    slow = Timer(ANSWER_S, tell, [f"{name} has taken {ANSWER_S:.0f} s so far; waiting for it", f"{name} took"])
    slow.daemon = True
    slow.start()
    try:
        result = _repeat(action, tell, lasting)
    finally:
        slow.cancel()
    for end in last:
        say(f"{end} {time.monotonic() - began:.0f} s")
    return result


def _repeat(
    action: Callable[[], Result], tell: Callable[[str, str], None], lasting: tuple[type[OSError], ...]
) -> Result:
    """Repeat an access as ``retry`` does, which tells how long it took."""
    failed_at: float | None = None
    while True:
        try:
            return action()
        except lasting:
            raise
        # Any other OSError may pass: a full disk, a quota, a network file system that is remounted.
        except OSError as error:
            if failed_at is None:  # the action itself may take long
                failed_at = time.monotonic()
                refused = f"storage refuses ({error}); retrying for up to {TIMEOUT_S:.0f} s"
                tell(refused, "storage has answered after")
            if time.monotonic() - failed_at > TIMEOUT_S:
                raise StorageError(
                    f"storage has failed for {TIMEOUT_S:.0f} s ({error}): fix it, then run the command again, a "
                    "training with --resume RUN_DIR; no reported result is lost"
                ) from error
            time.sleep(PAUSE_S)


def promptly(action: Callable[[], Result], limit_s: float | None = None) -> Result:
    """Access storage where waiting for it is in vain, as at first, when it may be named wrongly, or does harm.

    The protocols' packages retry what is worth it within this time.

    Args:
        action: The access, which may still be running in a thread after the limit.
        limit_s: Seconds that storage has to answer; None for ``ANSWER_S``, 20 s.

    Raises:
        OSError: If storage refuses, or does not answer in time.
    """
    limit_s = ANSWER_S if limit_s is None else limit_s
    answer = in_thread(action)
    try:
        return answer.result(limit_s)
    except TimeoutError as error:
        raise error if answer.done() else TimeoutError(f"no answer within {limit_s:.0f} s") from None


def in_thread(action: Callable[[], Result]) -> Future[Result]:
    """Begin an access to storage in a thread that delays neither an interruption nor the end of the process."""
    answer = Future[Result]()

    def access() -> None:
        try:
            answer.set_result(action())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=access, daemon=True).start()  # a daemon, because the packages' own timeouts are minutes
    return answer


def retry_in_run(run_dir: Path, action: Callable[[], Result], say: Callable[[str], None], name: str = ACCESS) -> Result:
    """Retry a write as ``retry`` does; an attempt fails where the run's own files are missing."""

    def attempt() -> Result:
        # Unmounted storage may leave an empty folder, into which a write would succeed and be lost. Every run has a
        # configuration: where it is missing, stat() raises the OSError that makes retry() wait.
        RunDirectory(run_dir).config.stat()
        return action()

    return retry(attempt, say, name=name)

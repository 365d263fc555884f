"""The cache directory of this machine, whose folders are copies of remote files that its processes share.

It is ``$ADIOS_RAY_CACHE``, by default ``adios_ray`` in the user's cache. A folder may be removed when no process holds
its lock, which the operating system releases with the process.
"""

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from adios_ray.errors import ConfigError
from adios_ray.files import expand_home

CACHE_VARIABLE = "ADIOS_RAY_CACHE"
UNSAVED = "unsaved"
"""In the folder of a run: there if its last driver on this node could not copy its files to the run's URI."""

_held: dict[Path, int] = {}
"""Descriptor of the lock on each folder that this process uses."""


def cache_directory() -> Path:
    """Return the directory of the copies; it may not exist yet.

    Raises:
        ConfigError: If it would be in a home directory, and there is none.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "adios_ray"
    try:
        return expand_home(os.environ.get(CACHE_VARIABLE) or default).absolute()
    except ConfigError as error:
        raise ConfigError(f"{error}, or {CACHE_VARIABLE} to a directory for the cache") from None


def cache_folder(name: str = "") -> Path:
    """Return a folder in the cache directory, or the directory itself; it is created.

    Raises:
        ConfigError: If it cannot be written to.
    """
    folder = cache_directory() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"the cache directory {folder} cannot be written to ({error.strerror}): set {CACHE_VARIABLE} to another one"
        ) from None
    return folder


def remove_least_used(folder: Path, kept_bytes: int) -> None:
    """Remove the least recently used files of a folder until the others are not larger than ``kept_bytes`` together.

    The newest one stays, whatever its size.
    """
    found = []
    for path in folder.glob("[!.]*"):  # not what is being written
        with suppress(FileNotFoundError):  # another process may be removing some
            found.append((path.stat(), path))
    newest_first = sorted(found, key=lambda each: each[0].st_mtime_ns, reverse=True)
    total = 0
    for number, (status, path) in enumerate(newest_first):
        total += status.st_size
        if number and total > kept_bytes:
            path.unlink(missing_ok=True)


def hold(folder: Path) -> None:
    """Protect a folder of the cache directory, which need not exist yet, until ``release`` or the process's end.

    Raises:
        ConfigError: If the cache directory cannot be written to.
    """
    if folder not in _held:
        cache_folder()
        # The lock file is beside the folder, because it must outlive the folder's removal.
        descriptor = os.open(_lock_file(folder), os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[folder] = descriptor


def release(folder: Path) -> None:
    """Stop protecting a folder."""
    if folder in _held:
        os.close(_held.pop(folder))


def remove_unless_held(folder: Path) -> None:
    """Remove a folder, unless some process holds it."""
    with _lock_file(folder).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if folder.is_dir():
            # Renamed first: a removal that is interrupted must not leave a manifest beside half of the files. The new
            # name has a lock of its own: what is left is removed later, whichever process uses a new copy.
            hidden = folder.with_name(f".{folder.name}")
            shutil.rmtree(hidden, ignore_errors=True)  # what an interrupted removal of an earlier copy left
            shutil.rmtree(folder.rename(hidden))


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")

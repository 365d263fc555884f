"""The cache directory of this machine, whose folders are copies of remote files that its processes share.

It is ``$ADIOS_RAY_CACHE``, by default ``adios_ray`` in the user's cache. A folder may be removed when no process holds
its lock, which the operating system releases with the process.
"""

import fcntl
import os
import shutil
from pathlib import Path

CACHE_VARIABLE = "ADIOS_RAY_CACHE"

_held: dict[Path, int] = {}
"""Descriptor of the lock on each folder that this process uses."""


def cache_directory() -> Path:
    """Return the directory of the copies; it may not exist yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "adios_ray"
    return Path(os.environ.get(CACHE_VARIABLE) or default).expanduser().absolute()


def hold(folder: Path) -> None:
    """Protect a folder, which need not exist yet, from removal until ``release`` or the end of this process."""
    if folder not in _held:
        folder.parent.mkdir(parents=True, exist_ok=True)
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
            shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}")))


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")

"""Copies of remote data sets on this machine: memory maps need files.

All processes of a machine share one copy, in the cache directory ``$ADIOS_RAY_CACHE`` (by default ``adios_ray`` in the
user's cache). A copy is named after the checksum of its manifest and never changes: what is prepared anew under the
same URI is another copy. Copies that nobody uses make room, the longest unused first, where the disk or
``$ADIOS_RAY_CACHE_BYTES`` allows no more.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from adios_ray.data.store import Store
from adios_ray.errors import DatasetError
from adios_ray.files import atomic_path, atomic_write, sha256

CACHE_VARIABLE = "ADIOS_RAY_CACHE"
BYTES_VARIABLE = "ADIOS_RAY_CACHE_BYTES"
PARALLEL_FETCHES = 8

_used: dict[Path, int] = {}
"""Lock of each copy that this process uses, held until it ends."""


class RemoteFile(NamedTuple):
    """One file of a data set: its name, its size and its SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def cache_locally(store: Store, manifest: str, content: bytes, files: Sequence[RemoteFile]) -> Path:
    """Copy a data set to this machine, unless that has been done, and keep it there while this process lives.

    Processes that ask at the same time wait for the first. What an interrupted copy left is used.

    Args:
        store: Where the data set lies.
        manifest: Name of its manifest.
        content: Content of the manifest.
        files: All other files.

    Returns:
        Directory of the copy.

    Raises:
        DatasetError: If a file cannot be fetched or is damaged, or there is no room.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / hashlib.sha256(content).hexdigest()[:32]
    _use(directory)
    complete = directory / manifest
    if not complete.exists():
        with _alone(cache / "fetching.lock"):
            if not complete.exists():
                _fetch_all(store, directory, files)
                atomic_write(complete, content)
    os.utime(directory)
    return directory


def cache_directory() -> Path:
    """Where copies lie."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "adios_ray"
    return Path(os.environ.get(CACHE_VARIABLE) or default).expanduser().absolute()


def _use(directory: Path) -> None:
    """Mark a copy as used by this process; several may."""
    if directory not in _used:
        descriptor = os.open(directory.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _used[directory] = descriptor


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in this block."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_all(store: Store, directory: Path, files: Sequence[RemoteFile]) -> None:
    directory.mkdir(exist_ok=True)
    lacking = [file for file in files if not (directory / file.name).exists()]
    _make_room(directory.parent, sum(file.bytes for file in lacking), store)
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        fetched = pool.map(lambda file: _fetch(store, directory, file), lacking)
        for _ in track(
            fetched, f"copying {store}", len(lacking), console=Console(stderr=True), disable=not sys.stderr.isatty()
        ):
            pass


def _fetch(store: Store, directory: Path, file: RemoteFile) -> None:
    """Copy and check one file."""
    with atomic_path(directory / file.name) as aside:
        try:
            store.fetch(file.name, aside)
        except Exception as error:  # each protocol has errors of its own
            raise DatasetError(
                f"{store}/{file.name} could not be fetched ({type(error).__name__}: {error}); try again, what has "
                "arrived is kept"
            ) from error
        if sha256(aside) != file.sha256:
            raise DatasetError(f"{store}/{file.name} does not have the checksum of its manifest; prepare it again")


def _make_room(cache: Path, needed: int, store: Store) -> None:
    """Remove copies that nobody uses until ``needed`` bytes fit.

    Raises:
        DatasetError: If they do not.
    """
    unused = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    while (free := _free_bytes(cache)) < needed:
        if not unused:
            raise DatasetError(
                f"{store} needs {needed:,} bytes in {cache}, which has room for {max(0, free):,}: make room, raise "
                f"{BYTES_VARIABLE}, or choose another directory by {CACHE_VARIABLE}"
            )
        _remove_unless_used(unused.pop(0))


def _free_bytes(cache: Path) -> int:
    """What may be added: no more than the disk has, nor than the limit leaves."""
    free = shutil.disk_usage(cache).free
    if limit := os.environ.get(BYTES_VARIABLE):
        if not limit.isdecimal():
            raise DatasetError(f"{BYTES_VARIABLE} is {limit!r}; it must be a whole number of bytes")
        free = min(free, int(limit) - sum(path.stat().st_size for path in cache.glob("*/*")))
    return free


def _remove_unless_used(directory: Path) -> None:
    with directory.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(directory.rename(directory.with_suffix(".removed")))  # never a part of it under its name

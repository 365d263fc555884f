"""The local cache of remote data sets: memory maps need files.

All processes of a machine share one copy, in the cache directory (``local_cache.py``). A copy is named after the
checksum of its manifest and never changes: a data set prepared again under the same URI becomes another copy. When the
disk or ``$ADIOS_RAY_CACHE_BYTES`` is exhausted, copies that no process uses are evicted, the least recently used first.
"""

import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from adios_ray.errors import DatasetError
from adios_ray.files import atomic_path, atomic_write, sha256
from adios_ray.local_cache import CACHE_VARIABLE, UNSAVED, cache_folder, hold, remove_unless_held
from adios_ray.run_directory import TRACKERS
from adios_ray.store import PARALLEL_COPIES, Store

BYTES_VARIABLE = "ADIOS_RAY_CACHE_BYTES"
_COPY = re.compile(r"\.?[0-9a-f]{32}")
"""Names of copies, and of those whose removal was interrupted; other folders of the cache keep results."""


class RemoteFile(NamedTuple):
    """One file of a data set: its name, size in bytes, above 0, and SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def cache_locally(store: Store, manifest: str, content: bytes, files: Sequence[RemoteFile]) -> Path:
    """Copy a data set to this machine unless it is cached, and protect the copy while this process lives.

    Concurrent callers wait for the first. Files that are there in their full size are kept, so that an interrupted copy
    is resumed, and one that has lost files since is completed.

    Args:
        store: Location of the data set.
        manifest: Name of its manifest.
        content: Content of the manifest.
        files: All other files.

    Returns:
        Directory of the copy.

    Raises:
        ConfigError: If the cache directory cannot be written to.
        DatasetError: If a file cannot be fetched or is damaged, or the cache has too little space.
    """
    cache = cache_folder()
    directory = cache / hashlib.sha256(content).hexdigest()[:32]
    hold(directory)  # before anything is checked, so that no other process evicts the copy in between
    directory.mkdir(exist_ok=True)
    complete = directory / manifest
    if not complete.exists() or _lacking(directory, files):
        with (cache / "fetching.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if lacking := _lacking(directory, files):  # unless another process has fetched them meanwhile
                _fetch_all(store, directory, lacking)
            if not complete.exists():
                atomic_write(complete, content)
    os.utime(directory)  # eviction goes by the time of last use
    return directory


def _lacking(directory: Path, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """List the files that are missing in a copy, or not of their size."""
    return [file for file in files if _size(directory / file.name) != file.bytes]


def _fetch_all(store: Store, directory: Path, files: Sequence[RemoteFile]) -> None:
    _make_room(directory.parent, sum(file.bytes for file in files), store)
    with ThreadPoolExecutor(PARALLEL_COPIES) as pool:
        fetched = pool.map(lambda file: _fetch(store, directory, file), files)
        for _ in track(
            fetched, f"copying {store}", len(files), console=Console(stderr=True), disable=not sys.stderr.isatty()
        ):
            pass


def _fetch(store: Store, directory: Path, file: RemoteFile) -> None:
    """Copy one file and verify its checksum."""
    with atomic_path(directory / file.name) as draft:
        try:
            store.fetch(file.name, draft)
        except Exception as error:  # each protocol has errors of its own
            raise DatasetError(
                f"{store}/{file.name} could not be fetched ({type(error).__name__}: {error}); run again to resume, "
                "fetched files are kept"
            ) from error
        if sha256(draft) != file.sha256:
            raise DatasetError(f"{store}/{file.name} does not have the checksum of its manifest; prepare it again")


def _make_room(cache: Path, needed: int, store: Store) -> None:
    """Evict copies that no process uses until ``needed`` bytes fit.

    Raises:
        DatasetError: If they still do not fit.
    """
    copies = (path for path in cache.iterdir() if path.is_dir() and _COPY.fullmatch(path.name) and not _is_only(path))
    unused = sorted(copies, key=lambda path: path.stat().st_mtime)
    while (free := _free_bytes(cache)) < needed:
        if not unused:
            raise DatasetError(
                f"{store} needs {needed:,} bytes in {cache}, which has room for {max(0, free):,}: free space, raise "
                f"{BYTES_VARIABLE}, or set {CACHE_VARIABLE} to another directory"
            )
        remove_unless_held(unused.pop(0))


def _is_only(copy: Path) -> bool:
    """Tell whether a copy has what no other place has: a run's trackers' files, or what its driver could not copy."""
    return (copy / UNSAVED).exists() or any((run / name).exists() for run in copy.iterdir() for name in TRACKERS)


def _free_bytes(cache: Path) -> int:
    """Return how many bytes may be added: the smaller of the disk's free space and what the limit leaves."""
    free = shutil.disk_usage(cache).free
    if limit := os.environ.get(BYTES_VARIABLE):
        if not limit.isdecimal():
            raise DatasetError(f"{BYTES_VARIABLE} is {limit!r}; it must be a whole number of bytes")
        free = min(free, int(limit) - sum(map(_size, cache.glob("*/*"))))
    return free


def _size(path: Path) -> int:
    """Look up the size of a file; 0 where there is none, as where another process has removed it meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

"""Inputs and outputs at places that a user names: a local path, or a URI from and to which files are copied."""

import mmap
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from adios_ray.console import say_aside
from adios_ray.errors import ConfigError, UsageError
from adios_ray.files import check_writable
from adios_ray.retry import LASTING, Result, promptly, retry
from adios_ray.store import Location, Store, copy_in_parallel, local_path, split_location


def require_local(location: Location, option: str) -> Path:
    """Return the path of a local place.

    Raises:
        UsageError: If it is a URI; the message names the option.
    """
    if (path := local_path(location)) is None:
        raise UsageError(f"{option} {location} is a URI; only a local path can be used here")
    return path


def fetched(location: Location, *beside: str, without: Container[str] = ()) -> Path:
    """Return a local path with the content of a place: its own, or a copy that is removed when this process ends.

    Args:
        location: A file, or a folder with all that it holds.
        *beside: Suffixes of files of the same name that are copied too, where they exist.
        without: Names in a folder that are left out.

    Raises:
        ConfigError: If a remote place does not answer, does not exist or must not be read.
        StorageError: If remote storage fails for longer than five minutes once it has answered.
    """
    if (path := local_path(location)) is not None:
        return path
    folder, name = split_location(location)
    store, copy = Store(folder), Path(_copies().name, str(folder).replace("://", "/"), name)
    try:
        found = promptly(Store(location).find)
    except OSError as error:
        raise ConfigError(f"{location} cannot be read: {error}") from None
    try:
        names = [f"{name}/{file}" for file in found if file.partition("/")[0] not in without]
        if not names:
            others = [copy.with_suffix(suffix).name for suffix in beside if suffix != copy.suffix]
            names = [name, *(other for other in others if insist(partial(store.size, other)) is not None)]
        copy_in_parallel(lambda each: insist(partial(_fetch, store, each, copy.parent / each)), names)
    except LASTING as error:
        raise ConfigError(f"{location} cannot be read: {error}") from None
    return copy


@contextmanager
def delivered(location: Location) -> Iterator[Path]:
    """Yield a local path to write a file or folder to: the place's own, or one whose content is copied to a URI.

    Files beside it, of a name with another suffix, are copied too: JSON, which describes the others, last. Nothing is
    copied after an exception.

    Raises:
        OSError: If a remote place does not exist or must not be written to.
        StorageError: If remote storage fails for longer than five minutes.
    """
    if (path := local_path(location)) is not None:
        yield path
        return
    folder, name = split_location(location)
    store = Store(folder)
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / name
        files = [path for path in Path(directory).rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: path.suffix == ".json"):
            insist(partial(store.put, file, file.relative_to(directory).as_posix()))


def check_output_file(location: Location, mark: str, *inputs: Location) -> None:
    """Check that ``--output`` names a file that can be written, and that is none of the inputs, nor inside one.

    Args:
        location: The file.
        mark: A text that all files of the kind to be written contain: an existing file without it is not replaced.
        *inputs: What is read.

    Raises:
        UsageError: If not. Of a URI, it is only checked against the inputs.
    """
    path = local_path(location)
    if path is not None:
        if path.is_dir():
            raise UsageError(f"--output {location} is a directory; name a file")
        check_output_folder(location, path.absolute().parent)
    check_unread(location, *inputs)
    if path is not None and path.is_file() and not _contains(path, mark):
        raise UsageError(f"--output {location} is there already, and of another kind: remove it, or name another file")


def check_output_folder(location: Location, folder: Path) -> None:
    """Check that ``--output`` can be written to a local folder, which may not exist yet.

    Args:
        location: What ``--output`` names.
        folder: Absolute path of the folder.

    Raises:
        UsageError: If not.
    """
    above = next(each for each in (folder, *folder.parents) if each.exists())
    if not above.is_dir():
        raise UsageError(f"--output {location} cannot be written: {above} is a file, not a directory")
    try:
        check_writable(above)
    except OSError as error:
        raise UsageError(f"--output {location} cannot be written: {above}: {error.strerror or error}") from None


def check_unread(location: Location, *inputs: Location) -> None:
    """Check that ``--output`` names none of the inputs, nor a place inside one.

    Raises:
        UsageError: If it does.
    """
    path = local_path(location)
    for place in inputs:
        own = local_path(place)
        if path is not None and own is not None:
            inside = path.resolve().is_relative_to(own.resolve())
        else:
            inside = f"{Store(location)}/".startswith(f"{Store(place)}/")  # schemes are case-insensitive
        if inside:
            raise UsageError(f"--output {location} would change {place}, which is read: choose another place")


def _contains(path: Path, mark: str) -> bool:
    """Tell whether a file contains a text, or nothing at all."""
    if not path.stat().st_size:
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark.encode()) >= 0


def check_place(location: Location) -> None:
    """Check that a folder, which is made if it is local, or a URI can be written to, read and deleted from.

    Raises:
        ConfigError: If it cannot, or does not answer within seconds.
    """
    store = Store(location)
    if store.local is not None and store.local.is_file():
        raise ConfigError(f"storage {location} is a file: name a directory")
    try:
        if store.local is not None:
            store.local.mkdir(parents=True, exist_ok=True)
            check_writable(store.local)
        else:
            promptly(store.probe)
    except OSError as error:
        raise ConfigError(f"storage {location} cannot be written to: {error.strerror or error}") from None


def insist(action: Callable[[], Result]) -> Result:
    """Access remote storage; see ``retry``. Its lines go to standard error.

    Raises:
        OSError: Immediately, if trying again is in vain.
        StorageError: If storage fails for longer than five minutes.
    """
    return retry(action, say_aside, LASTING)


def _fetch(store: Store, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    store.fetch(name, target)


@cache
def _copies() -> "tempfile.TemporaryDirectory[str]":
    """Make the directory of copies; removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="adios_ray-")

"""One interface to files in a directory or at a URI (s3://, gs://, and any other protocol that fsspec knows)."""

import errno
import glob
import os
import re
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from adios_ray.errors import ConfigError, InputError
from adios_ray.files import atomic_path, expand_home

Location = str | Path
"""A place that a user names: a local path, an absolute one after ``file://``, or the URI of a place on remote storage.
The options of commands have this type: a ``Path`` would drop a slash of the URI, and name a local folder "s3:"."""

Item = TypeVar("Item")
PARALLEL_COPIES = 8
"""Files that are copied at once."""
# Schemes of URIs are case-insensitive.
_LOCAL = re.compile(r"file:(//(localhost)?)?(?=/(?!/))", re.IGNORECASE)
"""Begins the URI of an absolute path of this machine."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(/?)(?!/)", re.IGNORECASE)
"""Begins a URI that lacks a slash or two."""
_NO_BUCKET = re.compile(r"([a-z][a-z0-9+.-]+)://(?:/|$)", re.IGNORECASE)
_CHANGED = ("LastModified", "last_modified", "mtime")
"""Names of the time of change in what S3, Azure and Google tell of an object."""
_DENIED = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "DefaultCredentialsError"}
"""Errors of protocols' packages that do not pass by themselves."""


def copy_in_parallel(copy: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Call a function for each item in several threads until one call fails, and wait for those that have begun.

    The threads are daemons: unlike those of an executor, a copy that hangs delays neither an interruption nor the end
    of the process.

    Raises:
        Exception: The first that a call has raised.
    """
    left, errors = deque(items), list[BaseException]()

    def work() -> None:
        while True:
            try:
                item = left.popleft()
            except IndexError:
                return
            try:
                copy(item)
            except BaseException as error:
                errors.append(error)
                left.clear()

    threads = [Thread(target=work, daemon=True) for _ in range(min(PARALLEL_COPIES, len(left)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        left.clear()  # after an interruption
    if errors:
        raise errors[0]


def local_path(location: Location) -> Path | None:
    """Return the path of a local place; None for a URI of remote storage.

    Raises:
        ConfigError: If it is a URI that lacks slashes or a bucket, as s3:bucket, s3:/bucket and s3:// do, or of a file
            on another machine, or in a home directory that does not exist.
    """
    text = _LOCAL.sub("", os.fspath(location), count=1)
    if text.lower().startswith("file:"):
        raise ConfigError(f"{text} names no absolute path of this machine: write file:///PATH, or the path alone")
    if (lacks := _SCHEME.match(text)) and (lacks[2] or lacks[1].lower() in known_implementations):
        whole = f"{lacks[1].lower()}://{text[lacks.end() :]}"
        raise ConfigError(f"{text} is neither a path nor a URI: write {whole}, or ./{text}")
    if nowhere := _NO_BUCKET.match(text):
        raise ConfigError(f"{text} names no bucket: write {nowhere[1].lower()}://BUCKET/FOLDER")
    return None if "://" in text else expand_home(text)


def as_text(path: str, error_type: type[InputError] = ConfigError) -> str:
    """Return a path or the name of a file as it is.

    Raises:
        InputError: Of ``error_type``, if it is not UTF-8, which Arrow and JSON need.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise error_type(f"the name {os.fsencode(path)!r} is not UTF-8: rename the file or folder") from None
    return path


def split_location(location: Location) -> tuple[Location, str]:
    """Split the place of a file into that of its folder and its name.

    Raises:
        ConfigError: If it is a whole bucket.
    """
    if (path := local_path(location)) is not None:
        return path.parent, path.name
    whole = str(location).rstrip("/")
    folder, _, name = whole.rpartition("/")
    if folder.endswith(":/"):
        raise ConfigError(f"{location} names a whole bucket: write {whole}/NAME")
    return folder, name


class Store:
    """Files below one directory or URI, by relative names that may contain folders.

    A refused operation raises an OSError, on a remote store too: a PermissionError or a FileNotFoundError where trying
    again is in vain, such as without credentials or without the bucket, others where it may help.

    Attributes:
        local: Absolute path of a directory, which need not exist yet; None for a remote location.
        root: The same, or the remote location without its protocol, as ``files`` takes it.
        files: The file system.
    """

    def __init__(self, location: Location) -> None:
        """Take a directory, optionally prefixed by ``file://``, or connect to a URI.

        Raises:
            ConfigError: If no installed package supports the URI's protocol, or the path is not UTF-8.
        """
        path = local_path(location)
        self.local = path and path.absolute()
        if self.local is None:
            scheme, _, rest = str(location).partition("://")
            self._place = f"{scheme.lower()}://{rest.rstrip('/')}"
            try:
                # Without the listings cache: other processes write to the same store, and must be seen.
                self.files, self.root = url_to_fs(self._place, use_listings_cache=False)
            except (ImportError, ValueError) as error:
                raise ConfigError(f"{self} cannot be reached: {error}") from None
        else:  # not through url_to_fs, which would split a path at "::"
            self._place = self.root = as_text(str(self.local))
            self.files = LocalFileSystem()

    def __str__(self) -> str:
        """Return the directory's path, or the URI without a trailing slash."""
        return self._place

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Read a file, or its bytes from ``start`` up to, not including, ``stop``.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        with _os_errors():
            content: bytes = self.files.cat_file(self._path(name), start=start, end=stop)
        return content

    def open(self, name: str, *, read_ahead: bool) -> BinaryIO:
        """Open a file for reading.

        Args:
            name: Name of the file.
            read_ahead: Whether a remote file is fetched in large blocks, as reading in order needs it, or exactly the
                ranges that are read.

        Raises:
            FileNotFoundError: If there is none.
            OSError: If storage fails.
        """
        if self.local is not None:
            return (self.local / name).open("rb")
        with _os_errors():
            file: BinaryIO = self.files.open(self._path(name), "rb", cache_type="readahead" if read_ahead else "none")
        return file

    def find(self) -> list[str]:
        """Return the names of all files at any depth, sorted; none if the place is not a folder. Links are followed."""
        if self.local is not None:
            return sorted(_walk(self.local)) if self.local.is_dir() else []
        return sorted(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file of a remote place, at any depth, by name; see ``states``."""
        return {name: size for name, (size, _) in self.states().items()}

    def states(self) -> dict[str, tuple[int, int]]:
        """Return size in bytes and time of change in nanoseconds of every file of a remote place, by name.

        The time is 0 where the listings of the protocol do not tell it.

        Raises:
            OSError: If an object's name would lead out of a folder that it is copied to.
        """
        prefix = f"{self.root.rstrip('/')}/"
        with _os_errors():
            found = self.files.find(self.root, detail=True)
        if not self.root:  # that of an archive (zip://::PLACE), whose names begin without a slash
            found = {f"/{path.removeprefix('/')}": info for path, info in found.items()}
        # Consoles of object stores mark a folder by an object whose name ends in "/".
        below = {path.removeprefix(prefix): info for path, info in found.items() if path.startswith(prefix)}
        states = {name: _state(info) for name, info in below.items() if name and not name.endswith("/")}
        if odd := next((name for name in states if ".." in name.split("/")), None):
            raise OSError(f"{self} holds an object of the name {odd!r}, which leads out of its folder: remove it")
        return states

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist or is a folder."""
        state = self.state(name)
        return state and state[0]

    def state(self, name: str) -> tuple[int, int] | None:
        """Return size and time of change of a file, as in ``states``; None if it does not exist or is a folder."""
        try:
            with _os_errors():
                info = self.files.info(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _state(info) if info["type"] == "file" else None

    def exists(self) -> bool:
        """Tell whether the directory exists, or anything is stored at the URI."""
        with _os_errors():
            found: bool = self.files.isdir(self.root)
        return found

    def names(self, folder: str = "") -> set[str]:
        """Return the names of the files and folders directly below a folder, or the location; empty if there is none.

        Raises:
            NotADirectoryError: If the location is itself a file.
        """
        try:
            with _os_errors():
                paths = self.files.ls(self._path(folder).rstrip("/"), detail=False)
        except FileNotFoundError:
            return set()
        if paths == [self.root]:  # fsspec lists a file as its own only entry
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self))
        own = self._path(folder).rstrip("/")  # listed with a "/" where an object marks the folder
        return {path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != own}

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to a local path.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        with _os_errors():
            self.files.get_file(self._path(name), str(target))

    def changed(self, name: str) -> float:
        """Return when a file was last changed, in seconds since 1970; now, if the protocol does not tell.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        try:
            with _os_errors():
                changed: datetime = self.files.modified(self._path(name))
        except NotImplementedError:
            return time.time()
        return changed.timestamp()

    def put(self, source: Path, name: str) -> None:
        """Copy a local file to a remote store, where it appears once it is complete."""
        with _os_errors():
            self.files.put_file(str(source), self._path(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local path to write to; the file appears atomically when the block ends without an error."""
        if self.local is not None:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as draft:
                yield draft
        else:
            with tempfile.TemporaryDirectory() as directory:
                draft = Path(directory) / name.rpartition("/")[2]
                yield draft
                self.put(draft, name)  # object stores show an object only once its upload is complete

    def probe(self) -> None:
        """Write a small file, read it and remove it.

        Raises:
            OSError: If one of them fails.
        """
        name = f".probe-{uuid.uuid4().hex}"
        with self.writing(name) as file:
            file.write_text(name)
        if self.read(name) != name.encode():
            raise OSError(f"{self} holds other bytes than were written")
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents, if it exists."""
        path = self._path(name)
        with suppress(FileNotFoundError), _os_errors():
            # Where the path would be taken for a pattern, fsspec would remove what matches it instead.
            if self.local is None and glob.has_magic(path):
                for file in self.files.find(path):
                    self.files.rm_file(file)
            else:
                self.files.rm(path, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def _state(info: Mapping[str, Any]) -> tuple[int, int]:
    """Read size in bytes and time of change in nanoseconds, 0 if unknown, from what a protocol tells of a file.

    Whole seconds: a listing of S3 has milliseconds that a single answer lacks.
    """
    changed = next((info[key] for key in _CHANGED if isinstance(info.get(key), datetime)), None)
    return int(info["size"]), int(changed.timestamp()) * 10**9 if changed else 0


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn the errors of protocols' packages into OSErrors."""
    try:
        yield
    except (OSError, NotImplementedError):
        raise
    except Exception as error:  # each protocol has errors of its own
        kind = PermissionError if {base.__name__ for base in type(error).__mro__} & _DENIED else OSError
        raise kind(f"{type(error).__name__}: {error}") from error


def _walk(root: Path) -> Iterator[str]:
    """Go through the files below a directory, by their relative paths."""

    def fail(error: OSError) -> None:
        raise error  # else a folder that cannot be read would seem to be empty

    for directory, folders, files in os.walk(root, followlinks=True, onerror=fail):
        here = Path(directory)
        # Links to a folder above would be followed for ever.
        folders[:] = [name for name in folders if not here.resolve().is_relative_to((here / name).resolve())]
        yield from ((here / name).relative_to(root).as_posix() for name in files)

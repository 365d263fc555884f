"""One interface to files in a directory or at a URI (s3://, gs://, and any other protocol that fsspec knows)."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from adios_ray.errors import DatasetError
from adios_ray.files import atomic_path

Location = Path | str
"""A directory, or a URI."""


class Store:
    """Files below one directory or URI, by relative names that may contain folders.

    A refused operation raises an OSError or, on a remote store, an error of the protocol's package.

    Attributes:
        local: Absolute path of a directory, which need not exist yet; None for a remote location.
    """

    def __init__(self, location: Location) -> None:
        """Take a directory, optionally prefixed by ``file://``, or connect to a URI.

        Raises:
            DatasetError: If no installed package supports the URI's protocol.
        """
        text = str(location).removeprefix("file://")
        self.local: Path | None = None
        if "://" in text:
            self._place = text.rstrip("/")
            try:
                # Without the listings cache: other processes write to the same store, and must be seen.
                self._files, self._root = url_to_fs(self._place, use_listings_cache=False)
            except (ImportError, ValueError) as error:
                raise DatasetError(f"{location} cannot be reached: {error}") from None
        else:  # not through url_to_fs, which would split a path at "::"
            self.local = Path(text).expanduser().absolute()
            self._place = self._root = str(self.local)
            self._files = LocalFileSystem()

    def __str__(self) -> str:
        """Return the directory's path, or the URI without a trailing slash."""
        return self._place

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Read a file, or its bytes from ``start`` up to, not including, ``stop``.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        content: bytes = self._files.cat_file(self._path(name), start=start, end=stop)
        return content

    def open(self, name: str, *, read_ahead: bool) -> BinaryIO:
        """Open a file for reading.

        Args:
            name: Name of the file.
            read_ahead: Whether a remote file is fetched in large blocks, as reading in order needs it, or exactly the
                ranges that are read.

        Raises:
            FileNotFoundError: If there is none.
        """
        if self.local is not None:
            return (self.local / name).open("rb")
        file: BinaryIO = self._files.open(self._path(name), "rb", cache_type="readahead" if read_ahead else "none")
        return file

    def find(self) -> list[str]:
        """Return the names of all files at any depth, sorted; none if the place is not a folder. Links are followed."""
        if self.local is not None:
            return sorted(_walk(self.local)) if self.local.is_dir() else []
        prefix = f"{self._root.rstrip('/')}/"
        return sorted(path.removeprefix(prefix) for path in self._files.find(self._root) if path != self._root)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file of a remote place, at any depth, by name."""
        prefix = f"{self._root.rstrip('/')}/"
        found = self._files.find(self._root, detail=True).items()
        return {path.removeprefix(prefix): int(info["size"]) for path, info in found}

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist or is a folder."""
        try:
            info = self._files.info(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def names(self) -> set[str]:
        """Return the names of the files and folders directly below the location; empty if it does not exist.

        Raises:
            NotADirectoryError: If the location is itself a file.
        """
        try:
            paths = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return set()
        if paths == [self._root]:  # fsspec lists a file as its own only entry
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self))
        return {path.rstrip("/").rpartition("/")[2] for path in paths}

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to a local path.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        self._files.get_file(self._path(name), str(target))

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
                # Object stores show an object only once its upload is complete.
                self._files.put_file(str(draft), self._path(name))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents, if it exists."""
        with suppress(FileNotFoundError):
            self._files.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _walk(root: Path) -> Iterator[str]:
    """Go through the files below a directory, by their relative paths."""

    def fail(error: OSError) -> None:
        raise error  # else a folder that cannot be read would seem to be empty

    for directory, folders, files in os.walk(root, followlinks=True, onerror=fail):
        here = Path(directory)
        # Links to a folder above would be followed for ever.
        folders[:] = [name for name in folders if not here.resolve().is_relative_to((here / name).resolve())]
        yield from ((here / name).relative_to(root).as_posix() for name in files)

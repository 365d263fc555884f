"""One interface to files in a directory or at a URI (s3://, gs://, and any other protocol that fsspec knows)."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        content: bytes = self._files.cat_file(self._path(name))
        return content

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

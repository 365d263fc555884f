"""Where files lie: in a directory, or at a place named by a URI (s3://, gs://, any that fsspec knows)."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import fsspec

from adios_ray.errors import DatasetError
from adios_ray.files import written_whole

Location = Path | str
"""A directory, or a URI."""


class Store(Protocol):
    """Files below one place, by names that may have folders in them."""

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: If there is none.
        """
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        ...

    def names(self) -> set[str]:
        """The first parts of the names of all that is there."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Local path to write to; the file appears, whole, when the block ends well."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there."""
        ...


class LocalStore:
    """A directory, which need not be there yet.

    Attributes:
        directory: Its absolute path.
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory."""
        self.directory = directory.expanduser().absolute()

    def __str__(self) -> str:
        """The path."""
        return str(self.directory)

    def read(self, name: str) -> bytes:
        """See ``Store``."""
        return (self.directory / name).read_bytes()

    def size(self, name: str) -> int | None:
        """See ``Store``."""
        path = self.directory / name
        return path.stat().st_size if path.is_file() else None

    def names(self) -> set[str]:
        """See ``Store``."""
        return {path.name for path in self.directory.iterdir()} if self.directory.exists() else set()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See ``Store``."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside:
            yield aside

    def remove(self, name: str) -> None:
        """See ``Store``."""
        path = self.directory / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


class RemoteStore:
    """What lies at a URI. A file that is written there appears as a whole, as object stores have it.

    Attributes:
        uri: The place.
    """

    def __init__(self, uri: str) -> None:
        """Connect.

        Raises:
            DatasetError: If no installed package knows the protocol.
        """
        self.uri = uri.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise DatasetError(f"{uri} cannot be reached: {error}") from None

    def __str__(self) -> str:
        """The URI."""
        return self.uri

    def __reduce__(self) -> tuple[type["RemoteStore"], tuple[str]]:
        """Connect anew in another process."""
        return RemoteStore, (self.uri,)

    def read(self, name: str) -> bytes:
        """See ``Store``."""
        content: bytes = self._files.cat_file(self._path(name))
        return content

    def size(self, name: str) -> int | None:
        """See ``Store``."""
        try:
            return int(self._files.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def names(self) -> set[str]:
        """See ``Store``."""
        try:
            return {path.rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)}
        except FileNotFoundError:
            return set()

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to a local path.

        Raises:
            FileNotFoundError: If there is none.
        """
        self._files.get_file(self._path(name), str(target))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See ``Store``."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / name.rpartition("/")[2]
            yield path
            self._files.put_file(str(path), self._path(name))

    def remove(self, name: str) -> None:
        """See ``Store``."""
        if self._files.exists(self._path(name)):
            self._files.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def store_at(location: Location) -> LocalStore | RemoteStore:
    """The store of a directory or a URI; ``file://`` is a directory.

    Raises:
        DatasetError: If no installed package knows the URI's protocol.
    """
    text = str(location).removeprefix("file://")
    return RemoteStore(text) if "://" in text else LocalStore(Path(text))

"""The interface between sources of images and ``prepare``: samples, the protocol, and a base for sources of files."""

import hashlib
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from adios_ray.data.sources.passed_over import PassedOver
from adios_ray.data.splits import folder_of
from adios_ray.errors import DatasetError
from adios_ray.store import Store

UNLABELED = "unlabeled"
"""Name of the split of images without labels, which only training uses; also of the one class of a flat folder."""
NO_LABEL = -1
"""Label of an image of that split."""


# These texts are part of the recipe in every manifest: another wording would make finished data sets another recipe's.
SHORT_SIDE = "short side to image_size, bicubic, antialiased; center crop"
"""How images that are already square are resized; the wording of schema version 1."""
WHOLE = "whole picture squeezed into a square, bicubic, antialiased"
PHOTOGRAPH = f"{WHOLE}; its height and width beside it"


def content_checksum(content: bytes) -> str:
    """Compute the checksum of an encoded image, in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One decoded image with its label, instance map and original size.

    Attributes:
        image: RGB, uint8 [S, S, 3].
        label: Class index, or NO_LABEL where it is unknown; uint8 [C] of zeros and ones in a multi-label source.
        instances: Object index per pixel, uint8 [S, S], 0 = background; None where a source has no masks.
        height: Pixels of what the square shows, upright and before it was squeezed: crops have its proportions.
        width: The same from left to right.
        note: What people should know of the image, which is used; None if nothing.
        content: Checksum of the encoded image, in hexadecimal; empty where there is none.
    """

    image: npt.NDArray[np.uint8]
    label: int | npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint8] | None
    height: int
    width: int
    note: str | None = None
    content: str = ""


def listed(name: str, described_in: Path) -> str:
    """Return the path of a file that a list names, relative to the source, in its shortest form.

    Raises:
        DatasetError: If it is outside the source.
    """
    path = posixpath.normpath(name)
    if path.startswith(("/", "..")):
        raise DatasetError(f"{described_in} names {name}, which is outside the data set")
    return path


class Source(Protocol):
    """A deterministic, picklable listing of images that are decoded one at a time.

    Attributes:
        classes: Class names; the label is an index into them.
        multi_label: Whether an image carries any number of the classes.
        has_instances: Whether samples come with instance maps.
        resize: How an image becomes a square, as the manifest says it.
        passed_over: What is there, but is no item.
        notes: What people should know before it is read.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102 - described above

    @property
    def multi_label(self) -> bool: ...  # noqa: D102 - described above

    @property
    def has_instances(self) -> bool: ...  # noqa: D102 - described above

    @property
    def resize(self) -> str: ...  # noqa: D102 - described above

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Return the item ids of each split, in an order that does not depend on the machine.

        Splits are train, val, test, UNLABELED, and any others that only an evaluation uses.
        """
        ...

    @property
    def passed_over(self) -> Mapping[str, tuple[int, tuple[str, ...]]]: ...  # noqa: D102 - described above

    @property
    def notes(self) -> tuple[str, ...]: ...  # noqa: D102 - described above

    def stratum(self, item: str) -> str:
        """Name the class of an item, or whatever else each split is to have its share of."""
        ...

    def files(self) -> Mapping[str, tuple[int, int]]:
        """Size in bytes and time of change in nanoseconds, 0 if unknown, of each file that is read; none if drawn."""
        ...

    def file_of(self, item: str) -> str:
        """Name the file, as in ``files``, that holds an item."""
        ...

    def beside(self, item: str) -> tuple[str, ...]:
        """Name what else, as in ``files``, the row of an item is made of."""
        ...

    def checksum(self, name: str) -> str:
        """Compute the checksum of a file's content, as in ``Sample.content``."""
        ...

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one item: the whole picture squeezed into a square of ``image_size`` pixels a side.

        Raises:
            RefusedImageError: If the item cannot be used, with the reason.
        """
        ...


@runtime_checkable
class ReadInBlocks(Protocol):
    """A source whose images are stored in blocks that can only be read whole."""

    def block(self, item: str) -> str:
        """Name the block that holds an item."""
        ...


@dataclass(frozen=True, kw_only=True)
class ListedSource:
    """Base of the sources that read files.

    Attributes:
        root: The folder of the files.
        uri: Where the files are, if they are not in the folder ``root``.
        classes: Class names.
        items: Items of each split. Workers get the source without them: there may be millions.
        described_in: Files that classes, labels and splits were read from, relative to the root.
        multi_label: Whether an image carries any number of the classes.
        has_instances: Whether samples come with instance maps.
        resize: How an image becomes a square, as the manifest says it.
        passed_over: What is there, but is no item.
        notes: What people should know before it is read.
    """

    root: Path = Path()
    uri: str | None = None
    classes: tuple[str, ...]
    items: Mapping[str, Sequence[str]] = field(repr=False)
    described_in: tuple[str, ...] = ()
    multi_label: bool = False
    has_instances: bool = False
    resize: str = PHOTOGRAPH
    passed_over: PassedOver = field(default_factory=PassedOver, repr=False)
    notes: tuple[str, ...] = ()

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Return the items of each split."""
        return self.items

    def stratum(self, item: str) -> str:
        """Name the folder of an item, which in most sources is its class."""
        return folder_of(item)

    def file_of(self, item: str) -> str:
        """Name the item itself, which is a file in most sources."""
        return item

    def beside(self, item: str) -> tuple[str, ...]:
        """Name nothing: most rows are made of one file."""
        return ()

    def files(self) -> Mapping[str, tuple[int, int]]:
        """Look up size and time of change of each file; -1 where there is none, 0 where its storage tells no time."""
        items = [*chain.from_iterable(self.items.values())]
        beside = chain.from_iterable(map(self.beside, items))
        names = sorted({*self.described_in, *map(self.file_of, items), *beside})
        if self.uri is None:
            return {name: file_status(self._path(name)) for name in names}
        states = self._remote_states(Store(self.uri), names)
        return {name: states.get(name, (-1, -1)) for name in names}

    def checksum(self, name: str) -> str:
        """Compute the checksum of a file's content."""
        return content_checksum(self._path(name).read_bytes() if self.uri is None else Store(self.uri).read(name))

    def _path(self, name: str) -> Path:
        # Not by the system, since a description may be beside the root, and the root behind a link.
        return Path(os.path.normpath(self.root / name))

    def _remote_states(self, store: Store, names: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return store.states()

    def __getstate__(self) -> dict[str, Any]:
        """Keep what a worker needs to decode."""
        return {**self.__dict__, "items": {}, "passed_over": PassedOver()}


def file_status(path: "os.PathLike[str]") -> tuple[int, int]:
    """Look up size in bytes and time of change in nanoseconds of a local file; -1 where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns

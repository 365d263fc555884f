"""Encoded images inside larger files: what the Parquet and the WebDataset source have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from adios_ray.data.decode import DecodeOptions, decode
from adios_ray.data.sources.base import NO_LABEL, PHOTOGRAPH, UNLABELED, Sample
from adios_ray.errors import DatasetError
from adios_ray.store import Store

NO_LABEL_REASON = "no label"

Label = int | str
"""A label as it is stored: a number or a class name."""


class Place(NamedTuple):
    """Where the bytes of an item are.

    Attributes:
        file: Path relative to the root.
        class_name: Class of the image; UNLABELED where it has none.
        position: Position in the file.
    """

    file: str
    class_name: str
    position: str

    def item(self) -> str:
        """Name the item ``FOLDER/CLASS/FILE#POSITION``: as in a tree of class folders, its folder is its stratum."""
        folder, _, name = self.file.rpartition("/")
        return f"{folder}/{quote(self.class_name)}/{name}#{quote(self.position)}".lstrip("/")

    @classmethod
    def of(cls, item: str) -> "Place":
        """Read the name of an item."""
        path, _, position = item.rpartition("#")
        *folder, class_name, name = path.rsplit("/", 2)
        return cls("/".join([*folder, name]), unquote(class_name), unquote(position))


def quote(text: str) -> str:
    """Replace the characters that separate the parts of an item."""
    return text.replace("%", "%25").replace("/", "%2F").replace("#", "%23")


def unquote(text: str) -> str:
    """Undo ``quote``."""
    return text.replace("%23", "#").replace("%2F", "/").replace("%25", "%")


@dataclass(frozen=True, kw_only=True)
class EncodedImages(ABC):
    """Images inside larger files, each of one class or of none. Items name a ``Place``.

    Attributes:
        root: Directory or URI of the files.
        classes: Class names.
        items: Items of each split. Workers get the source without them: there may be millions.
        passed_over: By reason, how much was found but is not used, with examples. Workers get the source without it.
        multi_label: Whether an image carries any number of the classes.
        has_instances: Whether samples come with instance maps.
        resize: How an image becomes a square, as the manifest says it.
        notes: What people should know before it is read.
        options: Limits of decoding, and the range of 16-bit values.
    """

    root: str
    classes: tuple[str, ...]
    items: Mapping[str, Sequence[str]] = field(repr=False)
    passed_over: Mapping[str, tuple[int, tuple[str, ...]]] = field(repr=False)
    multi_label: bool = False
    has_instances: bool = False
    resize: str = PHOTOGRAPH
    notes: tuple[str, ...] = ()
    options: DecodeOptions = DecodeOptions()

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Return the items of each split."""
        return self.items

    def stratum(self, item: str) -> str:
        """Name the class of an item."""
        return Place.of(item).class_name

    def file_of(self, item: str) -> str:
        """Name the file that holds an item."""
        return Place.of(item).file

    def files(self) -> Mapping[str, tuple[int, int]]:
        """Look up size and, of local files, time of change of each file that holds images."""
        store = Store(self.root)
        names = sorted({self.file_of(item) for item in chain.from_iterable(self.items.values())})
        if store.local is None:
            return {name: (store.size(name) or -1, 0) for name in names}
        status = {name: (store.local / name).stat() for name in names}
        return {name: (found.st_size, found.st_mtime_ns) for name, found in status.items()}

    def checksum(self, name: str) -> str:
        """Refuse: of files that hold many images no checksum is known."""
        raise KeyError(name)

    @abstractmethod
    def content(self, place: Place) -> bytes:
        """Read the encoded image.

        Raises:
            RefusedImageError: If there is none, or it is damaged.
        """

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one image: RGB, upright, the whole picture squeezed into a square (bicubic, antialiased).

        Raises:
            RefusedImageError: If the image cannot be decoded or a side has fewer than 8 pixels.
        """
        place = Place.of(item)
        picture = decode(self.content(place), image_size, self.options)
        label = self.classes.index(place.class_name) if place.class_name in self.classes else NO_LABEL
        return Sample(picture.pixels, label, None, picture.height, picture.width, picture.note)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker needs to decode."""
        return {**self.__dict__, "items": {}, "passed_over": {}}


def class_names(
    found: Mapping[str, Set[Label]], names: tuple[str, ...] | None, root: str
) -> tuple[tuple[str, ...], dict[Label, str]]:
    """Name the classes.

    Args:
        found: Labels of each split.
        names: Name of each number, where the data set has such a list.
        root: Where the data set is, for messages.

    Returns:
        The class names, and the name of each label. Without ``names`` numbers are named by their digits, in numerical
        order, and names are sorted. Without labels there is the one class "unlabeled".

    Raises:
        DatasetError: If numbers and names are mixed, a label is not in ``names``, or train lacks a class.
    """
    labels = {label for split in found.values() for label in split}
    if not labels:
        return (UNLABELED,), {}
    numbers = sorted(label for label in labels if isinstance(label, int))
    texts = sorted(label for label in labels if isinstance(label, str))
    ordered: list[Label] = [*numbers, *texts]
    if numbers and texts:
        raise DatasetError(f"the labels of {root} mix numbers ({_some(numbers)}) and names ({_some(texts)})")
    if names is not None:
        if not all(names) or len(set(names)) < len(names):
            raise DatasetError(f"the class names of {root} must be different, and none empty")
        listed: dict[Label, str] = dict(enumerate(names)) if numbers else {name: name for name in names}
        if unknown := [label for label in ordered if label not in listed]:
            raise DatasetError(f"{root} names {len(names)} classes, but has the labels {_some(unknown)}")
        return names, listed
    for split in sorted(found.keys() - {"train"}) if found.get("train") else ():
        if unseen := [label for label in ordered if label in found[split] - found["train"]]:
            raise DatasetError(f"class names of {root} differ: {split} has {_some(unseen)}, which train has not")
    named: dict[Label, str] = {label: str(label) for label in ordered}
    return tuple(named.values()), named


def _some(labels: Sequence[Label]) -> str:
    return ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")

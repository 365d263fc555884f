"""Encoded images inside larger files: what the Parquet and the WebDataset source have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

from adios_ray.data.decode import DecodeOptions, decode
from adios_ray.data.sources.base import NO_LABEL, UNLABELED, ListedSource, Sample
from adios_ray.data.sources.classes import check_shared
from adios_ray.data.sources.passed_over import first_of
from adios_ray.data.sources.split_files import SplitFiles
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


@lru_cache(maxsize=1)
def opened(place: str) -> Store:
    """Open the store of a source; the last one is kept, with its connections."""
    return Store(place)


@dataclass(frozen=True, kw_only=True)
class EncodedImages(ListedSource, ABC):
    """Images inside larger files, each of one class or of none. Items name a ``Place``.

    Attributes:
        unlabeled: Files of the unlabeled split.
        options: Limits of decoding, and the range of 16-bit values.
    """

    unlabeled: frozenset[str] = frozenset()
    options: DecodeOptions = DecodeOptions()

    @classmethod
    def found_in(cls, found: SplitFiles, **parts: Any) -> Self:
        """Make a source of files that were found at a place."""
        unlabeled = frozenset(name for name, split in found.files.items() if split == UNLABELED)
        place = {"uri": str(found.store)} if found.store.local is None else {"root": found.store.local}
        return cls(unlabeled=unlabeled, **place, **parts)

    @property
    def place(self) -> str:
        """Directory or URI of the files."""
        return self.uri or str(self.root)

    def stratum(self, item: str) -> str:
        """Name the class of an item."""
        return Place.of(item).class_name

    def file_of(self, item: str) -> str:
        """Name the file that holds an item."""
        return Place.of(item).file

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
        label = NO_LABEL if place.file in self.unlabeled else self.classes.index(place.class_name)
        return Sample(picture.pixels, label, None, picture.height, picture.width, picture.note)

    def _remote_states(self, store: Store, names: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        # One by one: they are few, and not every protocol lists a place.
        return {name: state for name in names if (state := store.state(name)) is not None}


def class_names(
    found: Mapping[str, Set[Label]], names: tuple[str, ...] | None, root: str, allow_missing_classes: bool
) -> tuple[tuple[str, ...], dict[Label, str]]:
    """Name the classes.

    Args:
        found: Labels of each split.
        names: Name of each number, where the data set has such a list.
        root: Where the data set is, for messages.
        allow_missing_classes: Whether val and test may lack classes that train has.

    Returns:
        The class names, and the name of each label. Without ``names`` numbers are named by their digits, in numerical
        order, and names are sorted. Without labels there is the one class "unlabeled".

    Raises:
        DatasetError: If numbers and names are mixed, a label is not in ``names``, or a split with labels lacks a class.
    """
    labels = {label for split in found.values() for label in split}
    if not labels:
        return (UNLABELED,), {}
    numbers = sorted(label for label in labels if isinstance(label, int))
    texts = sorted(label for label in labels if isinstance(label, str))
    ordered: list[Label] = [*numbers, *texts]
    named: dict[Label, str]
    if numbers and texts:
        raise DatasetError(f"the labels of {root} mix numbers ({first_of(numbers)}) and names ({first_of(texts)})")
    if names is None:
        names = tuple(map(str, ordered))
        named = dict(zip(ordered, names, strict=True))
    else:
        if not all(names) or len(set(names)) < len(names):
            raise DatasetError(f"the class names of {root} must be different, and none empty")
        named = dict(enumerate(names)) if numbers else {name: name for name in names}
        if unknown := [label for label in ordered if label not in named]:
            raise DatasetError(f"{root} names {len(names)} classes, but has the labels {first_of(unknown)}")
    labeled = {split: {named[label] for label in own} for split, own in found.items() if own}
    check_shared(root, labeled, allow_missing_classes)
    return names, named

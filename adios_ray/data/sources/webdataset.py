"""Tar shards whose members are grouped by key: the layout of WebDataset."""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from adios_ray.data.image_formats import EXTENSIONS
from adios_ray.data.sources.base import UNLABELED
from adios_ray.data.sources.encoded import NO_LABEL_REASON, EncodedImages, Label, Place, class_names, opened
from adios_ray.data.sources.passed_over import PassedOver, first_of
from adios_ray.data.sources.split_files import SPLIT_NAMES, SplitFiles, find, read_all, splits_in
from adios_ray.data.splits import folder_of
from adios_ray.errors import DatasetError
from adios_ray.store import Location, Store, as_text

NAMES_FILES = ("classes.txt", "classnames.txt")
COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|br|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)

NOT_USED = "neither an image nor a label by its ending"
LONGER_ENDING = "an image with a longer ending, as KEY.NAME.png"
NO_KEY = "not named KEY.ENDING"
NOT_A_FILE = "a link or special file"
NO_IMAGE = "a label without an image of its key"
SEVERAL_IMAGES = "one of several images of its key"
BAD_LABEL = "its label cannot be read"

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
"""Key and ending: everything up to the first dot in the base name, and the rest."""
_LABEL_FIELDS = ("label", "cls", "class")


class TarImages(EncodedImages):
    """Members of tar files. The position of an item is ``KEY@OFFSET+SIZE``, in bytes of the file."""

    def content(self, place: Place) -> bytes:
        """Read exactly the member's bytes."""
        offset, size = map(int, place.position.rpartition("@")[2].split("+"))
        return opened(self.place).read(place.file, offset, offset + size) if size else b""


class _Image(NamedTuple):
    """An image member: its key, offset, size and label."""

    position: str
    label: Label | None


@dataclass
class _Sample:
    """The members of one key: positions and names of images, content and names of labels."""

    images: list[tuple[str, str]] = field(default_factory=list)
    labels: dict[str, tuple[str, bytes]] = field(default_factory=dict)


class _Shard(NamedTuple):
    """Contents of a tar file; ``fields`` are those of its first JSON object."""

    images: list[_Image]
    passed_over: PassedOver
    fields: set[str]


def source(root: Location, allow_missing_classes: bool = False) -> TarImages:
    """List images in tar files below a directory or URI, whose headers and labels are read now.

    Members are grouped by key, which is everything up to the first dot of the base name, folders included. A sample is
    an image and its label: ``.cls``, a number or a class name, or the field label, cls or class of ``.json``. Files are
    assigned to splits by name, as those of the Parquet source are. ``classes.txt`` or ``classnames.txt`` beside the tar
    files names the numbers; otherwise digits do. Images without a label are passed over if others have one, except in
    the unlabeled split; if none has, they share the one class "unlabeled".

    Args:
        root: Directory, file or URI.
        allow_missing_classes: Whether val and test may lack classes that train has.

    Raises:
        DatasetError: If a file is damaged or compressed, splits differ in their classes, or folders inside the files
            may be splits.
    """
    found = find(root, ".tar", beside=NAMES_FILES, compressed=COMPRESSED)
    shards = dict(zip(found.files, read_all(found.files, partial(_scan, found.store)), strict=True))
    _check_no_splits(found, shards)
    labels: dict[str, set[Label]] = {}
    for name, split in found.files.items():
        labels.setdefault(split, set()).update(label for _, label in shards[name].images if label is not None)
    labels.pop(UNLABELED, None)
    lists = _lists(found)
    classes, named = class_names(labels, _common(lists, found.store), str(found.store), allow_missing_classes)
    items, passed_over = _items(found, shards, named)
    if not items:
        reasons = passed_over.text() or "the files are empty"
        raise DatasetError(f"{found.store} has no images that can be used: {reasons}")
    notes = () if named else tuple(_notes_without_labels(found, shards))
    return TarImages.found_in(
        found, classes=classes, items=items, described_in=tuple(lists), passed_over=passed_over, notes=notes
    )


def _check_no_splits(found: SplitFiles, shards: Mapping[str, _Shard]) -> None:
    """Refuse folders of several splits beside each other in files that say none: their images would be mixed."""
    if any(map(splits_in, found.files)):
        return
    below: dict[str, set[str]] = defaultdict(set)
    for folder in set().union(*map(_folders, shards.values())):
        parts = folder.split("/")
        for depth, name in enumerate(parts):
            below["/".join(parts[:depth])].add(name)
    for names in below.values():
        may_be = sorted(name for name in names if name.casefold() in SPLIT_NAMES)
        if len({SPLIT_NAMES[name.casefold()] for name in may_be}) > 1:
            raise DatasetError(
                f"{found.store} has tar files with the folders {first_of(may_be)}, which may be splits: make a tar "
                "file of each, named after it, or unpack them and take --dataset folder"
            )


def _folders(shard: _Shard) -> set[str]:
    """Return the folders of a tar file's images."""
    return {folder_of(position) for position, _ in shard.images}


def _notes_without_labels(found: SplitFiles, shards: Mapping[str, _Shard]) -> Iterator[str]:
    """Say what may tell the classes of images without labels."""
    fields = set().union(*(shard.fields for shard in shards.values()))
    if fields and not fields & {*_LABEL_FIELDS}:
        yield f"no labels: .json has {first_of(sorted(fields))}, but no {' or '.join(_LABEL_FIELDS)}"
    folders = set().union(*(_folders(shards[name]) for name, split in found.files.items() if split != UNLABELED))
    if len(folders) > 1:
        yield (
            f"no labels: images are in the folders {first_of(sorted(folders))}; if these are classes, unpack the tar "
            "files and take --dataset folder"
        )


def _items(
    found: SplitFiles, shards: Mapping[str, _Shard], named: Mapping[Label, str]
) -> tuple[dict[str, list[str]], PassedOver]:
    """Name the images of each split, and account for the rest."""
    items: dict[str, list[str]] = {}
    passed_over = found.passed_over()
    for name, split in found.files.items():
        passed_over.merge(shards[name].passed_over)
        for position, label in shards[name].images:
            if split == UNLABELED or not named:
                items.setdefault(split, []).append(Place(name, UNLABELED, position).item())
            elif label is not None:
                items.setdefault(split, []).append(Place(name, named[label], position).item())
            else:
                passed_over.add(NO_LABEL_REASON, f"{name}#{position.rpartition('@')[0]}")
    return items, passed_over


def _lists(found: SplitFiles) -> dict[str, tuple[str, ...]]:
    """Read the lists of class names beside the tar files, by file."""
    lists = {}
    for name in found.others:
        if name.rpartition("/")[2].lower() in NAMES_FILES:
            text = found.store.read(name).decode("utf-8-sig", errors="replace")
            lists[name] = tuple(line.strip() for line in text.splitlines() if line.strip())
    return lists


def _common(lists: Mapping[str, tuple[str, ...]], store: Store) -> tuple[str, ...] | None:
    """Return what all lists say; None without any.

    Raises:
        DatasetError: If they differ.
    """
    if not lists:
        return None
    first, *others = lists
    if different := [name for name in others if lists[name] != lists[first]]:
        raise DatasetError(f"class names of {store} differ between {first} and {different[0]}")
    return lists[first]


def _scan(store: Store, name: str) -> _Shard:
    """Read the headers and labels of a tar file, which may be several archives one after the other.

    Raises:
        DatasetError: If it is damaged, or its end is missing.
    """
    shard = _Shard([], PassedOver(), set())
    start: int | None = 0
    try:
        with store.open(name, read_ahead=True) as file:
            while start is not None:
                start = _scan_archive(file, start, name, shard)
    except Exception as error:  # a damaged file, or an error of a protocol
        raise DatasetError(f"{store}/{name} cannot be read, or is damaged: {error}") from error
    return shard


def _scan_archive(file: BinaryIO, start: int, name: str, shard: _Shard) -> int | None:
    """Add what an archive holds to ``shard``; returns where in the file the next archive begins."""
    samples: dict[str, _Sample] = {}
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.isdir():
                _sort_in(tar, member, name, samples, shard.passed_over)
            tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all
    shard.images.extend(_images(name, samples, shard.passed_over))
    described = (sample.labels["json"][1] for sample in samples.values() if "json" in sample.labels)
    with suppress(ValueError, RecursionError):  # such as it is, it is passed over
        shard.fields.update(_fields(next(described, b"{}")))
    return _next_archive(file, tar.offset)


def _next_archive(file: BinaryIO, end: int) -> int | None:
    """Find the first block behind the end of an archive that is not of zeros.

    Raises:
        ReadError: If there is no end, for which tarfile takes garbage between members too: it is a block of zeros.
    """
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"neither a member nor the end of the archive at byte {end}")
    while block := file.read(tarfile.BLOCKSIZE):
        if any(block):
            return file.tell() - len(block)
    return None


def _sort_in(
    tar: tarfile.TarFile, member: tarfile.TarInfo, file: str, samples: dict[str, _Sample], passed_over: PassedOver
) -> None:
    """Add a member to the sample of its key, or pass it over."""
    name = as_text(member.name.removeprefix("./"), DatasetError)
    matched = _NAME.fullmatch(name)
    reason = None
    if not member.isreg() or member.issparse():
        reason = NOT_A_FILE
    elif matched is None:
        reason = NO_KEY
    elif f".{(ending := matched[2].lower())}" in EXTENSIONS:
        position = f"{matched[1]}@{member.offset_data}+{member.size}"
        samples.setdefault(matched[1], _Sample()).images.append((position, name))
    elif ending in ("cls", "json"):
        extracted = tar.extractfile(member)
        assert extracted is not None
        samples.setdefault(matched[1], _Sample()).labels[ending] = (name, extracted.read())
    else:
        reason = LONGER_ENDING if ending.endswith(EXTENSIONS) else NOT_USED
    if reason:
        passed_over.add(reason, f"{file}#{name}")


def _images(file: str, samples: Mapping[str, _Sample], passed_over: PassedOver) -> Iterator[_Image]:
    """Go through the samples; those that are not one image are passed over."""
    for sample in samples.values():
        if not sample.images:
            passed_over.add(NO_IMAGE, f"{file}#{next(name for name, _ in sample.labels.values())}")
        elif len(sample.images) > 1:
            for _, name in sample.images:
                passed_over.add(SEVERAL_IMAGES, f"{file}#{name}")
        else:
            [(position, name)] = sample.images
            try:
                yield _Image(position, _label(sample.labels))
            except (ValueError, RecursionError):  # JSON may be nested without end
                passed_over.add(BAD_LABEL, f"{file}#{name}")


def _label(labels: Mapping[str, tuple[str, bytes]]) -> Label | None:
    """Read the label of a sample; None if it has none, which a negative number says too.

    Raises:
        ValueError: If it cannot be read.
    """
    value: object = None
    if "cls" in labels:
        value = labels["cls"][1].decode()
    elif "json" in labels:
        fields = _fields(labels["json"][1])
        value = next((fields[key] for key in _LABEL_FIELDS if fields.get(key) is not None), None)
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else text or None
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return None if isinstance(value, int) and value < 0 else value
    raise ValueError(f"{value!r} is not a label")


def _fields(content: bytes) -> dict[str, Any]:
    """Read a JSON object; empty where it is another value.

    Raises:
        ValueError: If it is not JSON.
    """
    fields = json.loads(content)
    return fields if isinstance(fields, dict) else {}

"""Planning of splits and shards from the item names alone, before any image is opened."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from adios_ray.console import counted
from adios_ray.data.manifest import SCHEMA_VERSION, Layout
from adios_ray.data.sources.base import UNLABELED, ReadInBlocks, Source
from adios_ray.data.sources.passed_over import PassedOver, first_of
from adios_ray.data.splits import CARVED, Key, group_of, in_blocks, plan_splits
from adios_ray.errors import DatasetError
from adios_ray.validation import Record

ROWS_VERSION = 2
"""Raised where the same file becomes another row than before: what earlier rows left unfinished is made again."""
PERMISSIONS = frozenset({"allow_missing_classes"})
"""Options in a recipe that only allow what is otherwise refused: no row depends on them."""
MAX_SHARD_ROWS = 1024
MAX_SHARD_BYTES = 32 * 2**20
OF_A_CARVED_GROUP = "unlabeled, of a group in val or test"
NOT_ASKED_FOR = "beyond the number of images asked for"


class ShardJob(Record):
    """One shard to write: its file name, split, ordered items, and a digest of everything that determines its bytes."""

    file: str
    split: str
    items: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Plan:
    """What will be read.

    Attributes:
        splits: Items of each split, in the order of the shards.
        classes: Number of items of each class in each split.
        labels: How many classes or labels there are, for people.
        carved: Splits that are carved out of train.
        empty: Splits that were to be carved, but for which no class of train is large enough.
        only_in_train: Classes that are too small for every carved split.
        passed_over: What the source has, but will not be read.
        notes: What people should know of the source.
    """

    splits: Mapping[str, Sequence[str]]
    classes: Mapping[str, Mapping[str, int]]
    labels: str
    carved: tuple[str, ...]
    empty: tuple[str, ...]
    only_in_train: tuple[str, ...]
    passed_over: PassedOver
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Number of images that will be read."""
        return sum(map(len, self.splits.values()))

    def text(self) -> str:
        """Describe the plan in lines for people."""
        splits = ", ".join(f"{split} {len(items):,}" for split, items in self.splits.items())
        carved = f" ({' and '.join(self.carved)} carved out of train)" if self.carved else ""
        lines = [f"{counted(len(self.splits), 'split')}, {self.labels}: {splits}{carved}"]
        if self.only_in_train:
            few = f"{counted(len(self.only_in_train), 'class')} too small to be in {' and '.join(self.carved)}"
            lines.append(f"{few}, kept in train: {first_of(self.only_in_train)}")
        if self.empty:
            lines.append(
                f"nothing is left for {' and '.join(self.empty)}, which training needs: all classes are too small"
            )
        lines += [f"note: {note}" for note in self.notes]
        for reason, (number, examples) in self.passed_over.items():
            lines.append(f"passed over, {reason}: {number:,} ({first_of(examples, number)})")
        return "\n".join(lines)


def make_plan(source: Source, counts: Mapping[str, int | None], group: Key | None = None) -> Plan:
    """Choose the items of each split of a source.

    Args:
        source: The images.
        counts: Images wanted of a split; see ``plan_splits``.
        group: What belongs together, by item; None carves item by item.

    Raises:
        DatasetError: If there are fewer items than a count asks for, or none is left for train or in any split.
    """
    listing, notes = _once(source.listing())
    splits = plan_splits(listing, counts, source.stratum, group)
    if isinstance(source, ReadInBlocks):
        splits = {split: in_blocks(items, source.block) for split, items in splits.items()}
    wanted = [s for s in reversed(CARVED) if "train" in listing and s not in listing and counts[s] != 0]
    carved, empty = (tuple(s for s in wanted if (s in splits) is found) for found in (True, False))
    leaking: set[str] = set()
    if group is not None:
        held = {group_of(item, group) for split in carved for item in splits.get(split, ())}
        # Networks train on unlabeled images too.
        leaking = {item for item in listing.get(UNLABELED, ()) if group_of(item, group) in held}
        unlabeled = [item for item in splits.pop(UNLABELED, ()) if item not in leaking]
        splits |= {UNLABELED: unlabeled} if unlabeled else {}
        notes = [*notes, *_shared_groups(splits, group)]
    passed_over = PassedOver(source.passed_over)
    taken = {item for items in splits.values() for item in items}
    for item in (item for items in listing.values() for item in items if item not in taken):
        passed_over.add(OF_A_CARVED_GROUP if item in leaking else NOT_ASKED_FOR, item)
    classes = {
        split: dict(Counter(map(source.stratum, items))) for split, items in splits.items() if split != UNLABELED
    }
    trained = classes.get("train", {})
    small = sorted(name for name in trained if any(name not in classes.get(split, {}) for split in carved))
    labels, notes = _labels(source, classes), [*source.notes, *notes, *_unseen(classes, carved)]
    return Plan(splits, classes, labels, carved, empty, tuple(small), passed_over, tuple(notes))


def _once(listing: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Keep one of equal items in each split, and note how many are there more than once."""
    counts = {split: Counter(items) for split, items in listing.items()}
    repeated = [item for found in counts.values() for item, number in found.items() if number > 1]
    notes = [f"{counted(len(repeated), 'image')} listed more than once, read once: {first_of(repeated)}"]
    return {split: list(found) for split, found in counts.items()}, notes if repeated else []


def _unseen(classes: Mapping[str, Mapping[str, int]], carved: Iterable[str]) -> list[str]:
    """Note the classes of carved splits that train lacks: a number that is asked for may take all of their images."""
    unseen = sorted({name for split in carved for name in classes[split]} - classes.get("train", {}).keys())
    found = f"{counted(len(unseen), 'class')} of {' and '.join(carved)} without images in train: {first_of(unseen)}"
    return [found] if unseen else []


def _shared_groups(splits: Mapping[str, Sequence[str]], group: Key) -> list[str]:
    """Note the groups that are in several splits, as the source has parted them."""
    holding: dict[str, set[str]] = defaultdict(set)
    for split, items in splits.items():
        for item in items:
            if (name := group_of(item, group)) is not None:  # it may be of none, where nothing was carved out
                holding[name].add("train" if split == UNLABELED else split)
    shared = [f"{name} ({', '.join(sorted(found))})" for name, found in holding.items() if len(found) > 1]
    found = (
        f"{counted(len(shared), 'group')} in more than one split, as the source has them: {first_of(sorted(shared))}"
    )
    return [found] if shared else []


def _labels(source: Source, classes: Mapping[str, Mapping[str, int]]) -> str:
    """Count the classes of a source's items, or its labels where an image has any number of them."""
    if source.multi_label:
        return counted(len(source.classes), "label")
    # Rendered images have their class once they are rendered: all of the source's are expected.
    names = {name for counts in classes.values() for name in counts if name} or source.classes
    return counted(len(names), "class")


def image_counts(
    train: int | None = None, val: int | None = None, test: int | None = None, unlabeled: int | None = None
) -> dict[str, int | None]:
    """Name the images wanted of each split; the unlabeled ones only where they are limited."""
    counts = {"train": train, "val": val, "test": test}
    return counts if unlabeled is None else {**counts, UNLABELED: unlabeled}


def group_by_pattern(pattern: str) -> Key:
    """Make a function that names an item's group by a regular expression: its first group, or the whole match.

    Raises:
        re.error: If it is not a regular expression.
    """
    expression = re.compile(pattern)

    def group(item: str) -> str:
        found = expression.search(item)
        if found is None:
            raise DatasetError(f"the pattern {pattern!r} that groups images does not match {item}")
        return found[0] if not expression.groups or found[1] is None else found[1]

    return group


def plan_jobs(
    splits: Mapping[str, Sequence[str]],
    layout: Layout,
    recipe: Mapping[str, Any],
    state: Callable[[str], object] = lambda item: None,
) -> list[ShardJob]:
    """Cut each split into shards of nearly equal length, at most 1024 rows and 32 MiB of pixels.

    Args:
        splits: Items of each split.
        layout: Columns of the shards.
        recipe: What else decides their bytes.
        state: What else decides the row of an item, as a JSON value: a shard is made again where it has changed.
    """
    most = max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // layout.row_bytes))
    jobs = []
    for split, items in splits.items():
        shards = -(-len(items) // most)
        for number in range(shards):
            chunk = items[len(items) * number // shards : len(items) * (number + 1) // shards]
            file = f"{split}-{number:05d}.arrow"
            decides = json.dumps(
                [SCHEMA_VERSION, ROWS_VERSION, recipe, file, [[item, state(item)] for item in chunk]], sort_keys=True
            )
            digest = hashlib.sha256(decides.encode()).hexdigest()
            jobs.append(ShardJob(file=file, split=split, items=tuple(chunk), digest=digest))
    return jobs


def descriptions(source: Source, names: Iterable[str]) -> set[str]:
    """Choose those of a source's files that no single row is made of: they describe some."""
    items = [*chain.from_iterable(source.listing().values())]
    return set(names).difference(map(source.file_of, items), chain.from_iterable(map(source.beside, items)))


def deciding(
    source: Source, recipe: Mapping[str, Any], files: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Any], Callable[[str], object]]:
    """Find what decides the bytes of shards, for ``plan_jobs``.

    Args:
        source: The images.
        recipe: The recipe of the data set. Where files are matters only at a URI: times of change tell local ones.
        files: The source's files.

    Returns:
        What decides all rows, and a function from an item to what decides its row.
    """
    shared = descriptions(source, files)
    # Not all protocols tell times of change, and those of objects are kept to the second.
    placed = "://" in str(recipe.get("source")) or any(changed_ns == 0 for _, changed_ns in files.values())
    irrelevant = PERMISSIONS if placed else PERMISSIONS | {"source"}
    common = {key: value for key, value in recipe.items() if key not in irrelevant}
    common |= {"classes": list(source.classes), "shared_files": {name: files[name] for name in sorted(shared)}}
    return common, lambda item: [source.stratum(item), *map(files.get, (source.file_of(item), *source.beside(item)))]

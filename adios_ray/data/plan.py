"""Which images a shard holds: planned from the item names alone, before any image is opened."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adios_ray.data.shards import SCHEMA_VERSION, Layout, Record
from adios_ray.data.sources.base import UNLABELED, Source
from adios_ray.data.sources.passed_over import PassedOver, first_of
from adios_ray.errors import DatasetError

MAX_SHARD_ROWS = 1024
MAX_SHARD_BYTES = 32 * 2**20
HELD_OUT_FRACTION = 0.1
CARVED = ("test", "val")
"""Splits that are carved out of train where the source lacks them, in this order."""
FEWEST = len(CARVED) + 1
"""Images (or groups) that a class needs to be in train, val and test."""
NOT_ASKED_FOR = "beyond the number of images asked for"

Key = Callable[[str], str]
"""What an item belongs to, by its name: a class or a group."""


class ShardJob(Record):
    """One shard to make: its file name, its split, the items in order, and a digest of all that decides its bytes."""

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
        carved: Splits that are carved out of train.
        only_in_train: Classes that are too small for every carved split.
        passed_over: What the source has, but will not be read.
    """

    splits: Mapping[str, Sequence[str]]
    classes: Mapping[str, Mapping[str, int]]
    carved: tuple[str, ...]
    only_in_train: tuple[str, ...]
    passed_over: PassedOver

    @property
    def images(self) -> int:
        """Number of images that will be read."""
        return sum(map(len, self.splits.values()))

    def text(self) -> str:
        """Describe the plan in lines for people."""
        names = {name for counts in self.classes.values() for name in counts}
        splits = ", ".join(f"{split} {len(items):,}" for split, items in self.splits.items())
        carved = f" ({' and '.join(self.carved)} carved out of train)" if self.carved else ""
        lines = [f"{len(self.splits)} splits, {len(names):,} classes: {splits}{carved}"]
        if self.only_in_train:
            some = first_of(self.only_in_train)
            lines.append(f"{len(self.only_in_train):,} classes are too small for val and test, all in train: {some}")
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
        DatasetError: If there are fewer items than a count asks for, or none is left for train.
    """
    listing = source.listing()
    splits = plan_splits(listing, counts, source.stratum, group)
    passed_over = PassedOver(source.passed_over)
    taken = {item for items in splits.values() for item in items}
    for item in (item for items in listing.values() for item in items if item not in taken):
        passed_over.add(NOT_ASKED_FOR, item)
    classes = {split: dict(Counter(map(source.stratum, items))) for split, items in splits.items()}
    carved = tuple(split for split in reversed(CARVED) if split in splits and split not in listing)
    trained = classes.get("train", {})
    small = sorted(name for name in trained if any(name not in classes[split] for split in carved))
    return Plan(splits, classes, carved, tuple(small), passed_over)


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
        return found[1] if expression.groups else found[0]

    return group


def folder_of(item: str) -> str:
    """Name the folder of an item."""
    return item.rpartition("/")[0]


def plan_splits(
    listing: Mapping[str, Sequence[str]],
    counts: Mapping[str, int | None],
    stratum: Key = folder_of,
    group: Key | None = None,
) -> dict[str, list[str]]:
    """Choose the items of each split, in mixed order; see ``prepare``.

    Each class has its share in a carved split, to within one item. A class of at least three items is in train, val and
    test; smaller ones are in train.

    Args:
        listing: Items of each split of the source.
        counts: Images wanted of a split; None for all (for 10 % of train, where val or test must be carved).
        stratum: Class of an item.
        group: What belongs together: the items of a group are all in train, all in val or all in test where these are
            carved, and shares are then met as far as groups allow. None carves item by item.

    Raises:
        DatasetError: If there are fewer items than a count asks for, or none is left for train.
    """
    splits = {split: mixed(items) for split, items in listing.items()}
    tenth = round(len(splits.get("train", ())) * HELD_OUT_FRACTION)
    missing = [split for split in CARVED if "train" in splits and split not in splits and counts[split] != 0]
    for number, split in enumerate(missing):
        # What the splits that follow, and train, need of each class.
        reserve = len(missing) - number
        if group is None:
            taken = take(split, splits["train"], counts[split], stratum, tenth, reserve)
        else:
            taken = _take_groups(split, splits["train"], counts[split], stratum, group, tenth, reserve)
        splits[split], splits["train"] = taken
    for split, count in counts.items():
        if count is not None and split not in missing:
            splits[split], _ = take(split, splits.get(split, ()), count, stratum)
    if "train" in splits and not splits["train"]:
        raise DatasetError("no images are left for train")
    return {split: items for split, items in splits.items() if items}


def mixed(items: Sequence[str]) -> list[str]:
    """Sort items by a hash of their names: an order that mixes the classes and is the same on every machine."""
    return sorted(items, key=_hash)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def take(
    split: str,
    items: Sequence[str],
    count: int | None,
    stratum: Key = folder_of,
    default: int = 0,
    reserve: int = 0,
) -> tuple[list[str], list[str]]:
    """Take some of the items, from each class its share.

    Args:
        split: What they are for.
        items: In mixed order.
        count: How many; None takes about ``default``, and of each class at least one.
        stratum: Class of an item.
        default: See ``count``.
        reserve: Items of each class that are to be left, where that can be.

    Returns:
        The items taken and the rest, in order.

    Raises:
        DatasetError: If ``count`` is negative or there are fewer items; the message names ``split``.
    """
    if count is not None and not 0 <= count <= len(items):
        raise DatasetError(f"{count} images asked for {split}, but there are {len(items)} to take them from")
    classes = [stratum(item) for item in items]
    left = shares(Counter(classes), count, default, reserve)
    taken: list[str] = []
    rest: list[str] = []
    for item, name in zip(items, classes, strict=True):
        (taken if left[name] > 0 else rest).append(item)
        left[name] -= 1
    return taken, rest


def shares(sizes: Mapping[str, int], count: int | None, default: int = 0, reserve: int = 0) -> dict[str, int]:
    """Divide a number of items in proportion to the sizes of the classes.

    Every class that has more than ``reserve`` items gets at least one, if ``count`` suffices for that, and no more than
    leaves it ``reserve``. What rounding leaves goes to the largest remainders, ties by hash.

    Args:
        sizes: Items of each class.
        count: How many to divide; None divides ``default``, or as many as it takes for every class to get one.
        default: See ``count``.
        reserve: Items of a class that are to be left.
    """
    total = max(1, sum(sizes.values()))
    able = [name for name, size in sizes.items() if size > reserve] if reserve else []
    wanted = max(default, len(able)) if count is None else count
    proportional = {name: size * wanted / total for name, size in sizes.items()}
    guaranteed = set(able) if wanted >= len(able) else set()
    given = {name: max(int(share), name in guaranteed) for name, share in proportional.items()}
    most = {name: max(size - reserve, 0) if reserve else size for name, size in sizes.items()}
    if count is not None and sum(most.values()) < wanted:
        most = dict(sizes)  # asked for by number: train may lose all of a class
    given = {name: min(share, most[name]) for name, share in given.items()}
    _settle(given, proportional, most, guaranteed, wanted)
    return given


def _settle(
    given: dict[str, int], proportional: Mapping[str, float], most: Mapping[str, int], kept: set[str], wanted: int
) -> None:
    """Add or take away single items, where rounding was least fair, until ``wanted`` are given or nothing can be."""
    while (lack := wanted - sum(given.values())) != 0:
        step = 1 if lack > 0 else -1
        free = [n for n in given if (given[n] < most[n] if step > 0 else given[n] > (n in kept))]
        if not free:
            return
        free.sort(key=lambda name: (step * (given[name] - proportional[name]), _hash(name)))
        for name in free[: abs(lack)]:
            given[name] += step


def _take_groups(
    split: str, items: Sequence[str], count: int | None, stratum: Key, group: Key, default: int, reserve: int
) -> tuple[list[str], list[str]]:
    """Take whole groups until each class has about its share; see ``take``."""
    members: dict[str, list[str]] = defaultdict(list)
    for item in items:
        members[group(item)].append(item)
    contents = {name: Counter(map(stratum, inside)) for name, inside in members.items()}
    groups_of = Counter(name for classes in contents.values() for name in classes)
    sizes = Counter(map(stratum, items))
    # Classes of too few groups stay in train whole, with every group that holds some of them.
    open_groups = [name for name in members if all(groups_of[c] > reserve for c in contents[name])]
    wanted = Counter(shares(sizes, count, default, reserve))
    chosen: set[str] = set()
    for name in sorted(open_groups, key=_hash):
        fits = sum(min(number, max(wanted[c], 0)) for c, number in contents[name].items())
        if 2 * fits > len(members[name]) and all(groups_of[c] > reserve for c in contents[name]):
            chosen.add(name)
            wanted.subtract(contents[name])
            groups_of.subtract(dict.fromkeys(contents[name], 1))
    chosen |= _smallest_of_lacking(open_groups, contents, chosen)
    taken = [item for item in items if group(item) in chosen]
    if not taken:
        raise DatasetError(f"no group can be taken for {split}: {len(members)} groups of {len(sizes)} classes")
    return taken, [item for item in items if group(item) not in chosen]


def _smallest_of_lacking(names: Sequence[str], contents: Mapping[str, Counter[str]], chosen: set[str]) -> set[str]:
    """For each class that no chosen group holds, the smallest group that holds it."""
    held = {c for name in chosen for c in contents[name]}
    added: set[str] = set()
    for name in sorted(names, key=lambda name: (contents[name].total(), _hash(name))):
        if contents[name].keys() - held:
            added.add(name)
            held |= contents[name].keys()
    return added


def plan_jobs(
    splits: Mapping[str, Sequence[str]],
    layout: Layout,
    recipe: Mapping[str, Any],
    files: Mapping[str, tuple[int, int]] | None = None,
) -> list[ShardJob]:
    """Cut each split into shards of nearly equal length, at most 1024 rows and 32 MiB of pixels.

    Args:
        splits: Items of each split.
        layout: Columns of the shards.
        recipe: What else decides their bytes.
        files: Size and time of change of the items' files: a shard of a changed file is made again.
    """
    most = max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // layout.row_bytes))
    jobs = []
    for split, items in splits.items():
        shards = -(-len(items) // most)
        for number in range(shards):
            chunk = items[len(items) * number // shards : len(items) * (number + 1) // shards]
            file = f"{split}-{number:05d}.arrow"
            states = [files[item] for item in chunk if item in files] if files else []
            decides = json.dumps([SCHEMA_VERSION, recipe, file, list(chunk), states], sort_keys=True)
            digest = hashlib.sha256(decides.encode()).hexdigest()
            jobs.append(ShardJob(file=file, split=split, items=tuple(chunk), digest=digest))
    return jobs

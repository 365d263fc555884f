"""Division of items among splits by their names alone: every class has its share in each, and groups stay together."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from adios_ray.errors import DatasetError

HELD_OUT_FRACTION = 0.1
CARVED = ("test", "val")
"""Splits that are carved out of train where the source lacks them, in this order."""
Key = Callable[[str], str]
"""Maps the name of an item to its class or group."""


def folder_of(item: str) -> str:
    """Name the folder of an item."""
    return item.rpartition("/")[0]


@dataclass(frozen=True)
class Quota:
    """How many items are taken, and of which classes.

    Attributes:
        count: How many; None takes about ``default``, each class's share rounded by itself.
        default: See ``count``.
        small: Classes of which nothing is taken, where ``count`` can be met without.
        reserve: Items of each other class that are to be left, and of which at least one is taken; 0 takes in
            proportion alone.
    """

    count: int | None
    default: int = 0
    small: Set[str] = frozenset()
    reserve: int = 0


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
        DatasetError: If a count exceeds the items available, or no items are left for train or in any split.
    """
    splits = {split: mixed(items) for split, items in listing.items()}
    # Taken from the whole train split before anything is carved, so that val and test are equally large.
    tenth = round(len(splits.get("train", ())) * HELD_OUT_FRACTION)
    missing = [split for split in CARVED if "train" in splits and split not in splits and counts[split] != 0]
    if missing:
        units = {(stratum(item), group(item) if group else item) for item in splits["train"]}
        numbers = Counter(name for name, _ in units)
        # A class that cannot be in every carved split and in train is in train alone.
        small = {name for name, number in numbers.items() if number <= len(missing)}
    for number, split in enumerate(missing):
        quota = Quota(counts[split], tenth, small, reserve=len(missing) - number)
        if group is None:
            splits[split], splits["train"] = take(split, splits["train"], quota, stratum)
        else:
            splits[split], splits["train"] = _take_groups(split, splits["train"], quota, stratum, group)
    for split, count in counts.items():
        if count is not None and split not in missing:
            splits[split], _ = take(split, splits.get(split, ()), Quota(count), stratum)
    if "train" in splits and not splits["train"]:
        raise DatasetError("no images are left for train")
    chosen = {split: items for split, items in splits.items() if items}
    if not chosen:
        raise DatasetError("no split has images: check --source, and the lists of images in it")
    return chosen


def group_of(item: str, group: Key) -> str | None:
    """Name the group of an item; None if it has none."""
    try:
        return group(item)
    except DatasetError:
        return None


def mixed(items: Sequence[str]) -> list[str]:
    """Sort items by a hash of their names: an order that mixes the classes and is the same on every machine."""
    return sorted(items, key=_hash)


def in_blocks(items: Sequence[str], block: Callable[[str], str]) -> list[str]:
    """Sort items so that those of one block are neighbors; the blocks, and the items in each, in the order of a hash.

    A shard then holds few blocks: a worker reads each once or twice, not once for every image in it.
    """
    return sorted(items, key=lambda item: (_hash(block(item)), _hash(item)))


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def take(split: str, items: Sequence[str], quota: Quota, stratum: Key = folder_of) -> tuple[list[str], list[str]]:
    """Take some of the items, from each class its share.

    Args:
        split: What they are for.
        items: In mixed order.
        quota: How many.
        stratum: Class of an item.

    Returns:
        The items taken and the rest, in order.

    Raises:
        DatasetError: If the number asked for is negative or there are fewer items; the message names ``split``.
    """
    _check_count(split, items, quota)
    classes = [stratum(item) for item in items]
    left = shares(Counter(classes), quota)
    taken: list[str] = []
    rest: list[str] = []
    for item, name in zip(items, classes, strict=True):
        (taken if left[name] > 0 else rest).append(item)
        left[name] -= 1
    return taken, rest


def _check_count(split: str, items: Sequence[str], quota: Quota) -> None:
    if quota.count is not None and not 0 <= quota.count <= len(items):
        raise DatasetError(f"{quota.count} images asked for {split}, but there are {len(items)} to take them from")


def shares(sizes: Mapping[str, int], quota: Quota) -> dict[str, int]:
    """Divide a number of items in proportion to the sizes of the classes.

    What rounding leaves goes to the largest remainders, ties by hash.

    Args:
        sizes: Items of each class.
        quota: How many to divide.
    """
    wanted = quota.default if quota.count is None else quota.count
    total = max(1, sum(sizes.values()))
    proportional = {name: size * wanted / total for name, size in sizes.items()}
    able = {name for name, size in sizes.items() if quota.reserve < size and name not in quota.small}
    most = {name: size - quota.reserve if name in able else 0 for name, size in sizes.items()}
    kept = able if quota.reserve else set()
    if quota.count is None:
        return {name: min(max(round(share), name in kept), most[name]) for name, share in proportional.items()}
    if sum(most.values()) < quota.count:
        most = dict(sizes)  # asked for by number: train may lose all of a class
    if quota.count < len(kept):
        kept = set()
    given = {name: min(max(int(share), name in kept), most[name]) for name, share in proportional.items()}
    _settle(given, proportional, most, kept, quota.count)
    return given


def _settle(
    given: dict[str, int], proportional: Mapping[str, float], most: Mapping[str, int], kept: Set[str], wanted: int
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
    split: str, items: Sequence[str], quota: Quota, stratum: Key, group: Key
) -> tuple[list[str], list[str]]:
    """Take whole groups until each class has about its share; see ``take``."""
    _check_count(split, items, quota)
    contents: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        contents[group(item)][stratum(item)] += 1
    left = Counter(name for classes in contents.values() for name in classes)  # groups of each class
    able = [name for name in contents if not contents[name].keys() & quota.small]
    wanted = Counter(shares(Counter(map(stratum, items)), replace(quota, reserve=0)))
    chosen: set[str] = set()
    for name in sorted(able, key=_hash):
        classes = contents[name]
        fits = sum(min(number, max(wanted[each], 0)) for each, number in classes.items())
        if 2 * fits > classes.total() and all(left[each] > quota.reserve for each in classes):
            chosen.add(name)
            wanted.subtract(classes)
            left.subtract(dict.fromkeys(classes, 1))
    chosen |= _smallest_of_lacking(able, contents, chosen, left, quota.reserve)
    if not chosen:
        kind = "folder" if group is folder_of else "group"
        cause = f"each class is a single {kind}" if set(left.values()) == {1} else f"classes have too few {kind}s"
        raise DatasetError(
            f"{cause}, so that no {kind} can be held out for {split}: make smaller ones, or leave --group-by out"
        )
    return [item for item in items if group(item) in chosen], [item for item in items if group(item) not in chosen]


def _smallest_of_lacking(
    names: Sequence[str], contents: Mapping[str, Counter[str]], chosen: Set[str], left: Counter[str], reserve: int
) -> set[str]:
    """For each class that no chosen group holds, add the smallest group that its classes can spare.

    Args:
        names: Groups to choose from.
        contents: Items of each class in each group.
        chosen: Groups that are chosen already.
        left: Groups of each class that are not chosen; those added are subtracted.
        reserve: Groups of each class that are to be left.
    """
    held = {c for name in chosen for c in contents[name]}
    added: set[str] = set()
    for name in sorted(names, key=lambda name: (contents[name].total(), _hash(name))):
        classes = contents[name].keys()
        if classes - held and all(left[each] > reserve for each in classes):
            added.add(name)
            held |= classes
            left.subtract(dict.fromkeys(classes, 1))
    return added

"""Planning of splits and shards from the item names alone, before any image is opened."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from adios_ray.data.shards import SCHEMA_VERSION, Layout, Record
from adios_ray.errors import DatasetError

MAX_SHARD_ROWS = 1024
MAX_SHARD_BYTES = 32 * 2**20
HELD_OUT_FRACTION = 0.1


class ShardJob(Record):
    """One shard to write: its file name, split, ordered items, and a digest of everything that determines its bytes."""

    file: str
    split: str
    items: tuple[str, ...]
    digest: str


def plan_splits(listing: Mapping[str, Sequence[str]], counts: Mapping[str, int | None]) -> dict[str, list[str]]:
    """Choose the items of each split, in mixed order; see ``prepare``.

    Args:
        listing: Items of each split of the source.
        counts: Number of images per split; None takes all, or 10 % of train for a val or test split that is carved.

    Raises:
        DatasetError: If a count exceeds the items available, or no items are left for train.
    """
    splits = {split: mixed(items) for split, items in listing.items()}
    # Taken from the whole train split before anything is carved, so that val and test are equally large.
    tenth = round(len(splits.get("train", ())) * HELD_OUT_FRACTION)
    # Held-out images are carved before train is cut to its count: they are the same for every --train-images.
    for split in ("test", "val"):
        if "train" in splits and split not in splits:
            count = counts[split]
            splits[split], splits["train"] = take(split, splits["train"], tenth if count is None else count)
    for split, count in counts.items():
        if count is not None:
            splits[split], _ = take(split, splits.get(split, ()), count)
    if "train" in splits and not splits["train"]:
        raise DatasetError("no images are left for train")
    return {split: items for split, items in splits.items() if items}


def mixed(items: Sequence[str]) -> list[str]:
    """Sort the items by a hash of their names: the order mixes the classes and does not depend on the listing."""
    # Not Python's hash(), which is salted per process.
    return sorted(items, key=lambda item: hashlib.blake2b(item.encode(), digest_size=8).digest())


def take(split: str, items: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Take ``count`` items, each folder in proportion to its size; return those taken and the rest, in order.

    Raises:
        DatasetError: If ``count`` is negative or exceeds the number of items; the message names ``split``.
    """
    if not 0 <= count <= len(items):
        raise DatasetError(f"{count} images asked for {split}, but there are {len(items)} to take them from")
    folders = [item.rpartition("/")[0] for item in items]
    left = _shares(Counter(folders), count)
    taken: list[str] = []
    rest: list[str] = []
    for item, folder in zip(items, folders, strict=True):
        (taken if left[folder] > 0 else rest).append(item)
        left[folder] -= 1
    return taken, rest


def _shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Divide ``count`` in proportion to the sizes, by the largest-remainder method; ties go by name."""
    total = max(1, sum(sizes.values()))
    shares = {name: size * count // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * count % total), name))
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def plan_jobs(splits: Mapping[str, Sequence[str]], layout: Layout, recipe: Mapping[str, Any]) -> list[ShardJob]:
    """Cut each split into shards of nearly equal length, of at most 1,024 rows and 32 MiB of pixels."""
    most = max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // layout.row_bytes))
    jobs = []
    for split, items in splits.items():
        shards = -(-len(items) // most)
        for number in range(shards):
            chunk = items[len(items) * number // shards : len(items) * (number + 1) // shards]
            file = f"{split}-{number:05d}.arrow"
            inputs = json.dumps([SCHEMA_VERSION, recipe, file, chunk], sort_keys=True)
            digest = hashlib.sha256(inputs.encode()).hexdigest()
            jobs.append(ShardJob(file=file, split=split, items=tuple(chunk), digest=digest))
    return jobs

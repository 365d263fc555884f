"""Images whose pixels are those of another one, within a split and across splits."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from adios_ray.console import printable
from adios_ray.data.manifest import Duplicates
from adios_ray.data.sources.base import UNLABELED

EXAMPLES = 10


class Pixels(NamedTuple):
    """One image in the shards.

    Attributes:
        split: Its split.
        item: Its name in the source.
        stratum: Its class.
        checksum: Of its pixels and its size.
    """

    split: str
    item: str
    stratum: str
    checksum: bytes


def find_duplicates(images: Iterable[Pixels]) -> tuple[Duplicates, set[tuple[str, str]]]:
    """Find exact copies.

    Args:
        images: All images, in any order.

    Returns:
        What there is, and the split and item of what to leave out so that one of each remains: that of the split that
        is evaluated (test before val before train), the first of equals by name.
    """
    first: dict[bytes, Pixels] = {}
    copies: list[tuple[Pixels, Pixels]] = []
    for image in sorted(images, key=lambda image: (_order(image.split), image.item)):
        kept = first.setdefault(image.checksum, image)
        if kept is not image:
            copies.append((kept, image))
    across = Counter(", ".join((kept.split, copy.split)) for kept, copy in copies)
    odd = [(kept, copy) for kept, copy in copies if _disagree(kept, copy)]
    examples = dict.fromkeys([*odd, *copies])
    found = Duplicates(
        images=len(copies),
        across=dict(sorted(across.items())),
        two_labels=len(odd),
        examples=tuple((kept.item, copy.item) for kept, copy in list(examples)[:EXAMPLES]),
    )
    return found, {(copy.split, copy.item) for _, copy in copies}


def _order(split: str) -> int:
    """Rank a split: evaluated splits come first, then train."""
    order: Sequence[str] = ("test", "val")
    return order.index(split) if split in order else {"train": 3, UNLABELED: 4}.get(split, 2)


def _disagree(kept: Pixels, copy: Pixels) -> bool:
    return kept.stratum != copy.stratum and UNLABELED not in (kept.split, copy.split)


def duplicates_text(found: Duplicates) -> str:
    """Describe copies in lines for people; empty where there are none."""
    if not found.images:
        return ""
    pairs = ", ".join(
        f"{number:,} within {a}" if a == b else f"{number:,} of {b} are in {a} too"
        for (a, b), number in ((tuple(pair.split(", ")), number) for pair, number in found.across.items())
    )
    lines = [f"{found.images:,} images are exact copies of others: {pairs}"]
    if found.two_labels:
        some = "; ".join(f"{printable(a)} and {printable(b)}" for a, b in found.examples[: min(found.two_labels, 3)])
        lines.append(f"{found.two_labels:,} of the copies have another label: {some}")
    if not found.dropped:
        lines.append("--drop-duplicates keeps one of each, that of the split that is evaluated")
    return "\n".join(lines)

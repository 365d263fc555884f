"""An account of what a source has, but does not use."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from adios_ray.console import printable

EXAMPLES = 10
_NAMED = 5


def first_of(names: Sequence[object], number: int | None = None) -> str:
    """List the first of some names for people; ``number`` is how many there are, where these are examples."""
    shown = names[:_NAMED]
    return ", ".join(map(printable, shown)) + (", ..." if (number or len(names)) > len(shown) else "")


class Reason(NamedTuple):
    """What was passed over for one reason.

    Attributes:
        number: How much.
        examples: Some of it, at most 10.
    """

    number: int
    examples: tuple[str, ...]


class PassedOver(Mapping[str, Reason]):
    """Counts by reason, with examples."""

    def __init__(self, reasons: Mapping[str, tuple[int, tuple[str, ...]]] | None = None) -> None:
        """Begin with what was passed over already."""
        self._reasons = {reason: Reason(*counted) for reason, counted in (reasons or {}).items()}

    def add(self, reason: str, item: str) -> None:
        """Count one item."""
        number, examples = self._reasons.get(reason, Reason(0, ()))
        self._reasons[reason] = Reason(number + 1, (*examples, item) if len(examples) < EXAMPLES else examples)

    def merge(self, others: Mapping[str, tuple[int, tuple[str, ...]]]) -> None:
        """Add the counts of another account."""
        for reason, (number, examples) in others.items():
            before = self._reasons.get(reason, Reason(0, ()))
            self._reasons[reason] = Reason(before.number + number, (*before.examples, *examples)[:EXAMPLES])

    @property
    def total(self) -> int:
        """How much was passed over, for all reasons."""
        return sum(reason.number for reason in self._reasons.values())

    def text(self) -> str:
        """Write the reasons with their numbers, without examples."""
        return "; ".join(f"{reason} ({number:,})" for reason, (number, _) in self._reasons.items())

    def __getitem__(self, reason: str) -> Reason:
        """Look up a reason."""
        return self._reasons[reason]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the reasons."""
        return iter(self._reasons)

    def __len__(self) -> int:
        """Count the reasons."""
        return len(self._reasons)

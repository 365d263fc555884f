"""The account of a preparation: what became of every file of the source."""

from collections.abc import Mapping, Sequence

from adios_ray.data.manifest import Account, Counted, Duplicates, Refusal, ShardEntry
from adios_ray.data.plan import Plan
from adios_ray.data.sources.passed_over import PassedOver
from adios_ray.errors import DatasetError

_DROPPED = "exact copy of another image"


def take_account(
    plan: Plan,
    splits: Mapping[str, Sequence[ShardEntry]],
    dropped: Sequence[str],
    refused: Sequence[Refusal],
    notes: Sequence[Mapping[str, str]],
    duplicates: Duplicates,
) -> Account:
    """Say what became of every image that was found.

    Raises:
        DatasetError: If the sums differ.
    """
    passed_over, noted = PassedOver(plan.passed_over), PassedOver()
    for item in dropped:
        passed_over.add(_DROPPED, item)
    for item, note in (each for part in notes for each in part.items()):
        noted.add(note, item)
    account = Account(
        found=plan.images + plan.passed_over.total,
        read=sum(entry.rows for entries in splits.values() for entry in entries),
        passed_over=_counted(passed_over),
        notes=_counted(noted),
        duplicates=duplicates,
    )
    if account.read + len(refused) + passed_over.total != account.found:
        raise DatasetError(
            f"{account.found} found, but {account.read} read, {len(refused)} refused, {passed_over.total} passed over"
        )
    return account


def _counted(passed_over: PassedOver) -> dict[str, Counted]:
    return {reason: Counted(number=number, examples=examples) for reason, (number, examples) in passed_over.items()}

"""The classes of a data set, which its splits must share."""

from collections.abc import Mapping, Set
from pathlib import Path

from adios_ray.data.sources.passed_over import first_of
from adios_ray.errors import DatasetError


def check_shared(root: Path | str, found: Mapping[str, Set[str]], allow_missing: bool | None) -> None:
    """Check that each split has all classes.

    Args:
        root: Where the data set is, for the message.
        found: Names of the classes of each split.
        allow_missing: Whether splits other than train may lack classes; None if no option allows it.

    Raises:
        DatasetError: If a split lacks a class that another one has, with each class named once.
    """
    known = {name for names in found.values() for name in names}
    lacking = {split: sorted(known - names) for split, names in found.items() if known - names}
    if allow_missing:
        lacking = {split: names for split, names in lacking.items() if split == "train"}
    if lacking:
        missing = "; ".join(f"{split} has no images of {first_of(names)}" for split, names in lacking.items())
        optional = allow_missing is False and "train" not in lacking
        otherwise = ", or accept splits without it with --allow-missing-classes" if optional else ""
        raise DatasetError(f"{root}: {missing}: add some, or remove the class{otherwise}")

"""Files of many images, and the split that the name of each says."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from adios_ray.data.image_formats import EXTENSIONS
from adios_ray.data.sources.base import UNLABELED
from adios_ray.data.sources.passed_over import PassedOver, first_of
from adios_ray.errors import DatasetError
from adios_ray.store import Location, Store, as_text, split_location

HIDDEN = "hidden, by a name that begins with a dot or an underscore"
METADATA = "metadata"
PARALLEL_READS = 8

_WORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    UNLABELED: ("unlabeled", "unlabelled", "unsupervised"),
}
"""Words for each split, as the Hugging Face libraries look for them."""
SPLIT_NAMES: Mapping[str, str] = {word: split for split, words in _WORDS.items() for word in words}
"""Split by a word in the name of a file or folder, in lower case."""

_Result = TypeVar("_Result")


class SplitFiles(NamedTuple):
    """What was found at a place.

    Attributes:
        store: The place.
        files: Split of each file of images, by its name, in the order of the names.
        others: The other files by name, each with the reason why it is passed over; None for those that are read.
    """

    store: Store
    files: Mapping[str, str]
    others: Mapping[str, str | None]

    def passed_over(self, linked: Set[str] = frozenset()) -> PassedOver:
        """Account for the files that are not read; ``linked`` are read all the same, as a file of images names them."""
        passed_over = PassedOver()
        for name, reason in self.others.items():
            if reason is not None and name not in linked:
                passed_over.add(reason, name)
        return passed_over


def find(
    root: Location, ending: str, beside: Iterable[str] = (), compressed: re.Pattern[str] | None = None
) -> SplitFiles:
    """Find the files with an ending below a place, or take a single file.

    A file's split is the one that its name or a folder says; if none says any, all files are train.

    Args:
        root: Directory, file or URI of either.
        ending: Ending of the files, in lower case.
        beside: Base names of other files that the source reads.
        compressed: Names of compressed files, which cannot be read by position.

    Raises:
        DatasetError: If there is no such file, one is compressed, only some names say a split, or one says two.
    """
    store, names = _listed(root, ending)
    if packed := [name for name in (str(root), *names) if compressed and compressed.search(name)]:
        raise DatasetError(f"{packed[0]} is compressed, but images are read by position: decompress it")
    chosen: list[str] = []
    others: dict[str, str | None] = {}
    for name in (as_text(name, DatasetError) for name in names):
        if name.rpartition("/")[2].lower() in beside:
            others[name] = None
        elif reason := _reason(name, ending):
            others[name] = reason
        else:
            chosen.append(name)
    if not chosen:
        raise DatasetError(f"{root} has no {ending} files")
    return SplitFiles(store, _splits(chosen, store), others)


def _listed(root: Location, ending: str) -> tuple[Store, list[str]]:
    """List the files below a place; where it is a file by itself, that alone, in its folder."""
    store = Store(root)
    try:
        return _single(store, ending) or (store, store.find())
    except Exception as error:  # each protocol has errors of its own
        raise DatasetError(f"{store} cannot be listed: {type(error).__name__}: {error}") from error


def _single(store: Store, ending: str) -> tuple[Store, list[str]] | None:
    """Return the folder and the name of a place that is a file with an ending; None if it is none."""
    whole = str(store)
    if not whole.lower().endswith(ending) or "/" not in whole.rpartition("://")[2]:  # a bucket is no file
        return None
    location, name = split_location(whole)
    folder = Store(location)
    is_file = folder.size(name) is not None if store.local is None else store.local.is_file()
    return (folder, [name]) if is_file else None


def _reason(name: str, ending: str) -> str | None:
    """Say why a file is passed over; None if it is one to read."""
    if any(part.startswith((".", "_")) for part in name.split("/")):
        return HIDDEN
    lower = name.lower()
    if not lower.endswith(ending):
        return f"an image outside the {ending} files" if lower.endswith(EXTENSIONS) else f"not a {ending} file"
    return METADATA if "metadata" in _words(lower.rpartition("/")[2]) else None


def _words(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def splits_in(name: str) -> set[str]:
    """Return the splits that the words of a name say."""
    return {SPLIT_NAMES[word] for word in _words(name) if word in SPLIT_NAMES}


def _splits(names: Sequence[str], store: Store) -> dict[str, str]:
    said = {name: sorted(splits_in(name)) for name in names}
    if several := [name for name, splits in said.items() if len(splits) > 1]:
        raise DatasetError(f"{several[0]} in {store} may be {' or '.join(said[several[0]])}: rename it")
    if not any(said.values()):
        return dict.fromkeys(names, "train")
    if silent := [name for name, splits in said.items() if not splits]:
        raise DatasetError(
            f"{len(silent)} of {len(names)} files in {store} do not say their split, though others do: "
            f"{first_of(silent)}; rename or move them (train-*, validation-*, test-*, or folders of these names)"
        )
    return {name: splits[0] for name, splits in said.items()}


def read_all(files: Iterable[str], read: Callable[[str], _Result]) -> Iterator[_Result]:
    """Read files in parallel, as remote ones need it; the results come in their order."""
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        yield from pool.map(read, files)

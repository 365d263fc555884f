"""Folders of image files, one folder a class: the layout that torchvision calls ImageFolder."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from adios_ray.data.sources.base import NO_LABEL, UNLABELED
from adios_ray.data.sources.image_files import EXTENSIONS, ImageFiles
from adios_ray.errors import DatasetError

ByClass = Mapping[str, Sequence[str]]
"""Items of each class folder."""

_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def source(root: Path) -> ImageFiles:
    """Read the images below a folder: ``root/<split>/<class>/*``, ``root/<class>/*`` or ``root/*``.

    Split folders are train, val (or validation), test and unlabeled; without a folder train, all images are train.
    Images may be at any depth below a class folder. Classes are sorted by name. Images without class folders share the
    one class "unlabeled". Names that begin with a dot are ignored.

    Raises:
        DatasetError: If the splits differ in their classes, or the folder cannot be used.
    """
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder")
    has_splits = (root / "train").is_dir()
    folders = _split_folders(root) if has_splits else {"train": root}
    tree = {split: by_class(folder, root) for split, folder in folders.items()}
    if empty := [str(folders[split]) for split, found in tree.items() if not found]:
        raise DatasetError(f"no images in {', '.join(empty)} (looked for {' '.join(EXTENSIONS)})")
    # Without split folders, a folder of this name is a class like any other.
    unlabeled = [root / name for name in (UNLABELED, "unlabelled") if has_splits and (root / name).is_dir()]
    return of_classes(root, tree, sorted(chain.from_iterable(images(folder, root) for folder in unlabeled)))


def of_classes(root: Path, tree: Mapping[str, ByClass], unlabeled: Sequence[str] = ()) -> ImageFiles:
    """Make a source from the items of each class in each split, as paths relative to ``root``.

    Raises:
        DatasetError: If the splits differ in their classes.
    """
    classes = _common_classes(root, tree)
    labels = _labels(tree, {name: label for label, name in enumerate(classes)})
    splits = {split: sorted(chain.from_iterable(found.values())) for split, found in tree.items()}
    if unlabeled:
        labels |= {_folder(item): NO_LABEL for item in unlabeled}
        splits[UNLABELED] = list(unlabeled)
    return ImageFiles(root=root.absolute(), classes=classes, items=splits, labels=labels)


def _labels(tree: Mapping[str, ByClass], numbers: Mapping[str, int]) -> dict[str, int]:
    """Map each folder of images to its label, or each image where several classes share a folder."""
    # By folder where possible: the mapping is sent to every worker, and there may be millions of images.
    pairs = [(item, numbers[name]) for found in tree.values() for name, items in found.items() for item in items]
    classes: dict[str, set[int]] = {}
    for item, label in pairs:
        classes.setdefault(_folder(item), set()).add(label)
    return {item if len(classes[_folder(item)]) > 1 else _folder(item): label for item, label in pairs}


def _folder(item: str) -> str:
    return item.rpartition("/")[0]


def _common_classes(root: Path, tree: Mapping[str, ByClass]) -> tuple[str, ...]:
    """Return the sorted classes, or raise a DatasetError if the splits differ in theirs."""
    splits = Counter(name for found in tree.values() for name in found)
    if odd := {name for name, count in splits.items() if count < len(tree)}:
        having = "; ".join(
            f"{split} has {', '.join(sorted(odd & found.keys())[:5]) or 'none of them'}"
            for split, found in tree.items()
            for split, found in tree.items()
        )
        raise DatasetError(f"{len(odd)} class folders of {root} are not in every split: {having}")
    return tuple(sorted(splits))


def _split_folders(root: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for name, split in _SPLITS.items():
        if (root / name).is_dir() and folders.setdefault(split, root / name) != root / name:
            raise DatasetError(f"{root} has both val and validation; remove or rename one of them")
    return folders


def by_class(folder: Path, root: Path) -> dict[str, list[str]]:
    """List the images of each class folder; without class folders, list all images as the class "unlabeled".

    Raises:
        DatasetError: If there are images beside class folders, or a name is not UTF-8.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    found = {name: list(images(folder / name, root)) for name in names}
    found = {name: items for name, items in found.items() if items}
    loose = list(images(folder, root, depth=0))
    if loose and found:
        raise DatasetError(f"{folder} has both class folders and images beside them, such as {loose[0]}")
    return {UNLABELED: loose} if loose else found


def images(folder: Path, root: Path, depth: int | None = None) -> Iterator[str]:
    """Yield the images in a folder and, unless ``depth`` is 0, below it, as paths relative to the root.

    Raises:
        DatasetError: If a name is not UTF-8.
    """
    for directory, folders, files in os.walk(folder):
        # In place: os.walk descends only into the folders that are left in its own list.
        folders[:] = [] if depth == 0 else [name for name in folders if not name.startswith(".")]
        prefix = Path(directory).relative_to(root).as_posix()
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield _as_text(name if prefix == "." else f"{prefix}/{name}")


def _as_text(item: str) -> str:
    try:
        item.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"the file name {os.fsencode(item)!r} is not UTF-8; rename the file") from None
    return item

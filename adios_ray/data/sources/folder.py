"""Folders of image files, one folder a class: the layout that torchvision calls ImageFolder."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from adios_ray.config import FolderLayout
from adios_ray.data.image_formats import EXTENSIONS
from adios_ray.data.sources.base import NO_LABEL, UNLABELED
from adios_ray.data.sources.classes import check_shared
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.data.sources.passed_over import PassedOver, first_of
from adios_ray.data.sources.split_files import SPLIT_NAMES, splits_in
from adios_ray.data.sources.walk import Walk, walk
from adios_ray.data.splits import folder_of
from adios_ray.errors import DatasetError

ByClass = Mapping[str, Sequence[str]]
"""Items of each class."""

OUTSIDE = "outside the layout"


def source(root: Path | str, layout: FolderLayout | None = None, allow_missing_classes: bool = False) -> ImageFiles:
    """Read images below a folder: ``root/<split>/<class>/*``, ``root/<class>/*`` or ``root/*``.

    Split folders are called train, val, test or unlabeled, or as in ``SPLIT_NAMES``, in any letter case. Below a class
    folder images may be at any depth. Classes are sorted by name, in Unicode's composed form. Images without class
    folders share the one class "unlabeled".

    Args:
        root: The folder, or a URI.
        layout: What the folders of ``root`` are: splits, classes, or nothing ("flat"). None decides by their names.
        allow_missing_classes: Whether val and test may lack classes that train has.

    Raises:
        DatasetError: If the layout can be read in two ways, the splits differ in their classes, or the folder cannot be
            used.
    """
    if isinstance(root, Path) and not root.is_dir():
        raise DatasetError(f"{root} is not a folder")
    found = walk(root)
    if not found.images:
        others = f"; passed over: {found.passed_over.text()}" if found.passed_over else ""
        raise DatasetError(
            f"no images in {root} (looked for {' '.join(EXTENSIONS)}, and into files with other endings){others}"
        )
    folders = by_folder(found.images)
    layout = layout or _understood(root, folders)
    if layout == "flat":
        return of_classes(root, {"train": {UNLABELED: found.images}}, found)
    if layout == "classes":
        for item in folders.pop("", ()):
            found.passed_over.add(OUTSIDE, item)
        return of_classes(root, {"train": _merged(folders)}, found)
    splits = _split_folders(root, folders, found.passed_over)
    unlabeled = splits.pop(UNLABELED, [])
    tree = {split: _classes_of(root, split, items) for split, items in splits.items()}
    return of_classes(root, tree, found, unlabeled, allow_missing_classes)


def by_folder(items: Iterable[str], depth: int = 0) -> dict[str, list[str]]:
    """Group items by the folder at a depth; those that are not in such a folder are under ""."""
    folders: dict[str, list[str]] = defaultdict(list)
    for item in items:
        parts = item.split("/", depth + 1)
        folders[parts[depth] if len(parts) > depth + 1 else ""].append(item)
    return dict(folders)


def _understood(root: Path | str, folders: Mapping[str, Sequence[str]]) -> FolderLayout:
    """Tell what the folders of ``root`` are by their names.

    Raises:
        DatasetError: If there are two ways to read them, with both and the option that chooses.
    """
    names = sorted(name for name in folders if name)
    splits = [name for name in names if name.casefold() in SPLIT_NAMES]
    others = [name for name in names if name not in splits]
    loose = folders.get("", ())
    if splits and others:
        raise DatasetError(
            f"{root} can be read in two ways: {first_of(splits)} may be splits beside {first_of(others)}, which would "
            "be left out (--layout splits), or all of them are classes (--layout classes)"
        )
    image = first_of(loose[:1])
    if splits:
        if loose:
            raise DatasetError(
                f"{root} has images such as {image} beside the folders {first_of(splits)}: these are splits "
                "and the images would be left out (--layout splits), or all images belong together (--layout flat)"
            )
        return "splits"
    if not others:
        return "flat"
    if loose:
        raise DatasetError(
            f"{root} has both class folders ({first_of(others)}) and images beside them, such as {image}: leave "
            "these out (--layout classes), or take all images as one class (--layout flat)"
        )
    _check_depth(root, others[0] if len(others) == 1 else "", folders)
    _check_no_splits(root, others, folders)
    return "classes"


def _check_no_splits(root: Path | str, names: Sequence[str], folders: Mapping[str, Sequence[str]]) -> None:
    """Refuse folders that may be splits by a part of their names, and classes that are parted into splits."""
    if len({split for name in names for split in splits_in(name)}) > 1:
        raise DatasetError(
            f"{root} can be read in two ways: {first_of(names)} may be splits, by words in their names (call them "
            "train, val and test), or classes (--layout classes)"
        )
    inner = {folder for name in names for folder in by_folder(folders[name], depth=1)}
    if len(inner) > 1 and all(folder.casefold() in SPLIT_NAMES for folder in inner):
        raise DatasetError(
            f"{root} can be read in two ways: {first_of(sorted(inner))} in {first_of(names)} may be splits (which come "
            f"first: {min(inner)}/{names[0]}), or all images of a class belong together (--layout classes)"
        )


def _check_depth(root: Path | str, only: str, folders: Mapping[str, Sequence[str]]) -> None:
    """Refuse a single folder that holds nothing but folders, as archives make it when they are unpacked."""
    if only and "" not in (inner := by_folder(folders[only], depth=1)):
        raise DatasetError(
            f"{root} holds one folder, {only}, with {first_of(sorted(inner))} in it: either it is one level too many "
            f"(--source {root}/{only}), or {only} is the only class (--layout classes)"
        )


def _split_folders(
    root: Path | str, folders: Mapping[str, Sequence[str]], passed_over: PassedOver
) -> dict[str, Sequence[str]]:
    """List the items of each split; what is in no split folder is passed over.

    Raises:
        DatasetError: If two folders are the same split, or there is no train.
    """
    names: dict[str, str] = {}
    splits: dict[str, Sequence[str]] = {}
    for name, items in sorted(folders.items()):
        split = SPLIT_NAMES.get(name.casefold())
        if split is None:
            for item in items:
                passed_over.add(OUTSIDE, item)
        elif other := names.get(split):
            raise DatasetError(f"{root} has both {other} and {name}, which are the same split: rename or remove one")
        else:
            names[split], splits[split] = name, items
    folders_there = root.iterdir() if isinstance(root, Path) else ()
    if empty := sorted(str(path) for path in folders_there if _is_empty_split(path, names.values())):
        raise DatasetError(f"no images in {first_of(empty)}")
    if "train" not in splits:
        others = f", only {first_of(sorted(names.values()))}" if names else ""
        raise DatasetError(
            f"{root} has no folder called train{others}: add it, or take the folders as classes (--layout classes)"
        )
    return splits


def _is_empty_split(path: Path, used: Collection[str]) -> bool:
    return path.name.casefold() in SPLIT_NAMES and path.name not in used and path.is_dir()


def _classes_of(root: Path | str, split: str, items: Sequence[str], depth: int = 1) -> dict[str, list[str]]:
    """List the items by class folder of a split, ``depth`` below ``root``; without class folders, as one class.

    Raises:
        DatasetError: If there are images beside class folders.
    """
    folders = by_folder(items, depth)
    if loose := folders.pop("", []):
        if folders:
            raise DatasetError(
                f"{root}: {split} has both class folders and images beside them, such as {first_of(loose[:1])}"
            )
        return {UNLABELED: loose}
    return _merged(folders)


def images(folder: Path, root: Path) -> list[str]:
    """List the images below a folder, as paths relative to ``root``; none where there is no such folder.

    Raises:
        DatasetError: If a folder cannot be read.
    """
    if not folder.is_dir():
        return []
    prefix = folder.relative_to(root).as_posix()
    return [item if prefix == "." else f"{prefix}/{item}" for item in walk(folder).images]


def by_class(folder: Path, root: Path) -> dict[str, list[str]]:
    """Group the images below a folder by its class folders, as paths relative to ``root``.

    Raises:
        DatasetError: If there are images beside class folders, or a folder cannot be read.
    """
    return _classes_of(root, str(folder), images(folder, root), depth=len(folder.relative_to(root).parts))


def of_classes(
    root: Path | str,
    tree: Mapping[str, ByClass],
    found: Walk | None = None,
    unlabeled: Sequence[str] = (),
    allow_missing_classes: bool | None = None,
    described_in: Sequence[Path] = (),
) -> ImageFiles:
    """Make a source of the items of each class of each split, paths relative to ``root``.

    Args:
        root: The folder of the images.
        tree: Items of each class of each split.
        found: All files below ``root``, those outside the layout already passed over; None looks for them.
        unlabeled: Items of the unlabeled split.
        allow_missing_classes: Whether val and test may lack classes that train has; None if no option allows it.
        described_in: Files that the classes of the items were read from.

    Raises:
        DatasetError: If the splits differ in their classes, or an item is of two.
    """
    check_shared(root, {split: by_name.keys() for split, by_name in tree.items()}, allow_missing_classes)
    classes = tuple(sorted({*chain.from_iterable(tree.values())}))
    labels = _labels(root, tree, classes)
    splits = {split: sorted(chain.from_iterable(found.values())) for split, found in tree.items()}
    if unlabeled:
        labels |= {folder_of(item): NO_LABEL for item in unlabeled}
        splits[UNLABELED] = sorted(unlabeled)
    items = set(chain.from_iterable(splits.values()))
    if found is None:
        found = walk(root)
        for item in found.images:
            if item not in items:
                found.passed_over.add(OUTSIDE, item)
        items &= set(found.images)  # a list of images may name some that are not there; they are refused later
    if len(items) + found.passed_over.total != found.found:
        raise AssertionError(f"{root}: {found.found} files, {len(items)} images, {found.passed_over.total} passed over")
    parts: dict[str, Any] = {"classes": classes, "items": splits, "labels": labels, "passed_over": found.passed_over}
    if found.empty:
        parts["notes"] = (f"empty folders: {first_of(sorted(found.empty))}",)
    if isinstance(root, Path):
        names = tuple(Path(os.path.relpath(path, root)).as_posix() for path in described_in)
        return ImageFiles(root=root.absolute(), described_in=names, **parts)
    return ImageFiles(uri=root, **parts)


def _labels(root: Path | str, tree: Mapping[str, ByClass], classes: Sequence[str]) -> dict[str, int]:
    """Map each folder of images to its label, or each image where several classes share a folder.

    Raises:
        DatasetError: If an image is of two classes.
    """
    numbers = {name: label for label, name in enumerate(classes)}
    labels: dict[str, int] = {}
    of_folder: dict[str, set[int]] = {}
    for name, items in chain.from_iterable(found.items() for found in tree.values()):
        for item in items:
            if (label := labels.setdefault(item, numbers[name])) != numbers[name]:
                raise DatasetError(f"{root}: {item} is listed as {classes[label]} and as {name}: remove one of them")
            of_folder.setdefault(folder_of(item), set()).add(label)
    # By folder where possible: the mapping is sent to every worker, and there may be millions of images.
    return {item if len(of_folder[folder_of(item)]) > 1 else folder_of(item): label for item, label in labels.items()}


def _merged(folders: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Merge items by class name in composed form, in which names of different file systems are compared."""
    classes: dict[str, list[str]] = defaultdict(list)
    for name, items in folders.items():
        classes[unicodedata.normalize("NFC", name)].extend(items)
    return dict(classes)

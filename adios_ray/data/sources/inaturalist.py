"""The iNaturalist competitions of 2017, 2018 and 2021: JSON annotations and folders of photographs."""

import json
from pathlib import Path
from typing import Any

from adios_ray.data.sources.base import listed
from adios_ray.data.sources.folder import by_class, of_classes
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.errors import DatasetError


def source(root: Path) -> ImageFiles:
    """Read a folder that contains ``train*.json``, ``val*.json`` and the image folders that they name.

    Without annotations, the folders that torchvision makes are read: ``2021_train`` or ``2021_train_mini``, and
    ``2021_valid``, with one folder per species. The validation images become the test split.

    Raises:
        DatasetError: If neither layout is found, or the annotations are inconsistent.
    """
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder")
    patterns = {"train": ("train*.json", "2021_train*"), "test": ("val*.json", "2021_valid")}
    annotations = {split: sorted(root.glob(pattern)) for split, (pattern, _) in patterns.items()}
    if any(annotations.values()):
        return _annotated(root, {split: _only(root, patterns[split][0], found) for split, found in annotations.items()})
    folders = {split: _only(root, pattern, sorted(root.glob(pattern))) for split, (_, pattern) in patterns.items()}
    return of_classes(root, {split: by_class(path, root) for split, path in folders.items()})


def _only(root: Path, pattern: str, found: list[Path]) -> Path:
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DatasetError(f"{root} must hold one {pattern}; it has {names}")
    return found[0]


def _annotated(root: Path, files: dict[str, Path]) -> ImageFiles:
    """Read the annotated images by category."""
    tree = {split: _by_category(path) for split, path in files.items()}
    # A category without images in one split still is a class of all of them.
    known = sorted({name for found in tree.values() for name in found})
    tree = {split: {name: found.get(name, []) for name in known} for split, found in tree.items()}
    return of_classes(root, tree, described_in=tuple(files.values()))


def _by_category(path: Path) -> dict[str, list[str]]:
    """Read the paths of the images of each category, whose number precedes its name: two kingdoms share names.

    Raises:
        DatasetError: If the file is not in the format of the competitions, or inconsistent.
    """
    content = _read(path)
    try:
        # As text: some programs write identifiers as numbers, others as text.
        names = {str(each["id"]): f"{str(each['id']):0>5} {each['name']}" for each in content["categories"]}
        paths = {str(each["id"]): listed(str(each["file_name"]), path) for each in content["images"]}
        annotated = [(str(each["category_id"]), str(each["image_id"])) for each in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not in the format of iNaturalist: {type(error).__name__}: {error}") from None
    found: dict[str, list[str]] = {}
    for category, image in annotated:
        if category not in names or image not in paths:
            unlisted = category if category not in names else image
            raise DatasetError(f"{path} annotates {unlisted}, which it does not list")
        found.setdefault(names[category], []).append(paths[image])
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or {"images", "annotations", "categories"} - content.keys():
        raise DatasetError(f"{path} does not hold images, annotations and categories")
    return content

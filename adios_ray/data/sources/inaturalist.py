"""The iNaturalist competitions of 2017, 2018 and 2021: JSON annotations and folders of photographs."""

import json
from pathlib import Path
from typing import Any

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
    """Read the annotated images by category; its number precedes its name, as species of two kingdoms share names."""
    tree: dict[str, dict[str, list[str]]] = {}
    for split, path in files.items():
        content = _read(path)
        names = {category["id"]: f"{category['id']:05d} {category['name']}" for category in content["categories"]}
        paths = {image["id"]: image["file_name"] for image in content["images"]}
        tree[split] = {}
        for annotation in content["annotations"]:
            try:
                name, item = names[annotation["category_id"]], paths[annotation["image_id"]]
            except KeyError as error:
                raise DatasetError(f"{path} annotates {error.args[0]}, which it does not list") from None
            tree[split].setdefault(name, []).append(item)
    # A category without images in one split still is a class of all of them.
    known = sorted({name for found in tree.values() for name in found})
    tree = {split: {name: found.get(name, []) for name in known} for split, found in tree.items()}
    return of_classes(root, tree, described_in=tuple(files.values()))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or {"images", "annotations", "categories"} - content.keys():
        raise DatasetError(f"{path} does not hold images, annotations and categories")
    return content

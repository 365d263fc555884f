"""Oxford Flowers-102: photographs and two .mat files."""

from pathlib import Path

from adios_ray.data.sources.folder import of_classes
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.data.sources.matlab import read_mat
from adios_ray.errors import DatasetError

FOLDER = "flowers-102"
_KEYS = {"train": "trnid", "val": "valid", "test": "tstid"}


def source(root: Path) -> ImageFiles:
    """Read Flowers-102 from a folder with ``jpg/image_00001.jpg``, ..., ``imagelabels.mat`` and ``setid.mat``.

    The splits are the authors': 1,020 images for train, 1,020 for val, 6,149 for test.

    Args:
        root: That folder, or the one that contains it as ``flowers-102``.

    Raises:
        DatasetError: If a file is missing, or the labels do not match the splits.
    """
    base = root / FOLDER if (root / FOLDER).is_dir() else root
    labels_file, splits_file = base / "imagelabels.mat", base / "setid.mat"
    if missing := [path.name for path in (base / "jpg", labels_file, splits_file) if not path.exists()]:
        raise DatasetError(f"{base} lacks {', '.join(missing)}: --source is the folder that holds them")
    labels = read_mat(labels_file, "labels")[0].tolist()
    chosen = read_mat(splits_file, *_KEYS.values())
    tree: dict[str, dict[str, list[str]]] = {}
    for split, numbers in zip(_KEYS, chosen, strict=True):
        for number in numbers.tolist():
            if not 1 <= number <= len(labels):
                raise DatasetError(f"{splits_file} names image {number}, {labels_file.name} has {len(labels)}")
            of_class = tree.setdefault(split, {}).setdefault(f"{labels[number - 1]:03d}", [])
            of_class.append(f"jpg/image_{number:05d}.jpg")
    return of_classes(base, tree, described_in=(labels_file, splits_file))

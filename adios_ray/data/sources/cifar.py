"""CIFAR-10 and CIFAR-100: the pickled batches of the release, read by a restricted unpickler that executes nothing."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from adios_ray.data.decode import square
from adios_ray.data.shards import Bytes
from adios_ray.data.sources import folder
from adios_ray.data.sources.base import SHORT_SIDE, ListedSource, Sample
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.data.sources.named import CIFAR10, CIFAR100, check_named, shortage
from adios_ray.errors import DatasetError, RefusedImageError
from adios_ray.restricted_pickle import Placeholder, RestrictedUnpickler

SIDE = 32
_SIZES = {"train": 50_000, "test": 10_000}


class _Files(NamedTuple):
    """Names of the folder, files and dictionary keys in one version of the data set."""

    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes
    title: str
    classes: tuple[str, ...]


_CIFAR10 = _Files(
    "cifar-10-batches-py", tuple(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta", b"labels",
    b"label_names", "CIFAR-10", CIFAR10,
)  # fmt: skip
_CIFAR100 = _Files(
    "cifar-100-python", ("train",), "test", "meta", b"fine_labels", b"fine_label_names", "CIFAR-100", CIFAR100
)


class Batches(ListedSource):
    """Pickled batches. Items are ``<batch>/<class>/<row>``."""

    def file_of(self, item: str) -> str:
        """Name the batch."""
        return item.partition("/")[0]

    def stratum(self, item: str) -> str:
        """Name the class."""
        return item.split("/")[1]

    def load(self, item: str, image_size: int) -> Sample:
        """Load one row of a batch, resized to ``image_size`` (bicubic).

        Raises:
            RefusedImageError: If the batch has no such row.
        """
        batch, name, row = item.split("/")
        pixels = read_batch(self.root / batch)[b"data"]
        if int(row) >= len(pixels):
            raise RefusedImageError(f"{batch} has only {len(pixels)} images")
        image = pixels[int(row)].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        pixels = square(Image.fromarray(image), image_size).pixels
        return Sample(pixels, self.classes.index(name), None, SIDE, SIDE)


def cifar10(root: Path) -> Batches | ImageFiles:
    """Read CIFAR-10 from the folder that holds ``cifar-10-batches-py``, that folder itself, or split and class folders.

    Raises:
        DatasetError: If files are missing or are not batches of CIFAR-10.
    """
    return _source(root, _CIFAR10)


def cifar100(root: Path) -> Batches | ImageFiles:
    """Read CIFAR-100 with its 100 fine classes from the folder that holds ``cifar-100-python``; else as ``cifar10``.

    Raises:
        DatasetError: If files are missing or are not batches of CIFAR-100.
    """
    return _source(root, _CIFAR100)


def _source(root: Path, files: _Files) -> Batches | ImageFiles:
    if (root / "train").is_dir():
        return check_named(folder.source(root), files.title, files.classes, _SIZES)
    base = root / files.folder if (root / files.folder).is_dir() else root
    if missing := [name for name in (*files.train, files.test, files.meta) if not (base / name).is_file()]:
        raise DatasetError(f"{base} lacks {', '.join(missing)}: --source is the folder that holds {files.folder}")
    names = read_batch(base / files.meta).get(files.names)
    if not names:
        raise DatasetError(f"{base / files.meta} does not name the classes")
    classes = tuple(name.decode() for name in names)
    splits = {"train": files.train, "test": (files.test,)}
    items = {
        split: [item for b in batches for item in _items(base / b, files, classes)] for split, batches in splits.items()
    }
    return Batches(
        root=base.absolute(),
        classes=classes,
        items=items,
        described_in=(files.meta,),
        resize=SHORT_SIDE,
        notes=shortage(items, files.title, _SIZES),
    )


def _items(path: Path, files: _Files, classes: Sequence[str]) -> list[str]:
    batch = read_batch(path)
    labels, pixels = batch.get(files.labels), batch.get(b"data")
    known = isinstance(labels, list) and all(label in range(len(classes)) for label in labels)
    if labels is None or pixels is None or not known or len(labels) != len(pixels):
        raise DatasetError(f"{path} is not a batch of {files.folder}: its images and labels do not match")
    return [f"{path.name}/{classes[label]}/{row}" for row, label in enumerate(labels)]


class _Array(Placeholder):
    """Stand-in for a NumPy array of bytes: keeps its shape and content."""

    shape: tuple[int, ...] = ()
    by_columns = False
    content = b""

    def __setstate__(self, *state: Any) -> None:
        """Take the pickled state: (version, shape, type, whether in Fortran order, content)."""
        _, self.shape, _, self.by_columns, self.content = state[0]


# The only globals that a batch may name. NumPy renamed its module in version 2; ``_codecs.encode`` is how Python 3
# writes bytes in a pickle for Python 2.
_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


@lru_cache(maxsize=6)
def read_batch(path: Path) -> dict[bytes, Any]:
    """Read the dictionary of a pickled batch; ``b"data"`` becomes uint8 [images, 3072].

    Raises:
        DatasetError: If the file is damaged or not a batch.
    """
    try:
        content = RestrictedUnpickler(path.read_bytes(), _STAND_INS, encoding="bytes").load()
        return {key: _pixels(value) if key == b"data" else value for key, value in content.items()}
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle can fail in any way; nothing in it was executed
        raise DatasetError(f"{path} is damaged or not a batch of CIFAR: {type(error).__name__}: {error}") from error


def _pixels(stored: _Array) -> Bytes:
    if stored.by_columns or stored.shape[1:] != (3 * SIDE * SIDE,):
        raise ValueError(f"its pixels are not stored as rows of {3 * SIDE * SIDE} bytes")
    return np.frombuffer(stored.content, np.uint8).reshape(stored.shape)

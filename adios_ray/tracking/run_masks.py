"""The masks that trials of a run write after an epoch: their type, reading and writing."""

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adios_ray.errors import RecordError
from adios_ray.files import atomic_write
from adios_ray.run_directory import RunDirectory

Pixels = npt.NDArray[np.uint8]

_DAMAGED_ARCHIVE = (KeyError, ValueError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile)
"""Errors that numpy raises for a damaged ``.npz``."""


@dataclass(frozen=True)
class MaskFile:
    """Masks over the run's fixed validation images, as stored."""

    images: Pixels
    """uint8 [K, S, S, 3]."""
    masks: Pixels
    """uint8 [K, N, S, S]; 0..255 stands for 0..1, and the N slots of a pixel sum to about 255."""


@contextmanager
def opened_archive(path: Path, cure: str = "") -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Open an ``.npz`` to read arrays by their names.

    Args:
        path: The file.
        cure: What to do where it is damaged, for people.

    Raises:
        RecordError: If the file is damaged, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except _DAMAGED_ARCHIVE as error:
        # Not numpy's words, which advise to load what is no archive in an unsafe way.
        raise RecordError(f"{path} is damaged: its arrays cannot be read{cure}") from error


def write_masks(run_dir: Path, trial: str, epoch: int, masks: MaskFile) -> None:
    """Write a trial's masks after an epoch.

    Raises:
        RecordError: If the trial's name is no folder name and could point outside the run directory.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=masks.images, masks=masks.masks)
    path = RunDirectory(run_dir).masks(trial, epoch)
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, buffer.getvalue())


def mask_epochs(run_dir: Path, trial: str) -> list[int]:
    """List the epochs at which a trial's masks were written, ascending; empty if its name is no folder name."""
    try:
        return list(RunDirectory(run_dir).stored_masks(trial))
    except RecordError:
        return []


def read_masks(run_dir: Path, trial: str, epoch: int) -> MaskFile:
    """Read the masks of a trial at an epoch.

    Raises:
        FileNotFoundError: If none were written.
        RecordError: If the file is no archive of uint8 images and masks of matching shapes.
    """
    path = RunDirectory(run_dir).stored_masks(trial).get(epoch)
    if path is None:
        raise FileNotFoundError(f"{run_dir} has no masks of {trial} at epoch {epoch}")
    with opened_archive(path) as arrays:
        images, masks = arrays["images"], arrays["masks"]
    fits = images.ndim == masks.ndim == 4 and images.shape == (len(masks), *masks.shape[2:], 3)
    if not fits or images.dtype != np.uint8 or masks.dtype != np.uint8:
        raise RecordError(
            f"{path}: images {images.shape} {images.dtype} and masks {masks.shape} {masks.dtype}, "
            "expected uint8 [K, S, S, 3] and [K, N, S, S]"
        )
    return MaskFile(images, masks)

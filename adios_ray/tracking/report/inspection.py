"""Features that the best weights give some validation images and their masked versions, computed once.

The result is kept in the run directory, so that reports of a running run can show it without computing anything.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from adios_ray.errors import RecordError
from adios_ray.files import atomic_write
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.run_masks import Pixels, opened_archive
from adios_ray.validation import parse_json

MOST_IMAGES = 10_000
"""Most validation images to inspect: similarities of all pairs take memory with their square."""
VERSION = 2
"""Version of the computation; results that an earlier version kept are computed again."""
THUMBNAIL = 48
"""Largest side of the pictures of all images."""
PICKED = 6
"""Images that masks hurt most, and as many that they hurt least, that are drawn large."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class InspectionInfo(BaseModel):
    """Subject of an inspection."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    trial: str
    epoch: str
    """Name of the checkpoint."""
    weights_sha256: str
    """Checksum of the checkpoint; with ``images`` and ``version``, the key of the kept result."""
    images: int
    """Validation images that were asked for."""
    version: int = 1
    """Version of the computation."""
    data_sha256: str
    classes: list[str]
    """Names of the classes; empty without labels, or with several for an image."""
    projection: str
    """How features became points: PCA or UMAP."""
    explained: float
    """Share of the variance of features that the points have; 0 for UMAP."""
    rank: float
    """Effective rank of the features."""


@dataclass(frozen=True)
class Inspection:
    """Features of M validation images, in numbers and pictures; N slots, 0 without a learned mask.

    Attributes:
        info: What it is of.
        thumbnails: uint8 [M, T, T, 3].
        labels: Class of each image, int64 [M]; -1 without.
        predicted: Class by the neighbors' votes, int64 [M]; -1 without labels.
        points: Projected features, float32 [M, 2].
        masked_points: Projected features of masked versions of the first images, float32 [m, N, 2].
        harm: Cosine distance between features of the image and of each masked version, float32 [M, N].
        neighbors: The nearest other images of the first ones, int64 [Q, 4].
        slot_neighbors: The same by what each slot shows, int64 [Q, N, 4].
        spectrum: Eigenvalues of the features' covariance, descending, float32 [min(M, F)].
        picked: Images that masks hurt most, most first, then those that they hurt least, int64 [P].
        picked_images: uint8 [P, S, S, 3].
        picked_masks: uint8 [P, N, S, S].
    """

    info: InspectionInfo
    thumbnails: Pixels
    labels: Integers
    predicted: Integers
    points: Floats
    masked_points: Floats
    harm: Floats
    neighbors: Integers
    slot_neighbors: Integers
    spectrum: Floats
    picked: Integers
    picked_images: Pixels
    picked_masks: Pixels


def read_inspection(run_dir: Path) -> Inspection | None:
    """Read the kept result; None without one.

    Raises:
        RecordError: If the file is damaged.
    """
    path = RunDirectory(run_dir).inspection
    if not path.exists():
        return None
    names = [field.name for field in fields(Inspection) if field.name != "info"]
    with opened_archive(path, "; remove it, it is computed again") as arrays:
        info = parse_json(InspectionInfo, arrays["info"].tobytes(), str(path), RecordError)
        return Inspection(info, **{name: arrays[name] for name in names})


def inspect_best(run: RunData, images: int, say: Callable[[str], None]) -> None:
    """Inspect the newest checkpoint of the best trial, and keep the result; nothing if it is kept already.

    Args:
        run: The run.
        images: Validation images to use, spread evenly, 2 to ``MOST_IMAGES``.
        say: Is told what is being done, or why nothing can be.

    Raises:
        CheckpointError: If the checkpoint does not fit its configuration.
    """
    # Here: a report without features needs no torch.
    from adios_ray.checkpoints import newest_intact
    from adios_ray.data.shards import open_shards
    from adios_ray.errors import DatasetError
    from adios_ray.evaluation.subject import build_subject, opened
    from adios_ray.models.weights import averaged, load_weights
    from adios_ray.tracking.report.inspection_measurements import measure

    if run.best is None:
        return
    trial, kept = run.best[0], read_inspection(run.path)
    pointer = newest_intact(RunDirectory(run.path).checkpoints / trial)
    if pointer is None:
        return say(f"no features: {trial} has no intact checkpoint")
    key = {"weights_sha256": pointer.sha256, "images": images, "version": VERSION}
    if kept is not None and kept.info.model_dump(include=set(key)) == key:
        return None
    weights = load_weights(pointer.path)
    if weights.config.evaluation.average_weights:  # those that were scored
        weights = averaged(weights)
    location = str((run.config or {}).get("data_dir") or weights.config.data_dir)
    try:
        dataset = open_shards(location)
        dataset.split("train", "val")
    except DatasetError as error:
        return say(f"no features: {error}")
    say(f"features of {min(images, len(dataset.split('val')))} validation images from {pointer.path} ...")
    with opened(build_subject(weights, dataset, split="val")) as subject:
        found = {
            "trial": trial,
            "epoch": pointer.path.name,
            **key,
            "data_sha256": dataset.manifest.checksum,
        }
        _write(RunDirectory(run.path).inspection, *measure(subject, images), found)
    return None


def _write(path: Path, arrays: dict[str, Any], measured: dict[str, Any], found: dict[str, Any]) -> None:
    info = InspectionInfo(**found, **measured).model_dump_json().encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, info=np.frombuffer(info, dtype=np.uint8), **arrays)
    atomic_write(path, buffer.getvalue())

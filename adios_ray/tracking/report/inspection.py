"""Features that the best weights give some validation images and their masked versions, computed once.

The result is kept in the run directory, so that reports of a running run can show it without computing anything.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from adios_ray.errors import RecordError
from adios_ray.files import atomic_write
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.run_masks import Pixels, opened_archive
from adios_ray.validation import parse_json

if TYPE_CHECKING:  # a report without features needs no torch
    from torch import Tensor

    from adios_ray.evaluation.subject import Subject

MOST_IMAGES = 10_000
VERSION = 2
"""Version of the computation; results that an earlier version kept are computed again."""
"""Most validation images to inspect: similarities of all pairs take memory with their square."""
BANK = 2000
"""Training images that vote."""
MASKED = 100
"""Images whose masked versions are on the map."""
THUMBNAIL = 48
"""Largest side of the pictures of all images."""
PICKED, QUERIES, NEAREST = 6, 5, 4
"""Images that masks hurt most, and least, that are drawn large; images whose neighbors are shown, and how many."""

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
    from adios_ray.checkpoints import newest_intact
    from adios_ray.data.shards import open_shards
    from adios_ray.errors import DatasetError
    from adios_ray.evaluation.subject import build_subject, opened
    from adios_ray.models.weights import averaged, load_weights

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
        _write(RunDirectory(run.path).inspection, *_inspect(subject, images), found)
    return None


def _write(path: Path, arrays: dict[str, Any], measured: dict[str, Any], found: dict[str, Any]) -> None:
    info = InspectionInfo(**found, **measured).model_dump_json().encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, info=np.frombuffer(info, dtype=np.uint8), **arrays)
    atomic_write(path, buffer.getvalue())


def _inspect(subject: "Subject", images: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute the arrays of an ``Inspection``, and what its ``info`` measures."""
    import torch

    from adios_ray.data.augment import denormalize
    from adios_ray.data.loader import central_views
    from adios_ray.evaluation.label_free import effective_rank
    from adios_ray.masking.fill import hide

    held_out, networks = subject.held_out, subject.networks
    chosen = held_out.spread(images)
    views = central_views(held_out, chosen, subject.image_size, subject.device, subject.view)
    networks.eval()
    with torch.no_grad():
        whole = _features(subject, views)
        slots = networks.occlusion.slots if networks.occlusion is not None else 0
        masks, fill = _masks(subject, views), _fill(subject, views)
        # A version at a time: all N at once are N times the memory.
        hidden = [_features(subject, hide(views, masks[:, k : k + 1], fill)) for k in range(slots)]
        shown = [_features(subject, hide(views, 1 - masks[:, k : k + 1], fill)) for k in range(slots)]
    unit = torch.nn.functional.normalize(whole, dim=1)
    harm = (
        torch.stack([1 - (unit * torch.nn.functional.normalize(f, dim=1)).sum(1) for f in hidden], 1) if slots else None
    )
    harmed = np.zeros((len(chosen), 0), np.float32) if harm is None else harm.cpu().numpy()
    order = np.argsort(-harmed.mean(axis=1), kind="stable") if slots else np.arange(0)
    picked = np.concatenate([order[:PICKED], order[::-1][:PICKED]])
    several = torch.stack(hidden, 1)[:MASKED] if slots else whole.new_zeros(0, 0, whole.shape[1])
    points, masked_points, projection, explained = _projected(whole.cpu().numpy(), several.cpu().numpy())
    labels, predicted, classes = _classified(subject, chosen, whole)
    pictures = denormalize(views).cpu().numpy()
    slot_neighbors = [_nearest(features)[:QUERIES] for features in shown]
    values = torch.linalg.svdvals((whole - whole.mean(0)).double()) ** 2 / max(len(whole) - 1, 1)
    queries = min(QUERIES, len(chosen))
    arrays = {
        "thumbnails": _reduced(pictures),
        "labels": labels,
        "predicted": predicted,
        "points": points,
        "masked_points": masked_points,
        "harm": harmed.astype(np.float32),
        "neighbors": _nearest(whole)[:QUERIES],
        "slot_neighbors": np.stack(slot_neighbors, 1) if slots else np.zeros((queries, 0, 0), np.int64),
        "spectrum": values.float().cpu().numpy(),
        "picked": picked,
        "picked_images": pictures[picked],
        "picked_masks": torch.round(255 * masks[picked]).to(torch.uint8).cpu().numpy(),
    }
    measured = {
        "classes": classes,
        "projection": projection,
        "explained": explained,
        "rank": effective_rank(whole),
    }
    return arrays, measured


def _masks(subject: "Subject", views: "Tensor") -> "Tensor":
    """Mask the views, [M, N, S, S]; N is 0 without an occlusion model."""
    import torch

    from adios_ray.evaluation.extraction import BATCH

    occlusion = subject.networks.occlusion
    if occlusion is None:
        return views[:, :0]
    return torch.cat([occlusion(part) for part in views.split(BATCH)])


def _fill(subject: "Subject", views: "Tensor") -> "Tensor | None":
    """Make what hidden pixels of the views become, [M, 3, S, S], as in training; None makes them 0."""
    import torch

    from adios_ray.evaluation.extraction import BATCH
    from adios_ray.masking.fill import make_fill

    name = subject.networks.config.masking.fill
    # In equal parts: mix takes another image of the same part.
    parts, draws = -(-len(views) // BATCH), np.random.default_rng(0).random(len(views))
    pairs = zip(views.tensor_split(parts), np.array_split(draws, parts), strict=True)
    fills = [fill for part, own in pairs if (fill := make_fill(name, part, own)) is not None]
    return torch.cat(fills) if fills else None


def _features(subject: "Subject", views: "Tensor") -> "Tensor":
    """Extract features of normalized views [M, 3, S, S], float32 [M, F]."""
    import torch

    from adios_ray.evaluation.extraction import BATCH

    return torch.cat([subject.networks.backbone(part).float() for part in views.split(BATCH)])


def _nearest(features: "Tensor") -> Integers:
    """Find the nearest other images of each by cosine similarity, int64 [M, 4], fewer among fewer images."""
    import torch

    unit = torch.nn.functional.normalize(features, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-2.0)
    return np.asarray(similarity.topk(min(NEAREST, len(unit) - 1), dim=1).indices.cpu().numpy())


def _projected(whole: Floats, several: Floats) -> tuple[Floats, Floats, str, float]:
    """Project features [M, F] and those of masked versions [m, N, F] onto two dimensions, by UMAP if installed."""
    flat = several.reshape(-1, whole.shape[1])
    try:
        from umap import UMAP  # an optional package, which learns a map that keeps neighborhoods
    except ImportError:
        from sklearn.decomposition import PCA

        pca = PCA(2, random_state=0).fit(whole)
        points, masked = pca.transform(whole), pca.transform(flat) if len(flat) else flat[:, :2]
        name, explained = "PCA", float(pca.explained_variance_ratio_.sum())
    else:
        mapping = UMAP(random_state=0).fit(whole)
        points, masked = mapping.embedding_, mapping.transform(flat) if len(flat) else flat[:, :2]
        name, explained = "UMAP", 0.0
    shape = (*several.shape[:2], 2)
    return points.astype(np.float32), np.asarray(masked, np.float32).reshape(shape), name, explained


def _classified(subject: "Subject", chosen: Integers, whole: "Tensor") -> tuple[Integers, Integers, list[str]]:
    """Let training images vote on the class of each image; -1 and no classes where images have not one label each."""
    import torch

    from adios_ray.evaluation.features import features_of
    from adios_ray.evaluation.knn import knn_label_shares

    manifest = subject.dataset.manifest
    labels, none = subject.held_out.labels[chosen], np.full(len(chosen), -1)
    if manifest.multi_label or len(manifest.classes) < 2 or labels.min() < 0:
        return none, none, []
    config = subject.networks.config.evaluation
    size, view = subject.image_size, subject.view
    bank = features_of(subject.networks, subject.dataset, "train", size, view, BANK)
    one_hot = torch.nn.functional.one_hot(bank.labels, len(manifest.classes)).to(whole.device)
    votes = knn_label_shares(bank.features.to(whole.device), one_hot, whole, config.neighbors, config.temperature)
    return labels.astype(np.int64), votes.argmax(1).cpu().numpy(), list(manifest.classes)


def _reduced(pictures: Pixels) -> Pixels:
    """Reduce pictures [M, S, S, 3] to at most 48 pixels."""
    from PIL import Image

    if pictures.shape[1] <= THUMBNAIL:
        return pictures
    size = (THUMBNAIL, THUMBNAIL)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures])

"""Masks against instance maps: adjusted Rand index, segmentation covering, and the floors to compare them with.

A pixel belongs to the slot whose mask is largest there. Every measure of an image is computed from its contingency
table, the number of pixels by object and slot, and averaged over images with equal weights, as published.

Shape letters: K images, N slots, S pixels a side, O = 1 + largest number of an object; object 0 is the background.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from adios_ray.config import CentralView
from adios_ray.data.loader import central_batches, central_instances
from adios_ray.data.shards import Bytes, Split
from adios_ray.errors import EvaluationError
from adios_ray.evaluation.extraction import BATCH
from adios_ray.masking.schemes import IDS

PIXELS = 2**21
"""Most pixels of the images that are processed at once; one image may have more."""
Floats = npt.NDArray[np.float64]
Masks = Tensor | npt.NDArray[np.floating[Any]]
"""Masks [K, N, S, S]; of each pixel's N values only the position of the largest counts."""


class SegmentationScores(NamedTuple):
    """Measures of masks, 1 where each object is exactly one slot.

    Attributes:
        ari: Adjusted Rand index of all pixels (Hubert & Arabie 1985), at least -0.5; 0 on average if each pixel's slot
            is drawn by itself.
        foreground_ari: The same of the objects' pixels alone: slots are free to cover background too. An image with one
            object has 1 if the object is in one slot, and 0 otherwise.
        covering: Mean over the objects, the background among them, of the largest intersection over union (IoU) with a
            slot, 0 to 1.
        weighted_covering: The same, each object weighted by its size.
        foreground_covering: As ``covering`` without the background among the objects. The background's pixels still
            count as part of the slots.
        foreground_weighted_covering: The same, each object weighted by its size.
        matched_iou: Mean IoU of the objects without the background, each with a slot of its own, by the assignment with
            the largest sum; 0 for objects that are left without a slot.
    """

    ari: float
    foreground_ari: float
    covering: float
    weighted_covering: float
    foreground_covering: float
    foreground_weighted_covering: float
    matched_iou: float


class Segmentation(NamedTuple):
    """The scores of masks over a data split.

    Attributes:
        scores: Means over images.
        standard_errors: Standard error of each mean.
        images: Number of images that were scored.
        without_objects: Number of images that were left out because their instance map is all background.
    """

    scores: SegmentationScores
    standard_errors: SegmentationScores
    images: int
    without_objects: int


def image_scores(masks: Masks, instances: npt.NDArray[np.integer[Any]]) -> Floats:
    """Compute the measures of each image, float64 [K, 7] in the order of ``SegmentationScores``.

    The row of an image without objects is nan.

    Args:
        masks: Soft or hard masks, finite, [K, N, S, S].
        instances: Object index per pixel, 0 (background) to 255, [K, S, S].

    Raises:
        EvaluationError: If shapes or values are others.
    """
    if masks.ndim != 4 or 0 in masks.shape[1:] or tuple(instances.shape) != (len(masks), *masks.shape[2:]):
        raise EvaluationError(
            f"masks of shape {list(masks.shape)} and instance maps of shape {list(instances.shape)}; "
            "[K, N, S, S] and [K, S, S] are needed"
        )
    count = _images_at_once(masks.shape[-1])
    parts = [slice(first, first + count) for first in range(0, len(masks), count)]
    rows = [_scores(_contingency(_hard(masks[part]), instances[part], masks.shape[1])) for part in parts]
    return np.concatenate([np.empty((0, len(SegmentationScores._fields))), *rows])


def segment(
    masks_of: Callable[[Tensor], Masks],
    split: Split,
    indices: npt.NDArray[np.int64],
    image_size: int,
    device: torch.device,
    view: CentralView = "square",
) -> Segmentation:
    """Score the masks of a data split's central views, batch by batch, reading the next one meanwhile; no gradients.

    Args:
        masks_of: Maps normalized images [B, 3, S, S] to masks [B, N, S, S], such as ``Networks.occlude`` in evaluation
            mode, or a floor of this module after ``denormalize``.
        split: A split with instance maps.
        indices: Images to use, int64 [M], at least two of them with objects.
        image_size: Side S of the views in pixels.
        device: Device of the images given to ``masks_of``.
        view: Part of each photograph that is used.

    Raises:
        DatasetError: If the data set has no instance maps.
        EvaluationError: If fewer than two images have objects, or the masks cannot be scored.
    """
    parts = [np.empty((0, len(SegmentationScores._fields)))]
    count = _images_at_once(image_size)
    batches = [indices[first : first + count] for first in range(0, len(indices), count)]
    with torch.no_grad():
        for chosen, views in zip(batches, central_batches(split, batches, image_size, device, view), strict=True):
            parts.append(image_scores(masks_of(views), central_instances(split, chosen, image_size, view)))
    rows = np.concatenate(parts)
    scores = rows[~np.isnan(rows[:, 0])]
    if len(scores) < 2:
        raise EvaluationError(f"{len(scores)} of {len(rows)} images have objects; at least 2 are needed")
    errors = scores.std(axis=0, ddof=1) / math.sqrt(len(scores))
    return Segmentation(
        SegmentationScores(*scores.mean(axis=0).tolist()),
        SegmentationScores(*errors.tolist()),
        len(scores),
        len(rows) - len(scores),
    )


def random_partition(images: Bytes, slots: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Partition images at random, as a floor of masks that know nothing of the image.

    Each slot is the Voronoi cell of a uniformly drawn point: connected, as objects are. Pixels with independent slots
    would be a lower floor, as no slot would overlap any object by more than its share of the pixels.

    Args:
        images: uint8 [K, S, S, 3]; only their shape is used.
        slots: Number of slots N.
        rng: Source of the points.

    Returns:
        Hard masks [K, N, S, S], one-hot over slots.

    Raises:
        EvaluationError: If images have another shape or type, or ``slots`` is not in 1 to S * S.
    """
    _check_images(images, slots)
    rows, columns = _pixel_centers(images)
    nearest = np.empty(images.shape[:3], np.int64)
    for found, points in zip(nearest, rng.random((len(images), slots, 2)), strict=True):
        y, x = points.T[:, :, None, None]
        found[...] = ((rows[:, None] - y) ** 2 + (columns - x) ** 2).argmin(axis=0)
    return _one_hot(nearest, slots)


def color_kmeans(images: Bytes, slots: int, seed: int) -> npt.NDArray[np.float32]:
    """Cluster each image's pixels by color and position with k-means, as a floor of masks that know no objects.

    A pixel is its red, green, blue, row and column, each scaled to [0, 1].

    Args:
        images: uint8 [K, S, S, 3].
        slots: Number of slots N, the clusters of each image.
        seed: Seed of the initialization; with it, an image's masks do not depend on the other images.

    Returns:
        Hard masks [K, N, S, S], one-hot over slots.

    Raises:
        EvaluationError: If images have another shape or type, or ``slots`` is not in 1 to S * S.
    """
    _check_images(images, slots)
    positions = np.stack(np.meshgrid(*_pixel_centers(images), indexing="ij"), axis=-1)
    clusters = np.empty(images.shape[:3], np.int64)
    for found, image in zip(clusters, images, strict=True):
        pixels = np.concatenate([image / 255, positions], axis=-1).reshape(-1, 5)
        found[...] = KMeans(slots, random_state=seed).fit_predict(pixels).reshape(found.shape)
    return _one_hot(clusters, slots)


def _images_at_once(image_size: int) -> int:
    return max(1, min(BATCH, PIXELS // image_size**2))


def _hard(masks: Masks) -> npt.NDArray[np.int64]:
    """Return the slot of each pixel, int64 [K, S, S]: the largest mask, the first of them in a tie."""
    if isinstance(masks, Tensor):
        largest, slots = masks.max(dim=1)  # on CPUs several times as fast as argmax
        finite, found = bool(largest.isfinite().all()), slots.cpu().numpy()
    else:
        finite, found = bool(np.isfinite(masks.max(axis=1)).all()), masks.argmax(axis=1)
    if not finite:  # the largest of values with a nan is nan
        raise EvaluationError("masks are not finite; use other weights, such as those of an earlier epoch")
    return found


def _contingency(
    slots: npt.NDArray[np.int64], instances: npt.NDArray[np.integer[Any]], count: int
) -> npt.NDArray[np.int64]:
    """Count the pixels of each image by object and slot, int64 [K, O, count]."""
    low, high = int(instances.min()), int(instances.max())
    if low < 0 or high > IDS:
        raise EvaluationError(f"instance maps with values from {low} to {high}; 0 (background) to {IDS} are needed")
    images, objects = len(slots), high + 1
    rows = np.arange(images)[:, None, None] * objects + instances.astype(np.int64)
    cells = np.bincount((rows * count + slots).ravel(), minlength=images * objects * count)
    return cells.reshape(images, objects, count)


def _scores(table: npt.NDArray[np.int64]) -> Floats:
    """Compute the measures of each image from pixels by object and slot [K, O, N], float64 [K, 7]."""
    sizes = table.sum(axis=2)
    union = sizes[:, :, None] + table.sum(axis=1)[:, None] - table
    iou = table / np.maximum(union, 1)  # 0 / 1 where an image has neither the object nor the slot
    best = iou.max(axis=2)
    measures = [
        _ari(table),
        _ari(table[:, 1:]),
        *_covering(best, sizes),
        *_covering(best[:, 1:], sizes[:, 1:]),
        _matched(iou[:, 1:], sizes[:, 1:]),
    ]
    scores = np.stack(measures, axis=1)
    scores[sizes[:, 1:].sum(axis=1) == 0] = math.nan
    return scores


def _ari(table: npt.NDArray[np.int64]) -> Floats:
    """Compute the adjusted Rand index of contingency tables [K, O, N], float64 [K]; 1 for equal partitions.

    Pairs of pixels are counted by whether they share their object and whether they share their slot.
    """
    pixels = table.sum(axis=(1, 2))
    both = (table**2).sum(axis=(1, 2)) - pixels
    only_object = (table.sum(axis=2) ** 2).sum(axis=1) - pixels - both
    only_slot = (table.sum(axis=1) ** 2).sum(axis=1) - pixels - both
    equal = (only_object == 0) & (only_slot == 0)
    # In double precision from here on: products of pairs exceed 64 bits in images of 256 pixels a side.
    neither = (pixels**2 - pixels - both - only_object - only_slot).astype(np.float64)
    expected = (both + only_object) * (only_object + neither) + (both + only_slot) * (only_slot + neither)
    difference = both * neither - only_object.astype(np.float64) * only_slot
    return np.where(equal, 1.0, 2 * difference / np.where(equal, 1.0, expected))


def _covering(best: Floats, sizes: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Average the objects' largest IoU [K, O], 0 for those of size 0: the plain and the weighted mean, [K] each."""
    objects, pixels = (sizes > 0).sum(axis=1), sizes.sum(axis=1)
    return best.sum(axis=1) / np.maximum(objects, 1), (best * sizes).sum(axis=1) / np.maximum(pixels, 1)


def _matched(iou: Floats, sizes: npt.NDArray[np.int64]) -> Floats:
    """Average the objects' IoU [K, O, N] after the best one-to-one assignment of slots to them, float64 [K]."""
    means = np.zeros(len(iou))
    for image, (overlaps, present) in enumerate(zip(iou, sizes > 0, strict=True)):
        if present.any():
            chosen = linear_sum_assignment(overlaps[present], maximize=True)
            means[image] = overlaps[present][chosen].sum() / present.sum()
    return means


def _check_images(images: Bytes, slots: int) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise EvaluationError(
            f"images of shape {list(images.shape)} and type {images.dtype}; uint8 [K, S, S, 3] needed"
        )
    pixels = images.shape[1] * images.shape[2]
    if not 1 <= slots <= pixels:
        raise EvaluationError(f"{slots} slots for images of {pixels} pixels; 1 to {pixels} are possible")


def _pixel_centers(images: Bytes) -> tuple[Floats, Floats]:
    """Return the pixels' rows and columns of images [K, S, S, 3], scaled to [0, 1], [S] each."""
    height, width = images.shape[1:3]
    return (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width


def _one_hot(slots: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float32]:
    own: npt.NDArray[np.bool_] = slots[:, None] == np.arange(count)[:, None, None]
    return own.astype(np.float32)

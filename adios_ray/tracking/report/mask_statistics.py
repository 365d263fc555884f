"""Numbers that describe stored masks: sizes, overlap and entropy of slots, and agreement between two epochs."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from adios_ray.tracking.run_masks import Pixels

Floats = npt.NDArray[np.float64]


class SlotStatistics(NamedTuple):
    """The slots of one file of masks.

    Attributes:
        sizes: Mean mask value of each slot, in [0, 1].
        overlap: Largest soft intersection over union of two slots, in [0, 1]; 0 with a single slot.
        entropy: Mean entropy of a pixel's shares, 0 where each belongs to one slot, 1 where all N share it equally.
    """

    sizes: list[float]
    overlap: float
    entropy: float


def slot_statistics(masks: Pixels) -> SlotStatistics:
    """Describe the slots of uint8 masks [K, N, H, W]."""
    slots = masks.shape[1]
    overlaps = slot_overlaps(masks)
    largest = max((overlaps[a, b] for a, b in itertools.combinations(range(slots), 2)), default=0.0)
    sizes = (masks.mean(axis=(0, 2, 3)) / 255).tolist()
    return SlotStatistics(sizes, float(largest), _entropy(masks))


def _entropy(masks: Pixels) -> float:
    if masks.shape[1] == 1:
        return 0.0
    values = masks.astype(np.float64)
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    terms = -shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(terms.sum(axis=1).mean() / math.log(masks.shape[1]))


def slot_overlaps(masks: Pixels) -> Floats:
    """Compute the soft intersection over union of each two slots: sum of minima over sum of maxima, all images.

    Args:
        masks: uint8 [K, N, H, W].

    Returns:
        Symmetric float64 [N, N] in [0, 1], 1 on the diagonal; empty slots overlap with none.
    """
    slots: list[Any] = [masks[:, k].astype(np.int64) for k in range(masks.shape[1])]
    overlaps = np.eye(len(slots))
    for a, b in itertools.combinations(range(len(slots)), 2):
        union = np.maximum(slots[a], slots[b]).sum()
        overlaps[a, b] = overlaps[b, a] = np.minimum(slots[a], slots[b]).sum() / union if union else 0.0
    return overlaps


def agreement(before: Pixels, after: Pixels) -> float:
    """Compute the mean soft intersection over union of slots at two epochs, each paired with at most one other.

    Args:
        before: uint8 [K, N, H, W].
        after: uint8 [K, M, H, W] of the same images.

    Returns:
        In [0, 1]; a slot that is empty or, where M differs from N, without partner counts as 0.
    """
    slots = [before.shape[1], after.shape[1]]
    between = slot_overlaps(np.concatenate([before, after], axis=1))[: slots[0], slots[0] :]
    rows, columns = linear_sum_assignment(-between)
    return float(between[rows, columns].sum() / max(slots))

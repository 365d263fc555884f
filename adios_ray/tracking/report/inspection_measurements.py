"""Measurements of an inspection: features of images and of their masked versions, neighbors, harm and spectrum."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adios_ray.data.augment import denormalize
from adios_ray.data.loader import central_views
from adios_ray.evaluation.extraction import BATCH
from adios_ray.evaluation.features import features_of
from adios_ray.evaluation.knn import knn_label_shares
from adios_ray.evaluation.label_free import effective_rank
from adios_ray.evaluation.subject import Subject
from adios_ray.masking.fill import hide, make_fill
from adios_ray.tracking.report.inspection import PICKED, THUMBNAIL, Floats, Integers
from adios_ray.tracking.run_masks import Pixels

BANK = 2000
"""Training images that vote."""
MASKED = 100
"""Images whose masked versions are on the map."""
QUERIES, NEAREST = 5, 4
"""Images whose neighbors are shown, and how many."""


@torch.no_grad()
def measure(subject: Subject, images: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute the arrays of an ``Inspection`` of ``images`` validation images, and what its ``info`` measures."""
    chosen = subject.held_out.spread(images)
    views = central_views(subject.held_out, chosen, subject.image_size, subject.device, subject.view)
    whole, masks, fill = _features(subject, views), _masks(subject, views), _fill(subject, views)
    slots, neighbors = masks.shape[1], _nearest(whole)[:QUERIES]
    harm = np.empty((len(views), slots), np.float32)
    several = np.empty((min(MASKED, len(views)), slots, whole.shape[1]), np.float32)
    slot_neighbors = np.empty((len(neighbors), slots, neighbors.shape[1]), np.int64)
    # A version at a time: all N at once are N times the memory.
    for slot in range(slots):
        mask = masks[:, slot : slot + 1]
        hidden, shown = (_features(subject, hide(views, hiding, fill)) for hiding in (mask, 1 - mask))
        harm[:, slot] = (1 - functional.cosine_similarity(hidden, whole)).cpu().numpy()
        several[:, slot] = hidden[:MASKED].cpu().numpy()
        slot_neighbors[:, slot] = _nearest(shown)[:QUERIES]
    order = np.argsort(-harm.mean(axis=1), kind="stable") if slots else np.arange(0)
    picked = np.concatenate([order[:PICKED], order[::-1][:PICKED]])
    points, masked_points, projection, explained = project(whole.cpu().numpy(), several)
    labels, predicted, classes = classify(subject, chosen, whole)
    pictures = denormalize(views).cpu().numpy()
    values = torch.linalg.svdvals((whole - whole.mean(0)).double()) ** 2 / max(len(whole) - 1, 1)
    arrays = {
        "thumbnails": _reduced(pictures),
        "labels": labels,
        "predicted": predicted,
        "points": points,
        "masked_points": masked_points,
        "harm": harm,
        "neighbors": neighbors,
        "slot_neighbors": slot_neighbors,
        "spectrum": values.float().cpu().numpy(),
        "picked": picked,
        "picked_images": pictures[picked],
        "picked_masks": torch.round(255 * masks[picked]).to(torch.uint8).cpu().numpy(),
    }
    rank = effective_rank(whole)
    return arrays, {"classes": classes, "projection": projection, "explained": explained, "rank": rank}


def _masks(subject: Subject, views: Tensor) -> Tensor:
    """Mask the views, [M, N, S, S]; N is 0 without an occlusion model."""
    occlusion = subject.networks.occlusion
    if occlusion is None:
        return views[:, :0]
    return torch.cat([occlusion(part) for part in views.split(BATCH)])


def _fill(subject: Subject, views: Tensor) -> Tensor | None:
    """Make what hidden pixels of the views become, [M, 3, S, S], as in training; None makes them 0."""
    name = subject.networks.config.masking.fill
    # In equal parts: mix takes another image of the same part.
    parts, draws = -(-len(views) // BATCH), np.random.default_rng(0).random(len(views))
    pairs = zip(views.tensor_split(parts), np.array_split(draws, parts), strict=True)
    fills = [fill for part, own in pairs if (fill := make_fill(name, part, own)) is not None]
    return torch.cat(fills) if fills else None


def _features(subject: Subject, views: Tensor) -> Tensor:
    """Extract features of normalized views [M, 3, S, S], float32 [M, F]."""
    return torch.cat([subject.networks.backbone(part).float() for part in views.split(BATCH)])


def _nearest(features: Tensor) -> Integers:
    """Find the nearest other images of each by cosine similarity, int64 [M, 4], fewer among fewer images."""
    unit = functional.normalize(features, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-2.0)
    return np.asarray(similarity.topk(min(NEAREST, len(unit) - 1), dim=1).indices.cpu().numpy())


def project(whole: Floats, several: Floats) -> tuple[Floats, Floats, str, float]:
    """Project features onto two dimensions, by UMAP if it is installed, else by PCA.

    Args:
        whole: Features [M, F], by which the projection is chosen.
        several: Features of N masked versions of some images, [m, N, F].

    Returns:
        Points [M, 2] and [m, N, 2], the name of the method, and the share of the variance that PCA explains, 0 for
        UMAP.
    """
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


def classify(subject: Subject, chosen: Integers, whole: Tensor) -> tuple[Integers, Integers, list[str]]:
    """Let training images vote on the classes of validation images.

    Args:
        subject: The encoder and the data set.
        chosen: Indices of the validation images, int64 [M].
        whole: Their features, [M, F].

    Returns:
        Classes and predictions, int64 [M], and the classes' names; -1 and no names where images have not one label
        each, of two classes or more.
    """
    manifest = subject.dataset.manifest
    labels, none = subject.held_out.labels[chosen], np.full(len(chosen), -1)
    if manifest.multi_label or len(manifest.classes) < 2 or labels.min() < 0:
        return none, none, []
    config = subject.networks.config.evaluation
    bank = features_of(subject.networks, subject.dataset, "train", subject.image_size, subject.view, BANK)
    one_hot = functional.one_hot(bank.labels, len(manifest.classes)).to(whole.device)
    votes = knn_label_shares(bank.features.to(whole.device), one_hot, whole, config.neighbors, config.temperature)
    return labels.astype(np.int64), votes.argmax(1).cpu().numpy(), list(manifest.classes)


def _reduced(pictures: Pixels) -> Pixels:
    """Reduce pictures [M, S, S, 3] to at most 48 pixels."""
    if pictures.shape[1] <= THUMBNAIL:
        return pictures
    size = (THUMBNAIL, THUMBNAIL)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures])

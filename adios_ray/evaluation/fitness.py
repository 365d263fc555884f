"""Fitness of a trial: what its frozen features are worth on held-out images, never the training loss."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adios_ray import parallel
from adios_ray.config import AugmentConfig, CentralView, EvaluationConfig
from adios_ray.data.augment import apply_view, draw_parameters
from adios_ray.data.loader import central_views
from adios_ray.data.shards import Split
from adios_ray.evaluation.knn import knn_accuracy, knn_macro_f1
from adios_ray.evaluation.label_free import alpha_req, effective_rank, feature_std, lidar, rankme
from adios_ray.evaluation.statistics import BATCH, fresh_statistics
from adios_ray.models.networks import Networks

GATE_IMAGES = 2048
LIDAR_IMAGES = 512
LIDAR_VIEWS = 10


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    split: Split,
    indices: npt.NDArray[np.int64],
    image_size: int,
    view: CentralView = "square",
) -> Tensor:
    """Features of un-augmented images, [len(indices), F] on the backbone's device; see ``center_view``.

    The workers of a trial share the images; each receives all features.
    """
    device = next(backbone.parameters()).device
    share = -(-len(indices) // parallel.world_size())
    padded = np.resize(indices, share * parallel.world_size())
    own = padded[parallel.rank() * share :][:share]
    training = backbone.training
    backbone.eval()
    features = [
        backbone(central_views(split, own[first : first + BATCH], image_size, device, view))
        for first in range(0, share, BATCH)
    ]
    backbone.train(training)
    return parallel.gather_with_gradient(torch.cat(features).float())[: len(indices)]


class Fitness(NamedTuple):
    """What an evaluation found.

    Attributes:
        value: The configured measure, the higher the better; nan where features are not finite or have collapsed.
        collapse: What shows the collapse, in words; None where there is none.
    """

    value: float
    collapse: str | None


def evaluate(networks: Networks, train: Split, held_out: Split, image_size: int, config: EvaluationConfig) -> Fitness:
    """Measure a backbone on held-out images, and whether its features have collapsed.

    Args:
        networks: Backbone and probe.
        train: Neighbors of ``knn``.
        held_out: What is classified or described.
        image_size: Side of the views in pixels.
        config: Which measure, and what counts as a collapse.
    """
    fresh = fresh_statistics(networks.backbone, train, image_size, config.view)
    with fresh if config.fresh_statistics else nullcontext():
        return parallel.from_first(_evaluate(networks, train, held_out, image_size, config))


def _evaluate(networks: Networks, train: Split, held_out: Split, image_size: int, config: EvaluationConfig) -> Fitness:
    features = extract_features(networks.backbone, held_out, np.arange(len(held_out)), image_size, config.view)
    if not features.isfinite().all():
        return Fitness(math.nan, None)
    # Decided once: the workers extract further features together, or none does.
    if collapse := parallel.from_first(_collapse(features, config)):
        return Fitness(math.nan, collapse)
    return Fitness(_MEASURES[config.fitness](networks, train, held_out, features, image_size, config), None)


def _collapse(features: Tensor, config: EvaluationConfig) -> str | None:
    """What shows that features say the same of every image, or nearly nothing."""
    some = features[:GATE_IMAGES]
    std, rank = feature_std(some), effective_rank(some)
    if std < config.min_feature_std:
        return f"collapsed: feature std {std:.3g} is below {config.min_feature_std:g}"
    if rank < config.min_effective_rank:
        return f"collapsed: effective rank {rank:.3g} is below {config.min_effective_rank:g}"
    return None


def _knn(
    networks: Networks, train: Split, held_out: Split, features: Tensor, image_size: int, config: EvaluationConfig
) -> float:
    """Weighted k-NN accuracy (multi-label: macro F1), 0 to 1; nan where the neighbors' features are not finite."""
    bank = train.spread(config.train_images)
    train_features = extract_features(networks.backbone, train, bank, image_size, config.view)
    if not train_features.isfinite().all():
        return math.nan
    train_labels = torch.from_numpy(train.labels[bank]).to(features.device)
    labels = torch.from_numpy(held_out.labels).to(features.device)
    score = knn_macro_f1 if labels.ndim == 2 else knn_accuracy
    return score(train_features, train_labels, features, labels, config.neighbors, config.temperature)


def _probe(
    networks: Networks, train: Split, held_out: Split, features: Tensor, image_size: int, config: EvaluationConfig
) -> float:
    """Accuracy of the online probe, 0 to 1; multi-label: over all labels of all images."""
    labels = torch.from_numpy(held_out.labels).to(features.device)
    with torch.no_grad():
        logits = networks.probe(features)
    right = (logits > 0) == (labels > 0) if labels.ndim == 2 else logits.argmax(dim=1) == labels
    return float(right.float().mean())


def _lidar(
    networks: Networks, train: Split, held_out: Split, features: Tensor, image_size: int, config: EvaluationConfig
) -> float:
    """LiDAR of features of random views."""
    return lidar(_features_of_views(networks.backbone, held_out, image_size))


def _features_of_views(backbone: nn.Module, split: Split, image_size: int) -> Tensor:
    """Features of random views with the default augmentations, the same ones at each call, [n, views, F]."""
    indices = np.arange(min(LIDAR_IMAGES, len(split)))
    device, training = next(backbone.parameters()).device, backbone.training
    backbone.eval()
    views = []
    with torch.no_grad():
        for number in range(LIDAR_VIEWS):
            parts = []
            for first in range(0, len(indices), BATCH):
                chosen = indices[first : first + BATCH]
                images = torch.from_numpy(split.gather(chosen)).to(device)
                sides = split.heights[chosen], split.widths[chosen]
                drawn = draw_parameters(AugmentConfig(), 0, "view_a", number, chosen, *sides)
                parts.append(backbone(apply_view(images, drawn, image_size)).float())
            views.append(torch.cat(parts))
    backbone.train(training)
    return torch.stack(views, dim=1)


_MEASURES: Mapping[str, Callable[[Networks, Split, Split, Tensor, int, EvaluationConfig], float]] = {
    "knn": _knn,
    "probe": _probe,
    "rankme": lambda networks, train, held_out, features, image_size, config: rankme(features),
    "alpha-req": lambda networks, train, held_out, features, image_size, config: alpha_req(features),
    "lidar": _lidar,
}
"""Of networks, the split of the neighbors, the held-out split and its features [n, F], and the views' side."""

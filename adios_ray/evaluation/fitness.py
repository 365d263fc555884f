"""Fitness of a trial: a score of its frozen features on held-out images, never the training loss."""

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
"""Held-out images by which a collapse is detected."""
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
    """Extract features of un-augmented images, float32 [M, F] on the backbone's device; see ``center_view``.

    The M images are distributed over the workers of the trial; each worker receives all features.
    """
    device = next(backbone.parameters()).device
    share = -(-len(indices) // parallel.world_size())
    # np.resize repeats the indices, so that all workers have equal shares for the gathering.
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
    """The result of an evaluation.

    Attributes:
        value: The configured measure, higher is better; nan where features are not finite or have collapsed.
        collapse: Which statistic shows the collapse, and its value; None where there is none.
    """

    value: float
    collapse: str | None


def evaluate(networks: Networks, train: Split, held_out: Split, image_size: int, config: EvaluationConfig) -> Fitness:
    """Compute the fitness on held-out images, after a check that the features have not collapsed.

    Args:
        networks: Backbone and probe.
        train: Split of the neighbors of ``knn``.
        held_out: Split that is classified or scored.
        image_size: Side S of the views in pixels.
        config: The measure, and the thresholds of a collapse.
    """
    fresh = fresh_statistics(networks.backbone, train, image_size, config.view)
    with fresh if config.fresh_statistics else nullcontext():
        features = extract_features(networks.backbone, held_out, np.arange(len(held_out)), image_size, config.view)
        if not features.isfinite().all():
            found = Fitness(math.nan, None)
        # The first worker decides: measures extract further features, which all workers must do together.
        elif collapse := parallel.from_first(_collapse(features, config)):
            found = Fitness(math.nan, collapse)
        else:
            value = _MEASURES[config.fitness](networks, train, held_out, features, image_size, config)
            found = Fitness(value, None)
        return parallel.from_first(found)


def _collapse(features: Tensor, config: EvaluationConfig) -> str | None:
    """Describe the collapse of features [M, F], if there is one; None otherwise."""
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
    """Compute weighted k-NN accuracy (multi-label: macro F1), 0 to 1; nan if the neighbors' features are not finite."""
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
    """Compute the accuracy of the online probe, 0 to 1; multi-label: over all labels of all images."""
    labels = torch.from_numpy(held_out.labels).to(features.device)
    with torch.no_grad():
        logits = networks.probe(features)
    right = (logits > 0) == (labels > 0) if labels.ndim == 2 else logits.argmax(dim=1) == labels
    return float(right.float().mean())


@torch.no_grad()
def extract_view_features(
    backbone: nn.Module,
    split: Split,
    indices: npt.NDArray[np.int64],
    image_size: int,
    config: AugmentConfig,
    seed: int,
    stream: str,
    epoch: int,
) -> Tensor:
    """Extract features of one augmented view of each image, float32 [M, F] on the backbone's device.

    See ``draw_parameters`` for what the views follow from.
    """
    device, training = next(backbone.parameters()).device, backbone.training
    backbone.eval()
    parts = []
    for first in range(0, len(indices), BATCH):
        chosen = indices[first : first + BATCH]
        images = torch.from_numpy(split.gather(chosen)).to(device)
        drawn = draw_parameters(config, seed, stream, epoch, chosen, split.heights[chosen], split.widths[chosen])
        parts.append(backbone(apply_view(images, drawn, image_size)).float())
    backbone.train(training)
    return torch.cat(parts)


def features_of_views(backbone: nn.Module, split: Split, image_size: int) -> Tensor:
    """Extract features of K random views, the same ones at each call, [M, K, F].

    Views are made by the default augmentations, not the trial's: a search over augmentations must not change the score.
    """
    indices = split.spread(LIDAR_IMAGES)  # not the first: shards of some sources hold few classes each
    views = [
        extract_view_features(backbone, split, indices, image_size, AugmentConfig(), 0, "view_a", number)
        for number in range(LIDAR_VIEWS)
    ]
    return torch.stack(views, dim=1)


_MEASURES: Mapping[str, Callable[[Networks, Split, Split, Tensor, int, EvaluationConfig], float]] = {
    "knn": _knn,
    "probe": _probe,
    "rankme": lambda networks, train, held_out, features, image_size, config: rankme(features),
    "alpha-req": lambda networks, train, held_out, features, image_size, config: alpha_req(features),
    "lidar": lambda networks, train, held_out, features, image_size, config: lidar(
        features_of_views(networks.backbone, held_out, image_size)
    ),
}
"""Measures by name, of networks, the split of the neighbors, the held-out split, its features [M, F], the side of the
views and the configuration."""

"""Fitness of a trial: k-NN accuracy on held-out images, never the training loss."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from adios_ray import parallel
from adios_ray.config import EvaluationConfig
from adios_ray.data.augment import centre_view
from adios_ray.data.shards import Split
from adios_ray.evaluation.knn import accuracy, knn_votes, macro_f1

BATCH = 256


@torch.no_grad()
def extract_features(backbone: nn.Module, split: Split, indices: npt.NDArray[np.int64], image_size: int) -> Tensor:
    """Features of un-augmented images, [len(indices), F] on the backbone's device.

    The workers of a trial share the images; each receives all features.
    """
    device = next(backbone.parameters()).device
    share = -(-len(indices) // parallel.world_size())
    padded = np.resize(indices, share * parallel.world_size())
    own = padded[parallel.rank() * share :][:share]
    training = backbone.training
    backbone.eval()
    features = [
        backbone(centre_view(torch.from_numpy(split.gather(own[first : first + BATCH])).to(device), image_size))
        for first in range(0, share, BATCH)
    ]
    backbone.train(training)
    return parallel.gather_with_gradient(torch.cat(features).float())[: len(indices)]


def knn_fitness(backbone: nn.Module, train: Split, held_out: Split, image_size: int, config: EvaluationConfig) -> float:
    """k-NN accuracy (multi-label: macro F1) of the held-out images, 0 to 1; nan where features are not finite."""
    bank = np.unique(np.linspace(0, len(train) - 1, min(config.train_images, len(train))).astype(np.int64))
    train_features = extract_features(backbone, train, bank, image_size)
    features = extract_features(backbone, held_out, np.arange(len(held_out)), image_size)
    if not (train_features.isfinite().all() and features.isfinite().all()):
        return float("nan")
    train_labels = torch.from_numpy(train.labels[bank]).to(features.device)
    labels = torch.from_numpy(held_out.labels).to(features.device)
    multi_label = labels.ndim == 2
    if not multi_label:
        train_labels = functional.one_hot(train_labels, int(max(train_labels.max(), labels.max())) + 1)
    votes = knn_votes(train_features, train_labels, features, config.neighbours, config.temperature)
    return macro_f1(votes, labels) if multi_label else accuracy(votes, labels)

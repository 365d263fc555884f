"""Clustering scores against counts of pairs and entropies; seeds; what is refused."""

import itertools
import math
from collections import Counter

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from adios_ray.errors import EvaluationError
from adios_ray.evaluation import clustering
from adios_ray.evaluation.clustering import clustering_scores


def blobs(spread: float) -> tuple[Tensor, Tensor]:
    """Draw 120 features around one center for each of five classes, and the classes 3, 5, 7, ..."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 5
    centers = 10 * torch.eye(5, 6)
    return centers[labels] + spread * torch.randn(120, 6, generator=generator), 2 * labels + 3


def naive_scores(truth: list[int], clusters: list[int]) -> tuple[float, float, float]:
    """Compute FMI and ARI from all pairs of images, and NMI from entropies."""
    pairs = Counter(
        (truth[i] == truth[j], clusters[i] == clusters[j]) for i, j in itertools.combinations(range(len(truth)), 2)
    )
    both, only_class, only_cluster = pairs[True, True], pairs[True, False], pairs[False, True]
    fmi = both / math.sqrt((both + only_class) * (both + only_cluster))
    chance = (both + only_class) * (both + only_cluster) / pairs.total()
    ari = (both - chance) / (both + (only_class + only_cluster) / 2 - chance)

    def entropy(values: list[object]) -> float:
        """Compute the entropy of the values' frequencies in nats."""
        return -sum(n / len(values) * math.log(n / len(values)) for n in Counter(values).values())

    of_truth, of_clusters = entropy([*truth]), entropy([*clusters])
    mutual = of_truth + of_clusters - entropy([*zip(truth, clusters, strict=True)])
    return fmi, ari, 2 * mutual / (of_truth + of_clusters)


def test_separate_classes_are_found() -> None:
    assert clustering_scores(*blobs(0.1), seed=0)[:3] == pytest.approx((1, 1, 1), abs=1e-9)


def test_scores_equal_counts_of_pairs_and_entropies() -> None:
    features, labels = blobs(5.0)
    clusters = KMeans(5, n_init=10, random_state=3).fit_predict(features.numpy())
    expected = naive_scores(labels.tolist(), clusters.tolist())
    assert clustering_scores(features, labels, seed=3)[:3] == pytest.approx(expected, abs=1e-9)
    assert 0.1 < expected[1] < 0.9


def test_many_images_are_clustered_in_mini_batches_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "FULL_IMAGES", 119)
    monkeypatch.setattr(clustering, "KMeans", None)  # a call would fail
    assert clustering_scores(*blobs(0.1), seed=0).fmi > 0.8
    features, labels = blobs(6.0)
    scores = [clustering_scores(features, labels, seed) for seed in (0, 1, 2, 0, 1, 2)]
    assert scores[:3] == scores[3:] and len(set(scores)) > 1


def test_data_that_cannot_be_clustered_are_refused() -> None:
    features, labels = blobs(1.0)
    for some, classes, message in (
        (features, labels[:, None], r"with labels of shape \[120, 1\]; \[M, F\] and \[M\] are needed"),
        (features[:0], labels[:0], "0 images of 0 classes; at least two classes"),
        (features, torch.zeros(120), "120 images of 1 classes; at least two classes"),
        (features, torch.arange(120), "120 images of 120 classes; .* more images than classes"),
        (features / 0, labels, "features are not finite"),
    ):
        with pytest.raises(EvaluationError, match=message):
            clustering_scores(some, classes, seed=0)

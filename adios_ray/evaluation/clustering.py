"""Clustering of frozen features: k-means clusters against true classes (paper, Section 3.1 and Table 3)."""

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, fowlkes_mallows_score, normalized_mutual_info_score
from torch import Tensor

from adios_ray.errors import EvaluationError
from adios_ray.evaluation.jackknife import jackknife_errors

FULL_IMAGES = 100_000
"""Most images for k-means on all of them; more are clustered in mini-batches, in a fraction of the time."""
STARTS = 10
"""Random starts of k-means on all images, of which the one with the smallest inertia counts."""
MINI_BATCH = 10_240


class ClusteringScores(NamedTuple):
    """Agreement of k-means clusters with true classes; 1 where they are the same.

    Attributes:
        fmi: Fowlkes-Mallows index, 0 to 1.
        ari: Adjusted Rand index, -0.5 to 1; about 0 for clusters that are independent of the classes.
        nmi: Mutual information, normalized by the arithmetic mean of the entropies, 0 to 1.
        errors: Standard errors of the three over images, for the clusters that were found; empty if not asked for.
    """

    fmi: float
    ari: float
    nmi: float
    errors: tuple[float | None, ...] = ()


def clustering_scores(features: Tensor, labels: Tensor, seed: int, errors: bool = False) -> ClusteringScores:
    """Cluster features by k-means with as many clusters as classes, and compare clusters with classes.

    Args:
        features: Features of M images, [M, F], as they are: neither normalized nor standardized.
        labels: Their classes, int64 [M].
        seed: Seed of the random starts, >= 0.
        errors: Whether to estimate standard errors, by a jackknife.

    Raises:
        EvaluationError: Shapes do not fit, features are not finite, there are fewer than two classes, or no two images
            share a class.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        shapes = f"features of shape {list(features.shape)} with labels of shape {list(labels.shape)}"
        raise EvaluationError(f"clustering: {shapes}; [M, F] and [M] are needed")
    classes = len(labels.unique())
    if not 2 <= classes < len(labels):
        needed = "at least two classes, and more images than classes, are needed"
        raise EvaluationError(f"clustering: {len(labels)} images of {classes} classes; {needed}")
    # Norms instead of the features themselves, whose mask would have as many elements.
    if not features.norm(dim=1).isfinite().all():
        raise EvaluationError("clustering: features are not finite")
    if len(features) <= FULL_IMAGES:
        kmeans = KMeans(classes, n_init=STARTS, random_state=seed)
    else:
        # A batch has at least two images for each cluster, so that few clusters miss an update.
        kmeans = MiniBatchKMeans(classes, batch_size=max(MINI_BATCH, 2 * classes), n_init="auto", random_state=seed)
    with warnings.catch_warnings():
        # Of fewer distinct features than clusters, as a collapsed encoder has: the scores show it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = kmeans.fit_predict(features.detach().cpu().numpy())
    truth = labels.cpu().numpy()

    def scores(rows: slice | npt.NDArray[np.int64]) -> list[float]:
        measures = fowlkes_mallows_score, adjusted_rand_score, normalized_mutual_info_score
        return [float(measure(truth[rows], clusters[rows])) for measure in measures]

    fmi, ari, nmi = scores(slice(None))
    return ClusteringScores(fmi, ari, nmi, jackknife_errors(scores, len(truth)) if errors else ())

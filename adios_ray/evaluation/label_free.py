"""Scores of features that need no labels, and the statistics by which a collapse is detected."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.errors import EvaluationError

PAIRED_IMAGES = 2048
"""Images of which all pairs are compared at most."""

EPSILON = 1e-7
"""Added to normalized singular values (Garrido et al. 2023), and smallest divisor."""
LIDAR_DELTA = 1e-4
"""Added to the diagonal of the covariance within images (Thilak et al. 2024)."""


def rankme(features: Tensor) -> float:
    """Compute RankMe, exp(entropy) of the normalized singular values (Garrido et al. 2023, Equation 1).

    Args:
        features: [M, F], M >= 2.

    Returns:
        Between 1 and min(M, F); nan where features are not finite.

    Raises:
        EvaluationError: If features have another shape.
    """
    features = _checked(features, 2)
    if not features.isfinite().all():
        return math.nan
    # Not from a Gram matrix: its rounding errors become singular values of 1e-8, many of which add up in the rank.
    return _entropy_rank(torch.linalg.svdvals(features))


def effective_rank(features: Tensor) -> float:
    """Compute the effective rank of centered features (Roy & Vetterli 2007), as in ``rankme``.

    Singular values are taken from the Gram matrix, in less than half the time of a singular value decomposition. The
    relative error is about 1e-8, and up to 1e-4 where thousands of singular values are zero.

    Args:
        features: [M, F], M >= 2.

    Returns:
        Between 1 and min(M, F), 1 where all features are equal; nan where features are not finite.

    Raises:
        EvaluationError: If features have another shape.
    """
    features = _checked(features, 2)
    if not features.isfinite().all():
        return math.nan
    return _entropy_rank(_squared_singular_values(features - features.mean(dim=0)).sqrt())


def feature_std(features: Tensor) -> float:
    """Compute sqrt(F) times the mean standard deviation of L2-normalized features (Chen & He 2021, Section 4.1).

    Args:
        features: [M, F], M >= 2.

    Returns:
        About 1 for evenly spread directions, 0 where all are the same; nan where features are not finite.

    Raises:
        EvaluationError: If features have another shape.
    """
    features = _checked(features, 2)
    unit = features / features.norm(dim=1, keepdim=True).clamp(min=EPSILON)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1]))


def power_law_exponent(features: Tensor) -> float:
    """Fit the decay alpha of the eigenvalues of the features' covariance, lambda_i ~ i^-alpha (Agrawal et al. 2022).

    alpha is the negative slope of a least-squares line in logarithmic coordinates, through the eigenvalues above 1e-7
    of the largest.

    Args:
        features: [M, F], M >= 2.

    Returns:
        alpha; nan where features are not finite or fewer than two eigenvalues are left.

    Raises:
        EvaluationError: If features have another shape.
    """
    features = _checked(features, 2)
    if not features.isfinite().all():
        return math.nan
    values = _squared_singular_values(features - features.mean(dim=0))
    values = values[values > EPSILON * values.max()].flip(0)
    if len(values) < 2:
        return math.nan
    x = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device).log()
    x, y = x - x.mean(), values.log() - values.log().mean()
    return -float((x @ y) / (x @ x))


def alpha_req(features: Tensor) -> float:
    """Compute -|alpha - 1|, at most 0: features generalize best at alpha = 1 (Agrawal et al. 2022).

    Raises:
        EvaluationError: If features have another shape than [M, F], M >= 2.
    """
    return -abs(power_law_exponent(features) - 1)


def lidar(views: Tensor) -> float:
    """Compute LiDAR, the effective rank of the linear discriminant matrix (Thilak et al. 2024, Equations 1-4).

    Images are the classes and their augmented views the samples. The matrix is S_w^(-1/2) S_b S_w^(-1/2), with 1e-4
    added to the diagonal of S_w; the rank is the exponential of the entropy of its normalized eigenvalues.

    Args:
        views: Features of K views of M images, [M, K, F], M >= 2, K >= 2.

    Returns:
        Between 1 and min(M - 1, F); nan where features are not finite.

    Raises:
        EvaluationError: If features have another shape, or there is one view of each image.
    """
    views = _checked(views, 3)
    if views.shape[1] < 2:
        raise EvaluationError(f"features of {views.shape[1]} views; LiDAR needs at least 2 of each image")
    if not views.isfinite().all():
        return math.nan
    means = views.mean(dim=1)
    between = means - means.mean(dim=0)
    within = (views - means[:, None]).flatten(0, 1)
    size = views.shape[2]
    s_w = within.T @ within / len(within) + LIDAR_DELTA * torch.eye(size, dtype=views.dtype, device=views.device)
    # Whitening by the Cholesky factor instead of the square root rotates the matrix, which keeps its eigenvalues.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(s_w), between.T, upper=False)
    return _entropy_rank(_squared_singular_values(whitened))


def _checked(features: Tensor, dimensions: int) -> Tensor:
    """Check the shape and convert to double precision; raise EvaluationError for another shape."""
    if features.ndim != dimensions or len(features) < 2:
        raise EvaluationError(
            f"features of shape {list(features.shape)}; {dimensions} dimensions and 2 rows are needed"
        )
    return features.detach().double()


def _squared_singular_values(matrix: Tensor) -> Tensor:
    """Compute squared singular values, ascending, from the smaller Gram matrix, exact to 1e-15 of the largest."""
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0)


def _entropy_rank(values: Tensor) -> float:
    """Compute the exponential of the entropy of values >= 0, normalized to a sum of 1; 1 where all are 0."""
    shares = values / values.sum().clamp(min=EPSILON) + EPSILON
    return max(float(torch.exp(-(shares * shares.log()).sum())), 1.0)


def compared(features: Tensor) -> Tensor:
    """Return the features of at most 2,048 images, spread evenly, all pairs of which ``uniformity`` compares."""
    return features[:: -(-len(features) // PAIRED_IMAGES)]


def uniformity(features: Tensor) -> float:
    """Compute how evenly features cover the sphere (Wang & Isola 2020, Equation 2), at most 0; lower is more even.

    The logarithm of the mean of exp(-2 d^2) over all pairs of different images, d their distance on the unit sphere.

    Args:
        features: [M, F] with M >= 2; at most 2,048 images, spread evenly, are compared.

    Raises:
        EvaluationError: If there are fewer than two images.
    """
    if len(features) < 2:
        raise EvaluationError(f"uniformity needs two images or more, not {len(features)}")
    squared = torch.pdist(functional.normalize(compared(features).double(), dim=1)).square()
    return float(squared.mul(-2).exp().mean().log())


def alignment(features: Tensor) -> float:
    """Compute how far apart views of one image are (Wang & Isola 2020, Equation 1), 0 to 4; lower is closer.

    The mean squared distance on the unit sphere over all pairs of different views of an image. Features of zero, which
    have no direction, stay at its center.

    Args:
        features: Features of the views of each image, [M, V, F] with V >= 2.

    Raises:
        EvaluationError: If there are fewer than two views.
    """
    images, views, _ = features.shape
    if views < 2:
        raise EvaluationError(f"alignment needs two views of each image or more, not {views}")
    unit = functional.normalize(features.double(), dim=2)
    # The sum over pairs of |u - v|^2 is V sum |u|^2 - |sum u|^2. Not V^2 for the first term: |u| may be 0.
    total = views * unit.square().sum(dim=(1, 2)) - unit.sum(dim=1).square().sum(dim=1)
    return max(float(total.mean() / (views * (views - 1) / 2)), 0.0)  # of equal views, rounding can be below 0

"""Scores of features that need no labels, and signs of their collapse."""

import math

import torch
from torch import Tensor

EPSILON = 1e-7
LIDAR_DELTA = 1e-4


def rankme(features: Tensor) -> float:
    """RankMe: the exponential of the entropy of the normalized singular values (Garrido et al. 2023, Equation 1).

    Args:
        features: [n, F], n >= 2.

    Returns:
        Between 1 and min(n, F); nan where features are not finite.
    """
    features = _checked(features, 2)
    if not features.isfinite().all():
        return math.nan
    # Not from a Gram matrix: its rounding errors become singular values of 1e-8, and many add up to a part of the rank.
    return _entropy_rank(torch.linalg.svdvals(features))


def effective_rank(features: Tensor) -> float:
    """Compute the same of centered features (Roy & Vetterli 2007); 1 where all features are equal.

    The Gram matrix gives it in less than half the time of a singular value decomposition, with a relative error of
    about 1e-8; up to 1e-4 where thousands of singular values are zero.
    """
    features = _checked(features, 2)
    if not features.isfinite().all():
        return math.nan
    return _entropy_rank(_squared_singular_values(features - features.mean(dim=0)).sqrt())


def feature_std(features: Tensor) -> float:
    """Spread of L2-normalized features: sqrt(F) times the mean standard deviation (Chen & He 2021, Section 4.1).

    Args:
        features: [n, F], n >= 2.

    Returns:
        About 1 for directions that are spread evenly, 0 where all are the same; nan where features are not finite.
    """
    features = _checked(features, 2)
    unit = features / features.norm(dim=1, keepdim=True).clamp(min=EPSILON)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1]))


def power_law_exponent(features: Tensor) -> float:
    """Decay alpha of the eigenvalues of the features' covariance, lambda_i ~ i^-alpha (Agrawal et al. 2022).

    The slope of a straight line, by least squares, through the logarithms of the eigenvalues above 1e-7 of the largest.

    Args:
        features: [n, F], n >= 2.

    Returns:
        alpha; nan where features are not finite or fewer than two eigenvalues are left.
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
    """How near the exponent is to 1, where features generalize best (Agrawal et al. 2022): -|alpha - 1|, at most 0."""
    return -abs(power_law_exponent(features) - 1)


def lidar(views: Tensor) -> float:
    """LiDAR: effective rank of the linear discriminant matrix (Thilak et al. 2024, Equations 1-4).

    With the images as classes and their augmented views as samples: S_w^(-1/2) S_b S_w^(-1/2), where S_w has 1e-4 added
    to its diagonal; the exponential of the entropy of its normalized eigenvalues.

    Args:
        views: Features of q views of n images, [n, q, F], n >= 2, q >= 2.

    Returns:
        Between 1 and min(n - 1, F); nan where features are not finite.
    """
    views = _checked(views, 3)
    if views.shape[1] < 2:
        raise ValueError(f"features of {views.shape[1]} views; LiDAR needs at least 2 of each image")
    if not views.isfinite().all():
        return math.nan
    means = views.mean(dim=1)
    between = means - means.mean(dim=0)
    within = (views - means[:, None]).flatten(0, 1)
    size = views.shape[2]
    s_w = within.T @ within / len(within) + LIDAR_DELTA * torch.eye(size, dtype=views.dtype, device=views.device)
    # Whitening by Cholesky's factor in place of the root turns the matrix, which leaves its eigenvalues.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(s_w), between.T, upper=False)
    return _entropy_rank(_squared_singular_values(whitened))


def _checked(features: Tensor, dimensions: int) -> Tensor:
    """The features in double precision."""
    if features.ndim != dimensions or len(features) < 2:
        raise ValueError(f"features of shape {list(features.shape)}; {dimensions} dimensions and 2 rows are needed")
    return features.detach().double()


def _squared_singular_values(matrix: Tensor) -> Tensor:
    """Squares in rising order, exact to 1e-15 of the largest: eigenvalues of the smaller Gram matrix."""
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0)


def _entropy_rank(values: Tensor) -> float:
    """The exponential of the entropy of values >= 0 that are normalized to a sum of 1; 1 where all are 0."""
    shares = values / values.sum().clamp(min=EPSILON) + EPSILON
    return max(float(torch.exp(-(shares * shares.log()).sum())), 1.0)

"""The time-varying Gaussian process of PB2 (Parker-Holder et al. 2020) and the choice of values by its upper bound."""

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel, WhiteKernel

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]

MAX_OBSERVATIONS = 200
"""Only the newest are fitted: the cost grows with their number cubed, and old ones carry little weight."""
CANDIDATES, KEPT, SPREADS = 1024, 64, (0.1, 0.03, 0.01)
"""Random candidates, how many of them each refinement keeps, and its standard deviations in units of the bounds."""
TINY = 1e-8
"""Smallest divisor, where all values of a column or all gains are equal."""
EXPLORATION = (0.2, 0.4)
"""c1 and c2 of the confidence bound, beta = c1 + log(c2 t) after t observations (Parker-Holder et al. 2020)."""


class TimeVaryingKernel(Kernel):  # type: ignore[misc]  # scikit-learn ships no type information
    """Squared exponential kernel that decays with time (Bogunovic et al. 2016, Equation 5).

    k(x, x') = variance exp(-|x - x'|^2 / length_scale) (1 - epsilon)^(|t - t'| / 2), with the time t in column 0.
    """

    def __init__(self, variance: float = 1.0, length_scale: float = 1.0, epsilon: float = 0.1) -> None:
        """Start the fit from these values; epsilon in (0, 1) is the rate of forgetting, where all times span 1."""
        self.variance, self.length_scale, self.epsilon = variance, length_scale, epsilon

    @property
    def hyperparameter_variance(self) -> Hyperparameter:
        """Bounds of the variance."""
        return Hyperparameter("variance", "numeric", (1e-3, 1e3))

    @property
    def hyperparameter_length_scale(self) -> Hyperparameter:
        """Bounds of the squared length scale, where all columns span 1."""
        return Hyperparameter("length_scale", "numeric", (1e-2, 1e2))

    @property
    def hyperparameter_epsilon(self) -> Hyperparameter:
        """Bounds of the rate of forgetting."""
        return Hyperparameter("epsilon", "numeric", (1e-5, 0.5))

    def __call__(self, X: Matrix, Y: Matrix | None = None, eval_gradient: bool = False) -> Any:  # noqa: N803
        """Compute the covariances of rows.

        Args:
            X: Time in column 0, then score and P searched values, [n, 2 + P].
            Y: The same, [m, 2 + P]; None takes X.
            eval_gradient: Whether to return the gradient too.

        Returns:
            Covariances [n, m]; with ``eval_gradient`` also their gradient [n, m, 3] towards the logarithms of epsilon,
            length_scale and variance.
        """
        other = X if Y is None else Y
        apart = cdist(X[:, 1:], other[:, 1:], "sqeuclidean") / self.length_scale
        elapsed = np.abs(X[:, :1] - other[:, 0]) / 2
        covariance = self.variance * np.exp(-apart) * (1 - self.epsilon) ** elapsed
        if not eval_gradient:
            return covariance
        forgetting = -elapsed * self.epsilon / (1 - self.epsilon)
        # scikit-learn fits logarithms, hence derivatives times values, and sorts hyperparameters by name.
        return covariance, covariance[:, :, None] * np.stack([forgetting, apart, np.ones_like(apart)], axis=2)

    def diag(self, X: Matrix) -> Vector:  # noqa: N803
        """Return the variance of each row."""
        return np.full(len(X), self.variance)

    def is_stationary(self) -> bool:
        """Return that only differences of rows matter."""
        return True


def choose(
    rows: Matrix, gains: Vector, others: Matrix, point: Vector, bounds: Matrix, generator: np.random.Generator
) -> Vector:
    """Choose the values of highest upper confidence bound on the gain.

    Args:
        rows: Time, score and values of each observation, oldest first, [n, 2 + P], n >= 1.
        gains: Gain in score of each, [n].
        others: Values just chosen for other trials, near which the bound is lowered, [m, P].
        point: Time and score of the weights that will train under the chosen values, [2].
        bounds: Lowest and highest value, [2, P].
        generator: Draws the candidates.

    Returns:
        Values [P] inside the bounds.
    """
    rows, gains = rows[-MAX_OBSERVATIONS:], gains[-MAX_OBSERVATIONS:]
    seen = np.stack([rows[:, :2].min(axis=0), rows[:, :2].max(axis=0)])
    limits = np.concatenate([seen, bounds], axis=1)
    scaled = _scaled(rows, limits)
    # Standardized for the kernel's bounds; clipped so that one collapse does not flatten the differences of all others.
    target = np.clip((gains - gains.mean()) / max(float(gains.std()), TINY), -2, 2)
    model = _fit(scaled, target)
    # The width of the bound also counts trials that already train under their new values. A posterior variance does not
    # depend on the targets, so zeros can stand in for gains that are not known yet.
    pending = np.concatenate([np.tile(_scaled(point, seen), (len(others), 1)), _scaled(others, bounds)], axis=1)
    width = GaussianProcessRegressor(model.kernel_, optimizer=None)
    width.fit(np.concatenate([scaled, pending]), np.concatenate([target, np.zeros(len(others))]))
    c1, c2 = EXPLORATION
    # The logarithm is negative for fewer than 1 / c2 observations; at zero, c1 alone keeps exploring.
    weight = math.sqrt(c1 + max(0.0, math.log(c2 * len(rows))))

    def bound(values: Matrix) -> Vector:
        inputs = np.concatenate([np.tile(_scaled(point, seen), (len(values), 1)), values], axis=1)
        result: Vector = model.predict(inputs) + weight * width.predict(inputs, return_std=True)[1]
        return result

    # Random search with shrinking steps: the bound has many local maxima, so that a gradient would need restarts.
    candidates = generator.random((CANDIDATES, bounds.shape[1]))
    for spread in SPREADS:
        best = candidates[np.argsort(-bound(candidates))[:KEPT]]
        nearby = best + spread * generator.standard_normal(best.shape)
        candidates = np.concatenate([best, np.clip(nearby, 0, 1)])
    chosen = candidates[int(np.argmax(bound(candidates)))]
    values: Vector = bounds[0] + chosen * (bounds[1] - bounds[0])
    return values


def _scaled(values: Matrix, limits: Matrix) -> Matrix:
    """Scale columns so that the limits become 0 and 1."""
    result: Matrix = (values - limits[0]) / np.maximum(limits[1] - limits[0], TINY)
    return result


def _fit(rows: Matrix, gains: Vector) -> GaussianProcessRegressor:
    """Fit the kernel's values and the noise by maximum likelihood."""
    model = GaussianProcessRegressor(TimeVaryingKernel() + WhiteKernel(0.1, (1e-4, 1e1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # warns of each value at its bound, which is harmless here
        return model.fit(rows, gains)

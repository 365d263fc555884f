"""The time-varying Gaussian process of PB2 (Parker-Holder et al. 2020) and the choice of values by its upper bound."""

import math
import warnings
from typing import Any, NamedTuple

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
JITTER = 1e-10
"""Added to every variance, so that equal rows without known noise have a positive definite covariance."""
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

    def __call__(self, X: Matrix, Y: Matrix | None = None, eval_gradient: bool = False) -> Any:
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

    def diag(self, X: Matrix) -> Vector:
        """Return the variance of each row."""
        return np.full(len(X), self.variance)

    def is_stationary(self) -> bool:
        """Return that only differences of rows matter."""
        return True


class Data(NamedTuple):
    """Observed gains, oldest first.

    Attributes:
        rows: Time, score and values of each, [n, 2 + P], n >= 1.
        gains: Gain in score of each, [n].
        errors: Standard error of each gain as far as it is known, >= 0, [n].
    """

    rows: Matrix
    gains: Vector
    errors: Vector


class Surrogate:
    """A Gaussian process fitted to gains, and the choice of values by its upper confidence bound."""

    def __init__(self, data: Data, bounds: Matrix) -> None:
        """Fit to the newest observations.

        Args:
            data: The observations.
            bounds: Lowest and highest value, [2, P].
        """
        rows, gains, errors = (part[-MAX_OBSERVATIONS:] for part in data)
        self._bounds = bounds
        # Time and score of what was seen span 1, as the bounds of the values do.
        self._limits = np.concatenate([np.stack([rows[:, :2].min(axis=0), rows[:, :2].max(axis=0)]), bounds], axis=1)
        self._rows = _scaled(rows, self._limits)
        # Standardized for the kernel's bounds; clipped so that the process need not follow one collapse.
        spread = max(float(gains.std()), TINY)
        self._target, self._noise = np.clip((gains - gains.mean()) / spread, -2, 2), (errors / spread) ** 2
        self._model = fit(self._rows, self._target, self._noise)

    def choose(self, pending: Matrix, point: Vector, generator: np.random.Generator) -> Vector:
        """Choose the values of highest upper confidence bound on the gain.

        Args:
            pending: Time, score and values of trials that have yet to report under new values, near which the bound is
                lowered, [m, 2 + P].
            point: Time and score of the weights that will train under the chosen values, [2].
            generator: Draws the candidates.

        Returns:
            Values [P] inside the bounds.
        """
        # A posterior variance does not depend on the targets, so zeros can stand in for gains that are not known yet.
        noise = np.concatenate([self._noise, np.full(len(pending), self._noise.mean())])
        # The white term is noise of the observations and no uncertainty about the gain: it must not widen the bound.
        smooth, white = self._model.kernel_.k1, self._model.kernel_.k2.noise_level
        width = GaussianProcessRegressor(smooth, alpha=noise + white + JITTER, optimizer=None).fit(
            np.concatenate([self._rows, _scaled(pending, self._limits)]),
            np.concatenate([self._target, np.zeros(len(pending))]),
        )
        c1, c2 = EXPLORATION
        # The logarithm is negative for fewer than 1 / c2 observations; at zero, c1 alone keeps exploring.
        weight = math.sqrt(c1 + max(0.0, math.log(c2 * len(self._rows))))
        now = _scaled(point, self._limits[:, :2])

        def bound(values: Matrix) -> Vector:
            inputs = np.concatenate([np.tile(now, (len(values), 1)), values], axis=1)
            result: Vector = self._model.predict(inputs) + weight * width.predict(inputs, return_std=True)[1]
            return result

        # Random search with shrinking steps: the bound has many local maxima, so that a gradient would need restarts.
        low, high = self._bounds
        candidates = generator.random((CANDIDATES, len(low)))
        for spread in SPREADS:
            best = candidates[np.argsort(-bound(candidates))[:KEPT]]
            nearby = best + spread * generator.standard_normal(best.shape)
            candidates = np.concatenate([best, np.clip(nearby, 0, 1)])
        chosen: Vector = low + candidates[int(np.argmax(bound(candidates)))] * (high - low)
        return chosen


def _scaled(values: Matrix, limits: Matrix) -> Matrix:
    """Scale columns so that the limits become 0 and 1."""
    result: Matrix = (values - limits[0]) / np.maximum(limits[1] - limits[0], TINY)
    return result


def fit(rows: Matrix, gains: Vector, noise: Vector) -> GaussianProcessRegressor:
    """Fit the kernel's values by maximum likelihood, and the noise beyond what is known.

    Args:
        rows: Scaled time, score and values, [n, 2 + P].
        gains: Standardized gains, [n].
        noise: Known variance of each gain, [n].

    Returns:
        The posterior, whose kernel ends in a white term for noise of training, which images do not show.
    """
    model = GaussianProcessRegressor(TimeVaryingKernel() + WhiteKernel(0.1, (1e-4, 1e1)), alpha=noise + JITTER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # warns of each value at its bound, which is harmless here
        return model.fit(rows, gains)

"""The Gaussian process of PB2 against closed forms, finite differences and a known optimum."""

from typing import Any

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from adios_ray.search import gaussian_process
from adios_ray.search.gaussian_process import Data, Matrix, Surrogate, TimeVaryingKernel, Vector, fit

BOUNDS = np.array([[0.0, -2.0], [1.0, 4.0]])


def observations(count: int, seed: int) -> tuple[Matrix, Matrix]:
    """Make noisy gains that are highest at (0.7, 1), independent of time and score."""
    generator = np.random.default_rng(seed)
    values = BOUNDS[0] + generator.random((count, 2)) * (BOUNDS[1] - BOUNDS[0])
    rows = np.concatenate([np.arange(count)[:, None], generator.random((count, 1)), values], axis=1)
    gains = -((values[:, 0] - 0.7) ** 2) - ((values[:, 1] - 1) / 6) ** 2 + 0.01 * generator.standard_normal(count)
    return rows, gains


def choose(rows: Matrix, gains: Vector, given: Matrix, point: Vector, seed: int, error: float = 0.0) -> Vector:
    """Choose values beside pending ones at the same time and score."""
    pending = np.concatenate([np.tile(point, (len(given), 1)), given], axis=1)
    surrogate = Surrogate(Data(rows, gains, np.full(len(rows), error)), BOUNDS)
    return surrogate.choose(pending, point, np.random.default_rng(seed))


def test_the_kernel_matches_its_formula_and_its_gradient_finite_differences() -> None:
    generator = np.random.default_rng(0)
    rows, kernel = generator.random((6, 4)), TimeVaryingKernel(1.7, 0.4, 0.2)
    covariance, gradient = kernel(rows, eval_gradient=True)
    for i, j in np.ndindex(6, 6):
        apart = np.sum((rows[i, 1:] - rows[j, 1:]) ** 2) / 0.4
        expected = 1.7 * np.exp(-apart) * 0.8 ** (abs(rows[i, 0] - rows[j, 0]) / 2)
        assert covariance[i, j] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(np.diag(covariance), kernel.diag(rows), rtol=1e-12)
    for position in range(3):
        step = np.zeros(3)
        step[position] = 1e-6
        above, below = kernel.clone_with_theta(kernel.theta + step), kernel.clone_with_theta(kernel.theta - step)
        np.testing.assert_allclose(gradient[:, :, position], (above(rows) - below(rows)) / 2e-6, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_the_choice_is_near_the_optimum_and_repeats() -> None:
    rows, gains = observations(60, seed=1)
    chosen = [choose(rows, gains, np.empty((0, 2)), np.array([60, 0.5]), seed) for seed in (3, 3, 4)]
    assert np.array_equal(chosen[0], chosen[1])
    for values in chosen:
        assert np.all(values >= BOUNDS[0]) and np.all(values <= BOUNDS[1])
        assert abs(values[0] - 0.7) < 0.2 and abs(values[1] - 1) < 1.2


@pytest.mark.slow
def test_trials_of_one_decision_get_distinct_values() -> None:
    rows, gains = observations(8, seed=2)
    point, given = np.array([8, 0.5]), np.empty((0, 2))
    for seed in range(3):
        chosen = choose(rows, gains, given, point, seed)
        given = np.concatenate([given, chosen[None]])
    scaled = (given - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0])
    apart = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)[np.triu_indices(3, 1)]
    assert apart.min() > 0.05


def test_a_fit_with_equal_gains_or_one_row_is_finite() -> None:
    rows, gains = observations(5, seed=3)
    for some, own in ((rows, np.zeros(5)), (rows[:1], gains[:1])):
        chosen = choose(some, own, rows[:2, 2:], np.array([5, 0.5]), 0)
        assert np.isfinite(chosen).all()


def test_a_surrogate_is_fitted_to_the_newest_standardized_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows, gains, errors = generator.random((20, 4)), generator.standard_normal(20), generator.random(20)
    gains[15] = -1000  # which is clipped
    fitted = list[tuple[Any, ...]]()
    monkeypatch.setattr(gaussian_process, "fit", lambda *given: fitted.append(given))
    monkeypatch.setattr(gaussian_process, "MAX_OBSERVATIONS", 12)
    Surrogate(Data(rows, gains, errors), np.array([[0.0, -1.0], [1.0, 3.0]]))
    ((scaled, targets, noise),) = fitted
    rows, gains, errors = rows[8:], gains[8:], errors[8:]
    low, high = np.array([*rows[:, :2].min(axis=0), 0, -1]), np.array([*rows[:, :2].max(axis=0), 1, 3])
    np.testing.assert_allclose(scaled, (rows - low) / (high - low), rtol=1e-12)
    np.testing.assert_allclose(targets, np.maximum((gains - gains.mean()) / gains.std(), -2), rtol=1e-12)
    np.testing.assert_allclose(noise, (errors / gains.std()) ** 2, rtol=1e-12)


def test_the_process_forgets() -> None:
    """Two observations at one point disagree: predictions at either time follow the one of that time."""
    rows = np.array([[0.0, 0.5], [1.0, 0.5]])
    model = GaussianProcessRegressor(TimeVaryingKernel(epsilon=0.5), alpha=0.1, optimizer=None).fit(rows, [-1.0, 1.0])
    assert model.predict([[1.0, 0.5]])[0] > 0 > model.predict([[0.0, 0.5]])[0]


def test_the_posterior_is_the_closed_form_with_a_diagonal_noise_matrix() -> None:
    rows, gains = observations(12, seed=4)
    generator = np.random.default_rng(0)
    noise, new = generator.random(12) ** 3, np.concatenate([rows[:2] + 0.1, generator.random((3, 4))])
    model = fit(rows, gains, noise)
    kernel, white = model.kernel_.k1, model.kernel_.k2.noise_level
    inverse = np.linalg.inv(kernel(rows) + np.diag(noise + white))
    across = kernel(new, rows)
    mean, deviation = model.predict(new, return_std=True)
    np.testing.assert_allclose(mean, across @ inverse @ gains, rtol=1e-6, atol=1e-9)
    variance = kernel.diag(new) + white - np.einsum("ij,jk,ik->i", across, inverse, across)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-6, atol=1e-9)
    reference = GaussianProcessRegressor(model.kernel_, alpha=noise, optimizer=None).fit(rows, gains)
    np.testing.assert_allclose(mean, reference.predict(new), rtol=1e-6, atol=1e-9)


def test_a_gain_of_large_error_counts_less() -> None:
    """One gain is far off the curve of all others: the prediction follows it only if it claims to be exact."""
    x = np.linspace(0, 1, 21)
    rows, gains = np.stack([np.zeros(21), np.zeros(21), x], axis=1), np.sin(6 * x)
    gains[10] += 3.0
    off = [
        fit(rows, gains, np.where(np.arange(21) == 10, noise, 1e-4)).predict(rows[10:11])[0] - np.sin(3.0)
        for noise in (1e-4, 9.0)
    ]
    assert abs(off[1]) < 0.05 < 0.2 < off[0]

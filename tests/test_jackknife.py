"""The jackknife against the closed form for means, and against new samples."""

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import f1_score

from adios_ray.evaluation.jackknife import jackknife_errors, pseudo_values
from adios_ray.evaluation.outcomes import decoded, encoded, standard_error


def test_the_error_of_a_mean_has_a_closed_form() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 40)  # fewer than groups: one image is left out at a time
    (error,) = jackknife_errors(lambda rows: [values[rows].mean()], 40)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=1e-12)


def test_groups_are_left_out_as_in_a_loop() -> None:
    values, groups = np.random.default_rng(2).random(40), []

    def median(rows: npt.NDArray[np.int64]) -> list[float]:
        groups.append(set(range(40)) - set(rows.tolist()))
        return [float(np.median(values[rows]))]

    (error,) = jackknife_errors(median, 40, groups=10)
    assert sorted(row for group in groups for row in group) == list(range(40)) and {len(g) for g in groups} == {4}
    left_out = [np.median([value for row, value in enumerate(values) if row not in group]) for group in groups]
    assert error == pytest.approx(np.sqrt(0.9 * sum((value - np.mean(left_out)) ** 2 for value in left_out)), rel=1e-12)


def test_pseudo_values_of_a_mean_are_the_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 40)
    found = pseudo_values(lambda rows: float(values[rows].mean()), 40)
    np.testing.assert_allclose(np.sort(found), np.sort(values), rtol=1e-12)


def test_two_f1_are_compared_by_their_pseudo_values_as_by_a_jackknife_of_the_difference() -> None:
    rng = np.random.default_rng(3)
    truth, hard = rng.random(300) < 0.3, rng.random(300) < 0.2
    first, second = (truth ^ hard ^ (rng.random(300) < share) for share in (0.02, 0.05))

    def f1(predicted: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64]) -> float:
        return float(f1_score(truth[rows], predicted[rows]))

    own, others = (decoded(encoded(pseudo_values(partial(f1, each), 300))) for each in (first, second))
    error, of_difference = jackknife_errors(lambda rows: [f1(first, rows), f1(first, rows) - f1(second, rows)], 300)
    assert len(own) == 50 and own.max() > 1
    assert own.mean() == pytest.approx(f1(first, np.arange(300)), rel=1e-12)
    assert standard_error(own) == pytest.approx(error, rel=1e-12)
    assert standard_error(own - others) == pytest.approx(of_difference, rel=1e-12)


def test_a_measure_that_some_images_decide_has_no_error() -> None:
    found = jackknife_errors(lambda rows: [1.0, np.nan if 7 not in rows else 2.0], 40)
    assert found == (0, None)


@pytest.mark.slow
def test_the_error_of_f1_is_its_spread_over_samples() -> None:
    rng = np.random.default_rng(1)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        """Draw labels of 500 images, and predictions that are right in 80 %."""
        truth = rng.random(500) < 0.3
        return truth, truth ^ (rng.random(500) < 0.2)

    spread = np.std([f1_score(*draw()) for _ in range(100)], ddof=1)
    truth, predicted = draw()
    (error,) = jackknife_errors(lambda rows: [f1_score(truth[rows], predicted[rows])], 500)
    assert error == pytest.approx(spread, rel=0.4)

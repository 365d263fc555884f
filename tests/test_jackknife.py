"""The jackknife against the closed form for means, and against new samples."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import f1_score

from adios_ray.evaluation.jackknife import jackknife_errors


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

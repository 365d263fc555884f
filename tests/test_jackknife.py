"""The jackknife against the closed form for means, and against new samples."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from adios_ray.evaluation.jackknife import jackknife_errors


def test_the_error_of_a_mean_has_a_closed_form() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 40)  # fewer than groups: one image is left out at a time
    (error,) = jackknife_errors(lambda rows: [values[rows].mean()], 40)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=1e-12)


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

"""Standard errors over images of measures that are no means over images, such as F1."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

GROUPS = 50
"""Groups of images, each of which is left out once; with 50, a standard error is known to about 10 %."""


def jackknife_errors(
    measures: Callable[[npt.NDArray[np.int64]], Sequence[float]], images: int, groups: int = GROUPS
) -> tuple[float | None, ...]:
    """Estimate standard errors over images by the delete-a-group jackknife (Shao & Tu 1995, Section 2.3).

    With g groups and theta_i the measure without group i, the squared error is (g - 1) / g times the sum of the squared
    deviations of the theta_i from their mean. Groups are drawn by a fixed seed.

    Args:
        measures: Computes measures of the images with these indices, ascending int64 [m].
        images: Number of images M, at least 2.
        groups: Number of groups g, at least 2; M where there are fewer images.

    Returns:
        The error of each measure; None where the measure is not finite without one of the groups.
    """
    groups = min(groups, images)
    group = np.random.default_rng(0).permutation(images) % groups
    values = np.array([measures(np.flatnonzero(group != number)) for number in range(groups)])
    errors: list[float] = (values.std(axis=0) * math.sqrt(groups - 1)).tolist()
    return tuple(error if math.isfinite(error) else None for error in errors)

"""The jackknife: standard errors over images of measures that are no means over images, such as F1."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Measures = Callable[[npt.NDArray[np.int64]], Sequence[float]]
"""Computes measures of the images with these indices, ascending int64 [m]."""

GROUPS = 50
"""Groups of images, each of which is left out once; with 50, a standard error is known to about 10 %."""


def jackknife_errors(measures: Measures, images: int, groups: int = GROUPS) -> tuple[float | None, ...]:
    """Estimate standard errors over images by the delete-a-group jackknife (Shao & Tu 1995, Section 2.3).

    With g groups and theta_i the measure without group i, the squared error is (g - 1) / g times the sum of the squared
    deviations of the theta_i from their mean. Groups are drawn by a fixed seed.

    Args:
        measures: Computes the measures.
        images: Number of images M, at least 2.
        groups: Number of groups g, at least 2; M where there are fewer images.

    Returns:
        The error of each measure; None where the measure is not finite without one of the groups.
    """
    values = _without_each_group(measures, images, groups)
    errors: list[float] = (values.std(axis=0) * math.sqrt(len(values) - 1)).tolist()
    return tuple(error if math.isfinite(error) else None for error in errors)


def pseudo_values(measure: Callable[[npt.NDArray[np.int64]], float], images: int) -> npt.NDArray[np.float64]:
    """Compute a number for each group, with the measure as their mean and its jackknife error as the mean's.

    They are Tukey's pseudo-values without the correction of bias: theta + (g - 1) (mean of the theta_i - theta_i). The
    groups depend on the number of images alone: differences of two measures' pseudo-values have the jackknife error of
    the measures' difference, as differences of single images have that of two means.

    Args:
        measure: Computes the measure of the images with these indices, ascending int64 [m]; finite.
        images: Number of images M, at least 2.

    Returns:
        The pseudo-values, [g]; g is 50, or M where there are fewer images.
    """
    without = _without_each_group(lambda kept: [measure(kept)], images, GROUPS)[:, 0]
    values: npt.NDArray[np.float64] = measure(np.arange(images)) + (len(without) - 1) * (without.mean() - without)
    return values


def _without_each_group(measures: Measures, images: int, groups: int) -> npt.NDArray[np.float64]:
    """Compute measures without each group of images in turn, [g, measures]."""
    groups = min(groups, images)
    group = np.random.default_rng(0).permutation(images) % groups
    return np.array([measures(np.flatnonzero(group != number)) for number in range(groups)])

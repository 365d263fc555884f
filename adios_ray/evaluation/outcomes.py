"""Outcomes of an evaluation: numbers whose mean is its value, by which evaluations of the same images are paired."""

import math
from io import BytesIO

import numpy as np
import numpy.typing as npt

Outcomes = npt.NDArray[np.float64]
"""The outcome of each image in [0, 1], [n]; or the jackknife's pseudo-value of each group of images, [g]."""


def encoded(outcomes: Outcomes) -> bytes:
    """Encode outcomes that may be outside of [0, 1], in numpy's npy format."""
    file = BytesIO()
    np.save(file, outcomes)
    return file.getvalue()


def decoded(outcomes: bytes) -> Outcomes:
    """Decode outcomes: in the npy format, or a byte each, 255 times a number in [0, 1]."""
    if outcomes.startswith(np.lib.format.MAGIC_PREFIX):
        values: Outcomes = np.load(BytesIO(outcomes))
        return values
    return np.frombuffer(outcomes, np.uint8) / 255


def standard_error(values: Outcomes) -> float:
    """Compute the standard error of the mean of outcomes, or of the differences of two evaluations' outcomes."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))

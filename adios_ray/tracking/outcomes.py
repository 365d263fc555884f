"""Outcomes of the validation images of selection in a trial's report: a file with a byte for each image."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adios_ray.files import atomic_write
from adios_ray.run_directory import RunDirectory

Outcomes = npt.NDArray[np.float64]
"""Outcome of each validation image in [0, 1], [n]; the same images in the same order for all trials of a run."""


def write_outcomes(run_dir: Path, trial: str, epoch: int, outcomes: bytes) -> None:
    """Store the outcomes of the images in a trial's report.

    Raises:
        OSError: If storage fails.
    """
    path = RunDirectory(run_dir).outcomes(trial, epoch)
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, outcomes)


def read_outcomes(run_dir: Path, trial: str, epoch: int) -> Outcomes | None:
    """Read the outcomes of the images in a trial's report; None where there are none, or no longer."""
    path = RunDirectory(run_dir).outcomes(trial, epoch)
    return decoded(path.read_bytes()) if path.exists() else None


def decoded(outcomes: bytes) -> Outcomes:
    """Decode outcomes of a byte each."""
    return np.frombuffer(outcomes, np.uint8) / 255


def standard_error(values: Outcomes) -> float:
    """Compute the standard error of the mean of values of images, such as the differences of two trials' outcomes."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def mean_is(outcomes: Outcomes, fitness: float) -> bool:
    """Return whether a fitness is the mean of outcomes, which are rounded to bytes.

    A score that is smoothed over reports is no such mean, nor is macro F1, with which earlier versions stored outcomes:
    these would test something else than what ranks the trials.
    """
    return abs(float(outcomes.mean()) - fitness) < 1 / 255

"""Outcomes of the validation images of selection in a trial's report: a file for each report."""

from pathlib import Path

from adios_ray.evaluation.outcomes import Outcomes, decoded
from adios_ray.files import atomic_write
from adios_ray.run_directory import RunDirectory


def write_outcomes(run_dir: Path, trial: str, epoch: int, outcomes: bytes) -> None:
    """Store the encoded outcomes in a trial's report.

    Raises:
        OSError: If storage fails.
    """
    path = RunDirectory(run_dir).outcomes(trial, epoch)
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, outcomes)


def read_outcomes(run_dir: Path, trial: str, epoch: int) -> Outcomes | None:
    """Read the outcomes in a trial's report; None where there are none, or no longer."""
    path = RunDirectory(run_dir).outcomes(trial, epoch)
    return decoded(path.read_bytes()) if path.exists() else None

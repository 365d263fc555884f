"""Draws the masks of a run: ``python -m adios_ray.tracking.run_picture RUN_DIR OUT.png``."""

import sys
from pathlib import Path

import tyro

from adios_ray.arguments import parse_arguments
from adios_ray.errors import RecordError, UsageError, exit_status
from adios_ray.places import check_output_file, delivered, require_local
from adios_ray.run_directory import RunDirectory
from adios_ray.store import Location
from adios_ray.tracking import lineage, results, run_masks
from adios_ray.tracking.pictures import MARK, save_mask_sheet

IMAGES = 8
"""Most validation images of a picture."""


def save_masks_of_run(run_dir: Path, path: Path, trial: str | None) -> None:
    """Write the sheet of a trial's latest masks as PNG.

    Args:
        run_dir: The run directory.
        path: The PNG to write.
        trial: Trial whose masks are drawn; None takes the trial of highest fitness.

    Raises:
        RecordError: If the trial has no masks, or no trial has reported.
    """
    best = lineage.best_row(results.read_results(run_dir))
    name = trial or (best.trial if best else "")
    epochs = run_masks.mask_epochs(run_dir, name)
    if not epochs:
        raise RecordError(f"{run_dir}: no masks of trial {name!r} are stored")
    stored = run_masks.read_masks(run_dir, name, epochs[-1])
    save_mask_sheet(stored.images[:IMAGES], stored.masks[:IMAGES], path)


def main(
    run_dir: tyro.conf.Positional[Location], out: tyro.conf.Positional[Location], trial: str | None = None
) -> None:
    """Write a picture of a run's masks.

    Args:
        run_dir: The run directory; a local path.
        out: The PNG to write; a path or a URI.
        trial: Trial whose masks are drawn; by default the best trial.

    Raises:
        UsageError: If it is not a run directory, or ``out`` is another file.
    """
    run = RunDirectory(require_local(run_dir, "RUN_DIR"))
    if not run.config.is_file():
        raise UsageError(f"{run_dir} is not a run directory: it has no {run.config.name}")
    check_output_file(out, MARK)
    with delivered(out) as path:
        save_masks_of_run(run.path, path, trial)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: parse_arguments(main)))

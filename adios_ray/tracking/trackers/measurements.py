"""Contents of a report for all trackers: its numbers, and pictures of its masks."""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from adios_ray.run_directory import MASKS
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.pictures import mask_sheet
from adios_ray.tracking.results import Row
from adios_ray.tracking.run_masks import mask_epochs, read_masks

IMAGES = 8
"""Validation images whose masks are logged."""


def measurements(row: Row) -> dict[str, float]:
    """Return the finite numbers of a report, and the searched values that are numbers, by name."""
    measured = {**row.model_dump(exclude={"time", "trial", "epoch", "values", "worker_pid"}), **row.values}
    return {key: value for key, value in measured.items() if isinstance(value, int | float) and math.isfinite(value)}


def sheets(storage: RunStorage, row: Row) -> Iterator[Image.Image]:
    """Draw the masks that a trial stored with a report, a sheet for each of the first images; none without masks."""
    run_dir = storage.directory
    if row.epoch not in mask_epochs(run_dir, row.trial):
        with suppress(OSError):  # another node may have written some; the report's numbers are what matters
            storage.pull(f"{MASKS}/{row.trial}")
    if row.epoch in mask_epochs(run_dir, row.trial):
        stored = read_masks(run_dir, row.trial, row.epoch)
        for number in range(min(IMAGES, len(stored.images))):
            yield mask_sheet(stored.images[number : number + 1], stored.masks[number : number + 1])


def lineage_of(run_dir: Path, trial: str) -> list[str]:
    """Describe all exploits of a trial so far, a line each."""
    return [
        f"epoch {exploit.epoch}: {f'copied {exploit.donor}, ' if exploit.copies else ''}{exploit.changes}"
        for exploit in read_lineage(run_dir)
        if exploit.trial == trial
    ]

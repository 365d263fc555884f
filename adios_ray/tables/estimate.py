"""The cost of a table, from measured steps: hours and disk, before anything is trained."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

from adios_ray.checkpoints import KEPT_CHECKPOINTS
from adios_ray.config import TrialConfig
from adios_ray.evaluation.transfer import TransferConfig
from adios_ray.tables.grid import Cell, Table
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.cost import measure_step

CPU_PIXELS = 4 * 224**2
"""Bound on the pixels of a measured step on a CPU: with a quarter of them each image takes up to a tenth longer."""


class Cost(NamedTuple):
    """Cost of one cell.

    Attributes:
        hours: Training time on the GPU that was measured, or on one core of the CPU.
        disk_bytes: Size of the checkpoints that stay.
    """

    hours: float
    disk_bytes: float


def estimate(table: Table, cells: Sequence[Cell], device: torch.device) -> list[Cost]:
    """Estimate each cell from one measured step of its kind; evaluations are not counted, see ``tuned_images``.

    Raises:
        MemoryLimitError: If not even a step of the smallest batch fits into the memory.
    """
    keep_freed_memory()
    sizes = [cell.config.image_size or table.data[cell.group].image_size for cell in cells]
    kinds = {_kind(cell.config, size): (cell.config, size) for cell, size in zip(cells, sizes, strict=True)}
    with Progress(console=Console(stderr=True)) as progress:  # rich's track() would end after an interruption's line
        measured = {
            kind: measure_step(config, size, device, cpu_pixels=CPU_PIXELS)
            for kind, (config, size) in progress.track(kinds.items(), description="measuring steps")
        }
    costs = []
    for cell, size in zip(cells, sizes, strict=True):
        step = measured[_kind(cell.config, size)]
        images = cell.config.epochs * table.data[cell.group].images
        costs.append(Cost(images * step.seconds_per_image / 3600, KEPT_CHECKPOINTS * step.state_bytes))
    return costs


def tuned_images(table: Table, cell: Cell) -> int:
    """Count the images that the evaluations of a cell train whole networks on: each epoch's, at each rate."""
    images = 0
    for evaluation in cell.evaluations:
        options = dict(evaluation.options)
        if evaluation.kind == "transfer" and options.get("mode") != "linear":
            settings = TransferConfig.model_validate(options)
            images += settings.epochs * len(settings.rates) * sum(table.data[name].images for name in evaluation.data)
    return images


def _kind(config: TrialConfig, size: int) -> str:
    """Return all settings that the time of a step depends on, as a key."""
    deciding = config.model_dump(
        mode="json",
        include={"backbone", "objective", "masking", "batch_size", "precision"},
        exclude={"masking": {"sparsity_weight", "entropy_weight"}, "objective": {"temperature", "momentum_start"}},
    )
    return json.dumps([deciding, size], sort_keys=True)

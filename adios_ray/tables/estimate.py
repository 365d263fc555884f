"""The cost of a table, from measured steps: hours and disk, before anything is trained."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.devices import timed
from adios_ray.experiment.replay import KEPT_CHECKPOINTS
from adios_ray.masking.schemes import OBJECT_SCHEMES, PATTERN_SCHEMES
from adios_ray.masking.schemes.base import IDS
from adios_ray.models.networks import Networks
from adios_ray.tables.grid import Cell, Table
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.optimizers import build_optimizers
from adios_ray.training.step import train_step

CPU_PIXELS = 16 * 224**2
"""Bound on the pixels of a measured step on a CPU, whose time is in proportion to them; a GPU takes the whole batch."""
STEPS = 3
CLASSES = 100


class Cost(NamedTuple):
    """Cost of one cell.

    Attributes:
        hours: Training time on the GPU that was measured, or on one core of the CPU.
        disk_bytes: Size of the checkpoints that stay.
    """

    hours: float
    disk_bytes: float


def estimate(table: Table, cells: Sequence[Cell], device: torch.device) -> list[Cost]:
    """Estimate each cell from one measured step of its kind; evaluations, which are shorter, are not counted."""
    keep_freed_memory()
    sizes = [cell.config.image_size or table.data[cell.group].image_size for cell in cells]
    kinds = {_kind(cell.config, size): (cell.config, size) for cell, size in zip(cells, sizes, strict=True)}
    measured = {
        kind: _measure(config, size, device)
        for kind, (config, size) in track(kinds.items(), "measuring steps", console=Console(stderr=True))
    }
    costs = []
    for cell, size in zip(cells, sizes, strict=True):
        seconds_per_image, state_bytes = measured[_kind(cell.config, size)]
        images = cell.config.epochs * table.data[cell.group].images
        costs.append(Cost(images * seconds_per_image / 3600, KEPT_CHECKPOINTS * state_bytes))
    return costs


def _kind(config: TrialConfig, size: int) -> str:
    """Return all settings that the time of a step depends on, as a key."""
    deciding = config.model_dump(
        mode="json",
        include={"backbone", "objective", "masking", "batch_size", "precision"},
        exclude={"masking": {"sparsity_weight", "entropy_weight"}, "objective": {"temperature", "momentum_start"}},
    )
    return json.dumps([deciding, size], sort_keys=True)


def _measure(config: TrialConfig, size: int, device: torch.device) -> tuple[float, int]:
    """Return the seconds of a step for each image, and the bytes of a checkpoint."""
    batch_size = config.batch_size if device.type == "cuda" else min(config.batch_size, CPU_PIXELS // size**2)
    networks = Networks(config, size, CLASSES).to(device).train()
    optimizers = build_optimizers(networks, config.optimizer)
    batch = _random_batch(config, batch_size, size, device)

    def step() -> None:
        train_step(networks, optimizers, batch, config, 0.5)

    seconds = [timed(step, device) if device.type == "cuda" else _core_seconds(step) for _ in range(STEPS)]
    moments = [value for o in optimizers.all().values() for state in o.state.values() for value in state.values()]
    tensors = [*networks.state_dict().values(), *(value for value in moments if isinstance(value, torch.Tensor))]
    # Without the first step, in which buffers are allocated.
    return statistics.median(seconds[1:]) / batch_size, sum(t.numel() * t.element_size() for t in tensors)


def _core_seconds(work: Callable[[], object]) -> float:
    """Measure a call on one core, as cells train on CPUs, by the processor's time: other programs do not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    torch.set_num_threads(threads)
    return seconds


def _random_batch(config: TrialConfig, batch_size: int, size: int, device: torch.device) -> Batch:
    a, b = torch.randn(2, batch_size, 3, size, size, device=device)
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    masking, masks, rng = config.masking, None, np.random.default_rng(0)
    masked = 2 * batch_size if config.objective.masked_views == "both" else batch_size
    if scheme := PATTERN_SCHEMES.get(masking.scheme):
        masks = scheme.make(rng.random((masked, scheme.draws)), size).to(device)
    elif objects := OBJECT_SCHEMES.get(masking.scheme):
        instances = torch.randint(masking.slots, (masked, size, size), dtype=torch.uint8)
        masks = objects.make(instances, masking.slots, rng.random((masked, IDS))).float().to(device)
    return Batch(a, b, labels, torch.rand(batch_size, device=device), masks)

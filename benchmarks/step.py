"""Cost of a training step in forward passes of the backbone, beside the minimum that the mathematics needs.

Usage: ``python benchmarks/step.py [--rounds 9] [--channels-last] [--threads 2]``. Prints one JSON object: the rate of a
large matrix product; for each size of batch F, the time of one forward pass of the backbone over one batch (training
mode, graph recorded) in the faster memory layout; and for each row the seconds of a whole step (both views, both
players, both optimizers, probe), its multiple of F, the floor in F, its floating-point operations, and their rate as a
share of the matrix product's. All measurements are interleaved in one process, F before each row; figures are medians.
About four minutes on two cores.
"""

import copy
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.devices import prepare_device, timed
from adios_ray.errors import exit_status
from adios_ray.models.networks import Networks
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.optimizers import build_optimizers
from adios_ray.training.step import train_step
from adios_ray.validation import parse

BATCH, SIZE, CLASSES = 32, 64, 10
PRODUCT = 2048
"""Side of the matrices of the product whose rate is measured."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Row:
    """One kind of training step to measure."""

    objective: str
    masking: str
    slots: int
    order: str
    masked_views: str = "one"
    batch: int = BATCH
    size: int = SIZE
    width: int = 16
    channels_last: bool = False

    def config(self, channels_last: bool) -> TrialConfig:
        """Build the configuration: ResNet-18, heads 512 wide with 128 outputs."""
        values: dict[str, Any] = {
            "channels_last": channels_last,
            "objective": {
                "name": self.objective,
                "hidden_dim": 512,
                "output_dim": 128,
                "masked_views": self.masked_views,
            },
            "masking": {"scheme": self.masking, "slots": self.slots, "order": self.order, "width": self.width},
        }
        return parse(TrialConfig, values)

    def floor(self) -> int:
        """Count the backbone work that the mathematics needs, in forward passes; a backward pass counts as two."""
        slots = 1 if self.masking == "adios-s" else self.slots
        unmasked, masked = (2, 2 * slots) if self.masked_views == "both" else (1, slots)
        floor = 3 * (unmasked + masked)
        if self.objective == "byol":  # the target network: forward only
            floor += unmasked + masked
        # The occlusion model's own step: forward on all views, and the gradient with respect to masked inputs only.
        if self.order == "alternating":
            floor += unmasked + 2 * masked
        return floor


ROWS = (
    Row("simclr", "adios", 4, "simultaneous"),
    Row("simclr", "adios", 4, "alternating"),
    Row("simclr", "adios", 6, "simultaneous"),
    Row("byol", "adios", 4, "simultaneous"),
    Row("byol", "adios", 4, "alternating"),
    Row("simsiam", "adios", 4, "simultaneous", "both"),
    Row("simsiam", "adios", 4, "simultaneous"),
    Row("simclr", "adios-s", 4, "simultaneous"),
    Row("simclr", "adios", 4, "simultaneous", batch=64, size=96, width=32, channels_last=True),
)


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    rounds: int = 9
    """Number of times that each row is measured."""
    channels_last: bool = False
    """Whether the backbone is channels-last in all rows."""
    rows: tuple[int, ...] = tuple(range(len(ROWS)))
    """Which rows, from 0."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """Device, for example cuda."""


def make_batch(layout: torch.memory_format, device: torch.device, images: int = BATCH, size: int = SIZE) -> Batch:
    """Make a batch of two random views."""
    views = [torch.randn(images, 3, size, size, device=device).contiguous(memory_format=layout) for _ in range(2)]
    labels = torch.randint(CLASSES, (images,), device=device)
    return Batch(views[0], views[1], labels, torch.rand(images, device=device))


def make_step(row: Row, options: Options) -> tuple[Networks, Callable[[], object]]:
    """Build the networks of a row, and a function that takes one training step."""
    torch.manual_seed(0)
    device, channels_last = torch.device(options.device), row.channels_last or options.channels_last
    config = row.config(channels_last)
    networks = Networks(config, row.size, CLASSES).to(device).train()
    if channels_last:
        networks.to(memory_format=torch.channels_last)
    optimizers = build_optimizers(networks, config.optimizer)
    layout = LAYOUTS["channels_last" if channels_last else "contiguous"]
    batch = make_batch(layout, device, row.batch, row.size)
    return networks, lambda: train_step(networks, optimizers, batch, config, 0.5)


def make_forwards(backbone: nn.Module, row: Row, device: torch.device) -> dict[str, Callable[[], object]]:
    """Build functions that take one forward pass over a batch of a row, for each memory layout."""

    def forward(layout: torch.memory_format) -> Callable[[], object]:
        own = copy.deepcopy(backbone).to(memory_format=layout)
        images = make_batch(layout, device, row.batch, row.size).a
        return lambda: own(images)

    return {name: forward(layout) for name, layout in LAYOUTS.items()}


def count_operations(work: Callable[[], object]) -> int:
    """Count the floating-point operations of products and convolutions; an addition and a multiplication are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    total: int = counter.get_total_flops()
    return total


def main(options: Options) -> None:
    """Measure all rows, interleaved."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    prepare_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    matrix = torch.randn(PRODUCT, PRODUCT, device=device)
    rows = [ROWS[index] for index in options.rows]
    steps, forwards = [], {}
    for row in rows:
        networks, step = make_step(row, options)
        steps.append(step)
        if (row.batch, row.size) not in forwards:
            forwards[row.batch, row.size] = make_forwards(networks.backbone, row, device)
    operations = [count_operations(step) for step in steps]  # also their warm-up

    def product() -> Tensor:
        return matrix @ matrix

    seconds: dict[object, list[float]] = defaultdict(list)
    for turn in track(range(-1, options.rounds), "rounds", transient=True, console=Console(stderr=True)):
        for index, (row, step) in enumerate(zip(rows, steps, strict=True)):
            shape = row.batch, row.size
            works: dict[tuple[object, ...], Callable[[], object]] = {("product",): product, (index,): step}
            works |= {(*shape, layout): forward for layout, forward in forwards[shape].items()}
            for name, work in works.items():
                took = timed(work, device)
                if turn >= 0:  # the first turn is for warm-up
                    seconds[name].append(took)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    rate = 2 * PRODUCT**3 / medians["product",]
    fastest = {shape: min(layouts, key=lambda layout: medians[(*shape, layout)]) for shape, layouts in forwards.items()}
    measured = [
        {
            "objective": row.objective if row.masked_views == "one" else f"{row.objective} (eight terms)",
            "masking": row.masking,
            "slots": row.slots,
            "order": row.order,
            "batch": row.batch,
            "size": row.size,
            "width": row.width,
            "channels_last": row.channels_last or options.channels_last,
            "seconds": round(medians[index,], 4),
            "forwards": round(medians[index,] / medians[*shape, fastest[shape]], 2),
            "floor": row.floor(),
            "gflop": round(operations[index] / 1e9, 1),
            "share": round(operations[index] / medians[index,] / rate, 3),
        }
        for index, row in enumerate(rows)
        for shape in [(row.batch, row.size)]
    ]
    passes = [
        {
            "batch": batch,
            "size": size,
            "fastest": fastest[batch, size],
            "seconds": {layout: round(medians[batch, size, layout], 4) for layout in layouts},
        }
        for (batch, size), layouts in forwards.items()
    ]
    print(json.dumps({"product_gflop_per_s": round(rate / 1e9, 1), "forward": passes, "rows": measured}))


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(exit_status(lambda: main(options)))

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adios_ray.config import TrialConfig
from adios_ray.devices import prepare_device, timed
from adios_ray.errors import exit_status
from adios_ray.models.networks import Networks
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.cost import random_step
from adios_ray.validation import parse

BATCH, SIZE = 32, 64
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

    def described(self) -> dict[str, Any]:
        """Name the row in the results."""
        objective = self.objective if self.masked_views == "one" else f"{self.objective} (eight terms)"
        kind = {"objective": objective, "masking": self.masking, "slots": self.slots, "order": self.order}
        return kind | {"batch": self.batch, "size": self.size, "width": self.width}

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


def make_step(row: Row, options: Options) -> tuple[Networks, Callable[[], object]]:
    """Build the networks of a row, and a function that takes one training step."""
    torch.manual_seed(0)
    config = row.config(row.channels_last or options.channels_last)
    networks, _, step = random_step(config, row.size, row.batch, torch.device(options.device))
    return networks, step


def make_forwards(backbone: nn.Module, row: Row, device: torch.device) -> dict[str, Callable[[], object]]:
    """Build functions that take one forward pass over a batch of a row, for each memory layout."""

    def forward(layout: torch.memory_format) -> Callable[[], object]:
        own = copy.deepcopy(backbone).to(memory_format=layout)
        images = torch.randn(row.batch, 3, row.size, row.size, device=device).contiguous(memory_format=layout)
        return lambda: own(images)

    return {name: forward(layout) for name, layout in LAYOUTS.items()}


def count_operations(work: Callable[[], object]) -> int:
    """Count the floating-point operations of products and convolutions; an addition and a multiplication are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    total: int = counter.get_total_flops()
    return total


Shape = tuple[int, int]
"""Images of a batch and side of an image."""


def main(options: Options) -> None:
    """Measure all rows, interleaved."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    prepare_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    rows = [ROWS[index] for index in options.rows]
    steps: list[Callable[[], object]] = []
    forwards: dict[Shape, dict[str, Callable[[], object]]] = {}
    for row in rows:
        networks, step = make_step(row, options)
        steps.append(step)
        if (row.batch, row.size) not in forwards:
            forwards[row.batch, row.size] = make_forwards(networks.backbone, row, device)
    operations = [count_operations(step) for step in steps]  # also their warm-up
    matrix = torch.randn(PRODUCT, PRODUCT, device=device)
    works: list[dict[object, Callable[[], object]]] = []
    for index, (row, step) in enumerate(zip(rows, steps, strict=True)):
        shape = row.batch, row.size
        passes: dict[object, Callable[[], object]] = {
            (shape, layout): forward for layout, forward in forwards[shape].items()
        }
        works.append({"product": lambda: matrix @ matrix, index: step, **passes})
    medians = median_seconds(works, options.rounds, device)
    rate = 2 * PRODUCT**3 / medians["product"]
    fastest = {shape: min(LAYOUTS, key=lambda layout: medians[shape, layout]) for shape in forwards}
    measured = []
    for index, row in enumerate(rows):
        seconds, shape = medians[index], (row.batch, row.size)
        figures = {
            "channels_last": row.channels_last or options.channels_last,
            "seconds": round(seconds, 4),
            "forwards": round(seconds / medians[shape, fastest[shape]], 2),
            "floor": row.floor(),
            "gflop": round(operations[index] / 1e9, 1),
            "share": round(operations[index] / seconds / rate, 3),
        }
        measured.append(row.described() | figures)
    passes_s = [
        {
            "batch": shape[0],
            "size": shape[1],
            "fastest": fastest[shape],
            "seconds": {layout: round(medians[shape, layout], 4) for layout in LAYOUTS},
        }
        for shape in forwards
    ]
    print(json.dumps({"product_gflop_per_s": round(rate / 1e9, 1), "forward": passes_s, "rows": measured}))


def median_seconds(
    works: Sequence[Mapping[object, Callable[[], object]]], rounds: int, device: torch.device
) -> dict[object, float]:
    """Measure named works, interleaved; a name may occur several times. The first of all rounds is a warm-up."""
    seconds: dict[object, list[float]] = defaultdict(list)
    for turn in track(range(-1, rounds), "rounds", transient=True, console=Console(stderr=True)):
        for name, work in (named for group in works for named in group.items()):
            took = timed(work, device)
            if turn >= 0:
                seconds[name].append(took)
    return {name: statistics.median(own) for name, own in seconds.items()}


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(exit_status(lambda: main(options)))

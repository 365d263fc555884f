"""Cost of a training step in forward passes of the backbone, beside the minimum that the mathematics needs.

Usage: ``python benchmarks/step.py [--rounds 9] [--channels-last] [--threads 2]``. Prints one JSON object: F, the time
of one forward pass of the backbone over one batch (training mode, graph recorded), and for each row the seconds of a
whole step (both views, both players, both optimizers, probe), its multiple of F, and the floor in F. All measurements
are interleaved in one process, F before each row; figures are medians. About two minutes on two cores.
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track

from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.devices import timed
from adios_ray.errors import exit_status
from adios_ray.models.networks import Networks
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.optimizers import build_optimizers
from adios_ray.training.step import train_step
from adios_ray.validation import parse

BATCH, SIZE, CLASSES = 32, 64, 10


@dataclass(frozen=True)
class Row:
    """One kind of training step to measure."""

    objective: str
    masking: str
    slots: int
    order: str
    masked_views: str = "one"

    def config(self, channels_last: bool) -> TrialConfig:
        """Build the configuration: ResNet-18, U-Net of width 16, heads 512 wide with 128 outputs."""
        values: dict[str, Any] = {
            "channels_last": channels_last,
            "objective": {
                "name": self.objective,
                "hidden_dim": 512,
                "output_dim": 128,
                "masked_views": self.masked_views,
            },
            "masking": {"scheme": self.masking, "slots": self.slots, "order": self.order, "width": 16},
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
)


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    rounds: int = 9
    """Number of times that each row is measured."""
    channels_last: bool = False
    """Memory layout of the convolutions."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """Device, for example cuda."""


def make_batch(layout: torch.memory_format, device: torch.device) -> Batch:
    """Make a batch of two random views."""
    views = [torch.randn(BATCH, 3, SIZE, SIZE, device=device).contiguous(memory_format=layout) for _ in range(2)]
    labels = torch.randint(CLASSES, (BATCH,), device=device)
    return Batch(views[0], views[1], labels, torch.rand(BATCH, device=device))


def make_step(row: Row, options: Options, batch: Batch) -> tuple[Networks, Callable[[], object]]:
    """Build the networks of a row, and a function that takes one training step."""
    torch.manual_seed(0)
    device, config = torch.device(options.device), row.config(options.channels_last)
    networks = Networks(config, SIZE, CLASSES).to(device).train()
    if options.channels_last:
        networks.to(memory_format=torch.channels_last)
    optimizers = build_optimizers(networks, config.optimizer)
    return networks, lambda: train_step(networks, optimizers, batch, config, 0.5)


def main(options: Options) -> None:
    """Measure all rows, interleaved."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    batch = make_batch(layout, device)
    steps = [make_step(row, options, batch) for row in ROWS]
    backbone = steps[0][0].backbone

    def forward() -> object:
        return backbone(batch.a)

    for work in (forward, *(step for _, step in steps)):  # warm-up
        work()
    forwards: list[float] = []
    seconds: list[list[float]] = [[] for _ in ROWS]
    for _ in track(range(options.rounds), "rounds", transient=True, console=Console(stderr=True)):
        for own, (_, step) in zip(seconds, steps, strict=True):
            forwards.append(timed(forward, device))
            own.append(timed(step, device))
    forward_s, step_s = statistics.median(forwards), [statistics.median(own) for own in seconds]
    rows = [
        {
            "objective": row.objective if row.masked_views == "one" else f"{row.objective} (eight terms)",
            "masking": row.masking,
            "slots": row.slots,
            "order": row.order,
            "seconds": round(own, 4),
            "forwards": round(own / forward_s, 2),
            "floor": row.floor(),
        }
        for row, own in zip(ROWS, step_s, strict=True)
    ]
    print(json.dumps({"forward_s": round(forward_s, 4), "rows": rows}))


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(exit_status(lambda: main(options)))

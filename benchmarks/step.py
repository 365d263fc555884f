"""Cost of a training step in forward passes of the backbone, beside the minimum that the mathematics needs.

Usage: ``python benchmarks/step.py [--rounds 9] [--channels-last] [--threads 2]``. Prints one JSON object: the rate of a
large matrix product; for each backbone and size of batch F, the time of one forward pass of the backbone over one batch
(training mode, graph recorded) in the faster memory layout; and for each row the seconds of a whole step (both views,
both players, both optimizers, probe), its multiple of F, the floor in F, its floating-point operations, and their rate
as a share of the matrix product's. The first rows have heads of 512 and 128; the last are presets with their own
backbones, widths and sizes, on 32 images. All measurements are interleaved in one process, in each row the product, the
step, then F in both layouts; figures are medians. About ten minutes on two cores.
"""

import copy
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adios_ray.arguments import parse_arguments
from adios_ray.config import Count, Natural, TrialConfig, replaced
from adios_ray.devices import prepare_device, tf32_products, timed
from adios_ray.errors import UsageError, exit_status
from adios_ray.experiment.config import DEMO_IMAGE_SIZE
from adios_ray.experiment.presets import preset_config
from adios_ray.models.networks import Networks
from adios_ray.models.stem import StemConv2d
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

    config: TrialConfig
    size: int = SIZE
    batch: int = BATCH
    preset: str | None = None

    @property
    def forward(self) -> tuple[str, int, int]:
        """Return what determines the time of a forward pass: backbone, images of a batch, side of an image."""
        return self.config.backbone.name, self.batch, self.size

    def described(self) -> dict[str, Any]:
        """Name the row in the results."""
        objective, masking = self.config.objective, self.config.masking
        name = objective.name if objective.masked_views == "one" else f"{objective.name} (eight terms)"
        kind = {"objective": name, "masking": masking.scheme, "slots": masking.slots, "order": masking.order}
        sizes = {"batch": self.batch, "size": self.size, "width": masking.width}
        own = {} if self.preset is None else {"preset": self.preset, "backbone": self.config.backbone.name}
        return own | kind | sizes

    def floor(self) -> int:
        """Count the backbone work that the mathematics needs, in forward passes; a backward pass counts as two."""
        slots = 1 if self.config.masking.scheme == "adios-s" else self.config.masking.slots
        unmasked, masked = (2, 2 * slots) if self.config.objective.masked_views == "both" else (1, slots)
        floor = 3 * (unmasked + masked)
        if self.config.objective.name == "byol":  # the target network: forward only
            floor += unmasked + masked
        # The occlusion model's own step: forward on all views, and the gradient with respect to masked inputs only.
        if self.config.masking.order == "alternating":
            floor += unmasked + 2 * masked
        return floor


def resnet18(
    objective: str,
    order: str,
    scheme: str = "adios",
    slots: int = 4,
    views: str = "one",
    width: int = 16,
    channels_last: bool = False,
) -> TrialConfig:
    """Configure a ResNet-18 with heads 512 wide and 128 outputs."""
    heads = {"name": objective, "hidden_dim": 512, "output_dim": 128, "masked_views": views}
    masking = {"scheme": scheme, "slots": slots, "order": order, "width": width}
    return parse(TrialConfig, {"channels_last": channels_last, "objective": heads, "masking": masking})


def preset(name: str, *variant: str) -> Row:
    """Make the row of a preset: family, objective and backbone, where it has several."""
    config = preset_config(name, *variant)
    return Row(config.trial(), config.image_size or DEMO_IMAGE_SIZE, preset=" ".join((name, *variant)))


def rows() -> tuple[Row, ...]:
    """List all rows."""
    return (
        Row(resnet18("simclr", "simultaneous")),
        Row(resnet18("simclr", "alternating")),
        Row(resnet18("simclr", "simultaneous", slots=6)),
        Row(resnet18("byol", "simultaneous")),
        Row(resnet18("byol", "alternating")),
        Row(resnet18("simsiam", "simultaneous", views="both")),
        Row(resnet18("simsiam", "simultaneous")),
        Row(resnet18("simclr", "simultaneous", "adios-s")),
        Row(resnet18("simclr", "simultaneous", width=32, channels_last=True), 96, 64),
        preset("demo"),
        preset("clevr", "paper", "simclr", "resnet18"),
        preset("stl10", "paper", "simclr", "resnet18"),
        preset("in100s", "paper", "byol", "resnet18"),
        preset("in100s", "paper", "simclr", "vit_tiny_patch16_224"),
        preset("in100", "authors", "simclr", "resnet18"),
    )


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    rounds: Count = 9
    """Number of times that each row is measured."""
    channels_last: bool = False
    """Whether the backbone is channels-last in all rows."""
    rows: tuple[Natural, ...] = ()
    """Which rows, from 0; all by default."""
    threads: Count = 2
    """CPU threads."""
    device: str = "cpu"
    """Device, for example cuda."""


def make_step(row: Row, options: Options) -> tuple[Networks, Callable[[], object]]:
    """Build the networks of a row, and a function that takes one training step."""
    torch.manual_seed(0)
    config = replaced(row.config, {"channels_last": row.config.channels_last or options.channels_last})
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
    """Count the floating-point operations of products and convolutions; an addition and a multiplication are two.

    Of the stem those of the strided convolution count, not those that its fast form adds.
    """
    with patch.object(StemConv2d, "forward", nn.Conv2d.forward), FlopCounterMode(display=False) as counter:
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
    known = rows()
    if max(options.rows, default=0) >= len(known):
        raise UsageError(f"--rows {max(options.rows)}: the rows are 0 to {len(known) - 1}")
    chosen = [known[index] for index in options.rows or range(len(known))]
    steps: list[Callable[[], object]] = []
    forwards: dict[tuple[str, int, int], dict[str, Callable[[], object]]] = {}
    for row in chosen:
        networks, step = make_step(row, options)
        steps.append(step)
        if row.forward not in forwards:
            forwards[row.forward] = make_forwards(networks.backbone, row, device)
    operations = [count_operations(step) for step in steps]  # also their warm-up
    matrix = torch.randn(PRODUCT, PRODUCT, device=device)

    def product() -> torch.Tensor:
        with tf32_products(device):  # as in the steps
            return matrix @ matrix

    works: list[dict[object, Callable[[], object]]] = []
    for index, (row, step) in enumerate(zip(chosen, steps, strict=True)):
        passes: dict[object, Callable[[], object]] = {
            (row.forward, layout): forward for layout, forward in forwards[row.forward].items()
        }
        works.append({"product": product, index: step, **passes})
    medians = median_seconds(works, options.rounds, device)
    rate = 2 * PRODUCT**3 / medians["product"]
    fastest = {kind: min(LAYOUTS, key=lambda layout: medians[kind, layout]) for kind in forwards}
    measured = []
    for index, row in enumerate(chosen):
        seconds = medians[index]
        figures = {
            "channels_last": row.config.channels_last or options.channels_last,
            "seconds": round(seconds, 4),
            "forwards": round(seconds / medians[row.forward, fastest[row.forward]], 2),
            "floor": row.floor(),
            "gflop": round(operations[index] / 1e9, 1),
            "share": round(operations[index] / seconds / rate, 3),
        }
        measured.append(row.described() | figures)
    passes_s = [
        {
            **dict(zip(("backbone", "batch", "size"), kind, strict=True)),
            "fastest": fastest[kind],
            "seconds": {layout: round(medians[kind, layout], 4) for layout in LAYOUTS},
        }
        for kind in forwards
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
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

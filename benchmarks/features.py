"""Cost of evaluations: feature extraction, the linear sweep over rates, and the k-NN sweep, as ratios to single runs.

Extraction is compared with bare forward passes of the same backbone over images that are in memory already; ten rates
of linear evaluation with one rate; eight k at four temperatures of k-NN with k = 200 at one temperature, both with the
Euclidean distance beside. All pairs are measured side by side, alternating, and the ratio is that of the medians.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track
from stored import store

from adios_ray.arguments import parse_arguments
from adios_ray.config import BackboneConfig, Count
from adios_ray.data.rendered import objects
from adios_ray.data.shards import Split, open_shards
from adios_ray.devices import timed
from adios_ray.errors import exit_status
from adios_ray.evaluation.extraction import BATCH, extract_features
from adios_ray.evaluation.knn import NEIGHBORS, knn_sweep
from adios_ray.evaluation.linear import Sgd, linear_sweep
from adios_ray.models.backbones import build_backbone

RATES = tuple(0.003 * 2**power for power in range(10))
TEMPERATURES = (0.02, 0.07, 0.2, 1.0)
TARGETS = {"extraction": 1.15, "linear": 3.0, "knn": 1.5}


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    rounds: Count = 5
    """Number of times that each side of a pair is measured."""
    images: Count = 512
    """Images whose features are extracted."""
    image_size: Count = 96
    """Side of the images in pixels."""
    backbone: str = "resnet18"
    """Backbone whose features are extracted."""
    features: Annotated[int, Field(ge=10)] = 10_000
    """Random features in training split and bank; a tenth as many are classified."""
    width: Count = 512
    """Width of the random features."""
    classes: tuple[Annotated[int, Field(ge=2)], ...] = (10, 100)
    """Numbers of classes of the random features; the more there are, the more of the sweep is arithmetic."""
    epochs: Count = 1
    """Epochs of linear evaluation."""
    threads: Count = 2
    """CPU threads."""
    device: str = "cpu"
    """Device, for example cuda."""


def write_images(directory: Path, options: Options) -> Split:
    """Write a split of rendered images; each of 64 images is repeated."""
    some = [objects.render(0, index, options.image_size) for index in range(64)]
    samples = [(str(index), some[index % 64]) for index in range(options.images)]
    store(directory, options.image_size, {"train": [samples]}, objects.CLASSES, has_instances=True)
    return open_shards(directory).split("train")


def extraction_pair(split: Split, options: Options) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return bare forward passes over as many images, and the extraction."""
    torch.manual_seed(0)
    device, size = torch.device(options.device), options.image_size
    backbone = build_backbone(BackboneConfig(name=options.backbone), size)[0].to(device).eval()
    batch = torch.randn(BATCH, 3, size, size, device=device)

    @torch.no_grad()
    def forward() -> object:
        firsts = range(0, options.images, BATCH)
        return [backbone(batch[: min(BATCH, options.images - first)]) for first in firsts][-1].cpu()

    return forward, lambda: extract_features(backbone, split, np.arange(options.images), size).cpu()


def sweep_pairs(options: Options, classes: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return one rate and ten, one setting of k-NN and 32, on random features with classes."""
    generator, device = torch.Generator().manual_seed(0), torch.device(options.device)
    labels = torch.randint(classes, (options.features * 11 // 10,), generator=generator)
    centers = torch.randn(classes, options.width, generator=generator)
    features = centers[labels] + 3 * torch.randn(len(labels), options.width, generator=generator)
    features, labels = features.to(device), labels.to(device)
    known = features[: options.features], labels[: options.features]
    unknown = features[options.features :], labels[options.features :]

    def linear(rates: tuple[float, ...]) -> object:
        return linear_sweep(known, unknown, Sgd(rates, options.epochs, milestones=()))

    def knn(neighbors: tuple[int, ...], temperatures: tuple[float, ...]) -> object:
        return knn_sweep(*known, *unknown, neighbors, temperatures)

    return {
        f"linear, {classes} classes": (lambda: linear(RATES[:1]), lambda: linear(RATES)),
        f"knn, {classes} classes": (
            lambda: knn(NEIGHBORS[-1:], TEMPERATURES[:1]),
            lambda: knn(NEIGHBORS, TEMPERATURES),
        ),
    }


def main(options: Options) -> None:
    """Measure all pairs, and print one JSON object."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as directory:
        pairs = {"extraction": extraction_pair(write_images(Path(directory), options), options)}
        for classes in options.classes:
            pairs |= sweep_pairs(options, classes)
        for one, other in pairs.values():  # warm-up
            one(), other()
        seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
        for _ in track(range(options.rounds), "rounds", transient=True, console=Console(stderr=True)):
            for name, pair in pairs.items():
                for own, work in zip(seconds[name], pair, strict=True):
                    own.append(timed(work, device))
    medians = {name: [statistics.median(own) for own in both] for name, both in seconds.items()}
    measured = {
        name: {
            "one_s": round(one, 4),
            "all_s": round(every, 4),
            "ratio": round(every / one, 2),
            "target": TARGETS[name.partition(",")[0]],
        }
        for name, (one, every) in medians.items()
    }
    print(json.dumps({"device": options.device, "threads": options.threads, **measured}))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

"""Time and peak memory of what grows with the number of images and classes, at 10^4, 10^5 and 10^6 names.

Usage: ``python benchmarks/scale.py [--classes 10000]``. No image is drawn: names, labels, checksums and features stand
in for them. Each figure is measured in a process of its own. Prints one JSON object: seconds, and MiB of resident
memory above what the process had before, of planning (splits carved out of train, shards), of finding copies, of
writing and reading the manifest and the table of source files, and of k-NN with all images as neighbors of 2,048.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adios_ray.arguments import parse_arguments
from adios_ray.config import Count
from adios_ray.errors import exit_status

SIZES = (10**4, 10**5, 10**6)
QUERIES = 2048
WIDTH = 128


@dataclass(frozen=True)
class Options:
    """What is measured."""

    classes: Count = 10_000
    """Number of classes."""


def source(images: int, classes: int) -> Any:
    """Make a source of names."""
    from adios_ray.data.sources.image_files import ImageFiles

    names = tuple(f"class{number:05d}" for number in range(classes))
    items = [f"{names[number % classes]}/{number:07d}.jpg" for number in range(images)]
    labels = {name: label for label, name in enumerate(names)}
    return ImageFiles(root=Path("/nowhere"), classes=names, items={"train": items}, labels=labels)


def plan(images: int, classes: int) -> Callable[[], object]:
    """Choose splits and shards."""
    from adios_ray.data.manifest import Layout
    from adios_ray.data.plan import image_counts, make_plan, plan_jobs

    made_of = source(images, classes)
    return lambda: plan_jobs(make_plan(made_of, image_counts()).splits, Layout(160, None, False), {})


def account(images: int, classes: int) -> Callable[[], object]:
    """Find copies among all images."""
    from adios_ray.data.duplicates import Pixels, find_duplicates

    items = source(images, classes).items["train"]
    return lambda: find_duplicates(
        Pixels("train", item, item[:10], number.to_bytes(16)) for number, item in enumerate(items)
    )


def manifest(images: int, classes: int) -> Callable[[], object]:
    """Write and read the manifest and the table of source files."""
    from adios_ray.data.manifest import Manifest, Refusal, ShardEntry, read_manifest, write_manifest
    from adios_ray.data.source_files import check_unchanged, write_files
    from adios_ray.store import Store

    made_of = source(images, classes)
    items = made_of.items["train"]
    files = {item: (number, number) for number, item in enumerate(items)}
    shards = tuple(
        ShardEntry(file=f"train-{number:05d}.arrow", rows=1024, bytes=1, sha256="0" * 64)
        for number in range(-(-images // 1024))
    )
    refused = tuple(Refusal(item=item, split="train", reason="damaged") for item in items[::100])

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            table = write_files(store, "files.arrow", files, dict.fromkeys(items, "0" * 32))
            written = Manifest(
                schema_version=2,
                image_size=160,
                multi_label=False,
                has_instances=False,
                classes=made_of.classes,
                splits={"train": shards},
                recipe={},
                refused=refused,
                source_files=table,
            )
            write_manifest(store, written)
            check_unchanged(store, read_manifest(folder), made_of, files, moved=False, content=False)

    return run


def neighbors(images: int, classes: int) -> Callable[[], object]:
    """Classify by k-NN."""
    import torch

    from adios_ray.evaluation.knn import knn_votes

    torch.manual_seed(0)
    bank, bank_labels = torch.randn(images, WIDTH), torch.randint(classes, (images,))
    queries, labels = torch.randn(QUERIES, WIDTH), torch.randint(classes, (QUERIES,))
    return lambda: knn_votes(bank, bank_labels, queries, labels, 20, 0.07)


MEASURED: dict[str, Callable[[int, int], Callable[[], object]]] = {
    "plan": plan,
    "account": account,
    "manifest": manifest,
    "knn": neighbors,
}


def measure(name: str, images: int, classes: int) -> tuple[float, float]:
    """Seconds, and MiB that the peak of resident memory rose by."""
    run = MEASURED[name](images, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    run()
    return time.perf_counter() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(options: Options) -> None:
    """Measure all and print."""
    found: dict[str, Any] = {"classes": options.classes}
    context = multiprocessing.get_context("spawn")
    for name in MEASURED:
        found[name] = {}
        for images in SIZES:
            with ProcessPoolExecutor(1, context) as pool:
                seconds, mebibytes = pool.submit(measure, name, images, options.classes).result()
            found[name][str(images)] = {"seconds": round(seconds, 2), "MiB": round(mebibytes)}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

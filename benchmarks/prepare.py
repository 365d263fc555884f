"""Speed of preparing photographs against a plain PIL loop on every core.

Usage: ``python benchmarks/prepare.py --source IMAGES [--images 20000] [--image-size 160]``, with a folder of JPEGs that
are repeated to ``images`` files. Prints one JSON object: images per second of ``prepare`` (listing, decoding, checking,
writing and the manifest; Ray is already running), of a plain loop in one process for each core that decodes and
resizes with PIL, and their ratio. Medians of interleaved repeats; about two minutes on two cores.
"""

import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice, repeat
from pathlib import Path

import ray
from PIL import Image

from adios_ray.arguments import parse_arguments
from adios_ray.config import Count
from adios_ray.data.prepare import prepare
from adios_ray.data.sources.folder import source as folder_source
from adios_ray.errors import DatasetError, exit_status

REPEATS = 3
REFERENCE_IMAGES = 400
"""Images that each process of the plain loop decodes."""


@dataclass(frozen=True)
class Options:
    """Data and sizes of the measurement."""

    source: Path
    """Folder of JPEGs."""
    images: Count = 20_000
    """Number of images to prepare."""
    image_size: Count = 160
    """Side of the stored images."""


def repeat_images(source: Path, images: int, folder: Path) -> list[Path]:
    """Make ``images`` links to the found images, repeated in turn, in one class folder; return them.

    Raises:
        DatasetError: If there is none.
    """
    found = sorted(path for path in source.resolve().rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise DatasetError(f"{source} has no JPEGs")
    (folder / "all").mkdir(parents=True)
    links = []
    for number, path in enumerate(islice(cycle(found), images)):
        links.append(folder / "all" / f"{number:06d}.jpg")
        links[-1].symlink_to(path)
    return links


def plain_images_per_s(files: list[Path], size: int, cores: int) -> float:
    """Time one process for each core, all at once, that decode images and squeeze them into squares."""
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        parts = [files[core : cores * REFERENCE_IMAGES : cores] for core in range(cores)]
        return sum(pool.map(_plain_loop, parts, repeat(size)))


def _plain_loop(files: list[Path], size: int) -> float:
    """Return the images per second of one process."""
    began = time.perf_counter()
    for file in files:
        with Image.open(file) as opened:
            opened.convert("RGB").resize((size, size), Image.Resampling.BICUBIC).tobytes()
    return len(files) / (time.perf_counter() - began)


def prepare_images_per_s(folder: Path, output: Path, size: int) -> float:
    """Time a whole call of ``prepare``."""
    summary = prepare(folder_source(folder), output, size, {"dataset": "folder"}, max_bad_fraction=0.05)
    return summary.decoded / summary.seconds


def main(options: Options) -> None:
    """Measure both in turns."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        files = repeat_images(options.source, options.images, folder)
        # Started here, so that ``prepare`` does not start Ray within the measured time.
        ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        speeds = [
            (
                plain_images_per_s(files, options.image_size, cores),
                prepare_images_per_s(folder, Path(temporary) / f"shards{repeat}", options.image_size),
            )
            for repeat in range(REPEATS)
        ]
    plain, ours = (statistics.median(column) for column in zip(*speeds, strict=True))
    result = {
        "ratio": round(ours / plain, 3),
        "images_per_s": round(ours, 1),
        "reference_images_per_s": round(plain, 1),
        "cores": cores,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

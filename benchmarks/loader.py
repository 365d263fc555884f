"""Speed of two augmented views from shards against decoding JPEGs and transforming them one by one, on one core.

Usage: ``python benchmarks/loader.py --source IMAGES [--image-size 96] [--stored-size 160]``, with a folder of
photographs in the layout of ``adios-ray prepare --dataset folder``. Prints one JSON object: images per second, two
views each, of the batch loader (``loader_images_per_s``) and of PIL with torchvision's transforms (the authors' way),
their ratio, the ratio for reading shards alone, and the share of its time that a training of the small backbone waits
for data. Medians of interleaved repeats; about two minutes.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from stored import store
from torchvision import transforms

from adios_ray.arguments import parse_arguments
from adios_ray.config import AugmentConfig, Count, TrialConfig
from adios_ray.data.augment import BLUR_SIGMAS
from adios_ray.data.loader import BatchLoader
from adios_ray.data.pixels import MEAN, STD
from adios_ray.data.shards import Split, open_shards
from adios_ray.data.sources.folder import source as folder_source
from adios_ray.data.sources.image_files import ImageFiles
from adios_ray.errors import exit_status
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.trainer import Trainer
from adios_ray.validation import parse

BATCH = 64
REPEATS = 5
WAIT_EPOCHS = 4


@dataclass(frozen=True)
class Options:
    """Data and sizes of the measurement."""

    source: Path
    """Folder of JPEGs."""
    image_size: Count = 96
    """Side of the views."""
    stored_size: Count = 160
    """Side of the stored images."""


def make_shards(source: ImageFiles, directory: Path, stored_size: int) -> list[Path]:
    """Store all images, once as train and once as val; return their files."""
    items = [item for split in source.listing().values() for item in split]
    samples = [(item, source.load(item, stored_size)) for item in items]
    store(directory, stored_size, dict.fromkeys(("train", "val"), [samples]), source.classes)
    return [source.root / item for item in items]


def authors_transform(config: AugmentConfig, size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Compose the recipe for one PIL image as solo-learn and the authors' code do."""
    jitter = transforms.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    crop = transforms.RandomResizedCrop(
        size, scale=(config.min_crop_scale, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
    )

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*BLUR_SIGMAS)))

    pipeline: Callable[[Image.Image], torch.Tensor] = transforms.Compose(
        [
            crop,
            transforms.RandomApply([jitter], config.jitter_probability),
            transforms.RandomGrayscale(config.grayscale_probability),
            transforms.RandomApply([transforms.Lambda(blur)], config.blur_probability),
            transforms.RandomHorizontalFlip(config.flip_probability),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return pipeline


def authors_images_per_s(files: list[Path], config: AugmentConfig, size: int) -> float:
    """Time decoding the images of one batch and making two views of each."""
    transform = authors_transform(config, size)
    began = time.perf_counter()
    for file in files[:BATCH]:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        transform(image), transform(image)
    return BATCH / (time.perf_counter() - began)


def loader_images_per_s(loader: BatchLoader, epoch: int) -> float:
    """Time a few batches, with two views of each image; a new epoch each time draws other images."""
    first = epoch * loader.steps_per_epoch
    began = time.perf_counter()
    count = sum(len(batch.a) for batch in loader.batches(0, first, first + 4))
    return count / (time.perf_counter() - began)


def raw_images_per_s(split: Split) -> float:
    """Time copying images from the shards in a random order."""
    order = np.random.default_rng(0).permutation(len(split))
    began = time.perf_counter()
    for _ in range(20):
        split.gather(order)
    return 20 * len(split) / (time.perf_counter() - began)


def wait_fraction(data_dir: Path, image_size: int) -> float:
    """Measure the share of its time that a training of the small backbone waits for data."""
    values = {
        "data_dir": data_dir,
        "image_size": image_size,
        "batch_size": BATCH,
        "epochs": WAIT_EPOCHS,
        "backbone": {"name": "resnet_small"},
        "masking": {"width": 8},
    }
    trainer = Trainer(parse(TrialConfig, values), torch.device("cpu"))
    return trainer.train_until(WAIT_EPOCHS * trainer.loader.steps_per_epoch)["data_wait_fraction"]


def main(options: Options) -> None:
    """Measure everything on one core."""
    # The threads of the loader and of PIL inherit this: both ways are limited to the same core.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        files = make_shards(folder_source(options.source), directory, options.stored_size)
        config = parse(TrialConfig, {"data_dir": directory, "batch_size": BATCH})
        split = open_shards(directory).split("train")
        loader = BatchLoader(split, config, options.image_size, torch.device("cpu"))
        speeds = [
            (
                authors_images_per_s(files, config.augment, options.image_size),
                loader_images_per_s(loader, repeat),
                raw_images_per_s(split),
            )
            for repeat in range(REPEATS)
        ]
        theirs, ours, raw = (statistics.median(column) for column in zip(*speeds, strict=True))
        result = {
            "image_size": options.image_size,
            "stored_size": options.stored_size,
            "authors_images_per_s": round(theirs, 1),
            "loader_images_per_s": round(ours, 1),
            "ratio_augmented": round(ours / theirs, 2),
            "ratio_raw": round(raw / theirs),
            "data_wait_fraction": round(wait_fraction(directory, options.image_size), 4),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

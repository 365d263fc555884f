"""Speed of the batched views against torchvision's transforms, image by image, on one core.

Usage: ``python benchmarks/augment.py``. Prints one JSON object: for each size of stored images and of views, the views
per second of both (medians of interleaved repeats) and their ratio. Takes about twenty seconds.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from adios_ray.config import AugmentConfig
from adios_ray.data.augment import BLUR_SIGMAS, apply_view, draw_parameters
from adios_ray.data.pixels import MEAN, STD
from adios_ray.errors import exit_status

BATCH = 128
REPEATS = 15
SIZES = ((32, 32), (96, 96), (160, 96))
"""Sides of the stored images and of the views."""


def torchvision_pipeline(config: AugmentConfig, size: int) -> Callable[[Tensor], Tensor]:
    """Compose the recipe of ``apply_view`` from torchvision's transforms, for one uint8 image [3, S, S]."""
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    scale = (config.min_crop_scale, 1.0)
    pipeline: Callable[[Tensor], Tensor] = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(config.flip_probability),
            v2.RandomApply([jitter], config.jitter_probability),
            v2.RandomGrayscale(config.grayscale_probability),
            v2.RandomApply([v2.GaussianBlur(13, BLUR_SIGMAS)], config.blur_probability),
            v2.RandomSolarize(0.5, config.solarize_probability),
            v2.Normalize(list(MEAN), list(STD)),
        ]
    )
    return pipeline


def views_per_second(make: Callable[[], Tensor]) -> float:
    """Time one call that makes a batch of views."""
    began = time.perf_counter()
    views = make()
    return len(views) / (time.perf_counter() - began)


def compare(stored: int, size: int) -> dict[str, float]:
    """Measure median views per second, ours and torchvision's, of ``size`` pixels from images of ``stored`` pixels."""
    config = AugmentConfig()
    images = torch.randint(0, 256, (BATCH, stored, stored, 3), dtype=torch.uint8)
    samples, sides = np.arange(BATCH, dtype=np.int64), np.full(BATCH, stored, np.int32)
    pipeline = torchvision_pipeline(config, size)
    planes = images.permute(0, 3, 1, 2).contiguous()

    def ours() -> Tensor:
        return apply_view(images, draw_parameters(config, 0, "view_a", 0, samples, sides, sides), size)

    def torchvisions() -> Tensor:
        return torch.stack([pipeline(image) for image in planes])

    ours(), torchvisions()  # warm-up
    # Interleaved, so that drift of the machine's speed affects both alike.
    speeds = [(views_per_second(ours), views_per_second(torchvisions)) for _ in range(REPEATS)]
    own, other = (statistics.median(column) for column in zip(*speeds, strict=True))
    return {"adios_ray": round(own), "torchvision": round(other), "ratio": round(own / other, 1)}


def main() -> None:
    """Measure every size on one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = {f"{stored} to {size}": compare(stored, size) for stored, size in SIZES}
    print(json.dumps({"unit": "views/s on one core", **found}))


if __name__ == "__main__":
    sys.exit(exit_status(main))

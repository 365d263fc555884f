"""Frozen features of a whole split, extracted once and kept on this machine by what they follow from."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from adios_ray.config import CentralView
from adios_ray.data.cache import cache_directory
from adios_ray.data.shards import Dataset, ShardEntry, Split
from adios_ray.evaluation.fitness import extract_features
from adios_ray.files import atomic_path
from adios_ray.models.networks import Networks

FOLDER = "features"
"""Folder in the cache directory."""
PART = 2**16
"""Images whose features are on the device at a time."""
VERSION = 1
"""Raised when features change without their inputs: kept ones are not found then."""


class Features(NamedTuple):
    """Frozen features with their labels.

    Attributes:
        features: Features of un-augmented images, float32 [M, F] on the CPU.
        labels: Classes, int64 [M], or zeros and ones, [M, C].
    """

    features: Tensor
    labels: Tensor


def features_of(
    networks: Networks, dataset: Dataset, split: str, image_size: int, view: CentralView, most: int | None = None
) -> Features:
    """Extract the features of a split, or read those that were extracted before.

    They are kept in the cache directory under a checksum of the backbone's tensors, of the split's shards, and of what
    else they depend on.

    Args:
        networks: Its backbone is used.
        dataset: The data set.
        split: Name of the split.
        image_size: Side S of the views in pixels.
        view: Part of each photograph.
        most: At most this many images, spread evenly; None takes all.
    """
    images = dataset.split(split)
    indices = np.arange(len(images)) if most is None else images.spread(most)
    labels = torch.from_numpy(images.labels[indices])
    name = _checksum(networks, dataset.manifest.splits[split], [image_size, view, len(indices)])
    path = cache_directory() / FOLDER / f"{name}.safetensors"
    if path.is_file():
        os.utime(path)
        return Features(safetensors.torch.load_file(path)["features"], labels)
    features = _extract(networks, images, indices, image_size, view)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        safetensors.torch.save_file({"features": features}, draft)
    return Features(features, labels)


def _extract(
    networks: Networks, images: Split, indices: npt.NDArray[np.int64], image_size: int, view: CentralView
) -> Tensor:
    """Extract in parts, so that the device holds the features of one part at a time."""
    parts = [indices[first : first + PART] for first in range(0, len(indices), PART)]
    extracted = [extract_features(networks.backbone, images, part, image_size, view).cpu() for part in parts]
    return torch.cat(extracted)


def _checksum(networks: Networks, shards: Sequence[ShardEntry], settings: Sequence[object]) -> str:
    """Compute the checksum of all that features depend on."""
    checksum = hashlib.sha256(json.dumps([VERSION, [entry.sha256 for entry in shards], list(settings)]).encode())
    for name, tensor in sorted(networks.backbone.state_dict().items()):
        checksum.update(name.encode())
        checksum.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()[:32]

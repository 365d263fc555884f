"""Frozen features of a whole split, extracted once and kept on this machine by what they follow from."""

import copy
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from adios_ray.config import CentralView
from adios_ray.data.manifest import ShardEntry
from adios_ray.data.shards import Dataset, Split, open_shards
from adios_ray.devices import best_device, prepare_device
from adios_ray.errors import DatasetError
from adios_ray.evaluation.extraction import Indices, extract_features
from adios_ray.files import atomic_path
from adios_ray.local_cache import cache_directory, cache_folder, remove_least_used
from adios_ray.models.networks import Networks
from adios_ray.models.weights import checksum

FOLDER = "features"
"""Folder in the cache directory."""
KEPT_BYTES = 2**34
"""Size of all kept features, at most; those of ImageNet from a ResNet-50 have 10.5 GB."""
PART = 2**12
"""Images whose features are on the device at a time; on a cluster, the images of a task."""
VERSION = 2
"""Raised when features change without their inputs: kept ones are not found then."""

MapParts = Callable[[Callable[[Indices], Tensor], Sequence[Indices]], Iterable[Tensor]]
"""Applies a function to parts of a split and returns the results in order, as ``map`` does; the function can be sent to
other processes."""
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Shows the progress of work that has a description and a number of images, in a block that reports images done."""


@contextmanager
def no_progress(description: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show nothing."""
    yield lambda done: None


class Features(NamedTuple):
    """Frozen features with their labels.

    Attributes:
        features: Features of un-augmented images, float32 [M, F] on the CPU.
        labels: Classes, int64 [M], or zeros and ones, [M, C].
    """

    features: Tensor
    labels: Tensor


def features_of(
    networks: Networks,
    dataset: Dataset,
    split: str,
    image_size: int,
    view: CentralView,
    most: int | None = None,
    map_parts: MapParts = map,
    progress: Progress = no_progress,
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
        map_parts: Where the parts of the split are extracted; ``map``: in this process.
        progress: Shows the images done.

    Raises:
        ConfigError: If the cache directory cannot be written to.
    """
    images = dataset.split(split)
    indices = np.arange(len(images)) if most is None else images.spread(most)
    labels = torch.from_numpy(images.labels[indices])
    name = _checksum(networks, dataset.manifest.splits[split], [image_size, view, len(indices)])
    path = cache_directory() / FOLDER / f"{name}.safetensors"
    with suppress(FileNotFoundError, safetensors.SafetensorError):  # a damaged file is made again
        found = Features(safetensors.torch.load_file(path)["features"], labels)
        with suppress(OSError):  # another user's file
            os.utime(path)
        return found
    cache_folder(FOLDER)  # before the work that it is to keep
    extractor = _Extractor(networks.backbone, dataset, split, image_size, view)
    extracted = []
    with progress(f"features of {split}", len(indices)) as advance:
        for part in map_parts(extractor, [indices[first : first + PART] for first in range(0, len(indices), PART)]):
            extracted.append(part)
            advance(len(part))
    features = torch.cat(extracted)
    with suppress(OSError):  # features that cannot be kept are extracted again the next time
        with atomic_path(path) as draft:
            draft.write_bytes(safetensors.torch.save({"features": features}))
        remove_least_used(path.parent, KEPT_BYTES)
    return Features(features, labels)


class _Extractor:
    """Extracts the features of some images of a split, float32 [M, F] on the CPU.

    Forward passes are in single precision also where training was in bfloat16, which not every card has: a reported
    number must not depend on that.
    """

    def __init__(self, backbone: nn.Module, dataset: Dataset, split: str, image_size: int, view: CentralView) -> None:
        """Take what ``features_of`` takes."""
        self._backbone, self._dataset = backbone, dataset
        self._split, self._image_size, self._view = split, image_size, view

    def __call__(self, indices: Indices) -> Tensor:
        return extract_features(self._backbone, self._images, indices, self._image_size, self._view).cpu()

    @cached_property
    def _images(self) -> Split:
        return self._dataset.split(self._split)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for a process that may be on another machine, with another device and a copy of the shards."""
        backbone = copy.deepcopy(self._backbone).cpu()
        images = self._dataset.manifest.checksum
        return _unpickled, (backbone, self._dataset.location, images, self._split, self._image_size, self._view)


def _unpickled(
    backbone: nn.Module, location: str, images: str, split: str, image_size: int, view: CentralView
) -> _Extractor:
    device, dataset = best_device(), open_shards(location)
    prepare_device(device)
    if dataset.manifest.checksum != images:
        raise DatasetError(f"{location} is another data set on {socket.gethostname()} than on the machine that asks")
    return _Extractor(backbone.to(device), dataset, split, image_size, view)


def _checksum(networks: Networks, shards: Sequence[ShardEntry], settings: Sequence[object]) -> str:
    """Compute the checksum of all that features depend on."""
    backbone = checksum(networks.backbone.state_dict())
    # Paddings and strides are no tensors.
    architecture = networks.config.backbone.model_dump(mode="json")
    inputs = [VERSION, backbone, architecture, [entry.sha256 for entry in shards], list(settings)]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]

"""Extraction of frozen features: of un-augmented images, shared among a trial's workers, or of one view of each."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adios_ray import parallel
from adios_ray.config import AugmentConfig, CentralView
from adios_ray.data.augment import apply_view, draw_parameters
from adios_ray.data.loader import central_batches, stored_batches
from adios_ray.data.shards import Split

Indices = npt.NDArray[np.int64]

BATCH = 256
"""Images in a forward pass."""
CROPS_AND_FLIPS = AugmentConfig(
    jitter_probability=0, grayscale_probability=0, blur_probability=0, solarize_probability=0
)
"""Augmentation of linear evaluation and of transfer: random resized crops and flips."""
STREAM = "evaluation"
"""Stream of the random numbers of augmented views."""


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    split: Split,
    indices: Indices,
    image_size: int,
    view: CentralView = "square",
    precision: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Extract features of un-augmented images, float32 [M, F] on the backbone's device; see ``center_view``.

    The M images are distributed over the workers of the trial; each worker receives all features. Forward passes are
    inside of ``precision``, for example ``torch.autocast``; what makes the images is not.
    """
    device = next(backbone.parameters()).device
    share = -(-len(indices) // parallel.world_size())
    # np.resize repeats the indices, so that all workers have equal shares for the gathering.
    padded = np.resize(indices, share * parallel.world_size())
    own = padded[parallel.rank() * share :][:share]
    training = backbone.training
    backbone.eval()
    batches = [own[first : first + BATCH] for first in range(0, share, BATCH)]
    features = []
    for views in central_batches(split, batches, image_size, device, view):
        with precision or nullcontext():
            features.append(backbone.forward(views))  # not as compiled for training: each batch size is a variant
    backbone.train(training)
    return parallel.gather_with_gradient(torch.cat(features).float())[: len(indices)]


@torch.no_grad()
def view_feature_batches(
    backbone: nn.Module,
    split: Split,
    batches: Sequence[Indices],
    image_size: int,
    config: AugmentConfig,
    seed: int,
    stream: str,
    epoch: int,
    precision: AbstractContextManager[object] | None = None,
) -> Iterator[Tensor]:
    """Yield features of one augmented view of each image, batch by batch, float32 [B, F] on the backbone's device.

    A thread reads the next images meanwhile, also those of the next batch. See ``draw_parameters`` for what the views
    follow from, and ``extract_features`` for ``precision``.
    """
    device, training = next(backbone.parameters()).device, backbone.training
    parts = [[batch[first : first + BATCH] for first in range(0, len(batch), BATCH)] for batch in batches]
    loaded = stored_batches(split, chain.from_iterable(parts), device)
    for own in parts:
        features = []
        backbone.eval()
        for chosen, images in islice(loaded, len(own)):
            drawn = draw_parameters(config, seed, stream, epoch, chosen, split.heights[chosen], split.widths[chosen])
            views = apply_view(images, drawn, image_size)
            with precision or nullcontext():
                features.append(backbone.forward(views).float())
        backbone.train(training)
        yield torch.cat(features)

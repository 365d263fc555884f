"""BatchNorm statistics for an evaluation, computed from images as the evaluation sees them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adios_ray import parallel
from adios_ray.config import CentralView
from adios_ray.data.loader import central_batches
from adios_ray.data.shards import Split
from adios_ray.evaluation.extraction import BATCH

IMAGES = 2048
"""Enough to know a channel's mean to 2 % of its standard deviation; more would cost as much as the evaluation."""


def refresh_statistics(
    backbone: nn.Module,
    train: Split,
    image_size: int,
    view: CentralView = "square",
    precision: AbstractContextManager[object] | None = None,
) -> None:
    """Replace a backbone's BatchNorm statistics by those of unmasked images: averages over batches of central views.

    A no-op for networks without BatchNorm.

    Args:
        backbone: Maps images [B, 3, S, S] to features [B, F].
        train: Split of the images; at most ``IMAGES`` of them, evenly spaced, are used.
        image_size: Side S in pixels.
        view: Part of each photograph that is used.
        precision: Context of the forward passes, for example ``torch.autocast``, as in ``extract_features``.
    """
    norms = _norms(backbone)
    if not norms:
        return
    momenta, training = [norm.momentum for norm in norms], backbone.training
    backbone.eval()  # only the norms may behave as in training: dropout would draw random numbers
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches, each with the same weight
        norm.train()
    indices = train.spread(IMAGES)
    device = next(backbone.parameters()).device
    try:
        with torch.no_grad():
            batches = np.array_split(indices, -(-len(indices) // BATCH))
            for views in central_batches(train, batches, image_size, device, view):
                with precision or nullcontext():
                    # Not as compiled for training: this would compile variants for a few batches, and an average of
                    # all batches breaks the graph at every norm.
                    backbone.forward(views)
        # Workers computed these from the same images, and may have rounded differently.
        parallel.broadcast_from_first(buffer for norm in norms for buffer in norm.buffers())
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        backbone.train(training)


@contextmanager
def fresh_statistics(
    backbone: nn.Module,
    train: Split,
    image_size: int,
    view: CentralView = "square",
    precision: AbstractContextManager[object] | None = None,
) -> Iterator[None]:
    """Make a backbone's BatchNorm use statistics of unmasked images inside the block; see ``refresh_statistics``.

    In training, running statistics average over all views, of which 1 in N + 1 is unmasked. The statistics of training
    are restored afterwards, bit for bit.
    """
    norms, training = _norms(backbone), backbone.training
    kept = [{name: values.clone() for name, values in norm.named_buffers()} for norm in norms]
    try:
        refresh_statistics(backbone, train, image_size, view, precision)
        backbone.eval()
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, values in buffers.items():
                norm.get_buffer(name).copy_(values)
        backbone.train(training)


def _norms(backbone: nn.Module) -> list[_BatchNorm]:
    return [module for module in backbone.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]

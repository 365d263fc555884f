"""Detection of the first non-finite loss or penalty, and the batch that reproduces it."""

import math
from typing import Any

import torch
from torch import Tensor

from adios_ray import parallel
from adios_ray.data.loader import Batch
from adios_ray.errors import NonFiniteError


def check_finite(losses: Tensor, penalties: Tensor) -> None:
    """Raise if any loss or penalty is non-finite on any worker; call before an optimizer steps.

    Args:
        losses: Objective of each slot that was embedded, [K].
        penalties: Sparsity term of each slot, [N], or a scalar.

    Raises:
        NonFiniteError: Naming the first non-finite term; the same on all workers.
    """
    # One all-reduce and one copy to the host for all terms. The mean over workers is non-finite wherever one worker's
    # term is, so that all of them raise together and none waits for another in a later collective.
    terms = torch.cat([losses.detach(), penalties.detach().reshape(-1)])
    for position, value in enumerate(parallel.average(terms).tolist()):
        if not math.isfinite(value):
            term, slot = ("objective", position) if position < len(losses) else ("penalty", position - len(losses))
            raise NonFiniteError(f"{term} of slot {slot} is {value}")


def batch_state(batch: Batch) -> dict[str, Any]:
    """Gather the global batch, to be saved with a trainer's state; the module seed is this worker's own."""
    return {
        name: _gathered(values, len(batch.a)) if isinstance(values, Tensor) else values
        for name, values in batch._asdict().items()
    }


def _gathered(values: Tensor, images: int) -> Tensor:
    """Gather the rows of all workers; masks of two views stay in the order of views first, then images."""
    return torch.cat([parallel.gather_with_gradient(view) for view in values.split(images)])

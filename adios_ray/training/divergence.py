"""Stopping at the first number that is not finite, with what is needed to see it again."""

import math
from typing import Any

import torch
from torch import Tensor

from adios_ray import parallel
from adios_ray.data.loader import Batch
from adios_ray.errors import NonFiniteError


def check_finite(losses: Tensor, penalties: Tensor) -> None:
    """Make sure that a step's terms are finite on every worker, before anybody moves by them.

    Args:
        losses: Objective of each slot, [K].
        penalties: Sparsity term of each slot, [N], or a scalar.

    Raises:
        NonFiniteError: Naming the first term that is not, on all workers alike.
    """
    terms = torch.cat([losses.detach(), penalties.detach().reshape(-1)])
    for position, value in enumerate(parallel.average(terms).tolist()):
        if not math.isfinite(value):
            term, slot = ("objective", position) if position < len(losses) else ("penalty", position - len(losses))
            raise NonFiniteError(f"{term} of slot {slot} is {value}")


def batch_state(batch: Batch) -> dict[str, Any]:
    """Collect the batch of all workers, to be saved with a trainer's state; the module seed is this worker's own."""
    return {
        name: parallel.gather_with_gradient(values) if isinstance(values, Tensor) else values
        for name, values in batch._asdict().items()
    }

"""Barlow Twins (Zbontar et al. 2021)."""

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp
from adios_ray.parallel import gather_with_gradient

REDUNDANCY_WEIGHT = 0.0051


class BarlowTwins(Objective):
    """Each dimension correlates with itself in the other view, and with no other dimension."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build a projector of three layers, 8192 wide unless configured, with BatchNorm on the hidden ones."""
        super().__init__(config, features, image_size)
        hidden, output = config.hidden_dim or 8192, config.output_dim or 8192
        self.projector = mlp([features, hidden, hidden, output], batch_norm=True)

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Compute the loss over the global batch."""
        return barlow_twins(u.online, v.online)


def barlow_twins(z1: Tensor, z2: Tensor) -> Tensor:
    """Compute the distance of the views' cross-correlation from the identity (Zbontar et al. 2021, Equations 1-2).

    Args:
        z1: Projections of one view, [B, D].
        z2: Projections of the other view, [B, D].

    Returns:
        Sum of (1 - c_ii)^2 plus 0.0051 times the sum of c_ij^2, i != j, of the global batch; at least 0.
    """
    # Standardized over the global batch: batch_norm without running statistics is exactly that, with its gradient.
    first, second = (functional.batch_norm(gather_with_gradient(z), None, None, training=True) for z in (z1, z2))
    correlation = first.T @ second / len(first)
    diagonal = torch.diagonal(correlation)
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + REDUNDANCY_WEIGHT * others

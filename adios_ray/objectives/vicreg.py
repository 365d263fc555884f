"""VICReg: variance, invariance, covariance (Bardes et al. 2022)."""

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp
from adios_ray.parallel import gather_with_gradient

INVARIANCE_WEIGHT = 25.0
VARIANCE_WEIGHT = 25.0
COVARIANCE_WEIGHT = 1.0
VARIANCE_EPSILON = 1e-4


class VICReg(Objective):
    """Views are close to each other, each dimension varies, and no two dimensions are correlated."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build a projector of three layers, 8192 wide unless configured, with BatchNorm on the hidden ones."""
        super().__init__(config, features, image_size)
        hidden, output = config.hidden_dim or 8192, config.output_dim or 8192
        self.projector = mlp([features, hidden, hidden, output], batch_norm=True)

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Compute the three terms over the global batch."""
        return vicreg(u.online, v.online)


def vicreg(z1: Tensor, z2: Tensor) -> Tensor:
    """Sum the three weighted terms (Bardes et al. 2022, Equation 6), each a mean over dimensions as published.

    Args:
        z1: Projections of one view, [B, D], B > 1 over all workers.
        z2: Projections of the other view, [B, D].

    Returns:
        25 times the mean squared difference, 25 times the mean hinge of the standard deviations below 1, and the sum of
        squared covariances divided by D, the latter two of both views; at least 0.
    """
    # Every worker computes the loss of the whole global batch. gather_with_gradient sums the workers' gradients and the
    # update averages them: together that is the gradient of one such loss.
    first, second = gather_with_gradient(z1), gather_with_gradient(z2)
    variance = (spread_hinge(first) + spread_hinge(second)) / 2
    covariance = redundancy(first) + redundancy(second)
    return (
        INVARIANCE_WEIGHT * functional.mse_loss(first, second)
        + VARIANCE_WEIGHT * variance
        + COVARIANCE_WEIGHT * covariance
    )


def spread_hinge(z: Tensor) -> Tensor:
    """Average the hinge max(0, 1 - standard deviation) of [B, D] over dimensions, in [0, 1] (Equations 1-2)."""
    return functional.relu(1 - (z.var(dim=0) + VARIANCE_EPSILON).sqrt()).mean()


def redundancy(z: Tensor) -> Tensor:
    """Sum the squared covariances of different dimensions of [B, D], divided by D; at least 0 (Equations 3-4)."""
    centered = z - z.mean(dim=0)
    covariance = centered.T @ centered / (len(z) - 1)
    return (covariance.square().sum() - torch.diagonal(covariance).square().sum()) / z.shape[1]

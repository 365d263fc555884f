"""MoCo v3 (Chen et al. 2021)."""

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp
from adios_ray.parallel import gather_with_gradient, rank


class MoCoV3(Objective):
    """Each view's prediction is contrasted with the momentum networks' projections of the other view."""

    uses_momentum = True

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build projector (4096, 4096 to 256) and predictor (4096 to 256), BatchNorm on all layers, last not affine."""
        super().__init__(config, features, image_size)
        hidden, output = config.hidden_dim or 4096, config.output_dim or 256
        self.projector = mlp([features, hidden, hidden, output], batch_norm=True, final_norm=True)
        self.predictor = mlp([output, config.predictor_dim or hidden, output], batch_norm=True, final_norm=True)

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Sum the two directions."""
        temperature = self.config.temperature
        return contrast(u.online, v.target, temperature) + contrast(v.online, u.target, temperature)


def contrast(prediction: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE of predictions against the targets of all workers, times 2 tau (Chen et al. 2021, Algorithm 1).

    Args:
        prediction: [B, D]; row i belongs to row i of ``target``.
        target: [B, D], without gradient.
        temperature: tau, > 0.

    Returns:
        Mean over this worker's B predictions, at least 0; its average over workers is the loss of the global batch.
    """
    keys = gather_with_gradient(functional.normalize(target, dim=1))
    similarity = functional.normalize(prediction, dim=1) @ keys.T / temperature
    # Keys are in the order of ranks: this worker's positives begin at B * rank.
    positives = torch.arange(len(prediction), device=prediction.device) + len(prediction) * rank()
    return 2 * temperature * functional.cross_entropy(similarity, positives)

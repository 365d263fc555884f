"""SimSiam (paper, Equations 10-11)."""

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp


class SimSiam(Objective):
    """Each view's prediction against the other's projection, with a stopped gradient."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build a projector of three layers with BatchNorm on each, and a predictor with a bottleneck of D / 4."""
        super().__init__(config, features, image_size)
        hidden, output = config.hidden_dim or 2048, config.output_dim or 2048
        self.projector = mlp([features, hidden, hidden, output], batch_norm=True, final_norm=True)
        self.predictor = mlp([output, config.predictor_dim or max(output // 4, 1), output], batch_norm=True)

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Average the two directions, in [-1, 1] (paper, Equation 10)."""
        return 0.5 * (negative_cosine(u.online, v.target) + negative_cosine(v.online, u.target))

    def loss_of_both(self, unmasked: tuple[Embedding, Embedding], masked: tuple[Embedding, Embedding]) -> Tensor:
        """Average the configured terms, each in both directions, in [-1, 1] (the authors' code: up to eight)."""
        kinds = {"unmasked": unmasked, "masked": masked}
        distances = []
        for term in self.config.terms:
            predictions, targets = (kinds[kind] for kind in term.split("-"))
            distances.append(negative_cosine(predictions[0].online, targets[1].target))
            distances.append(negative_cosine(predictions[1].online, targets[0].target))
        return torch.stack(distances).mean()


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Average D(p, z) = -cos(p, z) over the batch, a scalar in [-1, 1] (paper, Equation 11); both inputs [B, D]."""
    return -functional.cosine_similarity(prediction, target, dim=1).mean()

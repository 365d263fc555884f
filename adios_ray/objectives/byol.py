"""BYOL (paper, Equations 12-14)."""

from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp


class BYOL(Objective):
    """Each view's prediction against the momentum networks' projection of the other."""

    uses_momentum = True

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build projector (4096 to 256) and predictor (8192 to 256), each with one hidden layer with BatchNorm."""
        super().__init__(config, features, image_size)
        output = config.output_dim or 256
        self.projector = mlp([features, config.hidden_dim or 4096, output], batch_norm=True)
        predictor = config.predictor_dim or config.hidden_dim or 8192
        self.predictor = mlp([output, predictor, output], batch_norm=True)

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Sum the two directions, in [0, 8] (paper, Equation 14)."""
        return squared_distance(u.online, v.target) + squared_distance(v.online, u.target)


def squared_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Average 2 - 2 cos(p, z) over the batch, a scalar in [0, 4] (paper, Equation 14); both inputs [B, D]."""
    return 2 - 2 * functional.cosine_similarity(prediction, target, dim=1).mean()

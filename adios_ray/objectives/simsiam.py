"""SimSiam (paper, Equations 10-11)."""

from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.models.heads import mlp
from adios_ray.objectives.base import Objective, View


class SimSiam(Objective):
    """Each view's prediction against the other's projection, without its gradient."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Projector of three layers with BatchNorm on each, predictor with a bottleneck of a quarter of the width."""
        super().__init__(config, features, image_size)
        hidden, output = config.hidden_dim or 2048, config.output_dim or 2048
        self.projector = mlp([features, hidden, hidden, output], batch_norm=True, final_norm=True)
        self.predictor = mlp([output, max(output // 4, 1), output], batch_norm=True)

    def compare(self, u: View, v: View) -> Tensor:
        """Mean of the two directions, in [-1, 1]."""
        return 0.5 * (negative_cosine(u.online, v.target) + negative_cosine(v.online, u.target))


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """D(p, z) = -cos(p, z), the mean over the batch (paper, Equation 11); both [B, D]."""
    return -functional.cosine_similarity(prediction, target, dim=1).mean()

"""Self-distillation in the manner of DINO (Caron et al. 2021), between two views."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp
from adios_ray.parallel import average

BOTTLENECK = 256
STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = 0.04
CENTER_MOMENTUM = 0.9


class Prototypes(nn.Module):
    """Cosines between inputs and K learned directions, [B, D] to [B, K] in [-1, 1]."""

    def __init__(self, width: int, count: int) -> None:
        """Draw the directions."""
        super().__init__()
        self.directions = nn.Parameter(torch.randn(count, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Compare each row with each direction."""
        return functional.normalize(x, dim=1) @ functional.normalize(self.directions, dim=1).T


class DINO(Objective):
    """The student's distribution over prototypes follows the centered, sharpened one of the momentum networks.

    Attributes:
        center: Running mean of the teacher's outputs, [K], taken off them so that no prototype wins always.
    """

    uses_momentum = True
    center: Tensor

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Projector 2048, 2048 to 256, then prototypes: 4096 unless configured (65536 is for a million images)."""
        super().__init__(config, features, image_size)
        hidden, count = config.hidden_dim or 2048, config.output_dim or 4096
        self.projector = nn.Sequential(mlp([features, hidden, hidden, BOTTLENECK]), Prototypes(BOTTLENECK, count))
        self.register_buffer("center", torch.zeros(count))
        self.register_load_state_dict_pre_hook(_rename_center)  # type: ignore[no-untyped-call]  # torch's part

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Mean of the two directions."""
        first = distillation(u.online, v.target - self.center)
        return (first + distillation(v.online, u.target - self.center)) / 2

    @torch.no_grad()
    def update_statistics(self, view: Embedding) -> None:
        """Move the center towards the teacher's mean output over all workers (Caron et al. 2021, Equation 4)."""
        self.center.lerp_(average(view.target.mean(dim=0)), 1 - CENTER_MOMENTUM)


def _rename_center(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Translate the state of earlier versions, which spelled the center's name otherwise."""
    if f"{prefix}centre" in state:
        state[f"{prefix}center"] = state.pop(f"{prefix}centre")


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of the sharpened distributions, the mean over the batch (Caron et al. 2021, Equations 1-2).

    Args:
        student: Outputs [B, K], with gradient.
        teacher: Centered outputs [B, K], without gradient.
    """
    wanted = (teacher / TEACHER_TEMPERATURE).softmax(dim=1)
    return -(wanted * (student / STUDENT_TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()

"""DINO: self-distillation without labels (Caron et al. 2021), between two views."""

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
    """Cosines between inputs and D learned directions, [B, 256] to [B, D] in [-1, 1]."""

    def __init__(self, width: int, count: int) -> None:
        """Initialize ``count`` directions of dimension ``width``."""
        super().__init__()
        self.directions = nn.Parameter(torch.randn(count, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the cosine of each row with each direction."""
        # Not by nn.utils.weight_norm, which keeps a non-leaf tensor that deepcopy refuses: the momentum networks are a
        # deep copy.
        return functional.normalize(x, dim=1) @ functional.normalize(self.directions, dim=1).T


class DINO(Objective):
    """The student's distribution over prototypes predicts the centered, sharpened one of the momentum networks.

    Attributes:
        center: Running mean of the teacher's outputs, [D]; subtracted from them, so that no prototype dominates.
    """

    uses_momentum = True
    center: Tensor

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build the projector (2048, 2048 to 256) and 4096 prototypes unless configured (65536 suit 1M images)."""
        super().__init__(config, features, image_size)
        hidden, count = config.hidden_dim or 2048, config.output_dim or 4096
        self.projector = nn.Sequential(mlp([features, hidden, hidden, BOTTLENECK]), Prototypes(BOTTLENECK, count))
        self.register_buffer("center", torch.zeros(count))
        self.register_load_state_dict_pre_hook(_rename_center)  # type: ignore[no-untyped-call]  # torch's part

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Average the two directions."""
        first = distillation(u.online, v.target - self.center)
        return (first + distillation(v.online, u.target - self.center)) / 2

    @torch.no_grad()
    def update_statistics(self, view: Embedding) -> None:
        """Move the center towards the teacher's mean output over the global batch (Caron et al. 2021, Equation 4).

        The mean is over the first view, which is never masked; there it is over all views.
        """
        self.center.lerp_(average(view.target.mean(dim=0)), 1 - CENTER_MOMENTUM)


def _rename_center(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Rename the center in the state of earlier versions, which had the British spelling."""
    if f"{prefix}centre" in state:
        state[f"{prefix}center"] = state.pop(f"{prefix}centre")


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean cross entropy of the sharpened distributions (Caron et al. 2021, Equations 1-2).

    Args:
        student: Outputs [B, D], with gradient.
        teacher: Centered outputs [B, D], without gradient.

    Returns:
        A scalar, at least 0.
    """
    wanted = (teacher / TEACHER_TEMPERATURE).softmax(dim=1)
    return -(wanted * (student / STUDENT_TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()

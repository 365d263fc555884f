"""What an objective is: heads, and a comparison of two views."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from adios_ray.config import ObjectiveConfig


class View(NamedTuple):
    """Embeddings of one view of a batch.

    Attributes:
        online: Output of the predictor (of the projector, where there is none), [B, D], with gradient.
        target: What the other view is to predict, [B, D], without gradient: the projection itself, or the one of
            the momentum networks.
    """

    online: Tensor
    target: Tensor


class Objective(nn.Module):
    """A self-supervised objective that compares two views.

    Attributes:
        uses_momentum: Whether targets come from averaged copies of backbone and projector.
        projector: Backbone features [B, F] to projections [B, D].
        predictor: Projections to predictions [B, D]; the identity where the objective has none.
    """

    uses_momentum: ClassVar[bool] = False
    projector: nn.Module
    predictor: nn.Module

    def __init__(self, config: ObjectiveConfig, features: int) -> None:
        """Build the heads for backbone features of width ``features``."""
        super().__init__()
        self.config = config
        self.predictor = nn.Identity()

    def compare(self, u: View, v: View) -> Tensor:
        """Distance of two views of the same images, a scalar, the same when they are exchanged."""
        raise NotImplementedError

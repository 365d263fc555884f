"""What an objective is: heads, and a comparison of two views."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from adios_ray.config import ObjectiveConfig


class Embedding(NamedTuple):
    """Embeddings of one view of a batch.

    Attributes:
        online: Output of the predictor (of the projector, where there is none), [B, D], with gradient.
        target: What is to be predicted, [B, D], without gradient: the projection itself, or the one of the momentum
            networks; the unmasked images where an objective compares pixels.
    """

    online: Tensor
    target: Tensor


class Objective(nn.Module):
    """A self-supervised objective that compares two views; docs/add_an_objective.md walks through one.

    Attributes:
        uses_momentum: Whether targets come from averaged copies of backbone and projector.
        projector: Backbone features [B, F] to projections [B, D].
        predictor: Projections to predictions [B, D]; the identity where the objective has none.
    """

    uses_momentum: ClassVar[bool] = False
    projector: nn.Module
    predictor: nn.Module

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build the heads for backbone features of width ``features`` of images of side ``image_size``."""
        super().__init__()
        self.config = config
        self.predictor = nn.Identity()

    def target(self, projection: Tensor, images: Tensor) -> Tensor:
        """What a view is to be predicted as.

        Args:
            projection: Of the view, without gradient, [B, D]; of the momentum networks where there are some.
            images: The view before it was masked, [B, 3, S, S].
        """
        return projection

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Distance of two views of the same images, a scalar.

        Args:
            u: The unmasked view (where both views are masked, also the masked first one).
            v: The masked view (likewise of the second).
        """
        raise NotImplementedError

    def loss_of_both(self, unmasked: tuple[Embedding, Embedding], masked: tuple[Embedding, Embedding]) -> Tensor:
        """Distance where both views are masked, a scalar: the mean over their four pairs.

        Args:
            unmasked: First and second view as they are.
            masked: Both, each under a mask of its own.
        """
        pairs = [(u, v) for u in (unmasked[0], masked[0]) for v in (unmasked[1], masked[1])]
        return torch.stack([self.loss_between(u, v) for u, v in pairs]).mean()

    def update_statistics(self, view: Embedding) -> None:
        """Hear of the first, unmasked view after each step; for objectives that keep running statistics."""

"""The interface of an objective: heads on the backbone's features, and a loss between two views.

Shape letters of all tensor code in this package::

    B     images in a batch, of this worker unless a docstring says "global"
    N     masks of an image, also called slots
    S     side of a square image or mask in pixels; H and W where the sides differ
    F     width of the backbone's features
    D     width of projections and predictions (for DINO the number of prototypes)
    K     views, images or candidates shown; in the training step the slots whose loss is computed, N or 1
    C     classes of labels, or channels
    M, Q  images of a whole split or k-NN bank, and queries
"""

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from adios_ray.config import ObjectiveConfig


class Embedding(NamedTuple):
    """The embedding of one view of a batch.

    Attributes:
        online: Output of the predictor (of the projector, where there is none), [B, D], with gradient.
        target: What the other view predicts, [B, D], without gradient: the projection, that of the momentum networks
            where there are some, or the unmasked images [B, 3, S, S] where an objective compares pixels.
    """

    online: Tensor
    target: Tensor


class Objective(nn.Module):
    """A self-supervised loss between two views with its projector and predictor.

    ``docs/add_an_objective.md`` walks through one.

    Attributes:
        uses_momentum: Whether targets come from momentum copies of backbone and projector.
        uses_masked_targets: Whether the loss reads targets of masked views; if not, momentum networks skip them.
        shuffles_targets: Whether momentum networks see the images in another order, and on other workers, where
            BatchNorm sees a part of the batch, as its statistics would tell which views belong together (He et al.
            2020, Section 3.3).
        projector: Maps backbone features [B, F] to projections [B, D].
        predictor: Maps projections to predictions [B, D]; the identity where the objective has none.
    """

    uses_momentum: ClassVar[bool] = False
    uses_masked_targets: ClassVar[bool] = True
    shuffles_targets: ClassVar[bool] = False
    projector: nn.Module
    predictor: nn.Module

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Store the configuration; subclasses build heads for F = ``features`` and S = ``image_size``."""
        super().__init__()
        self.config = config
        self.predictor = nn.Identity()

    def momentum_at(self, progress: float) -> float:
        """Return the momentum of the momentum networks: it rises from its start to 1 on a cosine (paper, Appendix A).

        Args:
            progress: Share of the training that is done, 0 to 1.
        """
        start = 0.99 if self.config.momentum_start is None else self.config.momentum_start
        return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2

    def target(self, projection: Tensor, images: Tensor) -> Tensor:
        """Return the target of a view: its projection, unless an objective predicts something else.

        Args:
            projection: Projection of the view, by the momentum networks where there are some, [B, D], without gradient.
            images: The view before it was masked, [B, 3, S, S].
        """
        return projection

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Compute the loss between two views of the same images, a scalar.

        Args:
            u: The unmasked first view; where both views are masked, also the masked first view.
            v: The masked second view; where both views are masked, also the unmasked second view.
        """
        raise NotImplementedError

    def loss_of_both(self, unmasked: tuple[Embedding, Embedding], masked: tuple[Embedding, Embedding]) -> Tensor:
        """Compute the loss where both views are masked, a scalar: the mean over the four pairs of views.

        Args:
            unmasked: First and second view.
            masked: First and second view, each under its own mask.
        """
        pairs = [(u, v) for u in (unmasked[0], masked[0]) for v in (unmasked[1], masked[1])]
        return torch.stack([self.loss_between(u, v) for u, v in pairs]).mean()

    def update_statistics(self, view: Embedding) -> None:
        """Update running statistics, if the objective has some, from the first, unmasked view after each step."""

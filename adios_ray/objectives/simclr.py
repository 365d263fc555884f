"""SimCLR (paper, Equations 4-5)."""

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp
from adios_ray.parallel import gather_with_gradient, rank


class SimCLR(Objective):
    """Contrastive loss NT-Xent between two views."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build a projector with one hidden ReLU layer, 2048 to 128 unless configured."""
        super().__init__(config, features, image_size)
        self.projector = mlp([features, config.hidden_dim or 2048, config.output_dim or 128])

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Compute NT-Xent over the global batch."""
        return nt_xent(u.online, v.online, self.config.temperature)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent, the normalized temperature-scaled cross entropy (paper, Equation 5).

    The positive of a sample is its other view. All other samples, of both views and all workers, are its negatives.

    Args:
        z1: Projections of one view, [B, D].
        z2: Projections of the other view, [B, D].
        temperature: Softmax temperature, > 0.

    Returns:
        Mean over this worker's 2B anchors, at least 0; its average over workers is the loss of the global batch.
    """
    batch = len(z1)
    anchors = functional.normalize(torch.cat([z1, z2]), dim=1)
    similarity = anchors @ gather_with_gradient(anchors).T / temperature
    own = torch.arange(2 * batch, device=z1.device)
    offset = 2 * batch * rank()  # gathered rows are in the order of ranks, with both views of one worker together
    # Compared and not indexed: assigning to indices copies the assigned number from the host.
    itself = torch.arange(similarity.shape[1], device=z1.device) == (own + offset)[:, None]
    positives = (own + batch) % (2 * batch) + offset
    return functional.cross_entropy(similarity.masked_fill(itself, -torch.inf), positives)

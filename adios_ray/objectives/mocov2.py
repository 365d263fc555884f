"""MoCo v2: contrast with a queue of earlier keys (He et al. 2020, Chen et al. 2020)."""

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives.base import Embedding, Objective
from adios_ray.objectives.heads import mlp
from adios_ray.parallel import gather_with_gradient


class MoCoV2(Objective):
    """The second view's query finds the first view's key among the keys of earlier batches.

    Queries are the second, masked view's, so that the gradient reaches the mask. Keys are the momentum networks'
    projections of the first, unmasked view: all N masked queries of a step are compared with the same keys and the same
    queue, which takes those keys once, after the step. Where both views are masked, each masked view is the query of
    the other, unmasked one, and the queue takes the first view's keys.

    Where BatchNorm sees a part of the batch, with several workers or with ``micro_batch_size``, keys are computed in
    another order of the images than queries (shuffling BN). In one process without micro-batches both
    are normalized over the same whole batch, so that the loss can be lowered by recognizing the batch; the paper's 32
    images for each of 8 statistics are a batch of 256 with ``micro_batch_size`` 32.

    Attributes:
        queue: Normalized keys, [K, D], the same on all workers; random directions at first, as in the authors' code.
        pointer: Row of the oldest key, which is replaced next, a scalar.
    """

    uses_momentum = True
    uses_masked_targets = False
    shuffles_targets = True
    queue: Tensor
    pointer: Tensor

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Build a projector with one hidden ReLU layer, 2048 to 128 unless configured, and the queue."""
        super().__init__(config, features, image_size)
        output = config.output_dim or 128
        self.projector = mlp([features, config.hidden_dim or 2048, output])
        self.register_buffer("queue", functional.normalize(torch.randn(config.queue, output), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def momentum_at(self, progress: float) -> float:
        """Return the configured momentum, 0.999 by default, which is constant (He et al. 2020, Equation 2)."""
        return 0.999 if self.config.momentum_start is None else self.config.momentum_start

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Contrast the queries of ``v`` with the keys of ``u``, in this direction alone."""
        return info_nce(v.online, u.target, self.queue, self.config.temperature)

    def loss_of_both(self, unmasked: tuple[Embedding, Embedding], masked: tuple[Embedding, Embedding]) -> Tensor:
        """Average over the two views as queries: each masked one against the other one unmasked."""
        return (self.loss_between(unmasked[0], masked[1]) + self.loss_between(unmasked[1], masked[0])) / 2

    @torch.no_grad()
    def update_statistics(self, view: Embedding) -> None:
        """Replace the oldest keys of the queue by those of the global batch; a larger batch leaves its last K keys."""
        keys = gather_with_gradient(functional.normalize(view.target, dim=1))[-len(self.queue) :]
        rows = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, keys)
        self.pointer.add_(len(keys)).remainder_(len(self.queue))


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE with one positive for each query and the queue's negatives (He et al. 2020, Equation 1).

    Args:
        query: [B, D]; row i belongs to row i of ``key``.
        key: [B, D], without gradient.
        queue: Normalized keys of earlier batches, [K, D].
        temperature: tau, > 0.

    Returns:
        Mean over this worker's B queries, at least 0; its average over workers is the loss of the global batch.
    """
    query, key = functional.normalize(query, dim=1), functional.normalize(key, dim=1)
    positive = (query * key).sum(dim=1, keepdim=True)
    similarity = torch.cat([positive, query @ queue.T], dim=1) / temperature
    # Column 0 has the positives.
    return functional.cross_entropy(similarity, torch.zeros(len(query), dtype=torch.int64, device=query.device))

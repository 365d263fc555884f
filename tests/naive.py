"""Oracles: pinned numbers, votes of neighbors in a loop, and the training step.

The step is ADIOS written literally, N full forward passes in one graph. Shape letters are those of
``adios_ray/objectives/base.py``.
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.models.networks import Networks
from adios_ray.objectives import Embedding
from adios_ray.training.optimizers import Optimizers

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    """Read the arrays of a golden file as tensors; tests/golden/README.md gives their source."""
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def naive_votes(bank: Tensor, labels: Tensor, queries: Tensor, neighbors: int, temperature: float) -> list[list[float]]:
    """Count shares of the votes for each query and class, neighbor by neighbor; labels are zeros and ones."""
    votes = []
    for query in queries.double():
        cosine = [float(query @ b / (query.norm() * b.norm())) for b in bank.double()]
        nearest = sorted(range(len(bank)), key=lambda i: -cosine[i])[:neighbors]
        weights = {i: math.exp(cosine[i] / temperature) for i in nearest}
        of_classes = [sum(w for i, w in weights.items() if row[i]) for row in labels.T.tolist()]
        votes.append([share / sum(weights.values()) for share in of_classes])
    return votes


def naive_masks(networks: Networks, batch: Batch, both: bool) -> tuple[Tensor | None, Tensor]:
    """Return the masks of the first view (None unless both views are masked) and of the second, [B, N, S, S] each."""
    return (networks.occlude(batch.a) if both else None), networks.occlude(batch.b)


def hide(networks: Networks, x: Tensor, mask: Tensor, fill: Tensor | None) -> Embedding:
    """Embed a masked view; its target may be the images before they were masked, or anything where it is not used."""
    unused = None if networks.objective.uses_masked_targets else x
    view = networks.embed(x * (1 - mask) + mask * (0 if fill is None else fill), target=unused)[0]
    return Embedding(view.online, networks.objective.target(view.target, x))


def naive_objective(
    networks: Networks, batch: Batch, masks_a: Tensor | None, masks_b: Tensor, config: TrialConfig
) -> Tensor:
    """Compute Equation 6 (Equation 9 for adios-s) without its penalty: the distance summed or averaged over slots."""
    loss_between = networks.objective.loss_between
    distance = {"simsiam": authors_terms, "mocov2": unmasked_keys}.get(config.objective.name, four_pairs)
    view_a = networks.embed(batch.a)[0]
    view_b = networks.embed(batch.b)[0] if masks_a is not None else None
    terms = []
    for k in range(masks_b.shape[1]):
        hidden_a = None
        if masks_a is not None:
            hidden_a = hide(networks, batch.a, masks_a[:, k : k + 1], batch.fill_a)
        hidden_b = hide(networks, batch.b, masks_b[:, k : k + 1], batch.fill_b)
        if hidden_a is None or view_b is None:
            terms.append(loss_between(view_a, hidden_b))
        else:
            terms.append(distance(networks, view_a, view_b, hidden_a, hidden_b, config))
    total = torch.stack(terms).sum()
    return total / len(terms) if config.masking.reduction == "mean" else total


def four_pairs(
    networks: Networks, a: Embedding, b: Embedding, hidden_a: Embedding, hidden_b: Embedding, config: TrialConfig
) -> Tensor:
    """Average over the four pairs of a first and a second view, each unmasked or masked."""
    loss_between = networks.objective.loss_between
    return (
        loss_between(a, b) + loss_between(a, hidden_b) + loss_between(hidden_a, b) + loss_between(hidden_a, hidden_b)
    ) / 4


def unmasked_keys(
    networks: Networks, a: Embedding, b: Embedding, hidden_a: Embedding, hidden_b: Embedding, config: TrialConfig
) -> Tensor:
    """Average over the masked views, each the query of the other view's unmasked key (MoCo v2)."""
    return (networks.objective.loss_between(a, hidden_b) + networks.objective.loss_between(b, hidden_a)) / 2


def authors_terms(
    networks: Networks, a: Embedding, b: Embedding, hidden_a: Embedding, hidden_b: Embedding, config: TrialConfig
) -> Tensor:
    """Compute the authors' SimSiam: two terms always and two for each option, averaged; targets without gradient."""

    def negative(prediction: Embedding, target: Embedding) -> Tensor:
        p, z = prediction.online, target.target
        cosines: Tensor = (p * z).sum(dim=1) / (p.norm(dim=1) * z.norm(dim=1))
        return -cosines.mean()

    terms = [negative(hidden_a, b), negative(hidden_b, a)]
    if "unmasked-masked" in config.objective.terms:  # use_symmetry_mask
        terms += [negative(b, hidden_a), negative(a, hidden_b)]
    if "unmasked-unmasked" in config.objective.terms:  # use_no_mask
        terms += [negative(a, b), negative(b, a)]
    if "masked-masked" in config.objective.terms:  # use_both_mask
        terms += [negative(hidden_a, hidden_b), negative(hidden_b, hidden_a)]
    return torch.stack(terms).mean()


def naive_price(masks_a: Tensor | None, masks_b: Tensor, config: TrialConfig) -> Tensor:
    """Compute what is subtracted from the occlusion model's objective: each masked view's penalty less the entropy."""
    price = config.masking.sparsity_weight * naive_penalty(masks_b, config)
    if masks_a is not None:
        price = price + config.masking.sparsity_weight * naive_penalty(masks_a, config)
    for image, mask_b in enumerate(masks_b):
        sizes = [mask.mean() for mask in mask_b]
        if masks_a is not None:
            sizes += [mask.mean() for mask in masks_a[image]]
        total = sum(size.exp() for size in sizes)
        for size in sizes:
            share = size.exp() / total
            price = price - config.masking.entropy_weight * share * share.log()
    return price


def naive_penalty(masks: Tensor, config: TrialConfig) -> Tensor:
    """Compute Equation 7 for one view, averaged over images, summed or averaged over slots."""
    total = masks.new_zeros(())
    for image in masks:
        for mask in image:
            total = total + 1 / torch.sin(torch.pi * mask.mean())
    total = total / len(masks)
    return total / masks.shape[1] if config.masking.reduction == "mean" else total


def pick_slot(masks: Tensor, drawn: Tensor) -> Tensor:
    """Select each image's drawn slot for ADIOS-s, [B, 1, S, S]."""
    slots = masks.shape[1]
    return torch.stack([image[int(number * slots)][None] for image, number in zip(masks, drawn, strict=True)])


def naive_step(
    networks: Networks, optimizers: Optimizers, batch: Batch, config: TrialConfig, progress: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Update both players once; return the gradients of encoder and occlusion model."""
    both = config.objective.masked_views == "both"
    first_view = copy.deepcopy(networks).embed(batch.a)[0]
    masks_a, masks_b = naive_masks(networks, batch, both)
    price = naive_price(masks_a, masks_b, config)
    if config.masking.scheme == "adios-s":
        masks_b = pick_slot(masks_b, batch.drawn_slots)
        masks_a = None if masks_a is None else pick_slot(masks_a, batch.drawn_slots)
    encoder = list(networks.encoder_parameters())
    assert networks.occlusion is not None and optimizers.occlusion is not None
    occlusion = list(networks.occlusion.parameters())
    alternating = config.masking.order == "alternating"
    objective = naive_objective(networks, batch, masks_a, masks_b, config)
    encoder_gradients = torch.autograd.grad(objective, encoder, retain_graph=True)
    _apply(optimizers.encoder, encoder, encoder_gradients) if alternating else None
    if alternating:
        # Targets are computed once a step: the second pass must not update the momentum networks' batch statistics.
        momentum, networks.momentum = networks.momentum, copy.deepcopy(networks.momentum)
        objective = naive_objective(networks, batch, masks_a, masks_b, config)
        networks.momentum = momentum
    occlusion_gradients = torch.autograd.grad(price - objective, occlusion)
    _apply(optimizers.encoder, encoder, encoder_gradients) if not alternating else None
    _apply(optimizers.occlusion, occlusion, occlusion_gradients)
    _follow(networks, networks.objective.momentum_at(progress))
    networks.objective.update_statistics(first_view)
    return list(encoder_gradients), list(occlusion_gradients)


def _follow(networks: Networks, momentum: float) -> None:
    """Move the momentum networks' parameters, one by one, to their mean with the encoder's new ones."""
    if networks.momentum is None:
        return
    for name, online in (("backbone", networks.backbone), ("projector", networks.objective.projector)):
        for mean, new in zip(networks.momentum[name].parameters(), online.parameters(), strict=True):
            mean.data = momentum * mean.data + (1 - momentum) * new.data


def _apply(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], gradients: tuple[Tensor, ...]
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # In the parameter's memory layout, as backward() stores it: fused optimizers read both as flat memory.
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    optimizer.step()
    optimizer.zero_grad()

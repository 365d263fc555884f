"""One step of the game between encoder and occlusion model (paper, Equations 6-9).

Three files tell the whole step: this one, the objective (``objectives/``) and the masker (``masking/``).

The unmasked view does not depend on the slot: it is embedded once, its embedding becomes a leaf that collects every
slot's gradient, and the sum goes back once. Each slot is played forward and backward against a leaf of its own, so
that memory does not grow with N and the gradient is that of all slots in one graph.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray import parallel
from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.data.sources.base import NO_LABEL
from adios_ray.masking.sparsity import size_entropy, sparsity
from adios_ray.models.networks import Networks
from adios_ray.objectives import Embedding
from adios_ray.training.divergence import check_finite
from adios_ray.training.optimizers import Optimizers


class Measurements(NamedTuple):
    """Scalars of one step.

    Attributes:
        loss: The objective, mean over slots and images.
        penalty: The sparsity term, mean over slots and images.
        probe_correct: Share of the images whose labels are known and that the probe classifies rightly.
        labeled: Share of the images whose labels are known.
    """

    loss: Tensor
    penalty: Tensor
    probe_correct: Tensor
    labeled: Tensor


class SlotLosses(NamedTuple):
    """What is known once the slots have been played.

    Attributes:
        losses: The objective of each slot, [K].
        view: The first view, unmasked.
        features: Its backbone features, [B, F].
        targets: Targets of all views in the order of their embedding, each [B, D].
    """

    losses: Tensor
    view: Embedding
    features: Tensor
    targets: list[Tensor]


def train_step(
    networks: Networks, optimizers: Optimizers, batch: Batch, config: TrialConfig, progress: float
) -> Measurements:
    """Update both players, the momentum networks and the probe on one batch.

    Args:
        networks: What is trained, in training mode.
        optimizers: Their optimizers, learning rates set.
        batch: Two views of B images.
        config: The trial's configuration.
        progress: Share of the training that is done, 0 to 1, for the momentum.

    Raises:
        NonFiniteError: If the objective or the penalty is not finite; the player that it would move has not moved.
    """
    if config.masking.learned:
        played, penalty = _play_adversarially(networks, optimizers, batch, config)
    else:
        fixed = [None] if batch.masks is None else batch.masks.split(1, dim=1)
        played, penalty = accumulate_gradients(networks, batch, fixed, config), torch.zeros((), device=batch.a.device)
        check_finite(played.losses, penalty)
        _update(optimizers.encoder)
    networks.update_momentum(progress)
    networks.objective.update_statistics(played.view)
    correct, labeled = probe_step(networks, optimizers, played.features, batch.labels)
    return Measurements(played.losses.mean(), penalty, correct, labeled)


def _play_adversarially(
    networks: Networks, optimizers: Optimizers, batch: Batch, config: TrialConfig
) -> tuple[SlotLosses, Tensor]:
    """Encoder and occlusion model play the objective against each other; returns also the mean sparsity term."""
    masking, views = config.masking, 2 if config.objective.masked_views == "both" else 1
    masks = networks.occlude(torch.cat([batch.a, batch.b]) if views == 2 else batch.b)
    slots = choose_slots(masks, batch.drawn_slots) if masking.scheme == "adios-s" else masks
    leaves = [slot.detach().requires_grad_() for slot in slots.split(1, dim=1)]
    penalties = sparsity(masks).mean(dim=0)
    if masking.order == "simultaneous":
        played = accumulate_gradients(networks, batch, leaves, config)
        check_finite(played.losses, penalties)
    else:
        played = accumulate_gradients(networks, batch, [leaf.detach() for leaf in leaves], config)
        check_finite(played.losses, penalties)
        _update(optimizers.encoder)
        # The momentum networks have not moved: what they said of each view still holds.
        targets = played.targets if networks.momentum is not None else ()
        with frozen(networks):
            check_finite(accumulate_gradients(networks, batch, leaves, config, targets).losses, penalties)
    # Each masked view pays for its own masks: the penalty is the sum of the views' means, not their mean.
    price = masking.sparsity_weight * views * (penalties.mean() if masking.reduction == "mean" else penalties.sum())
    if masking.entropy_weight:
        # A sum over the global batch, whose gradient the workers average.
        price = price - masking.entropy_weight * parallel.world_size() * size_entropy(masks, views)
    gradients = torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None], dim=1)
    torch.autograd.backward([slots, price], [-gradients, None])
    if masking.order == "simultaneous":
        _update(optimizers.encoder)
    assert optimizers.occlusion is not None
    _update(optimizers.occlusion)
    return played, penalties.detach().mean()


def accumulate_gradients(
    networks: Networks,
    batch: Batch,
    slots: Sequence[Tensor | None],
    config: TrialConfig,
    targets: Iterable[Tensor] = (),
) -> SlotLosses:
    """Accumulate the objective's gradients into the encoder and into the slots' leaves, slot by slot.

    Args:
        networks: The players; the encoder may be frozen.
        batch: Two views of B images.
        slots: Masks [B, 1, S, S] (of both views, [2B, 1, S, S], where both are masked); None masks nothing.
        config: The trial's configuration.
        targets: Of an earlier play with the same slots, where they still hold; none computes them.
    """
    known = iter(targets)
    seen: list[Tensor] = []

    def embed(x: Tensor, mask: Tensor | None = None) -> tuple[Embedding, Tensor]:
        # Dropout and stochastic depth draw the same in both plays of an alternating step, and after a resumption.
        torch.manual_seed(batch.module_seed + len(seen))
        view, features = networks.embed(x, mask, next(known, None))
        seen.append(view.target)
        return view, features

    both = config.objective.masked_views == "both" and slots[0] is not None
    view_a, features = embed(batch.a)
    unmasked = [view_a, embed(batch.b)[0]] if both else [view_a]
    leaves = [Embedding(view.online.detach().requires_grad_(), view.target) for view in unmasked]
    weight = 1 / len(slots) if config.masking.reduction == "mean" else 1.0
    losses = []
    for slot in slots:
        if both:
            assert slot is not None
            mask_a, mask_b = slot.chunk(2)
            masked = embed(batch.a, mask_a)[0], embed(batch.b, mask_b)[0]
            loss = networks.objective.loss_of_both((leaves[0], leaves[1]), masked)
        else:
            loss = networks.objective.loss_between(leaves[0], embed(batch.b, slot)[0])
        (weight * loss).backward()
        losses.append(loss.detach())
    for view, leaf in zip(unmasked, leaves, strict=True):
        if view.online.requires_grad and leaf.online.grad is not None:
            view.online.backward(leaf.online.grad)
    return SlotLosses(torch.stack(losses), view_a, features, seen)


def choose_slots(masks: Tensor, drawn: Tensor) -> Tensor:
    """One slot an image, drawn uniformly (ADIOS-s; paper, Equation 9).

    Args:
        masks: [B, N, S, S], or [2B, N, S, S] for both views of B images.
        drawn: Uniform numbers in [0, 1), [B].

    Returns:
        [B, 1, S, S] or [2B, 1, S, S], both views with the same slot.
    """
    slots = masks.shape[1]
    slot = (drawn.repeat(len(masks) // len(drawn)) * slots).long().clamp(max=slots - 1)
    return masks[torch.arange(len(masks), device=masks.device), slot][:, None]


@contextmanager
def frozen(networks: Networks) -> Iterator[None]:
    """Let no gradient into the encoder, so that a backward pass reaches the masks alone."""
    parameters = list(networks.encoder_parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _update(optimizer: torch.optim.Optimizer) -> None:
    """Average the gradients over the workers, step, and clear them."""
    parallel.average_gradients(p for group in optimizer.param_groups for p in group["params"])
    optimizer.step()
    optimizer.zero_grad()


def probe_step(networks: Networks, optimizers: Optimizers, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Train the online probe on features that exist already.

    Args:
        networks: Holds the probe.
        optimizers: Holds its optimizer.
        features: [B, F].
        labels: Classes [B], NO_LABEL where they are not known; or zeros and ones [B, C].

    Returns:
        The share of images that the probe classified rightly before the update, and the share with known labels.
    """
    logits: Tensor = networks.probe(features)
    if labels.ndim == 2:
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        correct, labeled = ((logits > 0) == (labels > 0)).float().mean(), logits.new_ones(())
    else:
        known = labels != NO_LABEL
        total = functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
        loss = total / known.sum().clamp(min=1)
        correct, labeled = (logits.argmax(dim=1) == labels).float().mean(), known.float().mean()
    loss.backward()
    _update(optimizers.probe)
    return correct, labeled

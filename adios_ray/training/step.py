"""One step of the game between encoder and occlusion model (paper, Equations 6-9).

Three files tell the whole step: this one, the objective (``objectives/``) and the masker (``masking/``).

The unmasked view does not depend on the slot: it is embedded once, its embedding becomes a leaf that collects every
slot's gradient, and the sum goes back once. Each slot is played forward and backward against a leaf of its own, so
that memory does not grow with N and the gradient is that of all slots in one graph.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray import parallel
from adios_ray.config import TrialConfig
from adios_ray.data.feed import Batch
from adios_ray.masking.sparsity import sparsity
from adios_ray.models.networks import Networks
from adios_ray.objectives import View
from adios_ray.training.optimizers import Optimizers


class Measurements(NamedTuple):
    """Scalars of one step: objective, sparsity term (means over slots and images), and the probe's accuracy."""

    loss: Tensor
    penalty: Tensor
    probe_accuracy: Tensor


def train_step(
    networks: Networks, optimizers: Optimizers, batch: Batch, config: TrialConfig, progress: float
) -> Measurements:
    """Update both players, the momentum networks and the probe on one batch.

    Args:
        networks: What is trained, in training mode.
        optimizers: Their optimisers, learning rates set.
        batch: Two views of B images.
        config: The trial's configuration.
        progress: Share of the training that is done, 0 to 1, for the momentum.
    """
    masking = config.masking
    penalty = torch.zeros((), device=batch.a.device)
    if masking.scheme == "none":
        loss, features = play(networks, batch, [None], config)
        _update(optimizers.encoder)
    else:
        masked = torch.cat([batch.a, batch.b]) if config.objective.masked_views == "both" else batch.b
        masks = networks.occlude(masked)
        slots = choose_slots(masks, batch.drawn_slots) if masking.scheme == "adios-s" else masks
        leaves = [slot.detach().requires_grad_() for slot in slots.split(1, dim=1)]
        if masking.order == "simultaneous":
            loss, features = play(networks, batch, leaves, config)
        else:
            loss, features = play(networks, batch, [leaf.detach() for leaf in leaves], config)
            _update(optimizers.encoder)
            with frozen(networks):
                play(networks, batch, leaves, config)
        penalty = _push_into_occlusion_model(masks, slots, leaves, config)
        if masking.order == "simultaneous":
            _update(optimizers.encoder)
        assert optimizers.occlusion is not None
        _update(optimizers.occlusion)
    networks.update_momentum(progress)
    accuracy = probe_step(networks, optimizers, features, batch.labels)
    return Measurements(loss, penalty, accuracy)


def play(
    networks: Networks, batch: Batch, slots: Sequence[Tensor | None], config: TrialConfig
) -> tuple[Tensor, Tensor]:
    """Accumulate the objective's gradients into the encoder and into the slots' leaves, slot by slot.

    Args:
        networks: The players; the encoder may be frozen.
        batch: Two views of B images.
        slots: Masks [B, 1, S, S] (of both views, [2B, 1, S, S], where both are masked); None masks nothing.
        config: The trial's configuration.

    Returns:
        The objective's mean over slots, and detached features [B, F] of the first view.
    """
    both = config.objective.masked_views == "both" and slots[0] is not None
    view_a, features = networks.embed(batch.a)
    unmasked = [view_a, networks.embed(batch.b)[0]] if both else [view_a]
    leaves = [View(view.online.detach().requires_grad_(), view.target) for view in unmasked]
    weight = 1 / len(slots) if config.masking.reduction == "mean" else 1.0
    total = torch.zeros((), device=features.device, dtype=features.dtype)
    for slot in slots:
        if both:
            assert slot is not None
            mask_a, mask_b = slot.chunk(2)
            masked_a = networks.embed(batch.a * (1 - mask_a))[0]
            masked_b = networks.embed(batch.b * (1 - mask_b))[0]
            pairs = [(u, v) for u in (leaves[0], masked_a) for v in (leaves[1], masked_b)]
        else:
            masked_b = networks.embed(batch.b if slot is None else batch.b * (1 - slot))[0]
            pairs = [(leaves[0], masked_b)]
        loss = sum((networks.objective.compare(u, v) for u, v in pairs), total.new_zeros(())) / len(pairs)
        (weight * loss).backward()
        total += loss.detach() / len(slots)
    for view, leaf in zip(unmasked, leaves, strict=True):
        if view.online.requires_grad:
            view.online.backward(leaf.online.grad)
    return total, features


def choose_slots(masks: Tensor, drawn: Tensor) -> Tensor:
    """One slot an image, drawn uniformly (ADIOS-s; paper, Equation 9).

    Args:
        masks: [B, N, S, S], or [2B, N, S, S] for both views of B images.
        drawn: Uniform numbers in [0, 1), [B].

    Returns:
        [B, 1, S, S] or [2B, 1, S, S], both views with the same slot.
    """
    slot = (drawn.repeat(len(masks) // len(drawn)) * masks.shape[1]).long()
    return masks[torch.arange(len(masks), device=masks.device), slot][:, None]


def _push_into_occlusion_model(masks: Tensor, slots: Tensor, leaves: Sequence[Tensor], config: TrialConfig) -> Tensor:
    """Give the occlusion model its gradient: it ascends the objective and descends lambda times the penalty."""
    penalties = sparsity(masks).mean(dim=0)
    reduced = penalties.mean() if config.masking.reduction == "mean" else penalties.sum()
    gradients = torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None], dim=1)
    torch.autograd.backward([slots, config.masking.sparsity_weight * reduced], [-gradients, None])
    return penalties.detach().mean()


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


def probe_step(networks: Networks, optimizers: Optimizers, features: Tensor, labels: Tensor) -> Tensor:
    """Train the online probe on features that exist already; returns its accuracy on the batch before the update."""
    logits: Tensor = networks.probe(features)
    if labels.ndim == 2:
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        accuracy = ((logits > 0) == (labels > 0)).float().mean()
    else:
        loss = functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
    loss.backward()
    _update(optimizers.probe)
    return accuracy

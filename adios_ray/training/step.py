"""One step of the game between encoder and occlusion model (paper, Equations 6-9).

The whole step is three files: this one, the objective (``objectives/``) and the occlusion model (``masking/``).

The loss is a sum over slots, and its gradient is accumulated slot by slot, so that memory does not grow with N. The
unmasked view, which all slots share, is embedded once: its embedding is detached into a leaf that accumulates the
gradients of all slots, and one backward pass takes their sum into the encoder. Likewise each slot's mask is a leaf, and
one backward pass takes the gradients of all masks into the occlusion model. Up to rounding the result is the gradient
of all slots in one graph (``tests/naive.py``).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray import parallel
from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.data.sources.base import NO_LABEL
from adios_ray.devices import tf32_products
from adios_ray.masking.sparsity import size_entropy, sparsity
from adios_ray.models.networks import Networks, View
from adios_ray.objectives import Embedding
from adios_ray.training.divergence import Terms, largest
from adios_ray.training.optimizers import Optimizers


class Measurements(NamedTuple):
    """Scalars of one step.

    Attributes:
        loss: The objective, mean over slots and images.
        penalty: The sparsity term, mean over slots and images.
        probe_correct: Share of all images that have a known label and are classified correctly by the probe, 0 to 1.
        labeled: Share of the images whose labels are known, 0 to 1.
    """

    loss: Tensor
    penalty: Tensor
    probe_correct: Tensor
    labeled: Tensor


class StepResult(NamedTuple):
    """The result of a step, beside updated networks.

    Attributes:
        measurements: Scalars for reports.
        terms: Losses, penalties and largest gradients, all of which must be finite.
    """

    measurements: Measurements
    terms: Terms


class SlotLosses(NamedTuple):
    """Losses and by-products of ``accumulate_gradients``.

    Attributes:
        losses: The objective of each slot, [K], detached.
        view: The first view, unmasked.
        features: Its backbone features, [B, F].
        targets: Targets of all embedded views, unmasked and masked, in the order of embedding; each [B, D].
    """

    losses: Tensor
    view: Embedding
    features: Tensor
    targets: list[Tensor]


def train_step(
    networks: Networks, optimizers: Optimizers, batch: Batch, config: TrialConfig, progress: float
) -> StepResult:
    """Update both players, the momentum networks and the probe on one batch.

    From the first loss, penalty or gradient that is not finite on, ``optimizers.found_inf`` is 1 and nothing is
    updated: see ``DivergenceWatch``.

    Args:
        networks: What is trained, in training mode.
        optimizers: Their optimizers, with the learning rates of this step.
        batch: Two views of B images.
        config: The trial's configuration.
        progress: Share of the training that is done, 0 to 1, which sets the momentum.
    """
    return update_networks(networks, optimizers, batch, config, momentum_rate(networks, progress))


def momentum_rate(networks: Networks, progress: float) -> float:
    """Return the share by which the momentum networks move towards the encoder in a step."""
    return 1 - networks.objective.momentum_at(progress)


def update_networks(
    networks: Networks, optimizers: Optimizers, batch: Batch, config: TrialConfig, rate: float | Tensor
) -> StepResult:
    """Take the step of ``train_step``, with the momentum networks' ``rate``: a number, or a scalar on the device."""
    with tf32_products(batch.a.device):
        # loss -> gradient -> update of the players
        if config.masking.learned:
            found, result = _adversarial_update(networks, optimizers, batch, config)
        else:
            fixed = [None] if batch.masks is None else batch.masks.split(1, dim=1)
            found = accumulate_gradients(networks, batch, fixed, config)
            probe, penalty = probe_gradients(networks, found.features, batch.labels), found.losses.new_zeros(())
            terms = _exchange((optimizers.encoder, optimizers.probe), found, penalty, probe)()
            _stop_if_not_finite(optimizers, terms)
            _update(optimizers.encoder)
            result = StepResult(Measurements(found.losses.mean(), penalty, *probe), terms)
        # What follows the encoder: its average after the update, running statistics, the probe on detached features.
        networks.update_momentum(rate * optimizers.updates)
        _update_statistics(networks, found.view, optimizers.found_inf)
        # From a mean over all images to one over those with labels, of which workers may have more or less.
        labeled = result.measurements.labeled
        torch._foreach_div_(_gradients(optimizers.probe), torch.where(labeled > 0, labeled, 1.0))
        _update(optimizers.probe)
        return result


def _adversarial_update(
    networks: Networks, optimizers: Optimizers, batch: Batch, config: TrialConfig
) -> tuple[SlotLosses, StepResult]:
    """Move the encoder down and the occlusion model up the objective; compute the probe's gradients beside them."""
    masking, views = config.masking, 2 if config.objective.masked_views == "both" else 1
    assert optimizers.occlusion is not None
    masks = networks.occlude(torch.cat([batch.a, batch.b]) if views == 2 else batch.b)
    slots = choose_slots(masks, batch.drawn_slots) if masking.scheme == "adios-s" else masks
    # Detached: the occlusion model's graph waits for its one backward pass below, while each slot's graph through the
    # encoder is freed after its own backward pass.
    leaves = [slot.detach().requires_grad_() for slot in slots.split(1, dim=1)]
    # From all N masks, also where adios-s drew one of them: the others must not become empty or full unseen.
    penalties = sparsity(masks).mean(dim=0)
    # Simultaneous: both players' gradients are of the same loss, with opposite signs. One backward pass fills the
    # encoder's .grad and the leaves', and only the latter are negated below.
    simultaneous = masking.order == "simultaneous"
    shown = leaves if simultaneous else [leaf.detach() for leaf in leaves]
    found = played = accumulate_gradients(networks, batch, shown, config)
    probe = probe_gradients(networks, found.features, batch.labels)
    exchanged = _exchange((optimizers.encoder, optimizers.probe), found, penalties, probe)
    if not simultaneous:
        first = exchanged()
        _stop_if_not_finite(optimizers, first)
        _update(optimizers.encoder)
        # The momentum networks move at the end of the step: the targets they gave are still valid.
        targets = found.targets if networks.momentum is not None else None
        with frozen(networks):
            played = accumulate_gradients(networks, batch, leaves, config, targets)
    # Each masked view pays for its own masks: the penalty is the sum of the views' means, not their mean.
    price = masking.sparsity_weight * views * (penalties.mean() if masking.reduction == "mean" else penalties.sum())
    if masking.entropy_weight:
        # A sum over the global batch, as in the authors' code: gradients are averaged over workers, so each worker
        # multiplies its share by their number.
        price = price - masking.entropy_weight * parallel.world_size() * size_entropy(masks, views)
    gradients = torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None], dim=1)
    # Gradient descent on price - objective is ascent on L - lambda p (paper, Equation 8).
    torch.autograd.backward([slots, price], [-gradients, None])
    if simultaneous:
        # Workers have exchanged the encoder's gradients while the occlusion model's were computed, and neither player
        # moves before both gradients are taken.
        own = _gradients(optimizers.occlusion)
        finish = parallel.begin_averaging(own)
        terms = exchanged()
        finish()
        terms = terms._replace(gradients=torch.cat([terms.gradients, largest(own)]))
        _stop_if_not_finite(optimizers, terms)
        _update(optimizers.encoder)
    else:
        second = _exchange((optimizers.occlusion,), played, penalties)()
        _stop_if_not_finite(optimizers, second)
        losses = torch.stack([first.losses, second.losses])
        terms = Terms(losses, second.penalties, torch.cat([first.gradients, second.gradients]))
    _update(optimizers.occlusion)
    return found, StepResult(Measurements(found.losses.mean(), penalties.detach().mean(), *probe), terms)


def _update_statistics(networks: Networks, view: Embedding, found_inf: Tensor) -> None:
    """Update the objective's running statistics, unless a term was not finite, as a diverged step is reproduced."""
    statistics = list(networks.objective.buffers(recurse=False))
    before = [values.clone() for values in statistics]
    networks.objective.update_statistics(view)
    for values, old in zip(statistics, before, strict=True):
        values.copy_(torch.where(found_inf > 0, old, values))


def _exchange(
    own: Iterable[torch.optim.Optimizer], found: SlotLosses, penalties: Tensor, measured: Sequence[Tensor] = ()
) -> Callable[[], Terms]:
    """Begin to average the gradients of some optimizers and a step's terms over the workers, in one exchange.

    Args:
        own: The optimizers.
        found: The losses.
        penalties: The sparsity terms.
        measured: What else is averaged, in place.

    Returns:
        A function that waits for the means and returns the terms, not finite if one is not on any worker.
    """
    gradients = [_gradients(optimizer) for optimizer in own]
    losses, means = found.losses.clone(), penalties.detach().reshape(-1).clone()  # averaged in place
    finish = parallel.begin_averaging([*chain(*gradients), losses, means, *measured])

    def terms() -> Terms:
        finish()
        return Terms(losses, means, torch.cat([largest(values) for values in gradients]))

    return terms


def _stop_if_not_finite(optimizers: Optimizers, terms: Terms) -> None:
    """Stop all updates from now on if a term is not finite; the host does not wait to know."""
    torch.maximum(optimizers.found_inf, terms.found_inf(), out=optimizers.found_inf)


def accumulate_gradients(
    networks: Networks,
    batch: Batch,
    slots: Sequence[Tensor | None],
    config: TrialConfig,
    targets: Sequence[Tensor] | None = None,
) -> SlotLosses:
    """Accumulate the objective's gradients into the encoder and into the slots' leaves, some slots at a time.

    Args:
        networks: The networks; the encoder may be frozen. Their ``slots_at_once`` are embedded in one batch.
        batch: Two views of B images.
        slots: K masks [B, 1, S, S] in [0, 1] (of both views, [2B, 1, S, S], where both are masked); None masks nothing.
        config: The trial's configuration.
        targets: ``SlotLosses.targets`` of an earlier call with the same slots, if still valid; computed if None.

    Returns:
        The losses of the slots, without the weight of the reduction, and what was computed beside them.
    """
    seen: list[Tensor] = []

    def embed(views: Sequence[View]) -> list[Embedding]:
        known = None if targets is None else targets[len(seen) : len(seen) + len(views)]
        # Seeded for each batch, so that dropout and stochastic depth draw the same numbers in both passes of an
        # alternating step, and after a resumption.
        seed_modules(batch, len(seen))
        embedded = networks.embed_together(views, known)
        seen.extend(view.target for view in embedded)
        return embedded

    both = config.objective.masked_views == "both" and slots[0] is not None
    with networks.weights_cast_once(batch.a.device):
        seed_modules(batch, 0)
        view_a, features = networks.embed(batch.a, target=None if targets is None else targets[0])
        seen.append(view_a.target)
        unmasked = [view_a, *embed([View(batch.b)])] if both else [view_a]
        # Only the online embeddings carry gradients; targets come without (``Networks.embed``).
        leaves = [Embedding(view.online.detach().requires_grad_(), view.target) for view in unmasked]
        weight = 1 / len(slots) if config.masking.reduction == "mean" else 1.0
        losses, at_once = [], networks.slots_at_once
        for first in range(0, len(slots), at_once):
            views = [view for slot in slots[first : first + at_once] for view in _masked_views(batch, slot, both)]
            # One view at a time where memory must not grow.
            embedded = embed(views) if at_once > 1 else [view for one in views for view in embed([one])]
            if both:
                pairs = zip(embedded[::2], embedded[1::2], strict=True)
                own = [networks.objective.loss_of_both((leaves[0], leaves[1]), pair) for pair in pairs]
            else:
                own = [networks.objective.loss_between(leaves[0], view) for view in embedded]
            # At once: it frees the graph of these slots before the next one is built.
            (weight * torch.stack(own).sum()).backward()
            losses += [loss.detach() for loss in own]
        # No gradient where the encoder is frozen, or where the objective ignores the unmasked view (pixel).
        for view, leaf in zip(unmasked, leaves, strict=True):
            if view.online.requires_grad and leaf.online.grad is not None:
                # Not by backward(gradient), whose check of shapes imports sympy: half a second in each process.
                (view.online * leaf.online.grad).sum().backward()
    return SlotLosses(torch.stack(losses), view_a, features, seen)


def seed_modules(batch: Batch, number: int) -> None:
    """Seed what modules draw in an embedding of a step."""
    # No recorded step draws anything (``graphs.check_recordable``), and seeds cannot change in a recording.
    if not (batch.a.is_cuda and torch.cuda.is_current_stream_capturing()):
        seed = batch.module_seed + number
        # Not torch.manual_seed: where torch has CUDA but no GPU, that records a stack trace, 0.4 ms a call.
        torch.default_generator.manual_seed(seed)
        if batch.a.is_cuda:
            torch.cuda.manual_seed(seed)


def _masked_views(batch: Batch, slot: Tensor | None, both: bool) -> list[View]:
    """List the views that a slot masks: the second, or the first and the second."""
    if not both or slot is None:
        return [View(batch.b, slot, batch.fill_b)]
    mask_a, mask_b = slot.chunk(2)
    return [View(batch.a, mask_a, batch.fill_a), View(batch.b, mask_b, batch.fill_b)]


def choose_slots(masks: Tensor, drawn: Tensor) -> Tensor:
    """Select one mask of each image, uniformly at random (ADIOS-s; paper, Equation 9).

    Args:
        masks: [B, N, S, S], or [2B, N, S, S] for both views of B images.
        drawn: Uniform numbers in [0, 1), [B].

    Returns:
        [B, 1, S, S] or [2B, 1, S, S], the same slot in both views.
    """
    slots = masks.shape[1]
    # The clamp is for a number that was rounded to 1 on its way here; the batch loader prevents that.
    slot = (drawn.repeat(len(masks) // len(drawn)) * slots).long().clamp(max=slots - 1)
    return masks[torch.arange(len(masks), device=masks.device), slot][:, None]


@contextmanager
def frozen(networks: Networks) -> Iterator[None]:
    """Stop gradients to the encoder's parameters inside the block, so that a backward pass reaches only the masks."""
    # An objective may have parameters of its own that never train.
    parameters = [parameter for parameter in networks.encoder_parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _update(optimizer: torch.optim.Optimizer) -> None:
    """Take a step with gradients that have been averaged over the workers; then clear them."""
    optimizer.step()
    optimizer.zero_grad()


def probe_gradients(networks: Networks, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accumulate the online probe's gradients, on features that the step has computed anyway.

    They are means over all images, to which those without labels add nothing.

    Args:
        networks: Holds the probe.
        features: Detached backbone features, [B, F].
        labels: Classes int64 [B], NO_LABEL where unknown; or zeros and ones [B, C] (multi-label).

    Returns:
        The share of all images that the probe classified correctly, 0 to 1, and the share with
        known labels, 0 to 1.
    """
    logits: Tensor = networks.probe(features)
    if labels.ndim == 2:
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        correct, labeled = ((logits > 0) == (labels > 0)).float().mean(), logits.new_ones(())
    else:
        known = labels != NO_LABEL
        loss = functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / len(labels)
        correct, labeled = (logits.argmax(dim=1) == labels).float().mean(), known.float().mean()
    loss.backward()
    return correct, labeled

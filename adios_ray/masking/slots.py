"""Changes of the number of slots N of a trained occlusion model.

Masks are a softmax over slots. Lowering a logit by log 2 halves its exponential, and two such copies add up to the
original: a slot is split, or two are merged, in the last layer alone, while all other masks stay the same.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adios_ray.masking.occlusion import OcclusionModel

SPLIT_NOISE = 0.02
"""Noise that tells the halves of a split apart, relative to the standard deviation of the head's weights."""


class SlotStatistics(NamedTuple):
    """Statistics of the slots, measured on some images.

    Attributes:
        size: Mean mask value of each slot, [N], summing to 1.
        overlap: Soft intersection over union of each pair, [N, N] in [0, 1]; the diagonal is 0.
    """

    size: Tensor
    overlap: Tensor


def slot_statistics(masks: Tensor) -> SlotStatistics:
    """Measure sizes and pairwise overlap of masks [B, N, S, S] in [0, 1]."""
    slots = masks.shape[1]
    overlap = torch.zeros(slots, slots)
    for i in range(slots):
        for j in range(i):
            both = torch.minimum(masks[:, i], masks[:, j]).sum()
            either = torch.maximum(masks[:, i], masks[:, j]).sum()
            # Two slots that hide nothing anywhere have no overlap.
            overlap[i, j] = overlap[j, i] = both / either.clamp(min=torch.finfo(either.dtype).tiny)
    return SlotStatistics(masks.mean(dim=(0, 2, 3)).cpu(), overlap)


class Head(NamedTuple):
    """Parameters of the 1x1 convolution whose outputs are the slots, with their optimizer state.

    Attributes:
        weight: [N, C, 1, 1], with C the channels of the U-Net's output.
        bias: [N].
        moments: The optimizer's running means of the gradients of weight and bias, or of their squares, by the
            optimizer's names for them; empty before the first step.
        steps: The optimizer's step count, a scalar; None where it has none (SGD, LARS).
    """

    weight: Tensor
    bias: Tensor
    moments: Mapping[str, tuple[Tensor, Tensor]]
    steps: Tensor | None


POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}
"""Power of the gradient that each moment averages: momentum_buffer of SGD and LARS, the others of AdamW."""


def resize_head(head: Head, masks: Tensor, slots: int, noise: float = SPLIT_NOISE) -> Head:
    """Split the largest slots, or merge those that overlap most (the smallest, if none do), until there are ``slots``.

    A split gives both halves the logit minus log 2, so that their masks add up to the old one, and weights that differ
    by a little noise, the same in each run. A merge averages two logits and adds log 2, which is exact if they are
    equal. The optimizer's moments follow the gradients, which a split halves and a merge adds.

    Args:
        head: The trained head.
        masks: Its masks on some images, [B, N, S, S], by which size and overlap are measured.
        slots: The new N, at least 2.
        noise: Standard deviation of a split's noise, relative to that of the weights.

    Returns:
        A new head; ``head`` is unchanged.
    """
    # A generator of its own, on the CPU: the same noise on every device, and the global generator does not move.
    generator = torch.Generator().manual_seed(slots)
    while len(head.bias) < slots:
        largest = int(masks.mean(dim=(0, 2, 3)).argmax())
        head = _split(head, largest, noise, generator)
        # What the masks will be, but for the noise, so that the next choice needs no forward pass.
        masks = torch.cat([masks, masks[:, largest : largest + 1]], dim=1)
        masks[:, [largest, -1]] /= 2
    while len(head.bias) > slots:
        size, overlap = slot_statistics(masks)
        pair = divmod(int(overlap.argmax()), masks.shape[1]) if overlap.any() else size.argsort()[:2].tolist()
        first, second = sorted(pair)
        head = _merge(head, first, second)
        masks = torch.cat([masks[:, :second], masks[:, second + 1 :]], dim=1).index_add(
            1, torch.tensor([first], device=masks.device), masks[:, second : second + 1]
        )
    return head


def _split(head: Head, slot: int, noise: float, generator: torch.Generator) -> Head:
    """Split ``slot`` into itself and a new last slot."""
    # Without noise the halves would get equal gradients and never differ. With opposite signs in the two halves, it
    # preserves the mean of their logits, and to first order the sum of their masks.
    scale = noise * float(head.weight.std()) if noise else 0.0
    jitter = torch.randn(head.weight[slot].shape, generator=generator) * scale
    jitter = jitter.to(head.weight)
    weight = torch.cat([head.weight, (head.weight[slot] - jitter)[None]])
    weight[slot] += jitter
    bias = torch.cat([head.bias, head.bias[slot : slot + 1]])
    bias[[slot, -1]] -= math.log(2)  # exp(l - log 2) + exp(l - log 2) = exp(l): the softmax's denominator stays
    moments = {}
    for name, buffers in head.moments.items():
        grown = [torch.cat([buffer, buffer[slot : slot + 1]]) for buffer in buffers]
        # A half has half the mask and so half the gradient: means of gradients halve, those of squares quarter.
        # Unscaled momentum would move both halves at twice the speed.
        for buffer in grown:
            buffer[[slot, -1]] /= 2 ** POWERS[name]
        moments[name] = (grown[0], grown[1])
    return Head(weight, bias, moments, head.steps)


def _merge(head: Head, first: int, second: int) -> Head:
    """Merge ``second`` into ``first``, and drop it."""
    keep = torch.arange(len(head.bias)) != second

    def merged(values: Tensor, combined: Tensor) -> Tensor:
        values = values.clone()
        values[first] = combined
        return values[keep.to(values.device)]

    weight = merged(head.weight, (head.weight[first] + head.weight[second]) / 2)
    bias = merged(head.bias, (head.bias[first] + head.bias[second]) / 2 + math.log(2))
    moments = {}
    for name, buffers in head.moments.items():
        # Gradients of equal slots add up: moments of squares as the square of the sum of their roots.
        power = POWERS[name]
        sums = [merged(b, (b[first] ** (1 / power) + b[second] ** (1 / power)) ** power) for b in buffers]
        moments[name] = (sums[0], sums[1])
    return Head(weight, bias, moments, head.steps)


def read_head(model: OcclusionModel, optimizer: torch.optim.Optimizer) -> Head:
    """Read the head of an occlusion model, with its optimizer state."""
    head = model.head
    assert head.bias is not None
    weight, bias = (optimizer.state.get(p, {}) for p in (head.weight, head.bias))
    moments = {name: (weight[name], bias[name]) for name in POWERS if weight.get(name) is not None}
    return Head(head.weight.detach(), head.bias.detach(), moments, weight.get("step"))


def use_blank_head(model: OcclusionModel, slots: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Replace the head by one of ``slots`` outputs whose values are about to be loaded; a no-op if it fits."""
    if model.slots != slots:
        weight = model.head.weight
        blank = Head(weight.new_zeros(slots, *weight.shape[1:]), weight.new_zeros(slots), {}, None)
        replace_head(model, optimizer, blank)


def replace_head(model: OcclusionModel, optimizer: torch.optim.Optimizer | None, head: Head) -> None:
    """Replace the head of an occlusion model and its state in the optimizer, if there is one yet, in place."""
    old = model.head
    new = nn.Conv2d(old.in_channels, len(head.bias), 1).to(head.weight)
    assert old.bias is not None and new.bias is not None
    with torch.no_grad():
        new.weight.copy_(head.weight)
        new.bias.copy_(head.bias)
    model.mask_head[0] = new
    if optimizer is None:
        return
    # An optimizer refers to parameters in two ways, both by identity: groups list them and the state has them as keys.
    # Groups keep their settings and their order, by which checkpoints address the state.
    replacements = {old.weight: new.weight, old.bias: new.bias}
    for group in optimizer.param_groups:
        group["params"] = [replacements.get(parameter, parameter) for parameter in group["params"]]
    for parameter in replacements:
        optimizer.state.pop(parameter, None)
    for position, parameter in enumerate(replacements.values()):
        state = {name: buffers[position].clone() for name, buffers in head.moments.items()}
        if head.steps is not None:
            state["step"] = head.steps.clone()
        if state:
            optimizer.state[parameter] = state

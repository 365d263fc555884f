"""Changing the number of slots N of a trained occlusion model.

Masks are a softmax over slots, so that a slot can be split into two halves, or two copies merged into their sum, by
the head's biases alone: the U-Net below is not touched and the masks' union stays what it was.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adios_ray.masking.occlusion import OcclusionModel

SPLIT_NOISE = 0.02


class SlotStatistics(NamedTuple):
    """What the masks of some images say about the slots.

    Attributes:
        size: Mean mask value of each slot, [N], summing to 1.
        overlap: Soft intersection over union of each pair, [N, N] in [0, 1]; the diagonal is 0.
    """

    size: Tensor
    overlap: Tensor


def slot_statistics(masks: Tensor) -> SlotStatistics:
    """Sizes and pairwise overlap of masks [B, N, H, W]."""
    slots = masks.shape[1]
    overlap = torch.zeros(slots, slots)
    for i in range(slots):
        for j in range(i):
            both = torch.minimum(masks[:, i], masks[:, j]).sum()
            either = torch.maximum(masks[:, i], masks[:, j]).sum()
            overlap[i, j] = overlap[j, i] = both / either
    return SlotStatistics(masks.mean(dim=(0, 2, 3)).cpu(), overlap)


class Head(NamedTuple):
    """The 1x1 convolution of the slots with its optimizer state.

    Attributes:
        weight: [N, C, 1, 1].
        bias: [N].
        moments: Running means that an optimizer keeps of the gradients of weight and bias, or of their squares, by
            the names it gives them; empty before the first step.
        steps: How many steps the optimizer has counted, where it counts.
    """

    weight: Tensor
    bias: Tensor
    moments: Mapping[str, tuple[Tensor, Tensor]]
    steps: Tensor | None


POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}
"""Power of the gradient that each moment is a mean of (SGD and LARS; AdamW)."""


def resize_head(head: Head, masks: Tensor, slots: int, noise: float = SPLIT_NOISE) -> Head:
    """Split the largest slots or merge the most alike until there are ``slots``.

    Splitting gives both halves the logit minus log 2 (their masks add up to the old one) and weights that differ by
    a little deterministic noise; merging averages the two logits and adds log 2, which is exact where the slots are
    copies. Moments follow their gradients, which a split halves and a merge adds up.

    Args:
        head: The trained head.
        masks: Its masks on some images, [B, N, H, W], by which sizes and likeness are judged.
        slots: The new N, at least 2.
        noise: Standard deviation of a split's noise, relative to the weights'.
    """
    generator = torch.Generator().manual_seed(slots)
    while len(head.bias) < slots:
        largest = int(masks.mean(dim=(0, 2, 3)).argmax())
        head = _split(head, largest, noise, generator)
        masks = torch.cat([masks, masks[:, largest : largest + 1]], dim=1)
        masks[:, [largest, -1]] /= 2
    while len(head.bias) > slots:
        first, second = sorted(divmod(int(slot_statistics(masks).overlap.argmax()), masks.shape[1]))
        head = _merge(head, first, second)
        masks = torch.cat([masks[:, :second], masks[:, second + 1 :]], dim=1).index_add(
            1, torch.tensor([first], device=masks.device), masks[:, second : second + 1]
        )
    return head


def _split(head: Head, slot: int, noise: float, generator: torch.Generator) -> Head:
    scale = noise * float(head.weight.std()) if noise else 0.0
    jitter = torch.randn(head.weight[slot].shape, generator=generator) * scale
    jitter = jitter.to(head.weight)
    weight = torch.cat([head.weight, (head.weight[slot] - jitter)[None]])
    weight[slot] += jitter
    bias = torch.cat([head.bias, head.bias[slot : slot + 1]])
    bias[[slot, -1]] -= math.log(2)
    moments = {}
    for name, buffers in head.moments.items():
        grown = [torch.cat([buffer, buffer[slot : slot + 1]]) for buffer in buffers]
        for buffer in grown:
            buffer[[slot, -1]] /= 2 ** POWERS[name]
        moments[name] = (grown[0], grown[1])
    return Head(weight, bias, moments, head.steps)


def _merge(head: Head, first: int, second: int) -> Head:
    keep = torch.arange(len(head.bias)) != second

    def merged(values: Tensor, combined: Tensor) -> Tensor:
        values = values.clone()
        values[first] = combined
        return values[keep.to(values.device)]

    weight = merged(head.weight, (head.weight[first] + head.weight[second]) / 2)
    bias = merged(head.bias, (head.bias[first] + head.bias[second]) / 2 + math.log(2))
    moments = {}
    for name, buffers in head.moments.items():
        power = POWERS[name]
        sums = [merged(b, (b[first] ** (1 / power) + b[second] ** (1 / power)) ** power) for b in buffers]
        moments[name] = (sums[0], sums[1])
    return Head(weight, bias, moments, head.steps)


def read_head(model: OcclusionModel, optimizer: torch.optim.Optimizer) -> Head:
    """The head of an occlusion model with its optimizer's state."""
    head = model.head
    assert head.bias is not None
    weight, bias = (optimizer.state.get(p, {}) for p in (head.weight, head.bias))
    moments = {name: (weight[name], bias[name]) for name in POWERS if weight.get(name) is not None}
    return Head(head.weight.detach(), head.bias.detach(), moments, weight.get("step"))


def replace_head(model: OcclusionModel, optimizer: torch.optim.Optimizer, head: Head) -> None:
    """Give an occlusion model and its optimizer another head, in place."""
    old = model.head
    new = nn.Conv2d(old.in_channels, len(head.bias), 1).to(head.weight)
    assert old.bias is not None and new.bias is not None
    with torch.no_grad():
        new.weight.copy_(head.weight)
        new.bias.copy_(head.bias)
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
    model.mask_head[0] = new

"""Masks made from a data set's instance maps (paper, Section 4.2)."""

import math

import torch
from torch import Tensor

from adios_ray.masking.schemes.base import IDS, Draws, ObjectScheme


def object_masks(instances: Tensor, slots: int, draws: Draws) -> Tensor:
    """Put one object into each slot and everything else into the last slot, as in the authors' code.

    If there are more objects than slots, a random subset is chosen; slots without an object are empty.

    Args:
        instances: Instance maps, uint8 [B, S, S]; 0 is the background.
        slots: Number of masks N, at least 2.
        draws: Uniform numbers [B, ``IDS``], one for each possible object; the smallest are chosen.

    Returns:
        Bool [B, N, S, S].
    """
    objects = _drawn_objects(instances, slots - 1, draws)
    return torch.cat([objects, ~objects.any(dim=1, keepdim=True)], dim=1)


def box_masks(instances: Tensor, slots: int, draws: Draws) -> Tensor:
    """Put the bounding box of one object into each slot; otherwise like ``object_masks``."""
    objects = _drawn_objects(instances, slots - 1, draws)
    boxes = _span(objects.any(dim=3))[:, :, :, None] & _span(objects.any(dim=2))[:, :, None, :]
    return torch.cat([boxes, ~boxes.any(dim=1, keepdim=True)], dim=1)


def foreground_masks(instances: Tensor, slots: int, draws: Draws) -> Tensor:
    """Put all objects into one slot and the background into another, bool [B, 2, S, S]; ``slots`` is ignored."""
    foreground = instances > 0
    return torch.stack([foreground, ~foreground], dim=1)


def _drawn_objects(instances: Tensor, count: int, draws: Draws) -> Tensor:
    """Choose ``count`` objects in a random order, bool [B, count, S, S]; empty masks where there are fewer."""
    present = torch.zeros(len(instances), IDS + 1, dtype=torch.bool)
    present.scatter_(1, instances.flatten(1).long(), True)
    # One number for each possible object: the order of two objects does not depend on which others are present.
    keys = torch.from_numpy(draws).masked_fill(~present[:, 1:], math.inf)
    order = keys.argsort(dim=1)[:, :count]
    chosen = torch.where(keys.gather(1, order) < math.inf, order + 1, -1)
    return instances[:, None].long() == chosen[:, :, None, None]


def _span(occupied: Tensor) -> Tensor:
    """Fill between the first and the last True of bool [B, N, S]."""
    forward, backward = occupied.cummax(dim=2).values, occupied.flip(2).cummax(dim=2).values.flip(2)
    return forward & backward


GROUND_TRUTH = ObjectScheme(object_masks)
FOREGROUND = ObjectScheme(foreground_masks)
BOX = ObjectScheme(box_masks)
SHUFFLE = ObjectScheme(object_masks, of_another_image=True)

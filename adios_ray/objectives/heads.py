"""Projector and predictor heads."""

from collections.abc import Sequence

from torch import nn


def mlp(widths: Sequence[int], batch_norm: bool = False, final_norm: bool = False) -> nn.Sequential:
    """Build linear layers with ReLU between them, [B, widths[0]] to [B, widths[-1]].

    Args:
        widths: Input, hidden and output widths.
        batch_norm: BatchNorm before each ReLU.
        final_norm: BatchNorm without scale and shift after the last layer.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in zip(widths[:-2], widths[1:-1], strict=True):
        # No bias before a BatchNorm, which would subtract it.
        layers.append(nn.Linear(width_in, width_out, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(nn.ReLU())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not final_norm))
    if final_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)

"""A fast gradient with respect to the image for the first convolution of a ResNet.

Usual training never needs that gradient, but masks do. Libraries are slow at it: few channels, a large kernel and a
stride.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

CHANNELS = 8
"""Tensor cores take input channels in multiples of this number."""


class StemConv2d(nn.Conv2d):
    """A convolution of stride 2 that halves the resolution; parameters and results are those of ``nn.Conv2d``.

    On GPUs the whole convolution is a dense one at the resolution of the output (``convolve_phases``). On CPUs, where
    that is slower, only the gradient with respect to the input is computed so: three times as fast as torch's strided
    one.
    """

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> "StemConv2d":
        """Convert a convolution; the result shares its parameters and hooks."""
        # Without __init__, which would draw initial weights and change the random state.
        same = cls.__new__(cls)
        same.__dict__ = convolution.__dict__
        return same

    @staticmethod
    def suits(module: nn.Module | None) -> bool:
        """Tell whether a module is a convolution that can be replaced."""
        if type(module) is not nn.Conv2d or module.bias is not None or module.padding_mode != "zeros":
            return False
        size = module.kernel_size[0]
        return (
            module.kernel_size == (size, size)
            and size % 2 == 1
            and module.stride == (2, 2)
            and module.padding == (size // 2, size // 2)
            and module.dilation == (1, 1)
            and module.groups == 1
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H / 2, W / 2]; odd H and W are rounded up."""
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            return super().forward(x)
        if x.is_cuda:
            return convolve_phases(x, self.weight)
        if not x.requires_grad:
            return super().forward(x)
        result: Tensor = _HalvingConvolution.apply(x, self.weight)
        return result


def convolve_phases(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with stride 2 and padding k // 2 as a dense convolution of the input's four phases (space-to-depth).

    The phases, even and odd rows and columns, become channels, for the image by ``pixel_unshuffle`` and for the kernel
    likewise.

    Args:
        x: [B, C_in, H, W], H and W even.
        weight: [C_out, C_in, k, k], k odd.

    Returns:
        [B, C_out, H / 2, W / 2], in the memory layout of ``x``.
    """
    size, padding = weight.shape[-1], weight.shape[-1] // 2
    # The kernel's first row must meet an even row of the image, and its rows come in pairs.
    lead = padding % 2
    trail = (size + lead) % 2
    kernel = functional.pixel_unshuffle(functional.pad(weight, (lead, trail, lead, trail)), 2)
    before = (padding + lead) // 2
    after = kernel.shape[-1] - 1 - before
    # Multiples of 8 channels, for tensor cores.
    missing = -kernel.shape[1] % CHANNELS
    phases = functional.pad(functional.pixel_unshuffle(x, 2), (before, after, before, after, 0, missing))
    kernel = functional.pad(kernel, (0, 0, 0, 0, 0, missing))
    # On GPUs pixel_unshuffle does not keep the layout, which decides that of the result and so of all that follows.
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return functional.conv2d(phases.contiguous(memory_format=layout), kernel.contiguous(memory_format=layout))


class _HalvingConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, stride=2, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        # Under autocast the saved tensors are in single precision and the gradient in bfloat16.
        x, weight = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = conv2d_weight(x, weight.shape, gradient, stride=2, padding=weight.shape[-1] // 2)
        return input_gradient(gradient, weight), to_weight


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient with respect to the input of a convolution of stride 2 and padding k // 2.

    Input row 2 j + r receives the gradient of output row j + o through kernel row r + k // 2 - 2 o.

    Args:
        gradient: Gradient with respect to the output, [B, C_out, H / 2, W / 2].
        weight: [C_out, C_in, k, k], k odd.

    Returns:
        [B, C_in, H, W].
    """
    size, (height, width) = weight.shape[-1], gradient.shape[-2:]
    padding = size // 2
    first, last = -(padding // 2), (padding + 1) // 2
    offsets = torch.arange(first, last + 1)
    rows = torch.arange(2)[:, None] + padding - 2 * offsets
    # Rows outside of the kernel are taken from the row of zeros that is appended to it.
    rows = torch.where((rows < 0) | (rows >= size), size, rows)
    padded = functional.pad(weight, (0, 1, 0, 1))
    phases = padded[:, :, rows[:, :, None, None], rows[None, None]]
    kernel = phases.permute(1, 2, 4, 0, 3, 5).reshape(-1, len(weight), len(offsets), len(offsets))
    # Four times the channels at half the resolution: pixel_shuffle interleaves the phases.
    dense = functional.conv2d(gradient, kernel, padding=last)
    begin = first + last
    return functional.pixel_shuffle(dense[:, :, begin : begin + height, begin : begin + width], 2)


def use_fast_stem(backbone: nn.Module) -> None:
    """Replace a backbone's first convolution in place, if it has stride 2."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            if StemConv2d.suits(module):
                backbone.set_submodule(name, StemConv2d.of(module))
            return

"""The occlusion model: a U-Net whose N masks are a softmax over slots at every pixel (paper, Section 2.2, Table 8)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adios_ray.config import Norm, check_image_size, unet_levels
from adios_ray.errors import UsageError

BOTTLENECK = 128
"""Width of the hidden layers of the MLP."""
GROUPS = 8
"""Groups of GroupNorm; widths are multiples of it."""


class GroupNorm(nn.GroupNorm):
    """Group normalization that, compiled, keeps any memory layout, and bfloat16 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape, normalized over each image's groups of channels."""
        # torch's kernel is the faster one uncompiled, though on GPUs it copies channels-last tensors to the other
        # layout, and takes and returns float32 under autocast.
        normalize = group_norm if torch.compiler.is_compiling() else functional.group_norm
        return normalize(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalize groups of channels by plain operations, for compilers to fuse.

    Args:
        x: [B, C, H, W].
        groups: Number of groups, a divisor of C.
        weight: Factor for each channel, [C].
        bias: Summand for each channel, [C].
        eps: Added to the variance.

    Returns:
        [B, C, H, W] of the type of ``x``; computed in at least single precision.
    """
    full = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    # First over the pixels of each channel, which reads channels-last memory in its order; then over the few channels.
    variances, means = torch.var_mean(full, (2, 3), correction=0)
    between, mean = torch.var_mean(means.unflatten(1, (groups, -1)), 2, correction=0, keepdim=True)
    variance = variances.unflatten(1, (groups, -1)).mean(2, keepdim=True) + between
    scale = (variance + eps).rsqrt() * weight.view(groups, -1)
    center = mean.expand_as(scale).reshape(*means.shape, 1, 1)
    normalized: Tensor = (full - center) * scale.view_as(center) + bias[:, None, None]
    return normalized.to(x.dtype)


class SkipConv2d(nn.Conv2d):
    """The 3x3 convolution of an upsampled tensor and a skip connection, concatenated; neither is written to memory."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override] # takes two tensors
        """Map [B, C, H, W] or [B, C, H / 2, W / 2], and a skip connection [B, C', H, W], to [B, C_out, H, W]."""
        upsampled, skipped = self.weight.split([x.shape[1], skip.shape[1]], dim=1)
        y = functional.conv2d(skip, skipped, self.bias, padding=1)
        if x.shape[-1] == skip.shape[-1]:
            return y + functional.conv2d(x, upsampled, padding=1)
        # After nearest-neighbor upsampling by 2, taps that read the same pixel add up: 4 products instead of 9.
        kernel = functional.pad(upsampled, (1, 1, 1, 1)).unfold(2, 2, 1).unfold(3, 2, 1).sum((4, 5))
        return y + functional.conv_transpose2d(x, kernel.flip(2, 3).transpose(0, 1), stride=2, padding=1)


class UpBlock(nn.Sequential):
    """A convolution that joins a skip connection, normalization and ReLU."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override] # takes two tensors
        """Apply the convolution to both tensors, and what follows to its result."""
        convolution, *others = self
        y: Tensor = convolution(x, skip)
        for module in others:
            y = module(y)
        return y


def _normalized(channels: int, norm: Norm) -> tuple[nn.Module, nn.Module]:
    """Build normalization and ReLU, which follow each convolution."""
    norms: dict[str, nn.Module] = {
        "group": GroupNorm(GROUPS, channels),
        "instance": nn.InstanceNorm2d(channels, affine=True),
        "none": nn.Identity(),
    }
    # No backward pass reads what ReLU gets; in place it needs half of the memory traffic.
    return norms[norm], nn.ReLU(inplace=True)


class UNet(nn.Module):
    """U-Net with skip connections, nearest-neighbor resampling and an MLP at the lowest resolution.

    Parameter names are those of the published implementation.
    """

    def __init__(self, image_size: int, width: int, norm: Norm, levels: int) -> None:
        """Build ``levels`` resolutions, of which the last three have 2 ``width`` channels."""
        super().__init__()
        bottom_size = image_size // 2 ** (levels - 1)
        widths = [width] * (levels - 3) + [2 * width] * 3
        inputs = [3, *widths[:-1]]
        options: dict[str, Any] = {"kernel_size": 3, "padding": 1, "bias": norm == "none"}
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, **options), *_normalized(o, norm))
            for i, o in zip(inputs, widths, strict=True)
        )
        flat = widths[-1] * bottom_size**2
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(flat, BOTTLENECK),
            nn.ReLU(),
            nn.Linear(BOTTLENECK, BOTTLENECK),
            nn.ReLU(),
            nn.Linear(BOTTLENECK, flat),
            nn.ReLU(),
        )
        outputs = [*widths[-2::-1], width]
        self.up = nn.ModuleList(
            UpBlock(SkipConv2d(2 * skip, o, **options), *_normalized(o, norm))
            for skip, o in zip(reversed(widths), outputs, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, S, S] to features [B, width, S, S]."""
        skips = []
        for level, block in enumerate(self.down):
            # Every other pixel: the values of nearest-neighbor interpolation by one half, without its cost.
            x = block(x if level == 0 else x[:, :, ::2, ::2])
            skips.append(x)
        x = self.mlp(x).view_as(x)
        for block in self.up:
            x = block(x, skips.pop())
        return x


class OcclusionModel(nn.Module):
    """Maps images to N masks that sum to one at every pixel; 1 removes the pixel.

    Attributes:
        image_size: Side S of its images in pixels.
        channels_last: Memory layout of the U-Net, whatever that of the images; ``use_layout`` changes it.
    """

    def __init__(
        self, image_size: int, slots: int, width: int, norm: Norm = "group", levels: int | None = None
    ) -> None:
        """Build for square images.

        Raises:
            ValueError: If the image size cannot be halved at each level, or not normalized at the last.
        """
        super().__init__()
        check_image_size(image_size, levels)
        if levels is not None and norm == "instance" and image_size == 2 ** (levels - 1):
            raise ValueError(
                f"masking.levels {levels}: of an image of {image_size} pixels one is left, which masking.norm instance "
                f"cannot normalize: take {levels - 1}"
            )
        self.image_size = image_size
        self.mask_encoder = UNet(image_size, width, norm, unet_levels(image_size, levels))
        self.mask_head = nn.Sequential(nn.Conv2d(width, slots, 1))
        self.use_layout(channels_last=True)

    def use_layout(self, channels_last: bool) -> None:
        """Compute in another memory layout from now on; results change by rounding alone."""
        self.channels_last = channels_last  # not the layout itself, which torch.save cannot pickle
        self.to(memory_format=self.layout)

    @property
    def layout(self) -> torch.memory_format:
        """Memory layout of the U-Net."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def choose_layout(self, device: torch.device, compiled: bool) -> None:
        """Compute in the memory layout that is the fastest on a device from now on, where compiled or not."""
        # With so few channels, channels-last is the fastest, but not where each norm copies it to the other layout and
        # back, as torch's GroupNorm does on GPUs.
        copied = device.type == "cuda" and not compiled
        self.use_layout(channels_last=not copied)

    @property
    def head(self) -> nn.Conv2d:
        """The 1x1 convolution whose outputs are the slots."""
        convolution = self.mask_head[0]
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    @property
    def slots(self) -> int:
        """Number of masks N."""
        return self.head.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images [B, 3, S, S] to masks [B, N, S, S] in [0, 1] that sum to 1 over N.

        Raises:
            UsageError: If the images have another side than the model was built for.
        """
        if x.shape[1:] != (3, self.image_size, self.image_size):
            side = self.image_size
            raise UsageError(f"the occlusion model takes images [B, 3, {side}, {side}], not {list(x.shape)}")
        # Masks for reports come in numbers of their own, for which a compiled module would be compiled once more.
        encode = self.mask_encoder if torch.is_grad_enabled() else self.mask_encoder.forward
        logits: Tensor = self.mask_head(encode(x.contiguous(memory_format=self.layout)))
        # Single precision even under autocast: bfloat16 resolves a mask's mean to 3 digits, too few for the penalty
        # near its poles. No longer channels-last, since masks are split by slot.
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return logits.contiguous().softmax(dim=1)

    def token_masks(self, x: Tensor, patch: int) -> Tensor:
        """Average each mask over the patches of a vision transformer.

        Args:
            x: Normalized images [B, 3, S, S].
            patch: Side P of a patch in pixels.

        Returns:
            Share of each patch that a mask removes, [B, N, L] in [0, 1], summing to 1 over N. The L = (S / P)^2 tokens
            are in the order of a vision transformer: row by row, without a class token.

        Raises:
            UsageError: If the patch does not divide the images' side.
        """
        side = x.shape[-1]
        if patch not in range(1, side + 1) or side % patch:  # nor is anything but a whole number
            raise UsageError(f"patch {patch!r} does not divide the images' side of {side} pixels")
        return functional.avg_pool2d(self(x), int(patch)).flatten(2)

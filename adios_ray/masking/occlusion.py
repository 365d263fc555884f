"""The occlusion model: a U-Net whose N masks are a softmax over slots at every pixel (paper, Section 2.2, Table 8)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from adios_ray.config import Norm, check_image_size
from adios_ray.errors import UsageError

BOTTLENECK = 128
"""Width of the hidden layers of the MLP."""
GROUPS = 8
"""Groups of GroupNorm; widths are multiples of it."""


def _block(channels_in: int, channels_out: int, norm: Norm) -> nn.Sequential:
    """Build a 3x3 convolution that keeps the resolution, normalization and ReLU."""
    norms: dict[str, nn.Module] = {
        "group": nn.GroupNorm(GROUPS, channels_out),
        "instance": nn.InstanceNorm2d(channels_out, affine=True),
        "none": nn.Identity(),
    }
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=norm == "none")
    return nn.Sequential(convolution, norms[norm], nn.ReLU())


class UNet(nn.Module):
    """U-Net with skip connections, nearest-neighbor resampling and an MLP at the lowest resolution.

    Parameter names are those of the published implementation.
    """

    def __init__(self, image_size: int, width: int, norm: Norm, levels: int | None = None) -> None:
        """Build ``levels`` resolutions, log2(image_size) - 1 if not given; the last three have 2 ``width`` channels."""
        super().__init__()
        levels = levels or int(math.log2(image_size) - 1)
        self.bottom_size = image_size // 2 ** (levels - 1)
        widths = [width] * (levels - 3) + [2 * width] * 3
        inputs = [3, *widths[:-1]]
        self.down = nn.ModuleList(_block(i, o, norm) for i, o in zip(inputs, widths, strict=True))
        flat = widths[-1] * self.bottom_size**2
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
        self.up = nn.ModuleList(_block(2 * skip, o, norm) for skip, o in zip(reversed(widths), outputs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, S, S] to features [B, width, S, S]."""
        skips = []
        for level, block in enumerate(self.down):
            # Every other pixel: the values of nearest-neighbor interpolation by one half, without its cost.
            x = block(x if level == 0 else x[:, :, ::2, ::2])
            skips.append(x)
        x = self.mlp(x).view_as(x)
        for level, block in enumerate(self.up):
            x = block(torch.cat([x, skips.pop()], dim=1))
            if level < len(self.up) - 1:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class OcclusionModel(nn.Module):
    """Maps images to N masks that sum to one at every pixel; 1 removes the pixel."""

    def __init__(
        self, image_size: int, slots: int, width: int, norm: Norm = "group", levels: int | None = None
    ) -> None:
        """Build for square images.

        Raises:
            ValueError: If the image size cannot be halved at each level.
        """
        super().__init__()
        check_image_size(image_size)
        if levels is not None and image_size % 2 ** (levels - 1):
            raise ValueError(f"masking.levels {levels}: image size {image_size} cannot be halved {levels - 1} times")
        self.mask_encoder = UNet(image_size, width, norm, levels)
        self.mask_head = nn.Sequential(nn.Conv2d(width, slots, 1))
        # Whatever config.channels_last says: with so few channels this layout is the fastest.
        self.to(memory_format=torch.channels_last)

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
        """Map normalized images [B, 3, S, S] to masks [B, N, S, S] in [0, 1] that sum to 1 over N."""
        logits: Tensor = self.mask_head(self.mask_encoder(x))
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
        if patch < 1 or side % patch:
            raise UsageError(f"patch {patch} does not divide the images' side of {side} pixels")
        return functional.avg_pool2d(self(x), patch).flatten(2)

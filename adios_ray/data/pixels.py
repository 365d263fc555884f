"""Batched pixel operations, each with its own parameters for every image; torchvision's definitions, exactly.

Images are float [B, 3, H, W] in [0, 1] unless said otherwise. No operation looks at another image of the batch.
"""

import torch
from torch import Tensor
from torch.nn import functional

GREY_WEIGHTS = (0.2989, 0.587, 0.114)
BLUR_RADIUS = 6


def interpolation_matrix(start: Tensor, length: Tensor, stored_size: int, out_size: int) -> Tensor:
    """Weights that crop one axis and resize it: antialiased bicubic (a = -1/2), half-pixel centres.

    Args:
        start: First pixel of each crop, [B].
        length: Pixels of each crop, [B], at least 1.
        stored_size: Pixels of the axis.
        out_size: Pixels after resizing.

    Returns:
        [B, out_size, stored_size]; each row sums to 1 and is 0 outside its crop.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / out_size
    centre = start + (torch.arange(out_size, device=start.device)[None, :, None] + 0.5) * scale
    pixel = torch.arange(stored_size, device=start.device)[None, None, :]
    weights = _cubic((pixel + 0.5 - centre).abs() / scale.clamp(min=1))
    weights = weights * ((pixel >= start) & (pixel < start + length))
    return weights / weights.sum(dim=2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2 at distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resample(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply a matrix to each axis.

    Args:
        pixels: [B, S, S, C], channels last.
        rows: Matrix of the vertical axis, [B, H, S].
        columns: Matrix of the horizontal axis, [B, W, S].

    Returns:
        [B, C, H, W].
    """
    batch, size, _, channels = pixels.shape
    height = rows.shape[1]
    tall = torch.bmm(rows, pixels.reshape(batch, size, size * channels)).view(batch, height, size, channels)
    turned = tall.transpose(1, 2).reshape(batch, size, height * channels)
    return torch.bmm(columns, turned).view(batch, -1, height, channels).permute(0, 3, 2, 1).contiguous()


def greyscale(x: Tensor) -> Tensor:
    """Luma (ITU-R 601-2), [B, 1, H, W]."""
    weights = x.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(x), x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: factor [B], 1 leaves the image."""
    return (x * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey: factor [B], 1 leaves the image."""
    return _blend(x, greyscale(x).mean(dim=(2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: factor [B], 1 leaves the image."""
    return _blend(x, greyscale(x), factor)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` [B] of the colour circle, in [-1/2, 1/2]; value and saturation stay."""
    value, low = x.amax(dim=1), x.amin(dim=1)
    chroma = value - low
    grey = chroma == 0
    safe = torch.where(grey, torch.ones_like(chroma), chroma)
    red, green, blue = ((value - channel) / safe for channel in x.unbind(1))
    is_red, is_green = value == x[:, 0], value == x[:, 1]
    sector = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = torch.where(grey, torch.zeros_like(sector), sector / 6 + 1) + shift.view(-1, 1, 1)
    # Each channel falls from value by chroma times a trapezoid of the hue (HSV's definition in closed form).
    offsets = x.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (offsets + 6 * hue[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian of 13 taps with reflected borders; sigma [B] in pixels, > 0."""
    size = x.shape[-1]
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    reached = torch.arange(size, device=x.device)[:, None] + taps
    reached = size - 1 - (size - 1 - reached.abs()).abs()
    spread = (len(x), size, len(taps))
    matrix = x.new_zeros(len(x), size, size)
    matrix.scatter_add_(2, reached.expand(spread), weights[:, None, :].expand(spread).to(x.dtype))
    matrix = matrix[:, None].expand(-1, 3, -1, -1).reshape(-1, size, size)
    blurred = torch.bmm(torch.bmm(matrix, x.reshape(-1, size, size)), matrix.transpose(1, 2))
    return blurred.view_as(x)


def solarise(x: Tensor) -> Tensor:
    """Invert what is at least one half."""
    return torch.where(x >= 0.5, 1 - x, x)


def resize_square(x: Tensor, out_size: int) -> Tensor:
    """Antialiased bicubic resizing, clamped to [0, 1]."""
    resized = functional.interpolate(x, size=(out_size, out_size), mode="bicubic", antialias=True)
    return resized.clamp_(0, 1)

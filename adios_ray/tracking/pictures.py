"""Pictures of masks: images with their slots in color, and the input that each slot masks."""

import colorsys
import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adios_ray.files import write_output
from adios_ray.tracking.run_masks import Pixels

MARK = "Software\0adios_ray"
"""In every PNG of masks."""
_FIRST_COLORS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#56b4e9", "#6a3d9a")
_OVERLAY = 0.65
_CELL = 96
_GAP = 4


def slot_colors(slots: int) -> list[str]:
    """Choose a color for each of the N slots, as "#rrggbb"; the first eight are distinct to color-blind readers too."""
    # Multiples of the golden ratio spread hues evenly however many there are.
    hues = (0.618034 * k % 1.0 for k in range(max(0, slots - len(_FIRST_COLORS))))
    levels = ((0.55, 0.8)[k % 2] for k in range(slots))
    further = (colorsys.hls_to_rgb(hue, level, 0.7) for hue, level in zip(hues, levels, strict=False))
    named = ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in further]
    return [*_FIRST_COLORS, *named][:slots]


def _pixels(values: npt.NDArray[np.float64]) -> Pixels:
    """Round values of 0 to 255."""
    return np.rint(values).astype(np.uint8)


def slot_map(masks: Pixels) -> Pixels:
    """Blend the colors of the slots by mask value: uint8 [K, N, H, W] to uint8 [K, H, W, 3]."""
    # Stored as uint8, the masks of a pixel sum to about 255, not exactly; equal shares where all are zero.
    total = masks.sum(axis=1, keepdims=True, dtype=np.float64)
    shares = np.where(total > 0, masks / np.maximum(total, 1), 1 / masks.shape[1])
    colors = np.array([list(bytes.fromhex(c[1:])) for c in slot_colors(masks.shape[1])], dtype=np.float64)
    return _pixels(np.einsum("knhw,nc->khwc", shares, colors))


def overlay(images: Pixels, masks: Pixels) -> Pixels:
    """Lay the slot map over the image: 0.35 gray image + 0.65 slot map.

    Takes uint8 [K, H, W, 3] and uint8 [K, N, H, W]; returns uint8 [K, H, W, 3].
    """
    # In gray (mean of channels), so that every color in the result is a slot's.
    gray = images.mean(axis=-1, keepdims=True)
    return _pixels((1 - _OVERLAY) * gray + _OVERLAY * slot_map(masks))


def masked_inputs(images: Pixels, masks: Pixels) -> Pixels:
    """Compute x * (1 - m_k) for each slot k: uint8 [K, H, W, 3] and uint8 [K, N, H, W] to uint8 [K, N, H, W, 3]."""
    visible = 1 - masks[..., None].astype(np.float64) / 255
    return _pixels(images[:, None] * visible)


def mask_sheet(images: Pixels, masks: Pixels) -> Image.Image:
    """Arrange a column for each image: the image, its slots in color, and the input that each of the N slots masks.

    Args:
        images: uint8 [K, H, W, 3].
        masks: uint8 [K, N, H, W], 0..255 for 0..1.

    Returns:
        RGB picture on white, K cells wide and 2 + N high; the longer side of a cell is enlarged by an integer
        factor to >= 96 pixels.
    """
    rows = [images, overlay(images, masks), *masked_inputs(images, masks).swapaxes(0, 1)]
    height, width = images.shape[1:3]
    scale = math.ceil(_CELL / max(height, width))
    height, width = scale * height, scale * width
    down, right = height + _GAP, width + _GAP
    sheet = np.full((len(rows) * down - _GAP, len(images) * right - _GAP, 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            enlarged = cell.repeat(scale, axis=0).repeat(scale, axis=1)
            sheet[i * down : i * down + height, j * right : j * right + width] = enlarged
    return Image.fromarray(sheet)


def save_mask_sheet(images: Pixels, masks: Pixels, path: Path) -> None:
    """Write a ``mask_sheet`` of uint8 [K, H, W, 3] and uint8 [K, N, H, W] as PNG, atomically."""
    buffer = io.BytesIO()
    origin = PngInfo()
    origin.add_text("Software", "adios_ray")
    mask_sheet(images, masks).save(buffer, "PNG", optimize=True, pnginfo=origin)
    write_output(path, buffer.getvalue())

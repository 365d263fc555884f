"""The report's pictures of masks along the best trial's ancestry: one sheet of pictures for each epoch."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from adios_ray.errors import RecordError
from adios_ray.tracking import pictures, run_masks
from adios_ray.tracking.report.mask_statistics import SlotStatistics, agreement, slot_statistics
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.run_masks import MaskFile, Pixels

SHEETS, IMAGES = 12, 8
_LARGEST = 96
"""Side in pixels to which larger pictures are reduced, which bounds the size of the page."""
_READ = 60
"""Most epochs whose masks are read for the curves."""


class Sheet(NamedTuple):
    """The masks at one epoch: rows are the images, their slots in color, and the input that each slot masks.

    Attributes:
        epoch: The epoch.
        trial: The trial that held the weights.
        sizes: Mean mask value of each of the N slots.
        uri: The picture as a data URI.
    """

    epoch: int
    trial: str
    sizes: list[float]
    uri: str


@dataclass(frozen=True)
class MaskSection:
    """Sheets in order of epochs, and what describes the masks between."""

    sheets: list[Sheet]
    images: int
    pixelated: bool
    colors: list[str]
    """Color of each slot, of as many as the largest N."""
    statistics: dict[int, SlotStatistics]
    agreements: dict[int, float]
    """Agreement of an epoch's slots with those of the epoch before it in ``statistics``."""
    damaged: list[str]
    """Files that cannot be read, each with the reason."""


def mask_section(run: RunData) -> MaskSection | None:
    """Draw the masks; None if none are stored. Files that cannot be read are named and left out."""
    epochs = spread(list(run.mask_epochs), _READ)
    if not epochs:
        return None
    shown = set(spread(epochs, SHEETS))
    sheets, statistics, agreements, damaged = [], {}, {}, []
    before: MaskFile | None = None
    for epoch in epochs:
        try:
            stored = run_masks.read_masks(run.path, run.mask_epochs[epoch], epoch)
        except (RecordError, OSError) as error:
            damaged.append(str(error))
            continue
        statistics[epoch] = slot_statistics(stored.masks)
        if before is not None and before.masks.shape[::2] == stored.masks.shape[::2]:
            agreements[epoch] = agreement(before.masks, stored.masks)
        before = stored
        if epoch in shown:
            sheets.append(Sheet(epoch, run.mask_epochs[epoch], statistics[epoch].sizes, _sheet(stored)))
    return MaskSection(
        sheets,
        min(len(before.images), IMAGES) if before else 0,
        before is not None and before.images.shape[1] <= _LARGEST,
        pictures.slot_colors(max((len(found.sizes) for found in statistics.values()), default=0)),
        statistics,
        agreements,
        damaged,
    )


def spread(values: Sequence[int], count: int) -> list[int]:
    """Choose up to ``count`` (>= 2) evenly spread values, among them the first and the last."""
    last = len(values) - 1
    picks = sorted({round(i * last / (count - 1)) for i in range(count)}) if last > 0 else range(last + 1)
    return [values[i] for i in picks]


def _sheet(stored: MaskFile) -> str:
    images, masks = stored.images[:IMAGES], stored.masks[:IMAGES]
    rows = [images, pictures.overlay(images, masks), *pictures.masked_inputs(images, masks).swapaxes(0, 1)]
    # Small pictures are enlarged pixel by pixel, which shows every loss.
    return data_uri(tiled(np.stack(rows)), lossless=images.shape[1] < _LARGEST)


def tiled(rows: Pixels) -> Image.Image:
    """Lay out uint8 [R, C, S, S, 3] in R rows and C columns without gaps, reduced to cells of at most 96 pixels."""
    count, columns, side = rows.shape[:3]
    picture = Image.fromarray(rows.swapaxes(1, 2).reshape(count * side, columns * side, 3))
    if side > _LARGEST:
        picture = picture.resize((columns * _LARGEST, count * _LARGEST), Image.Resampling.BOX)
    return picture


def data_uri(picture: Image.Image, lossless: bool = False) -> str:
    """Encode a picture as WebP in a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, lossless=lossless, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

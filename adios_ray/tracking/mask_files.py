"""Masks of any images as files.

The whole upright image (EXIF orientation applied) is squeezed into the model's square; its masks are resized to the
image's own height and width. The masks of ``sub/a.jpg`` are written below the output folder as

    sub/a.jpg.mask0.png ...   soft masks: gray, 0..255 for 0..1, one file a slot
    sub/a.jpg.masks.png       hard masks: palette image, the pixel's slot is its value
    sub/a.jpg.masks.npz       ``masks``: soft, float32 [N, H, W]; hard, uint8 [H, W]
    sub/a.jpg.overlay.png     the image, its masks in color, and the image with each mask applied (paper, Figure 8)
    masks.json                the settings, and every refused image with the reason; written last
"""

import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from adios_ray.config import MaskFormat, Strict
from adios_ray.console import printable, progress_bar
from adios_ray.data.augment import center_view
from adios_ray.data.decode import DecodeOptions, decode
from adios_ray.data.sources.image_files import read_image_file
from adios_ray.data.sources.passed_over import PassedOver, Reason
from adios_ray.data.sources.walk import walk
from adios_ray.errors import ConfigError, DatasetError, RefusedImageError, UsageError
from adios_ray.files import atomic_path, write_output
from adios_ray.masking.occlusion import OcclusionModel
from adios_ray.places import check_output_folder
from adios_ray.tracking.pictures import save_mask_sheet, slot_colors
from adios_ray.tracking.run_masks import Pixels
from adios_ray.validation import read_json

Masks = npt.NDArray[np.float32]
SUMMARY = "masks.json"
BATCH = 64
"""Images that are in memory at a time."""
OVERLAY_SIDE = 256
"""Longest side of the images in an overlay, in pixels."""
_LONGEST_NAME = 229  # of 255, to which ".overlay.png" and 14 bytes of a draft's name are added
_THREADS = 8  # each may hold the masks of one image at its own size
_WRITTEN = re.compile(r"\.(mask\d+\.png|masks\.png|masks\.npz|overlay\.png)$")


class ImageList(NamedTuple):
    """Image files by their names.

    Attributes:
        root: The folder that holds all of them.
        names: Paths relative to the root, with "/", sorted.
        passed_over: Other files below the given folders.
    """

    root: Path
    names: list[str]
    passed_over: PassedOver


def find_images(places: Sequence[Path]) -> ImageList:
    """List the images among files and below folders. A file that is given by its name need not look like an image.

    Raises:
        DatasetError: If one of them does not exist, a folder cannot be read, or there is no image.
    """
    for place in places:
        if not place.exists():
            raise DatasetError(f"{place} does not exist")
    absolute = [Path(os.path.abspath(place)) for place in places]
    root = Path(os.path.commonpath([place if place.is_dir() else place.parent for place in absolute]))
    names, passed_over = set(), PassedOver()
    for place in absolute:
        name = place.relative_to(root)
        if not place.is_dir():
            names.add(name.as_posix())
            continue
        found = walk(place)
        names.update((name / item).as_posix() for item in found.images)
        passed_over.merge(
            {
                why: (of.number, tuple((name / item).as_posix() for item in of.examples))
                for why, of in found.passed_over.items()
            }
        )
    if not names:
        raise DatasetError(f"there are no images in {', '.join(map(str, places))}")
    return ImageList(root, sorted(names), passed_over)


@dataclass(frozen=True)
class MaskSettings:
    """Format of the mask files.

    Attributes:
        format: Kind of the files.
        hard: Whether each pixel belongs to the slot of its largest mask.
        overlay: Whether to write overlays too.
    """

    format: MaskFormat = "png"
    hard: bool = False
    overlay: bool = False


class MaskSummary(Strict):
    """Content of masks.json."""

    schema_version: Literal[1] = 1
    checkpoint: str
    """The occlusion model's file."""
    image_size: int
    """Side in pixels of the squares from which masks were computed."""
    slots: int
    """Number N of masks."""
    format: MaskFormat
    hard: bool
    overlay: bool
    images: int
    """Number of images whose masks were written."""
    refused: dict[str, str]
    """Reasons by image."""
    passed_over: dict[str, Reason]
    """Files that are no images: number and examples by reason."""
    notes: dict[str, Reason]
    """Remarks on how images were decoded: number and examples."""


def claim_output(output: Path, images: Sequence[Path], overwrite: bool) -> None:
    """Check the output folder; remove masks of an earlier run from it if they may be overwritten.

    Raises:
        UsageError: If it cannot be written to, is inside a folder of images, contains images, or is not
            empty and ``overwrite`` is false or it holds anything but masks.
    """
    for place in images:
        if place.is_dir() and output.resolve().is_relative_to(place.resolve()):
            raise UsageError(f"--output {output} is inside --images {place}: its masks would be taken for images")
        if place.resolve().is_relative_to(output.resolve()):
            raise UsageError(f"--output {output} contains --images {place}: choose a folder of its own for the masks")
    check_output_folder(output, output.absolute())
    if not output.exists():
        return
    summary = _read_summary(output / SUMMARY)
    # A command that could use no image has left its summary alone.
    lost = [path for path in output.iterdir() if path.name != SUMMARY or summary is None or summary.images]
    if lost and not overwrite:
        raise UsageError(f"--output {output} is not empty: choose another folder, or replace its masks by --overwrite")
    files = [Path(folder) / name for folder, _, names in os.walk(output) for name in names]
    written = [file for file in files if file.match(".*.tmp") or _WRITTEN.search(file.name)]
    # A run that was interrupted leaves masks alone.
    if len(written) < len(files) and summary is None:
        raise UsageError(
            f"--output {output} has files that are no masks, and no {SUMMARY} of an earlier run: choose another folder"
        )
    (output / SUMMARY).unlink(missing_ok=True)
    # All of them, not only those of the same names: masks of another model or format must not stay among the new ones.
    for file in written:
        file.unlink()


def _read_summary(path: Path) -> MaskSummary | None:
    """Read the summary that ``write_masks`` writes; None if the file is none."""
    try:
        return read_json(MaskSummary, path)
    except (ConfigError, OSError):
        return None


def write_masks(
    occlusion: OcclusionModel,
    checkpoint: str,
    images: ImageList,
    output: Path,
    settings: MaskSettings,
    options: DecodeOptions,
) -> MaskSummary:
    """Write the masks of images, in batches, with progress and refused images on standard error.

    Memory is that of one batch of squares, and of the masks of at most 8 images at their own sizes (4 N bytes a pixel).

    Args:
        occlusion: The model, in evaluation mode.
        checkpoint: The model's file, for the summary.
        images: The images.
        output: Folder to write to.
        settings: What to write.
        options: Limits of decoding, and the range of 16-bit values.

    Returns:
        What masks.json holds.

    Raises:
        DatasetError: If no image could be used.
        OSError: If storage fails.
    """
    side, device = occlusion.image_size, next(occlusion.parameters()).device
    refused: dict[str, str] = {}
    notes = PassedOver()
    read = partial(_read, image_size=side, options=options, overlay=settings.overlay)
    with progress_bar("images") as progress, ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        bar = progress.add_task("masks", total=len(images.names))
        for start in range(0, len(images.names), BATCH):
            names = images.names[start : start + BATCH]
            usable: dict[str, _Image] = {}
            for name, image in zip(names, pool.map(read, [images.root / name for name in names]), strict=True):
                if isinstance(image, RefusedImageError):
                    refused[name] = str(image)
                    line = f"refused: {printable(name)}: {image}"
                    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
                else:
                    usable[name] = image
                    if image.note:
                        notes.add(image.note, name)
            if usable:
                masks = _predict(occlusion, np.stack([image.square for image in usable.values()]), device)
                write = partial(_write, settings=settings)
                list(pool.map(write, [output / name for name in usable], usable.values(), masks))
            progress.advance(bar, len(names))
    summary = MaskSummary(
        checkpoint=checkpoint,
        image_size=side,
        slots=occlusion.slots,
        format=settings.format,
        hard=settings.hard,
        overlay=settings.overlay,
        images=len(images.names) - len(refused),
        refused=refused,
        passed_over=dict(images.passed_over),
        notes=dict(notes),
    )
    write_output(output / SUMMARY, summary.model_dump_json(indent=1).encode())
    if not summary.images:
        raise DatasetError(f"none of the {len(refused):,} images can be used: {output / SUMMARY} has the reasons")
    return summary


def resize_masks(masks: Masks, height: int, width: int) -> Masks:
    """Resize soft masks bilinearly, with antialiasing where they shrink: [N, S, S] to [N, H, W], sums over N kept."""
    sized = np.empty((len(masks), height, width), np.float32)
    for mask, target in zip(masks, sized, strict=True):
        target[:] = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
    return sized


def harden(masks: Masks) -> Pixels:
    """Return the slot of each pixel's largest mask: [N, H, W] to uint8 [H, W]."""
    slots: Pixels = masks.argmax(axis=0).astype(np.uint8)
    return slots


def one_hot(masks: Masks) -> Masks:
    """Make soft masks hard: 1 where a mask is the pixel's largest, else 0, [N, H, W] both."""
    chosen: Masks = (np.arange(len(masks))[:, None, None] == harden(masks)).astype(np.float32)
    return chosen


def to_pixels(masks: Masks) -> Pixels:
    """Round masks in [0, 1] to 0..255."""
    return np.rint(masks * 255).astype(np.uint8)


class _Image(NamedTuple):
    """An image, squeezed into the model's square, and for an overlay at its own proportions."""

    square: Pixels
    height: int
    width: int
    note: str | None
    shown: Pixels | None


def _read(path: Path, image_size: int, options: DecodeOptions, overlay: bool) -> _Image | RefusedImageError:
    try:
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise RefusedImageError(f"its name has more than {_LONGEST_NAME} bytes, and those of its masks are longer")
        content = read_image_file(path)
        picture = decode(content, image_size, options)
        _, height, width, note = picture
        shown = _shown(content, height, width, options) if overlay else None
    except RefusedImageError as error:
        return error
    return _Image(picture.pixels, height, width, note, shown)


def _shown(content: bytes, height: int, width: int, options: DecodeOptions) -> Pixels:
    """Decode an image at its own proportions, at most 256 pixels on the longer side: uint8 [H, W, 3]."""
    longest = max(height, width)
    side = min(longest, OVERLAY_SIDE)
    size = (max(1, width * side // longest), max(1, height * side // longest))
    return np.asarray(Image.fromarray(decode(content, side, options).pixels).resize(size, Image.Resampling.BICUBIC))


@torch.inference_mode()
def _predict(occlusion: OcclusionModel, squares: Pixels, device: torch.device) -> Masks:
    """Compute masks [B, N, S, S] of uint8 [B, S, S, 3]."""
    sides = np.full(len(squares), squares.shape[1])
    masks: Masks = (
        occlusion(center_view(torch.from_numpy(squares).to(device), sides, sides, squares.shape[1])).cpu().numpy()
    )
    return masks


def _write(path: Path, image: _Image, masks: Masks, settings: MaskSettings) -> None:
    """Write the files of one image, each named ``path`` and a suffix, from its masks [N, S, S]."""
    sized = resize_masks(masks, image.height, image.width)
    if settings.format == "npz":
        _save_npz(path.with_name(f"{path.name}.masks.npz"), harden(sized) if settings.hard else sized)
    elif settings.hard:
        picture = Image.fromarray(harden(sized))
        picture.putpalette(b"".join(bytes.fromhex(color[1:]) for color in slot_colors(len(masks))))
        _save_png(path.with_name(f"{path.name}.masks.png"), picture)
    else:
        for slot, mask in enumerate(sized):
            _save_png(path.with_name(f"{path.name}.mask{slot}.png"), Image.fromarray(to_pixels(mask)))
    if image.shown is not None:
        shown = resize_masks(masks, *image.shown.shape[:2])
        shown = one_hot(shown) if settings.hard else shown
        save_mask_sheet(image.shown[None], to_pixels(shown)[None], path.with_name(f"{path.name}.overlay.png"))


def _save_npz(path: Path, masks: Masks | Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Indices shrink a hundredfold; soft masks hardly, and slowly.
    save = np.savez_compressed if masks.dtype == np.uint8 else np.savez
    with atomic_path(path) as draft, draft.open("wb") as file:  # opened here, since numpy adds .npz to other names
        save(file, masks=masks)


def _save_png(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)  # of soft masks: 2.5 times as fast as the default, 7 % larger
    write_output(path, buffer.getvalue())

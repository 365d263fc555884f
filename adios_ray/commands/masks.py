"""The command that writes masks."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from adios_ray.config import Count, MaskFormat
from adios_ray.errors import UsageError
from adios_ray.store import Location, Store, local_path

if TYPE_CHECKING:
    import torch

    from adios_ray.masking.occlusion import OcclusionModel

DRAWN = 8
"""Images of a data set that are drawn if no number is given."""


@dataclass(frozen=True)
class Masks:
    """Write the masks of any images at their own size, or draw those of a data set's images on one sheet."""

    checkpoint: Location
    """Checkpoint directory of a run, a weights file, or an exported occlusion model; a path or a URI (s3://, ...)."""

    output: Location
    """Folder to write; with --data-dir, PNG file to write. A path or a URI."""

    images: int | tuple[Location, ...] | None = None
    """Local image files, and folders of images at any depth. With --data-dir: number of images to draw, 8 if
    not given."""

    data_dir: str | None = None
    """Instead of image files: directory or URI of a data set made by `adios-ray prepare`. Its first validation images
    are drawn with their masks in color, and with each mask applied."""

    format: MaskFormat = "png"
    """Files of each image: gray PNGs, one a mask (with --hard: one palette PNG), or an array in .npz."""

    hard: bool = False
    """Give each pixel to the slot of its largest mask."""

    overlay: bool = False
    """For each image, draw it with its masks in color, and with each mask applied, too."""

    overwrite: bool = False
    """Replace all masks that --output holds."""

    max_pixels: Count | None = None
    """Largest number of pixels that are decoded at once (89 million if not given); larger JPEGs are reduced first,
    other larger images are refused."""

    stretch: Literal["file"] | int | None = None
    """16-bit images: scale by each file's own largest value (file), or by the bit depth of the values (9 to 16) where
    they leave most of the range empty."""

    def run(self) -> None:
        """Write the masks and print their number, and what was not used."""
        if self.data_dir is not None:
            self._draw(self.data_dir)
        elif isinstance(self.images, tuple) and self.images:
            self._write(self.images)
        elif isinstance(self.images, int):
            raise UsageError(f"--images {self.images} is a number, which is for --data-dir: name files or folders")
        else:
            raise UsageError("give --images, files or folders of images, or --data-dir, a prepared data set")

    def _write(self, places: tuple[Location, ...]) -> None:
        from adios_ray.data.decode import DecodeOptions
        from adios_ray.data.sources.passed_over import first_of
        from adios_ray.devices import best_device
        from adios_ray.places import check_place, check_unread, delivered, require_local
        from adios_ray.tracking.mask_files import SUMMARY, MaskSettings, claim_output, find_images, write_masks

        options = DecodeOptions(stretch=self.stretch, smallest_side=1)
        if self.max_pixels is not None:
            options = replace(options, max_pixels=self.max_pixels)
        occlusion = self._occlusion_model(best_device())
        paths = [require_local(place, "--images") for place in places]
        images = find_images(paths)
        check_unread(self.output, self.checkpoint)
        if local_path(self.output) is None:
            check_place(self.output)
            self._check_remote_output()
        settings = MaskSettings(self.format, self.hard, self.overlay)
        with delivered(self.output) as output:
            claim_output(output, paths, self.overwrite)
            summary = write_masks(occlusion, str(self.checkpoint), images, output, settings, options)
        for reason, (number, examples) in summary.passed_over.items():
            print(f"passed over: {reason}: {number:,} files, {first_of(examples, number)}")
        for note, (number, examples) in summary.notes.items():
            print(f"{note}: {number:,} images, {first_of(examples, number)}")
        refused = f", {len(summary.refused):,} refused: {SUMMARY} has the reasons" if summary.refused else ""
        print(f"{self.output}: {summary.images:,} images, {summary.slots} masks each{refused}")

    def _occlusion_model(self, device: "torch.device") -> "OcclusionModel":
        """Load the occlusion model onto a device, in the memory layout that is the fastest there."""
        from adios_ray.models.export import load_occlusion_model

        occlusion = load_occlusion_model(self.checkpoint).to(device)
        occlusion.choose_layout(device, compiled=False)
        return occlusion

    def _check_remote_output(self) -> None:
        """Raise a UsageError unless the URI to write to is empty."""
        if self.overwrite:
            raise UsageError(f"--overwrite is for a local --output: remove {self.output} first, or choose another URI")
        if Store(self.output).names():
            raise UsageError(f"--output {self.output} is not empty: choose another URI")

    def _draw(self, data_dir: str) -> None:
        import numpy as np
        import torch

        from adios_ray.data.augment import denormalize
        from adios_ray.data.loader import central_views
        from adios_ray.data.shards import open_shards
        from adios_ray.devices import best_device
        from adios_ray.places import check_output_file, delivered
        from adios_ray.tracking.mask_files import one_hot, to_pixels
        from adios_ray.tracking.pictures import MARK, save_mask_sheet

        if isinstance(self.images, tuple):
            raise UsageError("give either --images, files or folders of images, or --data-dir, not both")
        given = {
            "--format npz": self.format == "npz",
            "--overlay": self.overlay,
            "--overwrite": self.overwrite,
            "--max-pixels": self.max_pixels is not None,
            "--stretch": self.stretch is not None,
        }
        if unused := [option for option, is_given in given.items() if is_given]:
            raise UsageError(f"{', '.join(unused)} is for --images; --data-dir draws a PNG")
        number = DRAWN if self.images is None else self.images
        if number < 1:
            raise UsageError(f"--images {number} must be at least 1")
        if not str(self.output).lower().endswith(".png"):
            raise UsageError(f"--output {self.output} must end in .png: --data-dir draws a PNG")
        check_output_file(self.output, MARK, self.checkpoint, data_dir)
        device, split = best_device(), open_shards(data_dir).split("val")
        if not len(split):
            raise UsageError(f"val of {data_dir} has no images")
        if self.images is not None and number > len(split):
            raise UsageError(f"--images {number} is more than the {len(split)} validation images of {data_dir}")
        occlusion = self._occlusion_model(device)
        x = central_views(split, np.arange(min(number, len(split))), occlusion.image_size, device)
        with torch.no_grad():
            masks = occlusion(x).cpu().numpy()
        if self.hard:
            masks = np.stack([one_hot(of_image) for of_image in masks])
        with delivered(self.output) as output:
            save_mask_sheet(denormalize(x).cpu().numpy(), to_pixels(masks), output)
        print(f"{self.output}: {len(x)} images, {occlusion.slots} masks each")

"""Commands that import, export and visualize weights."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from adios_ray.config import Naming
from adios_ray.errors import UsageError


@dataclass(frozen=True)
class ImportOfficial:
    """Convert a checkpoint of the authors' release or of solo-learn to a weights file; nothing in it is executed."""

    directory: tyro.conf.Positional[Path]
    """Folder with args.json and one *.ckpt."""

    output: Path
    """Weights file to write, *.safetensors."""

    def run(self) -> None:
        """Write the file and print its contents, and what was not imported."""
        from adios_ray.models.official import import_official, unsupported
        from adios_ray.models.weights import save_weights

        weights = import_official(self.directory)
        save_weights(self.output, weights)
        config = weights.config
        parts = f"{config.backbone.name}, {config.objective.name}, masking {config.masking.scheme}"
        print(f"{self.output}: {parts}, {weights.image_size} pixels, from {weights.origin}")
        for line in unsupported(self.directory):
            print(f"not imported: {line}")


@dataclass(frozen=True)
class Export:
    """Write the encoder alone, for timm or torchvision, with a JSON file that describes how to use it."""

    checkpoint: Path
    """Checkpoint directory of a run, or a weights file."""

    output: Path
    """File of tensors to write, *.safetensors; the JSON file is written beside it."""

    naming: Naming = "timm"
    """The library whose model is to load the tensors."""

    def run(self) -> None:
        """Write both files and print their contents."""
        from adios_ray.models.export import export_encoder
        from adios_ray.models.weights import load_weights

        info = export_encoder(load_weights(self.checkpoint), self.output, self.naming)
        print(f"{self.output}: {info.naming} {info.name}, {info.features} features, {info.image_size} pixels")


@dataclass(frozen=True)
class Masks:
    """Draw images, their masks in color, and the images with each mask applied."""

    checkpoint: Path
    """Checkpoint directory of a run, or a weights file, with an occlusion model."""

    data_dir: str
    """Directory or URI of a data set made by `adios-ray prepare`; its first validation images are drawn."""

    output: Path
    """PNG file to write."""

    images: int = 8
    """Number of images."""

    def run(self) -> None:
        """Write the picture and print the numbers of images and masks."""
        import numpy as np
        import torch

        from adios_ray.data.augment import denormalize
        from adios_ray.data.loader import central_views
        from adios_ray.data.shards import open_shards
        from adios_ray.devices import best_device
        from adios_ray.models.export import load_occlusion_model
        from adios_ray.models.weights import occlusion_image_size
        from adios_ray.tracking.pictures import save_mask_sheet

        if self.images < 1:
            raise UsageError(f"--images {self.images} must be at least 1")
        device, split = best_device(), open_shards(self.data_dir).split("val")
        occlusion = load_occlusion_model(self.checkpoint).to(device)
        first = np.arange(min(self.images, len(split)))
        x = central_views(split, first, occlusion_image_size(occlusion), device)
        with torch.no_grad():
            masks = occlusion(x).mul(255).round().to(torch.uint8)
        save_mask_sheet(denormalize(x).cpu().numpy(), masks.cpu().numpy(), self.output)
        print(f"{self.output}: {len(x)} images, {occlusion.slots} masks each")


@dataclass(frozen=True)
class Reproduce:
    """Repeat a training step that diverged, and print which term is not finite."""

    directory: tyro.conf.Positional[Path]
    """Directory that was saved for the step: runs/RUN/diverged/TRIAL/epoch_NNNNN."""

    def run(self) -> None:
        """Repeat the step and print the term."""
        from adios_ray.devices import best_device
        from adios_ray.training.reproduce import reproduce

        print(f"{self.directory}: {reproduce(self.directory, best_device())}")

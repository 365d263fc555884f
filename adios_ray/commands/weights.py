"""Commands that import and export weights, and repeat a step."""

from dataclasses import dataclass

import tyro

from adios_ray.config import Naming
from adios_ray.errors import UsageError
from adios_ray.store import Location


@dataclass(frozen=True)
class ImportOfficial:
    """Convert a checkpoint of the authors' release or of solo-learn to a weights file; nothing in it is executed."""

    directory: tyro.conf.Positional[Location]
    """Folder or URI (s3://, gs://, ...) with args.json and one *.ckpt."""

    output: Location
    """Weights file to write, *.safetensors; a path or a URI."""

    def run(self) -> None:
        """Write the file and print its contents, and what was not imported."""
        from adios_ray.models.official import import_official, unsupported
        from adios_ray.models.weights import MARK, save_weights
        from adios_ray.places import check_output_file, delivered, fetched

        check_output_file(self.output, MARK)
        directory = fetched(self.directory)
        weights, left_out = import_official(directory), unsupported(directory)
        with delivered(self.output) as output:
            save_weights(output, weights)
        config = weights.config
        parts = f"{config.backbone.name}, {config.objective.name}, masking {config.masking.scheme}"
        print(f"{self.output}: {parts}, {weights.image_size} pixels, from {weights.origin}")
        for line in left_out:
            print(f"not imported: {line}")


@dataclass(frozen=True)
class Export:
    """Write the encoder or the occlusion model alone: tensors with a JSON file that describes their use, or ONNX."""

    checkpoint: Location
    """Checkpoint directory of a run, or a weights file; a path or a URI (s3://, gs://, ...)."""

    output: Location
    """File to write, a path or a URI: *.safetensors (the JSON file is written beside it), or *.onnx, which takes RGB in
    [0, 1]."""

    occlusion: bool = False
    """Export the occlusion model, not the encoder."""

    averaged: bool = False
    """Export the encoder's averaged weights (evaluation.average_weights), not those of the last step."""

    naming: Naming | None = None
    """Encoder as safetensors only: the library whose model is to load the tensors; timm if not given.
    Neither has resnet_small, the demo's backbone: write ONNX, or load the checkpoint by adios_ray.load_encoder."""

    def run(self) -> None:
        """Write the file and print its contents."""
        from adios_ray.models import onnx
        from adios_ray.models.export import MARK, export_encoder, export_occlusion_model
        from adios_ray.models.weights import averaged, load_weights
        from adios_ray.places import check_output_file, delivered

        to_onnx = str(self.output).endswith(onnx.SUFFIX)
        check_output_file(self.output, onnx.MARK if to_onnx else MARK, self.checkpoint)
        if self.naming is not None and (self.occlusion or to_onnx):
            raise UsageError("--naming is for an encoder as safetensors, not for --occlusion or ONNX")
        if self.averaged and self.occlusion:
            raise UsageError("--averaged is for an encoder: the occlusion model's weights are not averaged")
        weights = load_weights(self.checkpoint)
        if self.averaged:
            weights = averaged(weights)
        with delivered(self.output) as output:
            if to_onnx:
                metadata = onnx.export_onnx(weights, output, occlusion=self.occlusion)
                written = "; ".join(f"{name}: {value}" for name, value in metadata.items())
            elif self.occlusion:
                model = export_occlusion_model(weights, output)
                written = f"occlusion model, {model.slots} masks, {model.image_size} pixels"
            else:
                info = export_encoder(weights, output, self.naming or "timm")
                written = f"{info.naming} {info.name}, {info.features} features, {info.image_size} pixels"
        print(f"{self.output}: {written}")
        if weights.config.evaluation.fresh_statistics and not (self.occlusion or self.averaged):
            print(
                "its BatchNorm statistics are the training's: evaluations of this run took those of unmasked images "
                "(evaluation.fresh_statistics), and their scores are not exactly this file's"
            )


@dataclass(frozen=True)
class Reproduce:
    """Repeat a training step that diverged, and print which term is not finite."""

    directory: tyro.conf.Positional[Location]
    """Directory that was saved for the step: runs/RUN/diverged/TRIAL/epoch_NNNNN; a path or a URI."""

    def run(self) -> None:
        """Repeat the step and print the term."""
        from adios_ray.devices import best_device
        from adios_ray.places import fetched
        from adios_ray.training.reproduce import reproduce

        print(f"{self.directory}: {reproduce(fetched(self.directory), best_device())}")

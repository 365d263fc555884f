"""Export of an encoder or an occlusion model to ONNX, to be run without PyTorch."""

import importlib.util
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from adios_ray.data.pixels import MEAN, STD
from adios_ray.errors import ConfigError
from adios_ray.files import write_output
from adios_ray.models.export import occlusion_of
from adios_ray.models.weights import Weights, build_networks

SUFFIX = ".onnx"
INPUT = "images"
MARK = "normalized by the model itself"
"""In the metadata of every file."""


class _FromRGB(nn.Module):
    """A network whose input is normalized first."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images [B, 3, S, S] in [0, 1] to the network's output."""
        result: Tensor = self.network((images - self.mean) / self.std)
        return result


def export_onnx(weights: Weights, output: Path, *, occlusion: bool) -> dict[str, str]:
    """Write the encoder or the occlusion model as ONNX, atomically.

    The file's input ``images`` is RGB in [0, 1], float32 [B, 3, S, S]: normalization is a part of the graph. Its output
    is ``masks``, float32 [B, N, S, S], or ``features``, float32 [B, F]. B is dynamic.

    Args:
        weights: Weights of all networks.
        output: File to write, ``*.onnx``.
        occlusion: Whether to export the occlusion model, not the encoder.

    Returns:
        The metadata that are stored in the file: input, output, image size and source of the weights.

    Raises:
        ConfigError: If a package is missing, or there is no occlusion model.
        CheckpointError: If the weights do not fit their configuration.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ConfigError("writing ONNX needs the package onnxscript: pip install 'adios_ray[onnx]'")
    import onnx_ir.passes.common

    side = weights.image_size
    network: nn.Module
    if occlusion:
        network = occlusion_of(weights)
        name, meaning = (
            "masks",
            f"[B, {network.slots}, {side}, {side}] in [0, 1], sum to 1 over slots; 1 removes the pixel",
        )
    else:
        networks = build_networks(weights)
        network, name, meaning = networks.backbone, "features", f"[B, {networks.features}]"
    # Of each constant that it cannot fold, the exporter tells whoever uses it; the graph is right all the same.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    # Two images, since torch.export takes a size of one for a constant.
    program = torch.onnx.export(
        _FromRGB(network).eval(),
        (torch.rand(2, 3, side, side),),
        input_names=[INPUT],
        output_names=[name],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    # What the exporter notes at each node contains paths of this machine.
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    described = {
        INPUT: f"float32 [B, 3, {side}, {side}], RGB in [0, 1]; {MARK}",
        name: f"float32 {meaning}",
        "image_size": str(side),
        "origin": weights.origin,
    }
    program.model.metadata_props.update(described)
    write_output(output, program.model_proto.SerializeToString())
    return described

"""Export of the encoder to timm and torchvision, and of the occlusion model; loading of both for use elsewhere.

An exported network is a ``.safetensors`` of its tensors with a JSON file beside it that describes it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
from torch import Tensor, nn

from adios_ray.config import BackboneConfig, Naming, Norm, Strict, TrialConfig
from adios_ray.data.pixels import MEAN, STD
from adios_ray.errors import CheckpointError, ConfigError
from adios_ray.files import write_output
from adios_ray.masking.occlusion import OcclusionModel
from adios_ray.models.backbones import build_backbone
from adios_ray.models.weights import (
    METADATA_KEY,
    Weights,
    build_networks,
    checkpoint_of,
    file_metadata,
    load_weights,
    misfit,
)
from adios_ray.models.weights import averaged as averaged_weights
from adios_ray.places import fetched
from adios_ray.store import Location
from adios_ray.tensor_files import pack
from adios_ray.validation import parse, read_json

SUFFIX = ".safetensors"
MARK = '"exported_by":"adios_ray"'
"""In the header of every file of exported tensors."""


class _Info(Strict):
    """The description stored beside an exported network, as JSON."""

    schema_version: Literal[1] = 1
    """Version of this description."""
    image_size: int
    """Side S in pixels of the images that it was trained on."""
    mean: tuple[float, float, float] = MEAN
    """Means of red, green and blue in [0, 1], subtracted from images."""
    std: tuple[float, float, float] = STD
    """Standard deviations by which images are then divided."""
    origin: str
    """Source of the weights."""
    config: TrialConfig
    """Configuration that it was trained under."""
    sha256: str
    """Checksum of the file of tensors."""


class EncoderInfo(_Info):
    """The description stored beside an exported encoder, as JSON."""

    part: Literal["encoder"] = "encoder"
    naming: Naming
    """Library whose model loads the tensors, strictly."""
    name: str
    """The model's name in that library."""
    arguments: dict[str, int]
    """Keyword arguments of ``timm.create_model``; empty for torchvision, whose ``fc`` must become ``nn.Identity()``."""
    cifar_stem: bool
    """Whether ``conv1`` must become a 3x3 convolution of stride 1 (with padding ``config.backbone.stem_padding``) and
    ``maxpool`` an ``nn.Identity()``."""
    features: int
    """Width F of its output [B, F]."""


class OcclusionInfo(_Info):
    """The description stored beside an exported occlusion model, as JSON."""

    part: Literal["occlusion model"] = "occlusion model"
    slots: int
    """Number N of masks; its output is [B, N, S, S] in [0, 1], summing to 1 over N; 1 removes the pixel."""
    width: int
    """Channels of the U-Net's first level."""
    norm: Norm
    """Normalization of the U-Net."""
    levels: int
    """Number of resolutions of the U-Net."""


Info = TypeVar("Info", EncoderInfo, OcclusionInfo)


def export_encoder(weights: Weights, output: Path, naming: Naming) -> EncoderInfo:
    """Write the backbone's tensors, then the JSON that describes them.

    Args:
        weights: Weights of all networks.
        output: File of tensors, ``*.safetensors``; the description is written beside it as ``*.json``.
        naming: The library that will load it: ``timm.create_model``, or the functions of ``torchvision.models``.

    Raises:
        ConfigError: If the library has no such model, ``output`` has another suffix, or another file has the name of
            the description.
        CheckpointError: If the weights do not fit their configuration.
    """
    _check_output(output, "encoder")
    config = weights.config.backbone
    if config.name == "resnet_small":
        raise ConfigError(
            f"resnet_small is adios_ray's own and not in {naming}: load the checkpoint by adios_ray.load_encoder, its "
            "averaged weights with averaged=True, or export it with an --output that ends in .onnx"
        )
    networks = build_networks(weights)
    name = config.name
    arguments: dict[str, int] = {}
    if naming == "torchvision":
        name = _torchvision_name(config, networks.backbone)
    else:
        pretrained: Any = networks.backbone.pretrained_cfg
        sized = {"img_size": weights.image_size} if pretrained["fixed_input_size"] else {}
        arguments = {"num_classes": 0, **sized}
    content = _tensors(networks.backbone)
    info = EncoderInfo(
        naming=naming,
        name=name,
        arguments=arguments,
        cifar_stem=config.cifar_stem,
        image_size=weights.image_size,
        features=networks.features,
        origin=weights.origin,
        config=weights.config,
        sha256=hashlib.sha256(content).hexdigest(),
    )
    _write(output, content, info)
    return info


def export_occlusion_model(weights: Weights, output: Path) -> OcclusionInfo:
    """Write the occlusion model's tensors, then the JSON that describes them.

    Args:
        weights: Weights of all networks.
        output: File of tensors, ``*.safetensors``; the description is written beside it as ``*.json``.

    Raises:
        ConfigError: If there is no occlusion model, ``output`` has another suffix, or another file has the name of
            the description.
        CheckpointError: If the weights do not fit their configuration.
    """
    _check_output(output, "occlusion model")
    occlusion = occlusion_of(weights)
    content = _tensors(occlusion)
    info = OcclusionInfo(
        image_size=weights.image_size,
        slots=occlusion.slots,
        width=weights.config.masking.width,
        norm=weights.config.masking.norm,
        levels=len(occlusion.mask_encoder.down),
        origin=weights.origin,
        config=weights.config,
        sha256=hashlib.sha256(content).hexdigest(),
    )
    _write(output, content, info)
    return info


def _check_output(output: Path, part: str) -> None:
    if output.suffix != SUFFIX:
        raise ConfigError(f"{output}: the name of an exported {part} must end in {SUFFIX}, or in .onnx for ONNX")
    description = output.with_suffix(".json")
    if description.exists() and not is_description(description):
        raise ConfigError(f"{description} is another file, which the description of {output} would replace: rename one")


def is_description(path: Path) -> bool:
    """Tell whether a file is the description of exported tensors."""
    try:
        described = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.keys() >= {"part", "origin", "sha256"}


def _tensors(module: nn.Module) -> bytes:
    return pack(module.state_dict(), {"format": "pt", "exported_by": "adios_ray"})


def _write(output: Path, content: bytes, info: _Info) -> None:
    # The description last: its checksum refuses the tensors of an earlier export if this one is interrupted in between.
    write_output(output, content)
    write_output(output.with_suffix(".json"), info.model_dump_json(indent=1).encode())


def _torchvision_name(config: BackboneConfig, backbone: nn.Module) -> str:
    """Find torchvision's ResNet with the same tensors, by name."""
    import torchvision

    name = config.name.partition(".")[0]  # timm's names may end in a tag of their weights
    try:
        theirs: Any = torchvision.models.get_model(name, weights=None)
    except ValueError:
        theirs = None
    if isinstance(theirs, torchvision.models.ResNet):
        theirs.fc = nn.Identity()
        if config.cifar_stem:
            theirs.conv1 = backbone.conv1
        if misfit(theirs.state_dict(), backbone.state_dict()) is None:
            return name
    raise ConfigError(f"torchvision has no ResNet with the tensors of {config.name}; use --naming timm")


def load_encoder(place: Location, averaged: bool = False) -> nn.Module:
    """Load the encoder of a weights file, a checkpoint of a run, or an exported encoder with its JSON beside it.

    Args:
        place: Path or URI of one of them.
        averaged: Whether to take the averaged weights, not those of the last step.

    Returns:
        A module from normalized images [B, 3, S, S] to features [B, F], in evaluation mode.

    Raises:
        ConfigError: If the file is missing or of another kind, or averaged weights are asked for that it does not have.
        CheckpointError: If it is damaged.
    """
    place = checkpoint_of(place)
    path = fetched(place, ".json")
    if not _is_exported(path):
        weights = load_weights(place)
        return build_networks(averaged_weights(weights) if averaged else weights).backbone
    if averaged:
        raise ConfigError(f"{place} has the weights that were exported: leave averaged out, or name the checkpoint")
    info, tensors = _read(path, EncoderInfo, "encoder")
    backbone, _ = build_backbone(info.config.backbone, info.image_size)
    backbone.load_state_dict(tensors)
    return backbone.eval()


def load_occlusion_model(place: Location) -> OcclusionModel:
    """Load the occlusion model of a weights file, a checkpoint of a run, or an exported one with its JSON beside it.

    Args:
        place: Path or URI of one of them.

    Returns:
        A module from normalized images [B, 3, S, S] to masks [B, N, S, S] in [0, 1], in evaluation mode.

    Raises:
        ConfigError: If the file is missing or of another kind, or has no occlusion model.
        CheckpointError: If it is damaged.
    """
    place = checkpoint_of(place)
    path = fetched(place, ".json")
    if not _is_exported(path):
        return occlusion_of(load_weights(place))
    info, tensors = _read(path, OcclusionInfo, "occlusion model")
    occlusion = OcclusionModel(info.image_size, info.slots, info.width, info.norm, info.levels)
    occlusion.load_state_dict(tensors)
    return occlusion.eval()


def occlusion_of(weights: Weights) -> OcclusionModel:
    """Build the occlusion model of a trial, in evaluation mode.

    Raises:
        ConfigError: If there is none.
        CheckpointError: If the weights do not fit their configuration.
    """
    occlusion = build_networks(weights).occlusion
    if occlusion is None:
        raise ConfigError(
            f"{weights.origin} has no occlusion model: masking.scheme was {weights.config.masking.scheme}"
        )
    return occlusion


def _is_exported(path: Path) -> bool:
    return path.is_file() and METADATA_KEY not in file_metadata(path)


def _read(path: Path, kind: type[Info], part: str) -> tuple[Info, dict[str, Tensor]]:
    """Read the description and the tensors of an exported network."""
    description = path.with_suffix(".json")
    if not description.is_file():
        raise ConfigError(f"{path} is neither a weights file of adios_ray nor an exported {part} with {description}")
    values = read_json(dict[str, Any], description)
    if (given := values.get("part", "encoder")) != part:  # earlier versions exported encoders only, without naming it
        raise ConfigError(f"{path} is an exported {given}, where an exported {part} is needed")
    info = parse(kind, values, str(description))
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != info.sha256:
        raise CheckpointError(
            f"{path} is damaged or not described by {description}: its checksum is another one; export it again"
        )
    return info, safetensors.torch.load(content)

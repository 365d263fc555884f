"""Weights files: all networks of a trial in one file, and initialization of a training from one.

A weights file is a ``.safetensors`` of ``Networks.state_dict()`` whose metadata holds, as JSON under ``adios_ray``, the
configuration, the image size, the number of classes and the source of the weights. Wherever one is read, a checkpoint
of a run is accepted too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from torch import Tensor, nn

from adios_ray.checkpoints import META_FILE, STATE_FILES, open_checkpoint
from adios_ray.config import BackboneConfig, MaskingConfig, Strict, TrialConfig
from adios_ray.devices import CPU
from adios_ray.errors import CheckpointError, ConfigError, RecordError
from adios_ray.files import write_output
from adios_ray.masking.occlusion import OcclusionModel
from adios_ray.masking.slots import use_blank_head
from adios_ray.models.backbones import build_backbone
from adios_ray.models.networks import Networks, with_average
from adios_ray.places import fetched
from adios_ray.run_directory import RunDirectory
from adios_ray.store import Location, Store, split_location
from adios_ray.tensor_files import pack
from adios_ray.validation import parse, parse_json

METADATA_KEY = "adios_ray"
MARK = f'"{METADATA_KEY}":'
"""In the header of every weights file."""
SCHEMA_VERSION = 1


class _Header(Strict):
    """The metadata of a weights file."""

    schema_version: Literal[1]
    origin: str
    image_size: int = Field(ge=32)
    classes: int = Field(ge=1)
    config: TrialConfig


@dataclass(frozen=True)
class Weights:
    """Tensors of a trial's networks, and what is needed to build the networks.

    Attributes:
        config: Configuration of the training.
        image_size: Side S of the images in pixels.
        classes: Number of classes C of the probe.
        origin: Source of the weights, for people.
        tensors: Tensors by their names in ``Networks``; those of the probe may be missing.
    """

    config: TrialConfig
    image_size: int
    classes: int
    origin: str
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Refuse non-finite tensors.

        Raises:
            CheckpointError: If a tensor is not finite; names the first one.
        """
        for name, tensor in self.tensors.items():
            if not tensor.isfinite().all():
                raise CheckpointError(
                    f"{self.origin}: {name} is not finite; use other weights, such as those of an earlier epoch"
                )

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one part ("backbone", "momentum.projector") by their names in it; empty if none."""
        prefix = f"{name}."
        return {key[len(prefix) :]: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def save_weights(path: Path, weights: Weights) -> None:
    """Write a weights file, atomically."""
    header = _Header(
        schema_version=SCHEMA_VERSION,
        origin=weights.origin,
        image_size=weights.image_size,
        classes=weights.classes,
        config=weights.config,
    )
    write_output(path, pack(weights.tensors, {METADATA_KEY: header.model_dump_json()}))


WRAPPERS = ("module", "_orig_mod")
"""Parts of names that DistributedDataParallel and torch.compile insert."""


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers from names: ``module.conv1.weight`` becomes ``conv1.weight``.

    The center of DINO is renamed from the British spelling of earlier versions.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    return {names[name].replace("objective.centre", "objective.center"): t for name, t in tensors.items()}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 checksum of named tensors, in hexadecimal; their order and device do not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checkpoint_of(place: Location) -> Location:
    """Return the directory of a checkpoint whose state file is named, and any other place as it is."""
    folder, name = split_location(place)
    return folder if name in STATE_FILES and Store(folder).size(META_FILE) is not None else place


def load_weights(place: Location) -> Weights:
    """Read a weights file, a checkpoint directory of a run, or the state file of one; a path or a URI.

    Raises:
        ConfigError: If there is no such file, or it is of another kind.
        CheckpointError: If it is damaged.
    """
    place = checkpoint_of(place)
    path = fetched(place)
    if path.is_dir():
        return _from_checkpoint(path, place)
    text = file_metadata(path).get(METADATA_KEY)
    if text is None:
        raise ConfigError(
            f"{place} is no weights file of adios_ray: its metadata has no {METADATA_KEY}. If adios-ray export wrote "
            "it, for other programs, name the checkpoint that it was made from"
        )
    values = parse_json(dict[str, Any], text, f"{place} is damaged: metadata", CheckpointError)
    header = parse(_Header, values, str(place))
    tensors = unwrapped(safetensors.torch.load_file(path))
    return Weights(header.config, header.image_size, header.classes, header.origin, tensors)


def file_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; empty if it has none.

    Raises:
        ConfigError: If there is no such file, or it is ONNX.
        CheckpointError: If it is damaged or of another kind.
        OSError: If it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"weights {path} do not exist")
    path.open("rb").close()  # safetensors says of a file that must not be read that it does not exist
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        if path.suffix == ".onnx":
            raise ConfigError(f"{path} is for other programs: name the checkpoint that it was exported from") from None
        raise CheckpointError(f"{path} is not a safetensors file, or a damaged one: {error}") from None


def _from_checkpoint(directory: Path, place: Location) -> Weights:
    if not (directory / META_FILE).is_file():
        raise ConfigError(_not_a_checkpoint(directory, place))
    state = open_checkpoint(directory, CPU)
    missing = {"config", "image_size", "networks", "step"} - state.keys()
    if missing:
        raise CheckpointError(
            f"checkpoint {place} has no {', '.join(sorted(missing))}: it is of another version of adios_ray"
        )
    config, networks = parse(TrialConfig, state["config"], str(place)), unwrapped(state["networks"])
    origin = f"checkpoint {place}, step {state['step']}"
    return Weights(config, state["image_size"], len(networks["probe.weight"]), origin, networks)


class _Best(BaseModel):
    """Best trial of a finished run, as in its summary."""

    best_trial: str
    best_epoch: int


def _not_a_checkpoint(directory: Path, place: Location) -> str:
    run = RunDirectory(directory)
    if not run.config.is_file():
        return (
            f"{place} is not a checkpoint of a run, as it has no {META_FILE} (convert a folder of the authors' release "
            "into a weights file by adios-ray import-official)"
        )
    if not run.summary.is_file():
        return f"{place} is a run that has not finished: name one of its checkpoints, {place}/checkpoints/TRIAL/EPOCH"
    best = parse_json(_Best, run.summary.read_text(), str(run.summary), RecordError)
    checkpoint = run.relative(run.checkpoint(best.best_trial, best.best_epoch))
    return f"{place} is a run: name one of its checkpoints; that of its best trial is {place}/{checkpoint}"


def build_networks(weights: Weights) -> Networks:
    """Build the networks with these weights, in evaluation mode; if the weights lack a probe, it is initialized.

    Raises:
        CheckpointError: If the tensors do not fit the configured networks.
    """
    networks = Networks(weights.config, weights.image_size, weights.classes)
    probe = {f"probe.{name}": tensor for name, tensor in networks.probe.state_dict().items()}
    _put(networks, with_average({**probe, **weights.tensors}, networks.averaged is not None), weights.origin)
    return networks.eval()


def averaged(weights: Weights) -> Weights:
    """Replace backbone and probe by their means over the last steps (``evaluation.average_weights``).

    Raises:
        ConfigError: If the training kept no means.
    """
    means = weights.part("averaged")
    if not means:
        raise ConfigError(f"{weights.origin} has no averaged weights: evaluation.average_weights was off")
    return replace(weights, tensors={**weights.tensors, **means}, origin=f"{weights.origin}, averaged weights")


def build_initial_backbone(
    config: BackboneConfig, tensors: Mapping[str, Tensor] | None, image_size: int, cifar_stem: bool
) -> tuple[nn.Module, int]:
    """Build a backbone for another data set, in training mode.

    Args:
        config: Configuration that the backbone was trained with.
        tensors: Its tensors; position embeddings are resampled to ``image_size``. None draws all weights from torch's
            global generator.
        image_size: Side S of the images in pixels.
        cifar_stem: Replace the stem by a 3x3 convolution of stride 1 and padding 2 without max-pooling (paper, Appendix
            F), for images of 32 pixels. Its weights are drawn, unless the backbone was trained with such a stem.

    Returns:
        A module from images [B, 3, S, S] to features [B, F], and F.

    Raises:
        ConfigError: If the backbone has no such stem, or does not take images of this size.
        CheckpointError: If the tensors do not fit the configured backbone.
    """
    new_stem = cifar_stem and not config.cifar_stem
    if new_stem:
        config = config.model_copy(update={"cifar_stem": True, "stem_padding": 2})
        if config.name == "resnet_small":
            raise ConfigError("backbone.cifar_stem: resnet_small has no stem to replace; leave it out")
    backbone, features = build_backbone(config, image_size)
    if tensors is not None:
        drawn = {"conv1.weight": backbone.state_dict()["conv1.weight"]} if new_stem else {}
        _put(backbone, _resampled(tensors, backbone) | drawn, config.name)
    return backbone, features


def misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Describe the first difference of two sets of tensors in names and shapes; None if there is none."""
    for name in sorted(expected.keys() | given.keys()):
        if name not in given:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not expected"
        if expected[name].shape != given[name].shape:
            return f"{name} is {list(given[name].shape)}, and {list(expected[name].shape)} is needed"
    return None


def load_initial(networks: Networks, weights: Weights, path: Location) -> None:
    """Initialize networks with the weights of a file, in place.

    The backbone must fit except for its resolution: position embeddings are resampled. Heads (with their momentum
    copies) are loaded if the file's objective is the configured one, the occlusion model if both have one; its number
    of slots becomes that of the file. Everything else keeps its initialization, the probe always. Momentum copies that
    the file lacks become copies of the loaded networks.

    Args:
        networks: Networks to be trained.
        weights: Weights read from the file.
        path: The file, for messages.

    Raises:
        ConfigError: If a part to be loaded does not fit; the message names the option to set.
        CheckpointError: If the file is damaged.
    """
    _take_backbone(networks, weights, path)
    same_objective = weights.config.objective.name == networks.config.objective.name
    if same_objective and weights.part("objective"):
        _take_heads(networks, weights, path)
    # After backbone and heads, whose values they copy where the file has no averages.
    if networks.momentum is not None:
        online = {"backbone": networks.backbone, "projector": networks.objective.projector}
        for name, module in online.items():
            averaged = weights.part(f"momentum.{name}") if same_objective else {}
            _put(networks.momentum[name], _resampled(averaged, module) or module.state_dict(), path)
    if networks.occlusion is not None and weights.part("occlusion"):
        _take_occlusion(networks.occlusion, networks.config.masking, weights, path)


def _take_backbone(networks: Networks, weights: Weights, path: Location) -> None:
    theirs, ours = weights.config.backbone, networks.config.backbone
    given = _resampled(weights.part("backbone"), networks.backbone)
    # Not zero_init_last, which decides nothing but initial values.
    wanted = _differing(
        "backbone", ("cifar_stem", "stem_padding") if theirs.cifar_stem else ("cifar_stem",), theirs, ours
    )
    # Names may differ where the tensors are the same: timm has one architecture under several names.
    if misfit(networks.backbone.state_dict(), given):
        wanted = _differing("backbone", ("name",), theirs, ours) | wanted or {"image_size": weights.image_size}
    if wanted:
        raise ConfigError(f"{path}: its backbone does not fit the configured one; set {_assignments(wanted)}")
    _put(networks.backbone, given, path)


def _take_heads(networks: Networks, weights: Weights, path: Location) -> None:
    given = weights.part("objective")
    if misfit(networks.objective.state_dict(), given):
        theirs, ours = weights.config.objective, networks.config.objective
        wanted = _differing("objective", ("hidden_dim", "output_dim", "predictor_dim", "queue"), theirs, ours)
        needed = _assignments(wanted or {"image_size": weights.image_size})
        raise ConfigError(f"{path}: its heads of {theirs.name} do not fit the configured ones; set {needed}")
    _put(networks.objective, given, path)


def _take_occlusion(occlusion: OcclusionModel, ours: MaskingConfig, weights: Weights, path: Location) -> None:
    wanted = _differing("masking", ("width", "norm"), weights.config.masking, ours)
    if occlusion.image_size != weights.image_size:
        wanted["image_size"] = weights.image_size
    given = weights.part("occlusion")
    levels = sum(name.startswith("mask_encoder.down.") and name.endswith(".0.weight") for name in given)
    if levels != len(occlusion.mask_encoder.down):
        wanted["masking.levels"] = levels
    if wanted:
        raise ConfigError(f"{path}: its occlusion model does not fit the configured one; set {_assignments(wanted)}")
    # The file's number of slots first: the trainer then splits or merges to the configured one.
    use_blank_head(occlusion, weights.config.masking.slots)
    _put(occlusion, given, path)


def _resampled(tensors: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Resample the position embeddings [1, P + G * G, F] (P prefix tokens, grid of G x G) to a backbone's own grid."""
    if "pos_embed" not in tensors:
        return dict(tensors)
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    given = tensors["pos_embed"]
    if not isinstance(backbone, VisionTransformer) or given.shape == backbone.pos_embed.shape:
        return dict(tensors)
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    grid = list(backbone.patch_embed.grid_size)
    return {**tensors, "pos_embed": resample_abs_pos_embed(given, grid, num_prefix_tokens=prefix)}


def _put(module: nn.Module, tensors: Mapping[str, Tensor], origin: object) -> None:
    if difference := misfit(module.state_dict(), tensors):
        raise CheckpointError(f"{origin} does not fit its own configuration: {difference}")
    module.load_state_dict(tensors)


def _differing(section: str, names: Iterable[str], theirs: Strict, ours: Strict) -> dict[str, object]:
    """Find the options among ``names`` that differ from the file; return the file's values by dotted path."""
    pairs = {f"{section}.{name}": (getattr(theirs, name), getattr(ours, name)) for name in names}
    return {path: value for path, (value, configured) in pairs.items() if value != configured}


def _assignments(wanted: Mapping[str, object]) -> str:
    return ", ".join(f"{option} = {value}" for option, value in wanted.items())

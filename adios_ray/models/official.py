"""Import of weights from the authors' release (https://github.com/YugeTen/adios), and from solo-learn, its base.

A folder of either holds ``args.json`` and one Lightning checkpoint, which is read without executing anything in it.
Widths and sizes are taken from the tensors, the rest from ``args.json``. ``unsupported`` lists what a ``TrialConfig``
cannot express, such as different augmentations of the two views.

Three differences hold for all weights: the authors change learning rates after each epoch, we do after each step; their
weight decay includes norms and biases, except under LARS; and they normalize images with a standard deviation of 0.228
for red (ImageNet), with means and deviations of the data set (CIFAR, STL-10), or not at all (CLEVR).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adios_ray.config import LARS_TRUST, PROBE_LR, RESIZED_SIDE, Term, TrialConfig, replaced, unet_levels
from adios_ray.errors import ConfigError
from adios_ray.models.torch_pickle import read_state_dict
from adios_ray.models.weights import Weights, build_networks, unwrapped
from adios_ray.validation import read_json

_PARTS = {
    "encoder.": "backbone.",
    "backbone.": "backbone.",
    "momentum_encoder.": "momentum.backbone.",
    "momentum_backbone.": "momentum.backbone.",
    "projector.": "objective.projector.",
    "momentum_projector.": "momentum.projector.",
    "predictor.": "objective.predictor.",
    "mask_encoder.": "occlusion.mask_encoder.",
    "mask_head.": "occlusion.mask_head.",
    "classifier.": "probe.",
}
"""Prefixes of tensor names, theirs and ours. Older versions say encoder, newer ones backbone."""
_OBJECTIVES = ("simclr", "simsiam", "byol")
_SCHEMES = {"": "none", "_adios": "adios", "_adios_s": "adios-s"}
_BACKBONES = {"resnet18": "resnet18", "vit_tiny": "vit_tiny_patch16_224"}
"""Backbones that timm has with the same layers: both ViTs have 3 heads, a class token and LayerNorm epsilon 1e-6."""
_PATCH = 16
_NORMS = {"gn": "group", "in": "instance", "no": "none"}
_OPTIMIZERS = ("sgd", "lars", "adamw")
_PHOTOGRAPHS = ("imagenet100s", "imagenet100", "imagenet")
"""Data sets of which the authors evaluate the center of photographs resized to 256 pixels on the shorter side."""
_RAW = "clevr"
"""Data set whose images the authors only crop and flip: neither normalized nor changed in color."""
_FIXED_SIZES = {"cifar10": 32, "cifar100": 32, "stl10": 96}
"""Image sizes of data sets for which older versions ignore those in ``args.json``."""
_BACKBONE = ("backbone.name", "backbone", "encoder")
_DATASET = ("dataset", "data.dataset")
_CIFAR_KERNEL, _CIFAR_PADDING = 3, 2
"""Kernel and padding of their first convolution for CIFAR; it pads by one pixel more than needed to keep the size."""
_LAST_LAYER = {"simclr": 2, "simsiam": 6, "byol": 3}
"""Index of the projector's last linear layer."""
_TERMS: Mapping[str, Term] = {
    "use_symmetry_mask": "unmasked-masked",
    "use_no_mask": "unmasked-unmasked",
    "use_both_mask": "masked-masked",
}
"""Terms by the options of the authors' SimSiam, which are on by default; masked-unmasked has no option."""
_HEADS = ("objective.projector", "objective.predictor", "momentum.projector")
_UNET = "occlusion.mask_encoder"
_TRANSLATED = {
    "epochs": ("max_epochs",),
    "batch_size": ("batch_size", "optimizer.batch_size"),
    "objective.temperature": ("temperature", "method_kwargs.temperature"),
    "objective.momentum_start": ("base_tau_momentum", "momentum.base_tau"),
    "masking.sparsity_weight": ("alpha_sparsity",),
    "masking.entropy_weight": ("alpha_entropy",),
    "optimizer.encoder_lr": ("lr", "optimizer.lr"),
    "optimizer.occlusion_lr": ("mask_lr",),
    "optimizer.weight_decay": ("weight_decay", "optimizer.weight_decay"),
    "optimizer.warmup_epochs": ("warmup_epochs", "scheduler.warmup_epochs"),
    "optimizer.warmup_start_lr": ("warmup_start_lr", "scheduler.warmup_start_lr"),
    "augment.min_crop_scale": ("min_scale", "augmentations.rrc.crop_min_scale"),
    "augment.brightness": ("brightness", "augmentations.color_jitter.brightness"),
    "augment.contrast": ("contrast", "augmentations.color_jitter.contrast"),
    "augment.saturation": ("saturation", "augmentations.color_jitter.saturation"),
    "augment.hue": ("hue", "augmentations.color_jitter.hue"),
    "augment.blur_probability": ("gaussian_prob", "augmentations.gaussian_blur.prob"),
    "augment.solarize_probability": ("solarization_prob", "augmentations.solarization.prob"),
}
"""Paths in a ``TrialConfig``, and in ``args.json``: flat before 2023, in sections since."""
_FIXED: Mapping[tuple[str, ...], tuple[Any, ...]] = {
    ("scheduler.name", "scheduler"): ("warmup_cosine",),
    ("optimizer.name", "optimizer"): _OPTIMIZERS,
    ("min_lr", "scheduler.min_lr"): (0,),
    ("classifier_lr", "optimizer.classifier_lr"): (PROBE_LR,),
    ("extra_optimizer_args.momentum", "optimizer.kwargs.momentum"): (0.9,),
    ("final_tau_momentum", "momentum.final_tau"): (1,),
    ("train_mask_epoch",): (0,),
    ("accumulate_grad_batches",): (1, None),
    ("n_crops", "data.num_large_crops"): (2,),
    ("n_small_crops", "data.num_small_crops"): (0,),
    ("augmentations.rrc.crop_max_scale",): (1,),
    ("augmentations.color_jitter.prob",): (0.8,),
    ("augmentations.grayscale.prob",): (0.2,),
    ("augmentations.horizontal_flip.prob",): (0.5,),
    ("augmentations.equalization.prob",): (0,),
}
"""Options that are fixed in this project: their paths in ``args.json``, and the values equal to ours."""
_LARS: Mapping[tuple[str, ...], tuple[Any, ...]] = {
    ("eta_lars", "optimizer.kwargs.eta"): (LARS_TRUST,),
    ("grad_clip_lars", "optimizer.kwargs.clip_lr"): (True,),
    ("exclude_bias_n_norm", "optimizer.kwargs.exclude_bias_n_norm"): (True,),
}
"""Further ones for LARS."""


def import_official(folder: Path) -> Weights:
    """Import the weights of a folder of the release or of solo-learn.

    Args:
        folder: Holds ``args.json`` and one ``*.ckpt``, of SimCLR, SimSiam or BYOL, plain or with ADIOS or ADIOS-s, with
            a ResNet-18 or ViT-Tiny.

    Raises:
        ConfigError: If a file is missing, or no ``TrialConfig`` describes the model.
        CheckpointError: If the checkpoint is damaged.
    """
    arguments = _read_arguments(folder)
    checkpoints = sorted(folder.glob("*.ckpt"))
    if len(checkpoints) != 1:
        names = ", ".join(path.name for path in checkpoints) or "none"
        raise ConfigError(f"{folder} must hold one checkpoint, *.ckpt, and holds {names}")
    (checkpoint,) = checkpoints
    tensors = _renamed(unwrapped(read_state_dict(checkpoint)))
    _fold_biases(tensors)
    try:
        config, classes = _config(arguments, tensors), _classes(arguments, tensors)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    described = ", ".join(str(_agreed(arguments, *paths)) for paths in (("method",), _BACKBONE, _DATASET))
    origin = f"{checkpoint.resolve()} ({described})"
    assert config.image_size is not None
    weights = Weights(config, config.image_size, classes, origin, tensors)
    build_networks(weights)  # raises where tensors do not fit the configuration
    return weights


def unsupported(folder: Path) -> list[str]:
    """List the options of a folder of the release that an imported configuration lacks, one line each.

    Raises:
        ConfigError: If ``args.json`` is missing or not a JSON object.
    """
    arguments = _read_arguments(folder)
    lines = []
    for path, theirs in _TRANSLATED.items():
        if _agreed(arguments, *theirs) is None and len(values := _values(arguments, *theirs)) > 1:
            lines.append(f"{theirs[0]} {values}: both views share one value here, {path} keeps its default")
    fixed = {**_FIXED, **_LARS} if _optimizer(arguments) == "lars" else _FIXED
    for paths, same in fixed.items():
        found = [value for value in _values(arguments, *paths) if not isinstance(value, Mapping)]
        if odd := [value for value in found if value not in same]:
            name = next(path for path in paths if _values(arguments, path))
            lines.append(f"{name} {odd[0]}: fixed here, {same[0]}")
    if (dataset := str(_agreed(arguments, *_DATASET))) in _FIXED_SIZES:
        lines.append(
            f"images of {dataset} were normalized by means and deviations of its own, which the encoder expects; here, "
            "and in an exported file, they are ImageNet's"
        )
    elif dataset == _RAW:
        lines.append(
            f"images of {dataset} were not normalized, which the encoder expects; here, and for an exported file, they "
            "are, by ImageNet's means and deviations"
        )
    gpus = arguments.get("gpus", arguments.get("devices"))
    if isinstance(gpus, list) and len(gpus) > 1:
        lines.append(f"gpus {gpus}: the imported batch_size is that of one GPU")
    return lines


def _read_arguments(folder: Path) -> dict[str, Any]:
    """Read ``args.json``, or raise a ConfigError."""
    path = folder / "args.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no {path.name}: name a folder of the authors' release or of solo-learn, with {path.name} "
            "and one *.ckpt"
        )
    return read_json(dict[str, Any], path)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to our names; drop those that have none (a second classifier, queues, k-NN banks)."""
    return {
        ours + name.removeprefix(theirs): tensor
        for name, tensor in tensors.items()
        for theirs, ours in _PARTS.items()
        if name.startswith(theirs)
    }


def _fold_biases(tensors: dict[str, Tensor]) -> None:
    """Move the bias of a linear layer before a BatchNorm into the latter's running mean, in place.

    Our heads have no such bias. BatchNorm subtracts the mean of its inputs, and with it the bias: outputs are the same
    in evaluation, with the running mean lowered by the bias, and in training.
    """
    for name in list(tensors):
        layer, _, kind = name.rpartition(".")
        head, _, index = layer.rpartition(".")
        if kind == "bias" and head in _HEADS and index.isdigit():
            mean = f"{head}.{int(index) + 1}.running_mean"
            if mean in tensors:
                tensors[mean] = tensors[mean] - tensors.pop(name)


def _config(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrialConfig:
    method = str(arguments.get("method"))
    objective, _, _ = method.partition("_")
    scheme = _SCHEMES.get(method.removeprefix(objective))
    if objective not in _OBJECTIVES or scheme is None:
        known = ", ".join(name + suffix for name in _OBJECTIVES for suffix in _SCHEMES)
        raise ConfigError(f"method {method} cannot be imported, but {known} can")
    size = _image_size(arguments, tensors)
    changes = {"image_size": size, "objective.name": objective, "masking.scheme": scheme}
    dataset = str(_agreed(arguments, *_DATASET))
    if dataset in _PHOTOGRAPHS and size < RESIZED_SIDE:  # solo-learn's may be larger
        changes["evaluation.view"] = "resize-256"
    changes |= _backbone(arguments, tensors) | _heads(objective, tensors)
    found = {ours: _agreed(arguments, *theirs) for ours, theirs in _TRANSLATED.items()}
    if (optimizer := _optimizer(arguments)) in _OPTIMIZERS:
        found["optimizer.name"] = optimizer
    changes |= {path: value for path, value in found.items() if value is not None}
    if dataset == _RAW:  # whatever args.json says of the color jitter and blur
        changes |= {f"augment.{name}_probability": 0 for name in ("jitter", "grayscale", "blur", "solarize")}
    if scheme != "none":
        changes |= _masking(arguments, tensors, size)
        if objective == "simsiam":
            chosen = [term for option, term in _TERMS.items() if arguments.get(option, True)]
            changes |= {"objective.masked_views": "both", "objective.terms": ["masked-unmasked", *chosen]}
    return replaced(TrialConfig(), changes, "args.json")


def _backbone(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    name = str(_agreed(arguments, *_BACKBONE))
    if name not in _BACKBONES:
        raise ConfigError(f"backbone {name} cannot be imported, but {', '.join(_BACKBONES)} can")
    stem = tensors.get("backbone.conv1.weight")
    # Their ResNets are torchvision's, whose last norms start at 1; a ViT has no such convolution and no such norms.
    changes: dict[str, Any] = {"backbone.name": _BACKBONES[name], "backbone.zero_init_last": stem is None}
    if stem is not None and stem.shape[-1] == _CIFAR_KERNEL:
        changes |= {"backbone.cifar_stem": True, "backbone.stem_padding": _CIFAR_PADDING}
    return changes


def _heads(objective: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the widths of projector and predictor from the tensors."""
    widths = {
        "objective.hidden_dim": _rows(tensors, "objective.projector.0.weight"),
        "objective.output_dim": _rows(tensors, f"objective.projector.{_LAST_LAYER[objective]}.weight"),
    }
    if objective in ("simsiam", "byol"):
        widths["objective.predictor_dim"] = _rows(tensors, "objective.predictor.0.weight")
    return widths


def _masking(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], size: int) -> dict[str, Any]:
    """Describe the occlusion model, and the authors' game: alternating updates, sums over slots."""
    norm = str(_agreed(arguments, "unet_norm"))
    if norm not in _NORMS:
        raise ConfigError(f"unet_norm {norm} in args.json must be one of {', '.join(_NORMS)}")
    changes = {
        "masking.width": _rows(tensors, f"{_UNET}.down.0.0.weight"),
        "masking.slots": _rows(tensors, "occlusion.mask_head.0.weight"),
        "masking.norm": _NORMS[norm],
        "masking.order": "alternating",
        "masking.reduction": "sum",
    }
    levels = _levels(tensors)
    if levels != unet_levels(size):  # only their SimSiam sets it
        changes["masking.levels"] = levels
    return changes


def _optimizer(arguments: Mapping[str, Any]) -> Any:
    return "lars" if arguments.get("lars") is True else _agreed(arguments, "optimizer.name", "optimizer")


def _image_size(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Determine the side of the images in pixels: from the tensors if possible, else from ``args.json``."""
    # The position embeddings are [1, 1 + G * G, F], one for the class token and one for each of G x G patches.
    if "backbone.pos_embed" in tensors:
        return _PATCH * math.isqrt(tensors["backbone.pos_embed"].shape[1] - 1)
    # The first layer of the U-Net's MLP has an input for each channel and pixel of the lowest resolution.
    if f"{_UNET}.mlp.1.weight" in tensors:
        channels = _rows(tensors, f"{_UNET}.down.{_levels(tensors) - 1}.0.weight")
        bottom = math.isqrt(tensors[f"{_UNET}.mlp.1.weight"].shape[1] // channels)
        return bottom << (_levels(tensors) - 1)
    fixed = _FIXED_SIZES.get(str(_agreed(arguments, *_DATASET)))
    said = _agreed(arguments, "img_size", "backbone.kwargs.img_size") or fixed
    size = said or _agreed(arguments, "augmentations.crop_size", "crop_size", "size")
    if isinstance(size, int):
        return size
    raise ConfigError("args.json has no image size: it has neither img_size nor one crop_size for all views")


def _classes(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    if "probe.weight" in tensors:
        return len(tensors["probe.weight"])
    classes = _agreed(arguments, "num_classes", "n_classes", "data.num_classes")
    if not isinstance(classes, int):
        raise ConfigError(
            "the number of classes is unknown: no classifier in the checkpoint, no num_classes in args.json"
        )
    return classes


def _levels(tensors: Mapping[str, Tensor]) -> int:
    return sum(name.startswith(f"{_UNET}.down.") and name.endswith(".0.weight") for name in tensors)


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise ConfigError(f"the checkpoint has no tensor for {name}")
    return len(tensors[name])


def _agreed(arguments: Mapping[str, Any], *paths: str) -> Any:
    """Return the value at the first dotted path that exists, if it is the same for all views; else None."""
    values = _values(arguments, *paths)
    return values[0] if values and all(value == values[0] for value in values) else None


def _values(arguments: Mapping[str, Any], *paths: str) -> list[Any]:
    """Collect the values at the first dotted path that exists, one for each view if it is set by view."""
    for path in paths:
        nodes: list[Any] = [arguments]
        for key in path.split("."):
            children = [node[key] for node in nodes if isinstance(node, Mapping) and key in node]
            nodes = [item for child in children for item in (child if isinstance(child, list) else [child])]
        if nodes:
            return nodes
    return []

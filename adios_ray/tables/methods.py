"""The trainings of rows: published settings, and one small setting that two CPU cores train in minutes."""

from collections.abc import Mapping, Sequence
from typing import Any

from adios_ray.config import TrialConfig, replaced
from adios_ray.experiment.presets import TRAINING_IMAGES, preset_config
from adios_ray.tables.grid import Column, DataSet, Published, Row
from adios_ray.validation import parse

OBJECTIVES = {"simclr": "SimCLR", "simsiam": "SimSiam", "byol": "BYOL"}
"""The paper's objectives, with their names."""

IMAGENET100 = "--dataset imagenet100 --source ILSVRC2012"
"""Arguments that prepare the images of both sizes, stored large enough for the published view of 96 pixels, too."""
PREPARED_DATA = {
    "ImageNet100-S": DataSet(IMAGENET100, images=TRAINING_IMAGES["in100s"], image_size=96),
    "ImageNet100": DataSet(IMAGENET100, images=TRAINING_IMAGES["in100"], image_size=224),
    "STL10": DataSet("--dataset stl10 --source STL10", images=TRAINING_IMAGES["stl10"], image_size=96),
    "CIFAR-10": DataSet(
        "--dataset cifar10 --source CIFAR10 --train-images 10000 --val-images 2000 --test-images 5000",
        images=10_000,
        image_size=32,
    ),
    "CLEVR": DataSet("--dataset clevr --source CLEVR", images=TRAINING_IMAGES["clevr"], image_size=64),
}
"""Data sets that the user prepares, by the name of their columns."""
OBJECTS = DataSet("--dataset objects --num-images 3000 --image-size 32", images=2100, image_size=32, rendered=True)
"""Images of the small setting that need no data: single objects in front of backgrounds."""
SMALL_EPOCHS = 6
SCENES = DataSet("--dataset scenes --num-images 2000 --image-size 64", images=1400, image_size=64, rendered=True)
"""Images of the small setting with several objects, labels and object masks."""
SCENES_EPOCHS = 12
F1_SCORES = ("macro", "micro", "weighted")


PHOTOGRAPHS = ("ImageNet100-S", "ImageNet100")
"""Groups whose published numbers are of the center of photographs resized to 256 pixels on the shorter side."""
SMALL_NOTE = "A small ResNet: directions, not the paper's numbers."
VIEW_NOTE = (
    "Evaluations see the center of a photograph of ImageNet100 or ImageNet100-S, 224 or 96 pixels, after a resize to "
    "256 on the shorter side, as in the authors' code."
)
CHOICES_NOTE = (
    "Published numbers have another protocol than ours (evaluation.md describes it): the authors' k-NN takes the best "
    "of its settings and layers on the reported split, and their linear evaluation trains on random crops, in batches "
    "of 128, by SGD wrapped in LARS at one rate, 0.1."
)
IMAGES_NOTE = (
    "Where a data set has no val beside its test images, a tenth of the training images becomes it: trainings, probes "
    "and neighbors here see the rest, those of the published numbers saw all."
)


def classification(group: str) -> tuple[Column, Column]:
    """Return the columns of k-NN and linear evaluation, top-1 in percent."""
    options = view_of(group)
    return Column(group, "k-NN", "knn", "top1", options), Column(group, "linear", "linear", "top1", options)


def view_of(group: str) -> Mapping[str, str]:
    """Return the option of evaluations of a group that sets the published view."""
    return {"view": "resize-256"} if group in PHOTOGRAPHS else {}


def multilabel(group: str) -> tuple[Column, ...]:
    """Return the columns of the multi-label probe."""
    return tuple(Column(group, f"F1 {name}", "multilabel", f"f1_{name}", scale=1.0, digits=3) for name in F1_SCORES)


def published_training(data: str, backbone: str, objective: str, scheme: str) -> TrialConfig:
    """Return a published setting; schemes that are not learned train under the values of ADIOS."""
    return preset_config(data, None, objective, backbone, scheme).trial()


def published_trainings(data: str, backbone: str, scheme: str) -> tuple[TrialConfig, ...]:
    """Return a published setting of each of the paper's objectives, in the same order for each scheme."""
    return tuple(published_training(data, backbone, objective, scheme) for objective in OBJECTIVES)


Numbers = tuple[float, ...]
"""Mean and, where it is published, standard deviation."""


def published_pairs(
    presets: Mapping[str, str],
    backbone: str,
    numbers: Mapping[tuple[str, str], Mapping[tuple[str, str], Numbers]],
    suffix: str = "",
) -> tuple[Row, ...]:
    """Return two rows for each of the paper's objectives: without masks, and with ADIOS.

    Args:
        presets: Name of the preset of each group.
        backbone: timm's name.
        numbers: Published numbers, by objective and scheme, then by group and column.
        suffix: Text behind the names, such as the backbone.
    """
    rows = []
    for objective, name in OBJECTIVES.items():
        for masking in ("none", "adios"):
            trainings = {
                group: (published_training(preset, backbone, objective, masking),) for group, preset in presets.items()
            }
            published = {key: Published(*value) for key, value in numbers[objective, masking].items()}
            rows.append(_paired(name, masking, suffix, trainings, published))
    return tuple(rows)


BACKBONES = {"vit_tiny_patch16_224": ", ViT-Tiny", "resnet18": ", ResNet-18"}
"""The paper's backbones, with what is put behind the names of their rows."""


def published_backbones(
    presets: Mapping[str, str],
    columns: Sequence[tuple[str, str]],
    numbers: Mapping[str, Mapping[tuple[str, str], Sequence[Numbers]]],
) -> tuple[Row, ...]:
    """Return the rows of ``published_pairs`` for each of the paper's backbones.

    Args:
        presets: Name of the preset of each group.
        columns: Group and name of each column.
        numbers: Published numbers by backbone, then by objective and scheme, in the order of the columns.
    """
    rows: list[Row] = []
    for backbone, suffix in BACKBONES.items():
        named = {method: dict(zip(columns, values, strict=True)) for method, values in numbers[backbone].items()}
        rows.extend(published_pairs(presets, backbone, named, suffix=suffix))
    return tuple(rows)


def small_pairs(group: str, epochs: int, scheme: str = "adios") -> tuple[Row, ...]:
    """Return two rows for each of the paper's objectives in the small setting: without masks, and with ADIOS."""
    return tuple(
        _paired(name, masking, "", {group: (small_training(objective, masking, epochs),)}, {})
        for objective, name in OBJECTIVES.items()
        for masking in ("none", scheme)
    )


def _paired(
    name: str,
    scheme: str,
    suffix: str,
    trainings: Mapping[str, tuple[TrialConfig, ...]],
    published: Mapping[tuple[str, str], Published],
) -> Row:
    without = f"{name}{suffix}"
    if scheme == "none":
        return Row(without, trainings, published=published)
    return Row(f"{name} + {scheme.replace('adios', 'ADIOS')}{suffix}", trainings, without, published)


SMALL_LR = 0.1
"""Encoder's rate of the small setting."""
SMALL_OBJECTIVES: Mapping[str, Mapping[str, Any]] = {"mocov2": {"queue": 4096, "momentum_start": 0.99}}
"""Settings of objectives in the small setting: a queue of less than half an epoch, and a momentum for short runs."""


def small_training(objective: str, scheme: str, epochs: int, **masking: Any) -> TrialConfig:
    """Return the small setting: a ResNet of one block a stage, N = 4, the same values for each scheme.

    Args:
        objective: Name of the objective.
        scheme: Masking scheme.
        epochs: Passes over the training split.
        **masking: Further settings of the masks.
    """
    values = {
        "epochs": epochs,
        "batch_size": 64,
        "backbone": {"name": "resnet_small"},
        "objective": {"name": objective, "hidden_dim": 512, "output_dim": 128, **SMALL_OBJECTIVES.get(objective, {})},
        "masking": {"scheme": scheme, "slots": 4, "sparsity_weight": 0.3, "width": 8, **masking},
        "optimizer": {"encoder_lr": SMALL_LR, "occlusion_lr": 0.05, "warmup_epochs": 1.0},
        "augment": {"min_crop_scale": 0.2},
    }
    return parse(TrialConfig, values, "small setting")


def scenes_training(scheme: str, **masking: Any) -> TrialConfig:
    """Return the small setting on rendered scenes, which are cropped and flipped alone: color is half of each label.

    Args:
        scheme: Masking scheme.
        **masking: Further settings of the masks.
    """
    changes = ("jitter_probability", "grayscale_probability", "blur_probability")
    return replaced(
        small_training("simclr", scheme, SCENES_EPOCHS, **masking), {f"augment.{name}": 0.0 for name in changes}
    )

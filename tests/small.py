"""A data set and configurations small enough for whole trainings in a test."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adios_ray.config import TrialConfig
from adios_ray.data.manifest import SCHEMA_VERSION, Layout, Manifest, write_manifest
from adios_ray.data.rendered import objects, scenes
from adios_ray.data.shards import write_shard
from adios_ray.data.sources.base import NO_LABEL, UNLABELED
from adios_ray.store import Store
from adios_ray.validation import parse

SIZE = 32
COUNTS = {"train": 96, "val": 40, "test": 40}


def make_objects(
    directory: Path,
    unlabeled: int = 0,
    size: int = SIZE,
    counts: Mapping[str, int] = COUNTS,
    multi_label: bool = False,
    one_class: bool = False,
    object_masks: bool = True,
) -> Path:
    """Write rendered objects, or scenes if multi-label, in splits, without Ray; return the directory.

    ``unlabeled`` images are added in a split of their own. With ``one_class`` no image is labeled; without
    ``object_masks`` they have no instance maps.
    """
    directory.mkdir(parents=True)
    rendered = scenes if multi_label else objects
    layout = Layout(size, len(scenes.CLASSES) if multi_label else None, has_instances=object_masks)
    splits, first = {}, 0
    for name, count in {**counts, **({UNLABELED: unlabeled} if unlabeled else {})}.items():
        samples = [(str(i), rendered.render(0, i, size)) for i in range(first, first + count)]
        if name == UNLABELED or one_class:
            label = NO_LABEL if name == UNLABELED else 0
            samples = [(item, replace(sample, label=label)) for item, sample in samples]
        if not object_masks:
            samples = [(item, replace(sample, instances=None)) for item, sample in samples]
        splits[name] = (write_shard(Store(directory), f"{name}-00000.arrow", layout, samples),)
        first += count
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=size,
        multi_label=multi_label,
        has_instances=object_masks,
        classes=(UNLABELED,) if one_class else rendered.CLASSES,
        splits=splits,
        recipe={"dataset": "objects"},
        refused=(),
    )
    write_manifest(Store(directory), manifest)
    return directory


def small_config(data_dir: Path, **changes: Any) -> TrialConfig:
    """Build a trial of 3 steps per epoch; ``changes`` update sections ("masking": {...}) or top-level keys."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "epochs": 2,
        "batch_size": 32,
        "backbone": {"name": "resnet_small"},
        "objective": {"hidden_dim": 16, "output_dim": 8},
        "masking": {"slots": 3, "width": 8},
        "optimizer": {"encoder_lr": 0.05, "occlusion_lr": 0.05, "warmup_epochs": 0.5},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse(TrialConfig, values)

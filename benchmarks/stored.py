"""Data sets for measurements, written without Ray."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adios_ray.data.manifest import SCHEMA_VERSION, Layout, Manifest, write_manifest
from adios_ray.data.shards import write_shard
from adios_ray.data.sources.base import Sample
from adios_ray.store import Store

Shard = Sequence[tuple[str, Sample]]
"""Source ids and samples."""


def store(
    directory: Path,
    image_size: int,
    splits: Mapping[str, Iterable[Shard]],
    classes: tuple[str, ...],
    has_instances: bool = False,
) -> Manifest:
    """Write a data set.

    Args:
        directory: Where.
        image_size: Side of the stored images in pixels.
        splits: The shards of each split.
        classes: Names of the classes.
        has_instances: Whether the samples have instance maps.

    Returns:
        Its manifest.
    """
    place, layout = Store(directory), Layout(image_size, None, has_instances)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=image_size,
        multi_label=False,
        has_instances=has_instances,
        classes=classes,
        splits={
            name: tuple(
                write_shard(place, f"{name}-{number:05d}.arrow", layout, shard) for number, shard in enumerate(shards)
            )
            for name, shards in splits.items()
        },
        recipe={},
        refused=(),
    )
    write_manifest(place, manifest)
    return manifest

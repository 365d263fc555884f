"""The task that makes one shard: loads its images, writes the shard, and records what became of each image."""

import hashlib
from collections.abc import Mapping

import numpy as np
from pydantic import ValidationError

from adios_ray.config import OnBadImage
from adios_ray.data.manifest import Layout, Refusal, ShardEntry
from adios_ray.data.output_place import PARTS
from adios_ray.data.plan import ShardJob
from adios_ray.data.shards import write_shard
from adios_ray.data.sources.base import Sample, Source
from adios_ray.errors import DatasetError, RefusedImageError
from adios_ray.store import Store
from adios_ray.validation import Record


class Part(Record):
    """Record of a finished shard, kept beside the shards until the manifest is written.

    Attributes:
        digest: Of the job.
        entry: Of the shard.
        refused: Images of the job that are not in the shard.
        pixels: Checksum of the pixels and size of each row, in hexadecimal.
        contents: Checksum of the encoded image of each row; empty where there is none.
        notes: What is to be said of rows, by item.
    """

    digest: str
    entry: ShardEntry
    refused: tuple[Refusal, ...]
    pixels: tuple[str, ...]
    contents: tuple[str, ...]
    notes: dict[str, str]


def layout_of(source: Source, image_size: int) -> Layout:
    """Lay out the columns of a source's shards."""
    return Layout(image_size, len(source.classes) if source.multi_label else None, source.has_instances)


def part_name(job: ShardJob) -> str:
    """Name the file of a job's record."""
    return f"{PARTS}/{job.file}.json"


def finished_part(store: Store, job: ShardJob) -> Part | None:
    """Read the record of a job that was done with the same recipe and items; None unless its shard is complete."""
    try:
        part = Part.model_validate_json(store.read(part_name(job)))
    except (FileNotFoundError, ValidationError):
        return None
    return part if store.size(job.file) == part.entry.bytes and part.digest == job.digest else None


def make_shard(
    row: Mapping[str, str], source: Source, store: Store, image_size: int, on_bad_image: OnBadImage
) -> dict[str, int]:
    """Write one shard and its record; this is the body of a Ray Data task.

    Args:
        row: ``job``, a ShardJob as JSON.
        source: The images.
        store: Where the data set is written.
        image_size: Pixels a side.
        on_bad_image: See ``prepare``.

    Returns:
        Number of ``images`` decoded, and the number of those ``refused``.

    Raises:
        DatasetError: If an image is refused and ``on_bad_image`` is "fail".
    """
    job = ShardJob.model_validate_json(row["job"])
    samples: list[tuple[str, Sample]] = []
    refused: list[Refusal] = []
    for item in job.items:
        found = load_sample(source, job.split, item, image_size, on_bad_image)
        if isinstance(found, Refusal):
            refused.append(found)
        else:
            samples.append((item, found))
    # Else a call that is killed before it records its shard would leave it with the record of an earlier recipe's.
    store.remove(part_name(job))
    entry = write_shard(store, job.file, layout_of(source, image_size), samples)
    part = Part(
        digest=job.digest,
        entry=entry,
        refused=tuple(refused),
        pixels=tuple(_pixel_checksum(sample) for _, sample in samples),
        contents=tuple(sample.content for _, sample in samples),
        notes={item: sample.note for item, sample in samples if sample.note},
    )
    with store.writing(part_name(job)) as path:
        path.write_text(part.model_dump_json())
    return {"images": len(job.items), "refused": len(refused)}


def load_sample(source: Source, split: str, item: str, image_size: int, on_bad_image: OnBadImage) -> Sample | Refusal:
    """Decode one image, or tell why it cannot be used.

    Raises:
        DatasetError: If it cannot be used and ``on_bad_image`` is "fail".
    """
    try:
        return source.load(item, image_size)
    except RefusedImageError as error:
        if on_bad_image == "fail":
            raise DatasetError(f"{item} was refused: {error}") from error
        return Refusal(item=item, split=split, reason=str(error))


def _pixel_checksum(sample: Sample) -> str:
    checksum = hashlib.blake2b(f"{sample.height} {sample.width}".encode(), digest_size=16)
    checksum.update(np.ascontiguousarray(sample.image).data)
    return checksum.hexdigest()

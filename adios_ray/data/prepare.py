"""Preparation of data sets: images to shards through Ray Data, each image decoded, resized and checked once.

One Ray Data task writes one shard. The contents of the shards are planned beforehand from the item names alone, so that
the bytes do not depend on the number of workers or on interruptions. A run that was killed resumes with the missing
shards.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.data
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adios_ray.config import OnBadImage
from adios_ray.data.plan import ShardJob, plan_jobs, plan_splits
from adios_ray.data.shards import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Layout,
    Manifest,
    Record,
    Refusal,
    ShardEntry,
    read_manifest,
    write_manifest,
    write_shard,
)
from adios_ray.data.sources.base import UNLABELED, Sample, Source
from adios_ray.data.store import Location, Store
from adios_ray.errors import DatasetError, RefusedImageError

_PARTS = ".parts"
_CLAIM = f"{_PARTS}/begun"


@dataclass(frozen=True)
class PrepareSummary:
    """Result of ``prepare``.

    Attributes:
        images: Number of images in each split, without those refused.
        refused: Number of images that were left out.
        bytes: Size of all shards.
        seconds: Duration of this call.
        decoded: Images that this call decoded, including those refused; earlier calls decoded the others.
        complete_before: Whether the data set was already complete, so that nothing was done.
    """

    images: Mapping[str, int]
    refused: int
    bytes: int
    seconds: float
    decoded: int
    complete_before: bool


class _Part(Record):
    """Record of a finished shard, stored beside the shards until the manifest is written."""

    digest: str
    entry: ShardEntry
    refused: tuple[Refusal, ...]


def prepare(
    source: Source,
    output: Location,
    image_size: int,
    recipe: Mapping[str, Any],
    *,
    train_images: int | None = None,
    val_images: int | None = None,
    test_images: int | None = None,
    unlabeled_images: int | None = None,
    on_bad_image: OnBadImage = "skip",
    max_bad_fraction: float = 0.01,
) -> PrepareSummary:
    """Prepare a data set; after an interruption, the same call resumes it.

    A test or val split that the source lacks is carved out of its train split: ``test_images`` or ``val_images`` of
    them, 10 % if None. Splits are disjoint, and subsets take from each folder of the source in proportion to its size.
    A running Ray is used; otherwise Ray is started on this machine for the duration of the call. All workers must be
    able to write to ``output``.

    Args:
        source: The images.
        output: Directory or URI of the data set; new, empty, or left by an interrupted call.
        image_size: Side of the stored squares in pixels.
        recipe: JSON values that identify the source in the manifest; sizes, counts and the way of resizing are added.
        train_images: Images to take for train; None takes all.
        val_images: Images to take for val; 0 leaves the split out.
        test_images: Images to take for test; 0 leaves the split out.
        unlabeled_images: Images to take for the unlabeled split of a source that has one.
        on_bad_image: Whether to skip an unusable image and record the reason, or to stop at the first one.
        max_bad_fraction: Highest share of refused images with which the data set is still completed.

    Raises:
        DatasetError: If ``output`` holds something else, the counts cannot be met, or too many images are refused (one,
            where ``on_bad_image`` is "fail").
    """
    start = time.perf_counter()
    counts = {"train": train_images, "val": val_images, "test": test_images}
    settings = {f"{split}_images": count for split, count in counts.items()}
    if unlabeled_images is not None:
        counts[UNLABELED] = settings["unlabeled_images"] = unlabeled_images
    asked = {**recipe, **settings, "image_size": image_size, "resize": source.resize}
    # Through JSON, so that it equals a recipe read from a manifest: a tuple would not equal its list.
    full_recipe: dict[str, Any] = json.loads(json.dumps(asked))
    store = Store(output)
    if MANIFEST_NAME in store.names():
        manifest = _made_by(store, full_recipe)
        store.remove(_PARTS)  # left if the call was killed between writing the manifest and cleaning up
        return _summary(manifest, start, decoded=0, complete_before=True)
    jobs = plan_jobs(plan_splits(source.listing(), counts), _layout(source, image_size), full_recipe)
    _claim(store)
    pending = [job for job in jobs if _finished_part(store, job) is None]
    if pending:
        task = partial(make_shard, source=source, store=store, image_size=image_size, on_bad_image=on_bad_image)
        _run(pending, len(jobs), task)
    manifest = _finish(store, source, jobs, full_recipe, max_bad_fraction)
    return _summary(manifest, start, decoded=sum(len(job.items) for job in pending), complete_before=False)


def _layout(source: Source, image_size: int) -> Layout:
    return Layout(image_size, len(source.classes) if source.multi_label else None, source.has_instances)


def _made_by(store: Store, recipe: Mapping[str, Any]) -> Manifest:
    """Read the existing manifest, and check that the same recipe made it."""
    manifest = read_manifest(str(store))
    keys = sorted(recipe.keys() | manifest.recipe.keys())
    if odd := [key for key in keys if recipe.get(key) != manifest.recipe.get(key)]:
        differences = ", ".join(f"{key} {manifest.recipe.get(key)!r}, not {recipe.get(key)!r}" for key in odd)
        raise DatasetError(f"{store} holds another data set ({differences}); choose another --output")
    return manifest


def _claim(store: Store) -> None:
    """Begin a data set, or resume the one that an interrupted call left."""
    names = store.names()
    if names and _PARTS not in names:
        raise DatasetError(f"{store} is not empty and not an unfinished data set; choose another --output")
    with store.writing(_CLAIM) as path:
        path.touch()


def _part_name(job: ShardJob) -> str:
    return f"{_PARTS}/{job.file}.json"


def _finished_part(store: Store, job: ShardJob) -> _Part | None:
    """Return the record of a job if it was finished with the same recipe and items and its shard has its full size."""
    try:
        part = _Part.model_validate_json(store.read(_part_name(job)))
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
        store: Location of the data set.
        image_size: Side of the stored squares in pixels.
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
        try:
            samples.append((item, source.load(item, image_size)))
        except RefusedImageError as error:
            if on_bad_image == "fail":
                raise DatasetError(f"{item} was refused: {error}") from error
            refused.append(Refusal(item=item, split=job.split, reason=str(error)))
    entry = write_shard(store, job.file, _layout(source, image_size), samples)
    part = _Part(digest=job.digest, entry=entry, refused=tuple(refused))
    # After the shard: a record vouches for a shard that is complete.
    with store.writing(_part_name(job)) as path:
        path.write_text(part.model_dump_json())
    return {"images": len(job.items), "refused": len(refused)}


def _run(jobs: Sequence[ShardJob], planned: int, task: "partial[dict[str, int]]") -> None:
    """Run the jobs as Ray Data tasks, one per core, with a progress bar."""
    resumed = f", {planned - len(jobs)} of {planned} shards already done" if len(jobs) < planned else ""
    images = sum(len(job.items) for job in jobs)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s, {task.fields[bad]} bad, left:"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        bar = progress.add_task(f"preparing{resumed}", total=images, bad=0, rate=0.0)
        with _quiet_ray():
            # Timed from here: the rate is that of decoding, without the seconds in which Ray starts.
            start, done, bad = time.perf_counter(), 0, 0
            for result in _results(jobs, task):
                done, bad = done + result["images"], bad + result["refused"]
                progress.update(bar, completed=done, bad=bad, rate=done / (time.perf_counter() - start))


def _results(jobs: Sequence[ShardJob], task: "partial[dict[str, int]]") -> Iterator[dict[str, int]]:
    """Yield the result of each job as it finishes.

    Raises:
        DatasetError: If a job fails, with the cause.
    """
    rows = [{"job": job.model_dump_json()} for job in jobs]
    # One block per row, since Ray Data runs one task per block: a failed or killed task loses one shard.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    context = dataset.context  # this data set's own copy
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise a UserCodeException hides which image failed
    try:
        yield from dataset.map(task).iter_rows()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]  # Ray adds lines on retrying
        raise DatasetError(f"a shard could not be made ({reason}); run the same command again to resume") from error


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Use the running Ray, or start one for the duration of the block; Ray Data logs to its file only."""
    started = not ray.is_initialized()
    if started:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    # Ray Data's console handler is the one at INFO; its lines would break up the progress bar.
    console = [handler for handler in logging.getLogger("ray.data").handlers if handler.level == logging.INFO]
    for handler in console:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler in console:
            handler.setLevel(logging.INFO)
        if started:
            ray.shutdown()


def _finish(
    store: Store, source: Source, jobs: Sequence[ShardJob], recipe: dict[str, Any], max_bad_fraction: float
) -> Manifest:
    """Combine the records of all shards, check the number of refused images, and write the manifest."""
    parts = [(job, _finished_part(store, job)) for job in jobs]
    if lost := [job.file for job, part in parts if part is None]:
        raise DatasetError(f"{', '.join(lost)} did not arrive in {store}: make sure that all workers can write there")
    done = [(job, part) for job, part in parts if part is not None]
    _check_refused(store, done, max_bad_fraction)
    splits: dict[str, tuple[ShardEntry, ...]] = {}
    for job, part in done:
        splits[job.split] = (*splits.get(job.split, ()), part.entry)
    # Killed workers leave drafts, and interrupted calls with another recipe leave shards outside this plan.
    for name in store.names() - {job.file for job in jobs}:
        if name.endswith((".arrow", ".tmp")):
            store.remove(name)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=recipe["image_size"],
        multi_label=source.multi_label,
        has_instances=source.has_instances,
        classes=tuple(source.classes),
        splits=splits,
        recipe=recipe,
        refused=tuple(refusal for _, part in done for refusal in part.refused),
    )
    write_manifest(store, manifest)
    store.remove(_PARTS)
    return manifest


def _check_refused(store: Store, done: Sequence[tuple[ShardJob, _Part]], max_bad_fraction: float) -> None:
    """Raise a DatasetError if too many images were refused."""
    refused = [refusal for _, part in done for refusal in part.refused]
    planned = sum(len(job.items) for job, _ in done)
    if len(refused) <= max_bad_fraction * planned:
        return
    # Without their records the affected shards are written again, with the images that were repaired by then.
    for job, part in done:
        if part.refused:
            store.remove(_part_name(job))
    some = "; ".join(f"{refusal.item}: {refusal.reason}" for refusal in refused[:3])
    raise DatasetError(
        f"{len(refused)} of {planned} images were refused, more than {max_bad_fraction:.2%} ({some}); "
        "repair or remove them, or raise --max-bad-fraction"
    )


def _summary(manifest: Manifest, start: float, decoded: int, complete_before: bool) -> PrepareSummary:
    return PrepareSummary(
        images={split: sum(entry.rows for entry in entries) for split, entries in manifest.splits.items()},
        refused=len(manifest.refused),
        bytes=sum(entry.bytes for entry in manifest.entries),
        seconds=time.perf_counter() - start,
        decoded=decoded,
        complete_before=complete_before,
    )

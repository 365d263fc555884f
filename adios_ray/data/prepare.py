"""Preparation of data sets: images to shards through Ray Data, each image decoded, resized and checked once.

One Ray Data task writes one shard. The contents of the shards are planned beforehand from the item names alone, so that
the bytes do not depend on the number of workers or on interruptions. A run that was killed resumes with the missing
shards.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import ray
import ray.data

from adios_ray.config import OnBadImage
from adios_ray.console import progress_bar
from adios_ray.data.account import take_account
from adios_ray.data.claim import claimed
from adios_ray.data.duplicates import Pixels, find_duplicates
from adios_ray.data.manifest import SCHEMA_VERSION, Manifest, Refusal, ShardEntry, write_manifest
from adios_ray.data.output_place import PARTS, check_free, find_finished
from adios_ray.data.plan import Plan, ShardJob, deciding, descriptions, image_counts, make_plan, plan_jobs
from adios_ray.data.shard_task import Part, finished_part, layout_of, load_sample, make_shard, part_name
from adios_ray.data.shards import drop_rows
from adios_ray.data.source_files import contained, write_files
from adios_ray.data.sources.base import Sample, Source
from adios_ray.data.sources.passed_over import first_of
from adios_ray.data.splits import Key
from adios_ray.errors import AGAIN, DatasetError, resumable
from adios_ray.ray_start import LOCAL, start_ray
from adios_ray.store import Location, Store

_BEGUN = f"{PARTS}/begun"
_FILES = "files.arrow"
_TRIED = 16  # images that are decoded before Ray starts, if the first cannot be used

Say = Callable[[str], None]


@dataclass(frozen=True)
class PrepareSummary:
    """Result of ``prepare``.

    Attributes:
        manifest: That of the data set.
        seconds: Time that this call took.
        decoded: Images that this call decoded, those refused included; the others had been done before.
        complete_before: Whether the data set was already there, and nothing was done.
    """

    manifest: Manifest
    seconds: float
    decoded: int
    complete_before: bool

    @property
    def images(self) -> Mapping[str, int]:
        """Number of images of each split, without those refused."""
        return {split: self.manifest.images(split) for split in self.manifest.splits}

    @property
    def refused(self) -> int:
        """Number of images that were left out."""
        return len(self.manifest.refused)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(entry.bytes for entry in self.manifest.entries)


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
    group: Key | None = None,
    on_bad_image: OnBadImage = "skip",
    max_bad_fraction: float = 0.01,
    drop_duplicates: bool = False,
    check_content: bool = False,
    say: Say = lambda text: None,
) -> PrepareSummary:
    """Make a data set; called again after an interruption, continue where it stopped.

    If the source has a train split but no test or val split, that is carved out of train: ``test_images`` or
    ``val_images`` of them, 10 % if None. Subsets and carved splits are disjoint, and each class has its share in them.
    Ray is used as it is if it is running, else it is started on this machine for the time of the call. The workers must
    see ``output``. While another process prepares the same place, the call waits for it.

    Args:
        source: The images.
        output: Directory or URI of the data set; new, empty, or left by an interrupted call.
        image_size: Side of the stored squares in pixels.
        recipe: JSON values that identify the source in the manifest; sizes, counts and the way of resizing are added.
        train_images: Images to take for train; None takes all.
        val_images: Images to take for val; 0 leaves the split out.
        test_images: Images to take for test; 0 leaves the split out.
        unlabeled_images: Images to take for the unlabeled split of a source that has one.
        group: What belongs together when splits are carved, by item; ``recipe`` must name it.
        on_bad_image: Leave an image that cannot be used out and record why, or stop at the first one.
        max_bad_fraction: Share of refused images above which there is no data set.
        drop_duplicates: Keep one of images with equal pixels, that of the split that is evaluated.
        check_content: Where the data set is there already, compare the content of the source's files as well.
        say: Receives the plan before images are read, and what there is to wait for.

    Raises:
        ClaimError: If another process has taken the place over meanwhile; nothing more is written then.
        ConfigError: If Ray cannot use its temporary directory or the home directory.
        RunError: If Ray cannot be started.
        DatasetError: If ``output`` holds something else or the source has changed since it was made, the counts cannot
            be met, or too many images are refused (the first, where ``on_bad_image`` is "fail").
    """
    start = time.perf_counter()
    counts = image_counts(train_images, val_images, test_images, unlabeled_images)
    settings: dict[str, Any] = {f"{split}_images": count for split, count in counts.items()}
    if drop_duplicates:
        settings["drop_duplicates"] = True
    asked = {**recipe, **settings, "image_size": image_size, "resize": source.resize}
    # Through JSON, so that it equals a recipe read from a manifest: a tuple would not equal its list.
    full_recipe: dict[str, Any] = json.loads(json.dumps(asked))
    store, files = Store(output), source.files()
    check_free(store)
    find = partial(find_finished, store, full_recipe, source, files, check_content, say)
    if manifest := find():
        return PrepareSummary(manifest, time.perf_counter() - start, decoded=0, complete_before=True)
    plan = make_plan(source, counts, group)
    _check_usable(plan, source, image_size, on_bad_image, max_bad_fraction)
    with claimed(store, say) as claim, resumable():
        if manifest := find():  # made by the preparation that this one has waited for
            return PrepareSummary(manifest, time.perf_counter() - start, decoded=0, complete_before=True)
        say(plan.text())
        jobs = plan_jobs(plan.splits, layout_of(source, image_size), *deciding(source, full_recipe, files))
        check_free(store)
        with store.writing(_BEGUN) as path:
            path.touch()
        # With "fail", what an earlier call has made without some of its images is made again, and names them.
        pending = [
            job
            for job in jobs
            if (part := finished_part(store, job)) is None or (part.refused and on_bad_image == "fail")
        ]
        if pending:
            task = partial(make_shard, source=source, store=store, image_size=image_size, on_bad_image=on_bad_image)
            _run(pending, len(jobs), task, claim.check_beats)
        claim.check()
        parts = _parts(store, jobs)
        _check_refused(store, parts, max_bad_fraction)
        manifest = _finish(store, source, plan, parts, full_recipe, files, drop_duplicates, say)
        claim.check()
        write_manifest(store, manifest)
        store.remove(PARTS)
    decoded = sum(len(job.items) for job in pending)
    return PrepareSummary(manifest, time.perf_counter() - start, decoded, complete_before=False)


def _run(jobs: Sequence[ShardJob], planned: int, task: "partial[dict[str, int]]", check: Callable[[], None]) -> None:
    """Run the jobs as Ray Data tasks, one per core, with a progress bar; ``check`` is called after each."""
    resumed = f", {planned - len(jobs)} of {planned} shards already done" if len(jobs) < planned else ""
    images = sum(len(job.items) for job in jobs)
    with progress_bar("{task.fields[rate]:.0f} images/s, {task.fields[bad]} bad") as progress:
        bar = progress.add_task(f"preparing{resumed}", total=images, bad=0, rate=0.0)
        # Closed before Ray is: from a thread of Ray Data that is left, Ray would connect to whatever cluster it finds.
        with _quiet_ray(), closing(_results(jobs, task)) as results:
            # Timed from here: the rate is that of decoding, without the seconds in which Ray starts.
            start, done, bad = time.perf_counter(), 0, 0
            for result in results:
                done, bad = done + result["images"], bad + result["refused"]
                progress.update(bar, completed=done, bad=bad, rate=done / (time.perf_counter() - start))
                check()


def _results(jobs: Sequence[ShardJob], task: "partial[dict[str, int]]") -> Generator[dict[str, int]]:
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
        if isinstance(cause, OSError) and cause.errno:  # and to the text of such an error
            reason = os.strerror(cause.errno)
        raise DatasetError(f"a shard could not be made ({reason}); {AGAIN}") from error


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Use the running Ray, or start one for the duration of the block; Ray Data logs to its file only."""
    started = not ray.is_initialized()
    if started:
        start_ray(LOCAL, include_dashboard=False)
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


def _parts(store: Store, jobs: Sequence[ShardJob]) -> list[tuple[ShardJob, Part]]:
    """Collect the records of all shards.

    Raises:
        DatasetError: If one is missing.
    """
    parts = [(job, finished_part(store, job)) for job in jobs]
    if lost := [job.file for job, part in parts if part is None]:
        raise DatasetError(f"{', '.join(lost)} did not arrive in {store}: do all workers see that place?")
    return [(job, part) for job, part in parts if part is not None]


def _finish(
    store: Store,
    source: Source,
    plan: Plan,
    parts: Sequence[tuple[ShardJob, Part]],
    recipe: dict[str, Any],
    files: Mapping[str, tuple[int, int]],
    drop_duplicates: bool,
    say: Say,
) -> Manifest:
    """Account for every image, and leave copies out where that is asked for; returns the manifest to write.

    Raises:
        DatasetError: If no image is left of a split.
    """
    rows = {job.file: _rows(job, part) for job, part in parts}
    images = (
        Pixels(job.split, item, source.stratum(item), bytes.fromhex(checksum))
        for job, part in parts
        for item, checksum in zip(rows[job.file], part.pixels, strict=True)
    )
    duplicates, copies = find_duplicates(images)
    dropped = copies if drop_duplicates else set()
    _check_left(source, rows, [job for job, _ in parts], dropped, say)
    splits: dict[str, tuple[ShardEntry, ...]] = {}
    for job, part in parts:
        unwanted = {item for item in rows[job.file] if (job.split, item) in dropped}
        entry = drop_rows(store, part.entry, unwanted) if unwanted else part.entry
        splits[job.split] = (*splits.get(job.split, ()), entry)
    if drop_duplicates:
        duplicates = duplicates.model_copy(update={"dropped": len(dropped)})
    refused = tuple(refusal for _, part in parts for refusal in part.refused)
    in_order = [item for job, _ in parts for item in rows[job.file] if (job.split, item) in dropped]
    account = take_account(plan, splits, in_order, refused, [part.notes for _, part in parts], duplicates)
    _remove_leftovers(store, keep={job.file for job, _ in parts})
    contents = {
        item: content for job, part in parts for item, content in zip(rows[job.file], part.contents, strict=True)
    }
    contents |= contained(source) | {name: source.checksum(name) for name in descriptions(source, files)}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=recipe["image_size"],
        multi_label=source.multi_label,
        has_instances=source.has_instances,
        classes=tuple(source.classes),
        splits=splits,
        recipe=recipe,
        refused=refused,
        account=account,
        source_files=write_files(store, _FILES, files, contents) if files else None,
    )


def _check_left(
    source: Source, rows: Mapping[str, Sequence[str]], jobs: Sequence[ShardJob], dropped: Set[tuple[str, str]], say: Say
) -> None:
    """Raise a DatasetError for a split of which no image is left, and say which classes are lost."""
    planned = {(job.split, source.stratum(item)) for job in jobs for item in job.items}
    kept = [(job.split, item) for job in jobs for item in rows[job.file] if (job.split, item) not in dropped]
    left = {(split, source.stratum(item)) for split, item in kept}
    splits = {split for split, _ in left}
    if gone := list(dict.fromkeys(job.split for job in jobs if job.split not in splits)):
        reason = "all images are refused: repair them, or leave the split out"
        if any(split in gone for split, _ in dropped):
            reason = "all images are copies that --drop-duplicates leaves out: keep them, or leave the split out"
        raise DatasetError(f"nothing is left of {', '.join(gone)}; {reason}")
    if lost := sorted(planned - left):
        names = first_of([f"{name} in {split}" for split, name in lost])
        gone_by = "refused, or copies that --drop-duplicates leaves out" if dropped else "refused"
        say(f"note: nothing is left of class {names}: all of its images there are {gone_by}")


def _rows(job: ShardJob, part: Part) -> list[str]:
    """List the items of the rows of a shard."""
    refused = {refusal.item for refusal in part.refused}
    return [item for item in job.items if item not in refused]


def _check_usable(
    plan: Plan, source: Source, image_size: int, on_bad_image: OnBadImage, max_bad_fraction: float
) -> None:
    """Decode images until one can be used, so that a source of which none can is refused before Ray starts.

    Raises:
        DatasetError: If too many are refused before that.
    """
    refused: list[Refusal] = []
    planned = ((split, item) for split, items in plan.splits.items() for item in items)
    for split, item in islice(planned, _TRIED):
        try:
            found = load_sample(source, split, item, image_size, on_bad_image)
        except DatasetError:
            raise
        except Exception:  # not the image's fault: a worker meets it too, and says how to resume
            return
        if isinstance(found, Sample):
            break
        refused.append(found)
    _check_share(refused, plan.images, max_bad_fraction)


def _check_refused(store: Store, parts: Sequence[tuple[ShardJob, Part]], max_bad_fraction: float) -> None:
    """Raise a DatasetError if too many images were refused; their shards are made again by the next call."""
    refused = [refusal for _, part in parts for refusal in part.refused]
    try:
        _check_share(refused, sum(len(job.items) for job, _ in parts), max_bad_fraction)
    except DatasetError:
        for job, part in parts:
            if part.refused:
                store.remove(part_name(job))
        raise


def _check_share(refused: Sequence[Refusal], planned: int, max_bad_fraction: float) -> None:
    """Raise a DatasetError if more than this share of the planned images were refused."""
    if len(refused) <= max_bad_fraction * planned:
        return
    some = "; ".join(f"{refusal.item}: {refusal.reason}" for refusal in refused[:3])
    raise DatasetError(
        f"{len(refused)} of {planned} images were refused, more than {max_bad_fraction:.2%} ({some}); "
        "repair or remove them, or raise --max-bad-fraction"
    )


def _remove_leftovers(store: Store, keep: Set[str]) -> None:
    """Remove what killed workers and interrupted calls with another recipe left."""
    for name in store.names() - keep:
        if name.endswith((".arrow", ".tmp")):
            store.remove(name)

"""The data set format: memory-mapped Arrow shards, listed in a manifest.

A data set is a directory with ``train-00000.arrow``, ``val-00000.arrow``, ... and ``manifest.json``. A shard is an
Arrow IPC file with one record batch, whose image column is a fixed-shape tensor: memory-mapped, it is a NumPy array
that was never copied.

An image is a whole photograph squeezed into a square, with its true height and width, so that any part of it can be
cropped in its own proportions. In schema version 1, images are the central squares of photographs.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adios_ray.data.cache import RemoteFile, cache_locally
from adios_ray.data.manifest import (
    MAKE_AGAIN,
    MANIFEST_NAME,
    Layout,
    Manifest,
    ShardEntry,
    manifest_bytes,
    parse_manifest,
)
from adios_ray.data.sources.base import NO_LABEL, UNLABELED, Sample
from adios_ray.errors import DatasetError
from adios_ray.files import sha256
from adios_ray.store import Location, Store

Bytes = npt.NDArray[np.uint8]


def write_shard(store: Store, file: str, layout: Layout, samples: Sequence[tuple[str, Sample]]) -> ShardEntry:
    """Write one shard atomically.

    Args:
        store: Location of the data set.
        file: Name of the shard, ``<split>-<number>.arrow``.
        layout: The columns; the samples must match them.
        samples: Source id and sample of each row; may be empty.

    Returns:
        The shard's entry in the manifest.
    """
    schema = layout.schema()
    batch = pa.record_batch([_column(field, samples) for field in schema], schema=schema)
    return _write_batch(store, file, batch)


def drop_rows(store: Store, entry: ShardEntry, items: Set[str]) -> ShardEntry:
    """Write a shard again without some of its rows; returns its new entry."""
    table = pa.ipc.open_file(pa.BufferReader(store.read(entry.file))).read_all()
    kept = table.filter(pa.array([item not in items for item in table["source_id"].to_pylist()])).combine_chunks()
    (batch,) = kept.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    return _write_batch(store, entry.file, batch)


def _write_batch(store: Store, file: str, batch: pa.RecordBatch) -> ShardEntry:
    with store.writing(file) as path:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return ShardEntry(file=file, rows=batch.num_rows, bytes=path.stat().st_size, sha256=sha256(path))


def _column(field: pa.Field, samples: Sequence[tuple[str, Sample]]) -> pa.Array:
    if field.name == "source_id":
        return pa.array([item for item, _ in samples], pa.string())
    values = [getattr(sample, field.name) for _, sample in samples]
    if pa.types.is_integer(field.type):
        return pa.array(values, field.type)
    shape = field.type.shape
    # Not np.stack, which refuses an empty list: a shard whose images were all refused has no rows.
    stacked = np.empty((len(values), *shape), np.uint8)
    for row, value in zip(stacked, values, strict=True):
        row[...] = value
    storage = pa.FixedSizeListArray.from_arrays(pa.array(stacked.reshape(-1)), math.prod(shape))
    return pa.ExtensionArray.from_storage(field.type, storage)


def _on_this_machine(location: Location) -> tuple[Path, Manifest]:
    """Return the local directory of the shards and their manifest; a remote data set is copied to the cache first."""
    store = Store(location)
    content = manifest_bytes(store)
    manifest = parse_manifest(store, content)
    if store.local is not None:
        return store.local, manifest
    files = [RemoteFile(entry.file, entry.bytes, entry.sha256) for entry in manifest.entries]
    return cache_locally(store, MANIFEST_NAME, content, files), manifest


class Split:
    """One memory-mapped split of a data set; pixels are read from disk when they are first accessed.

    Attributes:
        name: Name of the split.
        images: RGB images of each shard, read-only uint8 [rows, S, S, 3] views of the mapped files.
        labels: Class indices int64 [n], or zeros and ones uint8 [n, C] in a multi-label set.
        heights: Height in pixels of each photograph before it was squeezed, int32 [n]; S in schema version 1.
        widths: Width in pixels of each photograph, likewise.
        instances: Object index per pixel for each shard, uint8 [rows, S, S] views, 0 = background; or None.
        source_ids: What the source calls each image, string [n].
    """

    def __init__(self, name: str, batches: Sequence[pa.RecordBatch]) -> None:
        """Take the record batches of the split's shards, in order, at least one."""
        self.name = name
        self.images: list[Bytes] = [batch["image"].to_numpy_ndarray() for batch in batches]
        self.labels: npt.NDArray[Any] = np.concatenate([_labels(batch) for batch in batches])
        self.instances: list[Bytes] | None = None
        if "instances" in batches[0].schema.names:
            self.instances = [batch["instances"].to_numpy_ndarray() for batch in batches]
        self.heights, self.widths = (_sizes(batches, side) for side in ("height", "width"))
        self.source_ids = pa.chunked_array([batch["source_id"] for batch in batches])
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._starts[-1])

    def spread(self, most: int) -> npt.NDArray[np.int64]:
        """Return the indices of at most ``most`` images, spread evenly over the split, ascending int64."""
        return np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))

    def gather(self, indices: npt.NDArray[np.int64], out: Bytes | None = None) -> Bytes:
        """Copy the images of ``indices`` (int64 [B], any order, repeats allowed) into one uint8 [B, S, S, 3].

        Args:
            indices: Indices into the split.
            out: Where to copy them to, if not into a new array.

        Raises:
            IndexError: If an index is not in [0, n).
        """
        return self._gather(self.images, indices, out)

    def gather_instances(self, indices: npt.NDArray[np.int64]) -> Bytes:
        """Copy the instance maps of ``indices`` (int64 [B]) into one uint8 [B, S, S].

        Raises:
            IndexError: If an index is not in [0, n).
            DatasetError: If the data set has no instance maps.
        """
        if self.instances is None:
            raise DatasetError(f"split {self.name!r} has no instance maps")
        return self._gather(self.instances, indices)

    def _gather(self, shards: Sequence[Bytes], indices: npt.NDArray[np.int64], out: Bytes | None = None) -> Bytes:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices must be in [0, {len(self)}): {indices.min()} to {indices.max()}")
        gathered = np.empty((len(indices), *shards[0].shape[1:]), np.uint8) if out is None else out
        order = np.argsort(indices, kind="stable")  # ascending, so that a cold file is read front to back
        # side="right" also skips empty shards, whose start equals that of the next one.
        numbers = np.searchsorted(self._starts, indices[order], side="right") - 1
        rows = indices[order] - self._starts[numbers]
        for position, shard, row in zip(order.tolist(), numbers.tolist(), rows.tolist(), strict=True):
            gathered[position] = shards[shard][row]
        return gathered


def _sizes(batches: Sequence[pa.RecordBatch], side: str) -> npt.NDArray[np.int32]:
    """Read the heights or widths of the photographs; the side of the stored squares where there are none."""
    schema = batches[0].schema
    if side in schema.names:
        return np.concatenate([batch[side].to_numpy() for batch in batches])
    rows = sum(batch.num_rows for batch in batches)
    return np.full(rows, schema.field("image").type.shape[0], np.int32)


@dataclass(frozen=True)
class Dataset:
    """A prepared data set whose files are all present; see ``open_shards``.

    Attributes:
        directory: Local directory of the shards.
        manifest: Contents and origin of the data set.
        location: Where it was opened, an absolute path or a URI.
    """

    directory: Path
    manifest: Manifest
    location: str

    def split(self, *names: str) -> Split:
        """Memory-map the shards of one split, or of several splits concatenated.

        Raises:
            DatasetError: If there is no such split, or a shard cannot be read.
        """
        splits = self.manifest.splits
        if lacking := [name for name in names if not splits.get(name)]:
            raise DatasetError(f"{self.location} has no split {lacking[0]!r}; it has {', '.join(sorted(splits))}")
        val_ids: set[str] = set()
        batches = [self._map(entry, val_ids if name == "val" else None) for name in names for entry in splits[name]]
        return Split("+".join(names), batches)

    def _map(self, entry: ShardEntry, val_ids: set[str] | None) -> pa.RecordBatch:
        """Memory-map one shard without reading its pixels; see ``_content_damage``.

        Raises:
            DatasetError: If it is not what the manifest says.
        """
        path = self.directory / entry.file
        batch = _read_batch(path)
        damage = batch if isinstance(batch, str) else _content_damage(batch, entry, self.manifest, val_ids)
        if damage:
            raise DatasetError(f"{path} {damage}. {_cure(self.location, path, entry)}")
        return batch


def open_shards(location: Location) -> Dataset:
    """Open a data set after checking that its manifest is valid and every shard has its recorded size.

    A remote data set is first copied to this machine, where each shard's checksum is verified; see ``cache_locally``.

    Raises:
        DatasetError: If the manifest or a shard is missing, truncated, damaged or of another schema version.
    """
    directory, manifest = _on_this_machine(location)
    for entry in manifest.entries:
        path = directory / entry.file
        if damage := _size_damage(path, entry):
            raise DatasetError(f"{path} {damage}. {_cure(location, path, entry)}")
    return Dataset(directory, manifest, str(Store(location)))


def _cure(location: Location, path: Path, entry: ShardEntry) -> str:
    """Say what to do about a damaged shard: if it is a copy, but not of what was made, it is to be fetched again."""
    if Store(location).local is None and _file_damage(path, entry):
        return f"Remove {path.parent}, the copy on this machine; adios-ray verify {location} checks the original"
    return MAKE_AGAIN


def _read_batch(path: Path) -> pa.RecordBatch | str:
    """Memory-map the rows of a shard; or say why that is impossible."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowException, OSError, ValueError) as error:  # a ValueError where there is no record batch
        return f"cannot be read as a shard ({error})"


def _content_damage(
    batch: pa.RecordBatch, entry: ShardEntry, manifest: Manifest, val_ids: set[str] | None
) -> str | None:
    """Say in what the rows are not those of the manifest.

    ``val_ids`` holds the source ids in the shards of val before this one, and those in this one are added; it is None
    for a shard of another split.
    """
    if batch.num_rows != entry.rows or batch.schema != manifest.layout.schema():
        return "does not hold the rows or columns of the manifest"
    if empty := [name for name in batch.schema.names if batch[name].null_count]:
        return f"has rows without {', '.join(empty)}"
    if val_ids is not None:  # val is parted into halves by a hash of these
        different = len(val_ids) + batch.num_rows
        val_ids.update(batch["source_id"].to_pylist())
        if len(val_ids) < different:
            return "has a source_id that another row of val has"
    for name in ("height", "width"):
        if name in batch.schema.names and batch.num_rows and pc.min(batch[name]).as_py() < 1:
            return f"has images without {name}"
    labels = _labels(batch)
    lowest = NO_LABEL if entry in manifest.splits.get(UNLABELED, ()) else 0
    highest = 1 if manifest.multi_label else len(manifest.classes) - 1
    if labels.size and not lowest <= labels.min() <= labels.max() <= highest:
        return f"has labels from {labels.min()} to {labels.max()}, not from {lowest} to {highest}"
    return None


def _labels(batch: pa.RecordBatch) -> npt.NDArray[Any]:
    column = batch["label"]
    values: npt.NDArray[Any] = column.to_numpy() if column.type == pa.int64() else column.to_numpy_ndarray()
    return values


def verify(
    location: Location, on_shard: Callable[[ShardEntry], None] | None = None, *, there: bool = False
) -> Manifest:
    """Read every shard of a data set and compare it with the manifest: size, checksum, rows, columns, labels, ids.

    Args:
        location: Directory or URI of the data set; a remote one is copied to this machine first.
        on_shard: Called after each shard, for a progress bar.
        there: Whether to read the shards of a remote data set where it is, instead of this machine's copy.

    Raises:
        DatasetError: If anything differs; the message names all damaged files.
    """
    store = Store(location)
    if store.local is None and not there:
        directory, manifest = _on_this_machine(location)
        store = Store(directory)
    else:
        manifest = parse_manifest(store, manifest_bytes(store))
    damaged: list[str] = []
    cures: set[str] = set()
    of_val, val_ids = {entry.file for entry in manifest.splits.get("val", ())}, set[str]()
    for entry in manifest.entries:
        with _local_file(store, entry.file) as path:
            if damage := _damage(path, entry, manifest, val_ids if entry.file in of_val else None):
                damaged.append(f"{entry.file} {damage}")
                cures.add(MAKE_AGAIN if there else _cure(location, path, entry))
        if on_shard is not None:
            on_shard(entry)
    if damaged:
        cure = MAKE_AGAIN if MAKE_AGAIN in cures else cures.pop()
        raise DatasetError(f"{location} is damaged: {'; '.join(damaged)}. {cure}")
    return manifest


@contextmanager
def _local_file(store: Store, name: str) -> Iterator[Path]:
    """Provide a file of a store on this machine; of a remote one, a copy for the time of the block."""
    if store.local is not None:
        yield store.local / name
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        with suppress(FileNotFoundError):  # as of a local one, that is said of the path
            store.fetch(name, path)
        yield path


def _damage(path: Path, entry: ShardEntry, manifest: Manifest, val_ids: set[str] | None) -> str | None:
    if damage := _file_damage(path, entry):
        return damage
    batch = _read_batch(path)
    return batch if isinstance(batch, str) else _content_damage(batch, entry, manifest, val_ids)


def _file_damage(path: Path, entry: ShardEntry) -> str | None:
    """Say in what a file is not the one that the manifest was written for."""
    if damage := _size_damage(path, entry):
        return damage
    return None if sha256(path) == entry.sha256 else "does not have the checksum of the manifest"


def _size_damage(path: Path, entry: ShardEntry) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return None if size == entry.bytes else f"has {size} bytes instead of {entry.bytes}"

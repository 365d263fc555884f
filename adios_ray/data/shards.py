"""The data set format: memory-mapped Arrow shards, and the manifest with their sizes and checksums.

A data set is a directory with ``train-00000.arrow``, ``val-00000.arrow``, ... and ``manifest.json``. A shard is an
Arrow IPC file with one record batch, whose image column is a fixed-shape tensor: memory-mapped, it is a NumPy array
that was never copied. The manifest is written last; a directory without one is not a data set.

An image is a whole photograph squeezed into a square, with its true height and width, so that any part of it can be
cropped in its own proportions. In schema version 1, images are the central squares of photographs.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adios_ray.data.cache import RemoteFile, cache_locally
from adios_ray.data.sources.base import UNLABELED, Sample
from adios_ray.errors import DatasetError
from adios_ray.files import sha256
from adios_ray.store import Location, Store
from adios_ray.validation import parse_json

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
MANIFEST_NAME = "manifest.json"
_MAKE_AGAIN = "Run adios-ray prepare again with another --output, or after removing the directory"

Bytes = npt.NDArray[np.uint8]


class Record(BaseModel):
    """Base of the models that are written as JSON: immutable, and strict when read back."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(Record):
    """A shard's entry in the manifest: file name, number of rows, size in bytes, SHA-256 in hexadecimal."""

    file: str = Field(pattern=r"^[a-z_]+-\d+\.arrow$")
    rows: int = Field(ge=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Refusal(Record):
    """An image that was left out, and the reason."""

    item: str
    split: str
    reason: str


class Counted(Record):
    """What was passed over or noted for one reason: how much, and some of it."""

    number: int
    examples: tuple[str, ...] = ()


class Duplicates(Record):
    """Images whose pixels are those of another one.

    Attributes:
        images: Copies of images that were counted before, within and across splits.
        across: Copies by the pair of splits, such as "test, train".
        two_labels: Copies with another label than the first.
        examples: Some pairs; first those with two labels.
        dropped: How many copies were left out.
    """

    images: int
    across: dict[str, int]
    two_labels: int
    examples: tuple[tuple[str, str], ...]
    dropped: int = 0


class Account(Record):
    """What became of everything that the source has: read + refused + passed over = found.

    Attributes:
        found: Images and other files of the source.
        read: Images in the shards.
        passed_over: What is in no shard, by reason, without refused images.
        notes: What people should know of images that are used, such as an unusual range of values.
        duplicates: Exact copies.
    """

    found: int
    read: int
    passed_over: dict[str, Counted]
    notes: dict[str, Counted]
    duplicates: Duplicates


class SourceFiles(Record):
    """The file that lists the source's files: names, sizes, times of change and checksums."""

    file: str
    bytes: int
    sha256: str


class Manifest(Record):
    """Contents of ``manifest.json``.

    Attributes:
        schema_version: Version of this format: 2, or 1 without heights and widths.
        image_size: Side S of the stored squares in pixels.
        multi_label: Whether a label is a row of zeros and ones, one per class.
        has_instances: Whether each image has an instance map, an object index per pixel.
        classes: Class names; a label is an index into them.
        splits: Shards of each split, in order.
        recipe: Origin of the data set and how it was prepared; plain JSON values.
        refused: The images that were left out.
        account: What became of everything else; None in data sets of earlier versions.
        source_files: What the source's files were; None where there are none, and in earlier versions.
    """

    schema_version: int
    image_size: int = Field(gt=0)
    multi_label: bool
    has_instances: bool
    classes: tuple[str, ...]
    splits: dict[str, tuple[ShardEntry, ...]]
    recipe: dict[str, Any]
    refused: tuple[Refusal, ...]
    account: Account | None = None
    source_files: SourceFiles | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_names(cls, fields: Any) -> Any:
        """Translate names of earlier versions, which spelled "unlabelled"."""
        if not isinstance(fields, dict):
            return fields
        translated = dict(fields)
        for name in fields.keys() & {"splits", "recipe"}:
            if isinstance(values := fields[name], dict):
                translated[name] = {key.replace("unlabelled", UNLABELED): value for key, value in values.items()}
        return translated

    @property
    def layout(self) -> "Layout":
        """Columns of the shards."""
        label_size = len(self.classes) if self.multi_label else None
        return Layout(self.image_size, label_size, self.has_instances, has_sizes=self.schema_version > 1)

    @property
    def training_splits(self) -> tuple[str, ...]:
        """Splits that the networks train on: train, and the images without labels if there are any."""
        return ("train", UNLABELED) if UNLABELED in self.splits else ("train",)

    def images(self, split: str) -> int:
        """Count the images of a split."""
        return sum(entry.rows for entry in self.splits[split])

    @property
    def checksum(self) -> str:
        """SHA-256 checksum of the images and labels of all splits, from those of the shards, in hexadecimal."""
        shards = {split: [entry.sha256 for entry in entries] for split, entries in self.splits.items()}
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    @property
    def entries(self) -> list[ShardEntry]:
        """The shards of all splits."""
        return [entry for entries in self.splits.values() for entry in entries]


class _Version(BaseModel):
    """The version of a manifest, read alone: the other fields may be those of another version."""

    schema_version: int


@dataclass(frozen=True)
class Layout:
    """The columns of the shards of one data set.

    Attributes:
        image_size: Side S of the squares in pixels.
        label_size: Number of classes C of a multi-label set; None where a label is one class index.
        has_instances: Whether each image has an instance map.
        has_sizes: Whether the height and width of each photograph are stored; not in schema version 1.
    """

    image_size: int
    label_size: int | None
    has_instances: bool
    has_sizes: bool = True

    @property
    def row_bytes(self) -> int:
        """Size of the pixels of one row in bytes."""
        return self.image_size**2 * (4 if self.has_instances else 3)

    def schema(self) -> pa.Schema:
        """Return the Arrow schema.

        Its columns are image (uint8 [S, S, 3]), label (int64, or uint8 [C]), instances (uint8 [S, S]), height, width
        (int32) and source_id.
        """
        size = self.image_size
        fields = [("image", _tensor(size, size, 3))]
        fields += [("label", pa.int64() if self.label_size is None else _tensor(self.label_size))]
        fields += [("instances", _tensor(size, size))] if self.has_instances else []
        fields += [("height", pa.int32()), ("width", pa.int32())] if self.has_sizes else []
        return pa.schema([*fields, ("source_id", pa.string())])


def _tensor(*shape: int) -> pa.DataType:
    return pa.fixed_shape_tensor(pa.uint8(), shape)


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


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically; this completes the data set."""
    with store.writing(MANIFEST_NAME) as path:
        path.write_text(json.dumps(manifest.model_dump(), sort_keys=True, indent=1) + "\n")


def read_manifest(location: Location) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        DatasetError: If it is missing, of an unknown schema version, or not a manifest.
    """
    store = Store(location)
    return _parse_manifest(store, _manifest_bytes(store))


def _manifest_bytes(store: Store) -> bytes:
    try:
        return store.read(MANIFEST_NAME)
    except NotADirectoryError:
        raise DatasetError(f"{store} is a file, no data set: name the directory that has {MANIFEST_NAME}") from None
    except FileNotFoundError:
        raise DatasetError(f"no data set in {store} ({MANIFEST_NAME} is missing): run adios-ray prepare") from None
    except Exception as error:  # each protocol has errors of its own
        raise DatasetError(f"{store}/{MANIFEST_NAME} cannot be read: {type(error).__name__}: {error}") from error


def _parse_manifest(store: Store, content: bytes) -> Manifest:
    path = f"{store}/{MANIFEST_NAME}"
    try:
        version = parse_json(_Version, content, f"{path} is not a manifest", DatasetError).schema_version
        if version in READABLE_VERSIONS:
            return parse_json(Manifest, content, f"{path} is damaged", DatasetError)
    except DatasetError as error:
        raise DatasetError(f"{error}. {_MAKE_AGAIN}") from None
    newer = "It was made by a newer adios_ray: update this one. Or r" if version > SCHEMA_VERSION else "R"
    raise DatasetError(f"{path} has schema version {version}, not {SCHEMA_VERSION} or 1. {newer}{_MAKE_AGAIN[1:]}")


def _on_this_machine(location: Location) -> tuple[Path, Manifest]:
    """Return the local directory of the shards and their manifest; a remote data set is copied to the cache first."""
    store = Store(location)
    content = _manifest_bytes(store)
    manifest = _parse_manifest(store, content)
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
        labels = [batch["label"] for batch in batches]
        self.labels: npt.NDArray[Any] = np.concatenate(
            [column.to_numpy() if column.type == pa.int64() else column.to_numpy_ndarray() for column in labels]
        )
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
            raise DatasetError(f"{self.directory} has no split {lacking[0]!r}; it has {', '.join(sorted(splits))}")
        entries = [entry for name in names for entry in splits[name]]
        return Split("+".join(names), [_map_shard(self.directory / e.file, e, self.manifest.layout) for e in entries])


def open_shards(location: Location) -> Dataset:
    """Open a data set after checking that its manifest is valid and every shard has its recorded size.

    A remote data set is first copied to this machine, where each shard's checksum is verified; see ``cache_locally``.

    Raises:
        DatasetError: If the manifest or a shard is missing, truncated, damaged or of another schema version.
    """
    directory, manifest = _on_this_machine(location)
    for entry in manifest.entries:
        if damage := _size_damage(directory / entry.file, entry):
            raise DatasetError(f"{directory / entry.file} {damage}. {_MAKE_AGAIN}")
    return Dataset(directory, manifest, str(Store(location)))


def _map_shard(path: Path, entry: ShardEntry, layout: Layout) -> pa.RecordBatch:
    """Memory-map one shard without reading its pixels."""
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as a shard ({error}). {_MAKE_AGAIN}") from error
    if batch.num_rows != entry.rows or batch.schema != layout.schema():
        raise DatasetError(f"{path} does not hold the rows or columns of the manifest. {_MAKE_AGAIN}")
    return batch


def verify(location: Location, on_shard: Callable[[ShardEntry], None] | None = None) -> Manifest:
    """Read every shard of a data set and compare it with the manifest: size, checksum, rows and columns.

    Args:
        location: Directory or URI of the data set; a remote one is copied to this machine first.
        on_shard: Called after each shard, for a progress bar.

    Raises:
        DatasetError: If anything differs; the message names all damaged files.
    """
    directory, manifest = _on_this_machine(location)
    damaged: list[str] = []
    for entry in manifest.entries:
        if damage := _damage(directory / entry.file, entry, manifest.layout):
            damaged.append(f"{entry.file} {damage}")
        if on_shard is not None:
            on_shard(entry)
    if damaged:
        raise DatasetError(f"{location} is damaged: {'; '.join(damaged)}. {_MAKE_AGAIN}")
    return manifest


def _damage(path: Path, entry: ShardEntry, layout: Layout) -> str | None:
    if damage := _size_damage(path, entry):
        return damage
    if sha256(path) != entry.sha256:
        return "does not have the checksum of the manifest"
    try:
        _map_shard(path, entry, layout)
    except DatasetError:
        return "does not hold the rows or columns of the manifest"
    return None


def _size_damage(path: Path, entry: ShardEntry) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return None if size == entry.bytes else f"has {size} bytes instead of {entry.bytes}"

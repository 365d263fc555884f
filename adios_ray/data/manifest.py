"""The manifest of a data set: its shards with their sizes and checksums, and what became of every image.

The manifest is written last; a directory without one is not a data set.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from adios_ray.data.sources.base import UNLABELED
from adios_ray.errors import DatasetError
from adios_ray.retry import promptly
from adios_ray.store import Location, Store
from adios_ray.validation import Record, parse_json

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
MANIFEST_NAME = "manifest.json"
MAKE_AGAIN = "Run adios-ray prepare again with another --output, or after removing the directory"


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
    """Files that were passed over, or images that were noted, for one reason: their number, and examples."""

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
    """Counts of a source's files by outcome: read + refused + passed over = found.

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
        splits: Shards of each split, in order, at least one.
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

    @model_validator(mode="after")
    def _check_names(self) -> "Manifest":
        """Refuse classes of one name, splits without shards, and a shard of two splits, say of train and test."""
        if equal := [name for name, number in Counter(self.classes).items() if number > 1]:
            raise ValueError(f"two classes are called {equal[0]!r}: give each a name of its own")
        if empty := [split for split, entries in self.splits.items() if not entries]:
            raise ValueError(f"split {empty[0]} has no shards: leave it out")
        counts = Counter(entry.file for entries in self.splits.values() for entry in entries)
        if repeated := [file for file, number in counts.items() if number > 1]:
            raise ValueError(f"{repeated[0]} is in several splits, or twice in one")
        return self

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
    def training_images(self) -> int:
        """Number of images that networks train on; 0 without a train split."""
        return sum(self.images(split) for split in self.training_splits) if "train" in self.splits else 0

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


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically; this completes the data set."""
    with store.writing(MANIFEST_NAME) as path:
        path.write_text(json.dumps(manifest.model_dump(), sort_keys=True, indent=1) + "\n")


def read_source_files(store: Store, entry: SourceFiles) -> bytes:
    """Read the file that names a source's files.

    Raises:
        DatasetError: If it is missing, or not as in the manifest.
    """
    try:
        content = store.read(entry.file)
    except FileNotFoundError:
        raise DatasetError(f"{store}/{entry.file} is missing. {MAKE_AGAIN}") from None
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DatasetError(f"{store}/{entry.file} does not have the checksum of the manifest. {MAKE_AGAIN}")
    return content


def read_manifest(location: Location) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        DatasetError: If it is missing, of an unknown schema version, or not a manifest.
    """
    store = Store(location)
    return parse_manifest(store, manifest_bytes(store))


def manifest_bytes(store: Store) -> bytes:
    """Read ``manifest.json``.

    Raises:
        DatasetError: If it is missing or cannot be read, or storage does not answer within 20 s.
    """
    try:
        return promptly(partial(store.read, MANIFEST_NAME))
    except NotADirectoryError:
        raise DatasetError(f"{store} is a file, no data set: name the directory that has {MANIFEST_NAME}") from None
    except FileNotFoundError:
        raise DatasetError(f"no data set in {store} ({MANIFEST_NAME} is missing): run adios-ray prepare") from None
    except Exception as error:  # each protocol has errors of its own
        raise DatasetError(f"{store}/{MANIFEST_NAME} cannot be read: {type(error).__name__}: {error}") from error


def parse_manifest(store: Store, content: bytes) -> Manifest:
    """Validate the content of ``manifest.json``.

    Raises:
        DatasetError: If it is of an unknown schema version, or not a manifest.
    """
    path = f"{store}/{MANIFEST_NAME}"
    try:
        version = parse_json(_Version, content, f"{path} is not a manifest", DatasetError).schema_version
        if version in READABLE_VERSIONS:
            return parse_json(Manifest, content, f"{path} is damaged", DatasetError)
    except DatasetError as error:
        raise DatasetError(f"{error}. {MAKE_AGAIN}") from None
    newer = "It was made by a newer adios_ray: update this one. Or r" if version > SCHEMA_VERSION else "R"
    raise DatasetError(f"{path} has schema version {version}, not {SCHEMA_VERSION} or 1. {newer}{MAKE_AGAIN[1:]}")

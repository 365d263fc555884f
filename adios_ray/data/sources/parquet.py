"""Parquet files with a column of encoded images: the layout of image sets on the Hugging Face hub."""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from adios_ray.data.sources.base import UNLABELED
from adios_ray.data.sources.encoded import NO_LABEL_REASON, EncodedImages, Label, Place, class_names, opened
from adios_ray.data.sources.passed_over import PassedOver, first_of
from adios_ray.data.sources.split_files import find, read_all
from adios_ray.errors import DatasetError, RefusedImageError
from adios_ray.store import Location, Store

LABEL_NAMES = ("label", "labels", "class", "cls", "target", "targets", "category", "class_id", "class_name", "y")
MAX_GROUP_BYTES = 2**30
"""Most that a worker holds: the images of one row group."""


@dataclass(frozen=True, kw_only=True)
class ParquetImages(EncodedImages):
    """Rows of Parquet files. The position of an item is ``GROUP.ROW``: the row group, and the row in it.

    Attributes:
        image_column: Column of the encoded images.
        links: File of the image of each row that names one, by ``FILE#GROUP.ROW``. Workers read it from the row.
    """

    image_column: str
    links: Mapping[str, str] = field(default_factory=dict, repr=False)

    def beside(self, item: str) -> tuple[str, ...]:
        """Name the file of the image, if the row names one."""
        if not self.links:
            return ()
        place = Place.of(item)
        link = self.links.get(f"{place.file}#{place.position}")
        return () if link is None else (link,)

    def block(self, item: str) -> str:
        """Name the row group of an item, the least that can be read."""
        place = Place.of(item)
        return f"{place.file}#{place.position.partition('.')[0]}"

    def content(self, place: Place) -> bytes:
        """Read one row; the rest of its row group is kept for the next.

        Raises:
            RefusedImageError: If the row has no image, or its row group is damaged.
        """
        group, row = map(int, place.position.split("."))
        value = _images(self.place, place.file, group, self.image_column)[row].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            return self._linked(place.file, value["path"])
        if content is None:
            raise RefusedImageError("its row has no image")
        return bytes(content)

    def _linked(self, file: str, path: str) -> bytes:
        """Read an image that a row names by its path relative to the Parquet file."""
        name = _relative_to_root(file, path)
        if name is None:
            raise RefusedImageError(f"its row names {path}, which is outside the data set")
        try:
            return opened(self.place).read(name)
        except (FileNotFoundError, IsADirectoryError):
            raise RefusedImageError(f"its row names {path}, which is not there") from None

    def _remote_states(self, store: Store, names: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        linked = {*self.links.values()}
        states = super()._remote_states(store, [name for name in names if name not in linked])
        return {**store.states(), **states} if linked else states

    def __getstate__(self) -> dict[str, Any]:
        """Keep what a worker needs to decode."""
        return {**super().__getstate__(), "links": {}}


def _relative_to_root(file: str, path: str) -> str | None:
    """Name a file that a row of another one names relative to that; None if it is outside the data set."""
    name = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    return None if name.startswith(("/", "..")) else name


@lru_cache(maxsize=1)
def _opened(root: str, file: str) -> pq.ParquetFile:
    return pq.ParquetFile(opened(root).open(file, read_ahead=False))


@lru_cache(maxsize=1)
def _images(root: str, file: str, group: int, column: str) -> pa.ChunkedArray:
    """Read the images of a row group; the last one is kept."""
    try:
        return _opened(root, file).read_row_group(group, columns=[column]).column(0)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # storage that failed, not a damaged file
        raise RefusedImageError(f"row group {group} is damaged: {error}") from error


class _Columns(NamedTuple):
    """The columns of a file that matter, comparable between files.

    Attributes:
        image: Column of the images.
        kind: How it stores them.
        label: Column of the labels; None without.
        label_kind: Whether they are numbers, booleans or names.
        names: Class names out of the schema's metadata.
    """

    image: str
    kind: str
    label: str | None
    label_kind: str | None
    names: tuple[str, ...] | None


class _File(NamedTuple):
    """The footer of a file and its labels.

    Attributes:
        columns: The columns that matter.
        groups: Rows of each row group.
        labels: Labels of all rows; None without a label column.
        others: Columns that could hold labels.
        links: Files that rows name instead of holding an image, by the rows' positions.
    """

    columns: _Columns
    groups: tuple[int, ...]
    labels: list[Label | None] | None
    others: tuple[str, ...]
    links: dict[str, str]


def source(
    root: Location,
    image_column: str | None = None,
    label_column: str | None = None,
    allow_missing_classes: bool = False,
) -> ParquetImages:
    """List images in Parquet files below a directory or URI; only footers and labels are read now.

    Files are assigned to splits by name: train, val (validation, valid, dev), test or unlabeled, in the file's name or
    a folder's; without such names everything is train. Integer labels are named by the schema's Hugging Face metadata,
    else by their digits; booleans and strings are class names. Rows without a label are passed over if others have one,
    except in the unlabeled split. Images without a label column share the one class "unlabeled".

    Args:
        root: Directory, file or URI.
        image_column: Column of the encoded images: binary, or a struct of bytes and path. None takes the only one.
        label_column: Column of the labels. None takes the class label of the metadata, or the column with a usual name.
        allow_missing_classes: Whether val and test may lack classes that train has.

    Raises:
        DatasetError: If a file is damaged, the columns cannot be used or differ between files, or splits differ in
            their classes.
    """
    found = find(root, ".parquet")
    read = partial(_read_file, found.store, image_column=image_column, label_column=label_column)
    files = dict(zip(found.files, read_all(found.files, read), strict=True))
    columns = _common_columns(found.store, files)
    labels: dict[str, set[Label]] = {}
    for name, split in found.files.items():
        labels.setdefault(split, set()).update(label for label in files[name].labels or () if _is_label(label))
    labels.pop(UNLABELED, None)
    classes, named = class_names(labels, columns.names, str(found.store), allow_missing_classes)
    links = {f"{name}#{row}": linked for name, file in files.items() for row, linked in file.links.items()}
    if links and {*links.values()}.isdisjoint(found.store.find()):
        links = {}  # rows hold their images, though the footers do not tell
    passed_over = found.passed_over({*links.values()})
    items: dict[str, list[str]] = {}
    for name, split in found.files.items():
        items.setdefault(split, []).extend(_items(name, split, files[name], named, passed_over))
    items = {split: listed for split, listed in items.items() if listed}
    if not items:
        raise DatasetError(f"{found.store} has no rows that can be used: {passed_over.text() or 'they are empty'}")
    others = next(iter(files.values())).others if columns.label is None else ()
    notes = (f"no label column is recognized; for one of {first_of(others)}, give --label-column",) if others else ()
    return ParquetImages.found_in(
        found,
        classes=classes,
        items=items,
        passed_over=passed_over,
        image_column=columns.image,
        links=links,
        notes=notes,
    )


def _is_label(label: Label | None) -> TypeGuard[Label]:
    return bool(label) if isinstance(label, str) else label is not None and label >= 0


def _items(name: str, split: str, file: _File, named: dict[Label, str], passed_over: PassedOver) -> Iterator[str]:
    """Name the rows of a file; those that lack a label are passed over."""
    positions = (f"{group}.{row}" for group, rows in enumerate(file.groups) for row in range(rows))
    labels = file.labels if file.labels is not None else [None] * sum(file.groups)
    for position, label in zip(positions, labels, strict=True):
        if split == UNLABELED or not named:
            yield Place(name, UNLABELED, position).item()
        elif _is_label(label):
            yield Place(name, named[label], position).item()
        else:
            passed_over.add(NO_LABEL_REASON, f"{name}#{position}")


def _read_file(store: Store, name: str, image_column: str | None, label_column: str | None) -> _File:
    try:
        with store.open(name, read_ahead=False) as opened:
            file = pq.ParquetFile(opened)
            columns = _columns(f"{store}/{name}", file.schema_arrow, image_column, label_column)
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            _check_size(f"{store}/{name}", groups, columns.image)
            labels = None
            if columns.label is not None:
                labels = file.read(columns=[columns.label]).column(0).to_pylist()
            others = tuple(field.name for field in file.schema_arrow if _kind_of_labels(field.type))
            links = _links(file, name, columns.image)
            return _File(columns, tuple(group.num_rows for group in groups), labels, others, links)
    except DatasetError:
        raise
    except Exception as error:  # a damaged file, or an error of a protocol
        raise DatasetError(f"{store}/{name} cannot be read: {error}") from error


def _links(file: pq.ParquetFile, name: str, column: str) -> dict[str, str]:
    """Find the rows that may name the file of their image: those of row groups in which some may lack theirs.

    By the footer, so that no images are read: where only some rows of a group lack theirs, or the footer does not tell,
    the names of all count.
    """
    links: dict[str, str] = {}
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        parts = {part.path_in_schema: part for part in map(group.column, range(group.num_columns))}
        held = parts.get(f"{column}.bytes")
        if f"{column}.path" not in parts or held is None or (held.statistics and held.statistics.null_count == 0):
            continue
        values = file.read_row_group(number, columns=[f"{column}.path"]).column(0).to_pylist()
        for row, value in enumerate(values):
            if value and value["path"] and (linked := _relative_to_root(name, value["path"])):
                links[f"{number}.{row}"] = linked
    return links


def _check_size(path: str, groups: Sequence[Any], column: str) -> None:
    for number, group in enumerate(groups):
        parts = [group.column(k) for k in range(group.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)
        if size > MAX_GROUP_BYTES:
            raise DatasetError(
                f"{path} has {size:,} bytes of images in row group {number}, more than the {MAX_GROUP_BYTES:,} that a "
                "worker may hold: write it again with smaller row groups (pyarrow's row_group_size=100)"
            )


def _columns(path: str, schema: pa.Schema, image_column: str | None, label_column: str | None) -> _Columns:
    features = _features(schema)
    image = image_column or _only_image(path, schema, features)
    label = label_column or _only_label(path, schema, features)
    for column in (image, label):
        if column is not None and column not in schema.names:
            raise DatasetError(f"{path} has no column {column}, but {', '.join(schema.names)}")
    kind = _image_kind(schema.field(image).type)
    if kind is None:
        raise DatasetError(
            f"column {image} of {path} is {schema.field(image).type}, not binary or a struct of bytes and path"
        )
    if label is None:
        return _Columns(image, kind, None, None, None)
    feature = features.get(label, {})
    names = tuple(feature["names"]) if feature.get("_type") == "ClassLabel" and feature.get("names") else None
    return _Columns(image, kind, label, _label_kind(path, label, schema.field(label).type), names)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features of each column out of the Hugging Face metadata; empty without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _only_image(path: str, schema: pa.Schema, features: dict[str, dict[str, Any]]) -> str:
    images: list[str] = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    if len(images) != 1:
        images = [field.name for field in schema if _image_kind(field.type)]
    if not images:
        raise DatasetError(f"{path} has no column of encoded images; its columns are {', '.join(schema.names)}")
    if len(images) > 1:
        raise DatasetError(f"{path} has several columns of images ({', '.join(images)}): choose by --image-column")
    return images[0]


def _only_label(path: str, schema: pa.Schema, features: dict[str, dict[str, Any]]) -> str | None:
    labels: list[str] = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    labels = labels or [name for name in schema.names if name.lower() in LABEL_NAMES]
    if len(labels) > 1:
        raise DatasetError(f"{path} has several columns of labels ({', '.join(labels)}): choose by --label-column")
    return labels[0] if labels else None


def _image_kind(kind: pa.DataType) -> str | None:
    if pa.types.is_struct(kind) and "bytes" in {field.name for field in kind}:
        return "a struct" if _is_binary(kind.field("bytes").type) else None
    return "binary" if _is_binary(kind) else None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)  # type: ignore[no-any-return]  # pyarrow ships no types


def _label_kind(path: str, label: str, kind: pa.DataType) -> str:
    if found := _kind_of_labels(kind):
        return found
    raise DatasetError(f"column {label} of {path} is {kind}: a label must be one integer, one boolean or one string")


def _kind_of_labels(kind: pa.DataType) -> str | None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(value):
        return "numbers"
    if pa.types.is_boolean(value):
        return "booleans"
    is_text = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return "names" if any(check(value) for check in is_text) else None


def _common_columns(store: Store, files: dict[str, _File]) -> _Columns:
    """Return the columns of the first file, which those of all others must equal."""
    first, *others = files
    expected = files[first].columns
    for name in others:
        columns = files[name].columns
        if columns != expected:
            raise DatasetError(
                f"{store}/{name} and {first} must have the same columns and class names, but have "
                f"{_differences(columns, expected)}, and {_differences(expected, columns)}"
            )
    return expected


def _differences(columns: _Columns, others: _Columns) -> str:
    """Describe what differs."""
    if columns[:4] != others[:4]:
        label = f"labels in {columns.label} ({columns.label_kind})" if columns.label else "no labels"
        return f"images in {columns.image} ({columns.kind}) and {label}"
    names, other_names = columns.names or (), others.names or ()
    odd = [name for number, name in enumerate(names) if other_names[number : number + 1] != (name,)]
    return f"{len(names)} class names" + (f", among them {', '.join(odd[:5])}" if odd else "")

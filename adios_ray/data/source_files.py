"""What the files of a source were when a data set was made from them, and whether they still are."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from adios_ray.data.manifest import Manifest, SourceFiles, read_source_files
from adios_ray.data.plan import descriptions
from adios_ray.data.sources.base import Source
from adios_ray.data.sources.passed_over import first_of
from adios_ray.data.splits import mixed
from adios_ray.errors import DatasetError
from adios_ray.files import sha256
from adios_ray.store import Store

_COMPARED = 32
"""Images of a source that is stored elsewhere whose content is compared."""
_SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64()), ("changed_ns", pa.int64()), ("content", pa.string())])


class SourceFile(NamedTuple):
    """One file of a source.

    Attributes:
        size: Bytes; -1 where there was none.
        changed_ns: Time of its last change in nanoseconds; 0 if unknown, as earlier versions have it at a URI.
        content: Checksum of its content; of a file that holds several images, see ``contained``; empty where it was not
            read.
    """

    size: int
    changed_ns: int
    content: str


def write_files(
    store: Store, name: str, files: Mapping[str, tuple[int, int]], contents: Mapping[str, str]
) -> SourceFiles:
    """Write a table of a source's files beside the shards.

    Args:
        store: The data set.
        name: Name of the table's file.
        files: Size and time of change by name.
        contents: Checksums of the content of those that were read.

    Returns:
        Its entry in the manifest.
    """
    names = sorted(files)
    columns = [
        pa.array(names, pa.string()),
        pa.array([files[item][0] for item in names], pa.int64()),
        pa.array([files[item][1] for item in names], pa.int64()),
        pa.array([contents.get(item, "") for item in names], pa.string()),
    ]
    with store.writing(name) as path:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        return SourceFiles(file=name, bytes=path.stat().st_size, sha256=sha256(path))


def read_files(store: Store, entry: SourceFiles) -> dict[str, SourceFile]:
    """Read the table that ``write_files`` wrote, by name.

    Raises:
        DatasetError: If it is missing, or not as in the manifest.
    """
    table = pa.ipc.open_file(pa.BufferReader(read_source_files(store, entry))).read_all()
    name, size, changed, content = (column.to_pylist() for column in table.columns)
    return {n: SourceFile(s, t, c) for n, s, t, c in zip(name, size, changed, content, strict=True)}


def check_unchanged(
    store: Store, manifest: Manifest, source: Source, files: Mapping[str, tuple[int, int]], moved: bool, content: bool
) -> None:
    """Compare the files of a source with those that a data set was made from.

    Args:
        store: The data set.
        manifest: Its manifest.
        source: The source.
        files: Its files as they are now.
        moved: Whether the source is stored elsewhere now: copies have other times of change, which count for nothing;
            the content of some images is compared in their place.
        content: Whether to compare checksums of the content of images too. That of other files, and labels, are in any
            case.

    Raises:
        DatasetError: If files are new, removed or changed, with the first of them, or the classes are others.
    """
    found = _changes(store, manifest.source_files, source, files, moved, content) if manifest.source_files else []
    if manifest.classes != source.classes:
        odd = sorted({*manifest.classes} ^ {*source.classes})
        found.append(f"other classes ({first_of(odd)})" if odd else "another order of the classes")
    if found:
        raise DatasetError(
            f"the source has changed since {store} was made: {'; '.join(found)}; choose another --output, or remove "
            "this one"
        )


def contained(source: Source) -> dict[str, str]:
    """Compute a checksum of the items of each file that holds several: where they are in it, and their labels."""
    items: dict[str, set[str]] = defaultdict(set)
    for item in chain.from_iterable(source.listing().values()):
        if (file := source.file_of(item)) != item:
            items[file].add(item)
    return {file: hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() for file, found in items.items()}


def _has_changed(before: SourceFile, size: int, changed_ns: int, timed: bool) -> bool:
    """Compare size and, if it counts and is known of both, time of change."""
    timed = timed and before.changed_ns != 0 and changed_ns != 0
    return before.size != size or (timed and before.changed_ns != changed_ns)


def _changes(
    store: Store,
    entry: SourceFiles,
    source: Source,
    files: Mapping[str, tuple[int, int]],
    moved: bool,
    content: bool,
) -> list[str]:
    """Say which files are new, removed or changed."""
    table, described_in, inside = read_files(store, entry), descriptions(source, files), contained(source)
    common = files.keys() & table.keys()
    changed = {name for name in common if _has_changed(table[name], *files[name], timed=not moved)}
    unsure = {name for name in common - changed if table[name].content}  # earlier versions have fewer
    single = unsure - described_in - inside.keys()  # files of one image each
    # A hash spreads them over the whole source.
    images = single if content else mixed([*single])[:_COMPARED] if moved else ()
    read = (unsure & described_in).union(images)
    changed |= {name for name in read if source.checksum(name) != table[name].content}
    if not changed & described_in:  # else labels follow from those
        changed |= {name for name in unsure & inside.keys() if inside[name] != table[name].content}
    holding = {source.file_of(item) for item in chain.from_iterable(source.listing().values())}
    found = {
        "new": sorted(holding - table.keys()),  # earlier versions listed no other files
        "removed": sorted(table.keys() - files.keys()),
        "changed": sorted(changed),
    }
    return [f"{len(names):,} {what} ({first_of(names)})" for what, names in found.items() if names]

"""The place of a data set before it is prepared: free, left unfinished, or finished by the same recipe."""

from collections.abc import Callable, Mapping
from typing import Any

from adios_ray.data.claim import PREPARING
from adios_ray.data.manifest import MAKE_AGAIN, MANIFEST_NAME, Manifest, read_manifest
from adios_ray.data.plan import PERMISSIONS
from adios_ray.data.source_files import check_unchanged
from adios_ray.data.sources.base import Source
from adios_ray.errors import DatasetError
from adios_ray.retry import promptly
from adios_ray.store import Store

PARTS = ".parts"
"""Folder of what is known of the shards until the manifest is written."""


def find_finished(
    store: Store,
    recipe: Mapping[str, Any],
    source: Source,
    files: Mapping[str, tuple[int, int]],
    check_content: bool,
    say: Callable[[str], None],
) -> Manifest | None:
    """Read the manifest of a data set that is there already, of the same recipe and unchanged files.

    Says so if they are taken for the same although they are stored elsewhere.

    Raises:
        DatasetError: If it was made by another recipe, or the source has changed since.
    """
    if MANIFEST_NAME not in store.names():
        return None
    manifest = _made_by(store, recipe)
    _check_complete(store, manifest)
    moved = manifest.recipe.get("source") != recipe.get("source")
    check_unchanged(store, manifest, source, files, moved, check_content)
    if moved:
        say(f"note: {store} was made from {manifest.recipe.get('source')}, for which {recipe.get('source')} is taken")
    store.remove(PARTS)  # which a process that was killed after it wrote the manifest has left
    return manifest


def _check_complete(store: Store, manifest: Manifest) -> None:
    """Raise a DatasetError if a shard is missing or, on this machine, has another size."""
    present = store.names()
    for entry in manifest.entries:
        # Not of a remote one: each size is a request.
        if entry.file not in present or (store.local is not None and store.size(entry.file) != entry.bytes):
            raise DatasetError(f"{store}/{entry.file} is missing or not as in the manifest. {MAKE_AGAIN}")


def _made_by(store: Store, recipe: Mapping[str, Any]) -> Manifest:
    """Read the manifest that is there already, if the same recipe made it, wherever the source was stored."""
    manifest = read_manifest(str(store))
    keys = sorted((recipe.keys() | manifest.recipe.keys()) - {"source"} - PERMISSIONS)
    if odd := [key for key in keys if recipe.get(key) != manifest.recipe.get(key)]:
        differences = ", ".join(f"{key} {manifest.recipe.get(key)!r}, not {recipe.get(key)!r}" for key in odd)
        raise DatasetError(f"{store} holds another data set ({differences}); choose another --output")
    return manifest


def check_free(store: Store) -> None:
    """Refuse a place that holds something else.

    Raises:
        DatasetError: If it is neither empty, nor a data set, nor what an interrupted call left, or does not answer.
    """
    try:
        present = promptly(store.names)
    except OSError as error:
        raise DatasetError(f"{store} cannot be read: {error.strerror or error}") from error
    # A claim's draft may be there for a moment, and stays where its process was killed in it.
    names = {name for name in present if not name.endswith(".tmp")} - {PREPARING.file}
    if names and PARTS not in names and MANIFEST_NAME not in names:
        raise DatasetError(f"{store} is not empty and not an unfinished data set; choose another --output")

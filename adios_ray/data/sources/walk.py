"""Finding the image files below a folder, with an account of every other file there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adios_ray.data.image_formats import EXTENSIONS, RAW_EXTENSIONS, SNIFFED_BYTES, sniff
from adios_ray.data.sources.passed_over import PassedOver
from adios_ray.errors import DatasetError
from adios_ray.store import Store, as_text

HIDDEN = "hidden"
TOOLS = "folder of a file system or a tool"
RAW = "raw file of a camera"
NO_IMAGE = "not an image"
BROKEN_LINK = "broken link"
NO_FILE = "not a regular file"

TOOL_FOLDERS = frozenset(
    name.casefold()
    for name in (
        *("@eaDir", "#recycle", "@Recycle", "@Recently-Snapshot", "#snapshot"),  # network storage
        *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found", "FOUND.000"),  # file systems
        *("__MACOSX", "__pycache__", "_thumbnails", "thumbnails.dir"),  # archives and tools
    )
)


@dataclass
class Walk:
    """What is below a folder.

    Attributes:
        images: Paths of image files relative to the folder, with "/", in no particular order.
        passed_over: All other files.
        found: Number of all files.
        empty: Folders without any entry.
    """

    images: list[str] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)
    found: int = 0
    empty: list[str] = field(default_factory=list)


def walk(root: Path | str) -> Walk:
    """Find all image files below a folder, or a URI. Links are followed, but none to a folder that holds the link.

    A file is an image by its ending; a file without a known ending, by its first bytes.

    Raises:
        DatasetError: If a folder cannot be read, or a name is not UTF-8.
    """
    found = Walk()
    if isinstance(root, Path):
        _descend(root, "", (), None, found)
    else:
        _list(Store(root), found)
    return found


def _list(store: Store, found: Walk) -> None:
    """Take in what is below a URI."""
    for item, size in sorted(store.sizes().items()):
        *folders, name = item.split("/")
        reasons = [_reason_of_name(folder, is_folder=True) for folder in folders] + [_reason_of_name(name, False)]
        why = next(filter(None, reasons), None)
        found.found += 1
        if why is None and (_has_image_ending(name) or _begins_an_image(store, item, size)):
            found.images.append(item)
        else:
            found.passed_over.add(why or NO_IMAGE, item)


def _begins_an_image(store: Store, item: str, size: int) -> bool:
    """Look at the first bytes of an object; an empty one, such as marks a folder, has none that could be asked for."""
    try:
        return size > 0 and sniff(store.read(item, 0, SNIFFED_BYTES)) is not None
    except OSError as error:
        raise DatasetError(f"{store}/{item} cannot be read: {error}") from error


def _descend(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], reason: str | None, found: Walk) -> None:
    """Take in what is below ``folder``; with a reason, as passed over.

    Args:
        folder: Where to look.
        prefix: Its path relative to the root, empty or ending in "/".
        above: Device and inode of the folders on the way here.
        reason: Why everything here is passed over, if it is.
        found: Filled in.
    """
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in above:
            return  # a link back to a folder on the way here, whose files are counted where they are
        entries = list(_entries(folder))
    except OSError as error:
        if reason is not None:
            return  # such as lost+found, which belongs to root: nothing in it is anybody's image
        raise DatasetError(f"{folder} cannot be read: {error.strerror or error}") from error
    if not entries and reason is None:
        found.empty.append(prefix.rstrip("/"))
    above = (*above, (status.st_dev, status.st_ino))
    for name, is_folder, is_file in entries:
        item = as_text(f"{prefix}{name}", DatasetError)
        why = reason or _reason_of_name(name, is_folder)
        if is_folder:
            _descend(folder / name, f"{item}/", above, why, found)
            continue
        found.found += 1
        if why is None and not is_file:
            found.passed_over.add(NO_FILE if os.path.exists(folder / name) else BROKEN_LINK, item)
        elif why is None and _is_image(folder / name):
            found.images.append(item)
        else:
            found.passed_over.add(why or NO_IMAGE, item)


def _entries(folder: Path) -> Iterator[tuple[str, bool, bool]]:
    """Name, whether it is a folder, whether it is a file; links by what they lead to."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                yield entry.name, entry.is_dir(), entry.is_file()
            except OSError:
                if not entry.is_symlink():
                    raise  # an input/output error of the storage: the folder cannot be read
                yield entry.name, False, False  # a link to itself


def _reason_of_name(name: str, is_folder: bool) -> str | None:
    if is_folder and name.casefold() in TOOL_FOLDERS:
        return TOOLS
    if name.startswith("."):
        return HIDDEN
    return RAW if not is_folder and name.lower().endswith(RAW_EXTENSIONS) else None


def _is_image(path: Path) -> bool:
    if _has_image_ending(path.name):
        return True
    try:
        with path.open("rb") as file:
            return sniff(file.read(SNIFFED_BYTES)) is not None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error


def _has_image_ending(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)

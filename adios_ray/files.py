"""Atomic writes, and files of lines that survive a crash of the process that appends to them."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adios_ray.errors import ConfigError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, for a file or a directory; renamed at the end of the block.

    A file or directory at ``path`` is replaced. After an exception, the draft is removed. What a killed process leaves
    behind is hidden and ends in ``.tmp``.

    Raises:
        OSError: If storage fails; it names ``path``, not the draft.
    """
    # In the same directory, since renaming is atomic only within one file system. A process ID would not do: others
    # that write the same path may run on another node, and have the same.
    writer = secrets.token_hex(4)
    draft, old = (path.with_name(f".{path.name}.{writer}.{kind}tmp") for kind in ("", "old."))
    try:
        yield draft
        # A directory can only be renamed onto an empty one. The old one is renamed, since one that is removed while the
        # process is killed would look whole; between the two renamings there is none.
        if draft.is_dir() and path.is_dir():
            os.replace(path, old)
        os.replace(draft, path)
    except OSError as error:
        if str(error.filename) == str(draft):
            error.filename = str(path)
        raise
    finally:
        _remove(draft)
        if old.exists() and not path.exists():  # whatever interrupted the exchange
            os.replace(old, path)
        _remove(old)


def atomic_write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: readers see all of it or nothing.

    Raises:
        FileNotFoundError: If its folder does not exist. Files of a run are written like this: while storage is
            unmounted, a folder created in its place would take what is written, and lose it.
        OSError: If storage fails.
    """
    with atomic_path(path) as draft:
        draft.write_bytes(content)


def expand_home(path: str | Path) -> Path:
    """Replace a leading ``~`` or ``~USER`` by the user's home directory.

    Raises:
        ConfigError: If there is none, as in a container whose user has neither a name nor ``HOME``.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no such home directory: write the whole path, or set HOME") from None


def write_output(path: Path, content: bytes) -> None:
    """Write a file that a user has named, as ``atomic_write`` does; its folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content)


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder."""
    for draft in folder.glob(".*.tmp"):
        _remove(draft)


def check_writable(folder: Path) -> None:
    """Check that a folder can be written to, with a temporary file of one mebibyte.

    Raises:
        OSError: If it cannot.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(2**20))


def append_line(path: Path, line: str) -> None:
    """Append one line to an existing file; a last line that a crash left incomplete is dropped first.

    Raises:
        OSError: If storage fails, or the file does not exist.
    """
    # "rb+" never creates the file: unmounted storage leaves an empty folder, and a new file in it would be lost when
    # storage is mounted again.
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read() != b"\n":
                end = file.truncate(len(complete_lines(path)))
        file.seek(end)
        file.write(line.encode() + b"\n")


def json_line(values: Mapping[str, Any]) -> str:
    """Write plain values as one line of JSON, which has no word for numbers that are not finite: they become null."""
    return json.dumps(json.loads(json.dumps(values), parse_constant=lambda _: None))


def complete_lines(path: Path) -> bytes:
    """Read a file of lines up to its last newline; empty if there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def sha256(path: Path) -> str:
    """Compute the SHA-256 checksum of a file, in hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""Files that are whole or not there, whatever stops the process that writes them."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Name of a draft beside ``path``, for a file or a directory; renamed when the block ends well, else removed.

    What lies at ``path`` is replaced. A draft that a killed process left is hidden, and ends in ``.tmp``.

    Raises:
        OSError: If storage refuses it.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(draft)
    try:
        yield draft
        if draft.is_dir():
            _remove(path)
        os.replace(draft, path)
    finally:
        _remove(draft)


def atomic_write(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step, so that no reader ever sees half of it; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        draft.write_bytes(content)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes were writing into a folder."""
    for draft in folder.glob(".*.tmp"):
        _remove(draft)


def check_writable(folder: Path) -> None:
    """Write a mebibyte into a folder, and take it away again.

    Raises:
        OSError: If that cannot be done.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(2**20))


def append_line(path: Path, line: str) -> None:
    """Append one line to a file that only grows; if its last line was cut off by a crash, that is dropped first.

    Raises:
        OSError: If storage refuses it, or the file is not there: where storage has gone away and left an empty folder,
            a new file would be lost.
    """
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read() != b"\n":
                end = file.truncate(len(complete_lines(path)))
        file.seek(end)
        file.write(line.encode() + b"\n")


def complete_lines(path: Path) -> bytes:
    """Content of a file of lines up to its last newline; empty where there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal.

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

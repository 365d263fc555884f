"""Checkpoints: written aside and renamed, checksummed, read without executing anything they contain."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from adios_ray.errors import CheckpointError
from adios_ray.files import sha256, written_whole

STATE_FILE = "state.pt"
META_FILE = "meta.json"


class Pointer(BaseModel):
    """Where a checkpoint lies and what its bytes must be."""

    path: Path
    """Directory of the checkpoint."""
    sha256: str
    """Checksum of its state file."""


def save_checkpoint(directory: Path, state: dict[str, Any], meta: dict[str, Any]) -> Pointer:
    """Write a checkpoint that is either whole or not there.

    Args:
        directory: Where it is to lie; an older one of that name is replaced.
        state: Tensors, numbers and text, in nested dictionaries and lists.
        meta: JSON values for people and tools; the checksum is added.

    Raises:
        OSError: If storage refuses it; nothing of it is left then.
    """
    content = io.BytesIO()
    torch.save(state, content)  # into memory: writing to a full disk it would raise no OSError, but its own error
    checksum = hashlib.sha256(content.getbuffer()).hexdigest()
    with written_whole(directory) as draft:
        draft.mkdir(parents=True)
        (draft / STATE_FILE).write_bytes(content.getbuffer())
        (draft / META_FILE).write_text(json.dumps({**meta, "sha256": checksum}, indent=1))
    return Pointer(path=directory, sha256=checksum)


def load_checkpoint(pointer: Pointer, device: torch.device) -> dict[str, Any]:
    """Read the state of a checkpoint.

    Raises:
        CheckpointError: If it is missing or its bytes are not those that were written.
    """
    if problem := damage(pointer):
        raise CheckpointError(problem)
    file = pointer.path / STATE_FILE
    state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    return state


def damage(pointer: Pointer) -> str | None:
    """What keeps a checkpoint from being read here, in words; None where it is as it was written."""
    file = pointer.path / STATE_FILE
    if not file.is_file():
        return f"checkpoint {file} does not exist"
    if not _is_whole(file, pointer.sha256):
        return f"checkpoint {file} is damaged: its checksum is not the one it was saved with"
    return None


def newest_whole(folder: Path, before: str | None = None) -> Pointer | None:
    """The newest undamaged ``epoch_*`` of a folder, older than ``before`` if given; None if there is none."""
    names = (path.name for path in folder.glob("epoch_*"))
    for directory in (folder / name for name in sorted(names, reverse=True) if before is None or name < before):
        try:
            checksum = str(json.loads((directory / META_FILE).read_text())["sha256"])
        except (OSError, ValueError, KeyError):
            continue
        if _is_whole(directory / STATE_FILE, checksum):
            return Pointer(path=directory, sha256=checksum)
    return None


def _is_whole(file: Path, checksum: str) -> bool:
    return file.is_file() and sha256(file) == checksum


def open_checkpoint(directory: Path, device: torch.device) -> dict[str, Any]:
    """Read the state of a checkpoint by its directory alone, against the checksum that lies beside it.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    try:
        meta = json.loads((directory / META_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} is no checkpoint: {META_FILE} cannot be read ({error})") from error
    return load_checkpoint(Pointer(path=directory, sha256=str(meta.get("sha256"))), device)

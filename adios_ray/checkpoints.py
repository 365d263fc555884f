"""Checkpoints: written atomically, checksummed, and read without executing anything that they contain.

A checkpoint is a directory of two files: a safetensors file with all state, and a JSON file that describes it.
"""

import hashlib
import io
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from adios_ray.errors import CheckpointError
from adios_ray.files import atomic_path, sha256
from adios_ray.run_directory import newest_epochs
from adios_ray.validation import read_json

if TYPE_CHECKING:  # imported in functions: processes that only pass pointers on, such as trials' actors, need no torch
    import torch

STATE_FILE = "state.safetensors"
EARLIER_STATE_FILE = "state.pt"
"""State in torch's own format, as earlier versions wrote it."""
STATE_FILES = (STATE_FILE, EARLIER_STATE_FILE)
META_FILE = "meta.json"
KEPT_CHECKPOINTS = 2
"""Newest checkpoints kept of each training: the second serves if the first is damaged."""


class Pointer(BaseModel, frozen=True):
    """Where a checkpoint is stored, and the checksum of its content."""

    path: Path
    """Directory of the checkpoint."""
    sha256: str
    """Checksum of its state file."""
    before: "Pointer | None" = None
    """The checkpoint that training continued to reach this one, without its own; it serves if this one is damaged.

    After an exploit it is the donor's: the trial's own last one has the weights that were replaced.
    """

    def after(self, before: "Pointer | None") -> "Pointer":
        """Return the pointer with what it continued."""
        return self.model_copy(update={"before": before and before.model_copy(update={"before": None})})

    def moved(self, move: Callable[[Path], Path]) -> "Pointer":
        """Return the pointer with its paths changed."""
        return self.model_copy(update={"path": move(self.path), "before": self.before and self.before.moved(move)})

    @property
    def chain(self) -> "list[Pointer]":
        """The pointer, and that of the checkpoint before it if there is one."""
        return [self, *(self.before.chain if self.before else ())]

    @property
    def paths(self) -> list[Path]:
        """The directories of the checkpoint and of the one before it."""
        return [pointer.path for pointer in self.chain]


def save_checkpoint(directory: Path, state: dict[str, Any], meta: dict[str, Any]) -> Pointer:
    """Write a checkpoint, atomically.

    Args:
        directory: Directory of the checkpoint; an older one of that name is replaced. The folder that it is in is
            created, but none above that, as in ``atomic_write``.
        state: Tensors, numbers and text, in nested dictionaries and lists.
        meta: JSON values for people and tools; the checksum is added.

    Raises:
        OSError: If storage fails; no part of the checkpoint is left behind.
    """
    from adios_ray.tensor_files import pack_nested

    content = pack_nested(state)
    checksum = hashlib.sha256(content).hexdigest()
    directory.parent.mkdir(exist_ok=True)
    with atomic_path(directory) as draft:
        draft.mkdir()
        (draft / STATE_FILE).write_bytes(content)
        (draft / META_FILE).write_text(json.dumps({**meta, "sha256": checksum}, indent=1))
    return Pointer(path=directory, sha256=checksum)


def load_checkpoint(pointer: Pointer, device: "torch.device") -> dict[str, Any]:
    """Read the state of a checkpoint. Tuples have become lists.

    Raises:
        CheckpointError: If it is missing, its bytes are not those that were written, or they are no state.
    """
    files = _state_files(pointer)
    for file in files:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() == pointer.sha256:
            return _decode(file, content, device)
    raise CheckpointError(_fault(pointer, files))


def damage(pointer: Pointer) -> str | None:
    """Describe why a checkpoint cannot be read; None if it is intact."""
    files = _state_files(pointer)
    return None if any(sha256(file) == pointer.sha256 for file in files) else _fault(pointer, files)


def _state_files(pointer: Pointer) -> list[Path]:
    """List the state files of a checkpoint.

    An epoch that was published at a URI by an earlier version, and is trained again by this one, has both there.
    """
    return [file for name in STATE_FILES if (file := pointer.path / name).is_file()]


def _fault(pointer: Pointer, files: Sequence[Path]) -> str:
    """Say what is wrong with a checkpoint of which no state file has the checksum."""
    if not files:
        return f"checkpoint {pointer.path / STATE_FILE} does not exist"
    return f"checkpoint {files[0]} is damaged: its checksum is not the one it was saved with"


def _decode(file: Path, content: bytes, device: "torch.device") -> dict[str, Any]:
    """Decode the content of a state file.

    Raises:
        CheckpointError: If it is no state.
    """
    import torch
    from safetensors import SafetensorError

    from adios_ray.tensor_files import unpack_nested

    try:
        if file.name == EARLIER_STATE_FILE:
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        else:
            state = unpack_nested(content, device)
    except (ValueError, RecursionError, EOFError, struct.error, UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {file} is not the state of a training: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {file} is not the state of a training, but a {type(state).__name__}")
    return state


def newest_intact(folder: Path) -> Pointer | None:
    """Find the newest undamaged ``epoch_*`` of a folder; None if there is none."""
    for directory in newest_epochs(folder):
        try:
            pointer = _recorded(directory)
        except (OSError, CheckpointError):  # an older one will do
            continue
        if damage(pointer) is None:
            return pointer
    return None


class _Meta(BaseModel):
    """The part of ``meta.json`` that is read; the rest is for people and tools."""

    sha256: str


def _recorded(directory: Path) -> Pointer:
    """Make a pointer to a checkpoint, with the checksum that is stored beside it.

    Raises:
        CheckpointError: If the checksum cannot be read.
    """
    return Pointer(path=directory, sha256=read_json(_Meta, directory / META_FILE, CheckpointError).sha256)


def open_checkpoint(directory: Path, device: "torch.device") -> dict[str, Any]:
    """Read the state of a checkpoint by its directory alone, with the checksum that is stored beside it.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    try:
        pointer = _recorded(directory)
    except (OSError, CheckpointError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{directory} is not a checkpoint: {META_FILE} cannot be read ({reason})") from error
    return load_checkpoint(pointer, device)

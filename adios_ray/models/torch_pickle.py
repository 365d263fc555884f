"""Reading of tensors from a foreign torch checkpoint, without executing anything that it contains.

The checkpoint's pickle gets stand-ins for torch's storage types and for the functions that rebuild tensors. These only
describe tensors; numbers are read from the raw storages of the zip archive. ``torch.load(weights_only=True)`` would not
do: it refuses any pickle that names other classes, and Lightning's checkpoints do.
"""

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adios_ray.errors import CheckpointError, ConfigError
from adios_ray.restricted_pickle import Placeholder, RestrictedUnpickler

STATE_DICT = "state_dict"
_PICKLE = "data.pkl"
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class StoredValues(NamedTuple):
    """A storage: numbers of type ``dtype`` in the archive's file ``data/<key>``."""

    dtype: torch.dtype
    key: str


class StoredTensor(NamedTuple):
    """A view of a storage, by the arguments of ``torch.as_strided``; not yet checked."""

    values: StoredValues
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _TensorView(Placeholder):
    """Stands in for ``torch._utils._rebuild_tensor`` and its second version."""

    def __call__(self, values: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
        """Describe the tensor; its numbers are read later, if it is part of the state."""
        return StoredTensor(values, offset, size, stride)


class _Parameter(Placeholder):
    """Stands in for ``torch._utils._rebuild_parameter`` and its variant with state."""

    def __call__(self, tensor: Any, *_: Any) -> Any:
        """Return the parameter's tensor."""
        return tensor


class _TensorUnpickler(RestrictedUnpickler):
    """Unpickles torch's pickle, with descriptions in place of tensors."""

    def persistent_load(self, pid: Any) -> StoredValues:
        """Describe the storage that torch wrote as ("storage", type, key, location, number of elements)."""
        _, dtype, key, *_ = pid
        return StoredValues(dtype, key)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{("torch._utils", name): _TensorView() for name in ("_rebuild_tensor", "_rebuild_tensor_v2")},
    **{("torch._utils", name): _Parameter() for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")},
}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a Lightning checkpoint's ``state_dict``, contiguous, on the CPU, with their types.

    Args:
        path: File written by ``torch.save`` of torch 1.6 or later.

    Raises:
        ConfigError: If it is not such a file or has no ``state_dict``.
        CheckpointError: If it is damaged.
    """
    if not path.is_file():
        raise ConfigError(f"checkpoint {path} does not exist")
    if not zipfile.is_zipfile(path):
        raise ConfigError(
            f"checkpoint {path} is not a complete zip archive, as torch writes it since version 1.6: it is "
            "truncated, or was written by an older torch; download it again, or save it again with a newer torch"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            root = next((name[: -len(_PICKLE)] for name in archive.namelist() if name.endswith(f"/{_PICKLE}")), None)
            if root is None:
                raise ConfigError(f"checkpoint {path} is a zip archive, but not one of torch: it has no {_PICKLE}")
            _check_stored(archive.getinfo(root + _PICKLE))
            content = _TensorUnpickler(archive.read(root + _PICKLE), _STAND_INS).load()
            # The methods of dict itself, here and below: a pickle can set attributes of an ordered dictionary.
            state = dict.get(content, STATE_DICT) if isinstance(content, dict) else None
            if not isinstance(state, dict):
                raise ConfigError(f"checkpoint {path} has no {STATE_DICT}: it is not a checkpoint of Lightning")
            return _read_tensors(archive, root, state)
    except ConfigError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything; nothing of it was executed
        raise CheckpointError(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def _check_stored(entry: zipfile.ZipInfo) -> None:
    """Raise a ValueError for a compressed entry: some kilobytes can expand to fill the memory."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed, which torch never does")


def _read_tensors(archive: zipfile.ZipFile, root: str, state: dict[Any, Any]) -> dict[str, Tensor]:
    """Read every stored tensor among the values of ``state``; a shared storage is read once."""
    storages: dict[StoredValues, Tensor] = {}
    tensors = {}
    for name, stored in dict.items(state):
        if not isinstance(stored, StoredTensor):
            continue
        if (values := stored.values) not in storages:
            entry = archive.getinfo(f"{root}data/{values.key}")
            _check_stored(entry)
            content = bytearray(archive.read(entry))
            flat = torch.frombuffer(content, dtype=values.dtype) if content else torch.empty(0, dtype=values.dtype)
            storages[values] = flat
        tensors[str(name)] = _view(storages[values], stored)
    return tensors


def _view(flat: Tensor, stored: StoredTensor) -> Tensor:
    """Copy a tensor out of its storage; raise ValueError if it exceeds the storage's bounds."""
    # Checked by hand, since the numbers come from the file; bool is excluded by its type, as an int that it is.
    whole = (stored.offset, *stored.size, *stored.stride)
    if len(stored.size) != len(stored.stride) or not all(type(number) is int and number >= 0 for number in whole):
        raise ValueError(f"a tensor has size {stored.size}, stride {stored.stride} and offset {stored.offset}")
    if 0 in stored.size:
        return torch.empty(stored.size, dtype=flat.dtype)
    last = stored.offset + sum((n - 1) * step for n, step in zip(stored.size, stored.stride, strict=True))
    if last >= len(flat):
        raise ValueError(f"a tensor ends at element {last} of a storage of {len(flat)}")
    return flat.as_strided(stored.size, stored.stride, stored.offset).clone(memory_format=torch.contiguous_format)

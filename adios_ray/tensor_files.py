"""Tensors and text as the bytes of a safetensors file, in which nothing can be executed."""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

NESTED = "nested"
"""Key of the metadata with a nested value, without its tensors, as JSON."""


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Encode tensors of any device, layout and sharing."""
    # safetensors takes only contiguous tensors, which channels-last ones are not, and none that share memory.
    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content: bytes = safetensors.torch.save(plain, dict(metadata))
    return content if len(metadata) < 2 else _with_sorted_metadata(content)


def _with_sorted_metadata(content: bytes) -> bytes:
    """Put the metadata in the order of their keys: the library's is random, and bytes are compared by checksum."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= length
    return content[:8] + text.ljust(length) + content[8 + length :]


def pack_nested(value: Any) -> bytes:
    """Encode tensors, numbers, text and None in nested dictionaries and lists.

    Raises:
        ValueError: If the keys of two tensors make the same name, as those of ``{"a/b": x, "a": {"b": y}}`` do.
    """
    tensors: dict[str, Tensor] = {}
    nested = json.dumps(_without_tensors(value, "", tensors))
    return pack(tensors, {NESTED: nested})


def unpack_nested(content: bytes, device: torch.device) -> Any:
    """Decode what ``pack_nested`` has encoded, with its tensors on a device. Tuples have become lists.

    Raises:
        ValueError: If it is something else.
    """
    # The library reads metadata from paths alone. The file begins with the length of its header, which is JSON.
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if NESTED not in metadata:
        raise ValueError(f"the metadata has no {NESTED!r}")
    tensors = {name: tensor.to(device) for name, tensor in safetensors.torch.load(content).items()}
    return _with_tensors(json.loads(metadata[NESTED]), tensors)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Describe a value as JSON, and collect its tensors in ``tensors`` by name.

    A tensor becomes its name, and a dictionary its items, since keys of JSON are text.
    """
    if isinstance(value, Tensor):
        if name in tensors:
            raise ValueError(f"two tensors have the name {name}")
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _without_tensors(each, f"{name}/{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(each, f"{name}/{number}", tensors) for number, each in enumerate(value)]
    return value


def _with_tensors(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Make the value that ``_without_tensors`` has described."""
    if isinstance(described, list):
        return [_with_tensors(each, tensors) for each in described]
    if not isinstance(described, dict):
        return described
    if "tensor" in described:
        return tensors[described["tensor"]]
    return {key: _with_tensors(each, tensors) for key, each in described["items"]}

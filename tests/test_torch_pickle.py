"""The reader of foreign checkpoints: tensors are complete, and nothing is executed."""

import builtins
import operator
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adios_ray.errors import CheckpointError
from adios_ray.models.torch_pickle import read_state_dict


class Attack:
    """An object that is pickled as the call of a function; arguments may be attacks too."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call ``function`` with ``arguments`` when unpickled."""
        self.call = function, arguments

    def __call__(self) -> None:
        """Let pickle accept an attack as a function."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the function and its arguments."""
        return self.call


def attacks(marker: Path) -> dict[str, object]:
    """Build objects that create ``marker`` when an ordinary unpickler reads them."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    system = Attack(getattr, Attack(__import__, "os"), "system")
    return {
        "os.system": Attack(os.system, command),
        "eval": Attack(builtins.eval, code),
        "exec": Attack(builtins.exec, code),
        "getattr": Attack(system, command),
        "methodcaller": Attack(operator.methodcaller("system", command), Attack(__import__, "os")),
    }


@pytest.mark.parametrize("name", attacks(Path()))
@pytest.mark.parametrize("place", ["value", "beside", "attribute"])
def test_nothing_in_a_checkpoint_is_executed(name: str, place: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    attack = attacks(marker)[name]
    state: OrderedDict[str, Any] = OrderedDict(weight=torch.ones(2))
    if place == "value":
        state["evil"] = attack
    if place == "attribute":
        vars(state)["_metadata"] = attack
    torch.save({"state_dict": state, "hyper_parameters": attack if place == "beside" else None}, path)
    assert list(read_state_dict(path)) == ["weight"] and not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "an ordinary unpickler executes it"


def forge(path: Path, program: bytes, storage: bytes = b"", compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a checkpoint of this pickle and one storage of this content."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", storage)
    return path


@pytest.mark.parametrize(
    "call",
    [
        "cos\nsystem\n(S'touch {}'\ntR",  # GLOBAL and REDUCE
        "(S'touch {}'\nios\nsystem\n",  # INST
        "(cos\nsystem\nS'touch {}'\no",  # OBJ
        "cbuiltins\ngetattr\n(cos\n__dict__\nS'get'\ntR(S'system'\ntR(S'touch {}'\ntR",
    ],
)
def test_hand_written_pickles_are_not_executed(call: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    program = ("(dS'state_dict'\n(dsS'evil'\n" + call.format(marker) + "s.").encode()
    assert read_state_dict(forge(tmp_path / "evil.ckpt", program)) == {} and not marker.exists()
    pickle.loads(program)
    assert marker.exists(), "an ordinary unpickler executes it"


def test_methods_cannot_be_replaced(tmp_path: Path) -> None:
    dictionary = "(ccollections\nOrderedDict\no(dS'items'\ncos\nsystem\nsb"  # BUILD with an attribute "items"
    program = f"(dS'state_dict'\n{dictionary}s.".encode()
    assert callable(vars(pickle.loads(program)["state_dict"])["items"])
    assert read_state_dict(forge(tmp_path / "evil.ckpt", program)) == {}


class Forged:
    """An object that is pickled as torch's call that rebuilds a tensor from storage 0."""

    def __init__(self, *arguments: Any) -> None:
        """Take offset, size and stride."""
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the call as torch writes it."""
        return torch._utils._rebuild_tensor_v2, (Storage(), *self.arguments, False, OrderedDict())


class Storage:
    """An object that is pickled as a persistent reference."""


class Pickler(pickle.Pickler):
    """Writes a ``Storage`` as torch writes its own."""

    def persistent_id(self, obj: Any) -> Any:
        """Refer to floats on the CPU in file 0."""
        return ("storage", torch.FloatStorage, "0", "cpu", 6) if isinstance(obj, Storage) else None


def forged_tensor(path: Path, *arguments: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a checkpoint with one tensor of offset, size and stride in a storage of 0, 1, 2, 3, 4, 5."""
    stream = BytesIO()
    Pickler(stream, protocol=2).dump({"state_dict": {"x": Forged(*arguments)}})
    return forge(path, stream.getvalue(), np.arange(6, dtype=np.float32).tobytes(), compression)


def test_tensors_keep_values_strides_and_types(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    assert read_state_dict(forged_tensor(path, 1, (2, 2), (1, 2)))["x"].tolist() == [[1, 3], [2, 4]]
    assert read_state_dict(forged_tensor(path, 5, (3,), (0,)))["x"].tolist() == [5, 5, 5]
    whole = torch.randn(2, 3, 4)
    kept = {
        "part": whole.permute(2, 0, 1)[1:],
        "half": whole.half(),
        "wide": whole.double(),
        "brain": whole.bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "parameter": nn.Parameter(whole[0]),
    }
    torch.save({"state_dict": kept}, path)
    read = read_state_dict(path)
    assert read.keys() == kept.keys()
    for name, values in kept.items():
        assert torch.equal(read[name], values) and read[name].dtype == values.dtype and read[name].is_contiguous()


@pytest.mark.parametrize(
    "arguments",
    [(0, (7,), (1,)), (3, (2, 2), (2, 2)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,)), ("0", (2,), (1,))],
)
def test_tensors_beyond_their_storage_are_damage(arguments: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged: ValueError: a tensor"):
        read_state_dict(forged_tensor(tmp_path / "a.ckpt", *arguments))


def test_other_damage(tmp_path: Path) -> None:
    path = forged_tensor(tmp_path / "a.ckpt", 0, (2,), (1,), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="data.pkl is compressed"):
        read_state_dict(path)
    # The unpickler would reserve 32 GiB for the numbers of objects up to this one.
    with pytest.raises(CheckpointError, match="a pickle of 9 bytes names object 2147483647"):
        read_state_dict(forge(tmp_path / "b.ckpt", b"}r\xff\xff\xff\x7f0}."))
    for program in (b"", b"(dS'state_dict'\n(ds", b"(dS'state_dict'\n(dsN(Nb.", b"cos\nsystem\n(dS'x'\nNsbQ."):
        with pytest.raises(CheckpointError, match="is damaged"):
            read_state_dict(forge(path, program))
    whole = forge(path, b"(dS'state_dict'\n(ds.").read_bytes()
    path.write_bytes(whole.replace(b"PK\x01\x02", b"PK\x01\x00"))  # the central directory's first entry
    with pytest.raises(CheckpointError, match="is damaged: BadZipFile"):
        read_state_dict(path)

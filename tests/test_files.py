"""Atomic files, on storage that really refuses writes."""

import errno
import hashlib
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from adios_ray.checkpoints import STATE_FILE, Pointer, load_checkpoint, save_checkpoint
from adios_ray.errors import CheckpointError
from adios_ray.files import (
    append_line,
    atomic_path,
    atomic_write,
    check_writable,
    complete_lines,
    json_line,
    remove_drafts,
)
from adios_ray.tensor_files import pack_nested, unpack_nested

ONE = torch.ones(1)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let the kernel refuse to grow any file of this process beyond ``size`` bytes."""
    # Unlike a mocked error, this leaves half a file, as a full disk does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_line_of_json_has_null_for_numbers_that_are_not_finite() -> None:
    values = {"a": math.nan, "b": [math.inf, 0.1], "c": {"d": -math.inf, "e": "NaN"}}
    assert json_line(values) == '{"a": null, "b": [null, 0.1], "c": {"d": null, "e": "NaN"}}'


def test_a_refused_file_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", b"old")
    with files_end_at(1000), pytest.raises(OSError, match="too large"):
        atomic_write(tmp_path / "file", bytes(2000))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere" / "file", tmp_path / "folder"):
        with pytest.raises(OSError, match="directory") as error:
            atomic_write(path, b"new")
        assert error.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_refused_checkpoint_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / "epoch_00001"
    pointer = save_checkpoint(directory, {"weights": torch.zeros(10)}, {})
    with files_end_at(10_000), pytest.raises(OSError, match="too large"):
        save_checkpoint(directory, {"weights": torch.zeros(10_000)}, {})
    assert list(tmp_path.iterdir()) == [directory]
    assert load_checkpoint(pointer, torch.device("cpu"))["weights"].equal(torch.zeros(10))
    newer = save_checkpoint(directory, {"weights": torch.ones(10)}, {})
    assert load_checkpoint(newer, torch.device("cpu"))["weights"].equal(torch.ones(10))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "refused"), KeyboardInterrupt("refused")])
def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "folder", os.replace
    path.mkdir()
    (path / "old").touch()

    def refuse(source: Path, target: Path) -> None:
        if source != path and (source / "new").exists():
            assert not path.exists()  # the old one is aside, whole: a kill now leaves nothing that looks whole
            raise error
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(type(error), match="refused"):
        patch.setattr(os, "replace", refuse)
        with atomic_path(path) as draft:
            draft.mkdir()
            (draft / "new").touch()
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["folder", "folder/old"]
    with atomic_path(path) as draft:
        draft.mkdir()
        (draft / "new").touch()
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["folder", "folder/new"]


def test_a_refused_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    atomic_write(path, b"")
    append_line(path, "first")
    with files_end_at(10), pytest.raises(OSError, match="too large"):
        append_line(path, "second")
    assert path.read_bytes() == b"first\nseco" and complete_lines(path) == b"first\n"
    append_line(path, "third")
    assert path.read_bytes() == b"first\nthird\n"


def test_two_writers_with_one_process_id_do_not_share_a_draft(tmp_path: Path) -> None:
    # As on two nodes of a shared disk; the same process has the same ID, too.
    path = tmp_path / "file"
    with atomic_path(path) as first:
        first.write_bytes(b"first")
        with atomic_path(path) as second:
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "file") as draft:
        draft.write_bytes(b"half")
        left = draft.rename(draft.with_suffix(".0.tmp"))  # as a kill leaves it: not cleaned up
        raise KeyboardInterrupt
    (tmp_path / ".epoch_00001.7.tmp").mkdir()
    (tmp_path / ".epoch_00001.7.tmp" / STATE_FILE).write_bytes(b"half")
    atomic_write(tmp_path / "whole", b"whole")
    assert left.exists()
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    remove_drafts(tmp_path / "nowhere")


def test_a_folder_that_takes_no_mebibyte_is_not_writable(tmp_path: Path) -> None:
    check_writable(tmp_path)
    with files_end_at(2**19), pytest.raises(OSError, match="too large"):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [{"a/b": ONE, "a": {"b": ONE}}, {1: ONE, "1": ONE}, {"x": [ONE], "x/0": ONE}])
def test_tensors_whose_names_coincide_are_refused(value: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match="two tensors have the name"):
        pack_nested(value)


@pytest.mark.parametrize("content", [b"", b"junk that is long enough", safetensors.torch.save({"x": torch.ones(1)})])
def test_a_checkpoint_that_holds_no_state_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    pointer = Pointer(path=tmp_path, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} is not the state of a training"):
        load_checkpoint(pointer, torch.device("cpu"))


def test_nested_state_is_read_as_it_was_written() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(4, 3, 2, 2, generator=generator).contiguous(memory_format=torch.channels_last)
    tensors: dict[str, Any] = {
        "shared": [kernel, kernel.flatten()[:3]],
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 5, dtype=torch.uint8),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "flag": torch.tensor([True, False]),
    }
    numbers = {
        "state": {0: {"step": 0.1}, 1: {}},
        "seed": 2**64 - 1,
        "text": "tensor",
        "tensor": None,
        "items": [[True]],
    }
    read = unpack_nested(pack_nested({**numbers, "tensors": tensors, "betas": (0.9, 0.999)}), torch.device("cpu"))
    found = read.pop("tensors")
    assert read == {**numbers, "betas": [0.9, 0.999]} and list(read) == [*numbers, "betas"]
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        pairs = zip(values, found[name], strict=True) if isinstance(values, list) else [(values, found[name])]
        assert all(now.dtype == was.dtype and torch.equal(now, was) for was, now in pairs)

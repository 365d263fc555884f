"""The choice of the Ray cluster that a run joins."""

import socket
from pathlib import Path

import pytest

from adios_ray.backend.cluster import address_to_join


def test_only_a_cluster_that_answers_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "ray" / "ray_current_cluster"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "")  # Ray too treats it as unset
    assert address_to_join() is None
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        note.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert address_to_join() is None
    assert capsys.readouterr().out == ""
    assert address_to_join() == "local"
    assert str(note) in capsys.readouterr().out
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # set by the user: not checked
    assert address_to_join() is None

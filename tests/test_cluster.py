"""The choice of the Ray cluster that a run joins, and what Ray would take minutes to refuse, or refuse in riddles."""

import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import grpc
import pytest
from ray.runtime_env.runtime_env import _merge_runtime_env

from adios_ray.backend import cluster
from adios_ray.backend.cluster import (
    address_to_join,
    connected,
    queue_job,
    submitted_job,
)
from adios_ray.errors import ConfigError, RunError, exit_status
from adios_ray.ray_start import check_temporary_directory, start_ray


@contextmanager
def control_store(refuses: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Answer on loopback what Ray's control store is asked first, or refuse it for its token; yield the address."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if refuses():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    methods = {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which Ray names the running cluster; RAY_ADDRESS is empty, which Ray too treats as unset."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "")
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_only_a_cluster_that_answers_is_joined(
    note: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert address_to_join() == "local"
    with control_store() as address:
        note.write_text(address)
        assert address_to_join() == address
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        assert address_to_join() == address
        monkeypatch.setenv("RAY_ADDRESS", address)
        note.unlink()
        assert address_to_join() == address
    note.write_text(address)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert address_to_join() == "local"
    assert str(note) in capsys.readouterr().out
    for asked in ("auto", address):
        monkeypatch.setenv("RAY_ADDRESS", asked)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS .*{address}.*does not answer .*refused.*unset RAY_ADDRESS"):
            address_to_join()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert address_to_join() == "local"


@pytest.mark.usefixtures("note")
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("ray://head:10001", "server for Ray clients.*ray job submit"),
        ("http://head:8265", "server for Ray clients"),
        ("head", "HOST:PORT"),
        ("head:port", "HOST:PORT"),
        ("127.0.0.1:99999", "does not answer"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(asked: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", asked)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS {asked}.*{reason}"):
        address_to_join()


def test_a_machine_that_is_no_node_of_the_cluster_cannot_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "address_to_join", lambda: "head:6379")
    for name, value in {"ANSWER_S": 0.05, "NODE_S": 0.1, "PAUSE_S": 0.0, "is_alive_in": lambda *_: False}.items():
        monkeypatch.setattr(cluster, name, value)
    keep_variables(monkeypatch)
    for own in (set(), {"a node of another cluster"}):
        monkeypatch.setattr(cluster, "nodes_here", lambda own=own: own)
        with pytest.raises(ConfigError, match="head:6379 has no node on this machine, which cannot drive a run"):
            with connected():
                pytest.fail("connected")
    answers = iter([False, True])  # it registers
    monkeypatch.setattr(cluster, "is_alive_in", lambda *_: next(answers))
    monkeypatch.setattr(cluster, "start_ray", lambda *_, **__: SimpleNamespace(dashboard_url=""))
    monkeypatch.setattr("ray.shutdown", lambda: None)  # another test may have connected to Ray
    with connected():
        assert not list(answers)


@pytest.mark.usefixtures("note")
def test_another_server_at_the_address_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{web.server_port}")
    with pytest.raises(ConfigError, match="something else listens there"):
        address_to_join()
    web.shutdown()
    web.server_close()
    monkeypatch.setattr(cluster, "ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no answer within"):
            address_to_join()


@pytest.mark.parametrize("stored", [True, False])
def test_a_cluster_of_this_machine_is_shown_the_stored_token_and_no_other(
    note: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    shown = []

    def use_stored_token() -> bool:
        if stored:
            shown.append("token")
        return stored

    monkeypatch.setattr(cluster, "use_stored_token", use_stored_token)
    with control_store(refuses=lambda: not shown) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"{address} asks for a token.*RAY_AUTH_MODE=token"):
            address_to_join()
        assert not shown
        monkeypatch.setenv("RAY_ADDRESS", "")
        note.write_text(address)
        if stored:
            assert address_to_join() == address and shown
        else:
            with pytest.raises(ConfigError, match=f"{address} asks for a token"):
                address_to_join()


def start_with(monkeypatch: pytest.MonkeyPatch, init: Callable[..., None]) -> None:
    """Start a cluster whose ``ray.init`` is another function."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    keep_variables(monkeypatch)
    with connected():
        pytest.fail("connected")


def keep_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what ``connected`` would set for the tests after this one too."""
    for name in {**cluster.WORKER_ENVIRONMENT, **cluster.DRIVER_ENVIRONMENT}:
        monkeypatch.setenv(name, "set")


def test_what_ray_says_of_a_failed_start_is_an_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(**_: object) -> NoReturn:
        raise Exception("The current node timed out during startup.")

    with pytest.raises(RunError, match="Ray could not be joined or started: The current node timed out"):
        start_with(monkeypatch, too_slow)


def test_a_home_that_cannot_be_written_to_is_named_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(**_: object) -> NoReturn:
        raise OSError(30, "Read-only file system", "/home/me/.ray")

    with pytest.raises(
        ConfigError, match="Ray cannot use /home/me/.ray: Read-only file system; set HOME to a directory"
    ):
        start_with(monkeypatch, no_home)


def test_sigterm_while_ray_starts_ends_the_run_like_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: object) -> NoReturn:
        sys.exit(signal.SIGTERM)  # as the handler that Ray installs meanwhile

    assert exit_status(lambda: start_with(monkeypatch, stopped), "run it again") == 143
    assert capsys.readouterr().err == "stopped by SIGTERM; run it again\n"


def test_a_client_of_a_cluster_cannot_drive_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    keep_variables(monkeypatch)
    with connected():  # a driver that the caller has connected
        pass
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: True)
    with pytest.raises(ConfigError, match="a Ray client, which cannot drive a run"), connected():
        pytest.fail("connected")


def test_rays_temporary_directory_fits_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 107 - len("/ray/session_2026-11-26_18-14-38_123456_1234567/sockets/plasma_store")
    base = Path("/tmp") / ("x" * (longest - len("/tmp/")))
    monkeypatch.setattr("adios_ray.ray_start.check_writable", lambda folder: None)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setenv("RAY_TMPDIR", str(base))
    check_temporary_directory()
    monkeypatch.setenv("RAY_TMPDIR", f"{base}x")
    with pytest.raises(ConfigError, match="too long by 1 bytes.*Set RAY_TMPDIR to a shorter one"):
        check_temporary_directory()
    with pytest.raises(ConfigError, match="too long by 1 bytes"):
        start_ray("local")
    monkeypatch.undo()
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(ConfigError, match="Not a directory.*set RAY_TMPDIR"):
        check_temporary_directory()
    monkeypatch.setenv("RAY_TMPDIR", "rel")
    with pytest.raises(ConfigError, match=f"rel/ray is a relative path: .* such as {Path.cwd()}/rel$"):
        check_temporary_directory()
    assert not Path("rel").exists()


def test_jobs_are_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (submitted_job(), queue_job()) == (None, "")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert (submitted_job(), queue_job()) == (None, "17")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    assert submitted_job() == queue_job() == "raysubmit_1"


def test_a_jobs_own_variables_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "1", "MINE": "2"}}
    for name, value in {**cluster.WORKER_ENVIRONMENT, **own["env_vars"]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert cluster._worker_variables() == {**cluster.WORKER_ENVIRONMENT, "RAY_CHDIR_TO_TRIAL_DIR": "1"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": own}))
    merged = _merge_runtime_env(own, {"env_vars": cluster._worker_variables()})  # None if Ray would refuse them
    assert merged == {"env_vars": {**cluster.WORKER_ENVIRONMENT, **own["env_vars"]}}

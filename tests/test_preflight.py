"""Checks of a cluster's nodes: what each node compares, and the one error that names those that cannot train."""

import os
import shutil
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from s3 import s3_server
from waiting import TIMEOUT_S

from adios_ray.backend import preflight
from adios_ray.backend.preflight import (
    Expected,
    ask_nodes,
    check_nodes,
    expected_in,
    find_node_problem,
    find_problems,
    probed,
    refuse,
    remove_probes,
    source_checksum,
)
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.errors import ConfigError, DatasetError
from adios_ray.experiment import verdict
from adios_ray.experiment.resources import WorkerResources
from adios_ray.local_cache import CACHE_VARIABLE
from adios_ray.store import Store


@pytest.fixture
def torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let new processes import an empty torch, whose file this is."""
    file = tmp_path / "packages" / "torch.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setenv("PYTHONPATH", str(file.parent), prepend=os.pathsep)
    return file


@pytest.fixture
def expected(objects_dir: Path, tmp_path: Path, torch_file: Path) -> Expected:
    """Provide what the driver sees: a run directory with the folder that it has just made, and a data set."""
    data, folder = tmp_path / "data", tmp_path / "run" / ".nodes-1"
    shutil.copytree(objects_dir, data)
    folder.mkdir(parents=True)
    return expected_in(folder, str(data), gpus=False)


def test_a_node_that_sees_the_same_answers_on_the_storage(expected: Expected) -> None:
    assert find_problems(expected, "node") == []
    assert [path.name for path in Path(expected.folder).iterdir()] == ["node"]


def test_a_node_names_all_that_it_lacks(expected: Expected, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(expected.folder)
    Path(expected.data_dir, "val-00000.arrow").write_bytes(b"cut short")
    monkeypatch.setattr(preflight, "torch_version", lambda: "1.13.1")
    monkeypatch.setattr(preflight, "source_checksum", lambda: "other")
    storage, data, source, torch = find_problems(expected, "node")
    assert storage == f"it does not see the run directory {Path(expected.folder).parent}"
    assert data == f"it lacks 1 shards in {expected.data_dir}, such as val-00000.arrow"
    assert source.startswith("it has another adios_ray, in ")
    assert torch == f"it has torch 1.13.1, not {expected.torch}"
    assert not Path(expected.folder).exists()  # nothing is made where the storage is not mounted


def test_a_node_without_the_data_or_with_other_data_is_told_apart(expected: Expected) -> None:
    manifest = Path(expected.data_dir, "manifest.json")
    manifest.write_text(manifest.read_text().replace('"dataset": "objects"', '"dataset": "scenes"'))
    assert find_problems(expected, "node") == [f"it has another data set in {expected.data_dir}"]
    manifest.unlink()
    (problem,) = find_problems(expected, "node")
    assert problem.startswith(f"no data set in {expected.data_dir}")


def test_a_torch_that_cannot_be_imported_or_finds_no_gpu_is_a_problem(
    expected: Expected, torch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # by Ray, for a task without a GPU
    torch_file.write_text(
        "import os\nclass cuda:\n    def init():\n        assert 'CUDA_VISIBLE_DEVICES' in os.environ, 'lost\\nCUDA'"
    )
    assert find_problems(expected, "node") == []
    assert find_problems(expected._replace(gpus=True), "node") == ["it cannot use torch (AssertionError: lost)"]
    torch_file.write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    problem = "it cannot use torch (ImportError: libcudart.so.13: cannot open shared object file)"
    assert find_problems(expected, "node") == [problem]
    torch_file.write_text("import os; os.abort()")
    assert find_problems(expected, "node") == ["it cannot use torch (its import ended with status -6)"]
    torch_file.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(preflight, "IMPORT_S", 0.2)  # a slow disk
    assert find_problems(expected, "node") == []


def test_the_import_of_torch_is_a_workers_and_leaves_a_minute_for_the_start_of_its_process(
    expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not the package')")
    monkeypatch.chdir(tmp_path)
    assert find_problems(expected, "node") == []
    assert preflight.ANSWER_S - preflight.IMPORT_S >= 60


@pytest.mark.slow
def test_nodes_leave_their_answers_at_a_uri(expected: Expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with s3_server() as server:
        with probed(f"{server.uri}/run") as folder:
            there = expected._replace(folder=folder)
            assert find_problems(there, "node") == [] and Store(folder).names() == {"driver", "node"}
        assert Store(server.uri).find() == []
        assert find_problems(there, "node") == [f"it does not see the run directory {server.uri}/run"]
        nowhere = "gs://bucket/run/.nodes-1"
        (problem,) = find_problems(expected._replace(folder=nowhere), "node")
        assert problem == f"{nowhere} cannot be reached: Please install gcsfs to access Google Storage"


def test_the_source_is_compared_by_content_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adios_ray.__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "a.py").write_text("a")
    one = source_checksum()
    (tmp_path / "a.pyc").write_text("compiled")
    assert source_checksum() == one
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert source_checksum() != one


def test_one_error_names_all_nodes_that_cannot_train() -> None:
    refuse([("n1", []), ("n2", [])])
    with pytest.raises(ConfigError, match="2 of 4 nodes cannot train: n1: no data, torch; n3: late. Every node"):
        refuse([("n1", ["no data", "torch"]), ("n2", []), ("n3", ["late"]), ("n3", [])])  # two nodes of one host


def test_a_run_may_go_on_without_nodes_that_cannot_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "node_names", lambda: {"a": "one", "b": "two", "c": "three"})
    monkeypatch.setattr(preflight, "_ask", lambda nodes, *places: {"b": ["no data", "torch"], "c": []})
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    asked = set[str]()

    def enough(passed: Collection[str]) -> bool:
        asked.update(passed)
        return True

    problem = "two cannot train: no data, torch"
    assert check_nodes(tmp_path, "data", False, enough) == {"a": "", "b": problem, "c": ""}
    assert asked == {"a", "c"} and f"{problem}. No trial starts there" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="1 of 2 nodes cannot train: two: no data, torch"):
        check_nodes(tmp_path, "data", False)


def test_what_a_killed_driver_has_left_of_its_checks_is_removed(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(KeyboardInterrupt), probed(tmp_path) as folder:
        shutil.copytree(folder, tmp_path / f"{preflight.PROBES}killed")
        raise KeyboardInterrupt
    remove_probes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    remove_probes(tmp_path / "gone")


def test_a_node_needs_a_cache_for_what_is_at_uris(expected: Expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "/proc/cache")
    assert find_problems(expected, "node") == []
    there = expected._replace(folder=f"file://{expected.folder}", data_dir="memory://data")
    (cache, data) = find_problems(there, "node")
    assert cache.startswith("the cache directory /proc/cache cannot be written to") and CACHE_VARIABLE in cache
    assert data.startswith("no data set in memory://data")


def test_a_node_that_joins_is_named_with_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "node_names", lambda: {"a": "one (10.0.0.1)", "b": "two (10.0.0.2)"})
    monkeypatch.setattr(preflight, "_ask", lambda nodes, *places: {"a": ["no data", "torch"], "b": []})
    look = partial(find_node_problem, tmp_path, "data", False)
    assert look("a") == "one (10.0.0.1) cannot train: no data, torch"
    assert look("b") == "" and look("gone") is None

    def fail(*_: object) -> NoReturn:
        raise DatasetError("no data set in data")

    monkeypatch.setattr(preflight, "_ask", fail)
    assert look("a") == "one (10.0.0.1) cannot train: no data set in data"


def test_the_drivers_own_node_is_asked_where_the_cluster_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers then have the environment in which the cluster was started."""
    monkeypatch.setattr(preflight, "node_names", lambda: {"a": "one", "b": "two"})
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    problems = {"a": ["it has torch 1.13.1"], "b": []}
    monkeypatch.setattr(preflight, "_ask", lambda nodes, *places: {node: problems[node] for node in nodes})
    monkeypatch.setattr(preflight, "cluster_started_here", lambda: True)
    assert (
        check_nodes("run", "data", False) == {"a": "", "b": ""}
        and preflight.find_refused_nodes("run", "data", False) == []
    )
    monkeypatch.setattr(preflight, "cluster_started_here", lambda: False)
    assert preflight.find_refused_nodes("run", "data", False) == ["a"]
    with pytest.raises(ConfigError, match=r"1 of 2 nodes cannot train: one: it has torch 1\.13\.1"):
        check_nodes("run", "data", False)


@pytest.mark.ray
def test_the_evaluation_on_the_test_split_stays_off_nodes_that_cannot_train(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    own, beside = ray.get_runtime_context().get_node_id(), "a" * 56
    monkeypatch.setattr(preflight, "node_names", lambda: dict.fromkeys((own, beside, "b"), ""))
    monkeypatch.setattr(preflight, "_ask", lambda nodes, *_: dict.fromkeys(nodes, ["no data"]) | {"b": []})
    assert preflight.find_refused_nodes(tmp_path, "data", False) == [beside]
    monkeypatch.setattr(verdict, "_on_test", lambda *_: ray.get_runtime_context().get_node_id())
    config, pointer = TrialConfig(data_dir="data"), Pointer(path=Path("checkpoint"), sha256="")
    # Where no other node can hold it, it is tried on its own, and says why it fails.
    for refused, answers in (([], [own]), ([beside], [own]), ([beside, own], [own])):
        monkeypatch.setattr(verdict, "find_refused_nodes", lambda *_, found=refused: found)
        task = verdict._submit(config, pointer, tmp_path, WorkerResources(cpus=0, gpus=0))
        answered, waiting = ray.wait([task], timeout=TIMEOUT_S if answers else 1)
        assert [ray.get(each) for each in answered] == answers
        for each in waiting:
            ray.cancel(each)


@pytest.mark.ray
def test_nodes_answer_by_tasks_of_their_own(
    ray_cluster: None, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    assert ask_nodes([node], expected, 60) == {node: []}
    Path(expected.folder, node).unlink()
    other = expected._replace(torch="1.13.1")
    assert ask_nodes([node], other, 60) == {node: [f"it has torch {expected.torch}, not 1.13.1"]}
    there = ray.nodes()
    assert there[0]["Resources"]["GPU"]  # by its word alone
    for resources, usable in ((there[0]["Resources"], torch.cuda.is_available()), ({}, True)):
        monkeypatch.setattr(ray, "nodes", lambda has=resources: [there[0] | {"Resources": has}])
        (problems,) = ask_nodes([node], expected._replace(gpus=True), 60).values()
        assert [each.partition(" (")[0] for each in problems] == ([] if usable else ["it cannot use torch"])
    monkeypatch.setattr(preflight, "find_problems", lambda expected, node: [])
    Path(expected.folder, node).unlink()
    lost = f"what it writes to {Path(expected.folder).parent} does not arrive here"
    assert ask_nodes([node], expected, 60) == {node: [lost]}
    assert ask_nodes([node], expected, 0) == {node: ["it did not answer within 0 s"]}
    cancelled = list[tuple[object, dict[str, bool]]]()

    def interrupted(tasks: list[object], timeout: float, **_: object) -> tuple[list[object], list[object]]:
        if timeout:
            raise KeyboardInterrupt
        return [], tasks

    monkeypatch.setattr(ray, "wait", interrupted)
    monkeypatch.setattr(ray, "cancel", lambda task, **how: cancelled.append((task, how)))
    with pytest.raises(KeyboardInterrupt):
        ask_nodes([node], expected, 60)
    assert [how for _, how in cancelled] == [{"force": True}]

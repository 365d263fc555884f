"""Fixtures shared by the tests."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from small import make_objects

from adios_ray.backend.cluster import DRIVER_ENVIRONMENT, WORKER_ENVIRONMENT
from adios_ray.data.plan import ShardJob
from adios_ray.ray_private import POLL_INTERVAL_VARIABLE


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that share a Ray cluster in one process of pytest-xdist, and tests that start their own in another.

    Long tests are slow ones, too: ``-m "not ray and not slow"`` selects the fast tier.
    """
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("ray"):
            shared = "ray_cluster" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("ray" if shared else "clusters"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let each test compute the same numbers, alone or after others."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # like a trial's worker, so that results can be compared bit for bit


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one local Ray cluster for the whole session, with four logical CPUs and a logical GPU without hardware."""
    import ray

    own = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "0", POLL_INTERVAL_VARIABLE: "0.2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**DRIVER_ENVIRONMENT, **WORKER_ENVIRONMENT, **own}.items():
            patch.setenv(name, value)
        ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, address="local", log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def objects_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write shards of rendered objects, 96/40/40 images of 32 pixels."""
    return make_objects(tmp_path_factory.mktemp("data") / "objects")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``prepare`` make its shards in this process, after the pickling that Ray would do."""
    from ray import cloudpickle

    from adios_ray.data import prepare

    def results(jobs: Sequence[ShardJob], task: "partial[dict[str, int]]") -> Iterator[dict[str, int]]:
        sent = cloudpickle.loads(cloudpickle.dumps(task))
        return (sent({"job": job.model_dump_json()}) for job in jobs)

    monkeypatch.setattr(prepare, "_results", results)
    monkeypatch.setattr(prepare, "_quiet_ray", nullcontext)

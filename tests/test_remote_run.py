"""A population whose storage is a URI, on nodes that share no disk with its drivers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from s3 import INTERNAL_ERROR, S3Server, s3_server
from small import small_config
from test_population import trained_in_one_process
from waiting import until

from adios_ray.data.claim import TRAINING
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.places import fetched
from adios_ray.run_directory import RunDirectory, epoch_of
from adios_ray.search.state import PopulationState
from adios_ray.store import Store
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.records import read_summary
from adios_ray.tracking.results import read_results

pytestmark = pytest.mark.ray

DRIVER = """
import json, sys
from pathlib import Path
import ray
ray.init(address=sys.argv[1], runtime_env={"env_vars": json.loads(sys.argv[2])}, log_to_driver=False)
from adios_ray.data.claim import TRAINING
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.runner import resume, start
what = sys.argv[3]
resume(what) if "://" in what else start(ExperimentConfig.model_validate_json(Path(what).read_text()))
"""


def drive(what: str, cache: Path) -> "subprocess.Popen[bytes]":
    """Start a driver with a cache of its own, to run a configuration file or to resume a run; workers have another."""
    import ray

    names = [name for name in os.environ if name.startswith("AWS_")]
    workers = {**{name: os.environ[name] for name in names}, "ADIOS_RAY_CACHE": str(cache.parent / "workers")}
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, json.dumps(workers), what],
        env={**os.environ, "ADIOS_RAY_CACHE": str(cache)},
    )


@pytest.mark.parametrize(("epochs", "killed"), [(2, False), pytest.param(3, True, marks=pytest.mark.long)])
def test_a_run_at_a_uri_trains_as_on_a_disk_and_is_resumed_elsewhere(
    epochs: int, killed: bool, ray_cluster: None, objects_dir: Path, tmp_path: Path
) -> None:
    space = {
        "scheduler": "pbt",
        "interval_epochs": 1,
        "synchronous": True,
        "quantile_fraction": 0.5,
        "significance": 1,
        "parameters": {"optimizer.encoder_lr": {"low": 0.01, "high": 0.1, "scale": "log"}},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    with s3_server() as server:
        config = ExperimentConfig(
            **small_config(objects_dir, epochs=epochs).model_dump(),
            space=tmp_path / "space.yaml",
            storage=f"{server.uri}/runs",
            population=2,
            gpus_per_worker=0,
            cpus_per_worker=1,
        )
        (tmp_path / "config.json").write_text(config.model_dump_json())
        faults = iter(range(10**6))
        server.fault = lambda method, path: INTERNAL_ERROR if next(faults) % 20 == 9 else None
        driver = drive(str(tmp_path / "config.json"), tmp_path / "first")
        if killed:
            until(lambda: driver.poll() is not None or checkpoints_of_epoch(2, server))
            driver.kill()
        assert driver.wait() == (-signal.SIGKILL if killed else 0)
        (name,) = Store(f"{server.uri}/runs").names()
        place = f"{server.uri}/runs/{name}"
        if killed:
            assert drive(place, tmp_path / "second").wait() == 0
        server.fault = None
        run_dir = fetched(place)
        assert len(read_results(run_dir)) == 2 * epochs and len(read_lineage(run_dir)) == epochs - 1
        trained_in_one_process(config, run_dir, tmp_path / "in_process")
        assert read_summary(run_dir) is not None and "<html" in (run_dir / "report.html").read_text()
        assert set(RunDirectory(run_dir).stored_masks("trial_00")) == set(range(1, epochs + 1))
        pointers = [member.checkpoint for member in PopulationState.load(run_dir).members.values()]
        assert all(pointer is not None and epoch_of(pointer.path) == epochs for pointer in pointers)
        # Also what each one continues, which is the donor's checkpoint for a copy.
        assert set(run_dir.glob("checkpoints/*/epoch_*")) == {path for each in pointers if each for path in each.paths}
        assert Store(place).size(TRAINING.file) is None  # the last driver's claim is released
        caches = "second" if killed else "first", "workers"  # a killed driver's copy is evicted where room is needed
        left = [path for cache in caches for path in (tmp_path / cache).rglob("*") if path.is_file()]
        assert {path.suffix for path in left} <= {".lock"}


def checkpoints_of_epoch(epoch: int, server: S3Server) -> list[str]:
    """List the checkpoints of an epoch that were written to the server."""
    name = f"epoch_{epoch:05d}/meta.json"
    return [path for method, path in server.requests.copy() if method == "PUT" and path.endswith(name)]

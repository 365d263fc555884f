"""The main program as a job on a real head node, with token authentication, metrics endpoint and dashboard API."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray_head import RAY, free_ports, ray_head
from waiting import TIMEOUT_S, until

from adios_ray.tracking.metrics import GAUGES
from adios_ray.tracking.results import read_results

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent


@dataclass
class Head:
    """A running head node: addresses of its pages, its token, and the environment for commands."""

    dashboard: str
    metrics: str
    token: str
    environment: dict[str, str]

    def get(self, url: str, token: str | None) -> tuple[int, str]:
        """Fetch the status and body of a page; status 0 where none comes: a closed port, a busy server."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a head node on loopback with token authentication; stop it and delete its files after the tests."""
    port, dashboard, metrics, agent, client = free_ports(5)
    token, temporary = secrets.token_hex(32), tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PATH": binaries, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "30"  # as docs/resuming.md advises
    options = f"--port {port} --dashboard-host 127.0.0.1 --dashboard-port {dashboard} --metrics-export-port {metrics}"
    options += f" --num-cpus 2 --temp-dir {temporary}"
    options += f" --dashboard-agent-listen-port {agent} --ray-client-server-port {client}"
    node = Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", token, environment)
    try:
        with ray_head(options, environment, tmp_path_factory.mktemp("head") / "head.log") as process:
            wait_until_ready(node, process)
            yield node
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def wait_until_ready(node: Head, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the dashboard answers."""
    until(lambda: node.get(f"{node.dashboard}/api/version", node.token)[0] == 200, lambda: process.poll() is None)


def test_a_submitted_job_is_visible_while_it_runs_and_succeeds(head: Head, objects_dir: Path, tmp_path: Path) -> None:
    arguments = f"--preset demo --data-dir {objects_dir} --epochs 3 --population 2 --storage {tmp_path}"
    entrypoint = f"python experiments/pbt_in100.py {arguments}"
    job = submit(head, entrypoint, tmp_path / "job.log")
    until(
        lambda: any("trial_01" in file.read_text() for file in tmp_path.glob("*/results.csv")),
        lambda: job.poll() is None,
    )
    metrics = until(lambda: reported(head, "trial_01"))
    runs, actors, groups = train_runs(head), listed(head, "actors"), listed(head, "placement_groups")
    job.wait(TIMEOUT_S)
    output = (tmp_path / "job.log").read_text()
    assert job.returncode == 0 and "succeeded" in output and "Report: " in output, output
    searched = ("masking_sparsity_weight", "optimizer_encoder_lr", "optimizer_occlusion_lr", "masking_slots")
    for name in (*GAUGES, *searched):
        assert f"ray_adios_{name}{{" in metrics
    (run_dir,) = tmp_path.glob("*/population.json")
    names = {f"{run_dir.parent.name}/trial_{number:02d}" for number in range(2)}
    assert {run["name"] for run in runs} == names
    for kind in ("ResourceTrainable", "RayTrainWorker"):
        found = {actor["repr_name"] for actor in actors if actor["class_name"].rpartition(".")[2] == kind}
        assert found == names, (kind, [(actor["class_name"], actor["repr_name"], actor["state"]) for actor in actors])
    assert {group["name"].rpartition("/")[0] for group in groups} == names
    # The trials share what the job's entry point leaves of the two CPUs.
    bundles = [bundle["unit_resources"] for group in groups for bundle in group["bundles"]]
    assert {bundle["CPU"] for bundle in bundles if "CPU" in bundle} == {0.5}, bundles
    assert head.get(f"{head.dashboard}/api/jobs/", None)[0] == 401


def test_a_stopped_job_leaves_nothing_running_and_goes_on_when_it_is_submitted_again(
    head: Head, objects_dir: Path, tmp_path: Path
) -> None:
    arguments = f"--preset demo --data-dir {objects_dir} --epochs 3 --population 2 --storage {tmp_path} --name again"
    entrypoint, results = f"python experiments/pbt_in100.py {arguments}", tmp_path / "again" / "results.csv"
    job = submit(head, entrypoint, tmp_path / "first.log")
    until(lambda: results.is_file() and "trial_" in results.read_text(), lambda: job.poll() is None)
    (running,) = (each for each in read(head, "api/jobs/") if each["status"] == "RUNNING")
    stop = [RAY, "job", "stop", "--address", head.dashboard, running["submission_id"]]
    subprocess.run(stop, env=head.environment, check=True, capture_output=True)
    job.wait(TIMEOUT_S)
    output = (tmp_path / "first.log").read_text()
    assert f"stopped by SIGTERM; what was reported is kept: resume with --resume {tmp_path}/again\n" in output, output
    assert "Traceback" not in output and "Stack trace" not in output, output
    until(lambda: all(actor["state"] == "DEAD" for actor in listed(head, "actors") if not is_of_ray(actor)))
    until(lambda: all(group["state"] == "REMOVED" for group in listed(head, "placement_groups")))
    job = submit(head, entrypoint, tmp_path / "second.log")
    job.wait(TIMEOUT_S)
    output = (tmp_path / "second.log").read_text()
    assert job.returncode == 0 and "succeeded" in output and "Report: " in output, output
    # Not the file's own lines: one that the stop came after, and the journal's before, is written again.
    rows = [(row.trial, row.epoch) for row in read_results(results.parent)]
    assert sorted(rows) == [(f"trial_{number:02d}", epoch) for number in range(2) for epoch in (1, 2, 3)]


def is_of_ray(actor: dict[str, Any]) -> bool:
    """Tell whether an actor is Ray's own, which lives as long as the cluster."""
    return actor["class_name"].rpartition(".")[2] in ("TrainStateActor", "_AutoscalingCoordinatorActor")


def reported(head: Head, trial: str) -> str | None:
    """Fetch the metrics once they have a trial's fitness."""
    page = head.get(head.metrics, None)[1]
    return page if "adios_fitness" in page and f'trial="{trial}"' in page else None


def submit(head: Head, entrypoint: str, log: Path) -> "subprocess.Popen[bytes]":
    """Submit a job once the head has an agent to run it; return the process that follows the job."""
    # The dashboard answers before its agent has registered: a job submitted in between is refused.
    command = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--entrypoint-num-cpus", "1"]
    command += ["--", *entrypoint.split()]
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with log.open("w") as output:
            job = subprocess.Popen(command, cwd=ROOT, env=head.environment, stdout=output, stderr=subprocess.STDOUT)
        while job.poll() is None and "submitted successfully" not in log.read_text():
            time.sleep(0.2)
        if "No available agent" not in log.read_text():
            return job
        assert time.monotonic() < deadline


def listed(head: Head, what: str) -> list[dict[str, Any]]:
    """List what lives in the cluster, as `ray list WHAT --detail` does."""
    rows: list[dict[str, Any]] = read(head, f"api/v0/{what}?detail=true")["data"]["result"]["result"]
    return rows


def train_runs(head: Head) -> list[dict[str, Any]]:
    """List the Ray Train runs that the dashboard's API reports."""
    runs: list[dict[str, Any]] = read(head, "api/train/v2/runs/v1")["train_runs"]
    return runs


def read(head: Head, path: str) -> Any:
    """Read what the dashboard's API answers; a dashboard that is too busy to answer is asked again."""

    def answer() -> tuple[int, str] | None:
        status, body = head.get(f"{head.dashboard}/{path}", head.token)
        return (status, body) if status else None

    status, body = until(answer)
    assert status == 200, body
    return json.loads(body)

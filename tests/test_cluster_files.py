"""The files in docs/cluster: a SLURM script, `ray up`, KubeRay and Prometheus configurations, a Grafana dashboard."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler import _private as autoscaler
from waiting import TIMEOUT_S, until

from adios_ray.experiment.command import read_arguments
from adios_ray.experiment.config import SPACES
from adios_ray.search.spaces import load_space
from adios_ray.tracking.metrics import GAUGES

FILES = Path(__file__).parent.parent / "docs" / "cluster"


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    searched = {path.replace(".", "_") for path in load_space(SPACES / "pbt_in100.yaml").parameters}
    dashboard = json.loads((FILES / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]
    asked = {name for query in queries for name in re.findall(r"\bray_adios_(\w+)", query)}
    assert asked - set(GAUGES) == searched  # one panel for each value that the space searches
    assert all(re.findall(r"\bray_adios_\w+", query) for query in queries)


def test_the_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(FILES / "slurm.sh")], check=True)
    assert "ray stop" not in re.sub(r"#.*", "", (FILES / "slurm.sh").read_text())


JOB = str(9_000_000 + os.getpid())  # of no other process of this machine, on which the script makes /tmp/ray-JOB
RAY_FOLDER = Path(f"/tmp/ray-{JOB}")
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "$@" >> scontrol.log; fi',
    # Runs what follows its options, on this machine.
    "srun": 'echo "$@" >> srun.log; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1 10.0.0.2",
    # Makes its folder, and writes into it until it has ended.
    "ray": """case "$1 $HEAD" in
        "start alive")
            mkdir -p "$RAY_TMPDIR"; trap 'sleep 0.5; mkdir -p "$RAY_TMPDIR/log"; exit' TERM
            sleep 60 & wait;;
        "health-check alive") true;;
        *) false;;
    esac""",
    "adios-ray": 'echo "$@" > training.log; if [ -e stays ]; then touch begun; exec sleep 60; fi',
}
"""Programs in the place of SLURM's, Ray's and this package's."""


@contextmanager
def slurm_job(folder: Path, head: str, script: Path = FILES / "slurm.sh") -> "Iterator[subprocess.Popen[str]]":
    """Run the script in a folder as SLURM would, on two nodes; ``head`` tells whether Ray's head is alive."""
    (folder / "bin").mkdir()
    for name, body in STUBS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin" / "activate").touch()
    (folder / "home").mkdir()
    variables = {
        **{"VENV": str(folder), "STORAGE": "/storage", "DATA": "/data", "HOME": str(folder / "home"), "HEAD": head},
        **{"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"},
        "PATH": f"{folder}/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    job = subprocess.Popen(
        ["bash", str(script)],
        cwd=folder, env=variables, text=True, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        yield job
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        shutil.rmtree(RAY_FOLDER, ignore_errors=True)


def check_clean(folder: Path) -> None:
    """Check that a job has left neither its token nor Ray's folder on any node."""
    assert not list((folder / "home" / ".ray").iterdir()) and not RAY_FOLDER.exists()
    (removal,) = (line for line in (folder / "srun.log").read_text().splitlines() if " rm " in line)
    assert removal == f"--overlap --nodes=2 --ntasks-per-node=1 rm -rf -- {RAY_FOLDER}"


def test_the_slurm_job_ends_with_its_training_and_leaves_nothing_on_its_nodes(tmp_path: Path) -> None:
    with slurm_job(tmp_path, "alive") as job:
        assert job.wait(TIMEOUT_S) == 0
    assert (tmp_path / "training.log").read_text().startswith("train --preset in100s --data-dir /data --storage /stor")
    assert not (tmp_path / "scontrol.log").exists()
    check_clean(tmp_path)


@pytest.mark.slow
def test_the_slurm_job_ends_where_rays_head_does(tmp_path: Path) -> None:
    with slurm_job(tmp_path, "dead") as job:
        _, said = job.communicate(timeout=TIMEOUT_S)
        assert job.returncode == 1 and "error: Ray's head on n1 has ended" in said
    assert not (tmp_path / "training.log").exists()
    check_clean(tmp_path)


@pytest.mark.parametrize(("number", "status", "requeued"), [(signal.SIGUSR1, 0, True), (signal.SIGTERM, 143, False)])
def test_the_slurm_job_is_requeued_before_its_time_limit_and_not_when_it_is_cancelled(
    number: signal.Signals, status: int, requeued: bool, tmp_path: Path
) -> None:
    (tmp_path / "stays").touch()
    with slurm_job(tmp_path, "alive") as job:
        until((tmp_path / "begun").exists, lambda: job.poll() is None)
        job.send_signal(number)
        assert job.wait(TIMEOUT_S) == status
    log = tmp_path / "scontrol.log"
    assert log.read_text() == f"requeue {JOB}\n" if requeued else not log.exists()
    check_clean(tmp_path)
    assert "#SBATCH --signal=B:USR1@" in (FILES / "slurm.sh").read_text()


def test_the_slurm_job_removes_no_folder_but_rays_own(tmp_path: Path) -> None:
    script, kept = tmp_path / "changed.sh", tmp_path / "kept"
    kept.mkdir()
    text = (FILES / "slurm.sh").read_text()
    script.write_text(text.replace('RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"', f'RAY_TMPDIR="{kept}"'))
    assert script.read_text() != text
    with slurm_job(tmp_path, "alive", script) as job:
        assert job.wait(TIMEOUT_S) == 0
    assert kept.is_dir() and " rm " not in (tmp_path / "srun.log").read_text()


def test_the_cluster_file_fits_the_schema_of_ray_up() -> None:
    schema = json.loads((Path(autoscaler.__path__[0]).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((FILES / "ray_up.yaml").read_text()), schema)


def commands() -> list[list[str]]:
    """Find the trainings that the files start."""
    job = yaml.safe_load((FILES / "rayjob.yaml").read_text())["spec"]["entrypoint"]
    script = (FILES / "slurm.sh").read_text().replace("\\\n", " ")
    (line,) = (line for line in script.splitlines() if line.startswith("adios-ray train"))
    return [shlex.split(job), shlex.split(line.rstrip("& "))]


def test_the_commands_are_understood() -> None:
    for program, command, *arguments in commands():
        assert (program, command) == ("adios-ray", "train")
        config = read_arguments("", arguments, "pbt_in100", "pbt_demo")
        assert config.population == 16 and config.name == "in100s-pbt"


def test_the_job_has_what_kuberay_requires() -> None:
    job = yaml.safe_load((FILES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"] is not None and group["template"]["spec"]["containers"][0]["image"]
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"] and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

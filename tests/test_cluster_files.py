"""The files in docs/cluster: a SLURM script, `ray up`, KubeRay and Prometheus configurations, a Grafana dashboard."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import yaml
from ray.autoscaler import _private as autoscaler

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

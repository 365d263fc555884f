"""A cluster with an autoscaler on one machine, whose nodes are processes: what ``AutoscalingCluster`` of Ray starts.

Ray's own class stops all clusters of the machine at its start and its end, and its wheel lacks a file that it reads.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
from ray_head import free_ports, ray_head

IDLE_MINUTES = 0.2
"""Minutes after which an idle node is stopped."""


HEAD_ID = "f" * 51 + "00000"
"""ID by which Ray's provider of such nodes knows the head."""


def settings(address: str, resources: dict[str, float], most: int) -> dict[str, object]:
    """Describe a cluster of a head without resources and at most ``most`` nodes."""
    return {
        "cluster_name": "autoscaled",
        "max_workers": most,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 10.0,
        "provider": {
            "type": "external",  # of its own type, the autoscaler's second version reads the missing file
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "disable_node_updaters": True,
            "use_node_id_as_ip": True,
            "launch_multiple": True,  # otherwise one node where several are wanted at once
            "head_node_id": HEAD_ID,
        },
        "auth": {},
        "file_mounts": {},
        **dict.fromkeys(("cluster_synced_files", "setup_commands", "head_setup_commands", "worker_setup_commands"), []),
        **dict.fromkeys(("head_start_ray_commands", "worker_start_ray_commands"), []),
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
    }


class Autoscaled(NamedTuple):
    """A running cluster.

    Attributes:
        environment: Variables with which a driver joins it.
        directory: Its temporary directory, which the command lines of its processes name.
    """

    environment: Mapping[str, str]
    directory: Path

    def processes(self) -> list[psutil.Process]:
        """Find the processes of all its nodes."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.directory) in part for part in process.cmdline()):
                    found.append(process)
        return found

    def nodes(self) -> int:
        """Count the nodes that the autoscaler has started."""
        names = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                names.append(process.name())
        return names.count("raylet") - 1


@contextlib.contextmanager
def autoscaled(resources: dict[str, float], most: int, version: Literal[1, 2]) -> Iterator[Autoscaled]:
    """Start a cluster whose autoscaler adds up to ``most`` nodes with these resources; end its processes afterwards.

    The second version of Ray's autoscaler is that of ``ray up`` and KubeRay, the first that of ``ray start``.
    """
    port, dashboard, agent, client = free_ports(4)
    directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: it holds sockets
    address, config = f"127.0.0.1:{port}", directory / "autoscaler.json"
    config.write_text(json.dumps(settings(address, resources, most)))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    cluster = Autoscaled({"RAY_ADDRESS": address, **token}, directory)
    environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", **token}
    environment.pop("RAY_ADDRESS", None)
    if version == 2:
        environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
    ports = f"--port {port} --dashboard-port {dashboard} --dashboard-agent-listen-port {agent}"
    options = f"--num-cpus 0 --temp-dir {directory} {ports} --ray-client-server-port {client}"
    try:
        with ray_head(f"{options} --autoscaling-config {config}", environment, directory / "head.log") as head:
            wait_until_up(cluster, head)
            yield cluster
    finally:
        for process in cluster.processes():  # nodes outlive the autoscaler that has started them
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(directory, ignore_errors=True)


def wait_until_up(cluster: Autoscaled, head: "subprocess.Popen[bytes]") -> None:
    """Wait until the head runs and its autoscaler has reported."""
    deadline = time.monotonic() + 300
    while not list(cluster.directory.glob("session_latest/logs/monitor.log")):
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((cluster.directory / "head.log").read_text())
        time.sleep(0.5)

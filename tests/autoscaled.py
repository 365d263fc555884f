"""A cluster with an autoscaler on one machine, whose nodes are processes: what ``AutoscalingCluster`` of Ray starts.

Ray's own class stops all clusters of the machine at its start and its end, and its wheel lacks a file that it reads.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from ray._private.services import get_node_ip_address

IDLE_MINUTES = 0.2
"""Minutes after which an idle node is stopped."""


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def settings(address: str, resources: dict[str, float], most: int) -> dict[str, object]:
    """Describe a cluster of a head without resources and at most ``most`` nodes."""
    return {
        "cluster_name": "autoscaled",
        "max_workers": most,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 10.0,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "auth": {"ssh_user": "nobody"},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
    }


@contextlib.contextmanager
def autoscaled(resources: dict[str, float], most: int) -> Iterator[str]:
    """Start a cluster whose autoscaler adds nodes with these resources; yield its address, and end its processes."""
    address = f"{get_node_ip_address()}:{free_port()}"
    directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: it holds sockets
    config = directory / "autoscaler.json"
    config.write_text(json.dumps(settings(address, resources, most)))
    environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment.pop("RAY_ADDRESS", None)
    options = f"--head --block --num-cpus 0 --port {address.rpartition(':')[2]} --temp-dir {directory} --include-dashboard false"
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *options.split(), f"--autoscaling-config={config}"],
        env=environment,
        stdout=(directory / "head.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        for process in started_in(directory):
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(directory, ignore_errors=True)


def started_in(directory: Path) -> list[psutil.Process]:
    """Find the processes whose command line names a cluster's directory: nodes outlive the autoscaler."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(directory) in part for part in process.cmdline()):
                found.append(process)
    return found

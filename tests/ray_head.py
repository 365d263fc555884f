"""Head nodes of Ray clusters that tests start for themselves, by the command that users have."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from waiting import TIMEOUT_S

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    """Find free loopback ports."""
    # All are bound before the first is closed, so that they differ.
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def ray_head(options: str, environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a head node on loopback while the block runs.

    Args:
        options: Further options of ``ray start``.
        environment: Environment of its processes. They end without the drain of half a minute that is Ray's default.
        log: File of its output.
    """
    command = [RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", *options.split()]
    at_once = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    with log.open("w") as output:
        head = subprocess.Popen(command, env={**environment, **at_once}, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield head
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(TIMEOUT_S)

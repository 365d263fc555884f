"""Joining or starting a Ray cluster."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from adios_ray.backend.ray_private import (
    POLL_INTERVAL_VARIABLE,
    PREEMPTION_WATCHER_VARIABLE,
    running_cluster_address_file,
)
from adios_ray.errors import RunError

ANSWER_S = 2.0
"""Seconds that a running cluster has to accept a connection."""
WORKER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # fills the Train page of the dashboard
    POLL_INTERVAL_VARIABLE: "1",  # bounds how long a report may wait for Ray Train
    PREEMPTION_WATCHER_VARIABLE: "0",  # saves one process for each trial; a lost node is noticed without it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in every process
}
DRIVER_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the population keeps its own state; Tune's snapshots are not used
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine; disconnect at the end.

    The dashboard of a cluster that is started here listens on loopback only, and its address is printed.

    Raises:
        RunError: If Ray can be neither joined nor started.
    """
    for name, value in {**WORKER_ENVIRONMENT, **DRIVER_ENVIRONMENT}.items():
        # Before ray.init, whose processes inherit the environment; a value that the user has set is kept.
        os.environ.setdefault(name, value)
    joined_before = ray.is_initialized()
    if not joined_before:
        try:
            context = ray.init(
                address=address_to_join(),
                # On a cluster that is joined, workers do not inherit this process's environment.
                runtime_env={"env_vars": {name: os.environ[name] for name in WORKER_ENVIRONMENT}},
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (OSError, RuntimeError, ValueError) as error:  # Ray's for a missing cluster, port or directory
            raise RunError(f"Ray could not be joined or started: {error}") from error
        if context.dashboard_url:
            print(f"Ray dashboard: http://{context.dashboard_url}", flush=True)
    try:
        yield
    finally:
        if not joined_before:  # else the connection belongs to the caller
            ray.shutdown()


def address_to_join() -> str | None:
    """Choose the address for ``ray.init``: None for Ray's own search, "local" if that would find a dead cluster.

    A cluster that was killed leaves its address file behind, and ``ray.init`` waits minutes for it.
    """
    note = running_cluster_address_file()
    if os.environ.get("RAY_ADDRESS") or not note.is_file():
        return None
    host, _, port = note.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError):
        print(f"The Ray cluster that {note} names does not answer; one is started here.", flush=True)
        return "local"
    return None

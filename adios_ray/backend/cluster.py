"""Joining or starting a Ray cluster."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import ray
from ray.util.client import ray as ray_client

from adios_ray.console import say
from adios_ray.errors import ConfigError
from adios_ray.ray_private import (
    JOB_CONFIG_VARIABLE,
    POLL_INTERVAL_VARIABLE,
    PREEMPTION_WATCHER_VARIABLE,
    ask_for_cluster,
    is_alive_in,
    nodes_here,
    running_cluster_address_file,
    silence_process_advice,
    use_stored_token,
)
from adios_ray.ray_start import LOCAL, start_ray

NO_DRIVER = (
    "which cannot drive a run: the driver must be on a node of the cluster. Submit it as a job (ray job submit "
    "--address http://HEAD:8265 -- adios-ray train ...), or start it on a node"
)
AUTO = "auto"
ANSWER_S = 5.0
"""Seconds that a running cluster has to accept a connection, and again to answer."""
NODE_S, PAUSE_S = 60.0, 0.5
"""Seconds that a node of this machine has to register with its cluster, and between two looks for it."""
WORKER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # fills the Train page of the dashboard
    POLL_INTERVAL_VARIABLE: "1",  # bounds how long a report may wait for Ray Train
    PREEMPTION_WATCHER_VARIABLE: "0",  # saves one process for each trial; a lost node is noticed without it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # what is given no GPU sees none
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in every process
}
DRIVER_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end its run at Ctrl-C as if it had finished
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the population keeps its own state; Tune's snapshots are not used
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def connected() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine; disconnect at the end.

    The dashboard of a cluster that is started here listens on loopback only, and its address is printed.

    Raises:
        ConfigError: If RAY_ADDRESS or the temporary directory cannot be used, the cluster has no node on this machine,
            or this process is a Ray client.
        RunError: If Ray can be neither joined nor started.
    """
    for name, value in {**WORKER_ENVIRONMENT, **DRIVER_ENVIRONMENT}.items():
        # Before ray.init, whose processes inherit the environment; a value that the user has set is kept.
        os.environ.setdefault(name, value)
    joined_before = ray.is_initialized()
    if joined_before and ray_client.is_connected():
        raise ConfigError(f"this process is a Ray client, {NO_DRIVER} without ray.init('ray://...')")
    if not joined_before:
        address = address_to_join()
        if address not in (LOCAL, AUTO):
            _check_node(address)
        # Workers of a cluster that is started here inherit this process's environment; without one of their own, Ray
        # can use those that it has started ahead.
        environment = None if address == LOCAL else {"env_vars": _worker_variables()}
        context = start_ray(address, runtime_env=environment, dashboard_host="127.0.0.1")
        silence_process_advice()
        if context.dashboard_url:
            say(f"Ray dashboard: http://{context.dashboard_url}")
    try:
        yield
    finally:
        if not joined_before:  # else the connection belongs to the caller
            ray.shutdown()


def _worker_variables() -> dict[str, str]:
    """Return the environment variables of workers, but those that the job sets for itself: Ray refuses two values."""
    given = _job_settings().get("runtime_env", {}).get("env_vars", {})
    return {name: os.environ[name] for name in WORKER_ENVIRONMENT if name not in given}


def _job_settings() -> dict[str, Any]:
    """Return the settings of the Ray job that this process is the entry point of; empty if it is none."""
    settings: dict[str, Any] = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}")
    return settings


def submitted_job() -> str | None:
    """Return the ID of the Ray job that this process is the entry point of; None if it is none."""
    if not os.environ.get(JOB_CONFIG_VARIABLE):
        return None
    return str(_job_settings().get("metadata", {}).get("job_submission_id", "unnamed"))


def queue_job() -> str:
    """Return the ID of the job in which this process runs, Ray's or SLURM's; empty if it runs in none."""
    return submitted_job() or os.environ.get("SLURM_JOB_ID", "")


def address_to_join() -> str:
    """Choose the address for ``ray.init``: that of RAY_ADDRESS or `ray start`, or "local" to start a cluster here.

    ``ray.init`` waits up to 13 minutes for a cluster that does not answer, so it is asked first.

    Raises:
        ConfigError: If RAY_ADDRESS has a form that cannot be used, or the cluster does not answer or refuses this
            user.
    """
    asked, note = os.environ.get("RAY_ADDRESS", ""), running_cluster_address_file()
    if asked == LOCAL:
        return LOCAL
    if "://" in asked:
        raise ConfigError(f"RAY_ADDRESS {asked} names a server for Ray clients, {NO_DRIVER} with RAY_ADDRESS=auto")
    if asked not in ("", AUTO):
        if problem := _no_answer(asked):
            raise ConfigError(
                f"RAY_ADDRESS {asked} does not answer ({problem}): give HOST:PORT of a running head node (6379 unless "
                "`ray start --port` says otherwise), or unset RAY_ADDRESS to start a cluster on this machine"
            )
        return asked
    if not note.is_file():
        return asked or LOCAL  # Ray itself looks for processes of other clusters for "auto", and says if there are none
    running = note.read_text().strip()
    if problem := _no_answer(running, found=True):
        text = f"the Ray cluster {running}, which {note} names, does not answer ({problem})"
        if asked:
            raise ConfigError(f"RAY_ADDRESS is auto, but {text}: run `ray start` again, or unset RAY_ADDRESS")
        say(f"{text}; one is started here.")
        return LOCAL
    return running


def _check_node(address: str) -> None:
    """Make sure that this machine is a node of a cluster.

    Raises:
        ConfigError: If it is none.
    """
    began = time.monotonic()
    while not ((own := nodes_here()) and is_alive_in(address, own, ANSWER_S)):
        # A process may be a node that has not yet registered, or one of another cluster.
        if time.monotonic() - began > (NODE_S if own else ANSWER_S):
            raise ConfigError(f"the Ray cluster {address} has no node on this machine, {NO_DRIVER}")
        time.sleep(PAUSE_S)


def _no_answer(address: str, found: bool = False) -> str | None:
    """Ask a cluster's control store for an answer; return why there is none, None if there is one.

    Args:
        address: Its address.
        found: Whether it is a cluster of this machine that was found, and not an address that was given: as in Ray,
            only that is shown a token that the user has stored, without ``RAY_AUTH_MODE``.

    Raises:
        ConfigError: If the cluster refuses this process's token.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return "it is not of the form HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    status = ask_for_cluster(address, ANSWER_S)
    if status is grpc.StatusCode.UNAUTHENTICATED and found and use_stored_token():
        status = ask_for_cluster(address, ANSWER_S)
    if status is grpc.StatusCode.UNAUTHENTICATED:
        raise ConfigError(
            f"the Ray cluster {address} asks for a token, and this process has none or another one: set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token to the token of the cluster"
        )
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {ANSWER_S:.0f} s"
    return None if status is grpc.StatusCode.OK else "something else listens there"

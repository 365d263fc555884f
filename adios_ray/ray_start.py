"""The start of Ray, or of a connection to a running cluster, with errors of one line."""

import os
from typing import Any

import ray

from adios_ray.errors import ConfigError, RunError, handlers_kept
from adios_ray.files import check_writable
from adios_ray.ray_private import running_cluster_address_file

LOCAL = "local"
"""The address for ``ray.init`` with which it starts a cluster on this machine."""
SESSION = "session_2026-01-01_00-00-00_000000_0000000"
"""Stands for a name of Ray's folder of one cluster: its start time, and a process ID of up to seven digits."""
LONGEST_SOCKET_PATH = 107


def start_ray(address: str, **options: Any) -> Any:
    """Start a cluster on this machine, or connect to the one at an address; workers print into their files only.

    Args:
        address: The cluster's address, or ``LOCAL``.
        **options: Further arguments of ``ray.init``.

    Returns:
        What ``ray.init`` returns.

    Raises:
        ConfigError: If the temporary directory or the home directory cannot be used.
        RunError: If Ray can be neither joined nor started.
    """
    if address == LOCAL:
        check_temporary_directory()
    try:
        with handlers_kept():
            return ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # where a busy machine starts Ray too slowly, it is a plain Exception
        if isinstance(error, OSError) and error.filename is not None:
            raise ConfigError(
                f"Ray cannot use {error.filename}: {error.strerror}; set HOME to a directory that can be written to"
            ) from error
        raise RunError(f"Ray could not be joined or started: {error}") from error


def check_temporary_directory() -> None:
    """Make sure that Ray can keep its sockets and files in its temporary directory.

    Raises:
        ConfigError: If the directory's path is relative or too long, or it cannot be written to.
    """
    directory = running_cluster_address_file().parent
    if not directory.is_absolute():  # Ray's processes, which share its sockets, have other working directories
        raise ConfigError(
            f"Ray's temporary directory {directory} is a relative path: set RAY_TMPDIR to an absolute one, such as "
            f"{directory.parent.absolute()}"
        )
    length = len(os.fsencode(directory / SESSION / "sockets" / "plasma_store"))
    if length > LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"Ray's temporary directory {directory} is too long by {length - LONGEST_SOCKET_PATH} bytes: paths of Unix "
            f"sockets have at most {LONGEST_SOCKET_PATH}. Set RAY_TMPDIR to a shorter one, such as /tmp/ray-me"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        check_writable(directory)
    except OSError as error:
        raise ConfigError(
            f"Ray's temporary directory {directory} cannot be written to ({error.strerror or error}): set RAY_TMPDIR "
            "to another one on this machine, such as /tmp/ray-me"
        ) from None

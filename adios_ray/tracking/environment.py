"""The environment that a run trained in: versions, machine and threads, recorded once at its start."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adios_ray.errors import RecordError
from adios_ray.files import atomic_write
from adios_ray.run_directory import RunDirectory
from adios_ray.validation import Record, read_json

_PACKAGES = ("adios_ray", "torch", "torchvision", "ray", "numpy", "timm", "pyarrow", "scikit-learn")


class Environment(Record):
    """Contents of ``environment.json``."""

    versions: dict[str, str]
    """Versions of Python and of the packages that decide results."""
    machine: str = ""
    """System, processor and number of CPUs of the driver's machine; "" where it was not recorded."""
    threads: int | None = None
    """CPU threads of each worker, on which the order of sums depends; None where it was not recorded."""
    recorded: bool = True
    """Whether the run recorded this; else it is this process's own."""


def current_environment(recorded: bool = True) -> Environment:
    """Describe this process's environment."""
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"
    return Environment(versions=found, machine=machine if recorded else "", recorded=recorded)


def record_environment(run_dir: Path, threads: int | None = None) -> None:
    """Write ``environment.json`` unless the run has one: a resumed run keeps that of its start.

    Args:
        run_dir: The run directory.
        threads: CPU threads of each worker.
    """
    path = RunDirectory(run_dir).environment
    if not path.exists():
        found = current_environment().model_copy(update={"threads": threads})
        atomic_write(path, (found.model_dump_json(indent=2) + "\n").encode())


def environment_of(run_dir: Path) -> Environment:
    """Read what a run recorded; this process's own environment, marked as such, for a run of an earlier version.

    Raises:
        RecordError: If the file has other fields.
    """
    path = RunDirectory(run_dir).environment
    return read_json(Environment, path, RecordError) if path.exists() else current_environment(recorded=False)

"""Processes of this package beside a run's driver."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import adios_ray


class Program(NamedTuple):
    """Arguments of ``subprocess.Popen``: the command line and the environment."""

    args: list[str]
    env: Mapping[str, str]


def module_program(module: str, *arguments: str) -> Program:
    """Make the program ``python -m MODULE ARGUMENTS``, which finds this package as this process does."""
    here = str(Path(adios_ray.__file__).parent.parent)  # a job's package may be on the driver's path alone
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    return Program([sys.executable, "-m", module, *arguments], {**os.environ, "PYTHONPATH": path})

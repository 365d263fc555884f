"""The command line of an experiment."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from pydantic import ValidationError

from adios_ray.errors import ConfigError, exit_status
from adios_ray.experiment.config import DEMO, SPACES, ExperimentConfig, read_experiment
from adios_ray.experiment.presets import preset_config
from adios_ray.validation import explain

_CHOOSING = {
    "name": "--preset",
    "family": "--family",
    "objective": "--objective.name",
    "backbone": "--backbone.name",
    "scheme": "--masking.scheme",
}
"""Flags that choose the defaults of all other flags, keyed by the arguments of ``preset_config``."""
_SHORT = {"--objective": "--objective.name", "--backbone": "--backbone.name", "--masking": "--masking.scheme"}


def main(
    description: str, space: str, demo_space: str, arguments: Sequence[str] | None = None, program: str | None = None
) -> int:
    """Read the command line, run the experiment, and print expected errors in one line.

    Args:
        description: First paragraph of ``--help``.
        space: Default search space: the name of a file in ``search_spaces``.
        demo_space: Default search space of ``--preset demo``.
        arguments: Command line without the program's name; the process's if None.
        program: Name of the program in ``--help``; the process's own name if None.

    Returns:
        Exit status; see ``errors.exit_status``.

    Raises:
        SystemExit: After ``--help``, or with status 2 for an unknown flag, which tyro names.
    """
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # error messages without links to pydantic's pages
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def run() -> None:
        config = read_arguments(description, arguments, space, demo_space, program)
        from adios_ray.experiment import runner  # imported here so that --help does not wait for Ray

        runner.resume(config.resume, config) if config.resume else runner.start(config)

    return exit_status(run, "resume with --resume RUN_DIR")


def read_arguments(
    description: str, arguments: Sequence[str], space: str, demo_space: str, program: str | None = None
) -> ExperimentConfig:
    """Parse a command line into an experiment's configuration, over the defaults of its preset.

    Raises:
        ConfigError: If a value is out of range, or ``--resume`` does not name a run directory.
    """
    arguments = [_SHORT.get(flag, flag) + equals + value for flag, equals, value in map(_parts, arguments)]
    # Before tyro: the defaults that it parses over, and prints in --help, depend on the flags that choose a preset.
    given = {name: _last(arguments, flag) for name, flag in _CHOOSING.items()}
    if run_dir := _last(arguments, "--resume"):
        # Over the run's own configuration, so that whatever differs was asked for.
        defaults = read_experiment(run_dir)
    else:
        file = str(SPACES / f"{demo_space if given['name'] == DEMO else space}.yaml")
        defaults = preset_config(**given).model_copy(update={"space": file})
    try:
        config = tyro.cli(ExperimentConfig, args=arguments, default=defaults, description=description, prog=program)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    if not Path(config.space).suffix and (named := SPACES / f"{config.space}.yaml").is_file():
        config = config.model_copy(update={"space": str(named)})
    if config.resume is not None and (_last(arguments, "--name") or _last(arguments, "--storage")):
        raise ConfigError("--resume names the run directory: leave out --name and --storage")
    return config


def _parts(argument: str) -> tuple[str, str, str]:
    """Split an argument of the form --flag=value into flag, "=" and value; any other has two empty parts."""
    return argument.partition("=") if argument.startswith("--") else (argument, "", "")


def _last(arguments: Sequence[str], flag: str) -> str | None:
    """Find the last value that a command line gives a flag; None without one."""
    found = None
    for position, (name, equals, value) in enumerate(map(_parts, arguments)):
        if name == flag:
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return found

"""The command line of an experiment."""

import os
import sys
from collections.abc import Sequence

import tyro
from pydantic import ValidationError

from adios_ray.errors import ConfigError, exit_status
from adios_ray.experiment.config import DEMO, SPACES, ExperimentConfig
from adios_ray.experiment.presets import preset_config
from adios_ray.validation import explain

_CHOOSING = {
    "name": "--preset",
    "family": "--family",
    "objective": "--objective.name",
    "backbone": "--backbone.name",
    "scheme": "--masking.scheme",
}
"""Flags that choose the defaults of all others, by the arguments of ``preset_config``."""
_SHORT = {"--objective": "--objective.name", "--backbone": "--backbone.name", "--masking": "--masking.scheme"}


def main(
    description: str, space: str, demo_space: str, arguments: Sequence[str] | None = None, program: str | None = None
) -> int:
    """Read the command line, run the experiment, and say errors in one line.

    Args:
        description: Head of ``--help``.
        space: Name of the file in ``search_spaces`` to take where the command line names none.
        demo_space: The same for ``--preset demo``.
        arguments: Command line without the program's name; the process's if None.
        program: What ``--help`` calls the program; the process's own name if None.

    Returns:
        Exit status; see ``errors.exit_status``.

    Raises:
        SystemExit: After ``--help``, or with status 2 after a flag that tyro has refused by name.
    """
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # links to pydantic's pages help nobody here
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def run() -> None:
        config = read_arguments(description, arguments, space, demo_space, program)
        from adios_ray.experiment import runner  # imported here: --help need not wait for Ray

        runner.resume(config.resume) if config.resume else runner.start(config)

    return exit_status(run, "go on with --resume and the run directory")


def read_arguments(
    description: str, arguments: Sequence[str], space: str, demo_space: str, program: str | None = None
) -> ExperimentConfig:
    """The experiment that a command line asks for, over the defaults of its preset.

    Raises:
        ConfigError: If a value is out of range, or ``--resume`` comes with other settings.
    """
    arguments = [_SHORT.get(flag, flag) + equals + value for flag, equals, value in map(_parts, arguments)]
    given = {name: _last(arguments, flag) for name, flag in _CHOOSING.items()}
    file = SPACES / f"{demo_space if given['name'] == DEMO else space}.yaml"
    defaults = preset_config(**given).model_copy(update={"space": file})
    try:
        config = tyro.cli(ExperimentConfig, args=arguments, default=defaults, description=description, prog=program)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    if not config.space.suffix and (named := SPACES / f"{config.space}.yaml").is_file():
        config = config.model_copy(update={"space": named})
    if config.resume is not None and config != defaults.model_copy(update={"resume": config.resume}):
        raise ConfigError("--resume goes on under the run's own configuration: leave the other settings out")
    return config


def _parts(argument: str) -> tuple[str, str, str]:
    """A flag, "=" and its value, where they are one argument; else the argument and nothing."""
    return argument.partition("=") if argument.startswith("--") else (argument, "", "")


def _last(arguments: Sequence[str], flag: str) -> str | None:
    """The last value that a command line gives to a flag; None where it gives none."""
    found = None
    for position, (name, equals, value) in enumerate(map(_parts, arguments)):
        if name == flag:
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return found

"""The command line of an experiment."""

import os
import sys
from collections.abc import Sequence

import tyro
from pydantic import ValidationError

from adios_ray.config import ConfigError, explain
from adios_ray.data.store import DatasetError
from adios_ray.search.experiment import PRESETS, SPACES, ExperimentConfig, preset_config


def main(description: str, space: str, demo_space: str, arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run the experiment, and say errors in one line.

    Args:
        description: Head of ``--help``.
        space: Name of the file in ``search_spaces`` to take where the command line names none.
        demo_space: The same for ``--preset demo``.
        arguments: Command line without the program's name; the process's if None.

    Returns:
        Exit status: 0, 1 for a run that failed, 2 for bad input, 130 for an interruption.

    Raises:
        SystemExit: After ``--help``, or with status 2 after a flag that tyro has refused by name.
    """
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # links to pydantic's pages help nobody here
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        config = read_arguments(description, arguments, space, demo_space)
        from adios_ray.search import runner  # imported here: --help need not wait for Ray

        runner.resume(config.resume) if config.resume else runner.start(config)
    except (ConfigError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with --resume and the run directory", file=sys.stderr)
        return 130
    return 0


def read_arguments(description: str, arguments: Sequence[str], space: str, demo_space: str) -> ExperimentConfig:
    """The experiment that a command line asks for, over the defaults of its preset.

    Raises:
        ConfigError: If a value is out of range, or ``--resume`` comes with other settings.
    """
    preset = _preset(arguments)
    file = SPACES / f"{demo_space if preset == 'demo' else space}.yaml"
    defaults = preset_config(preset).model_copy(update={"space": file})
    try:
        config = tyro.cli(ExperimentConfig, args=list(arguments), default=defaults, description=description)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    if config.resume is not None and config != defaults.model_copy(update={"resume": config.resume}):
        raise ConfigError("--resume goes on under the run's own configuration: leave the other settings out")
    return config


def _preset(arguments: Sequence[str]) -> str | None:
    """The preset's name, whose values are the defaults of all other settings."""
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--preset":
            value = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            return value if value in PRESETS else None
    return None

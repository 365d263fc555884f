"""The command line of an experiment."""

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adios_ray.arguments import as_flag, last_value, parse_arguments
from adios_ray.errors import ConfigError, exit_status
from adios_ray.experiment.config import DEMO, SPACES, ExperimentConfig, read_experiment
from adios_ray.experiment.presets import preset_config
from adios_ray.run_directory import RunDirectory
from adios_ray.store import Location
from adios_ray.validation import leaves, suggestion

_CHOOSING = {
    "name": "--preset",
    "family": "--family",
    "objective": "--objective.name",
    "backbone": "--backbone.name",
    "scheme": "--masking.scheme",
}
"""Flags that choose the defaults of all other flags, keyed by the arguments of ``preset_config``."""
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable of a Ray job's entry point, as in ``ray_private``, which takes a second to import."""
_SHORT = {"--objective": "--objective.name", "--backbone": "--backbone.name", "--masking": "--masking.scheme"}


def main(
    description: str,
    space: str,
    demo_space: str,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
    examples: Sequence[str] = (),
) -> int:
    """Read the command line, run the experiment, and print expected errors in one line.

    Args:
        description: First paragraph of ``--help``.
        space: Default search space: the name of a file in ``search_spaces``.
        demo_space: Default search space of ``--preset demo``.
        arguments: Command line without the program's name; the process's if None.
        program: Name of the program in ``--help``; the process's own name if None.
        examples: Command lines that ``--help`` shows at its end.

    Returns:
        Exit status; see ``errors.exit_status``.

    Raises:
        SystemExit: After ``--help``.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def run() -> None:
        config = read_arguments(description, arguments, space, demo_space, program, examples)
        from adios_ray.experiment import runner  # imported here so that --help does not wait for Ray

        runner.resume(config.resume, config) if config.resume else runner.start(config)

    return exit_status(run, "nothing was trained yet: run it again")


def read_arguments(
    description: str,
    arguments: Sequence[str],
    space: str,
    demo_space: str,
    program: str | None = None,
    examples: Sequence[str] = (),
) -> ExperimentConfig:
    """Parse a command line into an experiment's configuration, over the defaults of its preset.

    Raises:
        UsageError: If a flag is unknown or a value out of range.
        ConfigError: If there is no such preset, or ``--resume`` does not name a run directory, or in a Ray job is
            relative.
    """
    arguments = [_SHORT.get(flag, flag) + equals + value for flag, equals, value in map(_parts, arguments)]
    # Before tyro: the defaults that it parses over, and prints in --help, depend on the flags that choose a preset.
    given = {name: last_value(arguments, flag) for name, flag in _CHOOSING.items()}
    if run_dir := last_value(arguments, "--resume"):
        check_in_job([("--resume", run_dir)])
        # Over the run's own configuration, so that whatever differs was asked for.
        defaults = read_experiment(run_dir)
    else:
        file = default_space(given["name"], space, demo_space)
        defaults = preset_config(**given).model_copy(update={"space": file})
    config = parse_arguments(
        ExperimentConfig,
        arguments,
        program=program,
        description=description,
        default=defaults,
        examples=examples,
    )
    config = config.model_copy(update={"space": named_space(config.space)})
    if config.resume is not None and (last_value(arguments, "--name") or last_value(arguments, "--storage")):
        raise ConfigError("--resume names the run directory: leave out --name and --storage")
    return config


def check_in_job(places: Iterable[tuple[str, Location | None]]) -> None:
    """Refuse relative paths that a Ray job would lose, or that other nodes would lack.

    Args:
        places: What the command line names, with its option; None of what it does not.

    Raises:
        ConfigError: If there is one; names its option.
    """
    if _JOB_VARIABLE not in os.environ:
        return
    from adios_ray.backend.cluster import submitted_job
    from adios_ray.experiment.checks import check_job_paths

    job = submitted_job()
    for option, place in places:
        check_job_paths({option: place}, job)


def default_space(preset: str | None, space: str = "pbt_in100", demo_space: str = "pbt_demo") -> str:
    """Return the name of the default search space, of two: that of most presets, and that of the demo."""
    return demo_space if preset == DEMO else space


def named_space(space: str) -> str:
    """Return the file of a search space that comes with the package, if this is its name; else the place itself.

    Raises:
        ConfigError: If it looks like a name, but neither such a space nor a file has it.
    """
    named = SPACES / f"{space}.yaml"
    if Path(space).suffix or "/" in space:
        return space
    if named.is_file():
        return str(named)
    if not Path(space).exists():
        names = sorted(path.stem for path in SPACES.glob("*.yaml"))
        raise ConfigError(f"search space {space} is no file, nor one of {', '.join(names)}{suggestion(space, names)}")
    return space


def repeating_command(config: ExperimentConfig, run: Location) -> str:
    """Write the command line that repeats a run, however that was started: from a shell, from Python, or resumed.

    Args:
        config: The run's resolved configuration.
        run: The run's directory or URI, whose copy of the search space is taken unless that comes with the package.
    """
    words = ["adios-ray", "train"]
    if config.preset is not None:
        words += ["--preset", config.preset]
    if _is_published(config):  # the defaults of all others depend on these
        for flag, value in zip(list(_CHOOSING.values())[1:], _choice(config), strict=True):
            words += [] if value is None else [flag, value]
    packaged = Path(config.space).parent == SPACES
    words += ["--space", Path(config.space).stem if packaged else f"{run}/{RunDirectory(Path()).space.name}"]
    # The run's copy has the overridden scheduler and search.
    left_out = {"preset", "family", "space", "resume", "take_over"} | (set() if packaged else {"scheduler", "search"})
    for path, value in changed_settings(config).items():
        if path not in left_out:
            words += _spelled(path, value)
    return shlex.join(words)


def changed_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults of their preset, as JSON values by path."""
    defaults = preset_config(config.preset, *(_choice(config) if _is_published(config) else ()))
    before = dict(leaves(defaults.model_dump(mode="json")))
    return {path: value for path, value in leaves(config.model_dump(mode="json")) if value != before[path]}


def _is_published(config: ExperimentConfig) -> bool:
    return config.preset not in (None, DEMO)


def _choice(config: ExperimentConfig) -> tuple[str | None, ...]:
    """Return the values by which a published setting is chosen, in the order of ``_CHOOSING``."""
    return config.family, config.objective.name, config.backbone.name, config.masking.scheme


def _spelled(path: str, value: Any) -> list[str]:
    """Spell a setting as words of a command line."""
    if value is False:
        section, dot, name = path.rpartition(".")
        return [as_flag(f"{section}{dot}no_{name}")]
    values = [] if value is True else value if isinstance(value, list) else [value]
    return [as_flag(path), *map(str, values)]


def _parts(argument: str) -> tuple[str, str, str]:
    """Split an argument of the form --flag=value into flag, "=" and value; any other has two empty parts."""
    return argument.partition("=") if argument.startswith("--") else (argument, "", "")

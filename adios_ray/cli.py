"""The command line, ``adios-ray``: one frozen dataclass a command, whose fields are its options."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from adios_ray.commands import UsageError
from adios_ray.commands.data import Prepare, Verify
from adios_ray.commands.weights import Evaluate, Export, ImportOfficial, Masks, Reproduce

Command = (
    Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[ImportOfficial, tyro.conf.subcommand("import-official")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes that of the process.

    Returns:
        Exit status: 0, 2 after an error, 130 after Ctrl-C.
    """
    command: Command = tyro.cli(Command, args=arguments, prog="adios-ray")
    try:
        command.run()
    except KeyboardInterrupt:
        resumes = "; the same command goes on where it stopped" if isinstance(command, Prepare) else ""
        print(f"interrupted{resumes}", file=sys.stderr)
        return 130
    except _expected() as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _expected() -> tuple[type[Exception], ...]:
    """Errors that say all there is to say in one line; asked for, and so imported, only after an error."""
    from adios_ray.config import ConfigError
    from adios_ray.data.store import DatasetError
    from adios_ray.training.checkpoints import CheckpointError

    return UsageError, ConfigError, CheckpointError, DatasetError, OSError


if __name__ == "__main__":
    sys.exit(main())

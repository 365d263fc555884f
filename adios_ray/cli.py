"""The command line, ``adios-ray``: one frozen dataclass a command, whose fields are its options."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from adios_ray.commands.data import Prepare, Verify
from adios_ray.commands.weights import Evaluate, Export, ImportOfficial, Masks, Reproduce
from adios_ray.errors import exit_status

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
        Exit status; see ``errors.exit_status``.
    """
    command: Command = tyro.cli(Command, args=arguments, prog="adios-ray")
    resumes = "the same command goes on where it stopped" if isinstance(command, Prepare) else ""
    return exit_status(command.run, resumes)


if __name__ == "__main__":
    sys.exit(main())

"""The command line, ``adios-ray``: one frozen dataclass per command, whose fields are its options."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from adios_ray.commands.data import Prepare, Verify
from adios_ray.commands.evaluate import Evaluate
from adios_ray.commands.masks import Masks
from adios_ray.commands.report import Report
from adios_ray.commands.training import RESUMES, TRAIN, Replay, Train, train
from adios_ray.commands.weights import Export, ImportOfficial, Reproduce
from adios_ray.errors import exit_status

Command = (
    Annotated[Train, tyro.conf.subcommand(TRAIN)]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[ImportOfficial, tyro.conf.subcommand("import-official")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate"), tyro.conf.CascadeSubcommandArgs]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes ``sys.argv``.

    Returns:
        Exit status; see ``errors.exit_status``.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Before tyro reads the line: the options and defaults of ``train`` depend on its own arguments, such as --preset.
    if arguments[:1] == [TRAIN]:
        return train(arguments[1:])
    command = tyro.cli(Command, args=arguments, prog="adios-ray")
    assert not isinstance(command, Train)  # handled above
    again = "run the same command again to resume"
    resumes = {Prepare: again, Evaluate: again, Replay: RESUMES}.get(type(command), "")
    return exit_status(command.run, resumes)


if __name__ == "__main__":
    sys.exit(main())

"""The command line, ``adios-ray``: one frozen dataclass per command, whose fields are its options."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

import adios_ray
from adios_ray.arguments import completion_script, parse_arguments
from adios_ray.commands.data import Prepare, Verify
from adios_ray.commands.doctor import Doctor
from adios_ray.commands.evaluate import Evaluate
from adios_ray.commands.evaluation_kinds import Robustness
from adios_ray.commands.masks import Masks
from adios_ray.commands.report import Report
from adios_ray.commands.runs import Runs
from adios_ray.commands.training import TRAIN, Replay, Train, train
from adios_ray.commands.weights import Export, ImportOfficial, Reproduce
from adios_ray.errors import exit_status
from adios_ray.experiment.command import check_in_job
from adios_ray.store import Location

PROGRAM = "adios-ray"


@dataclass(frozen=True)
class Completion:
    """Print a script that completes commands and options in a shell."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""

    def run(self) -> None:
        """Print the script."""
        from adios_ray.experiment.config import ExperimentConfig  # reads all presets' names

        settings = Annotated[ExperimentConfig, tyro.conf.subcommand(TRAIN)]
        print(completion_script(settings | Others, self.shell, PROGRAM))


Others = (
    Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Runs, tyro.conf.subcommand("runs")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[ImportOfficial, tyro.conf.subcommand("import-official")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate"), tyro.conf.CascadeSubcommandArgs]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Completion, tyro.conf.subcommand("completion")]
)
Command = Annotated[Train, tyro.conf.subcommand(TRAIN)] | Others

EXAMPLES: Mapping[str, Sequence[str]] = {
    "train": (
        "adios-ray train --preset demo",
        "adios-ray train --data-dir data/photos --image-size 96 --epochs 300 --population 8",
        "adios-ray train --preset in100s --objective byol --data-dir data/in100s --storage /shared/runs",
        "adios-ray train --data-dir data/photos --image-size 96 --space asha_demo --scheduler asha",
        "adios-ray train --resume runs/RUN --epochs 200",
    ),
    "replay": (
        "adios-ray replay --schedule runs/RUN/schedule.json --output runs/replayed --epochs 800",
        "adios-ray replay --run runs/RUN --trial trial_02 --output runs/second",
    ),
    "runs": ("adios-ray runs", "adios-ray runs --storage /shared/runs"),
    "report": (
        "adios-ray report runs/RUN --open",
        "adios-ray report runs/RUN1 runs/RUN2 --output comparison.html",
    ),
    "doctor": (
        "adios-ray doctor",
        "adios-ray doctor --preset in100s --storage /shared/runs --data-dir data/in100s",
        "adios-ray doctor --objective vicreg",
        "adios-ray doctor --objective my_package.my_objective:MyObjective",
    ),
    "prepare": (
        "adios-ray prepare --dataset objects --output data/objects",
        "adios-ray prepare --dataset folder --source photos --image-size 160 --output data/photos",
        "adios-ray prepare --dataset stl10 --source stl10 --download --output s3://bucket/stl10",
    ),
    "verify": ("adios-ray verify data/photos",),
    "import-official": ("adios-ray import-official released/simclr_adios --output simclr_adios.safetensors",),
    "export": (
        "adios-ray export --checkpoint runs/RUN/checkpoints/trial_00/epoch_00100 --output encoder.safetensors",
        "adios-ray export --checkpoint weights.safetensors --output masks.onnx --occlusion",
    ),
    "evaluate": (
        "adios-ray evaluate knn --checkpoint runs/RUN/checkpoints/trial_00/epoch_00100 --data-dir data/photos",
        "adios-ray evaluate linear --checkpoint weights.safetensors --data-dir data/photos --epochs 100",
        "adios-ray evaluate robustness --checkpoint adios.safetensors --baseline none.safetensors --data-dir data/bgs",
    ),
    "masks": (
        "adios-ray masks --checkpoint weights.safetensors --images photos --output masks --overlay",
        "adios-ray masks --checkpoint weights.safetensors --data-dir data/photos --output masks.png",
    ),
    "reproduce": ("adios-ray reproduce runs/RUN/diverged/trial_00/epoch_00007",),
    "completion": (
        "adios-ray completion bash > ~/.local/share/bash-completion/completions/adios-ray",
        "adios-ray completion zsh > ~/.zfunc/_adios-ray",
    ),
}
"""Command lines by command, for ``--help``."""
DESCRIPTION = (
    "Adversarial masking (ADIOS) on a Ray cluster: populations of self-supervised trainings that tune themselves. "
    "COMMAND --help explains a command, --version prints the version."
)
FIRST_STEPS = ("adios-ray train --preset demo", "adios-ray runs", "adios-ray report runs/RUN --open")


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
        return train(arguments[1:], EXAMPLES[TRAIN])

    if arguments == ["--version"]:
        print(f"{PROGRAM} {adios_ray.__version__}")
        return 0

    def run() -> None:
        examples = EXAMPLES.get(next(iter(arguments), ""), FIRST_STEPS)
        command = parse_arguments(Command, arguments, program=PROGRAM, description=DESCRIPTION, examples=examples)
        assert not isinstance(command, Train)  # handled above
        check_in_job(_lasting_places(command))
        command.run()

    return exit_status(run)


def _lasting_places(command: object) -> Iterator[tuple[str, Location | None]]:
    """Yield what a command writes, and what it reads on other nodes, by option; not what it reads on this one alone."""
    yield "--output", getattr(command, "output", None)
    if isinstance(command, Prepare) and command.download:
        yield "--source", command.source
    if isinstance(command, Report):
        yield from (("RUN", run) for run in command.runs)  # their pages are written into them
    if isinstance(command, Evaluate) and command.ray:
        yield "--data-dir", command.data_dir
        if isinstance(command.kind, Robustness):
            yield from (("--variation", place) for place in command.kind.variations.values())

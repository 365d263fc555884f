"""Train with the schedule that a population found: alone, longer, or on other data.

A run that has finished has ``schedule.json``, its best trial's schedule over all its donors. With the run's own data
the weights come out the same bit for bit (on the same machine, with as many threads as a worker had); with
``--epochs 800`` each stage begins at the same share of a longer training.

    python experiments/replay_schedule.py --schedule runs/RUN/schedule.json --output runs/replayed
    python experiments/replay_schedule.py --schedule runs/RUN/schedule.json --output runs/longer --epochs 800 \
        --data-dir data/stl10
    python experiments/replay_schedule.py --run runs/RUN --trial trial_02 --output runs/second
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from adios_ray.errors import ConfigError, exit_status
from adios_ray.search.replay import replay
from adios_ray.search.schedule import Schedule, load_schedule, schedule_of
from adios_ray.tracking.records import MEASURES


@dataclass(frozen=True)
class Options:
    """What to train again."""

    output: Path
    """Directory of checkpoints and reports: a new one, or one that the same replay, interrupted, has left."""
    schedule: Path | None = None
    """File of the schedule."""
    run: Path | None = None
    """Run directory, with --trial, in place of --schedule."""
    trial: str | None = None
    """Trial of --run whose schedule to take."""
    epochs: int | None = None
    """Epochs in all; the run's if not given."""
    data_dir: str | None = None
    """Directory or URI of shards; the run's if not given."""
    seed: int | None = None
    """Seed of weights, order and augmentations; the run's if not given."""
    threads: int = 1
    """CPU threads."""


def chosen(options: Options) -> Schedule:
    """The schedule that the options name.

    Raises:
        ConfigError: If they name none, or two.
    """
    if (options.schedule is None) == (options.run is None):
        raise ConfigError("give either --schedule FILE, or --run DIRECTORY with --trial NAME")
    if options.schedule is not None:
        return load_schedule(options.schedule)
    if options.run is None or options.trial is None:
        raise ConfigError("--run needs --trial, the trial whose schedule to take")
    return schedule_of(options.run, options.trial)


def main(options: Options) -> None:
    """Train and say where the weights are."""
    schedule = chosen(options)
    schedule = schedule.scaled(options.epochs) if options.epochs else schedule
    changes = {"data_dir": options.data_dir, "seed": options.seed}
    config = schedule.trial({key: value for key, value in changes.items() if value is not None})
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = replay(schedule, config, options.output, device)
    measure = MEASURES[config.evaluation.fitness]
    fitness = f"{measure.label} {measure.text(trainer.evaluate('test'))}"
    print(f"{fitness} on test; checkpoints: {options.output / 'checkpoints'}")


if __name__ == "__main__":
    arguments = tyro.cli(Options, description=__doc__)
    sys.exit(exit_status(lambda: main(arguments), "the same command goes on from its last report"))

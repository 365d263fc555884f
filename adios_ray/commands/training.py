"""Commands that train."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from adios_ray.config import Count, Seed
from adios_ray.errors import AGAIN, ConfigError, exit_status, resumable
from adios_ray.experiment import command
from adios_ray.files import expand_home
from adios_ray.store import Location

if TYPE_CHECKING:
    from adios_ray.experiment.schedule import Schedule

TRAIN = "train"


@dataclass(frozen=True)
class Train:
    """Train a population that tunes itself."""


def train(arguments: Sequence[str], examples: Sequence[str]) -> int:
    """Train a population like ``experiments/pbt_in100.py``; ``--space`` and ``--scheduler`` choose another search.

    Args:
        arguments: The command line after ``adios-ray train``.
        examples: Command lines that ``--help`` shows at its end.

    Returns:
        Exit status; see ``errors.exit_status``.
    """
    if status := exit_status(partial(expand_home, "~")):  # Ray, when it is imported, fails without a home directory
        return status
    return command.main(Train.__doc__ or "", "pbt_in100", "pbt_demo", arguments, f"adios-ray {TRAIN}", examples)


@dataclass(frozen=True)
class Replay:
    """Train with the schedule that a population found: alone, longer, or on other data."""

    output: Location
    """Local directory of checkpoints and reports: a new one, or that of the same replay, interrupted, to resume it."""
    schedule: Location | None = None
    """Schedule file, a path or a URI (s3://, gs://, ...)."""
    run_dir: Annotated[Location | None, tyro.conf.arg(name="run")] = None
    """Run directory, a path or a URI, with --trial, in place of --schedule."""
    trial: str | None = None
    """Trial of --run whose schedule to replay."""
    epochs: Count | None = None
    """Total epochs; the run's if not given."""
    data_dir: str | None = None
    """Directory or URI of shards; the run's if not given."""
    seed: Seed | None = None
    """Seed of weights, order and augmentations; the run's if not given."""
    threads: Count | None = None
    """CPU threads; as many as a worker of the run had, at most one for each CPU, if not given."""

    def run(self) -> None:
        """Train, then print the test fitness and the path of the checkpoints."""
        import torch

        from adios_ray.devices import best_device
        from adios_ray.experiment.replay import replay
        from adios_ray.measures import MEASURES
        from adios_ray.places import require_local

        output = require_local(self.output, "--output")
        schedule = self._schedule()
        schedule = schedule if self.epochs is None else schedule.scaled(self.epochs)
        changes = {"data_dir": self.data_dir, "seed": self.seed}
        config = schedule.trial({key: value for key, value in changes.items() if value is not None})
        # At most one for each CPU, as in a worker. Runs of earlier versions did not record their threads.
        torch.set_num_threads(self.threads or min(schedule.threads or 1, len(os.sched_getaffinity(0))))
        with resumable(f"{AGAIN} from the last report"):
            trainer = replay(schedule, config, output, best_device())
            found = trainer.evaluate("test")
        measure = MEASURES[config.evaluation.fitness]
        fitness = measure.scores_text(found.value, found.standard_error, found.accuracy)
        print(f"{fitness} on test; checkpoints: {output / 'checkpoints'}")

    def _schedule(self) -> "Schedule":
        """Load the schedule that the options name, or raise a ConfigError."""
        from adios_ray.experiment.schedule import load_schedule, schedule_of
        from adios_ray.places import fetched
        from adios_ray.run_storage import fetched_run

        if (self.schedule is None) == (self.run_dir is None) or (self.schedule is not None and self.trial is not None):
            raise ConfigError("give either --schedule FILE, or --run DIRECTORY with --trial NAME")
        if self.schedule is not None:
            return load_schedule(fetched(self.schedule))
        if self.run_dir is None or self.trial is None:
            raise ConfigError("--run needs --trial, the trial whose schedule to replay")
        return schedule_of(fetched_run(self.run_dir), self.trial, self.run_dir)

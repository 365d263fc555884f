"""Populations of real trainings in this process: the files of a run directory, without Ray's processes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from in_process import InProcess, Position
from rich.console import Console

from adios_ray.backend.line import Reply
from adios_ray.data.manifest import read_manifest
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.evolution import fresh_population, make_scheduler, trial_names
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.opening import rungs
from adios_ray.search.spaces import SearchSpace, save_space
from adios_ray.search.state import PopulationState
from adios_ray.tracking.decisions import begin_lineage
from adios_ray.tracking.live import LiveView
from adios_ray.tracking.metrics import RayMetrics
from adios_ray.tracking.records import write_config
from adios_ray.tracking.results import Row, read_results
from adios_ray.tracking.run import Run
from adios_ray.tracking.trackers.isolation import Trackers
from adios_ray.training.trainer import Trainer
from adios_ray.trial_report import TrialReport

KEPT = 16
"""Trainers in memory; those of further trials are loaded from their checkpoints."""
Watch = Callable[[str, Trainer, TrialReport], None]
"""Called with a trial's name, trainer and report, after its checkpoint has been written."""


class Trainers:
    """Trains trials as the workers' loop does, each with a trainer of its own."""

    def __init__(
        self, directory: Path, kind: type[Trainer] = Trainer, watch: Watch = lambda name, trainer, report: None
    ) -> None:
        """Write checkpoints into a run directory.

        Args:
            directory: The run directory.
            kind: Class of the trainers.
            watch: Called after each report.
        """
        self._run, self._kind, self._watch = RunDirectory(directory), kind, watch
        self._trainers: dict[str, tuple[Trainer, Position]] = {}

    def __call__(self, name: str, position: Position) -> Reply:
        """Train a trial from a position to its next report."""
        trainer, reached = self._trainers.pop(name, (None, None))
        trainer = trainer or self._kind(position.config, torch.device("cpu"))
        if position.checkpoint is not None and position != reached:
            trainer.load(position.checkpoint, position.config)
        report = trainer.train_to_report()
        checkpoint = trainer.save(self._run.checkpoint(name, report.epoch))
        self._trainers[name] = trainer, Position(checkpoint, position.config, report.epoch)
        if len(self._trainers) > KEPT:
            del self._trainers[next(iter(self._trainers))]  # trained the longest ago
        self._watch(name, trainer, report)
        return Reply(report, checkpoint)


class _NoMetrics:
    """Publishes nothing."""

    def report(self, row: Row) -> None:
        """Ignore a report."""


def train_population(
    config: ExperimentConfig,
    space: SearchSpace,
    directory: Path,
    trainers: Trainers,
    at_once: int | None = None,
    enough: Callable[[PopulationState], bool] = lambda state: False,
    console: Console | None = None,
) -> PopulationState:
    """Train a population to its end, or continue one that was interrupted.

    Args:
        config: The experiment; resources are ignored.
        space: The search space.
        directory: The run directory; created if it does not exist.
        trainers: Trains the trials.
        at_once: Trials that train at the same time; None takes all.
        enough: Asked after each report whether to stop.
        console: Where progress is shown; None takes standard output.
    """
    if not RunDirectory(directory).population.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        write_config(directory, config.model_dump(mode="json"))
        save_space(space, RunDirectory(directory).space)
        images = read_manifest(config.data_dir).checksum if config.data_dir else ""  # toys have none
        fresh_population(config, space, images).save(directory)
    state = PopulationState.load(directory)
    state.save(directory)
    begin_lineage(directory, state.lineage_lines)
    names = trial_names(config, space)
    view = LiveView(config.epochs, config.population, directory.name, read_results(directory), console)
    metrics, storage = cast(RayMetrics, _NoMetrics()), RunStorage(directory)
    trackers = Trackers([], storage, view.note)
    with Run(storage, list(space.parameters), view, metrics, trackers, page_interval_s=math.inf) as run:
        InProcess(config.trial(), state, run, trainers).drive(
            lambda members, admission: make_scheduler(
                space, members, admission, len(names), rungs(space.opening, config.population)
            ),
            state.unfinished(names),
            at_once,
            enough=lambda: enough(state),
        )
    return state

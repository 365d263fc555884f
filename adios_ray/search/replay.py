"""Training under a schedule, alone: what a population found, done again without it."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from adios_ray.config import TrialConfig, replaced
from adios_ray.errors import ConfigError, RunError
from adios_ray.files import remove_drafts, whole_lines, write_whole
from adios_ray.search.schedule import Schedule, load_schedule
from adios_ray.tracking.records import MEASURES, Measure
from adios_ray.training.checkpoints import newest_whole
from adios_ray.training.trainer import Trainer

REPLAY_FILE = "replay.json"
REPORTS_FILE = "reports.jsonl"
KEPT_CHECKPOINTS = 2


def replay(schedule: Schedule, config: TrialConfig, output: Path, device: torch.device) -> Trainer:
    """Train from the first step to the last, with the values of each stage in turn.

    With the data and the seed of the population's run, the weights are the same bit for bit. Called again after an
    interruption, it goes on from the newest whole checkpoint.

    Args:
        schedule: The stages.
        config: What they have in common, with the schedule's number of epochs.
        output: Directory for ``replay.json`` (what is trained), ``checkpoints/epoch_*`` and ``reports.jsonl``.
        device: Where to train.

    Returns:
        The trainer after the last epoch.

    Raises:
        ConfigError: If ``output`` holds something else.
        RunError: If the training diverges.
    """
    _claim(output, Schedule(config=config.model_dump(mode="json"), stages=schedule.stages))
    measure = MEASURES[config.evaluation.fitness]
    pointer = newest_whole(output / "checkpoints")
    if pointer is not None:
        print(f"goes on from {pointer.path}", flush=True)
    trainer: Trainer | None = None
    for stage, end in schedule.intervals():
        own = replaced(config, stage.values)
        trainer = trainer or Trainer(own, device)
        if pointer is not None:
            trainer.load(pointer, own)
        while trainer.epoch < end:
            report = {**trainer.train_to_report(), "trial": stage.trial, **stage.values}
            name = f"epoch_{trainer.epoch:05d}"
            if trainer.divergence:
                trainer.dump_divergence(output / "diverged" / name)
                raise RunError(
                    f"training diverged at {trainer.divergence}; {output / 'diverged' / name} holds that step, lower "
                    "learning rates may help"
                )
            _write_report(output / REPORTS_FILE, report, measure)
            pointer = trainer.save(output / "checkpoints" / name)
            _remove_older(output / "checkpoints")
    assert trainer is not None
    return trainer


def _claim(output: Path, schedule: Schedule) -> None:
    """Write down what is trained into ``output``; what lies there already must be of the same training."""
    path = output / REPLAY_FILE
    remove_drafts(output)
    if path.is_file():
        if load_schedule(path) != schedule:
            raise ConfigError(f"output {output} holds a training with another schedule or other settings: name another")
        remove_drafts(output / "checkpoints")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output {output} holds something else than a replay: name a directory that is new")
    else:
        schedule.save(path)


def _write_report(path: Path, report: dict[str, Any], measure: Measure) -> None:
    """Add a report to the file, in place of those that a training which was cut off here had written."""
    lines = [line for line in whole_lines(path).splitlines() if json.loads(line)["epoch"] < report["epoch"]]
    write_whole(path, b"".join(line + b"\n" for line in [*lines, json.dumps(report).encode()]))
    values = {key: value for key, value in report.items() if "." in key}
    changing = ", ".join(f"{path} {value:.3g}" for path, value in values.items() if isinstance(value, int | float))
    fitness = f"{measure.label} {measure.text(report['fitness'])}"
    print(f"epoch {report['epoch']}: {fitness}, loss {report['loss']:.4g}, {changing}", flush=True)


def _remove_older(folder: Path) -> None:
    for directory in sorted(folder.glob("epoch_*"))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(directory)

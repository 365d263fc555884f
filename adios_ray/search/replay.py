"""Training under a schedule, alone: what a population found, done again without it."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from adios_ray.config import TrialConfig, replaced
from adios_ray.search.schedule import Schedule
from adios_ray.training.checkpoints import META_FILE, CheckpointError, Pointer
from adios_ray.training.trainer import Trainer

KEPT_CHECKPOINTS = 2


def replay(schedule: Schedule, config: TrialConfig, output: Path, device: torch.device) -> Trainer:
    """Train from the first step to the last, with the values of each stage in turn.

    With the data and the seed of the population's run, the weights are the same bit for bit. Called again after an
    interruption, it goes on from the newest checkpoint.

    Args:
        schedule: The stages.
        config: What they have in common, with the schedule's number of epochs.
        output: Directory for ``checkpoints/epoch_*`` and ``reports.jsonl``.
        device: Where to train.

    Returns:
        The trainer after the last epoch.
    """
    pointer = _newest(output / "checkpoints")
    trainer: Trainer | None = None
    for stage, end in schedule.intervals():
        own = replaced(config, stage.values)
        trainer = trainer or Trainer(own, device)
        if pointer is not None:
            trainer.load(pointer, own)
        while trainer.epoch < end:
            report = trainer.train_to_report()
            pointer = trainer.save(output / "checkpoints" / f"epoch_{trainer.epoch:05d}")
            _write_report(output, {**report, "trial": stage.trial, **stage.values})
            _remove_older(output / "checkpoints")
    assert trainer is not None
    return trainer


def _newest(folder: Path) -> Pointer | None:
    """The newest checkpoint; None if there is none.

    Raises:
        CheckpointError: If it is damaged.
    """
    for directory in sorted(folder.glob("epoch_*"), reverse=True):
        try:
            meta = json.loads((directory / META_FILE).read_text())
            return Pointer(path=directory, sha256=str(meta["sha256"]))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{directory} is damaged ({error}); remove it to go on from the one before"
            ) from error
    return None


def _write_report(output: Path, report: dict[str, Any]) -> None:
    with (output / "reports.jsonl").open("a") as file:
        file.write(json.dumps(report) + "\n")
    values = {key: value for key, value in report.items() if "." in key}
    changing = ", ".join(f"{path} {value:.3g}" for path, value in values.items() if isinstance(value, int | float))
    print(f"epoch {report['epoch']}: k-NN {report['fitness']:.4f}, loss {report['loss']:.4g}, {changing}", flush=True)


def _remove_older(folder: Path) -> None:
    for directory in sorted(folder.glob("epoch_*"))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(directory)

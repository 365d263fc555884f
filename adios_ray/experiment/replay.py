"""Replay: one training under the schedule that a population found, without the population."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from adios_ray.checkpoints import KEPT_CHECKPOINTS, newest_intact
from adios_ray.config import TrialConfig, check_adapted, replaced, seen_view
from adios_ray.console import say
from adios_ray.data.manifest import read_manifest
from adios_ray.devices import precision_note
from adios_ray.errors import ConfigError, RunError
from adios_ray.experiment.schedule import Schedule, Stage, load_schedule
from adios_ray.experiment.trial_checks import check_trial
from adios_ray.files import atomic_write, complete_lines, json_line, remove_drafts
from adios_ray.measures import MEASURES, Measure
from adios_ray.run_directory import REPLAY_FILE, REPORTS_FILE, epoch_name, newest_epochs
from adios_ray.tracking.formatting import label, value_text
from adios_ray.training.trainer import Trainer
from adios_ray.trial_report import TrialReport
from adios_ray.validation import differences


def replay(schedule: Schedule, config: TrialConfig, output: Path, device: torch.device) -> Trainer:
    """Train from the first step to the last, with the values of each stage in turn.

    With the data, the seed and the threads of the population's run, the weights are the same bit for bit. Called again
    after an interruption, it resumes from the newest intact checkpoint.

    Args:
        schedule: The stages.
        config: The configuration that the stages share, with the schedule's number of epochs.
        output: Directory for ``replay.json`` (what is trained), ``checkpoints/epoch_*`` and ``reports.jsonl``.
        device: Where to train.

    Returns:
        The trainer after the last epoch.

    Raises:
        ConfigError: If there is no data set, a stage does not fit it, or ``output`` holds another replay, or anything
            else.
        DatasetError: If the data set cannot be used.
        EvaluationError: If a split is too small for the measure.
        RunError: If the training diverges.
    """
    if (data_dir := config.data_dir) is None:
        raise ConfigError("the schedule names no data set: give --data-dir")
    manifest = read_manifest(data_dir)
    stored, evaluation = manifest.image_size, config.evaluation
    view = seen_view(evaluation.view, stored, config.image_size or stored)
    if view != evaluation.view:
        say(f"evaluates central squares: images stored at {stored} pixels are too small for {evaluation.view}")
        config = replaced(config, {"evaluation.view": view})
    schedule = Schedule(
        config=config.model_dump(mode="json"),
        stages=schedule.stages,
        images=manifest.checksum,
        threads=torch.get_num_threads(),
    )
    # Before anything is written or trained.
    first, *later = [replaced(config, stage.values) for stage, _ in schedule.intervals()]
    check_trial(first, manifest, data_dir, gpu=device.type == "cuda")
    for own in later:
        check_adapted(first, own)
    _claim(output, schedule)
    measure = MEASURES[config.evaluation.fitness]
    pointer = newest_intact(output / "checkpoints")
    if pointer is not None:
        print(f"resumes from {pointer.path}", flush=True)
    if line := precision_note(config.precision, device):
        print(line, flush=True)
    trainer: Trainer | None = None
    for stage, end in schedule.intervals():
        own = replaced(config, stage.values)
        trainer = trainer or Trainer(own, device)
        # Also between stages: as in an exploit, loading applies the new values and splits or merges masks. Stages that
        # ended before the checkpoint load it in vain, and train nothing.
        if pointer is not None:
            trainer.load(pointer, own)
        while trainer.epoch < end:
            report = trainer.train_to_report()
            name = epoch_name(report.epoch)
            if trainer.divergence:
                trainer.save(output / "diverged" / name, trainer.take_failed_batch())
                raise RunError(
                    f"training diverged at {trainer.divergence}; {output / 'diverged' / name} holds that step, lower "
                    "learning rates may help"
                )
            # Report, save, delete: a crash after the report repeats this epoch, and its report replaces the one written
            # now. With the checkpoint first, a crash in between would lose the report.
            _write_report(output / REPORTS_FILE, report, stage, measure)
            pointer = trainer.save(output / "checkpoints" / name)
            for directory in newest_epochs(output / "checkpoints")[KEPT_CHECKPOINTS:]:
                shutil.rmtree(directory)
    assert trainer is not None
    return trainer


def _claim(output: Path, schedule: Schedule) -> None:
    """Record what is trained into ``output``, or check that a replay already there is the same.

    Raises:
        ConfigError: If ``output`` holds another replay, or anything else.
    """
    path = output / REPLAY_FILE
    remove_drafts(output)
    if path.is_file():
        known = load_schedule(path)
        changes = differences(_settings(known), _settings(schedule))
        if known.images is None:
            del changes["images"]
        elif known.images == schedule.images:
            changes.pop("data_dir", None)
        if changes:
            texts = [f"{name} is {old} there and {new} here" for name, (old, new) in changes.items()]
            raise ConfigError(
                f"output {output} holds a replay with other settings ({'; '.join(texts)}): name another directory"
            )
        if known.threads not in (None, schedule.threads):
            print(
                f"began with --threads {known.threads}: with {schedule.threads}, sums are rounded otherwise", flush=True
            )
        remove_drafts(output / "checkpoints")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output {output} is not the directory of a replay: name one that is new or empty")
    else:
        output.mkdir(parents=True, exist_ok=True)
        schedule.save(path)


def _settings(schedule: Schedule) -> dict[str, Any]:
    """Return configuration and stages; settings that an earlier version did not write down have their defaults."""
    stages = {str(number): stage.model_dump(mode="json") for number, stage in enumerate(schedule.stages)}
    return {**schedule.trial().model_dump(mode="json"), "stages": stages, "images": schedule.images}


def _write_report(path: Path, report: TrialReport, stage: Stage, measure: Measure) -> None:
    """Append a report, dropping reports of this and later epochs that an interrupted replay left."""
    lines = [line for line in complete_lines(path).splitlines() if json.loads(line)["epoch"] < report.epoch]
    written = {**report.model_dump(exclude={"outcomes"}), "trial": stage.trial, **stage.values}
    atomic_write(path, b"".join(line + b"\n" for line in [*lines, json_line(written).encode()]))
    values = "".join(f", {label(name)} {value_text(value)}" for name, value in stage.values.items())
    fitness = measure.scores_text(report.fitness, report.standard_error, report.accuracy)
    print(f"epoch {report.epoch}: {fitness}, loss {report.loss:.4g}{values}", flush=True)

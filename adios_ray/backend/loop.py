"""What a Ray Train worker runs: a loop over the commands of its trial's channel."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train.torch import get_device

from adios_ray import parallel
from adios_ray.backend.line import Start
from adios_ray.backend.loop_config import LoopConfig
from adios_ray.checkpoints import Pointer, damage, newest_intact
from adios_ray.config import TrialConfig
from adios_ray.errors import CheckpointError, RunError
from adios_ray.files import remove_drafts
from adios_ray.retry import retry_in_run
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.records import MaskFile, write_masks
from adios_ray.training.trainer import Trainer

MASK_PICTURES = 8
MASK_EPOCHS = 20


def train_loop(config: LoopConfig) -> None:
    """Take commands until told to stop: train to the next report, or load a checkpoint under a new configuration."""
    torch.set_num_threads(config["threads"])
    channel, trial, run_dir = config["channel"], config["trial"], Path(config["run_dir"])
    if parallel.rank() == 0:
        for folder in RunDirectory(run_dir).trial_folders(trial):
            remove_drafts(folder)
    settings, checkpoint, position = _agreed_start(channel, trial)
    trainer = Trainer(settings, _device())
    if checkpoint:
        _load(trainer, checkpoint, settings, config)
    reported_at = None
    while True:
        command = ray.get(channel.take.remote(trial, position))
        if command.kind == "stop":
            return
        if command.kind == "load":
            _load(trainer, command.checkpoint, command.config, config)
        else:
            idle_s = time.monotonic() - reported_at if reported_at else 0.0
            _train(trainer, config, position, idle_s)
            reported_at = time.monotonic()
        position += 1


def _load(trainer: Trainer, pointer: Pointer, settings: TrialConfig, config: LoopConfig) -> None:
    """Load a checkpoint; where it is damaged for any worker, the newest whole one before it, for all of them.

    Raises:
        CheckpointError: If there is none.
    """
    try:
        if parallel.world_size() > 1 and (problems := [p for p in parallel.gather_values(damage(pointer)) if p]):
            raise CheckpointError(problems[0])
        trainer.load(pointer, settings)
    except CheckpointError as error:
        older = parallel.from_first(newest_intact(pointer.path.parent, before=pointer.path.name))
        if older is None:
            raise
        trainer.load(older, settings)
        if parallel.rank() == 0:
            _note(config, f"{error}; it goes on from {older.path.name}")


def _train(trainer: Trainer, config: LoopConfig, position: int, idle_s: float) -> None:
    """Train to the next report, save, and answer the command; Ray Train learns of the checkpoint too."""
    report = trainer.train_to_report(idle_s)
    checkpoint, trial, run_dir, say = None, config["trial"], Path(config["run_dir"]), partial(_note, config)
    run = RunDirectory(run_dir)
    trainer.dump_divergence(run.diverged_step(trial, report.epoch))
    if parallel.rank() == 0:
        checkpoint = retry_in_run(run_dir, lambda: trainer.save(run.checkpoint(trial, report.epoch)), say)
        retry_in_run(run_dir, lambda: _draw_masks(trainer, run_dir, trial), say)
        ray.get(config["channel"].answer.remote(trial, position, report, checkpoint))
    ray.train.report(
        {"epoch": report.epoch, "fitness": report.fitness},
        checkpoint=ray.train.Checkpoint(checkpoint.path) if checkpoint else None,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def _note(config: LoopConfig, text: str) -> None:
    """Say something with the next report, and in the worker's log at once."""
    print(text, flush=True)
    ray.get(config["channel"].note.remote(config["trial"], text))


def _draw_masks(trainer: Trainer, run_dir: Path, trial: str) -> None:
    """Keep masks of the first validation images, at most about ``MASK_EPOCHS`` times in a training."""
    if trainer.networks.occlusion is None:
        return
    every = max(trainer.config.epochs // MASK_EPOCHS, 1)
    if trainer.epoch % every and not trainer.done:
        return
    images, masks = trainer.masks(MASK_PICTURES)
    pixels = (masks * 255).round().to(torch.uint8)
    write_masks(run_dir, trial, trainer.epoch, MaskFile(images.cpu().numpy(), pixels.cpu().numpy()))


def _agreed_start(channel: Any, trial: str) -> Start:
    """Where to begin: the first worker asks, all workers hear the same."""
    start: Any = ray.get(channel.start.remote(trial)) if parallel.rank() == 0 else None
    agreed: Start = parallel.from_first(start)
    return agreed


def _device() -> torch.device:
    """The GPU that Ray gave to this worker; the CPU if it gave none.

    Raises:
        RunError: If torch cannot use the GPU.
    """
    device: torch.device = get_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"Ray gave this worker a GPU that torch {torch.__version__} cannot use; install torch for this GPU's "
            "driver, or train on CPUs with --gpus-per-worker 0"
        )
    return device

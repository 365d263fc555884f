"""The loop of a Ray Train worker, over the commands that its trial's channel sends."""

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
from adios_ray.retry import retry, retry_in_run
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.records import MaskFile, write_masks
from adios_ray.training.trainer import Trainer

MASK_PICTURES = 8
"""Validation images whose masks are kept."""
MASK_EPOCHS = 20
"""Number of epochs, about, for which masks are kept over a training."""


def train_loop(config: LoopConfig) -> None:
    """Run commands until "stop": train to the next report, or load a checkpoint under a new configuration.

    Every worker of the trial takes every command, in order, since each one contains collective operations.
    """
    torch.set_num_threads(config["threads"])
    channel, trial, storage = config["channel"], config["trial"], RunStorage(config["run_dir"])
    retry(storage.open, print)
    # Ray Train takes the previous group down before it starts this one, so any drafts left are abandoned.
    if parallel.rank() == 0:
        for folder in RunDirectory(storage.directory).trial_folders(trial):
            remove_drafts(folder)
    # One call for the whole group: each call moves an unanswered "train" to a new position, so if every worker called,
    # all but the last would wait at positions that no command has any more.
    first: Any = ray.get(channel.start.remote(trial)) if parallel.rank() == 0 else None
    start: Start = parallel.from_first(first)
    settings, checkpoint, position = start
    trainer = Trainer(settings, _device())
    if checkpoint:
        _load(trainer, checkpoint, settings, config, storage)
    reported_at = None
    while True:
        command = ray.get(channel.take.remote(trial, position))
        if command.kind == "stop":
            storage.close()
            return
        if command.kind == "load":
            _load(trainer, command.checkpoint, command.config, config, storage)
        else:
            idle_s = time.monotonic() - reported_at if reported_at else 0.0
            _train(trainer, config, storage, position, idle_s)
            reported_at = time.monotonic()
        position += 1


def _load(trainer: Trainer, pointer: Pointer, settings: TrialConfig, config: LoopConfig, storage: RunStorage) -> None:
    """Load a checkpoint on all workers; if it is damaged for any of them, the newest intact one before it.

    Raises:
        CheckpointError: If there is no intact one.
    """
    pointer, say = storage.here(pointer), partial(_note, config)
    retry(lambda: storage.fetch(pointer), say)
    try:
        # Loading is collective. If one worker alone raised, the others would wait for it in vain, so the damage that
        # any of them sees is shared before any of them loads.
        if parallel.world_size() > 1 and (problems := [p for p in parallel.gather_values(damage(pointer)) if p]):
            raise CheckpointError(problems[0])
        trainer.load(pointer, settings)
    except CheckpointError as error:
        retry(lambda: storage.fetch_older(pointer.path.parent), say)
        # Each trial keeps its newest two checkpoints for this case. The first worker chooses, because shared storage
        # may show other nodes another list.
        older = parallel.from_first(newest_intact(pointer.path.parent, before=pointer.path.name))
        if older is None:
            raise
        trainer.load(storage.here(older), settings)
        if parallel.rank() == 0:
            _note(config, f"{error}; it resumes from {older.path.name}")


def _train(trainer: Trainer, config: LoopConfig, storage: RunStorage, position: int, idle_s: float) -> None:
    """Train to the next report, save, answer the command, and report to Ray Train."""
    report = trainer.train_to_report(idle_s)
    checkpoint, trial, run_dir, say = None, config["trial"], storage.directory, partial(_note, config)
    run = RunDirectory(run_dir)
    written = [run.checkpoint(trial, report.epoch)]
    # By every worker, not only the first: it gathers the batch from all of them.
    if trainer.dump_divergence(run.diverged_step(trial, report.epoch)):
        written.append(run.diverged_step(trial, report.epoch))
    if parallel.rank() == 0:
        checkpoint = retry_in_run(run_dir, lambda: trainer.save(run.checkpoint(trial, report.epoch)), say)
        if retry_in_run(run_dir, lambda: _draw_masks(trainer, run_dir, trial), say):
            written.append(run.masks(trial, trainer.epoch))
        for path in written:
            retry(partial(storage.publish, path), say)
        storage.trim()
        # Save, then answer: from the answer on, restarts begin at this checkpoint, so it must exist. After a crash in
        # between, the "train" has no answer, and a new group repeats it with the same result.
        ray.get(config["channel"].answer.remote(trial, position, report, checkpoint))
    # Answer, then report: this call waits for all workers and for a poll of Ray Train's controller, for which the
    # population need not wait. Ray Train only displays the report; restarts use the checkpoint in the channel.
    ray.train.report(
        {"epoch": report.epoch, "fitness": report.fitness},
        # Ray Train knows no URI of ours, and refuses a checkpoint outside the path it was given.
        checkpoint=ray.train.Checkpoint(checkpoint.path) if checkpoint and storage.shared else None,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def _note(config: LoopConfig, text: str) -> None:
    """Send a message for the run's notes, which arrives with the next report; print it to the worker's log at once."""
    print(text, flush=True)
    ray.get(config["channel"].note.remote(config["trial"], text))


def _draw_masks(trainer: Trainer, run_dir: Path, trial: str) -> bool:
    """Write masks of the first validation images, about ``MASK_EPOCHS`` times over the training and at its end.

    Returns:
        Whether it did.
    """
    if trainer.networks.occlusion is None:
        return False
    every = max(trainer.config.epochs // MASK_EPOCHS, 1)
    if trainer.epoch % every and not trainer.done:
        return False
    images, masks = trainer.masks(MASK_PICTURES)
    pixels = (masks * 255).round().to(torch.uint8)
    write_masks(run_dir, trial, trainer.epoch, MaskFile(images.cpu().numpy(), pixels.cpu().numpy()))
    return True


def _device() -> torch.device:
    """Find the GPU that Ray assigned to this worker; the CPU if it assigned none.

    Raises:
        RunError: If torch cannot use the GPU.
    """
    device: torch.device = get_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"Ray assigned this worker a GPU that torch {torch.__version__} cannot use; install torch for this GPU's "
            "driver, or train on CPUs with --gpus-per-worker 0"
        )
    return device

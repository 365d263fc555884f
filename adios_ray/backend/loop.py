"""The loop of a Ray Train worker, over the commands that its trial's channel sends."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from adios_ray import parallel
from adios_ray.backend.channel import note
from adios_ray.backend.line import Start
from adios_ray.backend.loop_config import LoopConfig
from adios_ray.checkpoints import Pointer, load_checkpoint
from adios_ray.config import TrialConfig
from adios_ray.devices import CPU, CPU_ALLOCATOR, is_out_of_memory, limit_memory, precision_note
from adios_ray.errors import CheckpointError, MemoryLimitError, RunError
from adios_ray.files import remove_drafts
from adios_ray.retry import retry, retry_in_run
from adios_ray.run_directory import RunDirectory, trial_of
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.run_masks import MaskFile, write_masks
from adios_ray.training.trainer import Trainer

MASK_PICTURES = 8
"""Validation images whose masks are kept."""
MASK_EPOCHS = 20
"""Number of epochs, about, for which masks are kept over a training."""


def train_loop(config: LoopConfig) -> None:
    """Run commands until "stop": train to the next report, or load a checkpoint under a new configuration.

    Every worker of the trial takes every command, in order, since each one contains collective operations.

    Raises:
        MemoryLimitError: If this worker is out of memory.
    """
    # Ray may have been told of more CPUs than there are, and threads that share a core wait for each other.
    torch.set_num_threads(min(config["threads"], len(os.sched_getaffinity(0))))
    channel, trial, storage = config["channel"], config["trial"], RunStorage(config["run_dir"])
    retry(storage.open, partial(note, channel, trial))
    # Ray Train takes the previous group down before it starts this one, so any drafts left are abandoned.
    if parallel.rank() == 0:
        for folder in RunDirectory(storage.directory).trial_folders(trial):
            remove_drafts(folder)
    # One call for the whole group: each call moves an unanswered "train" to a new position, so if every worker called,
    # all but the last would wait at positions that no command has any more.
    first: Any = ray.get(channel.start.remote(trial)) if parallel.rank() == 0 else None
    start: Start = parallel.from_first(first)
    trainer: Trainer | None = None
    try:
        trainer = _build(start.config, config, storage)
        _follow(trainer, start, config, storage)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            settings, at_once = (trainer.config, trainer.networks.slots_at_once) if trainer else (start.config, 1)
            raise MemoryLimitError(memory_advice(error, settings, at_once, parallel.world_size())) from error
        raise


def _build(settings: TrialConfig, config: LoopConfig, storage: RunStorage) -> Trainer:
    """Build the trainer on this worker's device."""
    device, weights = _gpu() if config["gpus"] else CPU, None
    limit_memory(device, config["gpus"])
    if settings.initial_weights:
        weights = retry(storage.fetch_initial_weights, partial(note, config["channel"], config["trial"]))
    return Trainer(settings, device, weights)


def _follow(trainer: Trainer, start: Start, config: LoopConfig, storage: RunStorage) -> None:
    """Run the commands from where a worker group starts."""
    settings, checkpoint, position = start
    say = partial(note, config["channel"], config["trial"])
    if parallel.rank() == 0 and (line := precision_note(settings.precision, trainer.device)):
        say(line)
    if checkpoint:
        first = RunDirectory(storage.directory).checkpoint(config["trial"], settings.evaluation.interval_epochs)
        checkpoint = load_intact(trainer, checkpoint, settings, storage, say, first)
    reported_at, load_s = None, 0.0
    while True:
        command = ray.get(config["channel"].take.remote(config["trial"], position))
        if command.kind == "stop":
            storage.close()
            return
        if command.kind == "load":
            began = time.monotonic()
            checkpoint = load_intact(trainer, command.checkpoint, command.config, storage, say)
            load_s += time.monotonic() - began
        else:
            idle_s = time.monotonic() - reported_at if reported_at else 0.0
            checkpoint, reported_at = _train(trainer, config, storage, position, checkpoint, idle_s, load_s)
            load_s = 0.0
        position += 1


def load_intact(
    trainer: Trainer,
    pointer: Pointer,
    settings: TrialConfig,
    storage: RunStorage,
    say: Callable[[str], None],
    first: Path | None = None,
) -> Pointer | None:
    """Load a checkpoint on all workers; if any of them cannot read it, the one before it.

    Args:
        trainer: This worker's trainer.
        pointer: The checkpoint.
        settings: The configuration under which training continues.
        storage: The run's files.
        say: Prints which checkpoint was loaded instead; called by the first worker.
        first: Of a new trainer, where the trial saves its first checkpoint: if none can be read, it begins again.

    Returns:
        The checkpoint that was loaded; None if the trial begins again.

    Raises:
        CheckpointError: If there is none that all workers can read.
    """
    pointer = storage.here(pointer)
    problems = list[str]()
    for candidate in pointer.chain:
        retry(partial(storage.fetch, candidate), say)
        state, problem = _read(candidate)
        if problem is None:
            trainer.restore(state, settings, candidate.path)
            if problems and parallel.rank() == 0:
                say(f"{problems[0]}; it resumes from {trial_of(candidate.path)}/{candidate.path.name}")
            return candidate
        problems.append(problem)
    # Nothing is older than a training's first checkpoint but its beginning, from which it repeats.
    if pointer.paths[-1] != first:
        raise CheckpointError(problems[0])
    if parallel.rank() == 0:
        say(f"{problems[0]}; it trains from the beginning")
    return None


def _read(pointer: Pointer) -> tuple[dict[str, Any], str | None]:
    """Read a checkpoint; returns also the first worker's problem among all, None if all could read it."""
    state, problem = {}, None
    try:
        state = load_checkpoint(pointer, CPU)
    except CheckpointError as error:
        problem = str(error)
    # Shared before any worker continues: if one alone raised, the others would wait for it in the next collective.
    return state, next((text for text in parallel.gather_values(problem) if text), None)


def _train(
    trainer: Trainer,
    config: LoopConfig,
    storage: RunStorage,
    position: int,
    before: Pointer | None,
    idle_s: float,
    load_s: float,
) -> tuple[Pointer | None, float]:
    """Train to the next report, save, and answer the command.

    Returns:
        The checkpoint, of the first worker alone, and the moment before the answer, from which on the population
        decides and the trial is idle.
    """
    measured = trainer.measured_slots
    report = trainer.train_to_report(idle_s)
    trained_at = time.monotonic()
    checkpoint, trial, run_dir = None, config["trial"], storage.directory
    most, fitting = trainer.config.most_at_once, trainer.networks.slots_at_once
    if parallel.rank() == 0 and trainer.measured_slots != measured and fitting < most:
        note(config["channel"], trial, f"{fitting} of {most} slots at once fit into the GPU's memory")
    run, say = RunDirectory(run_dir), partial(note, config["channel"], trial, kind="wait")
    written = [run.checkpoint(trial, report.epoch)]
    failed_batch = trainer.take_failed_batch()
    if parallel.rank() == 0:
        if failed_batch is not None:
            dump = run.diverged_step(trial, report.epoch)
            retry_in_run(run_dir, lambda: trainer.save(dump, failed_batch), say)
            written.append(dump)
        saved = retry_in_run(run_dir, lambda: trainer.save(run.checkpoint(trial, report.epoch)), say)
        checkpoint = saved.after(before)
        if (drawn := _draw_masks(trainer)) is not None:
            retry_in_run(run_dir, partial(write_masks, run_dir, trial, trainer.epoch, drawn), say)
            written.append(run.masks(trial, trainer.epoch))
        for path in written:
            retry(partial(storage.publish, path), say)
    storage.trim(trial if parallel.rank() == 0 else None)
    reported_at = time.monotonic()
    if parallel.rank() == 0:
        report = report.model_copy(update={"checkpoint_s": reported_at - trained_at, "load_s": load_s})
        # Save, then answer: from the answer on, restarts begin at this checkpoint, so it must exist. After a crash in
        # between, the "train" has no answer, and a new group repeats it with the same result.
        # Not by ``ray.train.report`` too, which nothing would read: it needs a process where the workers wait for each
        # other, and waits for Ray Train's next poll. Tune has the report from the trial's actor.
        ray.get(config["channel"].answer.remote(trial, position, report, checkpoint))
    return checkpoint, reported_at


def memory_advice(error: BaseException, config: TrialConfig, at_once: int, workers: int) -> str:
    """Say which values to change after an error of memory, with those of the configuration, and the slots at once."""
    cause = ". ".join(str(error).split(". ")[:2]) or type(error).__name__
    limit = config.micro_batch_size or config.batch_size // workers
    share = "cpus" if isinstance(error, MemoryError) or CPU_ALLOCATOR in str(error) else "gpus"
    slots = "--slots-at-once 1, or " if min(at_once, config.most_at_once) > 1 else ""
    return (
        f"{cause.rstrip('.')}. A new run needs {slots}a --micro-batch-size below {limit}, the images that each of its "
        f"workers embeds at once, or a higher --{share}-per-worker, so that fewer trials share the memory"
    )


def _draw_masks(trainer: Trainer) -> MaskFile | None:
    """Draw masks of the first validation images, about ``MASK_EPOCHS`` times over the training and at its end."""
    if trainer.networks.occlusion is None:
        return None
    every = max(trainer.config.epochs // MASK_EPOCHS, 1)
    if trainer.epoch % every and not trainer.done:
        return None
    images, masks = trainer.masks(MASK_PICTURES)
    pixels = (masks * 255).round().to(torch.uint8)
    return MaskFile(images.cpu().numpy(), pixels.cpu().numpy())


def _gpu() -> torch.device:
    """Find the GPU that Ray assigned to this worker.

    Raises:
        RunError: If torch cannot use the GPU.
    """
    from ray.train.torch import get_device  # here, because it imports Ray Tune

    device: torch.device = get_device()
    if not torch.cuda.is_available():
        raise RunError(
            f"Ray assigned this worker a GPU that torch {torch.__version__} cannot use; install torch for this GPU's "
            "driver, or train on CPUs with --gpus-per-worker 0"
        )
    # Streams and events are made on the current device. It is another one only where Ray does not hide the others
    # (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES).
    torch.cuda.set_device(device)
    return device

"""One trial's training in one worker process: networks, optimizers, batches, and the position in the schedule."""

import base64
import math
import os
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adios_ray import parallel
from adios_ray.checkpoints import Pointer, load_checkpoint, save_checkpoint
from adios_ray.config import TrialConfig, check_adapted, check_batch, check_view
from adios_ray.data.augment import denormalize
from adios_ray.data.loader import BatchLoader, central_views
from adios_ray.data.shards import Split, open_shards
from adios_ray.devices import CPU, prepare_device
from adios_ray.errors import CheckpointError, DatasetError, ReplicaError
from adios_ray.evaluation.extraction import Indices
from adios_ray.evaluation.fitness import UNKNOWN, Estimate, Fitness, evaluate, halves
from adios_ray.masking.slots import read_head, replace_head, resize_head, slot_statistics, use_blank_head
from adios_ray.models.networks import Networks, with_average
from adios_ray.models.weights import checksum, load_initial, load_weights
from adios_ray.store import Location
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.cost import fitting_slots
from adios_ray.training.divergence import DivergenceWatch, Failure, batch_state
from adios_ray.training.dynamo import leave_out_dynamo
from adios_ray.training.graphs import step_function
from adios_ray.training.optimizers import build_optimizers, load_moments, make_schedule
from adios_ray.training.step import Measurements
from adios_ray.trial_report import TrialReport
from adios_ray.validation import parse

STATISTICS_IMAGES = 64
"""Validation images whose masks are measured for reports, and by which slots to split or merge are chosen."""


class Trainer:
    """All state that changes while one trial trains; it can be saved, loaded and resumed exactly.

    Attributes:
        config: The trial's configuration; ``load`` replaces it, with other values of those that may change.
        networks: The encoder, its momentum copy, the occlusion model, the probe, and averages for evaluations.
        step: Optimizer steps done.
        seed: Determines sample order, augmentations and drawn slots; saved and loaded with the weights.
        measured_slots: N when it was last measured how many masks at once fit into a GPU's memory; 0 before.
        divergence: Which term became non-finite, and at which step; None while training is finite. No step is taken
            until another checkpoint is loaded.
    """

    def __init__(self, config: TrialConfig, device: torch.device, initial_weights: Location | None = None) -> None:
        """Open the data set, initialize the networks from the configured seed, and build the optimizers.

        Args:
            config: The trial's configuration.
            device: Where to train.
            initial_weights: A copy of the configured initial weights; None if there is none.

        Raises:
            ConfigError: If data set and configuration do not fit together.
            DatasetError: If the data set cannot be used.
            ReplicaError: If the workers of the trial start with different parameters.
        """
        assert config.data_dir is not None
        self.config, self.device, self.seed, self.step = config, device, config.seed, 0
        dataset = open_shards(config.data_dir)
        self.dataset, self.classes = dataset, len(dataset.manifest.classes)
        self.image_size = config.image_size or dataset.manifest.image_size
        check_view(config.evaluation.view, self.image_size, dataset.manifest.image_size)
        self.train_split, self.val_split = dataset.split("train"), dataset.split("val")
        self._val_parts = halves(self.val_split)
        self.loader = BatchLoader(dataset.split(*dataset.manifest.training_splits), config, self.image_size, device)
        prepare_device(device)
        if device.type == "cpu":
            keep_freed_memory()
        if not config.compile:
            leave_out_dynamo()
        # The order of the lines below matters. First the seed: every worker draws the same initial weights, since
        # nothing else draws in between, and no broadcast is needed.
        torch.manual_seed(config.seed)
        self.networks = Networks(config, self.image_size, self.classes).to(device)
        check_batch(config, len(self.loader.split), parallel.world_size(), self.networks.batch_norm)
        self.networks.choose_layouts(device, config.compile)
        # Loaded before the optimizers are built: where the file has another number of slots, the occlusion model gets a
        # new head, whose parameters the optimizer must hold.
        if weights := initial_weights or config.initial_weights:
            load_initial(self.networks, load_weights(weights), weights)
        if config.compile:
            self.networks.compile_parts()  # after the change of layout: compiled code is specialized to strides
        self.optimizers = build_optimizers(self.networks, config.optimizer)
        # Compared before masks are resized, which is collective: workers that read different files of initial weights
        # could disagree on whether to resize, and would wait for each other forever.
        self._check_replicas("at the start")
        self._resize_masks(config.masking.slots)
        self.schedule = make_schedule(config.optimizer, config.epochs, self.loader.steps_per_epoch)
        self._measures_slots = device.type == "cuda" and config.slots_at_once is None and self.networks.can_batch_slots
        self.measured_slots = 0
        self._sums = torch.zeros(len(Measurements._fields), device=device)
        self._reported_step = 0
        self.divergence: str | None = None
        self._failure: Failure | None = None
        self._take_step = step_function(self.networks, self.optimizers, config)

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return self.step // self.loader.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether the last epoch is over."""
        return self.epoch >= self.config.epochs

    def train_until(self, step: int) -> dict[str, float]:
        """Train up to ``step``; after a divergence, only advance the position in the schedule.

        Returns:
            Seconds; images per second over all workers, and the share of the time spent waiting for data; the last two
            are 0 without a step.
        """
        peak = self.config.optimizer
        # Not at the start: an evaluation needs no such measurement.
        if self._measures_slots and self.measured_slots != self.config.masking.slots:
            slots = fitting_slots(self.config, self.loader.split, self.image_size, self.classes, self.device)
            self.networks.slots_at_once = min(parallel.gather_values(slots))
            self.measured_slots = self.config.masking.slots
        self.networks.train()
        began, first, waited_before = time.perf_counter(), self.step, self.loader.waited_s
        watch, failure = DivergenceWatch(), None
        for batch in self.loader.batches(self.seed, self.step, step if self.divergence is None else self.step):
            self.optimizers.set_learning_rates(
                encoder_lr=self.schedule.lr(peak.encoder_lr, self.step),
                occlusion_lr=self.schedule.lr(peak.occlusion_lr, self.step),
                predictor_lr=peak.encoder_lr if self.config.constant_predictor_lr else None,
            )
            progress = self.step / self.schedule.total_steps
            result = self._take_step(batch, progress)
            # Summed on the device and read once a report: reading here would wait for the update to finish.
            self._sums += torch.stack(result.measurements)
            if failure := watch.follow(self.step, batch, result.terms):
                break
            self.step += 1
            # A plain mean over the first epoch, so that the initial weights have no part in it.
            weight = 1 / min(self.step, self.loader.steps_per_epoch)
            self.networks.update_average(weight * self.optimizers.updates)
        failure = failure or watch.last()
        if failure:
            self.divergence, self._failure = f"step {failure.step}: {failure.fault}", failure
        seconds = time.perf_counter() - began
        # A diverged trial reports at the same epochs as the others, so that it takes part in their decisions and can
        # copy a donor.
        steps, self.step = self.step - first, step
        return {
            "train_s": seconds,
            "images_per_s": steps * self.config.batch_size / seconds if steps else 0.0,
            "data_wait_fraction": (self.loader.waited_s - waited_before) / seconds if steps else 0.0,
        }

    def train_to_report(self, idle_s: float = 0.0) -> TrialReport:
        """Train to the next report and evaluate.

        Args:
            idle_s: Seconds since the previous report was sent, measured by the caller.

        Returns:
            The report; its measurements are means over the epochs since the previous one.
        """
        goal = self.config.next_report(self.epoch) * self.loader.steps_per_epoch
        speed = self.train_until(goal)
        means = parallel.average(self._sums / (goal - self._reported_step)).tolist()
        self._sums.zero_()
        self._reported_step = goal
        # BatchNorm's running statistics follow each worker's own images. They are equalized here, because the
        # evaluation uses them and checkpoints are written by the first worker.
        parallel.broadcast_from_first(self.networks.buffers())
        sums = Measurements(*means)
        accuracy = sums.probe_correct / sums.labeled if sums.labeled else math.nan
        measured = {"loss": sums.loss, "penalty": sums.penalty, "probe_accuracy": accuracy}
        began = time.perf_counter()
        if self.divergence:
            measured, found = dict.fromkeys(measured, math.nan), Fitness((UNKNOWN,))
        else:
            found = self._measure(self.val_split, self._val_parts)
        selection, holdout = found.estimates[0], found.estimates[-1]  # the same one where val is not parted
        collapse = found.collapse and f"epoch {self.epoch}: {found.collapse}"
        return TrialReport(
            epoch=self.epoch,
            fitness=selection.value,
            standard_error=selection.standard_error,
            accuracy=selection.accuracy,
            holdout_fitness=holdout.value,
            holdout_standard_error=holdout.standard_error,
            outcomes=_encoded(selection.outcomes),
            divergence=self.divergence or collapse,
            done=self.done,
            evaluate_s=time.perf_counter() - began,
            idle_s=idle_s,
            worker_pid=os.getpid(),
            **measured,
            **self._slot_report(),
            **speed,
        )

    def evaluate(self, split: str) -> Estimate:
        """Estimate the fitness on one whole split, with training images as neighbors; nan for a collapsed encoder."""
        return self._measure(self.dataset.split(split)).estimates[0]

    def _measure(self, held_out: Split, parts: Sequence[Indices] | None = None) -> Fitness:
        return evaluate(self.networks, self.train_split, held_out, self.image_size, self.config.evaluation, parts)

    def masks(self, images: int) -> tuple[Tensor, Tensor]:
        """Mask the first validation images.

        Args:
            images: How many, K; fewer where the split has fewer.

        Returns:
            The images as they are displayed, uint8 [K, S, S, 3], and their masks [K, N, S, S] in [0, 1]; N is 0
            without an occlusion model.
        """
        first = np.arange(min(images, len(self.val_split)))
        x = central_views(self.val_split, first, self.image_size, self.device)
        if self.networks.occlusion is None:
            return denormalize(x), x.new_zeros(len(x), 0, self.image_size, self.image_size)
        with torch.no_grad():
            return denormalize(x), self.networks.occlude(x)

    def _slot_report(self) -> dict[str, float]:
        if self.networks.occlusion is None:
            return {"slot_overlap": 0.0, "mask_mean_min": 0.0, "mask_mean_max": 0.0}
        size, overlap = slot_statistics(self.masks(STATISTICS_IMAGES)[1])
        return {
            "slot_overlap": float(overlap.max()),
            "mask_mean_min": float(size.min()),
            "mask_mean_max": float(size.max()),
        }

    def take_failed_batch(self) -> dict[str, Any] | None:
        """Return the batch at which training has diverged since the last call, None if it has not.

        Every worker of the trial must call this. ``save`` with this batch, with whether the encoder had moved before
        the step failed, and with the number of workers writes what reproduces the step.
        """
        failure, self._failure = self._failure, None
        return failure and {
            "batch": batch_state(failure.batch),
            "encoder_moved": failure.encoder_moved,
            "workers": parallel.world_size(),
        }

    def save(self, directory: Path, failed_batch: dict[str, Any] | None = None) -> Pointer:
        """Write a checkpoint from which training resumes bit for bit.

        Args:
            directory: Directory of the checkpoint.
            failed_batch: What ``take_failed_batch`` returned, to be saved with the state.
        """
        state = {
            "config": self.config.model_dump(mode="json"),
            "image_size": self.image_size,
            "images": self.dataset.manifest.checksum,
            "step": self.step,
            "seed": self.seed,
            "sums": self._sums,
            "reported_step": self._reported_step,
            "divergence": self.divergence,
            "networks": self.networks.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.all().items()},
            **(failed_batch or {}),
        }
        meta = {key: state[key] for key in ("step", "config", "divergence")}
        return save_checkpoint(directory, state, {"epoch": self.epoch, "device": self.device.type, **meta})

    def load(self, pointer: Pointer, config: TrialConfig) -> None:
        """Load all state of a checkpoint, then continue under ``config``.

        Raises:
            CheckpointError: If the checkpoint is missing or damaged, or was made under other optimizer settings.
            ConfigError: If ``config`` differs from the trainer's in a value that cannot change while a trial trains.
            DatasetError: If it was trained on other images.
            ReplicaError: If the workers of the trial hold different parameters afterwards.
        """
        self.restore(load_checkpoint(pointer, CPU), config, pointer.path)

    def restore(self, state: dict[str, Any], config: TrialConfig, origin: Path) -> None:
        """Take over the state of a checkpoint, then continue under ``config``; every worker must call this.

        Where ``config`` has another number of slots than the checkpoint, slots are split or merged.

        Args:
            state: The state that ``save`` wrote; on the CPU, so that the device never holds it twice.
            config: The configuration to continue under.
            origin: Where the checkpoint was read from, for messages.

        Raises:
            CheckpointError: If the checkpoint was made under other optimizer settings.
            ConfigError: If ``config`` differs from the trainer's in a value that cannot change while a trial trains.
            DatasetError: If it was trained on other images.
            ReplicaError: If the workers of the trial hold different parameters afterwards.
        """
        check_adapted(self.config, config)
        images = self.dataset.manifest.checksum
        if state.get("images", images) != images:  # earlier versions saved none
            raise DatasetError(
                f"{config.data_dir} is not the data set that {origin} was trained on, but has been prepared again: "
                "restore it, or start another run"
            )
        check_batch(config, len(self.loader.split), parallel.world_size(), self.networks.batch_norm)
        saved = parse(TrialConfig, state["config"], str(origin))
        if self.networks.occlusion is not None:  # load_state_dict() copies into a head of the saved number of slots
            use_blank_head(self.networks.occlusion, saved.masking.slots, self.optimizers.occlusion)
        self.networks.load_state_dict(with_average(state["networks"], self.networks.averaged is not None))
        for name, optimizer in self.optimizers.all().items():
            try:
                load_moments(optimizer, state["optimizers"][name])
            except ValueError as error:
                raise CheckpointError(
                    f"checkpoint {origin}: the state of its {name} optimizer does not fit ({error}); set "
                    "optimizer.name and optimizer.predictor_schedule to the values that it was made with"
                ) from error
            optimizer.zero_grad()
        self.divergence = state["divergence"]
        self.optimizers.found_inf.zero_()
        self.step, self.seed = state["step"], state["seed"]
        self._sums.copy_(state["sums"])
        # Earlier versions saved after reports alone.
        self._reported_step = state.get("reported_step", state["step"])
        self._adapt(config)
        # Compared before masks are resized, as in __init__: workers may have read different checkpoints.
        self._check_replicas(f"after loading {origin}")
        self._resize_masks(config.masking.slots)
        self._take_step = step_function(self.networks, self.optimizers, self.config)

    def _adapt(self, config: TrialConfig) -> None:
        """Continue under another configuration; masks are resized by ``_resize_masks``."""
        # Every part that keeps a configuration, or numbers made from it, is listed here: all other code reads values
        # where they are used, so that one declared Adaptable needs nothing else.
        self.config = self.loader.config = config
        self.networks.adapt(config)
        self.optimizers.adapt(config.optimizer)
        self.schedule = make_schedule(config.optimizer, config.epochs, self.loader.steps_per_epoch)

    def _resize_masks(self, slots: int) -> None:
        """Split or merge slots until the occlusion model has ``slots`` of them; every worker must call this."""
        occlusion, optimizer = self.networks.occlusion, self.optimizers.occlusion
        if occlusion is None or optimizer is None or occlusion.slots == slots:
            return
        resized = resize_head(read_head(occlusion, optimizer), self.masks(STATISTICS_IMAGES)[1], slots)
        # Which slots are split or merged follows from floating point sums, in which workers may differ by rounding:
        # all of them take the first worker's head.
        parallel.broadcast_from_first([resized.weight, resized.bias, *chain(*resized.moments.values())])
        replace_head(occlusion, optimizer, resized)

    def _check_replicas(self, when: str) -> None:
        """Raise ReplicaError unless all workers of the trial have equal parameters and buffers, by checksum."""
        if parallel.world_size() == 1:
            return
        first, *others = parallel.gather_values(checksum(self.networks.state_dict()))
        if odd := [str(rank) for rank, other in enumerate(others, start=1) if other != first]:
            raise ReplicaError(
                f"{when}, worker {', '.join(odd)} of {parallel.world_size()} holds other parameters than worker 0: "
                "their nodes read different files, or one has faulty memory; check that all nodes see the same storage"
            )


def _encoded(outcomes: bytes | None) -> str | None:
    """Encode outcomes for a report."""
    return None if outcomes is None else base64.b64encode(outcomes).decode()

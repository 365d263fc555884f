"""One trial's training in one process: weights, optimizers, data and the position in the schedule."""

import hashlib
import math
import os
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adios_ray import parallel
from adios_ray.checkpoints import Pointer, load_checkpoint, save_checkpoint
from adios_ray.config import TrialConfig, check_image_size, check_view
from adios_ray.data.augment import denormalize
from adios_ray.data.loader import Batch, BatchLoader, central_views
from adios_ray.data.shards import open_shards
from adios_ray.errors import CheckpointError, ConfigError, NonFiniteError, ReplicaError
from adios_ray.evaluation.fitness import Fitness, evaluate
from adios_ray.masking.slots import Head, read_head, replace_head, resize_head, slot_statistics
from adios_ray.models.networks import Networks
from adios_ray.models.weights import load_initial, load_weights
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.divergence import batch_state
from adios_ray.training.optimizers import build_optimizers, make_schedule
from adios_ray.training.step import Measurements, train_step
from adios_ray.trial_report import TrialReport
from adios_ray.validation import parse

STATISTICS_IMAGES = 64


class Trainer:
    """Everything that changes while one trial trains, with saving, loading and exact resumption.

    Attributes:
        config: The trial's configuration; sparsity weight, learning rates and N change through ``load``.
        networks: What is trained.
        step: Optimizer steps done.
        seed: Decides order, augmentations and drawn slots; travels with the weights.
        divergence: The step and the term at which training stopped to be finite, in words; it does not go on until
            another checkpoint is loaded.
    """

    def __init__(self, config: TrialConfig, device: torch.device) -> None:
        """Initialize weights from the configured seed and map the data.

        Raises:
            ConfigError: If data set and configuration do not go together.
            DatasetError: If the data set cannot be used.
            ReplicaError: If the workers of the trial begin with different parameters.
        """
        assert config.data_dir is not None
        self.config, self.device, self.seed, self.step = config, device, config.seed, 0
        dataset = open_shards(config.data_dir)
        self.dataset, self.classes = dataset, len(dataset.manifest.classes)
        self.image_size = config.image_size or dataset.manifest.image_size
        check_image_size(self.image_size)
        check_view(config.evaluation.view, self.image_size)
        self.train_split, self.val_split = dataset.split("train"), dataset.split("val")
        self.feed = BatchLoader(dataset.split(*dataset.manifest.training_splits), config, self.image_size, device)
        _check_batch(config.batch_size, len(self.feed.split))
        if device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(config.seed)
        self.networks = Networks(config, self.image_size, self.classes).to(device)
        if config.channels_last:
            self.networks.to(memory_format=torch.channels_last)
        if config.initial_weights:
            load_initial(self.networks, load_weights(config.initial_weights), config.initial_weights)
        if config.compile:
            self.networks.compile_parts()
        self.optimizers = build_optimizers(self.networks, config.optimizer)
        self._check_replicas("at the start")
        self._resize_masks(config.masking.slots)
        self.schedule = make_schedule(config.optimizer, config.epochs, self.feed.steps_per_epoch)
        self._sums = torch.zeros(len(Measurements._fields), device=device)
        self.divergence: str | None = None
        self._failed_batch: Batch | None = None

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.feed.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether the last epoch is over."""
        return self.epoch >= self.config.epochs

    def train_until(self, step: int) -> dict[str, float]:
        """Train up to ``step`` and measure; where training diverges, only the position moves on.

        Returns:
            Speed, and the means of the measurements since the last epoch that ended on a report.
        """
        began, first, waited_before = time.perf_counter(), self.step, self.feed.waited_s
        self.networks.train()
        try:
            for batch in self.feed.batches(self.seed, self.step, step if self.divergence is None else self.step):
                self._train_on(batch)
        except NonFiniteError as error:
            self.divergence, self._failed_batch = f"step {self.step}: {error}", batch
        seconds = time.perf_counter() - began
        steps, self.step = self.step - first, step
        return {
            "images_per_s": steps * self.config.batch_size / seconds if steps else 0.0,
            "data_wait_fraction": (self.feed.waited_s - waited_before) / seconds if steps else 0.0,
        }

    def _train_on(self, batch: Batch) -> None:
        peak = self.config.optimizer
        self.optimizers.set_learning_rates(
            encoder_lr=self.schedule.lr(peak.encoder_lr, self.step),
            occlusion_lr=self.schedule.lr(peak.occlusion_lr, self.step),
            predictor_lr=peak.encoder_lr if self.config.constant_predictor_lr else None,
        )
        progress = self.step / self.schedule.total_steps
        self._sums += torch.stack(train_step(self.networks, self.optimizers, batch, self.config, progress))
        self.step += 1

    def train_to_report(self, idle_s: float = 0.0) -> TrialReport:
        """Train to the next report and evaluate.

        Args:
            idle_s: Seconds since the report before, as the caller has measured them.

        Returns:
            The report; its measurements are means over the epochs since the last one.
        """
        goal, interval = self.config.next_report(self.epoch), self.config.evaluation.interval_epochs
        epochs = goal - (goal - 1) // interval * interval
        speed = self.train_until(goal * self.feed.steps_per_epoch)
        means = parallel.average(self._sums / (epochs * self.feed.steps_per_epoch)).tolist()
        self._sums.zero_()
        parallel.broadcast_from_first(self.networks.buffers())
        sums = Measurements(*means)
        accuracy = sums.probe_correct / sums.labeled if sums.labeled else math.nan
        measured = {"loss": sums.loss, "penalty": sums.penalty, "probe_accuracy": accuracy}
        if self.divergence:
            measured, found = dict.fromkeys(measured, math.nan), Fitness(math.nan, None)
        else:
            found = self._measure("val")
        collapse = found.collapse and f"epoch {self.epoch}: {found.collapse}"
        return TrialReport(
            epoch=self.epoch,
            fitness=found.value,
            divergence=self.divergence or collapse,
            done=self.done,
            idle_s=idle_s,
            worker_pid=os.getpid(),
            **measured,
            **self._slot_report(),
            **speed,
        )

    def evaluate(self, split: str) -> float:
        """Fitness on one split, with the training split's images as neighbors; nan for a collapsed encoder."""
        return self._measure(split).value

    def _measure(self, split: str) -> Fitness:
        held_out = self.val_split if split == "val" else self.dataset.split(split)
        return evaluate(self.networks, self.train_split, held_out, self.image_size, self.config.evaluation)

    def masks(self, images: int) -> tuple[Tensor, Tensor]:
        """The first validation images as seen, uint8 [K, S, S, 3], and their masks [K, N, S, S] (N = 0 without)."""
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

    def save(self, directory: Path) -> Pointer:
        """Write a checkpoint from which training goes on bit for bit."""
        return self._save(directory, {})

    def dump_divergence(self, directory: Path) -> None:
        """Write what reproduces the step that diverged, once; each worker of the trial must call this.

        A no-op where nothing diverged since the last call.
        """
        if self._failed_batch is None:
            return
        batch, self._failed_batch = batch_state(self._failed_batch), None
        if parallel.rank() == 0:
            self._save(directory, {"batch": batch})

    def _save(self, directory: Path, more: dict[str, Any]) -> Pointer:
        state = {
            "config": self.config.model_dump(mode="json"),
            "image_size": self.image_size,
            "step": self.step,
            "seed": self.seed,
            "sums": self._sums,
            "divergence": self.divergence,
            "networks": self.networks.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.all().items()},
            **more,
        }
        meta = {key: state[key] for key in ("step", "config", "divergence")}
        return save_checkpoint(directory, state, {"epoch": self.epoch, **meta})

    def load(self, pointer: Pointer, config: TrialConfig) -> None:
        """Take over all of a checkpoint's state, then go on under ``config``.

        The number of slots may differ from the checkpoint's: its masks are split or merged.

        Raises:
            CheckpointError: If the checkpoint is missing or damaged.
            ReplicaError: If the workers of the trial hold different parameters afterwards.
        """
        state = load_checkpoint(pointer, self.device)
        saved = parse(TrialConfig, state["config"], str(pointer.path))
        self._use_slots(saved.masking.slots)
        self.networks.load_state_dict(state["networks"])
        for name, optimizer in self.optimizers.all().items():
            try:
                optimizer.load_state_dict(state["optimizers"][name])
            except ValueError as error:
                raise CheckpointError(
                    f"checkpoint {pointer.path}: the state of its {name} optimizer does not fit ({error}); was it made "
                    "under another optimizer.name or optimizer.predictor_schedule?"
                ) from error
            optimizer.zero_grad()
        self.divergence = state["divergence"]
        self.step, self.seed, self._sums = state["step"], state["seed"], state["sums"].clone()
        self.config = self.networks.config = config
        self.networks.objective.config, self.feed.augment = config.objective, config.augment
        self.optimizers.set_weight_decay(config.optimizer.weight_decay)
        # First the comparison: of workers that read different checkpoints, perhaps only some have masks to resize, and
        # these would wait for the others' part in it.
        self._check_replicas(f"after loading {pointer.path}")
        self._resize_masks(config.masking.slots)

    def _resize_masks(self, slots: int) -> None:
        """Split or merge masks until the occlusion model has ``slots``."""
        occlusion, optimizer = self.networks.occlusion, self.optimizers.occlusion
        if occlusion is None or optimizer is None or occlusion.slots == slots:
            return
        resized = resize_head(read_head(occlusion, optimizer), self.masks(STATISTICS_IMAGES)[1], slots)
        # Which masks are split or merged follows from rounded numbers: the first worker's head is everyone's.
        parallel.broadcast_from_first([resized.weight, resized.bias, *chain(*resized.moments.values())])
        replace_head(occlusion, optimizer, resized)

    def _check_replicas(self, when: str) -> None:
        """Compare parameters and buffers over the workers of the trial, by checksum."""
        if parallel.world_size() == 1:
            return
        checksum = hashlib.sha256()
        for tensor in self.networks.state_dict().values():
            checksum.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        first, *others = parallel.gather_values(checksum.hexdigest())
        if odd := [str(rank) for rank, other in enumerate(others, start=1) if other != first]:
            raise ReplicaError(
                f"{when}, worker {', '.join(odd)} of {parallel.world_size()} holds other parameters than worker 0: "
                "their nodes read different files, or one has faulty memory"
            )

    def _use_slots(self, slots: int) -> None:
        """Give the occlusion model a head of ``slots`` whose values are about to be loaded."""
        occlusion, optimizer = self.networks.occlusion, self.optimizers.occlusion
        if occlusion is None or optimizer is None or occlusion.slots == slots:
            return
        weight = occlusion.head.weight
        blank = Head(weight.new_zeros(slots, *weight.shape[1:]), weight.new_zeros(slots), {}, None)
        replace_head(occlusion, optimizer, blank)


def _check_batch(batch_size: int, images: int) -> None:
    workers = parallel.world_size()
    if batch_size > images:
        raise ConfigError(f"batch_size {batch_size} is more than the {images} training images")
    if batch_size % workers:
        raise ConfigError(f"batch_size {batch_size} cannot be shared by {workers} workers")

"""The files of a made-up run: rows, exploits, masks and summary as if a population had trained."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.tracking import decisions, lineage, records, results, run_masks
from adios_ray.tracking.decisions import Drop, Exploit
from adios_ray.tracking.live import LiveView
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.results import Row
from adios_ray.tracking.run import Run
from adios_ray.tracking.run_masks import MaskFile

_START = datetime(2025, 3, 4, 9, 30, tzinfo=UTC)
COPIES = {3: 5, 5: 4, 6: 6, 9: 6, 10: 3}
"""The made-up run's exploits, by epoch: N of the worst trial after it copies the best one."""

Settings = dict[str, Any]


def make_settings(sparsity_weight: float, encoder_lr: float, occlusion_lr: float, slots: int) -> Settings:
    """Make searched values by path."""
    return {
        **{"masking.sparsity_weight": sparsity_weight, "optimizer.encoder_lr": encoder_lr},
        **{"optimizer.occlusion_lr": occlusion_lr, "masking.slots": slots},
    }


SETTINGS = make_settings(0.4, 0.13, 0.02, 4)


def recorded(directory: Path, check_claim: Callable[[], None] = lambda: None) -> Run:
    """Record a run of two trials, which nothing follows."""
    nothing: Any = SimpleNamespace()
    return Run(RunStorage(directory), list(SETTINGS), LiveView(12, 2, "run"), nothing, nothing, check_claim)


def make_row(trial: str = "trial_00", epoch: int = 1, fitness: float = 0.5, **values: Any) -> Row:
    """Make a report with plausible values."""
    base = dict(
        **{"standard_error": 0.011, "accuracy": 0.55, "holdout_fitness": fitness, "holdout_standard_error": 0.012},
        **{"loss": 2.0, "penalty": 1.5, "probe_accuracy": 0.5},
        **{"slot_overlap": 0.3, "mask_mean_min": 0.1, "mask_mean_max": 0.4},
        **{"images_per_s": 900.0, "data_wait_fraction": 0.03, "idle_s": 0.1, "worker_pid": 4711},
    )
    fields = {"time": _START + timedelta(minutes=epoch), "trial": trial, "epoch": epoch, "fitness": fitness}
    return Row.model_validate(fields | {"values": SETTINGS} | base | values)


def make_exploit(epoch: int, trial: str, donor: str, slots: int = 4) -> Exploit:
    """Make an exploit that changes N from 4 to ``slots`` and lambda from 0.4 to 0.5."""
    return Exploit(
        time=_START + timedelta(minutes=epoch),
        epoch=epoch,
        trial=trial,
        donor=donor,
        old=SETTINGS,
        new=make_settings(sparsity_weight=0.5, encoder_lr=0.13, occlusion_lr=0.02, slots=slots),
        scores={trial: 0.4, donor: 0.6},
    )


def make_drop(epoch: int, trial: str) -> Drop:
    """Make the record of a trial that left in the opening."""
    time = _START + timedelta(minutes=epoch)
    return Drop(time=time, epoch=epoch, trial=trial, rank=8, trials=8, score=0.3, standard_error=0.01)


def make_masks(epoch: int, epochs: int, slots: int, images: int = 8, side: int = 32) -> MaskFile:
    """Draw colored discs, and slots that sharpen with epochs from a blur into parts of the plane."""
    rng = np.random.default_rng(0)
    axis = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(axis, axis, indexing="ij")
    pixels, masks = [], []
    for _ in range(images):
        back, front, center = rng.uniform(0.2, 0.9, 3), rng.uniform(0, 1, 3), rng.uniform(0.35, 0.65, 2)
        disc = np.clip(8 * (0.28 - np.hypot(y - center[0], x - center[1])) + 0.5, 0, 1)[..., None]
        shade = (0.7 + 0.3 * y)[..., None]
        pixels.append(np.rint(255 * shade * ((1 - disc) * back + disc * front)))
        angles = 2 * np.pi * np.arange(slots - 1) / (slots - 1) + rng.uniform(0, 2)
        scores = [0.38 * np.cos(a) * (x - center[1]) * 4 + 0.38 * np.sin(a) * (y - center[0]) * 4 for a in angles]
        logits = np.stack([2.2 * disc[..., 0] - 0.6, *scores]) * (0.2 + 9 * (epoch / epochs) ** 2)
        masks.append(np.rint(255 * np.exp(logits) / np.exp(logits).sum(axis=0)))
    return MaskFile(np.stack(pixels).astype(np.uint8), np.stack(masks).astype(np.uint8))


def first_settings(trial: int) -> Settings:
    """Make the values that a trial starts with."""
    scale = 2.0 ** (trial % 4)
    return make_settings(
        sparsity_weight=0.1 * scale, encoder_lr=0.04 * scale, occlusion_lr=0.01 * scale, slots=3 + trial % 3
    )


def mutated(settings: Settings, epoch: int) -> Settings:
    """Make the values that a trial continues with after copying at ``epoch``."""
    factor = (1.2, 0.8)[epoch % 2]
    return make_settings(
        sparsity_weight=settings["masking.sparsity_weight"] * factor,
        encoder_lr=settings["optimizer.encoder_lr"] / factor,
        occlusion_lr=settings["optimizer.occlusion_lr"] * factor,
        slots=COPIES[epoch],
    )


class MadeUpRun:
    """A run in which the worst trial copies the best at the epochs of ``COPIES`` and then learns faster."""

    def __init__(self, run_dir: Path, trials: int, epochs: int) -> None:
        """Set each trial's initial state."""
        self.run_dir, self.epochs = run_dir, epochs
        self.names = [f"trial_{i:02d}" for i in range(trials)]
        self.settings = {name: first_settings(i) for i, name in enumerate(self.names)}
        self.skill = {name: 0.10 + 0.05 * ((3 * i) % trials) / trials for i, name in enumerate(self.names)}
        self.pace = {name: 0.06 + 0.02 * ((7 * i) % trials) / trials for i, name in enumerate(self.names)}
        self.rng = np.random.default_rng(1)

    def train(self, name: str, epoch: int) -> Row:
        """Train one epoch of one trial; masks are stored at odd epochs and the last."""
        gain = self.pace[name] * (0.85 - self.skill[name]) * self.rng.uniform(0.6, 1.4)
        self.skill[name] += gain + self.rng.normal(0, 0.006)
        if epoch % 2 == 1 or epoch == self.epochs:
            masks = make_masks(epoch, self.epochs, self.settings[name]["masking.slots"])
            run_masks.write_masks(self.run_dir, name, epoch, masks)
        overlap = 0.75 * math.exp(-epoch / 6) + self.rng.uniform(0, 0.05)
        sizes = {"mask_mean_min": self.rng.uniform(0.08, 0.14), "mask_mean_max": self.rng.uniform(0.3, 0.36)}
        return make_row(name, epoch, self.skill[name], slot_overlap=overlap, values=self.settings[name], **sizes)

    def exploit(self, epoch: int) -> None:
        """Let the worst trial copy the best."""
        donor, trial = max(self.names, key=self.skill.__getitem__), min(self.names, key=self.skill.__getitem__)
        exploit = Exploit(
            **{"time": _START + timedelta(minutes=epoch, seconds=2), "epoch": epoch, "trial": trial, "donor": donor},
            **{"old": self.settings[trial], "new": mutated(self.settings[donor], epoch), "scores": self.skill},
        )
        decisions.append_decision(self.run_dir, exploit)
        self.skill[trial], self.pace[trial] = self.skill[donor], 1.3 * max(self.pace.values())
        self.settings[trial] = exploit.new

    def write(self) -> None:
        """Write every file except the summary."""
        self.run_dir.mkdir(exist_ok=True)
        RunDirectory(self.run_dir).make_folders()
        masking = {"scheme": "adios", "slots": 4}
        records.write_config(self.run_dir, {"seed": 0, "data_dir": "data/cifar10", "masking": masking})
        results.begin_results(self.run_dir, list(SETTINGS))
        decisions.begin_lineage(self.run_dir)
        for epoch in range(1, self.epochs + 1):
            for name in self.names:
                results.append_result(self.run_dir, self.train(name, epoch))
            if epoch in COPIES:
                self.exploit(epoch)


def make_summary(rows: list[Row]) -> RunSummary:
    """Summarize the rows of a made-up run."""
    best = lineage.best_row(rows)
    assert best is not None
    return RunSummary(
        **{"best_trial": best.trial, "best_fitness": best.fitness, "best_epoch": best.epoch},
        **{"best_standard_error": 0.015, "test_standard_error": 0.01, "test_accuracy": best.fitness + 0.02},
        first_best_fitness=max(row.fitness for row in rows if row.epoch == 1),
        **{"test_fitness": best.fitness - 0.008, "chance": 0.1, "seconds": 812.0, "exploits": len(COPIES)},
        **{"slot_changes": 4, "epochs": rows[-1].epoch, "population": len({row.trial for row in rows})},
        **{"dataset": "cifar10", "command": "adios-ray search search_spaces/cifar10.yaml --population 4"},
    )


def make_run(run_dir: Path, trials: int = 4, epochs: int = 12) -> None:
    """Write a finished run with five exploits: results, lineage, masks, configuration and summary."""
    MadeUpRun(run_dir, trials, epochs).write()
    records.write_summary(run_dir, make_summary(results.read_results(run_dir)))

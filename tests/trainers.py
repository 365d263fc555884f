"""Trainers of a few steps, and the comparison of their states."""

from pathlib import Path
from typing import Any

import torch

from adios_ray.checkpoints import load_checkpoint
from adios_ray.config import TrialConfig
from adios_ray.training.trainer import Trainer

CPU = torch.device("cpu")


def flattened(values: Any, path: str = "") -> dict[str, Any]:
    """Map the leaves of nested dictionaries and lists by their path."""
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list):
        items = list(enumerate(values))
    else:
        return {path: values}
    return {key: leaf for name, value in items for key, leaf in flattened(value, f"{path}/{name}").items()}


def assert_identical(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Assert that every tensor and number of two states is the same, bit for bit."""
    left, right = flattened(first), flattened(second)
    assert left.keys() == right.keys()
    for path, value in left.items():
        same = torch.equal(value, right[path]) if isinstance(value, torch.Tensor) else value == right[path]
        assert same, path


def saved(trainer: Trainer, directory: Path) -> dict[str, Any]:
    """Save a trainer and return the state that the checkpoint holds."""
    return load_checkpoint(trainer.save(directory), CPU)


def trained(config: TrialConfig, steps: int, device: torch.device = CPU) -> Trainer:
    """Train a new trainer for some steps."""
    trainer = Trainer(config, device)
    trainer.train_until(steps)
    return trainer

"""Taking a step that diverged once more, from the dump that it left."""

from pathlib import Path

import torch

from adios_ray.checkpoints import open_checkpoint
from adios_ray.config import TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.errors import CheckpointError, InputError, NonFiniteError
from adios_ray.models.networks import Networks
from adios_ray.training.optimizers import build_optimizers
from adios_ray.training.step import train_step
from adios_ray.validation import parse


def reproduce(directory: Path, device: torch.device) -> str:
    """Take the step again, in one process.

    Args:
        directory: ``diverged/TRIAL/epoch_NNNNN`` of a run.
        device: Where to compute.

    Returns:
        The term that is not finite.

    Raises:
        CheckpointError: If there is no dump, or it is damaged.
        InputError: If the step is finite here, for example because the device rounds differently.
    """
    state = open_checkpoint(directory, device)
    if "batch" not in state:
        raise CheckpointError(f"{directory} is a checkpoint, not the dump of a step that diverged")
    config = parse(TrialConfig, state["config"], str(directory))
    classes = len(state["networks"]["probe.bias"])
    networks = Networks(config, state["image_size"], classes).to(device).train()
    networks.load_state_dict(state["networks"])
    optimizers = build_optimizers(networks, config.optimizer)
    for name, optimizer in optimizers.all().items():
        optimizer.load_state_dict(state["optimizers"][name])
    try:
        train_step(networks, optimizers, Batch(**state["batch"]), config, 0.0)
    except NonFiniteError as error:
        return str(error)
    raise InputError(f"{directory}: step {state['step']} is finite on {device}")

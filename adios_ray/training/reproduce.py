"""Reproduction of a diverged step from its dump."""

from pathlib import Path

import torch

from adios_ray.checkpoints import META_FILE, open_checkpoint
from adios_ray.config import TrialConfig, replaced
from adios_ray.data.loader import Batch
from adios_ray.errors import CheckpointError, InputError
from adios_ray.models.networks import Networks, with_average
from adios_ray.training.optimizers import build_optimizers, load_moments
from adios_ray.training.step import train_step
from adios_ray.validation import parse

_IMAGES = {"a", "b", "fill_a", "fill_b"}
"""Parts of a batch in the layout of the loader."""


def reproduce(directory: Path, device: torch.device) -> str:
    """Repeat a diverged step in one process, which embeds the images of all workers of the trial at once.

    With several workers the result is the same up to rounding, except where networks draw random numbers, and where
    BatchNorm normalized over each worker's own images (without ``sync_batch_norm``).

    Args:
        directory: ``diverged/TRIAL/epoch_NNNNN`` of a run.
        device: Device to compute on.

    Returns:
        The non-finite term, by name and value.

    Raises:
        CheckpointError: If the directory holds no dump, or a damaged one.
        InputError: If the step is finite here; names what may differ.
    """
    cure = "give the folder of one, RUN/diverged/TRIAL/epoch_NNNNN"
    if not (directory / META_FILE).is_file():
        raise CheckpointError(f"{directory} is not the dump of a step that diverged: {cure}")
    state = open_checkpoint(directory, device)
    if "batch" not in state:
        raise CheckpointError(f"{directory} is a checkpoint, not the dump of a step that diverged: {cure}")
    config = parse(TrialConfig, state["config"], str(directory))
    classes = len(state["networks"]["probe.bias"])
    networks = Networks(config, state["image_size"], classes).to(device).train()
    networks.choose_layouts(device, config.compile)
    networks.load_state_dict(with_average(state["networks"], networks.averaged is not None))
    optimizers = build_optimizers(networks, config.optimizer)
    for name, optimizer in optimizers.all().items():
        load_moments(optimizer, state["optimizers"][name])
    encoder_moved = state.get("encoder_moved", False)  # earlier versions did not say
    if encoder_moved:
        # What is left of an alternating step is the occlusion model's pass. A simultaneous step has the same one, in
        # which the encoder moves last.
        config = replaced(config, {"masking.order": "simultaneous"})
    # A file keeps no memory layout, by which convolutions round differently.
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    batch = {
        name: value.contiguous(memory_format=layout) if name in _IMAGES and value is not None else value
        for name, value in state["batch"].items()
    }
    # Its progress sets only the momentum update, which follows what must fail here.
    terms = train_step(networks, optimizers, Batch(**batch), config, 0.0).terms
    if encoder_moved:
        terms.gradients[:2] = 0.0  # of encoder and probe, which the failed pass has not computed
    if fault := terms.fault():
        return fault
    workers = state.get("workers", 1)  # earlier versions did not say
    apart = workers > 1 and networks.batch_norm and not config.sync_batch_norm
    shared = (
        f"; there, BatchNorm normalized over the images of each of {workers} workers by themselves" if apart else ""
    )
    raise InputError(
        f"{directory}: step {state['step']} is finite on {device}, which may round differently from where it "
        f"diverged{shared}"
    )

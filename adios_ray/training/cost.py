"""The cost of a training step, measured on random images: time, memory, and the size of a checkpoint."""

import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from adios_ray import parallel
from adios_ray.config import TrialConfig, replaced
from adios_ray.data.loader import Batch, BatchLoader
from adios_ray.data.shards import Split
from adios_ray.devices import is_out_of_memory, prepare_device, timed
from adios_ray.errors import MemoryLimitError
from adios_ray.evaluation.extraction import BATCH, extract_features
from adios_ray.masking.fill import make_fill
from adios_ray.masking.schemes import OBJECT_SCHEMES, PATTERN_SCHEMES
from adios_ray.masking.schemes.base import IDS
from adios_ray.models.networks import Networks
from adios_ray.training.graphs import WARM_UP_STEPS, step_function
from adios_ray.training.optimizers import Optimizers, build_optimizers
from adios_ray.training.step import StepResult

CPU_PIXELS = 16 * 224**2
"""Bound on the pixels of a measured step on a CPU, whose time is in proportion to them; a GPU takes the whole batch."""
SMALLEST_BATCH = 2
"""Images of a measured step, at least: BatchNorm cannot normalize one alone."""
STEPS = WARM_UP_STEPS + 1
"""Steps after which all memory is in use: with CUDA graphs, the last one records them, into memory of their own."""
CLASSES = 100


class StepCost(NamedTuple):
    """Cost of a step.

    Attributes:
        seconds_per_image: Time on the GPU, or on one core of the CPU.
        state_bytes: Size of a checkpoint.
        memory_bytes: Largest memory while a whole batch is trained on: of the GPU; on a CPU what the process has grown
            by. In proportion to the batch, where a smaller one was measured: weights are then counted several times.
    """

    seconds_per_image: float
    state_bytes: int
    memory_bytes: int


def measure_step(
    config: TrialConfig, size: int, device: torch.device, seconds: float = 0.0, cpu_pixels: int = CPU_PIXELS
) -> StepCost:
    """Measure some steps, not compiled, and on GPUs of one slot at a time, which takes the least memory.

    Where the memory is too small for the batch, a half of it is measured, and so on.

    Args:
        config: The trial's configuration.
        size: Side S of the views in pixels.
        device: Where to train.
        seconds: Time after which no further step is begun, if there have been enough.
        cpu_pixels: Bound on the pixels of a step on a CPU.

    Raises:
        MemoryLimitError: If the memory is too small for any batch.
    """
    prepare_device(device)
    config, batch_size, before = _uncompiled(config), config.batch_size, 0
    if device.type == "cpu":
        batch_size, before = min(batch_size, max(cpu_pixels // size**2, SMALLEST_BATCH)), _peak_bytes(device)
    while True:
        try:
            step = _measure(config, size, batch_size, device, seconds)
            return step._replace(memory_bytes=(step.memory_bytes - before) * config.batch_size // batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size <= SMALLEST_BATCH:
                raise MemoryLimitError(
                    f"a step of {batch_size} images of {size} pixels does not fit into the memory of this "
                    f"{'GPU' if device.type == 'cuda' else 'machine'}: end what else uses it, or choose a smaller "
                    "backbone or image size"
                ) from error
        # After the handler, whose exception holds the step's tensors.
        torch.cuda.empty_cache()
        batch_size = max(batch_size // 2, SMALLEST_BATCH)


def _measure(config: TrialConfig, size: int, batch_size: int, device: torch.device, seconds: float) -> StepCost:
    """Measure steps of ``batch_size`` images; memory is the largest so far, on a GPU that of these steps alone."""
    on_gpu = device.type == "cuda"
    networks, optimizers, step = random_step(config, size, batch_size, device)
    if on_gpu:  # the peak of a batch that did not fit, or of another configuration; CUDA must have been used before
        torch.cuda.reset_peak_memory_stats(device)
    began, measured = time.monotonic(), list[float]()
    skipped = STEPS if config.cuda_graphs and on_gpu else 1
    while len(measured) < skipped + WARM_UP_STEPS or time.monotonic() - began < seconds:
        measured.append(timed(step, device) if on_gpu else _core_seconds(step))
    moments = [value for o in optimizers.all().values() for state in o.state.values() for value in state.values()]
    tensors = [*networks.state_dict().values(), *(value for value in moments if isinstance(value, torch.Tensor))]
    # Without the first step, in which buffers are allocated; with CUDA graphs, without those before the first replay.
    per_image = statistics.median(measured[skipped:]) / batch_size
    return StepCost(per_image, sum(t.numel() * t.element_size() for t in tensors), _peak_bytes(device))


def random_step(
    config: TrialConfig, size: int, batch_size: int, device: torch.device
) -> tuple[Networks, Optimizers, Callable[[], StepResult]]:
    """Build what a trial trains, not compiled, and a function that takes a step on the same random batch each time.

    Args:
        config: The trial's configuration.
        size: Side S of the views in pixels.
        batch_size: Images of the batch, in place of the configured number.
        device: Where to train.
    """
    networks, optimizers = _build(config, size, CLASSES, device)
    batch = _random_batch(config, batch_size, size, device)
    take_step = step_function(networks, optimizers, config)
    return networks, optimizers, lambda: take_step(batch, 0.5)


def _uncompiled(config: TrialConfig) -> TrialConfig:
    """Return a configuration whose networks have the layouts that are the fastest without compiling."""
    return replaced(config, {"compile": False})


def _build(config: TrialConfig, size: int, classes: int, device: torch.device) -> tuple[Networks, Optimizers]:
    """Build what a trial trains, as it does, but without compiling it."""
    networks = Networks(config, size, classes).to(device).train()
    networks.choose_layouts(device, config.compile)
    return networks, build_optimizers(networks, config.optimizer)


def _peak_bytes(device: torch.device) -> int:
    """Return the largest memory so far, of this process or, since it was last reset, of the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kibibytes


def _core_seconds(work: Callable[[], object]) -> float:
    """Measure a call on one core, as a trial trains on CPUs, by the processor's time: other programs do not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    try:
        work()
    finally:
        torch.set_num_threads(threads)
    return time.process_time() - began


def fitting_slots(config: TrialConfig, split: Split, size: int, classes: int, device: torch.device) -> int:
    """Find how many masks of an image a GPU can embed at once: all, or a half until training fits into its memory.

    A few steps, not compiled, are taken on networks of their own; meanwhile the loader makes the next batches there, as
    in training.

    Where several workers share the GPU, it is this one's share of the memory (``devices.limit_memory``).

    Each worker measures its share of a batch by itself; the trial takes the smallest number of all.

    Args:
        config: The trial's configuration.
        split: The images that it trains on.
        size: Side S of the views in pixels.
        classes: Number of classes, or of labels, of these images.
        device: The GPU.
    """
    slots = config.most_at_once
    share = max(config.batch_size // parallel.world_size(), 2)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), parallel.alone():
        while slots > 1:
            try:
                tried = replaced(_uncompiled(config), {"slots_at_once": slots, "batch_size": share})
                _train_briefly(tried, split, size, classes, device)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                slots = -(-slots // 2)
            finally:
                torch.cuda.empty_cache()
    return slots


def _train_briefly(config: TrialConfig, split: Split, size: int, classes: int, device: torch.device) -> None:
    """Take the first steps of a training, until its memory has its full size, and embed images for an evaluation."""
    networks, optimizers = _build(config, size, classes, device)
    take_step = step_function(networks, optimizers, config)
    for batch in BatchLoader(split, config, size, device).batches(config.seed, 0, STEPS):
        take_step(batch, 0.5)
    # Beside the step: one that is recorded keeps its memory.
    images, precision = split.spread(BATCH), networks.autocast(device)
    extract_features(networks.backbone, split, images, size, config.evaluation.view, precision)


def _random_batch(config: TrialConfig, batch_size: int, size: int, device: torch.device) -> Batch:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format  # that of the loader
    a, b = (view.contiguous(memory_format=layout) for view in torch.randn(2, batch_size, 3, size, size, device=device))
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    masking, masks, rng = config.masking, None, np.random.default_rng(0)
    both = config.objective.masked_views == "both"
    masked = 2 * batch_size if both else batch_size
    if scheme := PATTERN_SCHEMES.get(masking.scheme):
        masks = scheme.make(rng.random((masked, scheme.draws)), size).to(device)
    elif objects := OBJECT_SCHEMES.get(masking.scheme):
        instances = torch.randint(masking.slots, (masked, size, size), dtype=torch.uint8)
        masks = objects.make(instances, masking.slots, rng.random((masked, IDS))).float().to(device)
    fill_a = make_fill(masking.fill, a, rng.random(batch_size)) if both else None
    fill_b = make_fill(masking.fill, b, rng.random(batch_size))
    return Batch(a, b, labels, torch.rand(batch_size, device=device), masks, fill_a=fill_a, fill_b=fill_b)

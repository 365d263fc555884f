"""Peak memory of a training step with eight masks over that with one.

Usage: ``python benchmarks/memory.py``. Prints one JSON object with a row per objective: the MiB by which three steps at
their peak exceed the memory of the built networks, for N = 1 and N = 8 masks, and the ratio. Each figure is from a
fresh process: its resident set on CPUs, the allocator's peak on CUDA. Sizes as in ``benchmarks/step.py``. About three
minutes on two cores.
"""

import json
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from step import BATCH, SIZE, resnet18

from adios_ray.config import OBJECTIVES, TrialConfig
from adios_ray.devices import best_device
from adios_ray.errors import exit_status
from adios_ray.training.allocator import keep_freed_memory
from adios_ray.training.cost import random_step

STEPS = 3
DEVICE = best_device()


def held_mib() -> float:
    """Return the memory of this process now, in MiB."""
    if DEVICE.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """Return the highest memory of this process so far, in MiB."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # In KiB on Linux; it never falls, which is why each figure needs a process of its own.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def growth_mib(objective: str, slots: int, masked_views: str) -> float:
    """Measure the MiB that a few steps add at their peak; must run in a fresh process."""
    torch.set_num_threads(2)
    if DEVICE.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    config = resnet18(objective, "simultaneous", slots=2, views=masked_views)
    _, _, step = random_step(with_slots(config, slots), SIZE, BATCH, DEVICE)
    before = held_mib()
    for _ in range(STEPS):
        step()
    return peak_mib() - before


def with_slots(config: TrialConfig, slots: int) -> TrialConfig:
    """Set N, also to 1: no valid configuration, since there is no game with one mask, but a baseline of memory."""
    return config.model_copy(update={"masking": config.masking.model_copy(update={"slots": slots})})


def main() -> None:
    """Measure every objective."""
    kinds = [*((name, "one") for name in OBJECTIVES), ("simsiam", "both")]
    rows = []
    for name, masked_views in track(kinds, "objectives", transient=True, console=Console(stderr=True)):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            one, eight = (pool.submit(growth_mib, name, slots, masked_views).result() for slots in (1, 8))
        rows.append(
            {
                "objective": name if masked_views == "one" else f"{name} (eight terms)",
                "one_slot_mib": round(one),
                "eight_slots_mib": round(eight),
                "ratio": round(eight / one, 3),
            }
        )
    print(json.dumps({"device": DEVICE.type, "rows": rows}))


if __name__ == "__main__":
    sys.exit(exit_status(main))

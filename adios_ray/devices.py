"""The device of commands that run in one process, and timing on it; workers of a trial use the one that Ray assigns."""

import time
from collections.abc import Callable

import torch


def best_device() -> torch.device:
    """Return the first GPU if torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds of one call, until the device has done what the call gave it."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":  # the call only queues kernels
        torch.cuda.synchronize()
    return time.perf_counter() - began

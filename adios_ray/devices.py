"""The device of commands that run in one process, and timing on it; workers of a trial use the one that Ray assigns."""

import time
from collections.abc import Callable

import torch


def best_device() -> torch.device:
    """Return the first GPU if torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 itself; GPUs before NVIDIA's Ampere convert, which is slower."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    return native


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds of one call, until the device has done what the call gave it."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":  # the call only queues kernels
        torch.cuda.synchronize()
    return time.perf_counter() - began

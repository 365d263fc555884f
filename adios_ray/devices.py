"""The device of commands that run in one process, and timing on it; workers of a trial use the one that Ray assigns."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

CPU = torch.device("cpu")
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Occurs in torch's messages that memory for the CPU cannot be allocated."""
_OUT_OF_MEMORY = (
    CPU_ALLOCATOR,
    "CUDA out of memory",  # wrapped into another class, as torch's compiler does
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Cuda failure 2 'out of memory'",  # of NCCL
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    # The libraries' own memory, which they take at first use, beside torch's allocator.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    # Of cuDNN's search for the fastest kernel (``prepare_device``), when none has the memory that it needs.
    "unable to find an engine to execute this computation",
)
CONTEXT_BYTES = 700 * 2**20
"""GPU memory of a process beside its tensors: the CUDA context, libraries and their kernels (estimated)."""


def best_device() -> torch.device:
    """Return the first GPU if torch sees one, else the CPU."""
    # By its index, without which some of torch's functions take no device.
    return torch.device("cuda", 0) if torch.cuda.is_available() else CPU


@cache  # asked in each forward pass
def native_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 itself; GPUs before NVIDIA's Ampere convert, which is slower."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    return native


def precision_note(precision: str, device: torch.device) -> str:
    """Say that a training uses another precision than the configured one; nothing if it uses that."""
    if precision != "bfloat16" or native_bfloat16(device):
        return ""
    return f"{torch.cuda.get_device_name(device)} has no bfloat16 of its own: it trains in float32"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch or Python could not allocate memory, on a GPU or for the CPU."""
    # While a CUDA graph is recorded, torch may answer with another error, which has this one as its context.
    chain = list[BaseException]()
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    # Only torch's allocator for GPUs has an error class of its own.
    own = any(isinstance(each, torch.OutOfMemoryError | MemoryError) for each in chain)
    return own or any(text in str(each) for each in chain for text in _OUT_OF_MEMORY)


def copied_to(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the CPU to a device, without waiting for its pending work; a no-op for one there."""
    pins = device.type == "cuda" and values.device.type == "cpu"
    return values.pin_memory().to(device, non_blocking=True) if pins else values.to(device)


def prepare_device(device: torch.device) -> None:
    """Let cuDNN measure which kernels are the fastest, for the whole process; a no-op for CPUs."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def limit_memory(device: torch.device, share: float) -> None:
    """Keep this process within a share, in (0, 1], of a GPU's memory: beyond it, it is out of memory itself.

    Without a limit, the one that asks for more last is out of memory, whichever took too much. torch limits tensors
    alone, so they get what the process's context leaves of its share.
    """
    if device.type == "cuda" and share < 1:
        context = CONTEXT_BYTES / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(max(share - context, 0.0), device)


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Round the factors of float32 matrix products to TF32 inside the block, as cuDNN's convolutions do by default.

    For training steps: TF32 has 10 bits of mantissa instead of 23, too few for resampled images and for distances.
    Nothing changes where ``torch.backends.cudnn.allow_tf32`` was set to False.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds of one call, until the device has done what the call gave it."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":  # the call only queues kernels
        torch.cuda.synchronize()
    return time.perf_counter() - began

"""Keeping freed memory for the next step, where the C library would give it back."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_LARGEST_FROM_HEAP = 2**30


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees.

    A training step frees and takes the same large blocks again and again. Returned to the system, every page of them
    is faulted in anew: tens of thousands of faults a step, 5 to 15 % of its time on CPUs. Other C libraries are left
    alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
        mallopt(_TRIM_THRESHOLD, _NEVER)

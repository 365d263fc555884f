"""Settings of the C library's allocator for training on CPUs."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_LARGEST_FROM_HEAP = 2**30


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system; a no-op with other C libraries.

    A training step allocates and frees the same large blocks each time. Memory that was returned to the system must be
    paged in again at the next step: tens of thousands of page faults a step, 5 to 15 % of its time on CPUs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both are needed: blocks above the first threshold are mapped one by one and unmapped when freed, whatever the
        # second one is; setting either also turns off glibc's own adjustment of them.
        mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
        mallopt(_TRIM_THRESHOLD, _NEVER)

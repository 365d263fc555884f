"""Settings of a Ray Train worker, in a module of their own because the worker loop imports torch."""

from typing import Any, TypedDict


class LoopConfig(TypedDict):
    """Settings that Ray Train hands to each worker.

    Attributes:
        trial: Name of the trial.
        run_dir: The run's directory, on storage that all nodes share, or its URI.
        channel: Handle of the population's channel.
        threads: CPU threads of this worker.
        gpus: GPUs of this worker; of a fraction it gets that share of the memory.
    """

    trial: str
    run_dir: str
    channel: Any
    threads: int
    gpus: float


def threads_of(cpus: float) -> int:
    """Return the number of CPU threads of a worker with this share of CPUs, >= 1; sums are rounded by it."""
    return max(int(cpus), 1)

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

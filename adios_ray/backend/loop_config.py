"""What a Ray Train worker is told at its start; apart from the loop, so that others can read it without torch."""

from typing import Any, TypedDict


class LoopConfig(TypedDict):
    """What Ray Train hands to each worker.

    Attributes:
        trial: Name of the trial.
        run_dir: The run's directory, on storage that all nodes share.
        channel: Handle of the population's channel.
        threads: CPU threads of this worker.
    """

    trial: str
    run_dir: str
    channel: Any
    threads: int

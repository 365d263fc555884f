"""Extraction of features on a Ray cluster: one task for each part of a split."""

from collections.abc import Callable, Iterator, Sequence

import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from adios_ray.errors import AdiosRayError
from adios_ray.evaluation.extraction import Indices

AHEAD = 2
"""Tasks that are submitted for each CPU or GPU that runs one, so that none waits for the driver."""


def map_on_cluster(function: Callable[[Indices], Tensor], parts: Sequence[Indices]) -> Iterator[Tensor]:
    """Yield ``function`` of each part, in order, computed by tasks of one GPU where the cluster has any, else one CPU.

    Args:
        function: Can be pickled; it is sent to each machine once.
        parts: Arguments of the tasks.

    Raises:
        AdiosRayError: If a task raises one.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    shared = ray.put(function)
    task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(_apply)
    ahead = AHEAD * max(int(gpus or ray.cluster_resources().get("CPU", 1)), 1)
    pending = [task.remote(shared, part) for part in parts[:ahead]]
    for part in [*parts[ahead:], *[None] * len(pending)]:
        try:
            yield ray.get(pending.pop(0))
        except RayTaskError as error:
            # Ray's error has the traceback in its message; ours is one line, such as a data set that is not there.
            if isinstance(error.cause, AdiosRayError):
                raise error.cause from None
            raise
        if part is not None:
            pending.append(task.remote(shared, part))


def _apply(function: Callable[[Indices], Tensor], part: Indices) -> Tensor:
    return function(part)

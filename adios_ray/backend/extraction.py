"""Extraction of features on a Ray cluster: one task for each part of a split."""

from collections.abc import Callable, Iterator, Sequence

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from torch import Tensor

from adios_ray.backend.capacity import WAITING_S
from adios_ray.backend.faults import fault_of
from adios_ray.backend.tasks import cancelled_on_error
from adios_ray.console import say
from adios_ray.errors import AGAIN, AdiosRayError, RunError
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
        RunError: If a task fails otherwise, such as by the loss of its node.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)
    _wait_for_resources(task(lambda: None).remote(), "1 CPU and 1 GPU" if gpus else "1 CPU")
    apply, shared = task(_apply), ray.put(function)
    ahead = AHEAD * max(int(gpus or ray.cluster_resources().get("CPU", 1)), 1)
    pending = [apply.remote(shared, part) for part in parts[:ahead]]
    with cancelled_on_error(pending):
        for part in [*parts[ahead:], *[None] * len(pending)]:
            found = _result(pending[0])
            del pending[0]  # only now: it is cancelled if the driver is interrupted while it waits
            yield found
            if part is not None:
                pending.append(apply.remote(shared, part))


def _wait_for_resources(empty: "ray.ObjectRef[None]", needed: str) -> None:
    """Wait for a task that does nothing but need what the others will need; say so if it takes long."""
    with cancelled_on_error([empty]):
        if not ray.wait([empty], timeout=WAITING_S)[0]:
            say(f"waiting for resources: a task of the extraction needs {needed} that nothing else uses")
            ray.wait([empty])
            say("resources are free: features are extracted")


def _result(task: "ray.ObjectRef[Tensor]") -> Tensor:
    """Return what a task returns, or raise its error in one line: Ray's has the traceback in its message."""
    try:
        found: Tensor = ray.get(task)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, AdiosRayError):  # such as a data set that is not there
            raise cause from None
        # Not the fault's own advice, which names options of a training.
        reason = "a node was low on memory" if isinstance(cause, OutOfMemoryError) else fault_of(cause).reason
        raise RunError(
            f"the cluster could not extract features ({reason}); the features of finished splits are kept: {AGAIN}"
        ) from error
    return found


def _apply(function: Callable[[Indices], Tensor], part: Indices) -> Tensor:
    return function(part)

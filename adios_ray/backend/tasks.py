"""Ray tasks that a driver waits for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def cancelled_on_error(tasks: "Collection[ray.ObjectRef[Any]]") -> Iterator[None]:
    """End the tasks that still wait or run if the block is interrupted or fails.

    A task whose driver was interrupted keeps its resources as long as the driver stays connected, as a notebook does.
    """
    try:
        yield
    except BaseException:
        if tasks and ray.is_initialized():  # a generator may be closed after the driver has disconnected
            # Not those that have ended: Ray 2.60 aborts a driver that cancels a task whose result is just arriving.
            for task in ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[1]:
                ray.cancel(task, force=True)
        raise

"""Ray tasks that a driver waits for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def cancelled_at_end(tasks: "Collection[ray.ObjectRef[Any]]") -> Iterator[None]:
    """End the tasks that still wait or run when the block is left, however it is left.

    A task whose driver was interrupted keeps its resources as long as the driver stays connected, as a notebook does.
    """
    try:
        yield
    finally:
        if ray.is_initialized():  # a generator may be closed after the driver has disconnected
            for task in tasks:
                ray.cancel(task, force=True)  # nothing happens to one that has ended

"""Waiting for what other processes do."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], timeout_s: float = 240) -> None:
    """Wait until a condition is true; fail after a time that suffices where other tests run as well."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TIMEOUT_S = 300.0  # no speed is tested: what works takes far less on the slowest machine, and only a hang takes longer


def until(condition: Callable[[], T | None], alive: Callable[[], object] = lambda: True) -> T:
    """Wait until a condition is true, and return its value.

    Fails where what should make it true has ended, and after ``TIMEOUT_S``.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert alive(), "what was waited for has ended"
        assert time.monotonic() < deadline, f"waited for {TIMEOUT_S:.0f} s"
        time.sleep(0.05)
    return value

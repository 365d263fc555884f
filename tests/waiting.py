"""Waiting for what other processes do."""

import time
from collections.abc import Callable

TIMEOUT_S = 300.0  # no speed is tested: what works takes far less on the slowest machine, and only a hang takes longer


def until(condition: Callable[[], object], alive: Callable[[], object] = lambda: True) -> None:
    """Wait until a condition is true; fail where what should make it true has ended, and after ``TIMEOUT_S``."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert alive(), "what was waited for has ended"
        assert time.monotonic() < deadline, f"waited for {TIMEOUT_S:.0f} s"
        time.sleep(0.05)

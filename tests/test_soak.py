"""A short `make soak`: the disturbances of a running population that no other test covers.

test_live_trial covers killed workers and a truncated checkpoint, test_population storage that goes away.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = "+".join((*(("disk",) if os.geteuid() == 0 else ()), "actor", "node", "driver"))  # mounting needs root
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_nothing_is_lost_or_left_behind_whatever_is_killed() -> None:
    soak = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "soak.py"), "--rounds", "1", "--seed", "7", "--kinds", KINDS],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert soak.returncode == 0, soak.stdout[-3000:] + soak.stderr[-1000:]
    assert f"{KINDS}: 1 of 1 rounds passed" in soak.stdout

"""The short form of `make soak`: what no other test does to a running population.

A killed worker or controller and a cut-off checkpoint are in test_live_trial, storage that goes away in
test_population.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("actor", "driver", "node", *(("disk",) if os.geteuid() == 0 else ()))  # to mount needs root
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_nothing_is_lost_or_left_behind_whatever_is_killed() -> None:
    soak = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "soak.py"), "--rounds", "1", "--seed", "7", "--kinds", *KINDS],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert soak.returncode == 0, soak.stdout[-3000:] + soak.stderr[-1000:]
    for kind in KINDS:
        assert f"{kind}: 1 of 1 rounds went well" in soak.stdout

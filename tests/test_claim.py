"""Two preparations of one place: the second waits, says for which, and takes over from one that has died."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import s3_server

from adios_ray.data import claim
from adios_ray.data.claim import HOLDER_FILE, claimed
from adios_ray.store import Store


class Unlocked:
    """A lock on a file system that has none."""

    def __init__(self, path: Path) -> None:
        """Take the path."""

    def acquire(self, timeout: float = -1) -> None:
        """Fail as such file systems do."""
        raise OSError("No locks available")


@pytest.fixture(params=["locks", "beats", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """Offer a place on storage with and without locks, and on an object store."""
    monkeypatch.setattr(claim, "BEAT_S", 0.05)
    monkeypatch.setattr(claim, "STALE_S", 0.5)
    monkeypatch.setattr(claim, "SETTLING_S", 0.02)
    if request.param == "s3":
        with s3_server() as server:
            bucket = server.uri
            yield Store(f"{bucket}/set")
        return
    if request.param == "beats":
        monkeypatch.setattr(claim, "FileLock", Unlocked)
    yield Store(tmp_path / "set")


class Second(threading.Thread):
    """Another preparation."""

    def __init__(self, place: Store) -> None:
        """Claim a place."""
        super().__init__(daemon=True)
        self.place, self.said, self.held = place, list[str](), False

    def run(self) -> None:
        """Wait for the place and leave it."""
        with claimed(self.place, self.said.append):
            self.held = True


@pytest.mark.slow
def test_the_second_waits_for_the_first_and_says_for_which(place: Store) -> None:
    with claimed(place, print):
        second = Second(place)
        second.start()
        second.join(timeout=1.0)  # longer than a holder that has died would be waited for
        assert second.is_alive()
    second.join(timeout=10)
    assert second.held and not second.is_alive()
    (line,) = second.said
    assert line.startswith(f"{place} is being prepared by process {os.getpid()} on ")
    assert place.size(HOLDER_FILE) is None


@pytest.mark.slow
def test_the_place_of_a_process_that_was_killed_is_taken_over(place: Store, request: pytest.FixtureRequest) -> None:
    locks = request.node.callspec.params["place"] == "locks"
    without = "" if locks else "from test_claim import Unlocked\nclaim.FileLock = Unlocked\n"
    script = (
        "import time\nfrom adios_ray.data import claim\nfrom adios_ray.store import Store\n"
        f"claim.SETTLING_S = 0.01\n{without}"
        f"with claim.claimed(Store({str(place)!r}), print):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.kill()
    second = Second(place)
    second.start()
    second.join(timeout=10)
    assert second.held and not second.is_alive()
    assert locks or "taking over" in second.said[-1]

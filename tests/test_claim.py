"""Two processes and one place: the second waits or is refused, says for which, and takes over from a dead one."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from s3 import s3_server
from waiting import TIMEOUT_S, until

from adios_ray.data import claim
from adios_ray.data.claim import PREPARING, TRAINING, Holder, claimed, holder_of
from adios_ray.errors import ClaimError
from adios_ray.store import Store


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let seconds pass fast."""
    monkeypatch.setattr(claim, "BEAT_S", 0.05)
    monkeypatch.setattr(claim, "STALE_S", 2.0)
    monkeypatch.setattr(claim, "SETTLING_S", 0.02)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no process recognize another one's machine."""
    monkeypatch.setattr(claim, "_machine", lambda: "")


@pytest.fixture(params=["here", "elsewhere", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Offer a place held from this machine, from another one, and on an object store."""
    if request.param == "s3":
        with s3_server() as server:
            bucket = server.uri
            yield Store(f"{bucket}/set")
        return
    if request.param == "elsewhere":
        request.getfixturevalue("elsewhere")
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
        second.join(timeout=3.0)  # longer than a holder that has died would be waited for
        assert second.is_alive()
    second.join(TIMEOUT_S)
    assert second.held and not second.is_alive()
    (line,) = second.said
    assert line.startswith(f"{place} is being prepared by process {os.getpid()} on ")
    assert place.size(PREPARING.file) is None


def test_a_process_on_this_machine_that_is_suspended_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "STALE_S", 0.1)
    with subprocess.Popen(["sleep", "60"]) as other:  # alive, and without a beat
        began = claim._process_start(other.pid) or ""
        holder = Holder(token="x", host="here", pid=other.pid, machine=claim._machine(), began=began)
        (tmp_path / PREPARING.file).write_text(holder.model_dump_json())
        second = Second(Store(tmp_path))
        second.start()
        second.join(timeout=0.5)
        assert second.is_alive()
        other.kill()
    second.join(TIMEOUT_S)
    assert second.held and second.said[-1].endswith(", which has ended")


def test_a_claim_that_this_process_could_not_remove_is_nobodys(tmp_path: Path) -> None:
    store, said = Store(tmp_path / "run"), list[str]()
    with claimed(store, print, TRAINING, wait=False):
        away = (tmp_path / "run").rename(tmp_path / "away")
    away.rename(tmp_path / "run")
    with claimed(store, said.append, TRAINING, wait=False):
        assert said[-1].endswith(", which has ended")


@pytest.mark.slow
def test_the_place_of_a_process_that_was_killed_is_taken_over(place: Store, request: pytest.FixtureRequest) -> None:
    unknown = "claim._machine = lambda: ''\n" if request.node.callspec.params["place"] == "elsewhere" else ""
    script = (
        "import time\nfrom adios_ray.data import claim\nfrom adios_ray.store import Store\n"
        f"claim.SETTLING_S = 0.01\n{unknown}"
        f"with claim.claimed(Store({str(place)!r}), print):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.kill()
    second = Second(place)
    second.start()
    second.join(TIMEOUT_S)
    assert second.held and not second.is_alive()
    assert "taking over" in second.said[-1] and f"process {process.pid} on " in second.said[-1]
    assert len(second.said) == (2 if unknown else 1)  # elsewhere, it has to listen first


def test_a_second_driver_is_refused_by_name_and_a_stopped_one_leaves_nothing(tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    with claimed(store, said.append, TRAINING, wait=False, job="17"):
        with pytest.raises(ClaimError, match=rf"by process {os.getpid()} on \S+ \(job 17\) since .*--take-over"):
            with claimed(store, said.append, TRAINING, wait=False):
                pass
    with claimed(store, said.append, TRAINING, wait=False):
        pass
    assert not said and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("elsewhere")
def test_a_driver_elsewhere_is_refused_by_its_beats_and_succeeded_without_them(tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    with claimed(store, said.append, TRAINING, wait=False):
        with pytest.raises(ClaimError, match="is alive"):
            with claimed(store, said.append, TRAINING, wait=False):
                pass
    dead = Holder(token="x", host="node7", pid=3, since="yesterday")
    (tmp_path / TRAINING.file).write_text(dead.model_dump_json())
    with claimed(store, said.append, TRAINING, wait=False, take_over=True):  # at once
        assert said[-1] == f"{tmp_path}: taking over from process 3 on node7 since yesterday"


def test_a_process_id_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    earlier = Holder(token="x", pid=os.getpid(), machine=claim._machine(), began="1")
    (tmp_path / TRAINING.file).write_text(earlier.model_dump_json())
    said: list[str] = []
    with claimed(Store(tmp_path), said.append, TRAINING, wait=False):
        assert said[0].endswith(", which has ended")


def test_another_users_process_that_proc_hides_is_recognized_by_its_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(pid: int, number: int) -> None:
        assert number == 0
        raise PermissionError

    with subprocess.Popen(["true"]) as process:
        process.wait()
    # In /proc, an ended process and a hidden one look alike.
    holder = Holder(token="x", pid=process.pid, machine=claim._machine(), began="1")
    assert holder.alive() is False
    monkeypatch.setattr(os, "kill", denied)
    assert holder.alive() is None


def test_a_driver_that_was_taken_over_stops_and_leaves_the_place_to_the_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with claimed(store, print, TRAINING, wait=False) as first:
        first.check()
        with claimed(store, print, TRAINING, wait=False, take_over=True) as second:
            with pytest.raises(ClaimError, match=f"has been taken over by process {os.getpid()}"):
                first.check()
            first.release()
            second.check()
            assert (tmp_path / TRAINING.file).exists()
        with pytest.raises(ClaimError, match="has been taken over"):  # it may have slept through all of that
            first.check()
        assert holder_of(tmp_path, TRAINING) is None
        with claimed(store, print, TRAINING, wait=False) as third:
            third.check()
        with pytest.raises(ClaimError, match="has been taken over"):
            first.check()
        (tmp_path / TRAINING.file).unlink()
        first.check()  # deleted, or storage is away: nobody else is known


def test_beats_go_on_while_storage_is_away_and_make_no_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with claimed(Store(tmp_path / "run"), print, TRAINING, wait=False) as held:
        away = (tmp_path / "run").rename(tmp_path / "away")
        held.check()
        time.sleep(0.2)  # four beats
        assert not (tmp_path / "run").exists()
        away.rename(tmp_path / "run")
        before = (tmp_path / "run" / TRAINING.file).read_text()
        until(lambda: (tmp_path / "run" / TRAINING.file).read_text() != before)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_slow_beat_is_waited_for_at_the_end_unless_the_process_is_stopped(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BRIEF_S", 0.1)
    beating, file = threading.Event(), tmp_path / TRAINING.file

    def check(self: claim.Claim) -> None:
        beating.set()
        time.sleep(1.0)  # storage is busy

    with suppress(KeyboardInterrupt), claimed(Store(tmp_path), print, TRAINING, wait=False):
        monkeypatch.setattr(claim.Claim, "check", check)
        assert beating.wait(TIMEOUT_S)
        if stopped:
            raise KeyboardInterrupt
    assert file.exists() == stopped

"""Retries on storage that fails for a while, for good, or in the middle of a line."""

import errno
import os
import queue
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_run import make_exploit, make_row, recorded
from waiting import TIMEOUT_S

from adios_ray import retry as retrying
from adios_ray.checkpoints import save_checkpoint
from adios_ray.errors import StorageError
from adios_ray.files import atomic_write
from adios_ray.retry import retry, retry_in_run
from adios_ray.run_directory import RunDirectory
from adios_ray.search.state import PopulationState
from adios_ray.store import PARALLEL_COPIES, copy_in_parallel
from adios_ray.tracking import decisions, outcomes, records, results, run_masks
from adios_ray.tracking.run_masks import MaskFile


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten pauses to a hundredth of a second, and the timeout to a quarter."""
    monkeypatch.setattr(retrying, "PAUSE_S", 0.01)
    monkeypatch.setattr(retrying, "TIMEOUT_S", 0.25)


def refusing(times: int) -> Callable[[], str]:
    """Build a write that fails ``times`` times, as on a full disk, and then succeeds."""
    attempts = iter(range(times))

    def action() -> str:
        if next(attempts, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "written"

    return action


def test_it_waits_says_so_once_and_says_when_it_goes_on() -> None:
    said: list[str] = []
    assert retry(refusing(5), said.append) == "written"
    assert len(said) == 2
    assert said[0] == "storage refuses ([Errno 28] No space left on device); retrying for up to 0 s"
    assert said[1].startswith("storage has answered after")


def test_an_access_that_takes_long_is_named_without_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "ANSWER_S", 0.05)
    said = queue.SimpleQueue[str]()
    line = retry(lambda: said.get(timeout=TIMEOUT_S), said.put)  # the access ends once something is said
    assert line == "an access to storage has taken 0 s so far; waiting for it"
    assert said.get_nowait() == "an access to storage took 0 s" and said.empty()


def test_an_action_that_does_more_than_access_storage_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retrying, "ANSWER_S", 0.05)
    said = queue.SimpleQueue[str]()
    RunDirectory(tmp_path).config.touch()
    line = retry_in_run(tmp_path, lambda: said.get(timeout=TIMEOUT_S), said.put, "drawing the report")
    assert line == "drawing the report has taken 0 s so far; waiting for it"
    assert said.get_nowait() == "drawing the report took 0 s" and said.empty()


def test_it_says_nothing_where_nothing_is_wrong() -> None:
    said: list[str] = []
    assert retry(refusing(0), said.append) == "written" and not said


def test_it_gives_up_with_what_to_do() -> None:
    with pytest.raises(StorageError, match="No space left on device.*fix it, then run the command again"):
        retry(refusing(10**9), lambda text: None)


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    def broken() -> None:
        raise ValueError("a fault of our own")

    with pytest.raises(ValueError, match="our own"):
        retry(broken, lambda text: None)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        retry(lambda: atomic_write(tmp_path / "file" / "masks", b""), lambda text: None)


def test_a_line_that_did_not_fit_is_written_whole_later(tmp_path: Path) -> None:
    results.begin_results(tmp_path)
    results.append_result(tmp_path, make_row(epoch=1))
    before = (tmp_path / "results.csv").read_bytes()
    line = results._csv_line([1, 2, 3])
    with (tmp_path / "results.csv").open("ab") as file:
        file.write(line.encode()[:3])  # the disk was full here
    retry(lambda: results.append_result(tmp_path, make_row(epoch=2)), lambda text: None)
    content = (tmp_path / "results.csv").read_bytes()
    assert content.startswith(before) and [row.epoch for row in results.read_results(tmp_path)] == [1, 2]


def test_a_directory_that_is_away_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    records.write_config(run, {})
    results.begin_results(run)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "refuses" in text:
            run.rmdir()
            os.rename(tmp_path / "away", run)

    def go_away() -> None:
        said.clear()
        run.rename(tmp_path / "away")
        run.mkdir()  # a mount point remains, and another process may create the run's folder in it

    go_away()
    retry(lambda: results.append_result(run, make_row(epoch=1)), say)
    assert len(said) == 2
    go_away()
    retry_in_run(run, lambda: atomic_write(run / "masks", b"drawn"), say)
    assert len(said) == 2
    assert len(results.read_results(run)) == 1 and (run / "masks").read_bytes() == b"drawn"


def test_a_line_is_not_appended_again_if_storage_goes_away_after_it(tmp_path: Path) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    records.write_config(run, {})
    decisions.begin_lineage(run)
    exploit = make_exploit(1, "trial_00", "trial_01")

    def append() -> None:
        decisions.append_decision(run, exploit)
        run.rename(away)

    def come_back(text: str) -> None:
        away.rename(run)

    retry_in_run(run, append, come_back)
    assert decisions.read_lineage(away) == [exploit]


def _save(run: RunDirectory) -> None:
    save_checkpoint(run.checkpoint("trial_00", 1), {}, {})


def _draw(run: RunDirectory) -> None:
    run_masks.write_masks(
        run.path, "trial_00", 1, MaskFile(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 1, 2, 2), np.uint8))
    )


def _snapshot(run: RunDirectory) -> None:
    PopulationState(next_decision_epoch=1).save(run.path)


WRITES: dict[str, tuple[Callable[[RunDirectory], object], Callable[[RunDirectory], Path]]] = {
    "checkpoint": (_save, lambda run: run.checkpoint("trial_00", 1)),
    "masks": (_draw, lambda run: run.masks("trial_00", 1)),
    "snapshot": (_snapshot, lambda run: run.population),
    "page": (lambda run: atomic_write(run.report, b"page"), lambda run: run.report),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_while_storage_is_away_for_a_moment_is_not_lost(tmp_path: Path, name: str) -> None:
    storage = tmp_path / "storage"
    run = RunDirectory(storage / "run")
    run.path.mkdir(parents=True)
    records.write_config(run.path, {})
    run.make_folders()
    write, path_in = WRITES[name]
    attempts = 0

    def write_while_unmounted() -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            write(run)
            return
        # From after the look for the run's files until before it: only the write itself can notice.
        storage.rename(tmp_path / "away")
        storage.mkdir()
        try:
            write(run)
        finally:
            shutil.rmtree(storage)
            (tmp_path / "away").rename(storage)

    retry_in_run(run.path, write_while_unmounted, lambda text: None)
    assert attempts == 2 and path_in(run).exists()


def test_what_a_decision_needs_is_not_taken_for_missing_while_storage_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, away = tmp_path / "storage", tmp_path / "away"
    storage.mkdir()
    records.write_config(storage, {})
    run = recorded(storage)
    outcomes.write_outcomes(storage, "trial_00", 1, bytes([0, 255]))
    storage.rename(away)
    storage.mkdir()  # as an unmounted file system leaves

    def mount_again(text: str, kind: str) -> None:
        if away.exists():
            storage.rmdir()
            away.rename(storage)

    monkeypatch.setattr(run, "note", mount_again)
    found = run.read(lambda: outcomes.read_outcomes(storage, "trial_00", 1))
    assert found is not None and found.tolist() == [0, 1]


def test_copies_in_parallel_end_with_the_first_that_fails() -> None:
    tried = list[int]()

    def refuse(item: int) -> None:
        tried.append(item)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        copy_in_parallel(refuse, range(200))
    assert len(tried) <= PARALLEL_COPIES

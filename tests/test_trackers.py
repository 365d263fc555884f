"""Trackers: what wandb's, TensorBoard's and JSON files hold, and that none of them can harm a run."""

import json
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn
from unittest.mock import MagicMock

import psutil
import pytest
from made_up_run import make_row, make_run
from waiting import TIMEOUT_S, until
from wandb_server import wandb_server

from adios_ray.config import TrialConfig, replaced
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.decisions import Exploit, read_lineage
from adios_ray.tracking.processes import Program
from adios_ray.tracking.records import RunSummary, read_summary, write_token
from adios_ray.tracking.results import Row, read_results
from adios_ray.tracking.trackers import isolation
from adios_ray.tracking.trackers.isolation import Trackers
from adios_ray.tracking.trackers.jsonl import JsonLinesLog
from adios_ray.tracking.trackers.tensorboard import TensorBoardLog
from adios_ray.tracking.trackers.wandb import WandbLog

CONFIG = TrialConfig()


@pytest.mark.slow
def test_a_tracker_that_fails_is_named_once_and_the_others_get_everything(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    said = list[str]()
    with Trackers(["jsonl", "tensorboard"], RunStorage(tmp_path), said.append) as trackers:
        for epoch in (1, 2, 3):
            trackers.report(make_row(epoch=epoch), CONFIG)
    log = tmp_path / "logs" / "tracker_jsonl.log"
    assert said[0].startswith("jsonl failed, and the run continues without it: IsADirectoryError: ")
    assert said[1:] == [f"jsonl: 3 of 3 records were not sent; see {log}"] and "Traceback" in log.read_text()
    (file,) = (tmp_path / "tensorboard" / "trial_00").iterdir()
    assert [epoch for epoch, _ in scalars(file, "fitness")] == [1, 2, 3]


def test_a_tracker_whose_process_is_killed_is_named_when_that_happens(tmp_path: Path) -> None:
    before, said = set(psutil.Process().children()), queue.SimpleQueue[str]()
    log = tmp_path / "logs" / "tracker_jsonl.log"
    with Trackers(["jsonl"], RunStorage(tmp_path), said.put) as trackers:
        (process,) = set(psutil.Process().children()) - before
        process.kill()
        named = said.get(timeout=TIMEOUT_S)
        trackers.report(make_row(), CONFIG)
    assert named == f"jsonl failed, and the run continues without it: its process ended with status -9; see {log}"
    assert said.get() == f"jsonl: 1 of 1 records were not sent; see {log}" and said.empty()


def test_a_job_that_is_stopped_loses_no_record_of_what_follows(tmp_path: Path) -> None:
    before, said = set(psutil.Process().children()), list[str]()
    with Trackers(["jsonl"], RunStorage(tmp_path), said.append) as trackers:
        trackers.report(make_row(epoch=1), CONFIG)
        (process,) = set(psutil.Process().children()) - before
        until((tmp_path / "log.jsonl").is_file, process.is_running)
        process.terminate()  # as `ray job stop` does with all processes of a job
        trackers.report(make_row(epoch=2), CONFIG)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert not said


@pytest.mark.parametrize("taken", [False, True])
def test_a_tracker_that_hangs_delays_the_end_by_its_limit_only_and_is_named(
    taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "CLOSE_S", 0.05)
    before, said = set(psutil.Process().children()), list[str]()
    with Trackers(["jsonl"], RunStorage(tmp_path), said.append) as trackers:
        (process,) = set(psutil.Process().children()) - before
        if taken:
            trackers.report(make_row(), CONFIG)
            until(lambda: trackers._processes[0]._sent, process.is_running)
            process.suspend()  # as a library that still sends what it has taken
        else:
            process.suspend()
            trackers.report(make_row(), CONFIG)
    log = tmp_path / "logs" / "tracker_jsonl.log"
    late = f"jsonl did not end within 0.05 s, and may lack the last records; see {log}"
    assert said == [late if taken else f"jsonl: 1 of 1 records were not sent; see {log}"]
    assert not process.is_running()


def test_a_tracker_that_dies_while_it_sends_the_last_records_is_named(tmp_path: Path) -> None:
    before, said = set(psutil.Process().children()), list[str]()
    with Trackers(["jsonl"], RunStorage(tmp_path), said.append) as trackers:
        (process,) = set(psutil.Process().children()) - before
        trackers.report(make_row(), CONFIG)
        until(lambda: trackers._processes[0]._sent, process.is_running)
        process.suspend()
        threading.Timer(0.5, process.kill).start()
    log = tmp_path / "logs" / "tracker_jsonl.log"
    assert said == [f"jsonl ended with status -9, and may lack the last records; see {log}"]


def test_a_tracker_that_cannot_start_is_named_and_the_others_get_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, said = tmp_path / "logs" / "tracker_tensorboard.log", list[str]()
    log.mkdir(parents=True)
    with Trackers(["tensorboard", "jsonl"], RunStorage(tmp_path), said.append) as trackers:
        trackers.report(make_row(epoch=1), CONFIG)
    failed = "failed, and the run continues without it"
    assert said == [f"tensorboard {failed}: [Errno 21] Is a directory: '{log}'"]
    assert json.loads((tmp_path / "log.jsonl").read_text())["epoch"] == 1

    def refuse(*_: object, **__: object) -> NoReturn:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with Trackers(["jsonl"], RunStorage(tmp_path), said.append) as trackers:
        trackers.report(make_row(epoch=2), CONFIG)
    assert said[1:] == [f"jsonl {failed}: no more processes"]


def test_what_a_trackers_library_prints_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os\nfrom unittest.mock import Mock\nfrom adios_ray.tracking.trackers.__main__ import serve\n"
        "def make():\n    os.system('echo made')\n"
        "    return Mock(report=lambda row, config: os.system('echo reported'))\nserve(make)\n"
    )
    program = Program([sys.executable, "-c", script], os.environ)
    monkeypatch.setattr(isolation, "module_program", lambda *_: program)
    said = list[str]()
    with Trackers(["jsonl"], RunStorage(tmp_path), said.append) as trackers:
        for epoch in (1, 2):
            trackers.report(make_row(epoch=epoch), CONFIG)
    log = tmp_path / "logs" / "tracker_jsonl.log"
    assert not said and log.read_text() == "made\nreported\nreported\n"


def best_rows(run_dir: Path) -> list[Row]:
    """Return the reports of a run's best trial."""
    summary = read_summary(run_dir)
    assert summary
    return [row for row in read_results(run_dir) if row.trial == summary.best_trial]


def follow(tracker: Any, run_dir: Path) -> tuple[list[Row], Exploit, RunSummary]:
    """Give a tracker all reports of the made-up run's best trial, its first exploit, and the outcome."""
    rows, summary = best_rows(run_dir), read_summary(run_dir)
    assert summary
    exploit = next(exploit for exploit in read_lineage(run_dir) if exploit.trial == summary.best_trial)
    for row in rows:
        tracker.report(row, replaced(CONFIG, row.values))
        if row.epoch == exploit.epoch:
            tracker.exploit(exploit)
    tracker.summary(summary)
    tracker.close()
    return rows, exploit, summary


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandbs_server_has_a_resumed_trials_epochs_masks_lineage_and_outcome(
    mode: Literal["online", "offline"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    make_run(run_dir)
    for name, value in (("PROJECT", "masks-of-mine"), ("ENTITY", "a-group"), ("API_KEY", 40 * "0")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    with wandb_server() as (address, runs):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        row = best_rows(run_dir)[0]
        own = [exploit for exploit in read_lineage(run_dir) if exploit.trial == row.trial]
        interrupted = WandbLog(RunStorage(run_dir), mode)
        interrupted.exploit(own[0])  # decided before the trial has reported to this driver
        interrupted.report(row, replaced(CONFIG, row.values))
        interrupted.close()
        if mode == "online":
            assert len(next(iter(runs.values())).config["lineage"]) == len(own)
        time.sleep(1.1)  # wandb's folders are told apart by the second of their start
        rows, exploit, summary = follow(WandbLog(RunStorage(run_dir), mode), run_dir)
        time.sleep(1.1)
        concluding = WandbLog(RunStorage(run_dir), mode)  # of a driver that was started for the outcome alone
        concluding.summary(summary)
        concluding.close()
        if mode == "offline":
            assert not runs
            sync = [sys.executable, "-m", "wandb", "sync", "--yes"]
            subprocess.run(sync, cwd=run_dir, check=True, capture_output=True)
    (run,) = runs.values()
    assert (run.project, run.entity, run.group) == ("masks-of-mine", "a-group", "run")
    assert run.display_name == summary.best_trial
    assert run.config["seed"] == 0 and run.config["masking"]["slots"] == rows[-1].values["masking.slots"]
    assert len(run.config["lineage"]) == len(own)
    line = run.config["lineage"][0]
    assert line.startswith(f"epoch {exploit.epoch}: copied {exploit.donor}, ") and exploit.changes in line
    # A trial that is set back reports epochs again.
    assert [(step["epoch"], step["fitness"]) for step in run.history] == [
        (row.epoch, row.fitness) for row in (rows[0], *rows)
    ]
    captions = {caption for step in run.history for caption in step.get("masks", {}).get("captions", ())}
    assert "validation image 0, epoch 1: image, slots, masked inputs" in captions
    assert run.summary["test_fitness"] == summary.test_fitness and run.summary["best"] is True


def test_another_run_of_the_same_name_has_other_wandb_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for storage in "ab":
        (tmp_path / storage).mkdir()
        make_run(tmp_path / storage / "first", trials=2, epochs=1)

    def started(storage: str) -> str:
        run_dir = tmp_path / storage / "first"
        summary = read_summary(run_dir)
        assert summary
        WandbLog(RunStorage(run_dir), "offline").summary(summary)
        return str(wandb.init.call_args.kwargs["id"]).removesuffix(f"-{summary.best_trial}")

    assert started("a") == "first"  # as earlier versions called it, whose runs are continued
    for storage in "ab":
        write_token(tmp_path / storage / "first")
    assert started("a") == started("a") and len({"first", started("a"), started("b")}) == 3


def events(file: Path) -> Iterator[Any]:
    """Read a file of events: TFRecords, each a length, its checksum, data, and their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8])
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def scalars(file: Path, tag: str) -> list[tuple[int, float]]:
    """Read the steps and values of one tag."""
    values = ((event.step, value) for event in events(file) for value in event.summary.value)
    return [(step, value.simple_value) for step, value in values if value.tag == tag]


@pytest.mark.slow
def test_event_files_hold_each_reports_numbers_and_masks(tmp_path: Path) -> None:
    make_run(tmp_path)
    rows, _, summary = follow(TensorBoardLog(RunStorage(tmp_path)), tmp_path)
    (file,) = (tmp_path / "tensorboard" / summary.best_trial).iterdir()
    assert dict(scalars(file, "fitness")) == pytest.approx({row.epoch: row.fitness for row in rows}, rel=1e-6)
    tags = {value.tag for event in events(file) for value in event.summary.value}
    assert {"masking.slots", "masks/0", "lineage/text_summary", "summary/text_summary"} <= tags


def test_json_lines_hold_everything_and_no_nan(tmp_path: Path) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    make_run(tmp_path)
    log = JsonLinesLog(tmp_path)
    log.report(make_row(probe_accuracy=float("nan")), CONFIG)
    follow(log, tmp_path)
    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("exploit") == 1 and lines[-1]["kind"] == "summary"
    assert lines[0]["probe_accuracy"] is None and lines[0]["config"]["masking"]["slots"] == CONFIG.masking.slots


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "0" * 40])
def test_online_logging_without_a_login_is_refused(tmp_path: Path, key: str) -> None:
    # In a process of its own: wandb keeps credentials that it has seen.
    check = "from adios_ray.tracking.trackers.wandb import check_login; check_login()"
    environment = {**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": key}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == bool(key) and ("set WANDB_API_KEY" in done.stderr) != bool(key)

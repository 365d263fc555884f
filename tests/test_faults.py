"""Faults of a trial's workers: what is said about them, how often workers are started again, and what then stops."""

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray import tune
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from simulated import Simulation
from test_schedulers import simulation
from waiting import TIMEOUT_S, until

from adios_ray import retry as retrying
from adios_ray.backend import faults, trial
from adios_ray.backend.faults import ATTEMPTS, WAITS_S, Fault, fault_of, fault_of_text
from adios_ray.backend.line import Note, Reply
from adios_ray.backend.node_checks import outside
from adios_ray.backend.output import OutputCopy, Unread, read_files, read_rest
from adios_ray.backend.trial import POINTER_FILE, REPLY, LiveTrial, TrialSettings
from adios_ray.backend.tune_run import Periodic, run_trials
from adios_ray.config import TrialConfig, replaced
from adios_ray.devices import CPU, best_device, is_out_of_memory, limit_memory
from adios_ray.errors import (
    CheckpointError,
    ClaimError,
    ConfigError,
    FaultError,
    MemoryLimitError,
    NodeError,
    RunError,
    StorageError,
)
from adios_ray.ray_private import last_error
from adios_ray.retry import retry_in_run
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.scheduler import ACTOR_RESTARTS
from adios_ray.tracking.live import LiveView
from adios_ray.tracking.log import Event, EventLog, append_log, read_events
from adios_ray.tracking.run import Run
from adios_ray.trial_report import TrialReport

MISSING, BROKEN_PIPE = CheckpointError("checkpoint c does not exist"), RuntimeError("Connection closed by peer\nat 1")
GUESSED = WorkerHealthCheckFailedError("failed", RayError("It is dead. Some common causes include: (1) memory"))
LOW = OutOfMemoryError("Task was killed due to the node running low on memory.\nTop 10:\n1 GB")
FULL = MemoryLimitError("CUDA out of memory")


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([BROKEN_PIPE], "RuntimeError: Connection closed by peer"),
        ([BROKEN_PIPE, MISSING], "checkpoint c does not exist"),
        ([ActorDiedError()], "The actor died unexpectedly before finishing this task."),
        ([GUESSED], "It is dead."),
        ([BROKEN_PIPE, LOW], faults._NODE_MEMORY),
        ([BROKEN_PIPE, FULL], "CUDA out of memory"),
    ],
)
def test_a_fault_names_the_cause_among_all_workers(failures: list[Exception], reason: str) -> None:
    fault = fault_of(WorkerGroupError("", dict(enumerate(failures))))
    assert fault.reason == reason and fault.memory == bool({LOW, FULL} & set(failures))
    assert all(str(error) in fault.details for error in failures)


def test_the_traceback_travels_from_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any) -> None:
        raise OSError(17, "File exists", "masks")

    monkeypatch.setattr("adios_ray.backend.loop.train_loop", fail)
    printed = list[tuple[Any, ...]]()
    answers = SimpleNamespace(
        check_node=SimpleNamespace(remote=lambda node: ""),
        printed=SimpleNamespace(remote=lambda *arguments: printed.append(arguments)),
    )
    context = SimpleNamespace(get_node_id=lambda: "ab", get_worker_id=lambda: "cd")
    fake_ray = SimpleNamespace(get=lambda answer: answer, get_runtime_context=lambda: context)
    monkeypatch.setattr(trial, "ray", fake_ray)
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    with pytest.raises(OSError) as raised:
        trial.run_worker({"channel": answers, "trial": "trial_00"})
    assert printed[-1] == ("trial_00", 1, "", Unread("ab", "cd", {}))  # nothing is left to read
    fault = fault_of(WorkerGroupError("", {0: pickle.loads(pickle.dumps(raised.value))}))
    assert fault.reason == "FileExistsError: [Errno 17] File exists: 'masks'"
    assert fault.details.startswith("worker 0:\nTraceback") and "in fail" in fault.details


def test_a_fault_outside_of_the_workers_is_explained_too() -> None:
    assert fault_of(None).reason == "the Ray Train run ended by itself"
    assert fault_of(ControllerError(ValueError("no such node"))).reason == "no such node"
    assert fault_of(KeyError()).reason == "KeyError"


class Stage:
    """A trial's actor in this process, whose channel and Ray Train runs are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
        """Set it up; ``failures`` is how many Ray Train runs fail before one leads to a report."""
        self.failures, self.waits, self.notes = 0, list[float](), list[tuple[str, ...]]()
        self.reply: Reply | None = None
        called = SimpleNamespace(remote=lambda *arguments: None)
        self.refused, self.own_problem = list[str](), ""
        self.checks, self.found_again = 0, list[str]()
        self.avoided, self.failed, self.printed = list[str](), list[tuple[Any, ...]](), list[tuple[Any, ...]]()
        self.labels, self.placements = list[dict[str, str]](), 1
        self.unread = dict[int, Unread]()
        refused = SimpleNamespace(remote=lambda: list(self.refused))
        check_node = SimpleNamespace(remote=lambda node: self.own_problem)
        check_again = SimpleNamespace(remote=self._check_again)
        channel = SimpleNamespace(
            request=called,
            start_actor=called,
            refused_nodes=refused,
            check_node=check_node,
            check_nodes_again=check_again,
            avoided_nodes=SimpleNamespace(remote=lambda name: list(self.avoided)),
            workers_failed=SimpleNamespace(remote=lambda *arguments: self.failed.append(arguments)),
            take_unread=SimpleNamespace(remote=lambda name: self.unread),
            printed=SimpleNamespace(remote=lambda *arguments: self.printed.append(arguments)),
        )
        monkeypatch.setattr(trial, "node_names", lambda: {"ab": "node7"})
        monkeypatch.setattr(trial, "find_channel", lambda run: channel)
        monkeypatch.setattr(trial, "note", lambda channel, name, *texts: self.notes.append(texts))
        monkeypatch.setattr(trial, "time", SimpleNamespace(sleep=self.waits.append))
        monkeypatch.setattr(trial, "build_trainer", self._build)
        monkeypatch.setattr(trial, "own_groups", lambda run, say: nullcontext())  # needs a cluster
        context = SimpleNamespace(get_node_id=lambda: "own")
        fake_ray = SimpleNamespace(
            wait=self._wait, get=lambda ref: self.reply if ref is None else ref, get_runtime_context=lambda: context
        )
        monkeypatch.setattr(trial, "ray", fake_ray)
        monkeypatch.setattr(trial, "retry_in_run", lambda run_dir, action, say: action())
        self.live = LiveTrial.__new__(LiveTrial)
        self.settings = TrialSettings(
            trial="trial_00",
            run_dir=str(run_dir),
            channel="run",
            workers=1,
            cpus_per_worker=1.0,
            gpus_per_worker=0.0,
        )

    def _build(self, settings: Any, channel: Any, find_labels: Callable[[], dict[str, str]], on_placed: Any) -> Any:
        return SimpleNamespace(fit=partial(self._fit, find_labels))

    def _check_again(self) -> None:
        self.checks += 1
        self.refused += self.found_again

    def _wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.live._thread.join()  # else its end could be seen without its reply
        return (refs, []) if self.reply else ([], refs)

    def _fit(self, find_labels: Callable[[], dict[str, str]]) -> None:
        self.labels += [find_labels() for _ in range(self.placements)]
        if self.failures:
            self.failures -= 1
            raise OSError("no data")
        self.reply = Reply(TrialReport(epoch=1))

    def step(self) -> Reply:
        """Train to the next report."""
        self.reply = None
        reply: Reply = self.live.step()[REPLY]
        return reply


def test_workers_are_started_again_after_growing_waits_and_a_report_resets_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(monkeypatch, tmp_path)
    stage.failures = 3
    stage.live.setup(stage.settings)
    assert stage.step().report is not None and stage.waits == list(WAITS_S[:3])
    assert stage.checks == 2  # of the nodes, from the second failure on
    texts = [
        f"its workers failed (OSError: no data) and are started again{when}" for when in ("", " in 1 s", " in 5 s")
    ]
    assert [text.rpartition(",")[0] for text, *_ in stage.notes] == texts
    assert all("Traceback" in details and kind == "restart" for _, details, kind in stage.notes)
    stage.failures = 99  # the Ray Train run has ended after its report, and no other one reports
    fault = stage.step().fault
    assert fault is not None and fault.reason == f"its workers failed {ATTEMPTS} times: OSError: no data"
    assert stage.waits == [*WAITS_S[:3], *WAITS_S]


def test_a_failure_on_a_node_that_was_refused_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = Stage(monkeypatch, tmp_path)
    stage.failures = 1
    stage.live.setup(stage.settings)
    stage.live._thread.join()
    assert stage.labels == [{}]
    stage.refused = ["ab", "cd"]
    assert stage.step().report is not None and stage.waits == [] and stage.labels[-1] == outside(["ab", "cd"])
    assert stage.notes[0][0] == "its workers failed (OSError: no data) and are started elsewhere"


def test_a_node_that_has_failed_since_its_check_is_left_at_the_second_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(monkeypatch, tmp_path)
    stage.failures, stage.found_again = 2, ["ab"]
    stage.live.setup(stage.settings)
    assert stage.step().report is not None and stage.waits == [0.0] and stage.labels[-1] == outside(["ab"])
    assert [text.rpartition(" ")[2] for text, *_ in stage.notes] == [str(ATTEMPTS), "elsewhere"]


def test_a_trial_leaves_the_nodes_where_it_failed_at_its_second_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(monkeypatch, tmp_path)
    stage.failures, stage.refused, stage.avoided = 3, ["cd"], ["ab"]
    stage.live.setup(stage.settings)
    assert stage.step().report is not None
    assert stage.labels == 2 * [outside(["cd"])] + 2 * [outside(["cd", "ab"])]
    failed = [(name, names, fault.reason) for name, names, fault in stage.failed]
    assert failed == 3 * [("trial_00", {"ab": "node7"}, "OSError: no data")]
    assert stage.step().report is not None  # the Ray Train run has ended after its report, which is a first failure
    assert stage.labels[4:] == [outside(["cd"])]


def test_a_trial_that_finds_no_place_elsewhere_may_return_to_where_it_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(monkeypatch, tmp_path)
    stage.failures, stage.avoided, stage.placements = 3, ["ab"], 3  # others use the other nodes for minutes
    stage.live.setup(stage.settings)
    assert stage.step().report is not None
    assert stage.labels == 6 * [{}] + 2 * [outside(["ab"]), {}, {}]


def test_what_a_worker_printed_last_is_read_after_it_died(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage, path = Stage(monkeypatch, tmp_path), tmp_path / "worker.err"
    sent = list[tuple[str, Mapping[str, int]]]()
    with path.open("a") as file:
        copy = OutputCopy(lambda *part: sent.append(part), [file.fileno()])
        assert sent == [("", {str(path): 0})]
        file.write("first\n")
        file.flush()
        until(lambda: len(sent) > 1)
        assert sent[1:] == [("first", {str(path): 6})]
        positions = dict(sent[-1][1])
        copy.__exit__(None, None, None)
    assert sent[2:] == [("", {})]
    with path.open("a") as file:  # as the process that dies
        file.write("terminate called\n:job_id:1\nAborted\n")
    assert read_files(positions | {str(tmp_path / "gone"): 0}) == "terminate called\nAborted"
    stage.failures, stage.unread = 1, {1: Unread("ab", "cd", positions)}
    monkeypatch.setattr(trial, "read_rest", lambda unread: {1: read_files(unread[1].positions)})
    stage.live.setup(stage.settings)
    assert stage.step().report is not None
    assert stage.printed == [("trial_00", 1, "terminate called\nAborted")]


@pytest.mark.ray
def test_the_rest_is_read_on_the_nodes_that_are_there(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    path = tmp_path / "worker.err"
    path.write_text("first\nlast words\n")
    here = Unread(ray.get_runtime_context().get_node_id(), "first", {str(path): 6})
    gone = Unread("a" * 56, "second", {str(path): 0})
    began = time.monotonic()
    assert read_rest({0: here, 1: gone, 2: here._replace(positions={str(path): 17})}) == {0: "last words"}
    assert read_rest({}) == {} and time.monotonic() - began < TIMEOUT_S


def test_failures_before_workers_start_count_also_where_a_node_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no data")

    stage = Stage(monkeypatch, tmp_path)
    stage.refused = ["ab"]
    monkeypatch.setattr(trial, "build_trainer", fail)
    stage.live.setup(stage.settings)
    fault = stage.step().fault
    assert fault is not None and stage.waits == list(WAITS_S)


def test_a_trial_does_not_start_on_a_node_that_cannot_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = Stage(monkeypatch, tmp_path)
    stage.own_problem = "node7 cannot train: no data"
    with pytest.raises(NodeError, match="node7 cannot train: no data"):
        stage.live.setup(stage.settings)


def test_a_node_without_a_cache_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: RunStorage) -> None:
        raise ConfigError("the cache directory /home/me cannot be written to")

    stage = Stage(monkeypatch, tmp_path)
    stage.failures = 99
    stage.live.setup(stage.settings)
    monkeypatch.setattr(RunStorage, "open", fail)
    fault = stage.step().fault
    assert fault is not None and stage.waits == list(WAITS_S)
    assert fault.reason == f"its workers failed {ATTEMPTS} times: the cache directory /home/me cannot be written to"


def test_a_pointer_is_handed_to_tune_once_storage_is_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    RunDirectory(run).config.touch()
    stage = Stage(monkeypatch, run)
    stage.live.setup(stage.settings)
    stage.step()
    run.rename(away)
    said: list[str] = []

    def mount_again(channel: Any, name: str, text: str, kind: str) -> None:
        said.append(text)
        if away.exists():
            assert not (tmp_path / POINTER_FILE).exists()  # Tune would copy it to where no storage is
            away.rename(run)

    monkeypatch.setattr(trial, "retry_in_run", retry_in_run)
    monkeypatch.setattr(retrying, "PAUSE_S", 0.0)
    monkeypatch.setattr(trial, "note", mount_again)
    stage.live.save_checkpoint(str(tmp_path))
    assert [text.partition(" (")[0] for text in said] == ["storage refuses", "storage has answered after 0 s"]
    assert (tmp_path / POINTER_FILE).read_text() == "null"


def test_storage_that_stays_away_is_a_fault_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def give_up(*arguments: Any) -> None:
        raise StorageError("storage has failed for 300 s") from OSError(28, "No space left on device")

    stage = Stage(monkeypatch, tmp_path)
    monkeypatch.setattr(trial, "retry_in_run", give_up)
    stage.failures = 99
    stage.live.setup(stage.settings)
    fault = stage.step().fault
    assert fault is not None and stage.waits == []
    assert fault.reason == "storage has failed for 300 s: [Errno 28] No space left on device"


def test_a_fault_of_all_trials_stops_the_run_which_resumes_as_if_nothing_had_happened(tmp_path: Path) -> None:
    steps = 0

    def fail(now: Simulation) -> None:
        nonlocal steps
        steps += 1
        if steps == 20:
            name = next(iter(now.trials))
            for each in 2 * list(now.trials):
                now.scheduler.on_note(Note(each, "its workers failed", "", "restart"))
            reply = Reply(None, None, Fault("the disk is full", "Traceback"))
            now.scheduler.on_trial_result(None, now.trials[name], {REPLY: reply})

    whole, stopped = (simulation(tmp_path / name, interval_epochs=2) for name in ("whole", "stopped"))
    expected = whole.drive()
    stopped.on_step = fail
    with pytest.raises(FaultError, match=r"trial_00 cannot train: the disk is full.* --resume .*stopped"):
        stopped.drive()
    assert stopped.drive().members.keys() == expected.members.keys()
    assert stopped.lineage() == whole.lineage()


def test_an_actor_that_is_lost_again_and_again_stops_the_run_unless_its_trial_reports(tmp_path: Path) -> None:
    errors = tmp_path / "error.txt"
    errors.write_text("Failure # 1 (occurred at 1)\nOld\nFailure # 2 (occurred at 2)\nTraceback\nno module adios_ray\n")
    lost = SimpleNamespace(config={"trial": "trial_00"}, error_file=str(errors))
    losses = Counter[int]()

    def lose(each_time: int, now: Simulation) -> None:
        reports = sum(trial == "trial_00" for trial, *_ in now.run.reports)
        while losses[each_time] < each_time * reports:
            now.scheduler.on_trial_error(None, lost)
            losses[each_time] += 1

    simulated = simulation(tmp_path / "spot")
    simulated.on_step = partial(lose, 9)
    assert all(member.finished for member in simulated.drive().members.values()) and losses[9] > 2 * ACTOR_RESTARTS
    simulated = simulation(tmp_path / "broken")
    simulated.on_step = partial(lose, 1 + ACTOR_RESTARTS)
    why = "trial_00 cannot train: its actor was lost 21 times without a report, at last by this: no module adios_ray"
    with pytest.raises(FaultError, match=why):
        simulated.drive()
    notes = simulated.run.notes
    assert notes.count("trial_00: its actor was lost (no module adios_ray); Tune restarts it") == ACTOR_RESTARTS
    nothing = SimpleNamespace(config={"trial": "trial_00"}, error_file=None)
    assert last_error(nothing) == "" and fault_of_text("").reason == "for an unknown reason"
    assert last_error(lost) == "Traceback\nno module adios_ray\n"


def test_a_lost_channel_ends_the_run_in_one_line_and_a_fault_of_our_own_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([ActorDiedError(), RayTaskError("observe", "Traceback ...", KeyError("trial_00")), BrokenPipeError()])

    class Tuner:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def fit(self) -> None:
            raise tune.TuneError("The run failed") from next(errors)

    monkeypatch.setattr("ray.tune.Tuner", Tuner)
    nothing: Any = SimpleNamespace()
    settings = TrialSettings(
        trial="", run_dir=str(tmp_path), channel="c", workers=1, cpus_per_worker=1, gpus_per_worker=0
    )
    arguments = (["trial_00"], settings, nothing, nothing, nothing, print, print, print)
    with pytest.raises(RunError, match=f"the run stops .*No report is lost. Resume with --resume {tmp_path}$"):
        run_trials(*arguments)
    with pytest.raises(tune.TuneError):
        run_trials(*arguments)
    with pytest.raises(BrokenPipeError):  # of a report that is printed: the command ends as the shell expects
        run_trials(*arguments)


def test_what_is_done_at_intervals_is_not_done_at_each_step_and_ends_the_run_by_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls = 100.0, list[float]()
    monkeypatch.setattr("adios_ray.backend.tune_run.time", SimpleNamespace(monotonic=lambda: now))
    periodic = Periodic(2.0, lambda: calls.append(now))
    for _ in range(10):
        periodic.on_step_begin(0, [])
        now += 0.5
    assert calls == [100.0, 102.5]

    def lose() -> None:
        raise ClaimError("taken over")

    with pytest.raises(ClaimError):
        Periodic(0.0, lose).on_step_begin(0, [])


def test_a_trials_note_is_shown_and_logged_with_its_details(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adios_ray.tracking.run.begin_results", lambda *arguments: None)
    run = Run(RunStorage(tmp_path), [], LiveView(1, 2, "run"), SimpleNamespace(), None)  # type: ignore[arg-type]
    run.trial_note("trial_01", "its workers failed (no data)", "Traceback\n  in line 1")
    run.trial_note("trial_01", "worker 0 printed", "hello", "output")
    run.trial_note("trial_01", "storage is back", kind="wait")
    assert capsys.readouterr().out == "trial_01: its workers failed (no data)\ntrial_01: storage is back\n"
    lines = (tmp_path / "logs" / "trial_01.log").read_text().splitlines()
    assert [line.partition("+00:00 ")[2] or line for line in lines] == [
        "its workers failed (no data)",
        "    Traceback",
        "      in line 1",
        "worker 0 printed",
        "    hello",
        "storage is back",
    ]
    assert [(event.kind, event.trial, event.text) for event in read_events(tmp_path)[0]] == [
        ("note", "trial_01", "trial_01: its workers failed (no data)"),
        ("wait", "trial_01", "trial_01: storage is back"),
    ]


def test_events_are_kept_while_remote_storage_is_away_but_not_in_another_drivers_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adios_ray.tracking.run.begin_results", lambda *arguments: None)
    claims = iter([ConnectionError("away"), None, ClaimError("taken over")])

    def check_claim() -> None:
        if error := next(claims):
            raise error

    run = Run(RunStorage(tmp_path), [], LiveView(1, 2, "run"), SimpleNamespace(), SimpleNamespace(), check_claim)  # type: ignore[arg-type]
    for text in ("storage refuses", "storage is back", "another driver's"):
        run.note(text)
    assert [event.text for event in read_events(tmp_path)[0]] == ["storage refuses", "storage is back"]


def test_a_trials_note_is_logged_while_remote_storage_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adios_ray.tracking.run.begin_results", lambda *arguments: None)
    monkeypatch.setattr("adios_ray.tracking.run.BRIEF_S", 0.05)
    answered, asked = threading.Event(), list[None]()

    def check_claim() -> None:
        asked.append(None)
        assert answered.wait(TIMEOUT_S)
        raise TimeoutError("no answer within 20 s")

    run = Run(RunStorage(tmp_path), [], LiveView(1, 2, "run"), SimpleNamespace(), None, check_claim)  # type: ignore[arg-type]
    run.trial_note("trial_01", "its workers failed")
    assert len(asked) == 1 and not answered.is_set()
    answered.set()
    assert capsys.readouterr().out == "trial_01: its workers failed\n"
    assert (tmp_path / "logs" / "trial_01.log").read_text().endswith(" its workers failed\n")
    assert [event.text for event in read_events(tmp_path)[0]] == ["trial_01: its workers failed"]


def test_events_that_storage_refused_are_written_when_it_is_back(tmp_path: Path) -> None:
    log, path = EventLog(tmp_path), RunDirectory(tmp_path).events
    path.unlink()
    log.append(Event(kind="wait", text="storage refuses"))
    assert not path.exists()
    path.touch()
    log.append(Event(kind="exploit", trial="trial_00", epoch=2, text="copied"))
    (first, second), _ = read_events(tmp_path)
    assert (first.text, second.text, second.epoch) == ("storage refuses", "copied", 2) and first.time <= second.time


def test_a_trials_log_has_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adios_ray.tracking.log.LOG_BYTES", 100)
    RunDirectory(tmp_path).make_folders()
    for number in range(20):
        append_log(tmp_path, "trial_00", f"line {number}")
    log = RunDirectory(tmp_path).log("trial_00")
    lines = [line for path in (log.with_suffix(".log.1"), log) for line in path.read_text().splitlines()]
    assert [line.partition("line ")[2] for line in lines] == [str(number) for number in range(20)][-len(lines) :]
    assert 2 * 100 > sum(path.stat().st_size for path in log.parent.iterdir()) - 2 * len(lines[0])


def test_what_a_worker_prints_is_passed_on_in_bounded_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adios_ray.backend.output.CHUNK_BYTES", 8)
    path = tmp_path / "worker.out"
    path.write_text("before\n")
    sent: list[str] = []
    with path.open("a") as file, OutputCopy(lambda lines, positions: sent.append(lines), [file.fileno()]):
        file.write(":actor_name:x\n1234567\n")
        file.flush()
    assert sent == ["", "(14 bytes are left out here)\n1234567"]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "CUDA driver error: out of memory",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "NCCL error in: ProcessGroupNCCL.cpp\nLast error:\nCuda failure 2 'out of memory'",
    ],
)
def test_memory_of_a_gpu_is_exhausted_in_many_words(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_an_error_that_follows_from_one_of_memory_is_one() -> None:
    """As torch's of a recording in which memory was exhausted."""
    with pytest.raises(RuntimeError) as raised:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    assert is_out_of_memory(raised.value) and not is_out_of_memory(RuntimeError(str(raised.value)))
    first, second = ValueError("first"), RuntimeError("second")
    first.__context__, second.__cause__ = second, first
    assert not is_out_of_memory(first) and not is_out_of_memory(second)


def test_an_error_of_memory_names_the_values_to_change() -> None:
    from adios_ray.backend.loop import memory_advice

    config = TrialConfig(batch_size=64)
    on_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB")
    assert is_out_of_memory(on_gpu) and not is_out_of_memory(RuntimeError("shapes differ"))
    advice = memory_advice(on_gpu, config, at_once=2, workers=2)
    assert advice.startswith(
        "CUDA out of memory. Tried to allocate 2.00 GiB. A new run needs --slots-at-once 1, "
        "or a --micro-batch-size below 32"
    )
    assert "higher --gpus-per-worker" in advice
    for slots, scheme in ((1, "adios"), (4, "adios-s")):
        own = replaced(config, {"masking.scheme": scheme})
        assert "A new run needs a --micro-batch-size" in memory_advice(on_gpu, own, slots, workers=2)
    on_cpu = memory_advice(MemoryError(), TrialConfig(batch_size=64, micro_batch_size=8), at_once=1, workers=2)
    assert on_cpu.startswith("MemoryError. ") and "below 8," in on_cpu and "higher --cpus-per-worker" in on_cpu
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


def test_a_worker_of_a_part_of_a_gpu_is_kept_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = list[tuple[float, int]]()
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *limit: limits.append(limit), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(total_memory=7 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for device, share in ((best_device(), 0.25), (best_device(), 1.0), (CPU, 0.5), (best_device(), 0.01)):
        limit_memory(device, share)
    assert limits == [(pytest.approx(0.25 - 0.7 / 7, abs=0.003), 0), (0.0, 0)]  # what the context leaves of the share

"""A run at a URI, on an S3 server that fails: what is complete there, who fetches what, and how long is waited."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFile
from made_up_run import make_row, make_run
from ray import PlacementGroupID
from s3 import BUCKET, FORBIDDEN, INTERNAL_ERROR, S3Server, s3_server
from simulated import SimulatedRun
from waiting import TIMEOUT_S, until

from adios_ray import local_cache, places, retry, run_storage
from adios_ray.backend import capacity
from adios_ray.backend.channel import ChannelCalls
from adios_ray.checkpoints import (
    EARLIER_STATE_FILE,
    META_FILE,
    STATE_FILE,
    Pointer,
    damage,
    load_checkpoint,
    save_checkpoint,
)
from adios_ray.cli import main
from adios_ray.config import TrialConfig
from adios_ray.errors import ClaimError, ConfigError, stoppable
from adios_ray.experiment.checks import check_storage
from adios_ray.files import append_line, atomic_write, sha256, write_output
from adios_ray.ray_private import MadeGroup
from adios_ray.run_directory import INITIAL_WEIGHTS, RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.population import Population
from adios_ray.search.state import Member, PopulationState
from adios_ray.store import Store
from adios_ray.tracking.report import page
from adios_ray.tracking.report.page import write_report
from adios_ray.tracking.run import Run
from adios_ray.tracking.run_masks import MaskFile, write_masks
from adios_ray.tracking.trackers.measurements import sheets

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    """Start a server whose clients retry nothing by themselves."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield server


@pytest.fixture
def server(running: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Use an empty place of the server, with waits of no length."""
    monkeypatch.setattr(retry, "PAUSE_S", 0.0)
    running.uri = f"s3://{BUCKET}/{tmp_path.name}"
    yield running
    running.fault = None


class Nodes:
    """Nodes of a cluster that share no disk: each has a cache of its own."""

    def __init__(self, server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep the nodes' caches in a folder."""
        self.place, self._folder, self._monkeypatch = f"{server.uri}/runs/a_run", folder, monkeypatch

    def __getitem__(self, name: str) -> RunStorage:
        """Take the run on a node, without the files that other nodes have."""
        self._monkeypatch.setenv(local_cache.CACHE_VARIABLE, str(self._folder / name))
        return RunStorage(self.place)


@pytest.fixture
def nodes(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Start a run on a node "driver"."""
    found = Nodes(server, tmp_path, monkeypatch)
    driver = found["driver"]
    with driver.driven(lambda: None):
        atomic_write(RunDirectory(driver.directory).config, b"{}")
        driver.push()
        yield found


def saved(storage: RunStorage, epoch: int, value: float = 1.0) -> Pointer:
    """Write a checkpoint on a node, without publishing it."""
    storage.open()
    path = RunDirectory(storage.directory).checkpoint("trial_00", epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(path, {"tensor": torch.full((1000,), value)}, {"epoch": epoch})


def test_a_checkpoint_travels_to_another_node_and_is_fetched_once(nodes: Nodes, server: S3Server) -> None:
    writer = nodes["writer"]
    pointer = saved(writer, 1, 3.0)
    writer.publish(pointer.path)
    reader = nodes["reader"]
    here = reader.here(pointer)
    assert here.path != pointer.path and not here.path.exists()
    server.requests.clear()
    with ThreadPoolExecutor(4) as pool:  # as the workers of a trial do, on one node
        list(pool.map(lambda _: reader.fetch(here), range(4)))
    reads = [path for method, path in server.requests if method == "GET" and path.endswith(STATE_FILE)]
    assert len(reads) == 1
    assert torch.equal(load_checkpoint(here, CPU)["tensor"], torch.full((1000,), 3.0))


def test_a_copy_of_a_run_that_was_at_the_uri_before_is_not_used(nodes: Nodes) -> None:
    for token, weights in ((b"first", b"old"), (b"second", b"new")):
        Store(nodes.place).remove("")
        writer = nodes[token.decode()]
        writer.directory.mkdir(parents=True)
        for name, content in (("config.json", b"{}"), ("token", token), (INITIAL_WEIGHTS, weights)):
            atomic_write(writer.directory / name, content)
            writer.publish(writer.directory / name)
        worker = nodes["worker"]
        worker.open()
        found = worker.fetch_initial_weights()
        assert found is not None and found.read_bytes() == weights
        (worker.directory / "checkpoints" / "trial_00").mkdir(exist_ok=False)  # none is left of the first run
    driver = nodes["worker"]
    Store(nodes.place).remove("")
    with driver.driven(lambda: None):
        assert not list(driver.directory.iterdir())


def test_a_damaged_or_outdated_copy_on_a_node_is_fetched_again(nodes: Nodes) -> None:
    writer = nodes["writer"]
    first = saved(writer, 1, 1.0)
    writer.publish(first.path)
    reader = nodes["reader"]
    reader.fetch(reader.here(first))
    second = saved(writer, 1, 2.0)  # the trial fell back, and trained the epoch again
    writer.publish(second.path)
    reader.fetch(reader.here(second))
    assert load_checkpoint(reader.here(second), CPU)["tensor"][0] == 2.0
    (reader.here(second).path / STATE_FILE).write_bytes(b"damaged")
    reader.fetch(reader.here(second))
    assert load_checkpoint(reader.here(second), CPU)["tensor"][0] == 2.0


def test_an_epoch_that_an_earlier_version_published_is_replaced(nodes: Nodes) -> None:
    earlier = nodes["earlier"]
    earlier.open()
    path = RunDirectory(earlier.directory).checkpoint("trial_00", 1)
    path.mkdir(parents=True)
    torch.save({"tensor": torch.zeros(1000)}, path / EARLIER_STATE_FILE)
    first = Pointer(path=path, sha256=sha256(path / EARLIER_STATE_FILE))
    (path / META_FILE).write_text(json.dumps({"sha256": first.sha256}))
    earlier.publish(path)
    writer = nodes["writer"]
    second = saved(writer, 1, 2.0)
    writer.publish(second.path)
    assert Store(pointer_place(nodes, 1)).names() == {EARLIER_STATE_FILE, STATE_FILE, META_FILE}
    reader = nodes["reader"]
    for pointer, value in ((second, 2.0), (first, 0.0)):
        here = reader.here(pointer)
        reader.fetch(here)
        assert damage(here) is None and load_checkpoint(here, CPU)["tensor"][0] == value


def test_half_an_upload_is_no_checkpoint(nodes: Nodes, server: S3Server) -> None:
    writer = nodes["writer"]
    pointer = saved(writer, 1)
    server.fault = lambda method, path: INTERNAL_ERROR if method == "PUT" and path.endswith(META_FILE) else None
    with pytest.raises(OSError, match="told to fail"):
        writer.publish(pointer.path)
    server.fault = None
    assert Store(pointer_place(nodes, 1)).names() == {STATE_FILE}
    reader = nodes["reader"]
    reader.fetch(reader.here(pointer))
    assert not reader.here(pointer).path.exists()
    writer.publish(pointer.path)  # what retry() does
    reader.fetch(reader.here(pointer))
    assert load_checkpoint(reader.here(pointer), CPU)["tensor"][0] == 1.0


@pytest.mark.parametrize("error", [None, RuntimeError("the workers failed")])
def test_an_actor_is_recorded_while_it_may_have_groups_and_leaves_none(
    error: Exception | None, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes["worker"]
    node.open()
    actors = RunDirectory(node.directory).actors
    ids = [PlacementGroupID.from_random() for _ in range(3)]
    made = [
        MadeGroup(group, maker, placed=True, removed=removed)
        for group, maker, removed in zip(ids, ("a1", "a1", "b2"), (False, True, False), strict=True)
    ]
    removed: list[PlacementGroupID] = []
    monkeypatch.setattr(capacity, "_own_id", lambda: "a1")
    monkeypatch.setattr(capacity, "placement_groups", lambda: made)
    monkeypatch.setattr(capacity, "is_dead", lambda maker: False)
    monkeypatch.setattr(capacity, "remove_placement_group", lambda group: removed.append(group.id))
    with suppress(RuntimeError), capacity.own_groups(node, print):
        assert [group.id for group in capacity.groups(node.place)] == [ids[0]] and removed == []
        if error:
            raise error
    assert node.names(actors) == set() and removed == ids[:1]


def test_the_last_count_of_trials_holds_while_storage_does_not_answer(
    nodes: Nodes, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes["driver"]
    RunDirectory(node.directory).make_folders()
    made = [MadeGroup(PlacementGroupID.from_random(), "a1", placed, removed=False) for placed in (True, False)]
    monkeypatch.setattr(capacity, "_own_id", lambda: "a1")
    monkeypatch.setattr(capacity, "is_dead", lambda maker: False)
    monkeypatch.setattr(capacity, "placement_groups", lambda: made)
    monkeypatch.setattr(capacity, "WAITING_S", -1.0)
    capacity.record_actor(node, capacity.own_record(node))
    counted = capacity.ClusterCapacity(node.place, lambda: 2, lambda: 2, False, print)
    assert counted.count() == 1  # the other trial waits in vain
    monkeypatch.setattr(run_storage, "BRIEF_S", 0.1)
    with server.hanging():
        assert counted.count() == 1


def test_the_removal_of_an_actors_record_that_storage_answers_late_spares_its_next_one(
    nodes: Nodes, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, answered = nodes["worker"], threading.Event()
    node.open()
    actors = RunDirectory(node.directory).actors
    monkeypatch.setattr(capacity, "_own_id", lambda: "a1")
    monkeypatch.setattr(capacity, "placement_groups", list)
    monkeypatch.setattr(retry, "ANSWER_S", 0.1)
    server.fault = lambda method, path: None if method != "POST" or answered.wait() else None  # deletions are posted
    with capacity.own_groups(node, print):
        (first,) = node.names(actors)
    with capacity.own_groups(node, print):
        answered.set()
        until(lambda: first not in node.names(actors))
        assert len(node.names(actors)) == 1


def pointer_place(nodes: Nodes, epoch: int) -> str:
    """Name the URI of a checkpoint."""
    return f"{nodes.place}/checkpoints/trial_00/epoch_{epoch:05d}"


def test_a_copy_that_another_worker_trims_meanwhile_is_none_of_this_ones(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes["worker"]
    node.open()
    (RunDirectory(node.directory).checkpoints / "trial_01").mkdir(parents=True)
    monkeypatch.setattr(run_storage, "newest_epochs", lambda folder: [folder / "epoch_00001"])
    node.trim("trial_00")


def test_pruned_checkpoints_disappear_from_the_uri_and_from_the_nodes(
    nodes: Nodes,
) -> None:
    writer = nodes["writer"]
    pointers = [saved(writer, epoch) for epoch in (1, 2, 3, 4)]
    for pointer in pointers:
        writer.publish(pointer.path)
    unpublished = saved(writer, 5)
    driver = nodes["driver"]
    state = PopulationState(next_decision_epoch=1)
    newest = driver.here(pointers[3].after(pointers[2]))
    state.members["trial_00"] = Member(values={}, number=0, checkpoint=newest)
    state.members["trial_01"] = Member(values={}, number=1, checkpoint=driver.here(pointers[0]))
    state.remove_unused_checkpoints(driver, ["trial_00"], state.lenders())
    left = [f"epoch_{epoch:05d}" for epoch in (4, 3, 1)]  # the newest, what it continued, and what a member has copied
    assert [path.name for path in driver.epochs(RunDirectory(driver.directory).checkpoints / "trial_00")] == left
    assert not Store(pointer_place(nodes, 2)).find()
    writer.trim(None)
    assert pointers[1].path.exists()  # for all that this node knows, it may not have been copied yet
    writer.publish(unpublished.path)
    writer.trim("trial_00")
    kept = {path.name for path in unpublished.path.parent.iterdir()}
    assert kept == {*left, "epoch_00005"}


def test_a_node_keeps_its_copies_while_storage_fails(nodes: Nodes, server: S3Server) -> None:
    writer = nodes["writer"]
    pointers = [saved(writer, epoch) for epoch in (1, 2)]
    for pointer in pointers:
        writer.publish(pointer.path)
    Store(pointer_place(nodes, 1)).remove("")
    server.fault = lambda method, path: INTERNAL_ERROR
    writer.trim("trial_00")
    assert [pointer.path.exists() for pointer in pointers] == [True, True]
    server.fault = None
    writer.trim("trial_00")
    assert [pointer.path.exists() for pointer in pointers] == [False, True]


def test_what_is_left_of_half_a_removal_is_no_checkpoint(nodes: Nodes, server: S3Server) -> None:
    writer, left = nodes["writer"], threading.Semaphore(1)
    pointer = saved(writer, 1)
    writer.publish(pointer.path)
    # Deletions are posted; the first one is answered.
    server.fault = lambda method, path: None if method != "POST" or left.acquire(blocking=False) else INTERNAL_ERROR
    writer.remove(pointer.path)
    server.fault = None
    assert Store(pointer_place(nodes, 1)).names() == {STATE_FILE}


def test_the_journal_is_copied_after_what_it_rests_on(nodes: Nodes, server: S3Server) -> None:
    driver = nodes["driver"]
    run = RunDirectory(driver.directory)
    state = PopulationState(next_decision_epoch=1)
    state.add("trial_00", {"masking.slots": 2})
    state.save(driver.directory)
    driver.push()
    server.requests.clear()
    write_output(run.outcomes("trial_00", 1), b"outcomes")
    atomic_write(run.lineage, b"lineage\n")
    state.members["trial_00"].epoch = 1
    state.journal(driver.directory, ["trial_00"])
    driver.push()
    written = [path.rpartition("a_run/")[2] for method, path in server.requests if method == "PUT"]
    assert sorted(written[:2]) == ["lineage.jsonl", "outcomes/trial_00/epoch_00001"]
    assert written[2:] == ["population.jsonl"]  # and nothing that has not changed
    driver.push()
    assert len([method for method, _ in server.requests if method == "PUT"]) == 3
    run.outcomes("trial_00", 1).unlink()
    driver.push()
    assert Store(nodes.place).size("outcomes/trial_00/epoch_00001") is None


def test_a_long_journal_at_the_uri_is_replaced_by_a_snapshot(
    nodes: Nodes, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, store = nodes["driver"], Store(nodes.place)
    state = PopulationState(next_decision_epoch=1)
    state.add("trial_00", {"masking.slots": 2})
    state.save(driver.directory)
    run = SimulatedRun(driver.directory, driver)
    population = Population(TrialConfig(epochs=9), state, cast(Run, run), cast(ChannelCalls, None))

    def commit(epoch: int) -> int:
        state.members["trial_00"].epoch = epoch
        population.commit("trial_00")
        return len(store.read("population.jsonl"))

    assert 0 < commit(1) < commit(2)
    monkeypatch.setattr("adios_ray.search.population.LONGEST_JOURNAL_BYTES", 0)
    server.requests.clear()

    def after_the_snapshot(method: str, path: str) -> str | None:
        copied = any(earlier.endswith("population.json") for _, earlier in server.requests)
        return INTERNAL_ERROR if copied and path.endswith("population.jsonl") else None

    server.fault = after_the_snapshot
    with pytest.raises(OSError, match="told to fail"):
        commit(3)  # the driver dies before the copy of the empty journal
    server.fault = None
    elsewhere = nodes["elsewhere"]
    elsewhere.fetch_run()
    assert PopulationState.load(elsewhere.directory).members["trial_00"].epoch == 3
    assert commit(4) == 0 and PopulationState.load(driver.directory).members["trial_00"].epoch == 4


def test_a_driver_elsewhere_resumes_what_was_journaled_at_the_uri(nodes: Nodes, server: S3Server) -> None:
    driver = nodes["driver"]
    state = PopulationState(next_decision_epoch=1)
    state.add("trial_00", {"masking.slots": 2})
    state.save(driver.directory)
    driver.push()
    state.members["trial_00"].epoch = 1
    state.journal(driver.directory, ["trial_00"])
    driver.push()
    state.members["trial_00"].epoch = 2
    state.journal(driver.directory, ["trial_00"])
    server.fault = lambda method, path: INTERNAL_ERROR
    with pytest.raises(OSError, match="told to fail"):
        driver.push()  # the driver dies before this entry is at the URI: no decision has followed from it
    server.fault = None
    for name in ("elsewhere", "driver"):  # on the first machine too, whose directory is ahead of the URI
        resumed = nodes[name]
        with resumed.driven(lambda: None):
            resumed.fetch_run()
            assert PopulationState.load(resumed.directory).members["trial_00"].epoch == 1


def test_lines_that_a_killed_driver_has_not_copied_are_kept_on_its_node(nodes: Nodes) -> None:
    store, lines = Store(nodes.place), {"events.jsonl": b"{}\n", "logs/trial_00.log": b"", "log.jsonl": b"{}\n"}

    def resumed(name: str, added: bytes) -> dict[str, bytes]:
        """Resume on a node, append to each file, and be killed; return what the files held before."""
        driver = nodes[name]
        local_cache.hold(driver._copy)
        driver._clear()
        driver.fetch_run()
        found = {each: (driver.directory / each).read_bytes() for each in lines}
        driver.push()
        assert {each: store.read(each) for each in lines} == found
        for each in lines:
            with (driver.directory / each).open("ab") as file:
                file.write(added)
        local_cache.release(driver._copy)
        return found

    first = nodes["driver"]
    for name, content in {"token": b"token", "events.jsonl": b"{}\n", "logs/trial_00.log": b""}.items():
        write_output(first.directory / name, content)
    first.push()
    write_output(first.directory / "log.jsonl", b"{}\n")  # the first line, which is not at the URI yet
    assert resumed("driver", b"1\n") == lines
    ahead = {name: content + b"1\n" for name, content in lines.items()}
    assert resumed("driver", b"2\n") == ahead
    assert resumed("other", b"3\n") == ahead
    assert resumed("other", b"4\n") == (newest := {name: content + b"3\n" for name, content in ahead.items()})
    assert resumed("driver", b"") == newest  # whose second line is of a past that others have not continued


def test_a_driver_whose_copy_was_removed_deletes_nothing_at_the_uri(nodes: Nodes) -> None:
    driver, store = nodes["driver"], Store(nodes.place)
    with driver.driven(lambda: None):
        atomic_write(RunDirectory(driver.directory).config, b"{}")
        driver.push()
        shutil.rmtree(driver.directory)
        with pytest.raises(OSError, match="No such file"):
            driver.push()
    assert store.names() == {"config.json"}


def test_a_driver_that_has_lost_its_claim_copies_nothing(nodes: Nodes) -> None:
    def check() -> None:
        raise ClaimError("taken over")

    driver = nodes["other"]
    with pytest.raises(ClaimError, match="taken over"), driver.driven(check):
        atomic_write(RunDirectory(driver.directory).config, b"of the one that lost it")
    assert Store(nodes.place).read("config.json") == b"{}"


@pytest.mark.parametrize("ends", [True, False])
def test_a_copy_that_continues_after_an_interruption_replaces_no_newer_file(
    ends: bool, nodes: Nodes, server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver, attempts, finish, written = nodes["other"], count(1), threading.Event(), list[int]()
    results = RunDirectory(driver.directory).results

    def stall(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(results.name):
            if (attempt := next(attempts)) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                finish.wait(0.5 if ends else TIMEOUT_S)
            written.append(attempt)

    server.fault = stall
    if not ends:
        monkeypatch.setattr(run_storage, "BRIEF_S", 0.1)
    # As in a program: a worker of pytest-xdist may ignore the signal.
    with pytest.raises(KeyboardInterrupt), stoppable(), driver.driven(lambda: None):
        atomic_write(RunDirectory(driver.directory).config, b"{}")
        results.write_text("1 row")
        try:
            driver.push()
        finally:
            results.write_text("2 rows")
    stored = partial(Store(nodes.place).read, results.name)
    if ends:
        assert written == [1, 2] and stored() == b"2 rows" and not driver.directory.exists()
    else:
        finish.set()
        until(lambda: results.name in Store(nodes.place).names())
        assert stored() == b"1 row" and results.read_text() == "2 rows"
        assert capsys.readouterr().out.endswith(f"{driver.directory} holds: no answer within 0 s\n")


def test_what_a_driver_could_not_copy_at_its_end_is_kept_for_people(
    nodes: Nodes, server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = nodes["ends"]
    with driver.driven(lambda: None):
        driver.fetch_run()
        log = RunDirectory(driver.directory).log("trial_00")
        log.parent.mkdir(exist_ok=True)
        log.write_text("traceback of what ended the run")
        server.fault = lambda method, path: INTERNAL_ERROR
    assert f"{driver.directory} holds" in capsys.readouterr().out
    server.fault = None
    worker = nodes["ends"]
    worker.open()
    worker.close()
    assert log.exists()  # a worker that ends on the driver's node leaves it
    for _ in range(2):
        with nodes["ends"].driven(lambda: None):
            assert not log.exists()
    worker.open()
    worker.close()
    assert not worker.directory.exists()
    (aside,) = (tmp_path / "ends").glob("a_run-unsaved-*")
    assert (aside / "logs" / "trial_00.log").read_text() == "traceback of what ended the run"
    assert capsys.readouterr().out.count(f"{aside} has what {nodes.place} may lack") == 1


def test_masks_of_trials_on_other_nodes_reach_trackers(nodes: Nodes, server: S3Server) -> None:
    other = nodes["other"]
    other.open()
    random, row = np.random.default_rng(0), make_row(epoch=1)
    drawn = MaskFile(*(random.integers(0, 256, shape, np.uint8) for shape in ((2, 4, 4, 3), (2, 3, 4, 4))))
    write_masks(other.directory, row.trial, 1, drawn)
    other.publish(RunDirectory(other.directory).masks(row.trial, 1))
    driver = nodes["driver"]
    assert len(list(sheets(driver, row))) == 2
    server.fault = lambda method, path: INTERNAL_ERROR
    assert len(list(sheets(driver, row))) == 2 and not list(sheets(driver, make_row(epoch=2)))


def test_transient_faults_are_waited_for_and_said_once(nodes: Nodes, server: S3Server) -> None:
    writer, said, left = nodes["writer"], list[str](), threading.Semaphore(3)
    pointer = saved(writer, 1)
    server.fault = lambda method, path: INTERNAL_ERROR if left.acquire(blocking=False) else None
    retry.retry(lambda: writer.publish(pointer.path), said.append)
    assert len(said) == 2 and "told to fail" in said[0] and said[1].startswith("storage has answered")
    server.fault = None
    assert Store(pointer_place(nodes, 1)).names() == {STATE_FILE, META_FILE}


@pytest.mark.parametrize(("fault", "bucket"), [(FORBIDDEN, "images"), (None, "no-such-bucket")])
def test_storage_that_cannot_be_used_is_refused_at_the_door(server: S3Server, fault: str | None, bucket: str) -> None:
    server.fault = lambda method, path: fault
    with pytest.raises(ConfigError, match=f"storage s3://{bucket}/runs cannot be written to: .*(told to fail|bucket)"):
        check_storage(f"s3://{bucket}/runs")


def test_storage_that_fails_or_does_not_answer_is_refused_within_seconds(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault = lambda method, path: INTERNAL_ERROR
    with pytest.raises(ConfigError, match="told to fail"):
        check_storage(f"{server.uri}/runs")
    server.fault = None
    assert check_storage(f"{server.uri}/runs/") == f"{server.uri}/runs"
    assert Store(server.uri).find() == []  # the probe has been removed
    monkeypatch.setattr(retry, "ANSWER_S", 0.1)
    with server.hanging():
        for access in (check_storage, places.fetched):
            with pytest.raises(ConfigError, match="no answer within 0 s"):
                access(f"{server.uri}/runs")


def test_storage_that_does_not_answer_stops_no_listing_and_no_removal(
    nodes: Nodes, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = nodes["driver"]
    record = RunDirectory(driver.directory).actors / "an_actor"
    write_output(record, b"")
    driver.publish(record)
    answered = threading.Event()
    server.fault = lambda method, path: None if answered.wait() else INTERNAL_ERROR
    with monkeypatch.context() as quick:
        quick.setattr(run_storage, "BRIEF_S", 0.1)
        quick.setattr(retry, "ANSWER_S", 0.1)
        assert driver.names(record.parent) == set()
        driver.remove(record)
    assert not record.exists()
    answered.set()
    until(lambda: not driver.has(record))  # the removal continues


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_whose_storage_does_not_answer_can_be_stopped(
    number: signal.Signals, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{server.uri}/runs/one"
    monkeypatch.setenv(local_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)  # as a run has it
    script = (
        "import sys\nfrom pathlib import Path\nfrom adios_ray.data.claim import TRAINING, claimed\n"
        "from adios_ray.errors import exit_status\nfrom adios_ray.files import atomic_write\n"
        "from adios_ray.retry import retry\nfrom adios_ray.run_storage import RunStorage\n"
        "from adios_ray.store import Store\n"
        "def drive():\n"
        f"    run = RunStorage({place!r})\n"
        "    with claimed(Store(run.place), print, TRAINING, wait=False) as claim, run.driven(claim.check):\n"
        "        atomic_write(run.directory / 'config.json', b'{}')\n        run.push()\n"
        "        print('pushed', flush=True)\n        sys.stdin.readline()\n"
        "        atomic_write(run.directory / 'events.jsonl', b'{}')\n        retry(run.push, print)\n"
        "sys.exit(exit_status(drive))\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        assert driver.stdout.readline() == "pushed\n"
        with server.hanging():
            driver.stdin.write("\n")
            driver.stdin.flush()
            until(lambda: ("PUT", f"/{place.removeprefix('s3://')}/events.jsonl") in server.requests)
            driver.send_signal(number)
            try:
                said, error = driver.communicate(timeout=60)  # seconds, where one request may take minutes
            finally:
                driver.kill()
    cause = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    assert error == f"{cause}\n" and driver.returncode == 128 + number
    assert said.startswith(f"{place} lacks the latest files, which {tmp_path}/cache/")
    assert said.endswith(" holds: no answer within 3 s\n")


def test_the_report_of_a_run_at_a_uri_is_written_there_and_leaves_the_drivers_copy_alone(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)  # both reports say when they were written
    monkeypatch.setattr(page, "datetime", SimpleNamespace(now=lambda zone: noon))
    driver, store = nodes["driver"], Store(nodes.place)
    made_up = tmp_path / "a_run"
    make_run(made_up, trials=2, epochs=4)
    for file in filter(Path.is_file, made_up.rglob("*")):
        store.put(file, file.relative_to(made_up).as_posix())
    atomic_write(RunDirectory(driver.directory).journal, b"not yet at the URI")
    assert main(["report", nodes.place, "--images", "0"]) == 0
    assert capsys.readouterr().out == f"{nodes.place}/report.html\n"
    assert store.read("report.html") == write_report(made_up, nodes.place).read_bytes()
    assert RunDirectory(driver.directory).journal.read_bytes() == b"not yet at the URI"


def test_inputs_and_outputs_at_uris(server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(server.uri)
    with places.delivered(f"{server.uri}/out/x.safetensors") as path:
        path.write_bytes(b"tensors")
        path.with_suffix(".json").write_bytes(b"description")
    assert store.find() == ["out/x.json", "out/x.safetensors"]
    copy = places.fetched(f"{server.uri}/out/x.safetensors", ".json")
    assert (copy.read_bytes(), copy.with_suffix(".json").read_bytes()) == (b"tensors", b"description")
    assert {path.name for path in places.fetched(f"{server.uri}/out").iterdir()} == {"x.json", "x.safetensors"}
    with pytest.raises(RuntimeError), places.delivered(f"{server.uri}/none") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert store.size("none") is None
    assert main(["export", "--checkpoint", f"{server.uri}/nothing", "--output", f"{server.uri}/y.onnx"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {server.uri}/nothing cannot be read: ")
    path = tmp_path / "log"
    atomic_write(path, b"")
    append_line(path, "local")
    assert places.fetched(f"file://{path}") == path


def test_what_marks_a_folder_is_no_file(server: S3Server) -> None:
    store = Store(server.uri)
    filesystem, root = store.files, store.root
    for marker in ("", "cat/"):
        filesystem.call_s3("put_object", Bucket=BUCKET, Key=f"{root.removeprefix(f'{BUCKET}/')}/{marker}", Body=b"")
    filesystem.pipe(f"{root}/cat/0.png", b"image")
    filesystem.invalidate_cache()
    assert store.find() == ["cat/0.png"] and store.sizes() == {"cat/0.png": 5}
    assert store.names() == {"cat"} and store.names("cat") == {"0.png"}


def test_an_object_whose_name_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}/run")
    store.files.store[f"{store.root}/a/../../out"] = MemoryFile(None, "out", b"")  # as a client may name an object
    with pytest.raises(OSError, match=r"holds an object of the name 'a/\.\./\.\./out', which leads out of its folder"):
        store.find()


def test_a_place_with_characters_of_patterns_is_no_pattern(server: S3Server) -> None:
    other, store = Store(f"{server.uri}/d1"), Store(f"{server.uri}/d[1]")
    for each in (other, store):
        for name in (".parts/x", "y"):
            with each.writing(name) as file:
                file.write_bytes(b"")
    store.remove(".parts")
    assert other.find() == [".parts/x", "y"] and store.find() == ["y"]


@pytest.mark.parametrize("remote", [False, True])
def test_files_and_folders_are_removed_where_they_are_stored(remote: bool, nodes: Nodes, tmp_path: Path) -> None:
    storage = nodes["worker"] if remote else RunStorage(tmp_path / "a_run")
    record = RunDirectory(storage.directory).actors / "an_actor"
    write_output(record, b"")
    checkpoint = saved(storage, 1).path
    for path in (record, checkpoint):
        storage.publish(path)
        assert storage.names(path.parent) == {path.name}
        storage.remove(path)
        assert not path.exists() and storage.names(path.parent) == set()
        storage.remove(path)  # of what is gone already, nothing is left to do

"""The channel's protocol: races between driver, trials' actors and workers, without a cluster."""

import asyncio
import errno
from collections.abc import Awaitable, Collection
from pathlib import Path
from types import SimpleNamespace

import pytest
from waiting import TIMEOUT_S

from adios_ray.backend import node_checks
from adios_ray.backend.channel import Channel, ReplacedError, note
from adios_ray.backend.faults import Fault
from adios_ray.backend.line import Note, Reply
from adios_ray.backend.node_checks import NodeChecks
from adios_ray.backend.output import Unread
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.trial_report import TrialReport

CONFIG, CHANGED = TrialConfig(seed=1), TrialConfig(seed=2)
MINE, DONORS = Pointer(path=Path("mine"), sha256="1"), Pointer(path=Path("donor"), sha256="2")


async def registered(held: bool = False) -> Channel:
    """Make a channel with one new trial."""
    channel = Channel({"known": ""}, lambda node: "it lacks data" if node == "bad" else "")
    await channel.register("t", CONFIG, None, 0, held)
    return channel


async def settle() -> None:
    """Let every waiting task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def soon(reply: Awaitable[Reply]) -> Reply:
    """Await a reply that no further event is needed for."""
    return await asyncio.wait_for(reply, TIMEOUT_S)


def epoch_of(reply: Reply) -> int:
    """Return the epoch of the report in a reply."""
    assert reply.report is not None
    return reply.report.epoch


async def replaced(request: "asyncio.Task[Reply]") -> None:
    """Check that a request ends soon with the error that a newer one has replaced it."""
    with pytest.raises(ReplacedError, match="t: a newer request has replaced this one"):
        await soon(request)


def test_a_request_becomes_a_command_and_its_answer_a_report() -> None:
    async def scenario() -> None:
        channel = await registered()
        start = await channel.start("t")
        assert start == (CONFIG, None, 0)
        request = asyncio.create_task(channel.request("t", missed=False))
        assert (await channel.take("t", 0)).kind == "train"
        await channel.answer("t", 0, TrialReport(epoch=1), MINE)
        assert repr(await request) == repr(Reply(TrialReport(epoch=1), MINE))

    asyncio.run(scenario())


def test_waiting_workers_of_an_earlier_group_are_told_to_stop() -> None:
    """Those that were killed too: Ray does not cancel their calls, of which an actor has a limited number."""

    async def scenario() -> None:
        channel = await registered(held=True)
        groups = []
        for _ in range(3):
            start = await channel.start("t")
            groups.append([asyncio.create_task(channel.take("t", start.position)) for _ in range(2)])
            await settle()
        assert [(await task).kind for task in (*groups[0], *groups[1])] == ["stop"] * 4
        assert not any(task.done() for task in groups[2])
        request = asyncio.create_task(channel.request("t", missed=False))
        await channel.hold("t", False)
        assert [(await task).kind for task in groups[2]] == ["train"] * 2
        request.cancel()

    asyncio.run(scenario())


def test_a_held_trial_trains_only_after_its_load_and_release() -> None:
    async def scenario() -> None:
        channel = await registered()
        await channel.hold("t", True)
        request = asyncio.create_task(channel.request("t", missed=False))
        first = asyncio.create_task(channel.take("t", 0))
        await settle()
        assert not first.done()
        await channel.load("t", DONORS, 1, CHANGED)
        await channel.hold("t", False)
        assert await first == ("load", CHANGED, DONORS)
        assert (await channel.take("t", 1)).kind == "train"
        await channel.answer("t", 1, TrialReport(epoch=2), MINE)
        await request

    asyncio.run(scenario())


def test_a_restarted_worker_group_gets_the_unanswered_request_and_the_newest_state() -> None:
    async def scenario() -> None:
        channel = await registered()
        await channel.start("t")
        await channel.load("t", DONORS, 1, CHANGED)
        request = asyncio.create_task(channel.request("t", missed=False))
        assert (await channel.take("t", 1)).kind == "train"
        start = await channel.start("t")
        assert (start.config, start.checkpoint) == (CHANGED, DONORS)
        assert (await channel.take("t", start.position)).kind == "train"
        await channel.answer("t", start.position, TrialReport(epoch=3), MINE)
        assert epoch_of(await request) == 3
        assert (await channel.start("t")).checkpoint == MINE

    asyncio.run(scenario())


def test_a_repeated_request_joins_the_command_that_is_under_way() -> None:
    async def scenario() -> None:
        channel = await registered()
        lost = asyncio.create_task(channel.request("t", missed=False))
        await settle()
        again = asyncio.create_task(channel.request("t", missed=True))
        await settle()
        await channel.answer("t", 0, TrialReport(epoch=1), MINE)
        assert epoch_of(await again) == 1
        await replaced(lost)
        position = (await channel.start("t")).position
        pending = asyncio.create_task(channel.take("t", position))
        await settle()
        assert not pending.done()
        await channel.stop("t")
        assert (await pending).kind == "stop"

    asyncio.run(scenario())


def test_only_the_newest_request_is_preempted() -> None:
    async def scenario() -> None:
        channel = await registered(held=True)
        killed = asyncio.create_task(channel.request("t", missed=False))
        await settle()
        living = asyncio.create_task(channel.request("t", missed=True))
        await settle()
        await channel.preempt("t")
        assert (await soon(living)).report is None
        await replaced(killed)

    asyncio.run(scenario())


def test_a_preemption_waits_for_the_restarted_actor() -> None:
    async def scenario() -> None:
        channel = await registered(held=True)
        killed = asyncio.create_task(channel.request("t", missed=False))
        await settle()
        await channel.register("t", CONFIG, None, 0, held=True)  # Tune restarts the trial's actor
        await channel.preempt("t")  # before the new one has asked
        await replaced(killed)
        assert (await soon(channel.request("t", missed=True))).report is None

    asyncio.run(scenario())


def test_a_preemption_of_a_lost_actor_is_void() -> None:
    async def scenario() -> None:
        channel = await registered(held=True)
        await channel.preempt("t")
        await channel.register("t", CONFIG, None, 0, held=True)
        request = asyncio.create_task(channel.request("t", missed=True))
        await settle()
        assert not request.done()
        await channel.preempt("t")
        assert (await request).report is None

    asyncio.run(scenario())


def test_the_request_of_a_killed_actor_causes_no_command() -> None:
    async def scenario() -> None:
        channel = await registered()
        first = asyncio.create_task(channel.request("t", missed=False))
        await settle()
        await channel.answer("t", 0, TrialReport(epoch=1), MINE)
        assert epoch_of(await first) == 1
        await channel.hold("t", True)
        killed = asyncio.create_task(channel.request("t", missed=False))  # its actor had passed on the first report
        await settle()
        living = asyncio.create_task(channel.request("t", missed=True))
        await settle()
        await channel.hold("t", False)
        assert epoch_of(await soon(living)) == 1  # again: it may have been lost
        await replaced(killed)
        command = asyncio.create_task(channel.take("t", 1))
        await settle()
        assert not command.done()  # no living actor has asked for another epoch
        await channel.stop("t")
        assert (await command).kind == "stop"

    asyncio.run(scenario())


def test_a_report_that_was_lost_with_its_trials_actor_is_given_again() -> None:
    async def scenario() -> None:
        channel = await registered()
        lost = asyncio.create_task(channel.request("t", missed=True))
        await settle()
        await channel.answer("t", 0, TrialReport(epoch=1), MINE)
        await lost  # by an actor that is killed before it can pass it on
        assert epoch_of(await channel.request("t", missed=True)) == 1
        following = asyncio.create_task(channel.request("t", missed=False))
        assert (await channel.take("t", 1)).kind == "train"
        await channel.answer("t", 1, TrialReport(epoch=2), MINE)
        assert epoch_of(await following) == 2
        await channel.load("t", DONORS, 1)  # the last report is of other weights now
        following = asyncio.create_task(channel.request("t", missed=True))
        await settle()
        assert not following.done() and (await channel.take("t", 3)).kind == "train"
        await channel.answer("t", 3, TrialReport(epoch=2), MINE)
        await following

    asyncio.run(scenario())


def test_the_answer_of_a_replaced_worker_group_is_dropped() -> None:
    async def scenario() -> None:
        channel = await registered()
        old = await channel.start("t")
        request = asyncio.create_task(channel.request("t", missed=True))
        await settle()
        new = await channel.start("t")
        await channel.answer("t", old.position, TrialReport(epoch=1), DONORS)
        await settle()
        assert not request.done() and (await channel.start("t")).checkpoint is None
        await channel.answer("t", new.position + 1, TrialReport(epoch=1), MINE)
        assert (await request).checkpoint == MINE

    asyncio.run(scenario())


def test_notes_arrive_without_a_report_and_once() -> None:
    async def scenario() -> None:
        channel = await registered()
        request = asyncio.create_task(channel.request("t", missed=False))
        await settle()
        await channel.note("t", "storage refuses")
        await channel.note("t", "its workers failed", "Traceback", "restart")
        assert await channel.take_notes() == [
            Note("t", "storage refuses"),
            Note("t", "its workers failed", "Traceback", "restart"),
        ]
        assert await channel.take_notes() == [] and not request.done()
        await channel.answer("t", 0, TrialReport(epoch=1), MINE)
        await request

    asyncio.run(scenario())


def test_a_note_arrives_although_its_own_log_is_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    notes: list[tuple[str, ...]] = []
    monkeypatch.setattr("builtins.print", fail)
    monkeypatch.setattr("adios_ray.backend.channel.ray.get", lambda answer: answer)
    note(SimpleNamespace(note=SimpleNamespace(remote=lambda *fields: notes.append(fields))), "t", "storage refuses")
    assert notes == [("t", "storage refuses", "", "note")]


def test_a_stop_ends_every_worker_group_of_its_actor_and_none_of_the_next() -> None:
    async def scenario() -> None:
        channel = await registered()
        request = asyncio.create_task(channel.request("t", missed=False))
        await settle()
        await channel.stop("t")  # while Ray Train restarts the workers
        for _ in range(2):
            assert (await channel.take("t", (await channel.start("t")).position)).kind == "stop"
        await channel.start_actor("t")
        start = await channel.start("t")
        assert (await channel.take("t", start.position)).kind == "train"
        await channel.answer("t", start.position, TrialReport(epoch=1), MINE)
        await request

    asyncio.run(scenario())


def test_a_node_that_joins_is_checked_once_and_refused_with_a_note() -> None:
    async def scenario() -> None:
        channel = await registered()
        assert await channel.check_node("known") == "" and await channel.refused_nodes() == []
        assert await channel.check_nodes(["known", "good", "bad"]) == ["known"]  # without waiting
        checked = await asyncio.gather(*map(channel.check_node, ["bad", "good", "bad"]))
        assert checked == ["it lacks data", "", "it lacks data"]
        assert await channel.check_nodes(["known", "good", "bad"]) == ["known", "good"]
        assert await channel.refused_nodes() == ["bad"]
        assert await channel.take_notes() == [Note("", "it lacks data. No trial starts there")]

    asyncio.run(scenario())


def test_a_node_is_checked_on_a_machine_that_has_just_booted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "time", SimpleNamespace(monotonic=lambda: 5.0))

    async def ask() -> str:
        return await NodeChecks({}, lambda node: f"{node} lacks data", len, print).problem("new")

    assert asyncio.run(ask()) == "new lacks data"


def test_a_refused_node_is_checked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        problems = ["it does not see the run", "it does not see the run", ""]
        channel = Channel({}, lambda node: problems.pop(0))
        assert await channel.check_node("late") == "it does not see the run"
        assert await channel.check_nodes(["late"]) == [] and len(problems) == 2
        monkeypatch.setattr(node_checks, "AGAIN_S", 0.0)
        assert await channel.check_node("late") == "it does not see the run"
        assert await channel.check_node("late") == "" and await channel.check_nodes(["late"]) == ["late"]
        assert len(await channel.take_notes()) == 1  # said once

    asyncio.run(scenario())


def test_a_node_that_was_refused_before_the_first_trial_is_checked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        channel = Channel({"own": "", "late": "it lacks data"}, lambda node: "")
        assert await channel.refused_nodes() == ["late"] and await channel.check_node("late") == "it lacks data"
        monkeypatch.setattr(node_checks, "AGAIN_S", 0.0)
        assert await channel.check_node("late") == "" and await channel.check_nodes([]) == ["own", "late"]
        assert await channel.take_notes() == []

    asyncio.run(scenario())


def test_nodes_that_passed_are_checked_again_where_trials_fail_and_the_last_one_is_never_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        problems: dict[str, str | None] = {"good": "", "bad": "it lacks data", "gone": None}

        def look(node: str) -> str | None:
            if node == "away":
                raise OSError("stale")
            return problems[node]

        channel = Channel(dict.fromkeys(("good", "bad", "gone", "away"), ""), look)
        await channel.check_nodes_again()
        assert await channel.refused_nodes() == []  # they passed a moment ago
        monkeypatch.setattr(node_checks, "AGAIN_S", 0.0)
        await asyncio.gather(channel.check_nodes_again(), channel.check_nodes_again())
        assert await channel.refused_nodes() == ["bad"]
        assert await channel.take_notes() == [Note("", "it lacks data. No trial starts there")]
        problems["good"] = "it lacks data too"
        assert await channel.check_nodes([]) == ["good", "away"]
        await channel.check_nodes_again()
        assert await channel.refused_nodes() == ["good", "bad"]  # another is left, for all that is known
        problems.update(good="", bad="")
        assert await channel.check_node("good") == await channel.check_node("bad") == ""
        problems.update(good="it lacks data", bad="it lacks data", away="it lacks data")
        monkeypatch.setattr(channel._nodes, "_find_problem", problems.get)
        await channel.check_nodes_again()
        assert await channel.refused_nodes() == []

        # A head that holds no trial is not enough.
        checks = NodeChecks({"head": "", "gpus": ""}, {"head": "", "gpus": "it lacks data"}.get, fitting, print)
        await checks.check_again()
        assert checks.refused() == []

    def fitting(nodes: Collection[str]) -> int:
        return len([node for node in nodes if node != "head"])

    asyncio.run(scenario())


def test_a_node_where_the_workers_of_two_trials_failed_is_refused_until_one_reports_from_it() -> None:
    """As far as the other nodes can hold a trial; before, each of the two avoids it."""
    names = {node: f"host {node}" for node in ("bad", "good", "head", "gone")}

    async def fail(channel: Channel, trial: str, *nodes: str, memory: bool = False) -> None:
        await channel.place(trial, nodes)
        alive = {node: name for node, name in names.items() if node != "gone"}
        await channel.workers_failed(trial, alive, Fault("ImportError: libcudart", "", memory))

    def fitting(nodes: Collection[str]) -> int:
        return len({"bad", "good"} & set(nodes))

    async def scenario() -> None:
        channel = Channel(dict.fromkeys(names, ""), lambda node: "", fitting)
        for trial in ("t", "u"):
            await channel.register(trial, CONFIG, None, 0, False)
        for trial in ("t", "u"):
            await fail(channel, trial, "bad", "gone")
        assert await channel.avoided_nodes("t") == []  # the node that has gone explains it
        await fail(channel, "t", "bad")
        await channel.workers_failed("t", names, Fault("no worker was placed", ""))
        assert await channel.avoided_nodes("t") == ["bad"] and await channel.avoided_nodes("u") == []
        assert await channel.refused_nodes() == []  # it may be the trial's fault
        await fail(channel, "u", "bad", memory=True)
        assert await channel.avoided_nodes("u") == ["bad"] and await channel.refused_nodes() == []
        await channel.place("u", ["bad"])
        request = asyncio.create_task(channel.request("u", missed=False))
        await settle()
        await channel.answer("u", 1, TrialReport(epoch=1), DONORS)  # of workers that were replaced
        assert await channel.avoided_nodes("t") == ["bad"]
        await channel.answer("u", 0, TrialReport(epoch=1), MINE)
        assert await channel.avoided_nodes("t") == [] and await request
        await fail(channel, "u", "bad")
        assert await channel.refused_nodes() == []  # the first failure was before the report
        await fail(channel, "t", "bad")
        assert await channel.refused_nodes() == ["bad"]
        problem = "workers of 2 trials failed on host bad (last: ImportError: libcudart)"
        assert await channel.check_node("bad") == problem
        assert await channel.take_notes() == [Note("", f"{problem}. No trial starts there")]
        for trial in ("t", "u"):
            await fail(channel, trial, "good")
        assert await channel.refused_nodes() == ["bad"]  # the last one is kept, as by checks
        assert await channel.avoided_nodes("t") == []

    asyncio.run(scenario())


def test_what_workers_print_and_where_more_of_it_is_are_kept_for_each() -> None:
    async def scenario() -> None:
        channel = await registered()
        first, second = (Unread("node", process, {"worker.err": 6}) for process in ("first", "second"))
        await channel.printed("t", 0, "", first)
        await channel.printed("t", 1, "hello", second)
        await channel.printed("t", 0, "bye", first._replace(positions={}))
        assert await channel.take_unread("t") == {1: second}
        await channel.printed("t", 1, "last words")  # as read from its file
        await channel.printed("t", 1, "last words", second)  # its own call, which arrives late
        assert await channel.take_unread("t") == {}
        third = second._replace(process="third")
        await channel.printed("t", 1, "", third)
        assert await channel.take_unread("t") == {1: third}
        printed = [(text, details) for _, text, details, kind in await channel.take_notes() if kind == "output"]
        assert printed == [
            ("worker 1 printed", "hello"),
            ("worker 0 printed", "bye"),
            ("worker 1 printed", "last words"),
        ]

    asyncio.run(scenario())


def test_a_check_that_storage_prevents_is_repeated() -> None:
    async def scenario() -> None:
        away = [OSError("stale")]

        def look(node: str) -> str:
            if away:
                raise away.pop()
            return ""

        channel = Channel({}, look)
        with pytest.raises(OSError, match="stale"):
            await channel.check_node("new")
        assert await channel.check_node("new") == "" and await channel.check_nodes([]) == ["new"]

    asyncio.run(scenario())

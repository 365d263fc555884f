"""The channel: one small actor that carries the messages between driver, trials' actors and Ray Train workers.

It also keeps each trial's configuration and checkpoint, so that a restarted worker group resumes after the last
answered command::

    scheduler (driver)   trial's actor         channel                                workers
    register(held) --------------------------> a Line for the trial
                         start_actor() ------>
                                               Start(config, checkpoint, p) <-------- start()
                         request(missed) ----> "train", once not held
                                               Command <----------------------------- take(p), p + 1, ...
                                               report, checkpoint <------------------ answer(p, ...)
    on_trial_result() <--- Reply <------------ report, checkpoint
                         place(nodes) ------>
                                               what its node lacks <----------------- check_node(node)
    take_notes() <---------------------------- Notes <------------------------------- note(trial, text), printed(lines)
                         workers_failed() --->
                         avoided_nodes() <---- where no other trial has reported since
                         take_unread() <------ what they may have printed since <---- printed(lines)
    load(...) -------------------------------> "load" ------------------------------> loaded in place
    hold(False) -----------------------------> "train", if requested ---------------> train to the next report
    preempt() -------------------------------> Reply without a report: the trial is paused
                         stop() -------------> "stop" ------------------------------> the loop returns
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray

from adios_ray.backend.faults import Fault
from adios_ray.backend.line import Command, Lines, Note, NoteKind, Reply, Start
from adios_ray.backend.node_checks import NodeChecks
from adios_ray.backend.output import Unread
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.console import say
from adios_ray.trial_report import TrialReport


class ReplacedError(RuntimeError):
    """A newer request of the same trial has replaced this one, because the actor that sent it was killed."""


class Channel:
    """Lets processes wait for commands and replies of each trial's ``Line``. Runs as an asynchronous Ray actor.

    Methods change a line without awaiting in between, so each change is atomic; conditions only wake up waiting calls.
    """

    def __init__(
        self,
        nodes: Mapping[str, str],
        find_problem: Callable[[str], str | None],
        count_fitting: Callable[[Collection[str]], int] = len,
    ) -> None:
        """Start without trials; see ``start_channel``."""
        self._lines, self._notes = Lines(), list[Note]()
        self._nodes = NodeChecks(nodes, find_problem, count_fitting, lambda text: self._notes.append(Note("", text)))
        self._unread: defaultdict[str, dict[int, Unread]] = defaultdict(dict)
        self._taken = set[str]()  # processes whose part of it was taken
        self._changed: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)

    async def register(
        self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool
    ) -> None:
        """Add a trial: where it starts, and whether it waits at a barrier.

        The state of a known trial is kept. Its actor was lost, and the lost actor's request raises ``ReplacedError``.
        """
        self._lines.register(trial, config, checkpoint, epoch, held)
        await self._notify(trial)

    async def start_actor(self, trial: str) -> None:
        """Take note of a trial's new actor, before it starts workers; see ``Line.start_actor``."""
        self._lines[trial].start_actor()

    async def start(self, trial: str) -> Start:
        """Return where a (re)started worker group begins: at the newest load; an unanswered "train" is sent again."""
        start = self._lines[trial].start()
        await self._notify(trial)
        return start

    async def take(self, trial: str, position: int) -> Command:
        """Wait for the command at a position and return it; "stop" once another worker group has started."""
        line = self._lines[trial]
        group = line.groups
        async with self._changed[trial]:
            await self._changed[trial].wait_for(lambda: position in line.commands or line.groups != group)
        # Ray does not cancel the calls of killed workers: those of a held trial would wait until they fill the actor.
        return line.commands[position] if line.groups == group else Command("stop")

    async def answer(self, trial: str, position: int, report: TrialReport, checkpoint: Pointer | None) -> None:
        """Accept the workers' report to the "train" command at a position, with the checkpoint written with it.

        The answer of a worker group that has been replaced meanwhile is dropped.
        """
        if self._lines[trial].answer(position, report, checkpoint):
            self._nodes.reported(trial)
        await self._notify(trial)

    async def note(self, trial: str, text: str, details: str = "", kind: NoteKind = "note") -> None:
        """Keep a message for the driver."""
        self._notes.append(Note(trial, text, details, kind))

    async def printed(self, trial: str, worker: int, lines: str, unread: Unread | None = None) -> None:
        """Keep what the worker of a rank has printed for the driver, and where what it prints next can be read.

        What arrives from a process after ``take_unread`` is dropped, because it has been read from its files.
        """
        if unread and unread.process in self._taken:
            return
        if lines:
            self._notes.append(Note(trial, f"worker {worker} printed", lines, "output"))
        if unread:
            self._unread[trial][worker] = unread

    async def take_unread(self, trial: str) -> dict[int, Unread]:
        """Return where more can be read of what a trial's workers printed, by rank, once they have failed."""
        unread = self._unread.pop(trial, {})
        self._taken.update(each.process for each in unread.values())
        return {worker: each for worker, each in unread.items() if each.positions}

    async def check_node(self, node: str) -> str:
        """Say why a node cannot train, nothing if it can; wait until it has been checked."""
        return await self._nodes.problem(node)

    async def check_nodes(self, nodes: Sequence[str]) -> list[str]:
        """Begin to check those nodes that are new; return the IDs of all that have been checked and can train."""
        self._nodes.begin(nodes)
        return self._nodes.passed()

    async def check_nodes_again(self) -> None:
        """Check nodes that passed a while ago once more; see ``NodeChecks.check_again``."""
        await self._nodes.check_again()

    async def refused_nodes(self) -> list[str]:
        """Return the IDs of nodes that cannot train."""
        return self._nodes.refused()

    async def place(self, trial: str, nodes: Sequence[str]) -> None:
        """Take note of the nodes on which a trial's workers start; see ``NodeChecks.place``."""
        self._nodes.place(trial, nodes)

    async def workers_failed(self, trial: str, names: Mapping[str, str], fault: Fault) -> None:
        """Take note that a trial's workers failed; see ``NodeChecks.failed``."""
        await self._nodes.failed(trial, names, fault)

    async def avoided_nodes(self, trial: str) -> list[str]:
        """Return the IDs of nodes that a trial whose workers keep failing avoids; see ``NodeChecks.avoided``."""
        return await self._nodes.avoided(trial)

    async def take_notes(self) -> list[Note]:
        """Return the messages since the last call."""
        notes, self._notes = self._notes, []
        return notes

    async def request(self, trial: str, missed: bool) -> Reply:
        """Make the trial train to its next report, once it is not held.

        Args:
            trial: Its name.
            missed: Whether the calling actor is new. The last report may have been lost with its predecessor, so it is
                given again.

        Returns:
            The report with its checkpoint; no report if the trial is preempted.

        Raises:
            ReplacedError: If the trial asks again meanwhile, or its actor is restarted. Ray does not cancel the request
                of a killed actor, and it must not receive what is meant for the living one.
        """
        line = self._lines[trial]
        request = line.ask(missed)
        await self._notify(trial)
        async with self._changed[trial]:
            await self._changed[trial].wait_for(lambda: line.request is not request)
        if request.reply is None:
            raise ReplacedError(f"{trial}: a newer request has replaced this one")
        return request.reply

    async def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig | None = None) -> None:
        """Make the trial's workers load a checkpoint in place, under another configuration if given."""
        self._lines[trial].load(checkpoint, epoch, config)
        await self._notify(trial)

    async def hold(self, trial: str, held: bool) -> None:
        """Make the trial's requests wait at the barrier, or release them."""
        self._lines[trial].hold(held)
        await self._notify(trial)

    async def preempt(self, trial: str) -> None:
        """Answer a held trial's request without a report: Tune pauses it, and another trial gets its resources."""
        self._lines[trial].preempt()
        await self._notify(trial)

    async def stop(self, trial: str) -> None:
        """End the trial's worker loop."""
        self._lines[trial].stop()
        await self._notify(trial)

    async def _notify(self, trial: str) -> None:
        async with self._changed[trial]:
            self._changed[trial].notify_all()


class ChannelCalls:
    """The channel as the driver calls it: each call returns when it has taken effect.

    The driver relies on that order. It sends a load before it releases the barrier; were the release to overtake the
    load, the trial would train one more interval with its old weights.
    """

    def __init__(self, actor: Any) -> None:
        """Call the actor of a channel."""
        self._actor = actor

    def register(self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool) -> None:
        """See ``Channel.register``."""
        ray.get(self._actor.register.remote(trial, config, checkpoint, epoch, held))

    def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig) -> None:
        """See ``Channel.load``."""
        ray.get(self._actor.load.remote(trial, checkpoint, epoch, config))

    def hold(self, trials: Sequence[str], held: bool) -> None:
        """See ``Channel.hold``; for several trials."""
        ray.get([self._actor.hold.remote(trial, held) for trial in trials])

    def preempt(self, trial: str) -> None:
        """See ``Channel.preempt``."""
        ray.get(self._actor.preempt.remote(trial))

    def check_nodes(self, nodes: Sequence[str]) -> list[str]:
        """See ``Channel.check_nodes``."""
        passed: list[str] = ray.get(self._actor.check_nodes.remote(nodes))
        return passed

    def refused_nodes(self) -> list[str]:
        """See ``Channel.refused_nodes``."""
        refused: list[str] = ray.get(self._actor.refused_nodes.remote())
        return refused

    def take_notes(self) -> list[Note]:
        """See ``Channel.take_notes``."""
        notes: list[Note] = ray.get(self._actor.take_notes.remote())
        return notes

    def kill(self) -> None:
        """End the channel, and with it all calls that wait."""
        ray.kill(self._actor)


def channel_name(run: str) -> str:
    """Make a name for a channel of a run, whose earlier one may still be ending."""
    return f"adios_ray:{run}:{secrets.token_hex(4)}"


def start_channel(
    name: str,
    trials: int,
    workers: int,
    nodes: Mapping[str, str] = MappingProxyType({}),
    find_problem: Callable[[str], str | None] = lambda node: "",
    count_fitting: Callable[[Collection[str]], int] = len,
) -> Any:
    """Start the channel of a run's population on the driver's node; it lives as long as the driver.

    Args:
        name: Its name, from ``channel_name``.
        trials: Number of trials that it serves.
        workers: Ray Train workers of each trial.
        nodes: For the ID of each node that was checked before the first trial, why it cannot train; nothing if it can.
        find_problem: Says why the node of an ID, which has joined later, cannot train; nothing if it can.
        count_fitting: Counts the trials that fit into the nodes with these IDs.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this node: another one may be lost while the run continues, and the state of all trials is in this actor.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # One waiting call for each worker, one for the trial's actor, and room for calls of killed processes, which Ray
    # does not cancel. If waiting calls took all slots, the call that would wake them up could not start.
    waiting = trials * (workers + 3) + 16
    actor = ray.remote(Channel).options(name=name, num_cpus=0, max_concurrency=waiting, scheduling_strategy=here)
    return actor.remote(dict(nodes), find_problem, count_fitting)


def find_channel(name: str) -> Any:
    """Return the channel of that name."""
    return ray.get_actor(name)


def note(channel: Any, trial: str, text: str, details: str = "", kind: NoteKind = "note") -> None:
    """Send the driver a message about a trial from another process, and print it to that process's own log."""
    say(text)
    ray.get(channel.note.remote(trial, text, details, kind))

"""Checks of nodes while a run trains: of those that join, before a trial starts there, and where trials fail.

A node that passes its check may still fail the workers that start there; trials whose workers failed avoid it.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ray.util.placement_group import NODE_ID_LABEL_KEY

from adios_ray.backend.faults import Fault

NOT_THERE = "No trial starts there"
"""Ends what is said about a node that cannot train."""
AGAIN_S = 60.0
"""Seconds after which a node is checked again: its storage may have been mounted since, or have gone."""


def outside(nodes: Sequence[str]) -> dict[str, str]:
    """Make a selector for the labels of all nodes but those of some IDs; empty if there are none."""
    # Without spaces, which Ray takes for the beginning of an ID.
    return {NODE_ID_LABEL_KEY: f"!in({','.join(nodes)})"} if nodes else {}


def problem_text(name: str, found: Sequence[str]) -> str:
    """Say what a node of this name lacks; nothing if it lacks nothing."""
    return f"{name} cannot train: {', '.join(found)}" if found else ""


class NodeChecks:
    """Knows which nodes can train; for asyncio, in the channel's process on the driver's node."""

    def __init__(
        self,
        known: Mapping[str, str],
        find_problem: Callable[[str], str | None],
        count_fitting: Callable[[Collection[str]], int],
        say: Callable[[str], None],
    ) -> None:
        """Begin with nodes that were checked before the first trial.

        Args:
            known: For the ID of each, why it cannot train; nothing if it can.
            find_problem: Says why the node of an ID cannot train, nothing if it can, None if it has left; called in a
                thread.
            count_fitting: Counts the trials that fit into the nodes with these IDs; called in a thread, too.
            say: Called with a line about each node that cannot train.
        """
        self._find_problem, self._count_fitting, self._say = find_problem, count_fitting, say
        self._problems, self._checked = dict(known), dict.fromkeys(known, time.monotonic())
        self._running: dict[str, asyncio.Task[None]] = {}
        self._refusing = asyncio.Lock()
        # The nodes of each trial's workers, and the trials whose workers failed on a node since any reported from it.
        self._places: dict[str, Sequence[str]] = {}
        self._failed: defaultdict[str, set[str]] = defaultdict(set)

    def begin(self, nodes: Iterable[str]) -> None:
        """Begin to check nodes, without waiting for the answers."""
        for node in nodes:
            due = (
                self._problems.get(node, "unknown") and time.monotonic() > self._checked.get(node, -math.inf) + AGAIN_S
            )
            if due and node not in self._running:
                self._running[node] = asyncio.create_task(self._check(node))

    async def problem(self, node: str) -> str:
        """Say why a node cannot train, nothing if it can; wait until it has been checked.

        Raises:
            OSError: If the run's storage is away; the next call checks again.
        """
        self.begin([node])
        if node in self._running:
            await asyncio.shield(self._running[node])  # others wait for it too
        return self._problems.get(node, "")

    async def check_again(self) -> None:
        """Check the nodes that passed a while ago once more, because trials fail.

        If what is left cannot hold a trial, none is refused: trials would wait for other nodes without end.
        """
        async with self._refusing:
            due = [node for node in self.passed() if time.monotonic() > self._checked[node] + AGAIN_S]
            found = await asyncio.gather(
                *(asyncio.to_thread(self._find_problem, node) for node in due), return_exceptions=True
            )
            problems = dict[str, str]()
            for node, problem in zip(due, found, strict=True):
                self._checked[node] = time.monotonic()
                if problem is None:
                    self._forget(node)
                elif isinstance(problem, str):  # else storage is away, which is no node's fault
                    problems[node] = problem
            if await self._others_suffice([node for node, problem in problems.items() if problem]):
                for node, problem in problems.items():
                    self._note(node, problem)

    def place(self, trial: str, nodes: Sequence[str]) -> None:
        """Take note of the nodes with these IDs, on which a trial's workers start."""
        self._places[trial] = nodes

    def reported(self, trial: str) -> None:
        """Take note that a trial's workers have reported: what failed on their nodes were not the nodes."""
        for node in self._places.get(trial, ()):
            self._failed.pop(node, None)

    async def failed(self, trial: str, names: Mapping[str, str], fault: Fault) -> None:
        """Take note that a trial's workers failed; refuse a node of theirs where two trials did, as ``check_again``.

        No node is blamed if one of the trial's has gone, nor refused for want of memory, which may be the trial's own.

        Args:
            trial: The trial.
            names: Names of the nodes that are alive, by ID.
            fault: Why the workers failed.
        """
        async with self._refusing:
            nodes = set(self._places.pop(trial, ()))
            for node in nodes if nodes <= names.keys() else ():
                failed = self._failed[node]
                failed.add(trial)
                refusable = len(failed) > 1 and not fault.memory and node in self.passed()
                if refusable and await self._others_suffice([node]):
                    self._checked[node] = time.monotonic()
                    self._note(node, f"workers of {len(failed)} trials failed on {names[node]} (last: {fault.reason})")

    async def avoided(self, trial: str) -> list[str]:
        """List the nodes on which a trial's workers failed, and none has reported since; none if it needs them."""
        nodes = [node for node, trials in self._failed.items() if trial in trials]
        return nodes if await self._others_suffice(nodes) else []

    async def _others_suffice(self, nodes: Collection[str]) -> bool:
        """Tell whether the nodes that have passed can hold a trial without these."""
        others = [node for node in self.passed() if node not in nodes]
        return await asyncio.to_thread(self._count_fitting, others) > 0

    def refused(self) -> list[str]:
        """List the nodes that cannot train."""
        return [node for node, problem in self._problems.items() if problem]

    def passed(self) -> list[str]:
        """List the nodes that can train."""
        return [node for node, problem in self._problems.items() if not problem]

    async def _check(self, node: str) -> None:
        try:
            problem = await asyncio.to_thread(self._find_problem, node)
            self._checked[node] = time.monotonic()
            if problem is None:
                self._forget(node)
            else:
                self._note(node, problem)
        finally:
            del self._running[node]

    def _note(self, node: str, problem: str) -> None:
        if problem and problem != self._problems.get(node):
            self._say(f"{problem}. {NOT_THERE}")
        self._problems[node] = problem

    def _forget(self, node: str) -> None:
        """Drop a node that has left; one that returns has another ID."""
        self._problems.pop(node, None)
        self._checked.pop(node, None)

"""How the driver, a trial's Trainable and its Ray Train workers talk: one small actor for the whole population.

The Trainable asks for reports, the scheduler posts loads, holds trials at a barrier or has them leave their places, the
workers take commands one by one and answer. What a trial would restart from is kept here, so that a worker group that
Ray Train starts again after a crash goes on where the last answered command left it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ray

from adios_ray.backend.line import Command, Lines, Reply, Start
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.trial_report import TrialReport


class ReplacedError(RuntimeError):
    """A request in whose place a newer one of the same trial has come; the one who asked has been killed."""


class Channel:
    """Lets processes wait for what becomes of each trial's ``Line``. Runs as an asynchronous Ray actor."""

    def __init__(self) -> None:
        """Begin without trials."""
        self._lines = Lines()
        self._changed: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)

    async def register(
        self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool
    ) -> None:
        """Introduce a trial: where it starts, and whether it waits at a barrier.

        One that is known stays as it is; its actor was lost, so that requests that still wait end without effect.
        """
        self._lines.register(trial, config, checkpoint, epoch, held)
        await self._notify(trial)

    async def start(self, trial: str) -> Start:
        """Where a (re)started worker group begins: loads are folded in, an unanswered report is asked for again."""
        start = self._lines[trial].start()
        await self._notify(trial)
        return start

    async def take(self, trial: str, position: int) -> Command:
        """The command at a position, as soon as there is one."""
        line = self._lines[trial]
        async with self._changed[trial]:
            await self._changed[trial].wait_for(lambda: position in line.commands)
        return line.commands[position]

    async def answer(self, trial: str, position: int, report: TrialReport, checkpoint: Pointer | None) -> None:
        """A worker's report to the "train" command at a position, with the checkpoint written with it.

        That of a worker whose command has meanwhile been given to others counts for nothing.
        """
        self._lines[trial].answer(position, report, checkpoint)
        await self._notify(trial)

    async def note(self, trial: str, text: str) -> None:
        """Something that people should know; it comes with the trial's next report."""
        self._lines[trial].notes.append(text)

    async def request(self, trial: str, missed: bool) -> Reply:
        """Have the trial train to its next report, once it is not held.

        Args:
            trial: Its name.
            missed: Whether the one who asks is new, so that the last report may have been lost with the one before;
                it is given once more then.

        Returns:
            The report with its checkpoint and notes; or no report, as the trial leaves its place.

        Raises:
            ReplacedError: If the trial asks once more meanwhile, or its actor is started again. Ray does not cancel the
                request of an actor that was killed; it must not take what is meant for the living one.
        """
        line = self._lines[trial]
        request = line.ask(missed)
        await self._notify(trial)
        async with self._changed[trial]:
            await self._changed[trial].wait_for(lambda: line.request is not request)
        if request.reply is None:
            raise ReplacedError(f"{trial} is asked for by another process now")
        return request.reply

    async def give_up(self, trial: str, reason: str) -> None:
        """Answer for workers that cannot: the trial comes to its next report without having learned anything."""
        self._lines[trial].give_up(reason)
        await self._notify(trial)

    async def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig | None = None) -> None:
        """Have the trial go on from a checkpoint, under another configuration if given, in the processes it has."""
        self._lines[trial].load(checkpoint, epoch, config)
        await self._notify(trial)

    async def hold(self, trial: str, held: bool) -> None:
        """Let the trial's next request wait, or let it go on."""
        self._lines[trial].hold(held)
        await self._notify(trial)

    async def preempt(self, trial: str) -> None:
        """Have a held trial's request return without a report, so that another trial can take its place."""
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
    """The channel as the driver calls it: each call returns when it is done."""

    def __init__(self, actor: Any) -> None:
        """Call this actor."""
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


def start_channel(run: str, trials: int, workers: int) -> Any:
    """Start the channel of a run's population on the driver's node; it lives as long as the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    waiting = trials * (workers + 3) + 16
    actor = ray.remote(Channel).options(
        name=_actor_name(run), num_cpus=0, max_concurrency=waiting, scheduling_strategy=here
    )
    return actor.remote()


def find_channel(run: str) -> Any:
    """The channel of a run's population."""
    return ray.get_actor(_actor_name(run))


def _actor_name(run: str) -> str:
    return f"adios_ray:{run}"

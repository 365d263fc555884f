"""How the driver, a trial's Trainable and its Ray Train workers talk: one small actor for the whole population.

The Trainable asks for reports, the scheduler posts loads, holds trials at a barrier or has them leave their places, the
workers take commands one by one and answer. What a trial would restart from is kept here, so that a worker group that
Ray Train starts again after a crash goes on where the last answered command left it.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import ray

FAILED_REPORT: dict[str, Any] = {
    "fitness": math.nan,
    "loss": math.nan,
    "penalty": math.nan,
    "probe_accuracy": math.nan,
    "slot_overlap": 0.0,
    "mask_mean_min": 0.0,
    "mask_mean_max": 0.0,
    "images_per_s": 0.0,
    "data_wait_fraction": 0.0,
    "idle_s": 0.0,
    "worker_pid": 0,
    "done": False,
}
"""What a trial reports whose workers failed again and again; the epoch and the reason are added."""


class Command(NamedTuple):
    """What workers are to do next.

    Attributes:
        kind: "train" to the next report, "load" a checkpoint under a configuration, or "stop".
        config: For "load": the trial's new configuration as JSON values.
        checkpoint: For "load": pointer to a checkpoint as JSON values.
    """

    kind: Literal["train", "load", "stop"]
    config: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None


class Start(NamedTuple):
    """Where a fresh worker group begins.

    Attributes:
        config: The trial's configuration as JSON values.
        checkpoint: Pointer to the checkpoint to load, or None for fresh weights.
        position: Number of the first command to take.
    """

    config: dict[str, Any]
    checkpoint: dict[str, Any] | None
    position: int


@dataclass
class _Line:
    """State of one trial."""

    config: dict[str, Any]
    checkpoint: dict[str, Any] | None
    epoch: int
    commands: dict[int, Command] = field(default_factory=dict)
    next_position: int = 0
    training: int | None = None
    held: bool = False
    leaving: bool = False
    answer: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def append(self, command: Command) -> int:
        self.commands[self.next_position] = command
        self.next_position += 1
        return self.next_position - 1


class Channel:
    """Commands to all trials' workers and their answers, by trial name. Runs as an asynchronous Ray actor."""

    def __init__(self) -> None:
        """Begin without trials."""
        self._lines: dict[str, _Line] = {}

    async def register(
        self, trial: str, config: dict[str, Any], checkpoint: dict[str, Any] | None, epoch: int, held: bool
    ) -> None:
        """Introduce a trial: where it starts, and whether it waits at a barrier; one that is known stays as it is."""
        if trial not in self._lines:
            self._lines[trial] = _Line(config, checkpoint, epoch, held=held)

    async def start(self, trial: str) -> Start:
        """Where a (re)started worker group begins: loads are folded in, an unanswered report is asked for again."""
        line = self._lines[trial]
        pending = line.training is not None
        line.commands.clear()
        if pending:
            line.training = line.append(Command("train"))
        return Start(line.config, line.checkpoint, line.next_position - pending)

    async def take(self, trial: str, position: int) -> Command:
        """The command at a position, as soon as there is one."""
        line = self._lines[trial]
        async with line.changed:
            await line.changed.wait_for(lambda: position in line.commands)
        return line.commands[position]

    async def answer(
        self, trial: str, position: int, report: dict[str, Any], checkpoint: dict[str, Any] | None
    ) -> None:
        """A worker's report to the "train" command at a position, with the checkpoint written with it.

        That of a worker whose command has meanwhile been given to others counts for nothing.
        """
        line = self._lines[trial]
        if position == line.training:
            await self._answer(line, report, checkpoint)

    async def _answer(self, line: _Line, report: dict[str, Any], checkpoint: dict[str, Any] | None) -> None:
        line.answer, line.checkpoint, line.epoch, line.training = report, checkpoint, int(report["epoch"]), None
        await self._notify(line)

    async def note(self, trial: str, text: str) -> None:
        """Something that people should know; it comes with the trial's next report."""
        self._lines[trial].notes.append(text)

    async def request(self, trial: str, missed: bool) -> dict[str, Any]:
        """Have the trial train to its next report, once it is not held.

        Args:
            trial: Its name.
            missed: Whether the one who asks is new, so that the last report may have been lost with the one before;
                it is given once more then.

        Returns:
            The report with its checkpoint and notes; or that the trial leaves its place, which it was told to.
        """
        line = self._lines[trial]
        async with line.changed:
            await line.changed.wait_for(lambda: not line.held or line.leaving)
            if line.leaving:
                line.leaving = False
                return {"left_its_place": True, "done": False}
            if line.training is None and not (missed and line.answer):
                line.answer = None
                line.training = line.append(Command("train"))
                line.changed.notify_all()
            await line.changed.wait_for(lambda: line.answer is not None)
        assert line.answer is not None
        notes, line.notes = line.notes, []
        return {**line.answer, "checkpoint": line.checkpoint, "notes": notes, "left_its_place": False}

    async def give_up(self, trial: str, reason: str) -> None:
        """Answer for workers that cannot: the trial comes to its next report without having learned anything."""
        line = self._lines[trial]
        interval, epochs = line.config["evaluation"]["interval_epochs"], line.config["epochs"]
        epoch = min((line.epoch // interval + 1) * interval, epochs)
        await self._answer(line, {**FAILED_REPORT, "epoch": epoch, "divergence": reason}, line.checkpoint)

    async def load(
        self, trial: str, checkpoint: dict[str, Any], epoch: int, config: dict[str, Any] | None = None
    ) -> None:
        """Have the trial go on from a checkpoint, under another configuration if given, in the processes it has."""
        line = self._lines[trial]
        line.config, line.checkpoint, line.epoch, line.answer = config or line.config, checkpoint, epoch, None
        line.append(Command("load", line.config, checkpoint))
        await self._notify(line)

    async def hold(self, trial: str, held: bool) -> None:
        """Let the trial's next request wait, or let it go on."""
        line = self._lines[trial]
        line.held = held
        await self._notify(line)

    async def leave(self, trial: str) -> None:
        """Have a held trial's request return without a report, so that another trial can take its place."""
        line = self._lines[trial]
        line.leaving = True
        await self._notify(line)

    async def stop(self, trial: str) -> None:
        """End the trial's worker loop."""
        line = self._lines[trial]
        line.append(Command("stop"))
        await self._notify(line)

    async def _notify(self, line: _Line) -> None:
        async with line.changed:
            line.changed.notify_all()


class ChannelCalls:
    """The channel as the driver calls it: each call returns when it is done."""

    def __init__(self, actor: Any) -> None:
        """Call this actor."""
        self._actor = actor

    def register(
        self, trial: str, config: dict[str, Any], checkpoint: dict[str, Any] | None, epoch: int, held: bool
    ) -> None:
        """See ``Channel.register``."""
        ray.get(self._actor.register.remote(trial, config, checkpoint, epoch, held))

    def load(self, trial: str, checkpoint: dict[str, Any], epoch: int, config: dict[str, Any]) -> None:
        """See ``Channel.load``."""
        ray.get(self._actor.load.remote(trial, checkpoint, epoch, config))

    def hold(self, trials: Sequence[str], held: bool) -> None:
        """See ``Channel.hold``; for several trials."""
        ray.get([self._actor.hold.remote(trial, held) for trial in trials])

    def leave(self, trial: str) -> None:
        """See ``Channel.leave``."""
        ray.get(self._actor.leave.remote(trial))


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

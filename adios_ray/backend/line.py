"""The channel's memory of each trial: commands, the newest request, reports. It waits for nothing and knows no cluster.

Every event takes the trial's newest request as far as it can come, so that what a request comes to depends on the order
of the events alone. ``Channel`` lets processes wait for it; the tests' simulation plays the same events.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.trial_report import TrialReport


class Command(NamedTuple):
    """What workers are to do next.

    Attributes:
        kind: "train" to the next report, "load" a checkpoint under a configuration, or "stop".
        config: For "load": the trial's new configuration.
        checkpoint: For "load": the checkpoint.
    """

    kind: Literal["train", "load", "stop"]
    config: TrialConfig | None = None
    checkpoint: Pointer | None = None


class Start(NamedTuple):
    """Where a fresh worker group begins.

    Attributes:
        config: The trial's configuration.
        checkpoint: The checkpoint to load; None for fresh weights.
        position: Number of the first command to take.
    """

    config: TrialConfig
    checkpoint: Pointer | None
    position: int


class Reply(NamedTuple):
    """What a request for a report comes to.

    Attributes:
        report: The trial's report; None where the trial leaves its place, which it was told to.
        checkpoint: The checkpoint written with it; of workers that failed, the one before.
        notes: What people should know.
    """

    report: TrialReport | None
    checkpoint: Pointer | None = None
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class Request:
    """One call of a trial's actor, which asks to train to the next report.

    Attributes:
        missed: Whether the actor is new, so that the last report may have been lost with the one before.
        begun: Whether the trial trains for it, or has a report for it.
        reply: What it came to; None while it waits, and for good if a newer request takes its place.
    """

    missed: bool
    begun: bool = False
    reply: Reply | None = None


@dataclass
class Line:
    """State of one trial.

    Attributes:
        config: The trial's configuration.
        checkpoint: The checkpoint that it would restart from.
        epoch: Epochs behind that checkpoint.
        held: Whether requests wait at a barrier.
        commands: Commands by position, since the worker group has started.
        next_position: Position of the next command.
        training: Position of the "train" command that has no answer yet.
        leaving: Whether the trial is to leave its place.
        report: The last answer, until the next command makes it one of the past.
        notes: What people should know, for the next reply.
        request: The newest request, while it waits.
    """

    config: TrialConfig
    checkpoint: Pointer | None
    epoch: int
    held: bool
    commands: dict[int, Command] = field(default_factory=dict)
    next_position: int = 0
    training: int | None = None
    preempting: bool = False
    report: TrialReport | None = None
    notes: list[str] = field(default_factory=list)
    request: Request | None = None

    def restart_actor(self) -> None:
        """Forget what the trial's last actor asked and was told: the scheduler starts another one.

        Ray does not cancel the request of an actor that was killed, and the word to leave would be lost on it.
        """
        self.request, self.preempting = None, False

    def ask(self, missed: bool) -> Request:
        """Take a request of the trial's actor, which replaces the one before; see ``Channel.request``."""
        request = self.request = Request(missed)
        self._advance()
        return request

    def start(self) -> Start:
        """Begin with a fresh worker group: loads are folded in, an unanswered report is asked for again."""
        pending = self.training is not None
        self.commands.clear()
        if pending:
            self.training = self._append(Command("train"))
        return Start(self.config, self.checkpoint, self.next_position - pending)

    def answer(self, position: int, report: TrialReport, checkpoint: Pointer | None) -> None:
        """Take the workers' report; see ``Channel.answer``."""
        if position == self.training:
            self.report, self.checkpoint, self.epoch, self.training = report, checkpoint, report.epoch, None
            self._advance()

    def give_up(self, reason: str) -> None:
        """Answer for workers that cannot; see ``Channel.give_up``."""
        epoch = self.config.next_report(self.epoch)
        self.report, self.epoch, self.training = TrialReport.failed(epoch, reason), epoch, None
        self._advance()

    def load(self, checkpoint: Pointer, epoch: int, config: TrialConfig | None = None) -> None:
        """Have the workers load a checkpoint; see ``Channel.load``."""
        self.config, self.checkpoint, self.epoch, self.report = config or self.config, checkpoint, epoch, None
        self._append(Command("load", self.config, checkpoint))

    def hold(self, held: bool) -> None:
        """Let the trial's requests wait, or release them."""
        self.held = held
        self._advance()

    def preempt(self) -> None:
        """Have the trial leave its place at its next request, or the one that waits."""
        self.preempting = True
        self._advance()

    def stop(self) -> None:
        """End the trial's worker loop."""
        self._append(Command("stop"))

    def _append(self, command: Command) -> int:
        self.commands[self.next_position] = command
        self.next_position += 1
        return self.next_position - 1

    def _advance(self) -> None:
        """Take the newest request as far as it can come."""
        request = self.request
        if request is None:
            return
        if not request.begun:
            if self.preempting:
                self.preempting = False
                self._reply(request, Reply(None))
                return
            if self.held:
                return
            if self.training is None and not (request.missed and self.report):
                self.report = None
                self.training = self._append(Command("train"))
            request.begun = True
        if self.report is not None:
            notes, self.notes = self.notes, []
            self._reply(request, Reply(self.report, self.checkpoint, tuple(notes)))

    def _reply(self, request: Request, reply: Reply) -> None:
        self.request, request.reply = None, reply


class Lines(dict[str, Line]):
    """The lines of all trials, by trial name."""

    def register(self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool) -> None:
        """Introduce a trial; one that is known stays as it is, but its actor is another one now."""
        if trial in self:
            self[trial].restart_actor()
        else:
            self[trial] = Line(config, checkpoint, epoch, held)

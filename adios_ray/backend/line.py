"""The channel's state machine: each trial's commands, its newest request and its last report.

It waits for nothing and knows no cluster. Each event advances the trial's newest request as far as possible, so the
reply depends on the order of the events alone. ``Channel`` lets processes wait for replies and commands; the tests'
simulation sends the same events without processes.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from adios_ray.backend.faults import Fault
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.trial_report import TrialReport

NoteKind = Literal["note", "restart", "wait", "output"]


class Command(NamedTuple):
    """What a trial's workers do next.

    Attributes:
        kind: "train" to the next report, "load" a checkpoint under a configuration, or "stop".
        config: For "load": the trial's new configuration.
        checkpoint: For "load": the checkpoint.
    """

    kind: Literal["train", "load", "stop"]
    config: TrialConfig | None = None
    checkpoint: Pointer | None = None


class Start(NamedTuple):
    """Where a new worker group begins.

    Attributes:
        config: The trial's configuration.
        checkpoint: The checkpoint to load; None for fresh weights.
        position: Number of the first command to take.
    """

    config: TrialConfig
    checkpoint: Pointer | None
    position: int


class Reply(NamedTuple):
    """The reply to a request for a report.

    Attributes:
        report: The trial's report; None if the trial is preempted, or cannot train.
        checkpoint: The checkpoint written with the report.
        fault: Why the trial cannot train; None if it can.
    """

    report: TrialReport | None
    checkpoint: Pointer | None = None
    fault: Fault | None = None


class Note(NamedTuple):
    """A message about a trial, from its actor or its workers.

    Attributes:
        trial: Name of the trial.
        text: One line for the terminal.
        details: More for the trial's log, such as a traceback.
        kind: What it is about; "output" is for the trial's log alone.
    """

    trial: str
    text: str
    details: str = ""
    kind: NoteKind = "note"


@dataclass(eq=False)
class Request:
    """One call of a trial's actor, which asks to train to the next report.

    Attributes:
        missed: Whether the actor is new, so that the last report may have been lost with its predecessor.
        begun: Whether the workers train for it, or a report for it exists.
        reply: The reply; None while it waits, and for ever if a newer request replaces it.
    """

    missed: bool
    begun: bool = False
    reply: Reply | None = None


@dataclass
class Line:
    """State of one trial.

    Attributes:
        config: The trial's configuration.
        checkpoint: The checkpoint that a new worker group loads.
        epoch: Epoch of the last report or load.
        held: Whether requests wait at a barrier.
        commands: Commands by position, since the worker group has started.
        next_position: Position of the next command.
        training: Position of the "train" command that has no answer yet.
        preempting: Whether the next request that has not begun is answered without a report.
        stopping: Whether the trial's actor is ending, so that its workers must end too.
        report: The last answer, until the next command obsoletes it.
        request: The newest request, while it waits.
        groups: Number of worker groups that have started.
    """

    config: TrialConfig
    checkpoint: Pointer | None
    epoch: int
    held: bool
    commands: dict[int, Command] = field(default_factory=dict)
    next_position: int = 0
    training: int | None = None
    preempting: bool = False
    stopping: bool = False
    report: TrialReport | None = None
    request: Request | None = None
    groups: int = 0

    def restart_actor(self) -> None:
        """Forget the lost actor's request, and a preemption meant for it: the scheduler starts another actor."""
        # Ray does not cancel the request of a killed actor. Left here, it would consume a preemption that is sent
        # before the new actor has asked, and the scheduler would wait for ever for this trial to leave. A preemption
        # sent earlier is void: the scheduler forgot it when the actor was lost.
        self.request, self.preempting = None, False

    def start_actor(self) -> None:
        """Begin with a new actor: a "stop" was for the workers of the previous one."""
        self.stopping = False

    def ask(self, missed: bool) -> Request:
        """Accept a request of the trial's actor; it replaces the previous one. See ``Channel.request``."""
        request = self.request = Request(missed)
        self._advance()
        return request

    def start(self) -> Start:
        """Begin with a new worker group: it starts from the newest load, and an unanswered "train" is sent again."""
        self.groups += 1
        pending = self.training is not None
        self.commands.clear()  # the loads are already part of config and checkpoint
        if self.stopping:
            # It ended the previous group, or came while Ray Train was restarting it. The actor still waits for its end.
            return Start(self.config, self.checkpoint, self._append(Command("stop")))
        if pending:
            # Under a new position, because positions are never reused: an answer of the previous group, which may still
            # be on its way, then matches no command and is dropped instead of being taken for this group's.
            self.training = self._append(Command("train"))
        return Start(self.config, self.checkpoint, self.next_position - pending)

    def answer(self, position: int, report: TrialReport, checkpoint: Pointer | None) -> bool:
        """Accept the workers' report, and return whether it was awaited; see ``Channel.answer``."""
        if position != self.training:
            return False
        # Report and checkpoint change together: a group that restarts from this checkpoint trains what follows.
        self.report, self.checkpoint, self.epoch, self.training = report, checkpoint, report.epoch, None
        self._advance()
        return True

    def load(self, checkpoint: Pointer, epoch: int, config: TrialConfig | None = None) -> None:
        """Send the workers a checkpoint to load; see ``Channel.load``."""
        # Callers send it between a report and the next "train". The answer to an outstanding "train" would replace the
        # checkpoint, and a restart would undo the load. The old report is of other weights now, so it is not repeated.
        self.config, self.checkpoint, self.epoch, self.report = config or self.config, checkpoint, epoch, None
        self._append(Command("load", self.config, checkpoint))

    def hold(self, held: bool) -> None:
        """Make the trial's requests wait, or release them."""
        self.held = held
        self._advance()

    def preempt(self) -> None:
        """Answer the waiting request, or the next one, without a report; training that has begun is not interrupted."""
        self.preempting = True
        self._advance()

    def stop(self) -> None:
        """End the trial's worker loop, and that of any worker group that still starts under the same actor."""
        self.stopping = True
        self._append(Command("stop"))

    def _append(self, command: Command) -> int:
        self.commands[self.next_position] = command
        self.next_position += 1
        return self.next_position - 1

    def _advance(self) -> None:
        """Advance the newest request as far as possible."""
        request = self.request
        if request is None:
            return
        if not request.begun:
            # Before the barrier: a held trial waits without training, which makes it the one to preempt.
            if self.preempting:
                self.preempting = False
                self._reply(request, Reply(None))
                return
            if self.held:
                return
            # No epoch is trained twice because an actor was lost. A "train" that the lost actor asked for is joined,
            # not repeated. A report that may have been lost with it is given again; Population.observe drops it if
            # the first copy had arrived.
            if self.training is None and not (request.missed and self.report):
                self.report = None
                self.training = self._append(Command("train"))
            request.begun = True
        # The report stays until the next "train" or "load", in case the actor dies before Tune has this reply.
        if self.report is not None:
            self._reply(request, Reply(self.report, self.checkpoint))

    def _reply(self, request: Request, reply: Reply) -> None:
        self.request, request.reply = None, reply


class Lines(dict[str, Line]):
    """The lines of all trials, by trial name."""

    def register(self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool) -> None:
        """Add a trial; of a known one, only the actor is replaced."""
        if trial in self:
            # Its line may be ahead of what the scheduler knows, by an answer that no request has returned yet:
            # overwriting it would train that epoch a second time.
            self[trial].restart_actor()
        else:
            self[trial] = Line(config, checkpoint, epoch, held)

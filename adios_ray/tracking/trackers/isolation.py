"""Trackers beside a run: each in a process of its own, which can neither stop nor slow the run."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Self

from adios_ray.config import TrialConfig
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.decisions import Exploit
from adios_ray.tracking.processes import module_program
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.results import Row
from adios_ray.tracking.trackers.base import Message, TrackerName

CLOSE_S = 30.0
"""Time that a tracker has at the end of a run to send what it has left."""
STOP_S = 3.0
"""The same where the run is stopped or fails: what stopped it may kill it after seconds."""

Say = Callable[[str], object]
"""Shows one line to the user."""


class Trackers(AbstractContextManager["Trackers"]):
    """All trackers of a run. Calls return at once; a tracker that fails is named once, and what it could not send."""

    def __init__(self, names: Sequence[TrackerName], storage: RunStorage, say: Say) -> None:
        """Prepare trackers, whose processes start with the block.

        Args:
            names: The trackers.
            storage: The run's files.
            say: Shows a line to the user; called from threads.
        """
        self._names, self._storage, self._say = names, storage, say
        self._processes = list[_Process]()

    def __enter__(self) -> Self:
        """Start a process for each tracker; one that cannot be started is named."""
        for name in self._names:
            try:
                self._processes.append(_Process(name, self._storage, self._say))
            except (OSError, RuntimeError) as error:  # no log can be opened, or no further process or thread started
                self._say(f"{name} failed, and the run continues without it: {error}")
        return self

    def report(self, row: Row, config: TrialConfig) -> None:
        """Pass on a trial's report."""
        self._send(Message(row=row, config=config))

    def exploit(self, exploit: Exploit) -> None:
        """Pass on an exploit."""
        self._send(Message(exploit=exploit))

    def summary(self, summary: RunSummary) -> None:
        """Pass on the outcome."""
        self._send(Message(summary=summary))

    def _send(self, message: Message) -> None:
        for process in self._processes:
            process.send(message)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a bounded time until what is left is sent, and stop the trackers."""
        for process in self._processes:
            process.finish(CLOSE_S if error is None else STOP_S)


class _Process:
    """The process of one tracker, and threads that write to it, read its answers and wait for its end."""

    def __init__(self, name: TrackerName, storage: RunStorage, say: Say) -> None:
        self._name, self._say = name, say
        self._given = self._sent = 0
        self._finishing = self._failed = False
        self._messages = queue.SimpleQueue[Message | None]()
        self._log = RunDirectory(storage.directory).tracker_log(name)
        self._log.parent.mkdir(exist_ok=True)
        program = module_program(f"{__package__}", name, storage.place)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                program.args,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=program.env,
                start_new_session=True,  # Ctrl-C is for the run, which then ends the tracker's input
            )
        work = (self._write, self._read, self._wait)
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message) -> None:
        self._given += 1
        self._messages.put(message)

    def finish(self, seconds: float) -> None:
        """End the tracker's input, and stop it if it does not end by itself in time."""
        self._finishing = True
        self._messages.put(None)
        how = "ended with status {}"
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            how = f"did not end within {seconds:g} s"
            os.killpg(self._process.pid, signal.SIGKILL)  # with what the tracker has started
            self._process.wait()
        for thread in self._threads:
            thread.join(1.0)
        if lost := self._given - self._sent:
            self._say(f"{self._name}: {lost} of {self._given} records were not sent; see {self._log}")
        elif (status := self._process.returncode) and not self._failed:
            # Libraries such as wandb's send later what they took.
            self._say(f"{self._name} {how.format(status)}, and may lack the last records; see {self._log}")

    def _write(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # the process has died; what it did not answer is counted at the end
            while message := self._messages.get():
                self._process.stdin.write(message.model_dump_json() + "\n")
                self._process.stdin.flush()
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for answer in self._process.stdout:
            if (reason := json.loads(answer)) is None:
                self._sent += 1
            else:
                self._fail(reason)

    def _wait(self) -> None:
        # Not by the end of its answers, whose pipe a process that the tracker has started may hold.
        status = self._process.wait()
        if not self._finishing:
            self._fail(f"its process ended with status {status}; see {self._log}")

    def _fail(self, reason: str) -> None:
        """Say once that the tracker has failed."""
        if not self._failed:
            self._failed = True
            self._say(f"{self._name} failed, and the run continues without it: {reason}")

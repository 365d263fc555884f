"""Events of a run, in ``events.jsonl``, and logs of its trials, ``logs/TRIAL.log``: tracebacks and workers' output."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

from adios_ray.errors import RecordError
from adios_ray.files import append_line, complete_lines
from adios_ray.run_directory import RunDirectory
from adios_ray.validation import Record, parse_json

LOG_BYTES = 2**22
"""Size at which a trial's log becomes ``TRIAL.log.1``, in place of an earlier one."""

EventKind = Literal["note", "restart", "wait", "exploit", "refusal", "drop"]


class Event(Record):
    """Something that happened in a run: a line of ``events.jsonl``."""

    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it happened, in UTC."""
    kind: EventKind
    """Kind of the event; "restart" is of a trial's processes, "wait" for nodes, resources or storage."""
    trial: str = ""
    """The trial that it is about; empty if it is about the run."""
    epoch: int | None = None
    """The trial's epoch, where that matters."""
    text: str
    """The text that the terminal showed."""


class EventLog:
    """Appends to ``events.jsonl``; all methods are thread-safe."""

    def __init__(self, run_dir: Path) -> None:
        """Continue the file, or create it."""
        self._path, self._lock = RunDirectory(run_dir).events, threading.Lock()
        self._left: list[Event] = []
        self._path.touch()

    def append(self, event: Event) -> None:
        """Append an event, after those that storage refused before; one that it refuses now waits for the next."""
        with self._lock:
            self._left.append(event)
            try:
                while self._left:
                    append_line(self._path, self._left[0].model_dump_json())
                    self._left.pop(0)
            except OSError:
                pass  # the event itself may be that storage fails, and the user has seen it


def read_events(run_dir: Path) -> tuple[list[Event], list[str]]:
    """Read all events in their order, and what is wrong with the lines that cannot be read; empty without a file.

    A run neither waits for this log nor resumes from it: a damaged line costs its own event alone.
    """
    path = RunDirectory(run_dir).events
    events, damaged = [], []
    for number, line in enumerate(complete_lines(path).splitlines(), start=1):
        try:
            events.append(parse_json(Event, line, f"{path}, line {number}", RecordError))
        except RecordError as error:
            damaged.append(str(error))
    return events, damaged


def append_log(run_dir: Path, trial: str, text: str, details: str = "") -> None:
    """Append to a trial's log: one line with the time, then its details, indented.

    Raises:
        OSError: If storage fails.
    """
    path = RunDirectory(run_dir).log(trial)
    path.touch()
    if path.stat().st_size > LOG_BYTES:
        os.replace(path, path.with_suffix(".log.1"))
        path.touch()
    time = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(path, "\n    ".join([f"{time} {text}", *details.splitlines()]))

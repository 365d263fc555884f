"""The decisions of a search: a line of ``lineage.jsonl`` for each copy, refused copy, and trial that left.

The file is append-only; a last line without its newline was cut off by a crash and is dropped.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, model_validator

from adios_ray.config import SearchedValues
from adios_ray.errors import RecordError
from adios_ray.files import append_line, atomic_write, complete_lines
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.formatting import LABELS, SLOTS, label, value_text
from adios_ray.tracking.records import EARLIER_NAMES
from adios_ray.validation import Record, parse_json


class Exploit(Record):
    """One copy of a donor's weights into a trial: a line of ``lineage.jsonl``."""

    time: AwareDatetime
    """When it was decided, in UTC."""
    epoch: int
    """Epoch of the checkpoint that was copied; the trial's own where it kept its weights."""
    trial: str
    """The trial that changes."""
    donor: str
    """The trial that was copied; the trial itself where it only took other values."""
    old: SearchedValues
    """Searched values of the trial before the exploit, by configuration path."""
    new: SearchedValues
    """The same after it."""
    scores: dict[str, float]
    """Scores of the trial and its donor at the decision."""
    z: float | None = None
    """How much better the donor was, in standard errors of the difference; None if nothing is known about those."""
    p: float | None = None
    """P-value of the same, adjusted for the choice among the population; None like ``z``."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_version(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Translate earlier versions: four values in ``old`` and ``new``, and all searched ones in ``values``."""
        fields = dict(fields)
        for name in fields.keys() & {"old", "new"}:
            fields[name] = {EARLIER_NAMES.get(key, key): value for key, value in fields[name].items()}
        if values := fields.pop("values", None):
            fields["old"] = {path: value for path, value in fields["old"].items() if path in values}
            fields["new"] = values
        return fields

    @property
    def copies(self) -> bool:
        """Whether weights were copied; else the trial kept its own and took other values."""
        return self.donor != self.trial

    @property
    def changes(self) -> str:
        """The changed values, e.g. "N 4 -> 5, lambda 0.42 -> 0.5"; "values kept" if there are none."""
        paths = sorted(self.new, key=lambda path: (path not in LABELS, [*LABELS, *self.new].index(path)))
        pairs = [(path, self.old[path], self.new[path]) for path in paths if path in self.old]
        changed = [f"{label(path)} {value_text(a)} -> {value_text(b)}" for path, a, b in pairs if a != b]
        return ", ".join(changed) or "values kept"

    @property
    def changes_slots(self) -> bool:
        """Whether the number of masks N changes."""
        return bool(self.old.get(SLOTS) != self.new.get(SLOTS))


class Refusal(Record):
    """A copy that a decision refused, since the donor was not better by enough: a line of ``lineage.jsonl``."""

    refused: Literal[True] = True
    """Distinguishes the line from exploits, which alone changed anything."""
    time: AwareDatetime
    """When it was decided, in UTC."""
    epoch: int
    """Epoch that the trial had reported."""
    trial: str
    """The trial that was to change."""
    donor: str
    """The trial that was to be copied."""
    difference: float
    """Score of the donor minus the trial's, at the same epoch."""
    z: float
    """The same in standard errors; of a paired test where outcomes of single images are known."""
    p: float
    """P-value, adjusted for the choice among the population."""


class Drop(Record):
    """A trial that left the population in its opening: a line of ``lineage.jsonl``."""

    dropped: Literal[True] = True
    """Distinguishes the line from exploits and refusals."""
    time: AwareDatetime
    """When it was decided, in UTC."""
    epoch: int
    """Epoch at which the trials were compared."""
    trial: str
    """The trial that left."""
    rank: int
    """Rank among the trials that were left, from 1."""
    trials: int
    """How many those were."""
    score: float | None
    """Score by which the trial was ranked; None if it diverged, collapsed or failed."""
    standard_error: float | None
    """Standard error of the score; None where it is unknown."""


def append_decision(run_dir: Path, decision: Exploit | Refusal | Drop) -> None:
    """Append one line to ``lineage.jsonl``."""
    append_line(RunDirectory(run_dir).lineage, decision.model_dump_json())


def begin_lineage(run_dir: Path, lines: int = 0) -> None:
    """Create ``lineage.jsonl``, or truncate it to so many lines: a resumed run repeats later decisions."""
    path = RunDirectory(run_dir).lineage
    atomic_write(path, b"".join(complete_lines(path).splitlines(keepends=True)[:lines]))


def read_lineage(run_dir: Path, lines: int | None = None) -> list[Exploit]:
    """Read the exploits in the order of their decisions; empty if there is no file.

    Args:
        run_dir: The run's directory.
        lines: How many lines of the file to read; None: all.

    Raises:
        RecordError: If a complete line does not parse.
    """
    return [entry for entry in itertools.islice(_read_decisions(run_dir), lines) if isinstance(entry, Exploit)]


def read_refusals(run_dir: Path) -> list[Refusal]:
    """Read all refused copies in the order of their decisions; empty if there is no file.

    Raises:
        RecordError: If a complete line does not parse.
    """
    return [entry for entry in _read_decisions(run_dir) if isinstance(entry, Refusal)]


def read_drops(run_dir: Path) -> list[Drop]:
    """Read which trials left in the opening, in the order of the decisions; empty if there is no file.

    Raises:
        RecordError: If a complete line does not parse.
    """
    return [entry for entry in _read_decisions(run_dir) if isinstance(entry, Drop)]


def _read_decisions(run_dir: Path) -> Iterator[Exploit | Refusal | Drop]:
    path = RunDirectory(run_dir).lineage
    for number, line in enumerate(complete_lines(path).splitlines(), start=1):
        kind: type[Exploit | Refusal | Drop] = Exploit
        if line.startswith(b'{"refused":'):
            kind = Refusal
        elif line.startswith(b'{"dropped":'):
            kind = Drop
        yield parse_json(kind, line, f"{path}, line {number}", RecordError)

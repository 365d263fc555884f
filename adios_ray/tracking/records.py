"""The files of a run directory: their types, and reading and writing them so that a killed run stays readable.

``results.csv`` and ``lineage.jsonl`` are append-only; a last line without its newline was cut off by a crash and is
dropped. All other files are replaced atomically. Reading needs neither Ray nor torch.
"""

import csv
import io
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from adios_ray.config import SearchedValues, TrialConfig
from adios_ray.errors import RecordError
from adios_ray.files import append_line, atomic_write, complete_lines
from adios_ray.measures import MEASURES, Measure
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.formatting import LABELS, label, value_text
from adios_ray.trial_report import Measured
from adios_ray.validation import explain, parse, parse_json, read_json

SLOTS = "masking.slots"
_EARLIER_NAMES = {path.rpartition(".")[2]: path for path in LABELS}
"""Earlier versions always recorded these four values, searched or not, under the last part of their paths."""


class _Evaluation(BaseModel):
    fitness: str = "knn"


class _Measured(BaseModel):
    evaluation: _Evaluation = _Evaluation()


def measure_of(config: Mapping[str, Any], run_dir: Path) -> Measure:
    """Look up the measure that a run's configuration names; k-NN if it names none.

    Raises:
        RecordError: If it names none that is known, or has no such section.
    """
    path = RunDirectory(run_dir).config
    name = parse(_Measured, config, str(path), RecordError).evaluation.fitness
    if name not in MEASURES:
        raise RecordError(f"{path}: evaluation.fitness {name!r} is not one of {', '.join(MEASURES)}")
    return MEASURES[name]


class Row(Measured):
    """One report of one trial: a line of ``results.csv``."""

    time: AwareDatetime
    """When the driver wrote it, in UTC."""
    trial: str
    """The trial's name."""
    values: SearchedValues
    """Searched values in use: one column for each, named by its configuration path."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", use_attribute_docstrings=True)


class Exploit(_Record):
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
            fields[name] = {_EARLIER_NAMES.get(key, key): value for key, value in fields[name].items()}
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


class Refusal(_Record):
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


class Drop(_Record):
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


class RunSummary(_Record):
    """The outcome of a finished run: ``summary.json``. Accuracies are 0 to 1; fitness is in its measure's units."""

    best_trial: str
    """The trial with the best mean holdout fitness of its last reports."""
    best_fitness: float
    """Mean holdout fitness of the best trial's last reports, by which it was chosen."""
    best_standard_error: float | None = None
    """Standard error of ``best_fitness`` over images; None where it is unknown."""
    best_epoch: int
    """Epoch of its last report."""
    first_best_fitness: float
    """Best holdout fitness among the trials' first reports."""
    control: str | None = None
    """The best of the trials that kept the configured values; None without any."""
    gain: float | None = None
    """Fitness of the best trial minus that of the control, on the test split; on val in earlier versions."""
    gain_standard_error: float | None = None
    """Standard error of ``gain`` over images, paired where their outcomes are known; None where it is unknown."""
    test_fitness: float
    """Fitness of the best trial on the test split."""
    test_standard_error: float | None = None
    """Standard error of ``test_fitness`` over images; None where it is unknown."""
    test_accuracy: float = math.nan
    """Accuracy of the best trial on the test split; nan for measures without labels, and in earlier versions."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_version(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Translate earlier versions, which called the fitness on the test split an accuracy."""
        if "test_fitness" in fields:
            return fields
        return {"test_fitness" if name == "test_accuracy" else name: value for name, value in fields.items()}

    chance: float
    """Accuracy of guessing, 1 / number of classes."""
    multi_label: bool = False
    """Whether images have several labels each; False in earlier versions."""
    seconds: float
    """Seconds that the run took, over all its drivers."""
    exploits: int
    """Copies of weights."""
    refusals: int = 0
    """Copies that were refused because the donor was not better by enough."""
    slot_changes: int
    """Decisions that changed the number of masks N."""
    epochs: int
    """Epochs of the run."""
    population: int
    """Number of trials."""
    dataset: str
    """Name of the data set."""
    command: str
    """The command line that repeats the run; in earlier versions that of the driver that finished it."""

    @property
    def compared(self) -> str:
        """The trials behind ``gain``, for people."""
        if self.control == self.best_trial:
            return f"{self.best_trial} is itself the control"
        return f"{self.best_trial} minus {self.control}"


COLUMNS = ("time", "trial", *Measured.model_fields)
"""Columns of ``results.csv``; those of searched values follow, named by their paths."""
_LATER_COLUMNS = {
    *("standard_error", "accuracy", "holdout_fitness", "holdout_standard_error"),
    *("train_s", "evaluate_s", "checkpoint_s", "load_s"),
}
"""Columns that files of earlier versions lack."""


def _header(path: Path, content: bytes) -> list[str]:
    """Read the column names of ``results.csv``.

    Raises:
        RecordError: If they are not those of reports.
    """
    header = next(csv.reader([_text(path, content.split(b"\n", 1)[0])]))
    searched = [name for name in header if name not in COLUMNS]
    complete = set(COLUMNS) - _LATER_COLUMNS <= set(header)
    # Sections have had other names and settings in earlier versions; settings of no section have not.
    if not complete or any(
        "." not in name and name not in TrialConfig.model_fields and name not in _EARLIER_NAMES for name in searched
    ):
        raise RecordError(
            f"{path}: the header is {','.join(header)!r}, expected {','.join(COLUMNS)!r} and paths of searched values"
        )
    return header


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is damaged: no text at byte {error.start}") from None


def begin_results(run_dir: Path, searched: Sequence[str] = ()) -> None:
    """Write the header of ``results.csv``, or check that of a resumed run's file.

    A file of an earlier version is rewritten with today's columns and one for each searched value.

    Args:
        run_dir: The run directory.
        searched: Configuration paths of the searched values.

    Raises:
        RecordError: If the existing file has other columns.
    """
    path, header = RunDirectory(run_dir).results, [*COLUMNS, *searched]
    content = complete_lines(path)
    if content and (found := _header(path, content)) != header:
        lacking = _LATER_COLUMNS - set(found)
        if not set(found) & set(_EARLIER_NAMES) and found != [name for name in header if name not in lacking]:
            raise RecordError(
                f"{path}: the header is {','.join(found)!r}, expected {','.join(header)!r} for this search space"
            )
        rows = sorted(read_results(run_dir), key=lambda row: row.time)  # in the order in which they were appended
        content = b""
    else:
        rows = []
    if not content:
        lines = [_csv_line(header), *(_csv_line(_cells(row, header)) for row in rows)]
        atomic_write(path, "".join(f"{line}\n" for line in lines).encode())


def append_result(run_dir: Path, row: Row) -> None:
    """Append one row to ``results.csv``; the time is written in UTC."""
    path = RunDirectory(run_dir).results
    with path.open("rb") as file:
        header = _header(path, file.readline())
    append_line(path, _csv_line(_cells(row, header)))


def _cells(row: Row, header: Sequence[str]) -> list[object]:
    reported = row.model_dump(exclude={"values"}) | {"time": row.time.astimezone(UTC).isoformat()}
    # JSON keeps the types apart (4, 4.0, "4"); strings that cannot be mistaken for JSON are written without quotes.
    values = {
        path: value if isinstance(value, str) and value and _value_of(value) == value else json.dumps(value)
        for path, value in row.values.items()
    }
    return [(reported | values).get(name, "") for name in header]


def _value_of(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def append_exploit(run_dir: Path, exploit: Exploit | Refusal | Drop) -> None:
    """Append one line to ``lineage.jsonl``."""
    append_line(RunDirectory(run_dir).lineage, exploit.model_dump_json())


def begin_lineage(run_dir: Path, lines: int = 0) -> None:
    """Create ``lineage.jsonl``, or truncate it to so many lines: a resumed run repeats later decisions."""
    path = RunDirectory(run_dir).lineage
    atomic_write(path, b"".join(complete_lines(path).splitlines(keepends=True)[:lines]))


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration, which must hold JSON-compatible values only."""
    atomic_write(RunDirectory(run_dir).config, (json.dumps(config, indent=2) + "\n").encode())


def write_token(run_dir: Path) -> None:
    """Give a new run its token; a resumed run keeps its own."""
    atomic_write(RunDirectory(run_dir).token, secrets.token_hex(8).encode())


def read_token(run_dir: Path) -> str | None:
    """Read the run's token; None in runs of earlier versions."""
    path = RunDirectory(run_dir).token
    return path.read_text() if path.exists() else None


def write_summary(run_dir: Path, summary: RunSummary) -> None:
    """Write ``summary.json``."""
    atomic_write(RunDirectory(run_dir).summary, (summary.model_dump_json(indent=2) + "\n").encode())


def read_results(run_dir: Path) -> list[Row]:
    """Read all reports, sorted by trial and epoch; empty if there is no file.

    Of several rows for one trial and epoch, the last is kept: a trial that was set back repeats epochs.

    Raises:
        RecordError: If the columns are wrong or missing, or a complete line does not parse.
    """
    path = RunDirectory(run_dir).results
    if not path.exists():
        return []
    content = complete_lines(path)
    if not content:
        raise RecordError(f"{path} is damaged: it has neither its header nor reports")
    _header(path, content)
    rows: dict[tuple[str, int], Row] = {}
    for number, cells in enumerate(csv.DictReader(io.StringIO(_text(path, content))), start=2):
        row = _row(cells, f"{path}, line {number}")
        rows[row.trial, row.epoch] = row
    return [rows[key] for key in sorted(rows)]


def _row(cells: Mapping[str, str], where: str) -> Row:
    searched = {_EARLIER_NAMES.get(name, name): cell for name, cell in cells.items() if name not in COLUMNS}
    values = {path: _value_of(cell) for path, cell in searched.items() if cell}
    # A standard error that is unknown is an empty cell.
    measured = {name: cells[name] for name in COLUMNS if name not in _LATER_COLUMNS or cells.get(name)}
    try:
        return Row.model_validate(measured | {"values": values})
    except ValidationError as error:
        raise RecordError(f"{where}: {explain(error)}") from None


def read_lineage(run_dir: Path) -> list[Exploit]:
    """Read all exploits in the order of their decisions; empty if there is no file.

    Raises:
        RecordError: If a complete line does not parse.
    """
    return [entry for entry in _read_decisions(run_dir) if isinstance(entry, Exploit)]


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


def read_config(run_dir: Path) -> dict[str, Any]:
    """Read the resolved configuration; empty if there is no file.

    Raises:
        RecordError: If the file is not a JSON object.
    """
    path = RunDirectory(run_dir).config
    return read_json(dict[str, Any], path, RecordError) if path.exists() else {}


def read_summary(run_dir: Path) -> RunSummary | None:
    """Read the outcome; None while the run has not finished.

    Raises:
        RecordError: If the file has other fields.
    """
    path = RunDirectory(run_dir).summary
    return read_json(RunSummary, path, RecordError) if path.exists() else None

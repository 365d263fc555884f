"""The reports of a run's trials: a line of ``results.csv`` for each.

The file is append-only; a last line without its newline was cut off by a crash and is dropped.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, ValidationError

from adios_ray.config import SearchedValues, TrialConfig
from adios_ray.errors import RecordError
from adios_ray.files import append_line, atomic_write, complete_lines
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking.records import EARLIER_NAMES
from adios_ray.trial_report import Measured
from adios_ray.validation import explain


class Row(Measured):
    """One report of one trial: a line of ``results.csv``."""

    time: AwareDatetime
    """When the driver wrote it, in UTC."""
    trial: str
    """The trial's name."""
    values: SearchedValues
    """Searched values in use: one column for each, named by its configuration path."""


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
        "." not in name and name not in TrialConfig.model_fields and name not in EARLIER_NAMES for name in searched
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
        if not set(found) & set(EARLIER_NAMES) and found != [name for name in header if name not in lacking]:
            raise RecordError(
                f"{path}: the header is {','.join(found)!r}, expected {','.join(header)!r} for this search space"
            )
        rows = read_results(run_dir)
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
    except (ValueError, RecursionError):
        return cell


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def read_results(run_dir: Path) -> list[Row]:
    """Read all reports, sorted by trial and epoch; empty if there is no file.

    A trial that was set back repeats epochs: a row replaces earlier ones of its trial at the same and later epochs.

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
    rows = defaultdict[str, list[Row]](list)
    for number, cells in enumerate(csv.DictReader(io.StringIO(_text(path, content))), start=2):
        row = _row(cells, f"{path}, line {number}")
        own = rows[row.trial]
        # By the order of the lines: times would mislead, since the clocks of drivers differ.
        while own and own[-1].epoch >= row.epoch:
            own.pop()
        own.append(row)
    return [row for trial in sorted(rows) for row in rows[trial]]


def _row(cells: Mapping[str, str], where: str) -> Row:
    searched = {EARLIER_NAMES.get(name, name): cell for name, cell in cells.items() if name not in COLUMNS}
    values = {path: _value_of(cell) for path, cell in searched.items() if cell}
    # A standard error that is unknown is an empty cell.
    measured = {name: cells[name] for name in COLUMNS if name not in _LATER_COLUMNS or cells.get(name)}
    try:
        return Row.model_validate(measured | {"values": values})
    except ValidationError as error:
        raise RecordError(f"{where}: {explain(error)}") from None

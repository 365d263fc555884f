"""JSON lines: one file with a line for each report, exploit and outcome, for programs of one's own."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from adios_ray.config import TrialConfig
from adios_ray.files import append_line, json_line
from adios_ray.tracking.decisions import Exploit
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.results import Row


class JsonLinesLog:
    """Appends to ``log.jsonl`` of the run directory; ``kind`` says what a line is."""

    def __init__(self, directory: Path) -> None:
        """Log into a run directory."""
        self._path = directory / "log.jsonl"

    def report(self, row: Row, config: TrialConfig) -> None:
        """Append a report with the trial's configuration."""
        self._append("report", row, config=config.model_dump(mode="json"))

    def exploit(self, exploit: Exploit) -> None:
        """Append an exploit."""
        self._append("exploit", exploit)

    def summary(self, summary: RunSummary) -> None:
        """Append the outcome."""
        self._append("summary", summary)

    def close(self) -> None:
        """Leave the file, which each line completes."""

    def _append(self, kind: str, record: BaseModel, **more: Any) -> None:
        self._path.touch()
        append_line(self._path, json_line({"kind": kind, **record.model_dump(mode="json"), **more}))

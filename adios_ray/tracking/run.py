"""The record of a run: files, terminal, Ray's metrics and wandb, fed by the driver."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adios_ray.config import TrialConfig
from adios_ray.retry import retry
from adios_ray.tracking.live import LiveView
from adios_ray.tracking.metrics import RayMetrics
from adios_ray.tracking.records import Exploit, Row, append_exploit, append_result, begin_results
from adios_ray.tracking.report import write_report
from adios_ray.tracking.wandb import WandbLog
from adios_ray.trial_report import Measured, TrialReport

REPORT_INTERVAL_S = 60.0


class Run(AbstractContextManager["Run"]):
    """Writes down what happens.

    Attributes:
        directory: The run's directory.
    """

    def __init__(
        self, directory: Path, searched: Sequence[str], view: LiveView, metrics: RayMetrics, wandb: WandbLog | None
    ) -> None:
        """Record into an existing directory; a resumed run's files are continued.

        Args:
            directory: The run's directory.
            searched: Configuration paths of the searched values.
            view: Shows progress.
            metrics: Publishes figures on Ray's metrics endpoint.
            wandb: Logs to Weights & Biases; None does not.
        """
        self.directory = directory
        self._view, self._metrics, self._wandb = view, metrics, wandb
        begin_results(directory, searched)
        self._open = ExitStack()
        self._report_due = time.monotonic() + REPORT_INTERVAL_S

    def __enter__(self) -> Self:
        """Show progress until the run is over."""
        self._open.enter_context(self._view)
        if self._wandb:
            self._open.callback(self._wandb.finish)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self._open.close()

    def report(self, trial: str, report: TrialReport, values: dict[str, Any], config: TrialConfig) -> None:
        """Record a trial's report.

        Args:
            trial: Its name.
            report: What it reported.
            values: Searched values that it trained with, by configuration path.
            config: Its whole configuration.
        """
        measured = report.model_dump(include=set(Measured.model_fields))
        row = Row(time=datetime.now(UTC), trial=trial, values=values, **measured)
        retry(lambda: append_result(self.directory, row), self.note)
        self._view.report(row)
        self._metrics.report(row)
        if self._wandb:
            self._wandb.report(row, config)
        if time.monotonic() > self._report_due:
            self._write_report()
            self._report_due = time.monotonic() + REPORT_INTERVAL_S

    def _write_report(self) -> None:
        """Refresh the report; one that cannot be written now is no reason to stop."""
        try:
            write_report(self.directory)
        except OSError as error:
            self.note(f"the report was not refreshed: {error}")

    def exploit(self, **fields: Any) -> None:
        """One copy of a donor into a trial; fields as in ``Exploit``."""
        exploit = Exploit(time=datetime.now(UTC), **fields)
        retry(lambda: append_exploit(self.directory, exploit), self.note)
        self._view.exploit(exploit)

    def note(self, text: str) -> None:
        """Something that people should know."""
        self._view.note(text)

"""The record of a run, written by its driver: files, terminal, Ray's metrics and trackers."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from adios_ray.config import TrialConfig
from adios_ray.retry import retry
from adios_ray.run_directory import MASKS
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.live import LiveView, refusal_line
from adios_ray.tracking.metrics import RayMetrics
from adios_ray.tracking.records import Exploit, Refusal, Row, append_exploit, append_result, begin_results
from adios_ray.tracking.report import write_report
from adios_ray.tracking.trackers.isolation import Trackers
from adios_ray.trial_report import Measured, TrialReport

REPORT_INTERVAL_S = 60.0


class Run(AbstractContextManager["Run"]):
    """Records reports, exploits and notes everywhere that a run shows them.

    Attributes:
        storage: The run's files.
        directory: The run directory.
    """

    def __init__(
        self, storage: RunStorage, searched: Sequence[str], view: LiveView, metrics: RayMetrics, trackers: Trackers
    ) -> None:
        """Record into an existing directory; files of a resumed run are continued.

        Args:
            storage: The run's files.
            searched: Configuration paths of the searched values.
            view: Shows progress.
            metrics: Publishes measurements on Ray's metrics endpoint.
            trackers: What else follows the run.
        """
        self.storage, self.directory = storage, storage.directory
        self._view, self._metrics, self._trackers = view, metrics, trackers
        begin_results(self.directory, searched)
        self._open = ExitStack()
        self._report_due = time.monotonic() + REPORT_INTERVAL_S

    def __enter__(self) -> Self:
        """Show progress until the run ends."""
        self._open.enter_context(self._view)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the view."""
        self._open.close()

    def report(self, trial: str, report: TrialReport, values: dict[str, Any], config: TrialConfig) -> None:
        """Record a trial's report.

        Args:
            trial: Name of the trial.
            report: The report.
            values: Searched values that the trial trained with, by configuration path.
            config: The trial's whole configuration.
        """
        measured = report.model_dump(include=set(Measured.model_fields))
        row = Row(time=datetime.now(UTC), trial=trial, values=values, **measured)
        # The file first, retried while storage refuses: everything else shows what is recorded.
        retry(lambda: append_result(self.directory, row), self.note)
        self._view.report(row)
        self._metrics.report(row)
        self._trackers.report(row, config)
        if time.monotonic() > self._report_due:
            # Not retried: the next refresh includes everything, and training should not wait for a page.
            try:
                self.storage.pull(MASKS)
                write_report(self.directory)
            except OSError as error:
                self.note(f"the report was not refreshed: {error}")
            self._report_due = time.monotonic() + REPORT_INTERVAL_S

    def exploit(self, **fields: Any) -> None:
        """Record a copy of a donor into a trial; the fields are those of ``Exploit``."""
        exploit = Exploit(time=datetime.now(UTC), **fields)
        retry(lambda: append_exploit(self.directory, exploit), self.note)
        self._view.exploit(exploit)
        self._trackers.exploit(exploit)

    def refusal(self, **fields: Any) -> None:
        """Record that a trial did not copy a donor; the fields are those of ``Refusal``."""
        refusal = Refusal(time=datetime.now(UTC), **fields)
        retry(lambda: append_exploit(self.directory, refusal), self.note)
        self.note(refusal_line(refusal))

    def note(self, text: str) -> None:
        """Show a note to the user."""
        self._view.note(text)

"""The record of a run, written by its driver: files, terminal, Ray's metrics and trackers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from adios_ray.config import TrialConfig
from adios_ray.console import say
from adios_ray.errors import ClaimError, StorageError
from adios_ray.retry import ACCESS, BRIEF_S, Result, promptly, retry, retry_in_run
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.decisions import Drop, Exploit, Refusal, append_decision
from adios_ray.tracking.environment import record_environment
from adios_ray.tracking.live import LiveView, drop_line, exploit_line, refusal_line
from adios_ray.tracking.log import Event, EventKind, EventLog, append_log
from adios_ray.tracking.metrics import RayMetrics
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.report.background import INTERVAL_S, BackgroundReport
from adios_ray.tracking.results import Row, append_result, begin_results
from adios_ray.tracking.trackers.isolation import Trackers
from adios_ray.trial_report import Measured, TrialReport


class Run(AbstractContextManager["Run"]):
    """Records reports, exploits and notes everywhere that a run shows them.

    Attributes:
        storage: The run's files.
        directory: The run directory.
    """

    def __init__(
        self,
        storage: RunStorage,
        searched: Sequence[str],
        view: LiveView,
        metrics: RayMetrics,
        trackers: Trackers,
        check_claim: Callable[[], None] = lambda: None,
        page_interval_s: float = INTERVAL_S,
        threads: int | None = None,
    ) -> None:
        """Record into an existing run directory; files of a resumed run are continued.

        Args:
            storage: The run's files.
            searched: Configuration paths of the searched values.
            view: Shows progress.
            metrics: Publishes measurements on Ray's metrics endpoint.
            trackers: What else follows the run.
            check_claim: Raises a ClaimError once another driver has taken the run over.
            page_interval_s: Seconds between two refreshes of the report while the run lasts.
            threads: CPU threads of each worker.

        Raises:
            StorageError: If storage fails for too long.
        """
        self.storage, self.directory = storage, storage.directory
        self._view, self._metrics, self._trackers, self._check_claim = view, metrics, trackers, check_claim
        retry(partial(self._begin, searched, threads), say)
        self._open = ExitStack()
        self._events = EventLog(self.directory)
        self._page = BackgroundReport(self.directory, self.note, page_interval_s, storage.uri)

    def _begin(self, searched: Sequence[str], threads: int | None) -> None:
        RunDirectory(self.directory).make_folders()
        begin_results(self.directory, searched)
        record_environment(self.directory, threads)

    def __enter__(self) -> Self:
        """Show progress until the run ends."""
        self._open.enter_context(self._view)
        self._open.callback(self._page.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the view and end the refreshing of the report."""
        self._open.close()

    def write(self, action: Callable[[], object], name: str = ACCESS) -> None:
        """Write into the run directory as ``retry_in_run`` does, as long as the run is this driver's.

        Args:
            action: The write; it must be safe to repeat.
            name: What is said to take long.

        Raises:
            ClaimError: If another driver has taken the run over; nothing is written then.
            StorageError: If storage fails for too long.
        """

        def attempt() -> None:
            # Before each attempt: while storage was away, another driver may have given this one up for dead.
            self._check_claim()
            action()

        retry_in_run(self.directory, attempt, partial(self.note, kind="wait"), name)

    def read(self, action: Callable[[], Result]) -> Result:
        """Read from the run directory as ``retry_in_run`` does; what is missing while storage is away is waited for.

        Raises:
            StorageError: If storage fails for too long.
        """
        return retry_in_run(self.directory, action, partial(self.note, kind="wait"))

    def write_page(self, summary: RunSummary | None = None) -> bool:
        """Write the report; no outcome of a run hangs on whether its page can be drawn.

        Args:
            summary: The outcome, if it is not yet written down.

        Returns:
            Whether it was written; else a note says why not.

        Raises:
            ClaimError: If another driver has taken the run over; nothing is written then.
            StorageError: If storage fails for too long.
        """
        # Here: the first steps of a run need not wait for what this imports, scipy and plotly.
        from adios_ray.tracking.report.page import write_report

        try:
            self.write(lambda: write_report(self.directory, self.storage.uri, summary), "drawing the report")
        except (ClaimError, StorageError):
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.note(f"the report was not written ({reason}); adios-ray report {self.storage.place} tries again")
            return False
        return True

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
        self.write(lambda: append_result(self.directory, row))
        self._view.report(row)
        self._metrics.report(row)
        self._trackers.report(row, config)
        self._page.refresh()

    def exploit(self, **fields: Any) -> None:
        """Record a copy of a donor into a trial; the fields are those of ``Exploit``."""
        exploit = Exploit(time=datetime.now(UTC), **fields)
        self.write(lambda: append_decision(self.directory, exploit))
        self._view.exploit(exploit)
        self._record(Event(kind="exploit", trial=exploit.trial, epoch=exploit.epoch, text=exploit_line(exploit)))
        self._trackers.exploit(exploit)

    def refusal(self, **fields: Any) -> None:
        """Record that a trial did not copy a donor; the fields are those of ``Refusal``."""
        refusal = Refusal(time=datetime.now(UTC), **fields)
        self.write(lambda: append_decision(self.directory, refusal))
        self.note(refusal_line(refusal), "refusal", refusal.trial, refusal.epoch)

    def drop(self, **fields: Any) -> None:
        """Record that a trial left in the opening; the fields are those of ``Drop``."""
        drop = Drop(time=datetime.now(UTC), **fields)
        self.write(lambda: append_decision(self.directory, drop))
        self.note(drop_line(drop), "drop", drop.trial, drop.epoch)

    def hold(self, trials: Sequence[str], held: bool) -> None:
        """Show that trials wait for the others before the next decision, or no longer."""
        self._view.hold(trials, held)

    def note(self, text: str, kind: EventKind = "note", trial: str = "", epoch: int | None = None) -> None:
        """Show an event to the user, and record it."""
        self._view.note(text)
        self._record(Event(kind=kind, trial=trial, epoch=epoch, text=text))

    def _record(self, event: Event) -> None:
        if self._is_ours():
            self._events.append(event)

    def _is_ours(self) -> bool:
        """Tell whether no other driver is known to have taken the run over; asks storage for at most 3 s."""
        try:
            promptly(self._check_claim, BRIEF_S)
        except ClaimError:
            return False
        except OSError:  # unknown while storage is away; what happens meanwhile is kept here
            pass
        return True

    def trial_note(
        self, trial: str, text: str, details: str = "", kind: Literal["note", "restart", "wait", "output"] = "note"
    ) -> None:
        """Append an event to a trial's log with its details; show it to the user, unless it is the workers' output."""
        shown = f"{trial}: {text}"
        if kind != "output":
            self._view.keep(trial, shown)  # it may say what the trial waits for
            self._view.note(shown)
        if not self._is_ours():  # the next report ends this driver
            return
        if kind != "output":
            self._events.append(Event(kind=kind, trial=trial, text=shown))
        # Not retried: the note may be about storage that fails, and the user has seen it.
        try:
            append_log(self.directory, trial, text, details)
        except OSError as error:
            self.note(f"{trial}: its log could not be written: {error}")

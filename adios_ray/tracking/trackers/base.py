"""The interface of trackers, and the messages by which a run passes them its records."""

from typing import Literal, Protocol

from adios_ray.config import TrialConfig
from adios_ray.tracking.decisions import Exploit
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.results import Row
from adios_ray.validation import Record

TrackerName = Literal["wandb-offline", "wandb-online", "tensorboard", "jsonl"]


class Tracker(Protocol):
    """Follows a run from a process of its own: methods may block and raise."""

    def report(self, row: Row, config: TrialConfig) -> None:
        """Log one report of a trial and the configuration that it was made under."""

    def exploit(self, exploit: Exploit) -> None:
        """Log that a trial copied a donor, or took new values."""

    def summary(self, summary: RunSummary) -> None:
        """Log the outcome of the run."""

    def close(self) -> None:
        """Send what is left, and close files and connections."""


class Message(Record):
    """One record on its way to a tracker: a report with its configuration, an exploit, or the outcome."""

    row: Row | None = None
    config: TrialConfig | None = None
    exploit: Exploit | None = None
    summary: RunSummary | None = None

    def give(self, tracker: Tracker) -> None:
        """Call the tracker's method for the record."""
        if self.row and self.config:
            tracker.report(self.row, self.config)
        if self.exploit:
            tracker.exploit(self.exploit)
        if self.summary:
            tracker.summary(self.summary)

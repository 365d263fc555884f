"""TensorBoard: a folder of event files for each trial, below ``tensorboard/`` of the run directory."""

import numpy as np
from tensorboardX import SummaryWriter

from adios_ray.config import TrialConfig
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.decisions import Exploit
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.results import Row
from adios_ray.tracking.trackers.measurements import lineage_of, measurements, sheets


class TensorBoardLog:
    """Logs numbers and masks of each trial by epoch, its lineage and the run's outcome as text."""

    def __init__(self, storage: RunStorage) -> None:
        """Log below a run directory."""
        self._storage, self._directory = storage, storage.directory
        self._writers: dict[str, SummaryWriter] = {}

    def report(self, row: Row, config: TrialConfig) -> None:
        """Log one report."""
        writer = self._writer(row.trial)
        for name, value in measurements(row).items():
            writer.add_scalar(name, value, row.epoch)
        for number, sheet in enumerate(sheets(self._storage, row)):
            writer.add_image(f"masks/{number}", np.asarray(sheet), row.epoch, dataformats="HWC")
        writer.flush()

    def exploit(self, exploit: Exploit) -> None:
        """Log the trial's lineage."""
        writer = self._writer(exploit.trial)
        writer.add_text("lineage", "\n\n".join(lineage_of(self._directory, exploit.trial)), exploit.epoch)
        writer.flush()

    def summary(self, summary: RunSummary) -> None:
        """Log the outcome with the best trial."""
        self._writer(summary.best_trial).add_text("summary", f"```\n{summary.model_dump_json(indent=2)}\n```")

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, trial: str) -> SummaryWriter:
        if trial not in self._writers:
            self._writers[trial] = SummaryWriter(str(self._directory / "tensorboard" / trial))
        return self._writers[trial]

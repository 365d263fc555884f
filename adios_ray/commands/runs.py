"""The command that lists runs."""

import os
from dataclasses import dataclass

from adios_ray.store import Location


@dataclass(frozen=True)
class Runs:
    """List the runs of a storage directory: state, epochs, best result, time since the last report."""

    storage: Location = "runs"
    """Directory or URI (s3://, gs://, ...) that contains the run directories."""

    def run(self) -> None:
        """Print one line for each run, the latest first."""
        from adios_ray.tracking.overview import runs_in

        # The default is made by the first training; another place that is missing was misspelled.
        begun = self.storage != Runs.storage or os.path.lexists(self.storage)
        lines = [run.text() for run in runs_in(self.storage)] if begun else []
        print("\n".join(lines) if lines else f"{self.storage} has no runs: adios-ray train makes them")

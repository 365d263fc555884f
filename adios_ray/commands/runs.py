"""The command that lists runs."""

from dataclasses import dataclass

from adios_ray.errors import UsageError
from adios_ray.places import require_local
from adios_ray.store import Location


@dataclass(frozen=True)
class Runs:
    """List the runs of a storage directory: state, epochs, best result, time since the last report."""

    storage: Location = "runs"
    """Local directory that contains the run directories."""

    def run(self) -> None:
        """Print one line for each run, the latest first."""
        from adios_ray.tracking.overview import runs_in

        storage = require_local(self.storage, "--storage")
        if not storage.is_dir():
            raise UsageError(f"--storage {self.storage} is no directory: name the --storage of adios-ray train")
        lines = [run.text() for run in runs_in(storage)]
        print("\n".join(lines) if lines else f"{self.storage} has no runs: adios-ray train makes them")

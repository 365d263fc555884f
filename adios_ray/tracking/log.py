"""Logs of trials, ``logs/TRIAL.log`` in a run directory: what happened to a trial's processes, with tracebacks."""

from datetime import UTC, datetime
from pathlib import Path

from adios_ray.files import append_line
from adios_ray.run_directory import RunDirectory


def append_log(run_dir: Path, trial: str, text: str, details: str = "") -> None:
    """Append an event to a trial's log: one line with the time, then its details, indented.

    Raises:
        OSError: If storage fails.
    """
    path = RunDirectory(run_dir).log(trial)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    time = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(path, "\n    ".join([f"{time} {text}", *details.splitlines()]))

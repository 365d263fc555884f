"""Refreshing the report of a running run in a process of its own, so that decisions never wait for a page."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

INTERVAL_S, GRACE_S = 60.0, 10.0


class BackgroundReport:
    """Writes a run's report at most every ``interval_s`` seconds, one process at a time."""

    def __init__(
        self, run_dir: Path, note: Callable[[str], None], interval_s: float = INTERVAL_S, uri: str | None = None
    ) -> None:
        """Prepare without writing anything yet.

        Args:
            run_dir: The run directory.
            note: Is told why a report was not written.
            interval_s: Seconds from the start of one report to that of the next, and to the first.
            uri: See ``write_report``.
        """
        self._places, self._note, self._interval_s = [str(run_dir), *([uri] if uri else [])], note, interval_s
        self._due = time.monotonic() + interval_s
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = tempfile.TemporaryFile()

    def refresh(self) -> None:
        """Start a report if one is due and none is being written; returns at once."""
        if self._process is not None and self._process.poll() is None:
            return
        self._collect()
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval_s
        command = [sys.executable, "-m", "adios_ray.tracking.report", *self._places]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._complaints)
        except OSError as error:  # the next refresh includes everything
            self._note(f"the report was not refreshed: {error}")

    def close(self) -> None:
        """End the process: it would replace the final report by an older one."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:  # its storage hangs
                self._process.kill()
            self._process = None
        self._complaints.close()

    def _collect(self) -> None:
        """Tell why the last process failed, if it did."""
        if self._process is not None and self._process.returncode:
            self._complaints.seek(0)
            lines = self._complaints.read().decode(errors="replace").strip().splitlines()
            self._note(f"the report was not refreshed: {lines[-1] if lines else self._process.returncode}")
        self._process = None
        self._complaints.seek(0)
        self._complaints.truncate()

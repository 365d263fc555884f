"""Refreshing the report of a running run in a process of its own, so that decisions never wait for a page."""

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adios_ray.tracking.processes import module_program

INTERVAL_S, GRACE_S = 60.0, 10.0


class BackgroundReport:
    """Writes a run's report at most every ``interval_s`` seconds, one process at a time."""

    def __init__(
        self, run_dir: Path, note: Callable[[str], None], interval_s: float = INTERVAL_S, uri: str | None = None
    ) -> None:
        """Prepare without writing anything yet.

        Args:
            run_dir: The run directory.
            note: Is told why a report was not written, once while the reason stays the same.
            interval_s: Seconds from the start of one report to that of the next, and to the first.
            uri: See ``write_report``.
        """
        self._places, self._note, self._interval_s = [str(run_dir), *([uri] if uri else [])], note, interval_s
        self._due = time.monotonic() + interval_s
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = tempfile.TemporaryFile()
        self._told = ""

    def refresh(self) -> None:
        """Start a report if one is due and none is being written; returns at once."""
        if self._process is not None and self._process.poll() is None:
            return
        self._collect()
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval_s
        program = module_program(f"{__package__}", *self._places)
        try:
            self._process = subprocess.Popen(
                program.args, env=program.env, stdout=subprocess.DEVNULL, stderr=self._complaints
            )
        except OSError as error:  # the next refresh includes everything
            self._tell(str(error))

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
        if self._process is not None:
            reason = ""
            if self._process.returncode:
                self._complaints.seek(0)
                lines = self._complaints.read().decode(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else f"its process ended with status {self._process.returncode}"
            self._tell(reason)
        self._process = None
        self._complaints.seek(0)
        self._complaints.truncate()

    def _tell(self, reason: str) -> None:
        """Tell why a report was not written, unless that was told of the last one; "" if it was written."""
        if reason not in ("", self._told):
            self._note(f"the report was not refreshed: {reason}")
        self._told = reason

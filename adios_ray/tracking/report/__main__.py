"""Writes the report of a run directory: ``python -m adios_ray.tracking.report RUN_DIR``, as a running run does."""

import os
import signal
import sys
from pathlib import Path

from adios_ray.errors import exit_status
from adios_ray.tracking.report.page import write_report

if __name__ == "__main__":
    os.nice(10)  # training comes first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by an exception, which removes the draft of the page
    sys.exit(exit_status(lambda: write_report(Path(sys.argv[1]), next(iter(sys.argv[2:]), None))))

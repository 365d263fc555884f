"""The report of a run: one self-contained HTML file, readable while the run continues."""

from adios_ray.tracking.report.page import write_report

__all__ = ["write_report"]

"""The command that writes reports."""

import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

import tyro

from adios_ray.errors import UsageError
from adios_ray.run_directory import RunDirectory


@dataclass(frozen=True)
class Report:
    """Write the report of a run, finished or not, as one HTML file; of several runs, also a page that compares them."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""

    open: bool = False
    """Open the page in a browser."""

    output: Path | None = None
    """File of the comparison; comparison.html beside the first run if not given."""

    images: int = 400
    """Validation images whose features are shown, 0 for none. Extracting those takes seconds to minutes, once."""

    def run(self) -> None:
        """Write the pages and print their paths."""
        from adios_ray.tracking.report.comparison import write_comparison
        from adios_ray.tracking.report.inspection import inspect_best
        from adios_ray.tracking.report.page import write_report
        from adios_ray.tracking.report.run_data import read_run

        if not self.runs:
            raise UsageError("name at least one run directory, e.g. adios-ray report runs/RUN")
        if self.images < 0 or self.images == 1:
            raise UsageError(f"--images {self.images} must be 0, or at least 2")
        if self.output is not None and len(self.runs) == 1:
            raise UsageError("--output is for the comparison of several runs; one run's page is RUN/report.html")
        for path in self.runs:
            if not RunDirectory(path).config.is_file():
                raise UsageError(f"{path} is not a run directory: it has no {RunDirectory(path).config.name}")
        for path in self.runs:
            if self.images:
                inspect_best(read_run(path), self.images, lambda text: print(text, file=sys.stderr))
            page = write_report(path)
            print(page)
        if len(self.runs) > 1:
            first = self.runs[0].resolve()
            page = write_comparison(self.runs, self.output or first.with_name("comparison.html"))
            print(page)
        if self.open and not webbrowser.open(page.resolve().as_uri()):
            print("no browser was found; open the file above")

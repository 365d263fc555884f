"""The command that writes reports."""

import webbrowser
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from adios_ray.errors import UsageError
from adios_ray.run_directory import REPLAY_FILE, REPORTS_FILE, RunDirectory
from adios_ray.store import Location, Store, local_path, split_location


@dataclass(frozen=True)
class Report:
    """Write the report of a run, finished or not, as one HTML file; of several runs, also a page that compares them."""

    runs: tyro.conf.Positional[tuple[Location, ...]]
    """Run directories; paths or URIs (s3://, gs://, ...), at which the pages are written too."""

    open: bool = False
    """Open the page in a browser."""

    output: Location | None = None
    """File of the comparison, a path or a URI; comparison.html beside the first run if not given."""

    images: int = 400
    """Validation images whose features are shown, 2 to 10,000, or 0 for none. Extracting those takes seconds to
    minutes, once."""

    def run(self) -> None:
        """Write the pages and print their paths."""
        from adios_ray.console import say_aside
        from adios_ray.places import check_output_file, delivered, fetched, insist, require_local
        from adios_ray.run_storage import fetched_run
        from adios_ray.tracking.report.comparison import MARK, write_comparison
        from adios_ray.tracking.report.inspection import MOST_IMAGES, inspect_best
        from adios_ray.tracking.report.page import write_report
        from adios_ray.tracking.report.run_data import read_run

        if not self.runs:
            raise UsageError("name at least one run directory, e.g. adios-ray report runs/RUN")
        if self.images != 0 and not 2 <= self.images <= MOST_IMAGES:
            raise UsageError(f"--images {self.images} must be 0, or 2 to {MOST_IMAGES}")
        if self.output is not None and len(self.runs) == 1:
            raise UsageError("--output is for the comparison of several runs; one run's page is RUN/report.html")
        if self.open:
            for place in self.runs if self.output is None else (*self.runs, self.output):
                require_local(place, "--open")
        if self.output is not None:
            check_output_file(self.output, MARK, *self.runs)
            if not str(self.output).endswith(".html"):
                raise UsageError(f"--output {self.output} must end in .html: the comparison is a page")
        paths = [fetched_run(place) for place in self.runs]
        for place, path in zip(self.runs, paths, strict=True):
            if (path / REPLAY_FILE).is_file():
                raise UsageError(
                    f"{place} is a replay, of which there is no report: {place}/{REPORTS_FILE} has its numbers, a line "
                    f"for each report, and adios-ray evaluate takes what is in {place}/checkpoints"
                )
            if not RunDirectory(path).config.is_file():
                raise UsageError(f"{place} is not a run directory: it has no {RunDirectory(path).config.name}")
        resolved = [path.resolve() for path in paths]
        for place, path in zip(self.runs, resolved, strict=True):
            if resolved.count(path) > 1:
                raise UsageError(f"{place} is named twice: name different runs to compare")
        uris = [str(place) if local_path(place) is None else None for place in self.runs]
        for place, path, uri in zip(self.runs, paths, uris, strict=True):
            layout = RunDirectory(path)
            if self.images:
                run = read_run(path)
                if run.best is not None:
                    fetched(f"{place}/{layout.relative(layout.checkpoints / run.best[0])}")
                inspect_best(run, self.images, say_aside)
            page = write_report(path, uri)
            if uri:
                for file in filter(Path.exists, (layout.inspection, page)):
                    insist(partial(Store(uri).put, file, file.name))
            print(f"{uri}/{page.name}" if uri else page)
        if len(self.runs) > 1:
            # A local path may end in "..": only a resolved one has a folder above it that is its parent.
            first = Store(self.runs[0] if local_path(self.runs[0]) is None else paths[0].resolve())
            output = self.output or f"{split_location(str(first))[0]}/comparison.html"
            with delivered(output) as page:
                write_comparison([read_run(path, uri) for path, uri in zip(paths, uris, strict=True)], page)
            print(output)
        if self.open and not webbrowser.open(page.resolve().as_uri()):
            print("no browser was found; open the file above")

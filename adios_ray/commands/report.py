"""The command that writes reports."""

import webbrowser
from collections.abc import Sequence
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
        self._check_options()
        paths = self._fetched_runs()
        uris = [str(place) if local_path(place) is None else None for place in self.runs]
        for place, path, uri in zip(self.runs, paths, uris, strict=True):
            page = self._write(place, path, uri)
        if len(paths) > 1:
            page = self._compare(paths, uris)
        if self.open and not webbrowser.open(page.resolve().as_uri()):
            print("no browser was found; open the file above")

    def _check_options(self) -> None:
        """Raise a UsageError for an option that is missing or cannot be used."""
        from adios_ray.places import check_output_file, require_local
        from adios_ray.tracking.report.comparison import MARK
        from adios_ray.tracking.report.inspection import MOST_IMAGES

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

    def _fetched_runs(self) -> list[Path]:
        """Return the directory of each run, of a run at a URI that of its copy.

        Raises:
            UsageError: If one is not that of a run, or is named twice.
        """
        from adios_ray.run_storage import fetched_run

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
        return paths

    def _write(self, place: Location, path: Path, uri: str | None) -> Path:
        """Write the report of a run, to its URI too, and print where; return the local file."""
        from adios_ray.console import say_aside
        from adios_ray.places import fetched, insist
        from adios_ray.tracking.report.inspection import inspect_best
        from adios_ray.tracking.report.page import write_report
        from adios_ray.tracking.report.run_data import read_run

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
        return page

    def _compare(self, paths: Sequence[Path], uris: Sequence[str | None]) -> Path:
        """Write the page that compares the runs, and print where; return the local file."""
        from adios_ray.places import delivered
        from adios_ray.tracking.report.comparison import write_comparison
        from adios_ray.tracking.report.run_data import read_run

        # A local path may end in "..": only a resolved one has a folder above it that is its parent.
        first = Store(uris[0] or paths[0].resolve())
        output = self.output or f"{split_location(str(first))[0]}/comparison.html"
        with delivered(output) as page:
            write_comparison([read_run(path, uri) for path, uri in zip(paths, uris, strict=True)], page)
        print(output)
        return page

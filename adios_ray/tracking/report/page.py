"""Writing a run's report: gathers its sections and renders the template."""

import base64
import functools
import gzip
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import plotly.offline
from markupsafe import Markup

from adios_ray.files import atomic_write
from adios_ray.measures import MEASURES
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking import lineage
from adios_ray.tracking.environment import environment_of
from adios_ray.tracking.formatting import HEADINGS, duration, value_text
from adios_ray.tracking.live import exploit_line
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.report import charts, search_charts
from adios_ray.tracking.report.charts import ChartData
from adios_ray.tracking.report.features import feature_section
from adios_ray.tracking.report.figures import Figure
from adios_ray.tracking.report.importance import importance_of
from adios_ray.tracking.report.inspection import read_inspection
from adios_ray.tracking.report.masks import MaskSection, mask_section
from adios_ray.tracking.report.outcome import outcome_of, search_course
from adios_ray.tracking.report.run_data import RunData, read_run
from adios_ray.tracking.report.verdicts import verdicts

_FOLDER = Path(__file__).parent


class Event(NamedTuple):
    """Something that happened in a run."""

    time: datetime
    epoch: int | None
    trial: str
    kind: str
    text: str


def write_report(run_dir: Path, uri: str | None = None, summary: RunSummary | None = None) -> Path:
    """Write ``report.html`` from the run's files as they are now; it loads no other file and needs no network.

    Args:
        run_dir: The run directory, or a copy of the run.
        uri: URI of the run if this is a copy.
        summary: The outcome, if it is not yet written down.

    Raises:
        RecordError: If a file of the run is damaged.
    """
    run = read_run(run_dir, uri, summary)
    path = RunDirectory(run_dir).report
    atomic_write(path, render("report.html.j2", _context(run)).encode())
    return path


def render(template: str, context: dict[str, Any]) -> str:
    """Render a page of this package from ``context``, whose ``charts`` are plotly figures by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,  # names of trials, paths and the configuration come from files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": MEASURES["knn"].text, "value": value_text, "duration": duration}
    environment.globals |= {
        "style": Markup((_FOLDER / "page.css").read_text()),
        "script": Markup((_FOLDER / "page.js").read_text()),
        "plotly": _plotly() if context["charts"] else "",
        "written": datetime.now(UTC),
    }
    return environment.get_template(template).render(context)


@functools.cache
def _plotly() -> str:
    """Return plotly's JavaScript, compressed to 1.9 of its 4.8 MB, in base64; the browser unpacks it."""
    return base64.b64encode(gzip.compress(plotly.offline.get_plotlyjs().encode(), 6, mtime=0)).decode()


def _context(run: RunData) -> dict[str, Any]:
    """Gather what the template shows."""
    colors = charts.trial_colors(run.by_trial, run.path_of_best)
    summary, measure = run.summary, run.measure
    chance = summary.chance if summary and measure.is_share else None
    path = [part for part in run.path_of_best if part.trial in run.by_trial]
    population = ChartData(run, colors, chance, path)
    masks, found = mask_section(run), verdicts(run)
    inspection = read_inspection(run.path)
    features = feature_section(inspection) if inspection else None
    of_values = charts.value_charts(population) if run.rows else {}
    importance = importance_of(run)
    shares = search_charts.time_shares(run)
    timed = any(sum(parts.values()) > 0 for parts in shares.values())
    context = {
        "run": run,
        "name": run.name,
        "summary": summary,
        "measure": measure,
        "outcome": outcome_of(run, found),
        "course": search_course(run) if run.rows else "",
        "verdicts": found,
        "population": population,
        "headings": HEADINGS,
        "searched": list(of_values),
        "importance": importance,
        "masks": masks,
        "events": sorted(_events(run), key=lambda event: event.time),
        "table": _table(population),
        "shares": shares if timed else {},
        "time_parts": search_charts.TIME_PARTS,
        "elapsed": _elapsed(run),
        "refusals": run.refusals,
        "drops": run.drops,
        "environment": environment_of(run.path),
        "has_evaluation_time": any(math.isfinite(row.evaluate_s) for row in run.rows),
        "has_checkpoint_time": any(math.isfinite(row.checkpoint_s) for row in run.rows),
        "features": features,
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
        "charts": {
            **(_population_charts(population) if run.rows else {}),
            **{f"value-{number}": figure for number, figure in enumerate(of_values.values())},
            **({"importance": search_charts.importance_chart(importance)} if importance else {}),
            **({"slots": _slot_charts(masks)} if masks and len(masks.statistics) > 1 else {}),
            **(features.charts if features else {}),
            **({"time": search_charts.time_chart(shares)} if timed else {}),
        },
    }
    return context | {"data": _page_data(context)}


def _page_data(context: dict[str, Any]) -> dict[str, Any]:
    """Gather what the page's script reads."""
    data: dict[str, Any] = {"charts": context["charts"]}
    masks: MaskSection | None = context["masks"]
    if masks and masks.sheets:
        data["sheets"] = [sheet._asdict() for sheet in masks.sheets]
        data["sheet"] = {"cell": 80, "images": masks.images, "colors": masks.colors}
    if context["features"]:
        data["sprites"] = context["features"].sprites
    if "lineage" in context["charts"]:
        # In the order of the chart's markers, which the last trace draws.
        known = [e for e in context["run"].exploits if {e.trial, e.donor} <= context["run"].by_trial.keys()]
        data["decisions"] = [{"point": point, "text": exploit_line(e)} for point, e in enumerate(known)]
    return data


def _population_charts(population: ChartData) -> dict[str, Figure]:
    """Draw the charts of all trials; those that need a decision or a score only where there is one."""
    run = population.run
    drawn = {"overlap": charts.overlap_chart(population), "slot_size": charts.slot_size_chart(population)}
    if run.final_rows():
        drawn["fitness"] = charts.fitness_chart(population)
    if len(run.final_rows()) > 1 and run.searched:
        drawn["parallel"] = search_charts.parallel_chart(population)
    if run.evolves:
        drawn["lineage"] = charts.lineage_chart(population)
    if any(exploit.copies for exploit in run.exploits):
        drawn["survival"] = search_charts.survival_chart(population)
    return drawn


def _slot_charts(masks: MaskSection) -> Figure:
    return search_charts.slot_charts(masks.statistics, masks.agreements, masks.colors)


def _table(population: ChartData) -> dict[str, Any]:
    """Tabulate the fitness of each trial at each epoch, with copies and the best trial's ancestry marked."""
    run = population.run
    valid = [row.fitness for row in run.rows if not math.isnan(row.fitness)]
    return {
        "epochs": sorted({row.epoch for row in run.rows}),
        "cells": {(row.trial, row.epoch): row for row in run.rows},
        "copies": {(e.trial, e.epoch): e.donor for e in run.exploits if e.copies},
        "traced": {
            (row.trial, row.epoch) for row in run.rows if lineage.holder(population.path, row.epoch) == row.trial
        },
        "low": min(valid, default=0.0),
        "range": (max(valid, default=0.0) - min(valid, default=0.0)) or 1.0,
    }


def _elapsed(run: RunData) -> float:
    """Return the seconds that the run took, or from its first to its last report so far."""
    times = [row.time for row in run.rows]
    if run.summary is not None:
        return run.summary.seconds
    return (max(times) - min(times)).total_seconds() if times else 0.0


def _events(run: RunData) -> Iterator[Event]:
    """Iterate over what happened: decisions, notes, trials without a score, and trials that ended early."""
    for event in run.events:
        if event.kind not in ("exploit", "refusal"):  # the lineage has their numbers, and those of earlier versions
            yield Event(event.time, event.epoch, event.trial, event.kind, event.text)
    for exploit in run.exploits:
        kind = "copied" if exploit.copies else "changed values"
        yield Event(exploit.time, exploit.epoch, exploit.trial, kind, f"{exploit.donor}: {exploit.changes}")
    for refusal in run.refusals:
        better = run.measure.difference_text(refusal.difference)
        text = f"{refusal.donor}: better by {better}, p {refusal.p:.2g}"
        yield Event(refusal.time, refusal.epoch, refusal.trial, "refused", text)
    for row in run.rows:
        if math.isnan(row.fitness):
            yield Event(row.time, row.epoch, row.trial, "warning", "diverged or collapsed: no score")
    if run.summary is not None and not run.evolves:
        for rows in run.by_trial.values():
            if rows[-1].epoch < run.summary.epochs and not math.isnan(rows[-1].fitness):
                yield Event(rows[-1].time, rows[-1].epoch, rows[-1].trial, "stopped", "early, by its score")

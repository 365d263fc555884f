"""The report of a run: one self-contained HTML file, readable while the run continues."""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from adios_ray.files import atomic_write
from adios_ray.measures import MEASURES, Measure
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking import charts, lineage, pictures, records
from adios_ray.tracking.charts import ChartData
from adios_ray.tracking.formatting import duration
from adios_ray.tracking.lineage import Ancestor
from adios_ray.tracking.records import Exploit, MaskFile, Pixels, Row, RunSummary

_MASK_EPOCHS = 5
_MASK_IMAGES = 8
_HEADINGS = {
    records.SLOTS: "Number of masks N",
    "masking.sparsity_weight": "Sparsity weight λ",
    "optimizer.encoder_lr": "Encoder learning rate",
    "optimizer.occlusion_lr": "Occlusion learning rate",
}
_CHARTS = {
    "fitness": charts.fitness_chart,
    "lineage": charts.lineage_chart,
    "overlap": charts.overlap_chart,
    "slot_size": charts.slot_size_chart,
}


@dataclass(frozen=True)
class Tile:
    """A number at the top of the report."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class MaskColumn:
    """The masks of the best trial's ancestry at one epoch."""

    epoch: int
    trial: str
    slots: int
    cells: list[str]
    """Data URIs of the images with their slots in color."""


@dataclass(frozen=True)
class MaskSection:
    """The pictures of masks; ``images`` has K data URIs."""

    images: list[str]
    columns: list[MaskColumn]
    slots: list[tuple[str, float]]
    """Color and mean mask value of each slot at the last epoch."""
    masked: list[list[str]]
    """Data URIs of x * (1 - m_k) at the last epoch, K lists of N each."""
    pixelated: bool


def spread(values: Sequence[int], count: int) -> list[int]:
    """Choose up to ``count`` (>= 2) evenly spread values, among them the first and the last."""
    last = len(values) - 1
    picks = sorted({round(i * last / (count - 1)) for i in range(count)}) if last > 0 else range(last + 1)
    return [values[i] for i in picks]


def _data_uri(image: Pixels) -> str:
    media, content = pictures.encode(image)
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def _ancestral_masks(run_dir: Path, path: Sequence[Ancestor]) -> Iterator[tuple[int, str]]:
    """Iterate over (epoch, trial) of the stored masks that the traced weights made, ascending."""
    for ancestor in path:
        # Masks of the epoch at which weights were copied in are still of the trial's own.
        first = 0 if ancestor.after == 0 else ancestor.after + 1
        epochs = records.mask_epochs(run_dir, ancestor.trial)
        yield from ((epoch, ancestor.trial) for epoch in epochs if first <= epoch <= ancestor.until)


def _mask_section(run_dir: Path, path: Sequence[Ancestor]) -> MaskSection | None:
    """Draw the pictures along the ancestry; None if no masks are stored."""
    found = dict(_ancestral_masks(run_dir, path))
    if not found:
        return None
    columns = []
    for epoch in spread(list(found), _MASK_EPOCHS):
        stored = records.read_masks(run_dir, found[epoch], epoch)
        stored = MaskFile(stored.images[:_MASK_IMAGES], stored.masks[:_MASK_IMAGES])
        cells = [_data_uri(cell) for cell in pictures.overlay(stored.images, stored.masks)]
        columns.append(MaskColumn(epoch, found[epoch], stored.masks.shape[1], cells))
    # From here on ``stored`` is the last epoch's.
    means = (stored.masks.mean(axis=(0, 2, 3)) / 255).tolist()
    return MaskSection(
        images=[_data_uri(image) for image in stored.images],
        columns=columns,
        slots=list(zip(pictures.slot_colors(len(means)), means, strict=True)),
        masked=[[_data_uri(cell) for cell in row] for row in pictures.masked_inputs(stored.images, stored.masks)],
        pixelated=stored.images.shape[1] <= 96,
    )


def _tiles(best: Row | None, rows: Sequence[Row], exploits: Sequence[Exploit], measure: Measure) -> list[Tile]:
    """List the numbers so far of a run that has no summary yet."""
    changes, is_share = sum(exploit.changes_slots for exploit in exploits), measure.is_share
    times = [row.time for row in rows]
    elapsed = (max(times) - min(times)).total_seconds() if times else 0.0
    return [
        Tile(
            f"best {measure.label} fitness so far",
            measure.text(best.fitness, best.standard_error) if best else "–",
            _where(best.trial, best.epoch) if best else "",
        ),
        *([Tile(f"its {measure.label} accuracy", measure.text(best.accuracy) if best else "–")] if is_share else []),
        Tile(f"{measure.label} fitness, test", "–", "at the end"),
        Tile("trials", str(len({row.trial for row in rows}))),
        Tile("exploits", str(sum(exploit.copies for exploit in exploits))),
        Tile("changes of N", str(changes)),
        Tile("time", duration(elapsed), "first to last report"),
    ]


def _where(trial: str, epoch: int) -> str:
    return f"{trial}, epoch {epoch}"


def _final_tiles(summary: RunSummary, measure: Measure) -> list[Tile]:
    where, label = _where(summary.best_trial, summary.best_epoch), measure.label
    best, test = (
        measure.text(value, error)
        for value, error in (
            (summary.best_fitness, summary.best_standard_error),
            (summary.test_fitness, summary.test_standard_error),
        )
    )
    of_labels = [
        Tile(f"{label} accuracy, test", measure.text(summary.test_accuracy), "the best trial's weights"),
        Tile("chance", measure.text(summary.chance)),
    ]
    gain = []
    if summary.gain is not None:
        value = measure.text(summary.gain, summary.gain_standard_error)
        gain.append(Tile("best minus control, validation", value, summary.compared))
    return [
        *gain,
        Tile(f"best {label} fitness, validation", best, where),
        Tile(f"{label} fitness, test", test, "the best trial's weights"),
        Tile("first report's best", measure.text(summary.first_best_fitness), f"{label} fitness, validation"),
        *(of_labels if measure.is_share else []),
        Tile("trials", str(summary.population), f"{summary.epochs} epochs each"),
        Tile("exploits", str(summary.exploits), f"{summary.refusals} refused"),
        Tile("changes of N", str(summary.slot_changes)),
        Tile("time", duration(summary.seconds)),
    ]


def _by_trial(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows, which are sorted by trial and epoch, by trial."""
    return {trial: list(group) for trial, group in groupby(rows, key=lambda row: row.trial)}


def _ancestry(
    rows: Mapping[str, Sequence[Row]], exploits: Sequence[Exploit], summary: RunSummary | None
) -> list[Ancestor]:
    """Trace the ancestry of the summary's best report, or of the best so far; empty before the first report."""
    if summary is not None and summary.best_trial in rows:
        return lineage.ancestry(exploits, summary.best_trial, summary.best_epoch)
    best = lineage.best_row([row for group in rows.values() for row in group])
    return lineage.ancestry(exploits, best.trial, best.epoch) if best else []


def _table(population: ChartData) -> dict[str, Any]:
    """Tabulate the fitness of each trial at each epoch, with copies and the best trial's ancestry marked."""
    rows = [row for group in population.rows.values() for row in group]
    valid = [row.fitness for row in rows if not math.isnan(row.fitness)]
    return {
        "epochs": sorted({row.epoch for row in rows}),
        "cells": {(row.trial, row.epoch): row for row in rows},
        "copies": {(e.trial, e.epoch): e.donor for e in population.exploits},
        "traced": {(row.trial, row.epoch) for row in rows if lineage.holder(population.path, row.epoch) == row.trial},
        "low": min(valid, default=0.0),
        "range": (max(valid, default=0.0) - min(valid, default=0.0)) or 1.0,
    }


def _context(run_dir: Path) -> dict[str, Any]:
    """Gather what the template shows."""
    rows, exploits = records.read_results(run_dir), records.read_lineage(run_dir)
    summary, config = records.read_summary(run_dir), records.read_config(run_dir)
    measure = records.measure_of(config)
    by_trial = _by_trial(rows)
    path = _ancestry(by_trial, exploits, summary)
    colors = charts.trial_colors(by_trial, path)
    chance = summary.chance if summary and measure.is_share else None
    population = ChartData(by_trial, exploits, path, colors, chance, measure)
    of_values = charts.value_charts(population)
    return {
        "name": run_dir.resolve().name,
        "summary": summary,
        "measure": measure,
        "tiles": _final_tiles(summary, measure) if summary else _tiles(lineage.best_row(rows), rows, exploits, measure),
        "population": population,
        "refusals": records.read_refusals(run_dir),
        "drops": records.read_drops(run_dir),
        "charts": {**{name: draw(population) for name, draw in _CHARTS.items()}, **of_values} if rows else {},
        "searched": {path: _HEADINGS.get(path, path) for path in of_values},
        "masks": _mask_section(run_dir, path),
        "table": _table(population),
        "config": json.dumps(config, indent=2, ensure_ascii=False),
        "written": datetime.now(UTC),
    }


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from the run's files as they are now; it loads no other file and needs no network.

    Raises:
        RecordError: If a file of the run is damaged.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of trials, paths and the configuration come from files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = MEASURES["knn"].text
    page = environment.get_template("report.html.j2").render(_context(run_dir), plotlyjs=plotly.offline.get_plotlyjs())
    path = RunDirectory(run_dir).report
    atomic_write(path, page.encode())
    return path

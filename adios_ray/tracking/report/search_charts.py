"""Charts of the search as a whole: parallel coordinates, importance, families, slots and time."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from adios_ray.tracking import lineage
from adios_ray.tracking.formatting import symbol, value_text
from adios_ray.tracking.report.charts import ChartData, small_figure
from adios_ray.tracking.report.figures import GRAY, Figure, epochs_to, figure_layout, plotly_text, value_axis
from adios_ray.tracking.report.importance import Importance
from adios_ray.tracking.report.mask_statistics import SlotStatistics
from adios_ray.tracking.report.run_data import RunData

_LOW, _HIGH = (94, 96, 178), (240, 132, 36)
"""Colors of the lowest and the highest fitness; both have a contrast of 3 to 1 on white and on black."""
TIME_PARTS = {
    "training": "#0077bb",
    "waiting for data": "#ee7733",
    "evaluation": "#009988",
    "checkpoints": "#aa4499",
    "exploits": "#ccbb44",
    "idle": "#9aa0a6",
}
"""Parts of a trial's time, with their colors."""


def parallel_chart(population: ChartData) -> Figure:
    """Draw parallel coordinates lying on their side: a row for each searched value, a line for each trial.

    A row spans the value's bounds, or what occurs where it has none, on its scale; the last row is the fitness. Rows
    instead of columns keep the names readable on narrow screens.
    """
    run = population.run
    rows = sorted(run.final_rows(), key=lambda row: row.fitness)
    paths, text = run.searched, run.measure.text
    scales = {path: _Scale(run, path, [row.values.get(path) for row in rows]) for path in paths}
    low, high = rows[0].fitness, rows[-1].fitness
    names = [*(symbol(path) for path in paths), "fitness"]
    traces = []
    for row in rows:
        share = (row.fitness - low) / ((high - low) or 1.0)
        values = [*(value_text(row.values.get(path, "–")) for path in paths), text(row.fitness, row.standard_error)]
        best = row.trial == population.best
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "meta": row.trial,
                "x": [*(scales[path].position(row.values.get(path)) for path in paths), share],
                "y": list(range(len(names))),
                "customdata": [plotly_text(value) for value in values],
                "hovertemplate": f"<b>{plotly_text(row.trial)}</b><br>%{{customdata}}<extra></extra>",
                "line": {"color": _between(share), "width": 4 if best else 1.8},
                "marker": {"size": 8 if best else 5, "color": _between(share)},
                "opacity": 1.0 if best or len(rows) <= 12 else 0.6,
            }
        )
    ends = [*(scales[path].ends for path in paths), (text(low), text(high))]
    style = {"showarrow": False, "font": {"size": 11}, "yshift": -11}
    notes = [
        {**style, "x": x, "y": y, "text": plotly_text(pair[x]), "xanchor": ("left", "right")[x]}
        for y, pair in enumerate(ends)
        for x in (0, 1)
    ]
    ticks = {"tickvals": list(range(len(names))), "ticktext": [_wrapped(name) for name in names]}
    layout = figure_layout(
        60 + 52 * len(names),
        xaxis={"range": [-0.03, 1.03], "showticklabels": False, "ticks": "", "zeroline": False, "showgrid": False},
        yaxis=value_axis(**ticks, range=[len(names) - 0.4, -0.5], automargin=True),
        annotations=notes,
    )
    return {"data": traces, "layout": layout}


def _wrapped(name: str) -> str:
    """Break a path after its dots, so that it does not take half of a narrow screen."""
    return plotly_text(name).replace(".", ".<br>").replace(" ", "<br>")


class _Scale:
    """Places the values of one row of the parallel coordinates."""

    def __init__(self, run: RunData, path: str, values: Sequence[Any]) -> None:
        self._bounds = run.bounds.get(path)
        if self._bounds:
            self.ends = value_text(self._bounds.low), value_text(self._bounds.high)
        else:
            different = _sorted_values(values)
            self._order = [_key(value) for value in different]
            self.ends = value_text(different[0]), value_text(different[-1])

    def position(self, value: Any) -> float | None:
        if value is None:
            return None
        if self._bounds:
            return self._bounds.position(value)
        return self._order.index(_key(value)) / ((len(self._order) - 1) or 1)


def _sorted_values(values: Sequence[Any]) -> list[Any]:
    """Sort the different values: numbers by size, everything else as text."""
    different = list({_key(value): value for value in values if value is not None}.values()) or ["–"]
    if all(isinstance(value, int | float) for value in different):
        return sorted(different)
    return sorted(different, key=str)


def _key(value: Any) -> str:
    """Return what tells a value apart from others: lists have no hashes, and texts of numbers are rounded."""
    return json.dumps(value, sort_keys=True)


def _between(share: float) -> str:
    parts = (round(a + share * (b - a)) for a, b in zip(_LOW, _HIGH, strict=True))
    return f"rgb({', '.join(map(str, parts))})"


def importance_chart(importance: Importance) -> Figure:
    """Draw a bar for each searched value with its standard error; the band of noise is shaded."""
    names = [_wrapped(symbol(path)) for path in importance.values]
    means = [mean for mean, _ in importance.values.values()]
    errors = [error for _, error in importance.values.values()]
    colors = ["#0077bb" if mean > importance.noise else GRAY for mean in means]
    values = importance.values.values()
    least, most = min(0.0, *(m - e for m, e in values)), max(importance.noise, *(m + e for m, e in values))
    span = (most - least) or 1.0
    band = {"type": "rect", "xref": "x", "yref": "paper", "x0": 0, "x1": importance.noise, "y0": 0, "y1": 1}
    style = {"fillcolor": "rgba(128, 136, 144, 0.22)", "line": {"width": 0}, "layer": "below"}
    note = {"text": "noise", "textposition": "top right", "font": {"size": 11}}
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "x": means,
                "y": list(range(len(names))),
                "error_x": {"type": "data", "array": errors, "thickness": 1.2, "width": 4, "color": GRAY},
                "marker": {"color": colors},
                "customdata": [f"{mean:.3f} ± {error:.3f}" for mean, error in importance.values.values()],
                "hovertemplate": "%{customdata}<extra></extra>",
                "width": 0.55,
            }
        ],
        "layout": figure_layout(
            70 + 42 * len(names),
            xaxis={
                "title": {"text": "loss of R² when shuffled", "standoff": 6},
                "range": [least - 0.03 * span, most + 0.05 * span],
                "automargin": True,
                "nticks": 6,
            },
            yaxis=value_axis(
                tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6], showgrid=False
            ),
            shapes=[{**band, **style, "label": note}] if importance.noise > 0 else [],
        ),
    }


def survival_chart(population: ChartData) -> Figure:
    """Draw how many trials descend from each founder over epochs, stacked, without those that have left by then."""
    run = population.run
    epochs = sorted({row.epoch for row in run.rows})
    left = {drop.trial: drop.epoch for drop in run.drops}
    counts = [
        # At epoch + 1: a copy after an epoch counts from then on.
        Counter(
            lineage.ancestry(run.exploits, trial, epoch + 1)[0].trial
            for trial in run.by_trial
            if left.get(trial, math.inf) > epoch
        )
        for epoch in epochs
    ]
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "families",
            "meta": founder,
            "x": [0, *epochs],
            "y": [1, *(count[founder] for count in counts)],
            "line": {"color": population.colors[founder], "width": 1, "shape": "hv"},
            "hovertemplate": f"%{{y}} trials descend from <b>{plotly_text(founder)}</b>"
            "<br>after epoch %{x}<extra></extra>",
        }
        for founder in run.by_trial
    ]
    trials = len(run.by_trial)
    axis = value_axis(dtick=math.ceil(trials / 7), range=[0, trials])
    return small_figure(population, traces, axis)


def slot_charts(statistics: dict[int, SlotStatistics], agreements: dict[int, float], colors: Sequence[str]) -> Figure:
    """Draw the sizes of the winner's slots over epochs; and overlap, entropy and agreement between epochs, dashed."""
    epochs = list(statistics)
    slots = max(len(found.sizes) for found in statistics.values())
    common = {"type": "scatter", "mode": "lines+markers", "marker": {"size": 5}}
    sizes = [
        {
            **common,
            "x": epochs,
            "y": [found.sizes[k] if k < len(found.sizes) else None for found in statistics.values()],
            "line": {"color": colors[k], "width": 2},
            "name": f"slot {k + 1}",
            "hovertemplate": f"slot {k + 1}: %{{y:.1%}}<br>epoch %{{x}}<extra></extra>",
        }
        for k in range(slots)
    ]
    others = {
        "largest overlap": (epochs, [found.overlap for found in statistics.values()], "#cc3311"),
        "entropy": (epochs, [found.entropy for found in statistics.values()], "#aa4499"),
        "agreement": (list(agreements), list(agreements.values()), "#009988"),
    }
    lines = [
        {
            **common,
            "x": x,
            "y": y,
            "yaxis": "y2",
            "line": {"color": color, "width": 1.8, "dash": "dash"},
            "name": name,
            "hovertemplate": f"{name}: %{{y:.1%}}<br>epoch %{{x}}<extra></extra>",
        }
        for name, (x, y, color) in others.items()
    ]
    axis = {"tickformat": ".0%", "zeroline": False, "automargin": True, "nticks": 6, "rangemode": "tozero"}
    layout = figure_layout(
        380,
        xaxis={**epochs_to(max(epochs), ticks=8), "anchor": "y2"},
        yaxis={**axis, "domain": [0.56, 1.0]},
        yaxis2={**axis, "domain": [0.0, 0.44], "range": [0, 1.03]},
    )
    layout |= {"showlegend": True, "legend": {"orientation": "h", "y": -0.22}}
    return {"data": [*sizes, *lines], "layout": layout}


def time_shares(run: RunData) -> dict[str, dict[str, float]]:
    """Compute the seconds that each trial spent in each part of ``TIME_PARTS``, by trial and part.

    Reports of earlier versions lack most of these: without seconds of training, what is not idle is training.
    """
    shares = {}
    for trial, rows in run.by_trial.items():
        parts = dict.fromkeys(TIME_PARTS, 0.0)
        for before, row in zip([rows[0], *rows], rows, strict=False):
            span = (row.time - before.time).total_seconds()
            trained = row.train_s if math.isfinite(row.train_s) else max(0.0, span - row.idle_s)
            parts["training"] += trained * (1 - row.data_wait_fraction)
            parts["waiting for data"] += trained * row.data_wait_fraction
            loading = _known(row.load_s)
            parts["evaluation"] += _known(row.evaluate_s)
            parts["checkpoints"] += _known(row.checkpoint_s)
            parts["exploits"] += loading
            parts["idle"] += max(0.0, row.idle_s - loading)
        shares[trial] = parts
    return shares


def _known(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else 0.0


def time_chart(shares: dict[str, dict[str, float]]) -> Figure:
    """Draw a bar for each trial, and one for all, of the shares of its time."""
    total = {part: sum(parts[part] for parts in shares.values()) for part in TIME_PARTS}
    bars = {"all trials": total, **shares}
    sums = {name: sum(parts.values()) or 1.0 for name, parts in bars.items()}
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "x": [parts[part] / sums[name] for name, parts in bars.items()],
            "y": list(range(len(bars))),
            "customdata": [[plotly_text(name), parts[part]] for name, parts in bars.items()],
            "hovertemplate": f"<b>%{{customdata[0]}}</b><br>{part} %{{x:.1%}}, %{{customdata[1]:.0f}} s<extra></extra>",
            "marker": {"color": color},
        }
        for part, color in TIME_PARTS.items()
    ]
    layout = figure_layout(
        60 + 24 * len(bars),
        barmode="stack",
        bargap=0.3,
        # Quarters are exact: a sum of fifths exceeds 1, and the last tick would be missing.
        xaxis={"tickformat": ".0%", "range": [0, 1], "automargin": True, "dtick": 0.25, "zeroline": False},
        yaxis=value_axis(
            tickvals=list(range(len(bars))),
            ticktext=[plotly_text(name) for name in bars],
            range=[len(bars) - 0.4, -0.6],
            showgrid=False,
        ),
    )
    layout["margin"]["r"] = 26  # room for half of the last tick's label, which plotly hides otherwise
    return {"data": traces, "layout": layout}

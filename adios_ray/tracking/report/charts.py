"""The report's charts as plotly figures: plain dicts of data and layout, without the page's own colors.

A trial has the same color in every chart. Names come from files and are escaped, since plotly reads text as markup.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adios_ray.tracking.decisions import Exploit
from adios_ray.tracking.formatting import SLOTS
from adios_ray.tracking.lineage import Ancestor, holder
from adios_ray.tracking.report.figures import GRAY, PALETTE, Figure, epochs_to, figure_layout, plotly_text, value_axis
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.results import Row

HALO = "rgba(240, 180, 0, 0.5)"
_LABELED_EXPLOITS = 12
_MARKED_REPORTS = 30


@dataclass(frozen=True)
class ChartData:
    """The data that all charts are drawn from."""

    run: RunData
    colors: Mapping[str, str]
    """The color of each trial."""
    chance: float | None
    """Accuracy of guessing; None where it is unknown or fitness is not an accuracy."""
    path: Sequence[Ancestor]
    """Ancestry of the best report, oldest first; empty before the first report."""

    @property
    def best(self) -> str | None:
        """The trial of the best report."""
        return self.path[-1].trial if self.path else None


def trial_colors(rows: Mapping[str, Sequence[Row]], path: Sequence[Ancestor]) -> dict[str, str]:
    """Choose a color for each trial; of more than eight, the best one's ancestry and the next best, others are gray."""
    trials = sorted(rows)
    if len(trials) > len(PALETTE):
        fitness = {t: max((r.fitness for r in rows[t] if not math.isnan(r.fitness)), default=-1.0) for t in trials}
        family = [ancestor.trial for ancestor in reversed(path)]
        trials = list(dict.fromkeys(family + sorted(trials, key=lambda t: -fitness[t])))
    colored = dict(zip(trials, PALETTE, strict=False))
    return {trial: colored.get(trial, GRAY) for trial in sorted(rows)}


def _number(value: float) -> float | None:
    """Return the value, or None (a gap in the curve) where it is not finite."""
    return value if math.isfinite(value) else None


def _drawn(value: Any) -> Any:
    """Prepare a value for plotly: non-finite numbers become gaps, and text is escaped."""
    if isinstance(value, float):
        return _number(value)
    return plotly_text(value) if isinstance(value, str) else value


def epoch_axis(population: ChartData, ticks: int) -> Figure:
    """Make the horizontal axis, which is the same in all charts except for its number of ticks."""
    return epochs_to(max(row.epoch for row in population.run.rows), ticks)


def _log_values(low: float, high: float) -> Figure:
    """Make a logarithmic vertical axis over [low, high], both > 0.

    Ticks are at round numbers, or at both ends if fewer than two of them are inside.
    """
    ratio = high / low
    mantissas = (1, 1.5, 2, 3, 5, 7) if ratio < 8 else (1, 2, 5) if ratio < 200 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounded = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
    inside = [tick for tick in rounded if 0.99 * low <= tick <= 1.01 * high]
    ticks = inside if len(inside) >= 2 else sorted({low, high})
    ends = [math.log10(low) - 0.06, math.log10(high) + 0.06]
    return value_axis(type="log", range=ends, tickvals=ticks, ticktext=[f"{tick:.3g}" for tick in ticks])


def trial_line(population: ChartData, trial: str, width: float) -> Figure:
    """Style a trial's line: the best one is wider, those without a color of their own are thin and faint."""
    colored = population.colors[trial] != GRAY
    bold = 1.6 if trial == population.best else 1.0
    line = {"color": population.colors[trial], "width": width * bold if colored else 1.0}
    return {"line": line, "opacity": 1.0 if colored else 0.55}


def _trace(population: ChartData, trial: str, read: Callable[[Row], Any], what: str) -> Figure:
    """Draw one trial's curve; ``what`` is plotly's format of a value, a d3 format after a colon or nothing."""
    rows = population.run.by_trial[trial]
    values = [_drawn(read(row)) for row in rows]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) <= _MARKED_REPORTS else "lines",
        "marker": {"size": 4},
        "meta": trial,
        "x": [row.epoch for row in rows],
        "y": values,
        "customdata": values,
        "hovertemplate": f"<b>{plotly_text(trial)}</b><br>epoch %{{x}}<br>%{{customdata{what}}}<extra></extra>",
        **trial_line(population, trial, 1.9),
    }


def _fitness_trace(population: ChartData, trial: str) -> Figure:
    """Draw one trial's fitness with its standard errors; shows the accuracy on hover."""
    measure, rows = population.run.measure, population.run.by_trial[trial]
    trace = _trace(population, trial, lambda row: row.fitness, "")
    shown = [measure.scores_text(row.fitness, row.standard_error, row.accuracy) for row in rows]
    errors = [row.standard_error for row in rows]
    if len(rows) <= _MARKED_REPORTS and any(error is not None for error in errors):
        trace["error_y"] = {"type": "data", "array": errors, "thickness": 1, "width": 0}
    return {**trace, "customdata": shown}


def _steps(population: ChartData, trial: str, path: str, what: str, shift: float = 0.0) -> Figure:
    """Draw one trial's searched value as steps, ``shift`` above its height.

    A report's value was in use since the report before it, so that each step ends at its report.
    """
    trace = _trace(population, trial, lambda row: row.values.get(path), what)
    trace["x"] = [0, *trace["x"]]
    trace["customdata"] = [trace["customdata"][0], *trace["customdata"]]
    trace["y"] = [value + shift if shift and value is not None else value for value in trace["customdata"]]
    trace["mode"] = "lines"
    trace["line"]["shape"] = "vh"
    return trace


def back_to_front(population: ChartData) -> list[str]:
    """Sort trials in drawing order: gray ones first, the best last."""
    return sorted(population.run.by_trial, key=lambda t: (t == population.best, population.colors[t] != GRAY, t))


def _fitness_at(population: ChartData, trial: str, epoch: int) -> float | None:
    return next((_number(row.fitness) for row in population.run.by_trial.get(trial, ()) if row.epoch == epoch), None)


def _descent(population: ChartData) -> Figure:
    """Draw a halo along the reports of the best trial's ancestry."""
    last = population.path[-1].until if population.path else 0
    epochs = sorted({row.epoch for row in population.run.rows if row.epoch <= last})
    held = [(epoch, _fitness_at(population, holder(population.path, epoch) or "", epoch)) for epoch in epochs]
    points = [(epoch, fitness) for epoch, fitness in held if fitness is not None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [epoch for epoch, _ in points],
        "y": [fitness for _, fitness in points],
        "hoverinfo": "skip",
        "line": {"color": HALO, "width": 11},
    }


def _arrow(population: ChartData, exploit: Exploit, start: float, end: float) -> Figure:
    """Draw an arrow at the exploit's epoch from the donor's height to the trial's, in the trial's color."""
    return {
        **{"x": exploit.epoch, "y": end, "ax": exploit.epoch, "ay": start, "axref": "x", "ayref": "y"},
        **{"showarrow": True, "arrowhead": 2, "arrowsize": 1.1, "arrowwidth": 1.4, "standoff": 3, "startstandoff": 3},
        **{"text": "", "arrowcolor": population.colors.get(exploit.trial, GRAY)},
    }


def _exploit_hover(exploit: Exploit) -> str:
    changes = plotly_text(exploit.changes.replace("->", "→")).replace(", ", "<br>")
    names = f"{plotly_text(exploit.trial)} ← {plotly_text(exploit.donor) if exploit.copies else 'its own weights'}"
    test = "" if exploit.p is None else f", p {exploit.p:.2g}"
    return f"<b>{names}</b><br>after epoch {exploit.epoch}{test}<br>{changes}<extra></extra>"


def _exploit_markers(population: ChartData, exploits: Sequence[Exploit], heights: Sequence[float]) -> Figure:
    """Draw the arrows' heads, which show on hover what changed."""
    colors = [population.colors.get(exploit.trial, GRAY) for exploit in exploits]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [exploit.epoch for exploit in exploits],
        "y": list(heights),
        "hovertemplate": [_exploit_hover(exploit) for exploit in exploits],
        "marker": {"color": colors, "size": 9, "symbol": "circle", "line": {"color": "#fff", "width": 1.5}},
    }


def _refusal_markers(population: ChartData, heights: Mapping[str, int]) -> Figure:
    """Draw a cross at each trial and epoch at which copies were refused; shows which, with their p, on hover."""
    known = [refusal for refusal in population.run.refusals if refusal.trial in heights]
    texts: dict[tuple[str, int], list[str]] = {}
    for refusal in known:
        better = population.run.measure.difference_text(refusal.difference)
        text = f"{plotly_text(refusal.donor)}, better by {better}, p {refusal.p:.2g}"
        texts.setdefault((refusal.trial, refusal.epoch), []).append(text)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [epoch for _, epoch in texts],
        "y": [heights[trial] for trial, _ in texts],
        "hovertemplate": [
            f"<b>{plotly_text(trial)}</b> did not copy after epoch {epoch}<br>{'<br>'.join(lines)}<extra></extra>"
            for (trial, epoch), lines in texts.items()
        ],
        "marker": {"color": GRAY, "size": 8, "symbol": "x-thin", "line": {"color": GRAY, "width": 1.6}},
    }


def _slots_text(exploit: Exploit) -> str:
    return f"N {exploit.old.get(SLOTS)}→{exploit.new.get(SLOTS)}" if exploit.changes_slots else ""


def _slot_notes(exploits: Sequence[Exploit], heights: Sequence[float]) -> list[Figure]:
    """Write the changes of N beside the arrows' heads if there are few enough exploits to read them."""
    if len(exploits) > _LABELED_EXPLOITS:
        return []
    style = {"showarrow": False, "xanchor": "left", "yanchor": "top", "xshift": 5, "yshift": -3, "font": {"size": 11}}
    noted = [(e, height) for e, height in zip(exploits, heights, strict=True) if _slots_text(e)]
    return [{**style, "x": e.epoch, "y": height, "text": _slots_text(e)} for e, height in noted]


def _chance_line(chance: float | None) -> Figure:
    if chance is None:
        return {}
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": chance, "y1": chance}
    label = {"text": "chance", "textposition": "end", "font": {"size": 11}}
    style = {"line": {"color": GRAY, "width": 1, "dash": "dot"}, "label": label}
    return {"shapes": [{**line, **style}]}


def fitness_chart(population: ChartData) -> Figure:
    """Draw fitness over epochs with its standard error, and an arrow from donor to trial for each exploit."""
    traces = [_fitness_trace(population, trial) for trial in back_to_front(population)]
    drawn = []
    for exploit in population.run.exploits:
        start = _fitness_at(population, exploit.donor, exploit.epoch)
        end = _fitness_at(population, exploit.trial, exploit.epoch)
        # An end is missing if a trial diverged (nan), or copied a donor that was ahead and so skipped this epoch.
        if start is not None and end is not None:
            drawn.append((exploit, start, end))
    exploits, heights = [exploit for exploit, _, _ in drawn], [end for _, _, end in drawn]
    arrows = [_arrow(population, exploit, start, end) for exploit, start, end in drawn]
    axes = {
        "xaxis": epoch_axis(population, 13),
        "yaxis": value_axis(tickformat=".0%" if population.run.measure.is_share else ".3~g"),
    }
    notes = arrows + _slot_notes(exploits, heights)
    layout = figure_layout(420, **axes, annotations=notes, **_chance_line(population.chance))
    return {"data": [_descent(population), *traces, _exploit_markers(population, exploits, heights)], "layout": layout}


def small_figure(population: ChartData, data: list[Figure], axis: Figure) -> Figure:
    """Make a small figure over epochs with this vertical axis."""
    return {"data": data, "layout": figure_layout(230, xaxis=epoch_axis(population, 8), yaxis=axis)}


def value_charts(population: ChartData) -> dict[str, Figure]:
    """Draw each searched value over epochs as steps; charts by configuration path."""
    return {path: _value_chart(population, path) for path in population.run.searched}


def _value_chart(population: ChartData, path: str) -> Figure:
    """Draw a searched value on an axis that fits: integers, a log scale for positive numbers, linear, or categories."""
    values = [row.values[path] for row in population.run.rows if path in row.values]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        traces = [_steps(population, trial, path, "") for trial in back_to_front(population)]
        return small_figure(population, traces, value_axis(type="category"))
    if all(isinstance(value, int) for value in values):
        return _whole_numbers_chart(population, path, values)
    traces = [_steps(population, trial, path, ":.3g") for trial in back_to_front(population)]
    axis = _log_values(min(values), max(values)) if min(values) > 0 else value_axis()
    return small_figure(population, [*_spread(population, path), *traces], axis)


def _spread(population: ChartData, path: str) -> list[Figure]:
    """Draw the middle 80 % of the population's values at each epoch as a band, and the median dotted."""
    at: dict[int, list[float]] = {}
    for row in population.run.rows:
        if isinstance(value := row.values.get(path), int | float):
            at.setdefault(row.epoch, []).append(float(value))
    epochs = [epoch for epoch in sorted(at) if len(at[epoch]) > 1]
    if len(epochs) < 2:
        return []
    low, middle, high = (list(map(float, line)) for line in zip(*(_quantiles(at[e]) for e in epochs), strict=True))
    common = {"type": "scatter", "mode": "lines", "x": epochs, "hoverinfo": "skip"}
    band = {"fill": "tonexty", "fillcolor": "rgba(128, 136, 144, 0.16)", "line": {"width": 0}}
    return [
        {**common, "y": low, "line": {"width": 0}},
        {**common, "y": high, **band},
        {**common, "y": middle, "line": {"color": GRAY, "width": 1.4, "dash": "dot"}},
    ]


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return low, middle, high


def _whole_numbers_chart(population: ChartData, path: str, values: Sequence[int]) -> Figure:
    """Draw integers; each trial's line is shifted by up to 0.18 so that none hides another."""
    trials = sorted(population.run.by_trial)
    shifts = {t: 0.36 * (i / max(len(trials) - 1, 1) - 0.5) for i, t in enumerate(trials)}
    traces = [_steps(population, t, path, ":d", shifts[t]) for t in back_to_front(population)]
    low, high = min(values), max(values)
    axis = value_axis(tickformat="d", dtick=1 + (high - low) // 7, tick0=low, range=[low - 0.5, high + 0.5])
    return small_figure(population, [*_spread(population, path), *traces], axis)


def overlap_chart(population: ChartData) -> Figure:
    """Draw the largest overlap of two slots over epochs."""
    traces = [_trace(population, trial, lambda row: row.slot_overlap, ":.1%") for trial in back_to_front(population)]
    return small_figure(population, traces, value_axis(tickformat=".0%", rangemode="tozero"))


def slot_size_chart(population: ChartData) -> Figure:
    """Draw the mean mask value of each trial's largest and, dotted, smallest slot over epochs."""
    largest = [_trace(population, trial, lambda row: row.mask_mean_max, ":.1%") for trial in back_to_front(population)]
    smallest = [_trace(population, trial, lambda row: row.mask_mean_min, ":.1%") for trial in back_to_front(population)]
    for trace in smallest:
        trace["line"]["dash"] = "dot"
    return small_figure(population, largest + smallest, value_axis(tickformat=".0%", rangemode="tozero"))


def _strip_line(population: ChartData, trial: str, height: int) -> Figure:
    """Draw a trial's row in the lineage."""
    last = population.run.by_trial[trial][-1].epoch
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": trial,
        "x": [0, last],
        "y": [height, height],
        "hovertemplate": f"<b>{plotly_text(trial)}</b><br>{last} epochs<extra></extra>",
        **trial_line(population, trial, 2.2),
    }


def _strip_path(path: Sequence[Ancestor], heights: Mapping[str, int]) -> Figure:
    """Draw the best trial's ancestry as a line that changes rows where weights were copied, with a star at its end."""
    points = [(epoch, heights[part.trial]) for part in path for epoch in (part.after, part.until)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [epoch for epoch, _ in points],
        "y": [height for _, height in points],
        "hoverinfo": "skip",
        "line": {"color": HALO, "width": 13},
        "marker": {"size": [0] * (len(points) - 1) + [17], "symbol": "star", "color": "#f0b400", "opacity": 1},
    }


def lineage_chart(population: ChartData) -> Figure:
    """Draw a row for each trial and an arrow for each copy of weights over a halo of the best trial's ancestry."""
    heights = {trial: height for height, trial in enumerate(sorted(population.run.by_trial))}
    known = [e for e in population.run.exploits if e.trial in heights and e.donor in heights]
    ends = [heights[exploit.trial] for exploit in known]
    lines = [_strip_line(population, trial, heights[trial]) for trial in back_to_front(population)]
    arrows = [_arrow(population, e, heights[e.donor], heights[e.trial]) for e in known]
    ticks = {"tickvals": list(heights.values()), "ticktext": [plotly_text(trial) for trial in heights]}
    axis = value_axis(**ticks, range=[len(heights) - 0.4, -0.6], showgrid=False)
    notes = arrows + _slot_notes(known, ends)
    layout = figure_layout(
        70 + max((26 if len(heights) <= 12 else 19) * len(heights), 90),
        xaxis=epoch_axis(population, 13),
        yaxis=axis,
        annotations=notes,
    )
    path = [part for part in population.path if part.trial in heights]
    refused = _refusal_markers(population, heights)
    data = [_strip_path(path, heights), *lines, refused, _exploit_markers(population, known, ends)]
    return {"data": data, "layout": layout}

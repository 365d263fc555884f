"""The report's charts as plotly figures: plain dicts of data and layout, without the page's own colors.

A trial has the same color in every chart. Names come from files and are escaped, since plotly reads text as markup.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adios_ray.measures import MEASURES, Measure
from adios_ray.tracking.lineage import Ancestor, holder
from adios_ray.tracking.records import SLOTS, Exploit, Row

Figure = dict[str, Any]

_PALETTE = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#aa4499", "#bbaa22", "#cc3311")
_GRAY = "#9aa0a6"
_HALO = "rgba(240, 180, 0, 0.5)"
_LABELED_EXPLOITS = 12
_MARKED_REPORTS = 30


@dataclass(frozen=True)
class ChartData:
    """The data that all charts are drawn from."""

    rows: Mapping[str, Sequence[Row]]
    """Each trial's reports by epoch."""
    exploits: Sequence[Exploit]
    path: Sequence[Ancestor]
    """Ancestry of the best report, oldest first; empty before the first report."""
    colors: Mapping[str, str]
    chance: float | None
    """Accuracy of guessing; None where it is unknown or fitness is not an accuracy."""
    measure: Measure = MEASURES["knn"]
    """The measure of fitness."""

    @property
    def best(self) -> str | None:
        """The trial of the best report."""
        return self.path[-1].trial if self.path else None


def trial_colors(rows: Mapping[str, Sequence[Row]], path: Sequence[Ancestor]) -> dict[str, str]:
    """Choose a color for each trial; of more than eight, the best one's ancestry and the next best, others are gray."""
    trials = sorted(rows)
    if len(trials) > len(_PALETTE):
        fitness = {t: max((r.fitness for r in rows[t] if not math.isnan(r.fitness)), default=-1.0) for t in trials}
        family = [ancestor.trial for ancestor in reversed(path)]
        trials = list(dict.fromkeys(family + sorted(trials, key=lambda t: -fitness[t])))
    colored = dict(zip(trials, _PALETTE, strict=False))
    return {trial: colored.get(trial, _GRAY) for trial in sorted(rows)}


def _label(text: str) -> str:
    """Escape text so that plotly shows it literally, neither as markup nor as a template."""
    return html.escape(text).replace("%", "&#37;")


def _number(value: float) -> float | None:
    """Return the value, or None (a gap in the curve) where it is not finite."""
    return value if math.isfinite(value) else None


def _drawn(value: Any) -> Any:
    """Prepare a value for plotly: non-finite numbers become gaps, and text is escaped."""
    if isinstance(value, float):
        return _number(value)
    return _label(value) if isinstance(value, str) else value


def _layout(height: int, **more: Any) -> Figure:
    margin = {"l": 8, "r": 14, "t": 10, "b": 8}
    return {"height": height, "margin": margin, "showlegend": False, "hovermode": "closest", **more}


def _epochs(population: ChartData, ticks: int) -> Figure:
    """Make the horizontal axis, which is the same in all charts except for its number of ticks."""
    last = max(row.epoch for rows in population.rows.values() for row in rows)
    # The same explicit range everywhere, so that epochs line up between charts; plotly would fit each to its own data.
    steps = (mantissa * 10**decade for decade in range(9) for mantissa in (1, 2, 5))
    step = next(step for step in steps if last <= ticks * step)
    axis = {"title": {"text": "epoch", "standoff": 6}, "tickformat": "d", "zeroline": False, "automargin": True}
    return {**axis, "range": [-0.01 * last, 1.025 * last], "dtick": step}


def _values(**more: Any) -> Figure:
    """Make a vertical axis."""
    return {"zeroline": False, "automargin": True, "nticks": 7, **more}


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
    return _values(type="log", range=ends, tickvals=ticks, ticktext=[f"{tick:.3g}" for tick in ticks])


def _line(population: ChartData, trial: str, width: float) -> Figure:
    colored = population.colors[trial] != _GRAY
    bold = 1.6 if trial == population.best else 1.0
    line = {"color": population.colors[trial], "width": width * bold if colored else 1.0}
    return {"line": line, "opacity": 1.0 if colored else 0.55}


def _trace(population: ChartData, trial: str, read: Callable[[Row], Any], what: str) -> Figure:
    """Draw one trial's curve; ``what`` is plotly's format of a value, a d3 format after a colon or nothing."""
    rows = population.rows[trial]
    values = [_drawn(read(row)) for row in rows]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) <= _MARKED_REPORTS else "lines",
        "marker": {"size": 4},
        "meta": trial,
        "x": [row.epoch for row in rows],
        "y": values,
        "customdata": values,
        "hovertemplate": f"<b>{_label(trial)}</b><br>epoch %{{x}}<br>%{{customdata{what}}}<extra></extra>",
        **_line(population, trial, 1.9),
    }


def _fitness_trace(population: ChartData, trial: str) -> Figure:
    """Draw one trial's fitness with its standard errors; shows the accuracy on hover."""
    measure, rows = population.measure, population.rows[trial]
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


def _back_to_front(population: ChartData) -> list[str]:
    """Sort trials in drawing order: gray ones first, the best last."""
    return sorted(population.rows, key=lambda t: (t == population.best, population.colors[t] != _GRAY, t))


def _fitness_at(population: ChartData, trial: str, epoch: int) -> float | None:
    return next((_number(row.fitness) for row in population.rows.get(trial, ()) if row.epoch == epoch), None)


def _descent(population: ChartData) -> Figure:
    """Draw a halo along the reports of the best trial's ancestry."""
    last = population.path[-1].until if population.path else 0
    epochs = sorted({row.epoch for rows in population.rows.values() for row in rows if row.epoch <= last})
    held = [(epoch, _fitness_at(population, holder(population.path, epoch) or "", epoch)) for epoch in epochs]
    points = [(epoch, fitness) for epoch, fitness in held if fitness is not None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [epoch for epoch, _ in points],
        "y": [fitness for _, fitness in points],
        "hoverinfo": "skip",
        "line": {"color": _HALO, "width": 11},
    }


def _arrow(population: ChartData, exploit: Exploit, start: float, end: float) -> Figure:
    """Draw an arrow at the exploit's epoch from the donor's height to the trial's, in the trial's color."""
    return {
        **{"x": exploit.epoch, "y": end, "ax": exploit.epoch, "ay": start, "axref": "x", "ayref": "y"},
        **{"showarrow": True, "arrowhead": 2, "arrowsize": 1.1, "arrowwidth": 1.4, "standoff": 3, "startstandoff": 3},
        **{"text": "", "arrowcolor": population.colors.get(exploit.trial, _GRAY)},
    }


def _exploit_hover(exploit: Exploit) -> str:
    changes = _label(exploit.changes.replace("->", "→")).replace(", ", "<br>")
    names = f"{_label(exploit.trial)} ← {_label(exploit.donor) if exploit.copies else 'its own weights'}"
    return f"<b>{names}</b><br>after epoch {exploit.epoch}<br>{changes}<extra></extra>"


def _exploit_markers(population: ChartData, exploits: Sequence[Exploit], heights: Sequence[float]) -> Figure:
    """Draw the arrows' heads, which show on hover what changed."""
    colors = [population.colors.get(exploit.trial, _GRAY) for exploit in exploits]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [exploit.epoch for exploit in exploits],
        "y": list(heights),
        "hovertemplate": [_exploit_hover(exploit) for exploit in exploits],
        "marker": {"color": colors, "size": 9, "symbol": "circle", "line": {"color": "#fff", "width": 1.5}},
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
    style = {"line": {"color": _GRAY, "width": 1, "dash": "dot"}, "label": label}
    return {"shapes": [{**line, **style}]}


def fitness_chart(population: ChartData) -> Figure:
    """Draw fitness over epochs with its standard error, and an arrow from donor to trial for each exploit."""
    traces = [_fitness_trace(population, trial) for trial in _back_to_front(population)]
    drawn = []
    for exploit in population.exploits:
        start = _fitness_at(population, exploit.donor, exploit.epoch)
        end = _fitness_at(population, exploit.trial, exploit.epoch)
        # An end is missing if a trial diverged (nan), or copied a donor that was ahead and so skipped this epoch.
        if start is not None and end is not None:
            drawn.append((exploit, start, end))
    exploits, heights = [exploit for exploit, _, _ in drawn], [end for _, _, end in drawn]
    arrows = [_arrow(population, exploit, start, end) for exploit, start, end in drawn]
    axes = {
        "xaxis": _epochs(population, 13),
        "yaxis": _values(tickformat=".0%" if population.measure.is_share else ".3~g"),
    }
    notes = arrows + _slot_notes(exploits, heights)
    layout = _layout(420, **axes, annotations=notes, **_chance_line(population.chance))
    return {"data": [_descent(population), *traces, _exploit_markers(population, exploits, heights)], "layout": layout}


def _small(population: ChartData, data: list[Figure], axis: Figure) -> Figure:
    return {"data": data, "layout": _layout(230, xaxis=_epochs(population, 8), yaxis=axis)}


def value_charts(population: ChartData) -> dict[str, Figure]:
    """Draw each searched value over epochs as steps; charts by configuration path."""
    rows = [row for rows in population.rows.values() for row in rows]
    return {path: _value_chart(population, path) for path in dict.fromkeys(path for row in rows for path in row.values)}


def _value_chart(population: ChartData, path: str) -> Figure:
    """Draw a searched value on an axis that fits: integers, a log scale for positive numbers, linear, or categories."""
    values = [row.values[path] for rows in population.rows.values() for row in rows if path in row.values]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        traces = [_steps(population, trial, path, "") for trial in _back_to_front(population)]
        return _small(population, traces, _values(type="category"))
    if all(isinstance(value, int) for value in values):
        return _whole_numbers_chart(population, path, values)
    traces = [_steps(population, trial, path, ":.3g") for trial in _back_to_front(population)]
    return _small(population, traces, _log_values(min(values), max(values)) if min(values) > 0 else _values())


def _whole_numbers_chart(population: ChartData, path: str, values: Sequence[int]) -> Figure:
    """Draw integers; each trial's line is shifted by up to 0.18 so that none hides another."""
    trials = sorted(population.rows)
    shifts = {t: 0.36 * (i / max(len(trials) - 1, 1) - 0.5) for i, t in enumerate(trials)}
    traces = [_steps(population, t, path, ":d", shifts[t]) for t in _back_to_front(population)]
    low, high = min(values), max(values)
    axis = _values(tickformat="d", dtick=1 + (high - low) // 7, tick0=low, range=[low - 0.5, high + 0.5])
    return _small(population, traces, axis)


def overlap_chart(population: ChartData) -> Figure:
    """Draw the largest overlap of two slots over epochs."""
    traces = [_trace(population, trial, lambda row: row.slot_overlap, ":.3f") for trial in _back_to_front(population)]
    return _small(population, traces, _values(rangemode="tozero"))


def slot_size_chart(population: ChartData) -> Figure:
    """Draw the mean mask value of each trial's largest and, dotted, smallest slot over epochs."""
    largest = [_trace(population, trial, lambda row: row.mask_mean_max, ":.3f") for trial in _back_to_front(population)]
    smallest = [
        _trace(population, trial, lambda row: row.mask_mean_min, ":.3f") for trial in _back_to_front(population)
    ]
    for trace in smallest:
        trace["line"]["dash"] = "dot"
    return _small(population, largest + smallest, _values(rangemode="tozero"))


def _strip_line(population: ChartData, trial: str, height: int) -> Figure:
    """Draw a trial's row in the lineage."""
    last = population.rows[trial][-1].epoch
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": trial,
        "x": [0, last],
        "y": [height, height],
        "hovertemplate": f"<b>{_label(trial)}</b><br>{last} epochs<extra></extra>",
        **_line(population, trial, 2.2),
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
        "line": {"color": _HALO, "width": 13},
        "marker": {"size": [0] * (len(points) - 1) + [17], "symbol": "star", "color": "#f0b400", "opacity": 1},
    }


def lineage_chart(population: ChartData) -> Figure:
    """Draw a row for each trial and an arrow for each copy of weights over a halo of the best trial's ancestry."""
    heights = {trial: height for height, trial in enumerate(sorted(population.rows))}
    known = [e for e in population.exploits if e.trial in heights and e.donor in heights]
    ends = [heights[exploit.trial] for exploit in known]
    lines = [_strip_line(population, trial, heights[trial]) for trial in _back_to_front(population)]
    arrows = [_arrow(population, e, heights[e.donor], heights[e.trial]) for e in known]
    ticks = {"tickvals": list(heights.values()), "ticktext": [_label(trial) for trial in heights]}
    axis = _values(**ticks, range=[len(heights) - 0.4, -0.6], showgrid=False)
    notes = arrows + _slot_notes(known, ends)
    layout = _layout(
        70 + max((26 if len(heights) <= 12 else 19) * len(heights), 90),
        xaxis=_epochs(population, 13),
        yaxis=axis,
        annotations=notes,
    )
    path = [part for part in population.path if part.trial in heights]
    data = [_strip_path(path, heights), *lines, _exploit_markers(population, known, ends)]
    return {"data": data, "layout": layout}

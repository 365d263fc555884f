"""Two or more runs side by side: what differed, and what came out."""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adios_ray.files import write_output
from adios_ray.measures import Measure
from adios_ray.tracking.formatting import HEADINGS, duration, value_text
from adios_ray.tracking.report.figures import PALETTE, Figure, epochs_to, figure_layout, plotly_text, value_axis
from adios_ray.tracking.report.outcome import LOST_CONTROLS, search_course
from adios_ray.tracking.report.page import render
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.report.significance import sureness
from adios_ray.validation import leaves

_REPEATED = (
    *("seed", "name", "storage", "resume", "take_over", "data_dir", "space"),
    *("wandb", "trackers", "cpus_per_worker", "gpus_per_worker"),
)
"""Settings that are listed but do not make two runs different experiments."""


MARK = "runs side by side</h1>"
"""In every page that compares runs."""


class Comparison(NamedTuple):
    """A row of a table: a name, and a cell for each run."""

    name: str
    cells: list[str]


def write_comparison(runs: Sequence[RunData], path: Path) -> Path:
    """Write the page that compares runs."""
    write_output(path, render("comparison.html.j2", _context(runs)).encode())
    return path


def _context(runs: Sequence[RunData]) -> dict[str, Any]:
    drawn = {"fitness": _curves(runs)} if any(run.ancestral_rows for run in runs) else {}
    return {
        "runs": runs,
        "names": names_of(runs),
        "colors": list(PALETTE),
        "verdict": verdict_between(runs),
        "outcomes": _outcomes(runs),
        "differences": differences(runs),
        "values": _values(runs),
        "charts": drawn,
        "data": {"charts": drawn},
    }


def names_of(runs: Sequence[RunData]) -> list[str]:
    """Name each run by its directory, numbered where two have the same name."""
    names = [run.name for run in runs]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


class _Experiment(NamedTuple):
    """Finished runs that differ in their seeds only.

    Attributes:
        names: Names of the runs.
        scores: Fitness of their winners on the test split.
    """

    names: list[str]
    scores: list[float]

    @property
    def text(self) -> str:
        """The names, of many the first and the number of the others."""
        names = self.names
        return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} other seeds"


def _experiments(finished: Sequence[tuple[str, RunData]]) -> list[_Experiment]:
    """Collect repetitions of the same experiment, the best first; of two runs with one seed, the first counts."""
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for name, run in finished:
        settings = _flat(run.config or {}) | _flat(run.space or {}, "space: ")
        seed = settings.get("seed", "")
        deciding = {path: value for path, value in settings.items() if path not in _REPEATED}
        assert run.summary is not None
        found.setdefault(json.dumps(deciding, sort_keys=True), {}).setdefault(seed, (name, run.summary.test_fitness))
    experiments = [_Experiment(*map(list, zip(*own.values(), strict=True))) for own in found.values()]
    return sorted(experiments, key=lambda experiment: -statistics.mean(experiment.scores))


def _verdict_over_seeds(experiments: Sequence[_Experiment], measure: Measure) -> str:
    """Compare the best two experiments, or describe a single one, by the spread between seeds.

    The spread is pooled over all experiments, so that one without a repetition can be compared too.
    """
    deviations = [score - statistics.mean(own.scores) for own in experiments for score in own.scores]
    freedom = len(deviations) - len(experiments)
    spread = math.hypot(*deviations) / math.sqrt(freedom)
    best = experiments[0]
    if len(experiments) == 1:
        mean = measure.text(statistics.mean(best.scores), spread / math.sqrt(len(best.scores)))
        return f"{best.text} differ in their seeds only: {mean} on test, with the standard error over seeds"
    second = experiments[1]
    difference = statistics.mean(best.scores) - statistics.mean(second.scores)
    error = spread * math.sqrt(1 / len(best.scores) + 1 / len(second.scores))
    sure = sureness(difference / error, freedom) if error else "the same with each seed"
    verb = "is" if len(best.names) == 1 else "are"
    ahead = measure.difference_text(difference, error)
    return f"{best.text} {verb} ahead of {second.text} by {ahead} on test, over seeds: {sure}"


def verdict_between(runs: Sequence[RunData]) -> str:
    """Say which run's winner is best on the test split, and how sure that is.

    Runs that differ in their seeds only count as repetitions of one experiment; errors are then over seeds.
    """
    if unlike := _unlike_measures(runs):
        return f"The runs measure fitness differently ({unlike}): their numbers cannot be compared."
    if not all(_same_data(a, b) for a, b in itertools.combinations(runs, 2)):
        return "The runs are of different data: their numbers cannot be compared."
    finished = [(name, run) for name, run in zip(names_of(runs), runs, strict=True) if run.summary is not None]
    if len(finished) < 2:
        return "Fewer than two of the runs have finished."
    experiments = _experiments(finished)
    if any(len(experiment.scores) > 1 for experiment in experiments):
        return _verdict_over_seeds(experiments, finished[0][1].measure)
    ranked = sorted(finished, key=lambda item: -item[1].summary.test_fitness if item[1].summary else 0.0)
    (first, best), (second, next_best) = ranked[:2]
    a, b = best.summary, next_best.summary
    assert a is not None and b is not None
    difference = a.test_fitness - b.test_fitness
    if not a.test_standard_error or not b.test_standard_error:
        ahead = best.measure.difference_text(difference)
        return f"{first} is ahead of {second} by {ahead} on test; the error is unknown."
    # Of the same images, so that the two errors are not independent; their sum of squares is an upper bound where
    # outcomes of the two agree.
    error = math.hypot(a.test_standard_error, b.test_standard_error)
    ahead = best.measure.difference_text(difference, error)
    return (
        f"{first} is ahead of {second} by {ahead} on test: {sureness(difference / error)}; the error is over images, "
        "and another seed may change more"
    )


def _unlike_measures(runs: Sequence[RunData]) -> str:
    """Name the settings by which fitness is on different scales, with their values; empty if it is on one."""
    measured = [run.measured_by for run in runs]
    values = {path: list(dict.fromkeys(str(own[path]) for own in measured if path in own)) for path in measured[0]}
    return ", ".join(f"{path} {' and '.join(found)}" for path, found in values.items() if len(found) > 1)


def _same_data(a: RunData, b: RunData) -> bool:
    """Compare the data by its checksum, or by its path where a run of an earlier version has none."""
    if a.dataset is not None and b.dataset is not None:
        return a.dataset == b.dataset
    return bool((a.config or {}).get("data_dir") == (b.config or {}).get("data_dir"))


def differences(runs: Sequence[RunData]) -> list[Comparison]:
    """List the settings that are not the same in all runs, by path."""
    flat = [_flat(run.config or {}) | _flat(run.space or {}, "space: ") for run in runs]
    paths = sorted(set().union(*flat), key=lambda path: (path.startswith("space: "), path in _REPEATED, path))
    rows = [Comparison(path, [settings.get(path, "–") for settings in flat]) for path in paths]
    return [row for row in rows if len(set(row.cells)) > 1]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    return {
        f"{prefix}{path}": value if isinstance(value, str) else json.dumps(value) for path, value in leaves(settings)
    }


def _outcomes(runs: Sequence[RunData]) -> list[Comparison]:
    cells: list[dict[str, str]] = []
    for run in runs:
        summary, text = run.summary, run.measure.text
        if summary is None:
            cells.append({"state": f"{run.state}, {max((row.epoch for row in run.rows), default=0)} epochs"})
            continue
        gain = (
            (LOST_CONTROLS if run.lost_controls else "no control")
            if summary.gain is None
            else run.measure.difference_text(summary.gain, summary.gain_standard_error)
        )
        cells.append(
            {
                "state": "finished",
                f"{run.measure.label} fitness, test": text(summary.test_fitness, summary.test_standard_error),
                f"{run.measure.label} fitness, validation": text(summary.best_fitness, summary.best_standard_error),
                "accuracy, test": text(summary.test_accuracy) if run.measure.is_share else "–",
                "best minus control": gain,
                "trials": str(summary.population),
                "epochs": str(summary.epochs),
                "search": search_course(run),
                "time": duration(summary.seconds),
            }
        )
    names = list(dict.fromkeys(name for found in cells for name in found))
    return [Comparison(name, [found.get(name, "–") for found in cells]) for name in names]


def _values(runs: Sequence[RunData]) -> list[Comparison]:
    last = [run.ancestral_rows[-1].values if run.ancestral_rows else {} for run in runs]
    paths = list(dict.fromkeys(path for values in last for path in values))
    return [
        Comparison(HEADINGS.get(path, path), [value_text(v[path]) if path in v else "–" for v in last])
        for path in paths
    ]


def _curves(runs: Sequence[RunData]) -> Figure:
    """Draw the fitness of each run's winner along its ancestry, with standard errors."""
    share = all(run.measure.is_share for run in runs)
    traces = []
    for number, (name, run) in enumerate(zip(names_of(runs), runs, strict=True)):
        rows = [row for row in run.ancestral_rows if math.isfinite(row.fitness)]
        text = run.measure.text
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(rows) <= 30 else "lines",
                "name": plotly_text(name),
                "x": [row.epoch for row in rows],
                "y": [row.fitness for row in rows],
                "error_y": {"type": "data", "array": [row.standard_error for row in rows], "thickness": 1, "width": 0},
                "customdata": [text(row.fitness, row.standard_error) for row in rows],
                "hovertemplate": f"<b>{plotly_text(name)}</b><br>epoch %{{x}}<br>%{{customdata}}<extra></extra>",
                "line": {"color": PALETTE[number % len(PALETTE)], "width": 2},
            }
        )
    axis = epochs_to(max((row.epoch for run in runs for row in run.ancestral_rows), default=1), 13)
    layout = figure_layout(400, xaxis=axis, yaxis=value_axis(tickformat=".0%" if share else ".3~g"))
    return {"data": traces, "layout": layout}

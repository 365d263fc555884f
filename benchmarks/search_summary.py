"""The summary of ``search.py``: rows over seeds, scores without labels, what averaged weights are worth, and a plot."""

import html
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from adios_ray.errors import ConfigError
from adios_ray.files import write_output
from adios_ray.tables.summary import gain

Record = Mapping[str, Any]
Values = npt.NDArray[np.float64]

INDEPENDENT = ("configured", "random")
"""Rows whose trainings take nothing from each other, and are measured with averaged weights too."""
CONFIGURED = "trial_00"
"""The trial of ``random`` with the configured values: under its seed, the same training as that of ``configured``."""
SCORES = {"knn": "accuracy", "share": "share", "probe": "probe"}
"""Scores on test in records, by their name in the summary."""
AVERAGED = ", averaged"
"""End of the names of rows that are chosen by averaged weights."""
RESAMPLES = 1000
"""Of the bootstrap."""
EARLY, LATE = 0.4, 0.5
"""Share of a training whose last report foretells its end, and after which reports count for signal and noise."""


def summary(records: Sequence[Record], over: str = "random", plot: Path | None = None) -> dict[str, Any]:
    """Summarize finished rows, in percent and points.

    Args:
        records: The lines of the output file.
        over: The row that the others are compared with, seed by seed.
        plot: SVG file to write the best test accuracy over compute into.

    Returns:
        For each row means over seeds with standard errors, and mean gains with 95 % intervals by Student's t; scores
        without labels; signal over noise.

    Raises:
        ConfigError: If there is no row ``over``.
    """
    rows = by_row(records)
    if over not in rows:
        raise ConfigError(f"there is no finished row {over} to compare with; choose among {'; '.join(rows)}")
    if plot is not None:
        curves = {name: curve(results) for name, results in rows.items() if not name.endswith(AVERAGED)}
        write_output(plot, draw(curves).encode())
    baseline = {record["seed"]: _chosen(record, variant) for record, variant in rows[over]}
    return {
        "over": over,
        "rows": {name: _row(results, baseline) for name, results in rows.items()},
        "labelfree": correlations(records),
        "measures": judge_measures(records),
    }


def by_row(records: Sequence[Record]) -> dict[str, list[tuple[Record, str]]]:
    """Group records by row, each with the variant that it is judged by.

    Where trials are chosen at the end alone, the choice by averaged weights is a row of its own.
    """
    rows: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    for record in sorted(records, key=lambda record: int(record["seed"])):
        for variant in ("plain", "averaged"):
            if record["chosen"].get(variant) is None:
                continue
            if record["row"] in INDEPENDENT:
                rows[record["row"] + (AVERAGED if variant == "averaged" else "")].append((record, variant))
            elif variant == ("averaged" if "averaged" in record["chosen"] else "plain"):
                rows[record["row"]].append((record, variant))
    return rows


def _chosen(record: Record, variant: str) -> dict[str, float]:
    """Return the scores of the trial that val chose."""
    name = record["chosen"][variant]
    scores: dict[str, float] = next(trial[variant] for trial in record["trials"] if trial["trial"] == name)
    return scores


def _row(results: Sequence[tuple[Record, str]], baseline: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    scores = {record["seed"]: _chosen(record, variant) for record, variant in results}
    paired = [(own, baseline[seed]) for seed, own in scores.items() if seed in baseline]
    return {
        "seeds": len(results),
        "images": round(statistics.fmean(record["images"] for record, _ in results)),
        "test": {name: mean_text([own[score] for own in scores.values()]) for name, score in SCORES.items()},
        "gain": {
            name: gain_text([own[score] - other[score] for own, other in paired]) for name, score in SCORES.items()
        },
        "optimism": mean_text([value for result in results if (value := optimism(*result)) is not None]),
        "exploits": sum(
            exploit["donor"] != exploit["trial"] for record, _ in results for exploit in record["exploits"]
        ),
        "refusals": sum(len(record["refusals"]) for record, _ in results),
    }


def optimism(record: Record, variant: str) -> float | None:
    """Return by how much val flatters the chosen trial more than the others: the winner's curse that is left."""
    test = "accuracy" if record["row"] == "pbt_before" else "share"
    finished = {trial["trial"]: trial[variant] for trial in record["trials"] if "val" in trial[variant]}
    excess = {name: trial["val"] - trial[test] for name, trial in finished.items()}
    own = excess.pop(record["chosen"][variant])
    return own - statistics.fmean(excess.values()) if excess else None


def mean_text(shares: Sequence[float]) -> str:
    """Write a mean with its standard error over seeds, in percent."""
    if not shares:
        return "–"
    error = f" ± {100 * statistics.stdev(shares) / math.sqrt(len(shares)):.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.fmean(shares):.2f}{error}"


def gain_text(differences: Sequence[float]) -> str:
    """Write the mean of differences by seed with its 95 % interval, in points."""
    if (found := gain([[100 * difference for difference in differences]])) is None:
        return "–"
    return f"{found.mean:+.2f}" + ("" if found.half_width is None else f" ± {found.half_width:.2f}")


def correlations(records: Sequence[Record]) -> dict[str, Any]:
    """Compute Spearman's rank correlation of each score at the end of a training with its linear probe on test.

    Returns:
        Of all trainings, and of those of each row alone (with the same values, with drawn ones): their number, and for
        each score the correlation with a bootstrap interval of 95 %. No training counts twice.
    """
    rows, probes, scores = [], [], defaultdict(list)
    for record in records:
        for trial in record["trials"] if record["row"] in INDEPENDENT else []:
            counted = record["row"] == "random" and trial["trial"] == CONFIGURED
            if counted or "probe" not in trial["plain"] or not trial["label_free"]:
                continue
            rows.append(record["row"])
            probes.append(trial["plain"]["probe"])
            for name, value in trial["label_free"][-1].items():
                if name != "epoch":
                    scores[name].append(value)
            _, share, _, accuracy, _ = trial["plain"]["reports"][-1]
            scores["votes' share"].append(share)
            scores["k-NN accuracy"].append(accuracy)
    of_row, of_probe = np.array(rows), np.array(probes)
    columns = {name: np.array(values) for name, values in scores.items()}
    found: dict[str, Any] = {}
    for name, chosen in (("all", of_row != ""), *((row, of_row == row) for row in INDEPENDENT)):
        found[name] = {"trainings": int(chosen.sum())}
        if chosen.sum() > 2:
            own = {
                score: spearman(values[chosen], of_probe[chosen], of_row[chosen]) for score, values in columns.items()
            }
            found[name] |= own
    return found


def spearman(scores: Values, probes: Values, rows: npt.NDArray[np.str_]) -> dict[str, Any]:
    """Compute a rank correlation, and its interval by resampling the trainings of each row; nan ranks last."""
    scores = np.nan_to_num(scores, nan=-math.inf, neginf=-math.inf)
    random = np.random.default_rng(0)
    groups = [np.flatnonzero(rows == row) for row in np.unique(rows)]
    # Rows are parts of the study, not drawn: one keeps its number of trainings.
    drawn = (np.concatenate([random.choice(group, len(group)) for group in groups]) for _ in range(RESAMPLES))
    resampled = [rank_correlation(scores[chosen], probes[chosen]) for chosen in drawn]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"rho": round(rank_correlation(scores, probes), 3), "interval": [round(low, 3), round(high, 3)]}


def rank_correlation(first: Values, second: Values) -> float:
    """Compute Spearman's rank correlation of [n] with [n]; nan where all are equal."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else math.nan


def judge_measures(records: Sequence[Record]) -> dict[str, Any]:
    """Compare measures by how well they tell trainings apart.

    Returns:
        For each row and measure, means over seeds. "signal over noise": the standard deviation, over trainings, of the
        mean of the second half of the reports, over that of the residuals of a parabola through each training's; a line
        would take the bend of the curves for noise. "foresight": Spearman's rank correlation of the report after 40 %
        of the epochs with the accuracy on test at the end, without averaged weights.
    """
    measured: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in records:
        if record["row"] not in INDEPENDENT:
            continue
        for variant in ("plain", "averaged"):
            for position, name in ((3, "accuracy"), (1, "votes' share")):
                whole = [trial for trial in record["trials"] if len(trial[variant]["reports"]) == record["epochs"]]
                curves = [np.array([report[position] for report in trial[variant]["reports"]]) for trial in whole]
                ended = np.array([trial["plain"]["accuracy"] for trial in whole])
                found = measured[record["row"]][f"{name}, {variant}"]
                if (ratio := _ratio([curve[int(LATE * record["epochs"]) :] for curve in curves])) is not None:
                    found["signal over noise"].append(ratio)
                    early = np.array([curve[int(EARLY * record["epochs"]) - 1] for curve in curves])
                    found["foresight"].append(rank_correlation(early, ended))
    return {
        row: {
            name: {kind: round(statistics.fmean(seeds), 2) for kind, seeds in of.items()} for name, of in rows.items()
        }
        for row, rows in measured.items()
    }


def _ratio(curves: Sequence[Values]) -> float | None:
    finite = [curve for curve in curves if np.isfinite(curve).all()]
    if len(finite) < 3 or len(finite[0]) < 5:
        return None
    at = np.arange(len(finite[0]))
    residuals = [curve - np.polynomial.Polynomial.fit(at, curve, 2)(at) for curve in finite]
    noise = math.sqrt(sum(float(r @ r) for r in residuals) / sum(len(r) - 3 for r in residuals))
    return statistics.stdev(float(curve.mean()) for curve in finite) / noise if noise else None


class Point(NamedTuple):
    """Test accuracy at some compute, over seeds.

    Attributes:
        images: Images that all trials have seen, in millions.
        mean: Mean accuracy, in percent, and ``error``, its standard error; None for one seed.
    """

    images: float
    mean: float
    error: float | None


def curve(results: Sequence[tuple[Record, str]]) -> list[Point]:
    """Average test accuracies over seeds, by images, ascending."""
    points: dict[float, list[float]] = defaultdict(list)
    for record, variant in results:
        for point in record["curve"]:
            if variant in point:
                images = point["reports"] * record["images"] / record["reports"] / 1e6
                points[images].append(100 * point[variant]["accuracy"])
    return [
        Point(images, statistics.fmean(seeds), statistics.stdev(seeds) / math.sqrt(len(seeds)) if seeds[1:] else None)
        for images, seeds in sorted(points.items())
    ]


PALETTE = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#33bbee", "#ee3377", "#aa4499", "#bbaa22", "#555555", "#88cc66")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 780, 430, 40, 210, 40, 45


def draw(curves: Mapping[str, Sequence[Point]]) -> str:
    """Draw curves as SVG, with the rows and their last values named beside them."""
    points = [point for line in curves.values() for point in line]
    right = max((point.images for point in points), default=1.0)
    low = math.floor(min((point.mean for point in points), default=0.0) / 5) * 5
    high = math.ceil(max((point.mean for point in points), default=100.0) / 5) * 5 or 5
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + plot_width * x / right, TOP + plot_height * (high - y) / max(high - low, 1)

    parts = [f'<text x="{LEFT}" y="{TOP - 18}">k-NN accuracy of the chosen trial on test images, %</text>']
    for y in range(low, high + 1, 5):
        _, at = place(0, y)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + plot_width}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y}</text>')
    for quarter in range(1, 5):
        at, _ = place(right * quarter / 4, low)
        text = f"{right * quarter / 4:.2g}"
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>')
    middle = LEFT + plot_width / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">images seen by all trials, millions</text>')
    ranked = sorted(curves, key=lambda name: -curves[name][-1].mean if curves[name] else 0.0)
    colors = dict(zip(curves, PALETTE * (1 + len(curves) // len(PALETTE)), strict=False))
    for number, name in enumerate(ranked):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(point.images, point.mean) for point in curves[name]))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colors[name]}" stroke-width="2"/>')
        last = f" {curves[name][-1].mean:.1f}" if curves[name] else ""
        if curves[name] and (error := curves[name][-1].error) is not None:
            last += f" ± {error:.1f}"
        at = TOP + 14 + 20 * number
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{at}" fill="{colors[name]}">{html.escape(name)}{last}</text>')
    style = "font-family:sans-serif;font-size:13px;background:white"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="{style}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )

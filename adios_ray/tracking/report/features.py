"""The report's section on features: map, neighbors, harm by masks, classes and spectrum."""

import colorsys
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from adios_ray.measures import share_error
from adios_ray.tracking import pictures
from adios_ray.tracking.report.figures import GRAY, PALETTE, Figure, figure_layout, plotly_text, value_axis
from adios_ray.tracking.report.inspection import PICKED, Inspection, Integers
from adios_ray.tracking.report.masks import data_uri, tiled
from adios_ray.tracking.run_masks import Pixels

_COLUMNS = 25
"""Fewest columns of the sheet of images."""
_COUNTED, _NAMED, _CONFUSED = 12, 40, 100
"""Classes up to which the confusion's cells show their counts, up to which axes name them, and up to which the
confusion has all: its cells are as many as their square."""


class ClassScore(NamedTuple):
    """Accuracy of a class by its neighbors' votes."""

    name: str
    images: int
    accuracy: float
    standard_error: float


class Harmed(NamedTuple):
    """An image by its number, with its masks, and the mean harm that these do to its features."""

    image: int
    harm: float
    uri: str
    """The image, its slots in color, and each masked input, in a row."""


@dataclass(frozen=True)
class FeatureSection:
    """Contents of the section beside its charts."""

    inspection: Inspection
    sprites: dict[str, Any]
    """The sheet of all images: its data URI, columns, count, and whether to enlarge by whole pixels."""
    most: list[Harmed]
    least: list[Harmed]
    classes: list[ClassScore]
    charts: dict[str, Figure]

    @property
    def slot_rows(self) -> list[list[tuple[str, list[int]]]]:
        """The nearest neighbors of each query by each slot, with the slot's name."""
        return [
            [(f"slot {number}", found) for number, found in enumerate(query, start=1)]
            for query in self.inspection.slot_neighbors.tolist()
        ]


def feature_section(inspection: Inspection) -> FeatureSection:
    """Draw an inspection."""
    count, side = inspection.thumbnails.shape[:2]
    columns = max(_COLUMNS, math.ceil(math.sqrt(count)))  # no longer than wide: WebP ends at 16,383 pixels
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, side, side, 3), np.uint8)
    cells[:count] = inspection.thumbnails
    sheet = data_uri(tiled(cells.reshape(rows, columns, side, side, 3)))
    harmed = [_harmed(inspection, position) for position in range(len(inspection.picked))]
    half = min(PICKED, len(harmed) // 2)
    drawn = {"map": _map_chart(inspection), "spectrum": _spectrum_chart(inspection)}
    classes = class_scores(inspection)
    if classes:
        drawn |= {"confusion": _confusion_chart(inspection), "classes": _class_chart(classes)}
    return FeatureSection(
        inspection,
        {"uri": sheet, "columns": columns, "count": count, "pixelated": side <= 32},
        harmed[:half],
        harmed[half:],
        classes,
        drawn,
    )


def _harmed(inspection: Inspection, position: int) -> Harmed:
    image: Pixels = inspection.picked_images[position : position + 1]
    masks: Pixels = inspection.picked_masks[position : position + 1]
    row = np.concatenate([image, pictures.overlay(image, masks), pictures.masked_inputs(image, masks)[0]])
    index = int(inspection.picked[position])
    return Harmed(index, float(inspection.harm[index].mean()), data_uri(tiled(row[None])))


def class_scores(inspection: Inspection) -> list[ClassScore]:
    """Compute each class's accuracy with its standard error, lowest first; empty without labels.

    The error is that of the rule of succession (one image more of each outcome): none is 0, however few images agree.
    """
    scores = []
    for number, name in enumerate(inspection.info.classes):
        right = (inspection.predicted == number)[inspection.labels == number]
        if len(right):
            images = len(right)
            smoothed = (int(right.sum()) + 1) / (images + 2)
            error = share_error(smoothed, images + 2)
            scores.append(ClassScore(name, images, float(right.mean()), error))
    return sorted(scores, key=lambda score: score.accuracy)


def most_confused(inspection: Inspection, most: int) -> Integers:
    """Choose the ``most`` (>= 1) classes that are confused with others most often, in their order, int64 [C]."""
    wrong = inspection.labels != inspection.predicted
    mistakes = np.concatenate([inspection.labels[wrong], inspection.predicted[wrong]])
    counts = np.bincount(mistakes, minlength=len(inspection.info.classes))
    return np.sort(np.argsort(-counts, kind="stable")[:most])


def confusion(inspection: Inspection, classes: Integers) -> Integers:
    """Count images by their class (rows) and the class that their neighbors vote for (columns), int64 [C, C].

    Args:
        inspection: The images.
        classes: The classes of rows and columns, int64 [C]; images of others, or taken for others, are left out.
    """
    place = np.full(len(inspection.info.classes), -1)
    place[classes] = np.arange(len(classes))
    rows, columns = place[inspection.labels], place[inspection.predicted]
    known = (rows >= 0) & (columns >= 0)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (rows[known], columns[known]), 1)
    return counts


def class_colors(count: int) -> list[str]:
    """Choose a color for each class: the palette's, or hues around the circle where there are more."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    hues = (colorsys.hls_to_rgb(k / count, (0.42, 0.58)[k % 2], 0.75) for k in range(count))
    return [f"rgb({', '.join(str(round(255 * part)) for part in color)})" for color in hues]


def _map_chart(inspection: Inspection) -> Figure:
    """Draw a point for each image in its class's color, and a small one for each masked version."""
    names = inspection.info.classes or ["images"]
    labels = inspection.labels if inspection.info.classes else np.zeros_like(inspection.labels)
    masked_of = np.arange(len(inspection.masked_points))
    common = {"type": "scatter", "mode": "markers"}
    traces: list[Figure] = []
    for number, (name, color) in enumerate(zip(names, class_colors(len(names)), strict=True)):
        images = np.flatnonzero(labels == number)
        if not len(images):  # of thousands of classes, most
            continue
        of_masked = masked_of[labels[masked_of] == number]
        points = inspection.masked_points[of_masked]
        slots = points.shape[1]
        if points.size:
            traces.append(
                {
                    **common,
                    "masked": True,
                    "x": points[..., 0].ravel().tolist(),
                    "y": points[..., 1].ravel().tolist(),
                    "customdata": [[int(image), k + 1] for image in of_masked for k in range(slots)],
                    "hovertemplate": f"{plotly_text(name)}<br>masked by slot %{{customdata[1]}}<extra></extra>",
                    "marker": {"color": color, "size": 4, "opacity": 0.35},
                    "showlegend": False,
                }
            )
        traces.append(
            {
                **common,
                "name": plotly_text(name),
                "x": inspection.points[images, 0].tolist(),
                "y": inspection.points[images, 1].tolist(),
                "customdata": [[int(image)] for image in images],
                "hovertemplate": f"<b>{plotly_text(name)}</b><br>image %{{customdata[0]}}<extra></extra>",
                "marker": {"color": color, "size": 7, "opacity": 0.85},
            }
        )
    axis = {"showticklabels": False, "zeroline": False}
    layout = figure_layout(520, xaxis=axis, yaxis=axis)
    few = 1 < len(names) <= 20
    legend = {"showlegend": few, "legend": {"orientation": "h", "y": -0.04}}
    return {"data": sorted(traces, key=lambda trace: "masked" not in trace), "layout": layout | legend}


def _spectrum_chart(inspection: Inspection) -> Figure:
    """Draw the eigenvalues of the features' covariance by number, both logarithmic; dotted: the effective rank."""
    values = inspection.spectrum[inspection.spectrum > 1e-9 * inspection.spectrum[0]]
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": list(range(1, len(values) + 1)),
        "y": values.tolist(),
        "line": {"color": PALETTE[0], "width": 2},
        "hovertemplate": "eigenvalue %{x}: %{y:.3g}<extra></extra>",
    }
    rank = inspection.info.rank
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": rank, "x1": rank}
    shape = {**line, "line": {"color": GRAY, "width": 1, "dash": "dot"}}
    title = {"text": "number of the eigenvalue", "standoff": 6}
    return {
        "data": [trace],
        "layout": figure_layout(
            300,
            xaxis={"type": "log", "title": title, "automargin": True, "dtick": 1},
            yaxis={"type": "log", "automargin": True, "exponentformat": "power", "nticks": 6},
            shapes=[shape],
        ),
    }


def _confusion_chart(inspection: Inspection) -> Figure:
    """Draw the confusion as shares of each class's images; with counts in the cells where they fit."""
    classes = most_confused(inspection, _CONFUSED)
    counts = confusion(inspection, classes)
    images = np.bincount(inspection.labels, minlength=len(inspection.info.classes))[classes]
    shares = counts / np.maximum(images, 1)[:, None]
    names = [plotly_text(inspection.info.classes[number]) for number in classes]
    few = len(names) <= _COUNTED
    heat = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": shares.round(3).tolist(),
        "text": counts.tolist(),
        "hovertemplate": "%{y} as %{x}: %{text}<extra></extra>",
        "colorscale": [[0, "rgba(0, 119, 187, 0)"], [1, "rgba(0, 119, 187, 0.75)"]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        **({"texttemplate": "%{text}"} if few else {}),
    }
    axis = {"type": "category", "dtick": 1, "showticklabels": len(names) <= _NAMED}
    axis |= {"automargin": True, "zeroline": False, "showgrid": False}
    return {
        "data": [heat],
        "layout": figure_layout(
            160 + min(28 * len(names), 480),
            xaxis={**axis, "title": {"text": "by its neighbors", "standoff": 6}, "tickangle": -60 if few else -90},
            yaxis={**axis, "range": [len(names) - 0.5, -0.5]},
        ),
    }


def _class_chart(scores: list[ClassScore]) -> Figure:
    """Draw the accuracy of each class with its standard error, lowest first."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [score.accuracy for score in scores],
        "y": list(range(len(scores))),
        "error_x": {
            "type": "data",
            "array": [s.standard_error for s in scores],
            "thickness": 1.2,
            "color": GRAY,
        },
        "customdata": [f"{plotly_text(s.name)}: {s.accuracy:.0%} of {s.images} images" for s in scores],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": PALETTE[0]},
        "width": 0.6,
    }
    names = [plotly_text(score.name) for score in scores]
    named = len(names) <= _NAMED
    ticks = {"tickvals": list(range(len(names))), "ticktext": names} if named else {"showticklabels": False}
    return {
        "data": [trace],
        "layout": figure_layout(
            80 + min(26 * len(names), 700),
            xaxis={"tickformat": ".0%", "range": [0, 1.04], "automargin": True, "nticks": 6, "zeroline": False},
            yaxis=value_axis(**ticks, range=[len(names) - 0.4, -0.6], showgrid=False),
        ),
    }

"""Measures of fitness by name, and their display format; readable without torch."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Measure(NamedTuple):
    """A measure of fitness.

    Attributes:
        label: Name for people.
        is_share: Whether it is an accuracy, 0 to 1: it needs labels, and is displayed in percent.
    """

    label: str
    is_share: bool

    def text(self, value: float) -> str:
        """Format a value for people; a dash for nan."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.3g}"


MEASURES: Mapping[str, Measure] = {
    "knn": Measure("k-NN", True),
    "probe": Measure("probe", True),
    "rankme": Measure("RankMe", False),
    "alpha-req": Measure("α-ReQ", False),
    "lidar": Measure("LiDAR", False),
}
"""Measures by the names of the option ``evaluation.fitness``; functions are in ``adios_ray/evaluation/fitness.py``."""

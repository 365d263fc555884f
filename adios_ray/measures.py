"""Measures of fitness by name, and how they are written; read without torch."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Measure(NamedTuple):
    """What a fitness is.

    Attributes:
        label: What people call it.
        is_share: Whether it is an accuracy, 0 to 1: it needs labels, and is written in percent.
    """

    label: str
    is_share: bool

    def text(self, value: float) -> str:
        """Write a value for people; a dash for nan."""
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
"""By the names of ``evaluation.fitness``; ``evaluation.fitness`` has the function of each."""

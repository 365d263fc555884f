"""Measures of fitness by name, and their display format; readable without torch."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Measure(NamedTuple):
    """A measure of fitness.

    Attributes:
        label: Name for people.
        is_share: Whether it is between 0 and 1, by labels: it is displayed in percent, with an accuracy beside it.
        meaning: What its fitness is, for people.
        settings: Names of the settings of ``evaluation`` that its scale depends on.
    """

    label: str
    is_share: bool
    meaning: str
    settings: tuple[str, ...] = ("view",)

    def text(self, value: float, standard_error: float | None = None) -> str:
        """Format a value for people, with its standard error if known; a dash for nan."""
        return self._written(value, standard_error, "%")

    def difference_text(self, difference: float, standard_error: float | None = None) -> str:
        """Format a difference of two values likewise: of percentages, it is in points."""
        return self._written(difference, standard_error, "points")

    def _written(self, value: float, standard_error: float | None, unit_of_shares: str) -> str:
        if math.isnan(value):
            return "–"
        scale, digits, unit = (100, ".1f", f" {unit_of_shares}") if self.is_share else (1, ".3g", "")
        error = "" if standard_error is None else f" ± {scale * standard_error:{digits}}"
        return f"{scale * value:{digits}}{error}{unit}"

    def scores_text(self, fitness: float, standard_error: float | None, accuracy: float) -> str:
        """Format a fitness by name with the accuracy, e.g. "k-NN fitness 51.2 ± 1.1 %, accuracy 53.0 %"."""
        text = f"{self.label} fitness {self.text(fitness, standard_error)}"
        return f"{text}, accuracy {self.text(accuracy)}" if self.is_share else text


MEASURES: Mapping[str, Measure] = {
    "knn": Measure(
        "k-NN",
        True,
        "the right class's mean share of the neighbors' votes (multi-label: macro F1)",
        ("view", "neighbors", "temperature", "train_images"),
    ),
    "probe": Measure("probe", True, "the mean probability that the probe gives the right class"),
    "rankme": Measure("RankMe", False, "the effective rank of the features"),
    "alpha-req": Measure("α-ReQ", False, "how near the decay of the features' spectrum is to 1, at most 0"),
    "lidar": Measure("LiDAR", False, "the effective rank of the features' linear discriminant matrix", ()),
}
"""Measures by the names of the option ``evaluation.fitness``; functions are in ``adios_ray/evaluation/fitness.py``."""


def share_error(share: float, count: int) -> float:
    """Compute the standard error of a share p of n things, sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count)

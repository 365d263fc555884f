"""From the scores of cells to the entries of a table: means, spreads over seeds, and gains with their intervals."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from adios_ray.tables.grid import Cell, Column, Published, Row, Table

CONFIDENCE = 0.95

Score = Callable[[Cell, Column], float | None]
"""A column's score of a cell, in the column's unit; None where the cell is not finished."""
_Training = tuple[int, int]
"""Variant and seed of a training, by which it corresponds to one of the baseline."""


class Gain(NamedTuple):
    """Difference to a baseline.

    Attributes:
        mean: Mean difference between trainings of the same variant and seed, in the column's unit; of several variants,
            such as objectives, the mean over them.
        half_width: Half the width of its 95 % interval over seeds, by Student's t; None with one seed.
        pairs: Number of pairs.
    """

    mean: float
    half_width: float | None
    pairs: int


class Entry(NamedTuple):
    """The numbers of a table for one row and column.

    Attributes:
        mean: Mean over the finished trainings in the column's unit, of several variants, such as objectives, the mean
            over theirs; None without one.
        std: Standard deviation over the finished trainings; None for fewer than two.
        trainings: Number of finished trainings.
        planned: Number of trainings that the entry is the mean of once all are finished.
        published: The published number, if there is one.
        gain: Difference to the row's baseline, if it has one; of a row of average gains, the mean over its rows.
    """

    mean: float | None
    std: float | None
    trainings: int
    planned: int
    published: Published | None
    gain: Gain | None


Entries = Mapping[tuple[str, str, str], Entry]
"""Entries by row, group and name of the column."""


def entries(table: Table, cells: Sequence[Cell], score: Score) -> Entries:
    """Compute the entries of a table."""
    return {
        (row.name, column.group, column.name): _entry(table, row, column, cells, score)
        for row in table.rows
        for column in table.columns
    }


def _entry(table: Table, row: Row, column: Column, cells: Sequence[Cell], score: Score) -> Entry:
    own = _scores(row, column, cells, score)
    variants = dict[int, list[float]]()
    for (variant, _), value in own.items():
        if value is not None:
            variants.setdefault(variant, []).append(value)
    values = [value for group in variants.values() for value in group]
    compared = [table.row(name) for name in row.averaged] or [row]
    return Entry(
        mean=statistics.fmean(map(statistics.fmean, variants.values())) if values else None,
        std=statistics.stdev(values) if len(values) > 1 else None,
        trainings=len(values),
        planned=len(own),
        published=row.published.get((column.group, column.name)),
        gain=gain([group for each in compared for group in _differences(table, each, column, cells, score)]),
    )


def _scores(row: Row, column: Column, cells: Sequence[Cell], score: Score) -> dict[_Training, float | None]:
    if column.name in row.left_out:
        return {}
    own = [cell for cell in cells if cell.row == row.name and column.applies(cell.group, cell.config)]
    return {(cell.variant, cell.seed): score(cell, column) for cell in own}


def _differences(table: Table, row: Row, column: Column, cells: Sequence[Cell], score: Score) -> list[list[float]]:
    """Subtract the scores of a row's baseline, training by training where both are finished; none without one.

    The differences of each of the row's configurations, such as objectives, are a list of their own.
    """
    if row.baseline is None:
        return []
    baseline, found = _scores(table.row(row.baseline), column, cells, score), dict[int, list[float]]()
    for (variant, seed), value in _scores(row, column, cells, score).items():
        other = baseline.get((variant, seed))
        if value is not None and other is not None:
            found.setdefault(variant, []).append(value - other)
    return list(found.values())


def gain(differences: Sequence[Sequence[float]]) -> Gain | None:
    """Compute the mean over objectives of their mean paired differences, and its interval.

    The interval is for these objectives: it follows from the spread over seeds within each, whose variance is taken to
    be the same. For a single objective it is that of a paired t-test.

    Args:
        differences: For each objective, the differences of its seeds.

    Returns:
        The gain; None without a difference.
    """
    groups = [group for group in differences if group]
    if not groups:
        return None
    means, pairs = [statistics.fmean(group) for group in groups], sum(map(len, groups))
    mean, freedom = statistics.fmean(means), pairs - len(groups)
    if freedom == 0:
        return Gain(mean, None, pairs)
    squares = sum((value - own) ** 2 for group, own in zip(groups, means, strict=True) for value in group)
    error = (squares / freedom * sum(1 / len(group) for group in groups)) ** 0.5 / len(groups)
    return Gain(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error, pairs)

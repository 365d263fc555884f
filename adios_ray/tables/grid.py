"""A table as data: which trainings stand behind each number, and what was published in its place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adios_ray.config import TrialConfig, replaced


class Published(NamedTuple):
    """A published number.

    Attributes:
        mean: The number, in the column's unit.
        std: Its published standard deviation; None where none is published.
    """

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Column:
    """One column: a score of an evaluation on the encoders of one group.

    Attributes:
        group: Group of columns that share their trainings, such as a data set.
        name: The column's own name, such as "k-NN".
        kind: Evaluation, as in ``adios-ray evaluate KIND``.
        score: Name of the score in its result.
        options: Options of the evaluation that differ from its defaults.
        data: Names of the data sets that are evaluated; none stands for the group's own.
        of_masks: Whether it measures masks; it is empty for trainings without an occlusion model.
        scale: What the score is multiplied by: 100 for percent.
        digits: Digits after the point.
    """

    group: str
    name: str
    kind: str
    score: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    of_masks: bool = False
    scale: float = 100.0
    digits: int = 1

    def applies(self, group: str, config: TrialConfig) -> bool:
        """Tell whether the column has an entry for trainings of a group under a configuration."""
        return self.group == group and (config.masking.learned or not self.of_masks)


@dataclass(frozen=True)
class Row:
    """One row: a method, and the trainings that stand behind it in each group.

    Attributes:
        name: The method.
        trainings: Configurations by group, without data and seed. A group may have several, such as one for each
            objective, over which the row averages; a group that is missing leaves the row's entries empty.
        baseline: Name of the row that the gain refers to. Its trainings must correspond to this row's one by one.
        published: Published numbers by group and column name; of a row of average gains, published gains.
        options: Options of all its evaluations, over those of the columns.
        left_out: Names of the columns in which it has no entries.
        averaged: Names of the rows whose gains it averages, in place of trainings of its own.
    """

    name: str
    trainings: Mapping[str, tuple[TrialConfig, ...]]
    baseline: str | None = None
    published: Mapping[tuple[str, str], Published] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    averaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """The source of a group's images.

    Attributes:
        prepare: Arguments of ``adios-ray prepare`` that make the data set, without ``--output``.
        images: Number of training images, for an estimate without the data.
        image_size: Side of the views in pixels.
        rendered: Whether it is made as soon as it is needed; else the user prepares it.
    """

    prepare: str
    images: int
    image_size: int
    rendered: bool = False


@dataclass(frozen=True)
class Table:
    """A whole table.

    Attributes:
        title: What it shows.
        rows: Its rows, in order; names are unique.
        columns: Its columns, in order.
        data: Data sets by name: that of each group, which is trained on, and others that columns evaluate.
        notes: What a reader must know, one paragraph each.
        pictures: How many images are drawn with their masks for each training of the first seed that learns masks.
    """

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    data: Mapping[str, DataSet]
    notes: tuple[str, ...] = ()
    pictures: int = 0

    def row(self, name: str) -> Row:
        """Return the row of this name."""
        return next(row for row in self.rows if row.name == name)

    def cells(self, places: Mapping[str, str], seeds: int) -> Iterator["Cell"]:
        """Yield all trainings with the evaluations that the table needs of them.

        The seed is the outer loop: whenever a run is interrupted, all rows have about the same number of seeds.

        Args:
            places: Directory or URI of each data set.
            seeds: Trainings of each configuration; their seeds are 0, 1, ...
        """
        for seed in range(seeds):
            for row in self.rows:
                for group, configs in row.trainings.items():
                    for variant, config in enumerate(configs):
                        own = replaced(config, {"data_dir": places[group], "seed": seed})
                        applying = [column for column in self.columns if column.applies(group, config)]
                        columns = [column for column in applying if column.name not in row.left_out]
                        kinds = dict.fromkeys(evaluation_of(row, column) for column in columns)
                        yield Cell(row.name, group, variant, seed, own, tuple(kinds))


class Evaluation(NamedTuple):
    """One evaluation of a cell.

    Attributes:
        kind: As in ``adios-ray evaluate KIND``.
        data: Names of the data sets.
        options: Options by name, as sorted pairs.
    """

    kind: str
    data: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]


class Cell(NamedTuple):
    """One training of a table, and its evaluations.

    Attributes:
        row: Name of the row.
        group: Group of columns.
        variant: Which of the row's configurations of this group it is.
        seed: Seed of the training.
        config: The whole configuration.
        evaluations: What is measured of it.
    """

    row: str
    group: str
    variant: int
    seed: int
    config: TrialConfig
    evaluations: tuple[Evaluation, ...]


def evaluation_of(row: Row, column: Column) -> Evaluation:
    """Return the evaluation that the score of a row and column comes from."""
    options = {**column.options, **row.options}
    return Evaluation(column.kind, column.data or (column.group,), tuple(sorted(options.items())))

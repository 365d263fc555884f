"""The result of an evaluation: scores with standard errors and provenance, as JSON and as a table."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adios_ray.errors import EvaluationError
from adios_ray.files import write_output
from adios_ray.validation import read_json

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
"""A row of a table, by column; a column may be missing."""
PRINTED_ROWS = 24
"""Most rows of details that are printed."""


@dataclass(frozen=True)
class Score:
    """A measure and its uncertainty.

    Attributes:
        value: The measure; the mean over checkpoints where there are several.
        standard_error: Standard error over images. Of several checkpoints, the mean of theirs: they are evaluated on
            the same images, whose choice does not average out. None where it is unknown.
        seeds_standard_error: Standard error over checkpoints; None for a single one.
    """

    value: float
    standard_error: float | None = None
    seeds_standard_error: float | None = None

    @property
    def text(self) -> str:
        """The value to four digits, ± its standard errors."""
        over_images = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        over_seeds = "" if self.seeds_standard_error is None else f" ± {self.seeds_standard_error:.2g} over seeds"
        return f"{self.value:.4g}{over_images}{over_seeds}"


@dataclass(frozen=True)
class EvaluationResult:
    """The result of one evaluation, with all that is needed to repeat it.

    Attributes:
        kind: Name of the evaluation, such as ``knn``.
        scores: Scores by name. Shares are 0 to 1.
        configuration: Settings that were used; plain JSON values.
        images_per_split: Number of images that were used of each split.
        weights_sha256: Checksum of the tensors of each checkpoint.
        data_sha256: Checksum of the data set's shards.
        seconds: Wall time.
        details: A table of further results, such as all settings of a sweep.
    """

    kind: str
    scores: dict[str, Score]
    configuration: dict[str, Any]
    images_per_split: dict[str, int]
    weights_sha256: tuple[str, ...]
    data_sha256: str
    seconds: float
    details: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that JSON does not have.

        Raises:
            EvaluationError: If a score or its error is not finite; names it.
        """
        for name, score in self.scores.items():
            for number in dataclasses.astuple(score):
                if number is not None and not math.isfinite(number):
                    raise EvaluationError(f"{self.kind}: {name} is {number}; the encoder's features have no such score")

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return dataclasses.asdict(self)

    def print(self, console: Console) -> None:
        """Print a table of the scores, and one of the details if they are few."""
        images = ", ".join(f"{count:,} images of {split}" for split, count in self.images_per_split.items())
        console.print(f"{self.kind}: {images}; {self.seconds:.1f} s")
        table = Table("score")
        table.add_column("value ± standard error", justify="right")
        for name, score in self.scores.items():
            table.add_row(name, score.text)
        console.print(table)
        if len(self.details) > PRINTED_ROWS:
            console.print(f"the JSON object has {len(self.details)} rows of details")
        elif self.details:
            columns = list(dict.fromkeys(column for row in self.details for column in row))
            details = Table(*columns)
            for row in self.details:
                details.add_row(*(_cell(row.get(column)) for column in columns))
            console.print(details)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; parent folders are created.

    Raises:
        OSError: If storage fails.
    """
    write_output(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def read_result(path: Path) -> EvaluationResult:
    """Read a result that ``write_json`` wrote; keys that it does not know are ignored.

    Raises:
        EvaluationError: If the file is missing or has other content.
    """
    return read_json(EvaluationResult, path, EvaluationError)


def mean_over_seeds(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Average the results of several checkpoints, such as those of several seeds; a single one is returned as it is.

    Settings that differ become lists with one value for each checkpoint; the details are one row of scores for each.

    Raises:
        EvaluationError: If they are of different kinds, data or scores.
    """
    first = results[0]
    if len(results) == 1:
        return first
    if len({(result.kind, result.data_sha256, *result.scores) for result in results}) > 1:
        raise EvaluationError(f"{first.kind}: results of different kinds, data or scores have no mean")
    return EvaluationResult(
        first.kind,
        {name: _mean([result.scores[name] for result in results]) for name in first.scores},
        {key: _one_or_all([result.configuration.get(key) for result in results]) for key in first.configuration},
        first.images_per_split,
        tuple(checksum for result in results for checksum in result.weights_sha256),
        first.data_sha256,
        sum(result.seconds for result in results),
        tuple(
            {"weights": result.weights_sha256[0][:12], **{name: s.value for name, s in result.scores.items()}}
            for result in results
        ),
    )


def _mean(scores: Sequence[Score]) -> Score:
    values = [score.value for score in scores]
    errors = [score.standard_error for score in scores if score.standard_error is not None]
    over_images = statistics.fmean(errors) if len(errors) == len(scores) else None
    return Score(statistics.fmean(values), over_images, statistics.stdev(values) / math.sqrt(len(values)))


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else list(values)


def _cell(value: Scalar) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

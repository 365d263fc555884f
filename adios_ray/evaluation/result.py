"""The result of an evaluation: scores with standard errors and provenance, as JSON and as a table."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adios_ray.console import say_aside
from adios_ray.errors import EvaluationError
from adios_ray.files import write_output
from adios_ray.validation import leaves

GAIN = "_gain"
"""Ends the names of scores that are differences to a baseline."""
Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
"""A row of a table, by column; a column may be missing."""
PRINTED_ROWS = 24
"""Most rows of details that are printed."""
ALL = "all"
"""Kind of a result of several evaluations, whose scores are named ``EVALUATION.SCORE``."""
MISSING = "–"
"""Printed for a score that a checkpoint does not have, and for its mean."""
LEFT_OUT = "left_out"
"""Setting with the reason of each evaluation that is left out, by its name."""
EVALUATION = "evaluation"
"""Column of details that names the evaluation they come from, where there are several."""
MARK = '"weights_sha256":'
"""In every JSON file of a result."""
WEIGHTS = "weights"
"""Column of details with the first letters of the checksum of a checkpoint's tensors."""


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
        """The value to four digits, ± its standard error over images."""
        return f"{self.value:.4g}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2g}")


@dataclass(frozen=True)
class EvaluationResult:
    """The result of one evaluation, with all that is needed to repeat it.

    The constants of its protocol are those of the recorded version of adios_ray.

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
        """Print tables of the scores, by evaluation and with those of each checkpoint, and of the details if few."""
        images = ", ".join(f"{count:,} images of {split}" for split, count in self.images_per_split.items())
        lines = [f"{self.kind}: {images}; {self.seconds:.1f} s"]
        several = self.details if len(self.weights_sha256) > 1 else ()
        if several:
            named = (f"#{number} {checksum[:12]}" for number, checksum in enumerate(self.weights_sha256, 1))
            lines.append(f"checkpoints: {', '.join(named)}")
        for line in (*self._left_out(), *lines):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        names = [*self.scores, *(name for row in several for name in row if name not in (WEIGHTS, *self.scores))]
        for evaluation, own in groupby(
            dict.fromkeys(names), key=lambda name: name.partition(".")[0] if self.kind == ALL else ""
        ):
            _print_columns(console, self._score_columns(evaluation, list(own)))
        for columns, alike in groupby(() if several else self.details, key=tuple):
            rows = list(alike)
            if len(rows) > PRINTED_ROWS:
                of = f" of {rows[0][EVALUATION]}" if EVALUATION in columns else ""
                console.print(f"the JSON object has {len(rows)} rows of details{of}")
            else:
                _print_columns(console, [[column, *(_cell(row[column]) for row in rows)] for column in columns])

    def _left_out(self) -> list[str]:
        """Say which evaluations are left out, each reason once; several checkpoints may have their own."""
        found = self.configuration.get(LEFT_OUT, {})
        # Of several checkpoints, those that leave nothing out have None.
        reasons = [pair for each in (found if isinstance(found, list) else [found]) if each for pair in each.items()]
        return [f"{evaluation} is left out: {reason}" for evaluation, reason in dict.fromkeys(reasons)]

    def _score_columns(self, evaluation: str, names: Sequence[str]) -> list[list[str]]:
        """Write scores of one evaluation as columns, whose first cells are their heads."""
        columns = [[evaluation or "score", *(name.removeprefix(f"{evaluation}.") for name in names)]]
        scores = [self.scores.get(name) for name in names]
        values = [MISSING if score is None else score.text for score in scores]
        if len(self.weights_sha256) == 1:
            return [*columns, ["value ± standard error", *values]]
        if any(scores):
            spreads = [MISSING if score is None else f"{score.seeds_standard_error:.2g}" for score in scores]
            columns += [["mean ± over\nimages", *values], ["± over\nseeds", *spreads]]
        for number, row in enumerate(self.details, 1):
            columns.append([f"#{number}", *(_aligned(row.get(name)) for name in names)])
        return columns


def _print_columns(console: Console, columns: Sequence[Sequence[str]]) -> None:
    """Print columns as a table; those that do not fit beside each other continue below, behind the first one again."""
    first, *left = columns
    while left:
        shown = [first, left.pop(0)]
        while left and _width([*shown, left[0]]) <= console.width:
            shown.append(left.pop(0))
        table = Table()
        for number, (head, *_) in enumerate(shown):
            table.add_column(Text(head), justify="right" if number else "left", no_wrap=True)
        for row in zip(*(cells for _, *cells in shown), strict=True):
            table.add_row(*map(Text, row))
        console.print(table)


def _width(columns: Sequence[Sequence[str]]) -> int:
    """Return the width of a table, with a line and two spaces for each column."""
    return 1 + sum(3 + max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; parent folders are created.

    Raises:
        OSError: If storage fails.
    """
    write_output(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def mean_over_seeds(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Average the results of several checkpoints, such as those of several seeds; a single one is returned as it is.

    Settings that differ become lists with one value for each checkpoint; the details are one row of scores for each.
    A score that not all checkpoints have, such as that of masks, is in their rows alone: it has no mean. Gains have no
    standard error over seeds: they are over one training of the baseline, whose own spread the checkpoints do not show.
    That the checkpoints themselves have different settings, such as numbers of neighbors, is said.

    Raises:
        EvaluationError: If they are of different kinds or data.
    """
    first = results[0]
    if len(results) == 1:
        return first
    if len({(result.kind, result.data_sha256) for result in results}) > 1:
        raise EvaluationError(f"{first.kind}: results of different kinds or data have no mean")
    common = [name for name in first.scores if all(name in result.scores for result in results)]
    settings = dict.fromkeys(key for result in results for key in result.configuration)
    if unlike := _unlike_settings(results):
        say_aside(
            f"the checkpoints have different settings ({', '.join(unlike)}): means and errors over seeds are not of "
            "seeds alone"
        )
    return EvaluationResult(
        first.kind,
        {name: _mean([result.scores[name] for result in results], not name.endswith(GAIN)) for name in common},
        {key: _one_or_all([result.configuration.get(key) for result in results]) for key in settings},
        {split: count for result in results for split, count in result.images_per_split.items()},
        tuple(checksum for result in results for checksum in result.weights_sha256),
        first.data_sha256,
        sum(result.seconds for result in results),
        tuple(
            {WEIGHTS: result.weights_sha256[0][:12], **{name: score.value for name, score in result.scores.items()}}
            for result in results
        ),
    )


def _mean(scores: Sequence[Score], over_seeds: bool) -> Score:
    values = [score.value for score in scores]
    errors = [score.standard_error for score in scores if score.standard_error is not None]
    over_images = statistics.fmean(errors) if len(errors) == len(scores) else None
    spread = statistics.stdev(values) / math.sqrt(len(values)) if over_seeds else None
    return Score(statistics.fmean(values), over_images, spread)


def _unlike_settings(results: Sequence[EvaluationResult]) -> list[str]:
    """Name the settings that differ, without those that an evaluation chooses on val for each checkpoint."""
    flat = [dict(leaves(result.configuration)) for result in results]
    common = set.intersection(*map(set, flat))
    unlike = [path.split(".") for path in flat[0] if path in common and any(own[path] != flat[0][path] for own in flat)]
    # Those of all evaluations, which each repeats, are named once.
    return list(dict.fromkeys(keys[-1] for keys in unlike if not any(map(_is_own, keys))))


def _is_own(key: str) -> bool:
    """Whether a setting is always that of a checkpoint alone: its origin, what it lacks, what was chosen for it."""
    return key in ("origin", LEFT_OUT) or key.startswith("selected_")


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else list(values)


def _cell(value: Scalar) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(value: Scalar) -> str:
    """Write a score for a narrow column, where those below 1 have their points below each other."""
    if value is None:
        return MISSING
    return f"{value:.4f}" if isinstance(value, float) and abs(value) < 1 else _cell(value)

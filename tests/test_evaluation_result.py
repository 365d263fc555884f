"""Results of evaluations: finite, averaged over seeds, the same after a file."""

import json
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from adios_ray.errors import EvaluationError
from adios_ray.evaluation.result import EvaluationResult, Score, mean_over_seeds, read_result, write_json


def make(value: float, weights: str = "a", rate: float = 0.1) -> EvaluationResult:
    """Make a result with one score."""
    return EvaluationResult("linear", {"top1": Score(value, 0.02)}, {"rate": rate}, {"test": 40}, (weights,), "d", 1.5)


def test_the_mean_over_seeds_has_the_error_of_both() -> None:
    values = [0.5, 0.7, 0.55]
    mean = mean_over_seeds(
        [make(value, name, rate) for value, name, rate in zip(values, "abc", (1, 1, 3), strict=True)]
    )
    score = mean.scores["top1"]
    assert score.value == pytest.approx(np.mean(values)) and score.standard_error == pytest.approx(0.02)
    assert score.seeds_standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert mean.configuration == {"rate": [1, 1, 3]} and mean.weights_sha256 == ("a", "b", "c") and mean.seconds == 4.5
    assert mean.details[1] == {"weights": "b", "top1": 0.7}
    assert mean_over_seeds([make(0.5)]) == make(0.5)


def test_results_that_do_not_belong_together_have_no_mean() -> None:
    other = EvaluationResult("knn", {"top1": Score(0.5)}, {}, {}, ("a",), "d", 1.0)
    with pytest.raises(EvaluationError, match="linear: results of different kinds"):
        mean_over_seeds([make(0.5), other])


def test_a_file_gives_the_same_result(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "r.json", make(0.5).to_json())
    assert read_result(tmp_path / "deep" / "r.json") == make(0.5)
    assert json.loads((tmp_path / "deep" / "r.json").read_text())["scores"]["top1"]["value"] == 0.5
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.json"]
    (tmp_path / "r.json").write_text("{}")
    for name, message in (("r.json", "kind is missing"), ("none.json", "does not exist")):
        with pytest.raises(EvaluationError, match=message):
            read_result(tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_json_does_not_have_are_refused(value: float) -> None:
    with pytest.raises(EvaluationError, match="linear: top1 is"):
        make(value)


def test_the_table_shows_values_with_errors() -> None:
    console = Console(file=StringIO(), width=100)
    mean_over_seeds([make(0.5), make(0.75, "b")]).print(console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "linear: 40 images of test; 3.0 s" in text and "0.625 ± 0.02 ± 0.12 over seeds" in text and "0.75" in text

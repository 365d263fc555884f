"""Results of evaluations: finite, averaged over seeds, the same after a file."""

import json
import math
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from adios_ray.errors import EvaluationError
from adios_ray.evaluation.result import (
    MARK,
    PRINTED_ROWS,
    EvaluationResult,
    Row,
    Score,
    mean_over_seeds,
    write_json,
)
from adios_ray.places import check_output_file
from adios_ray.validation import parse


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


def test_a_mean_over_checkpoints_with_different_settings_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def knn(name: str, neighbors: int) -> EvaluationResult:
        own = {"origin": name, "neighbors": neighbors, "image_size": 32, "selected_for_top1": {"neighbors": neighbors}}
        others = {"linear": {"origin": name, "selected_rate": neighbors}} if name == "a" else {}
        return replace(make(0.5, name), kind="all", configuration={"knn": own, **others, "left_out": {"x": name}})

    mean_over_seeds([knn("a", 20), knn("b", 20)])
    assert not capsys.readouterr().err
    mean_over_seeds([knn("a", 20), knn("b", 200)])
    assert capsys.readouterr().err.startswith("the checkpoints have different settings (neighbors): means and errors")


def test_a_gain_over_one_baseline_has_no_error_over_seeds() -> None:
    results = [
        EvaluationResult("robustness", {"no_fg_gain": Score(gain, 0.02)}, {}, {}, (name,), "d", 1.0)
        for gain, name in ((0.1, "a"), (0.3, "b"))
    ]
    score = mean_over_seeds(results).scores["no_fg_gain"]
    assert score.value == pytest.approx(0.2) and score.seeds_standard_error is None


def test_results_that_do_not_belong_together_have_no_mean() -> None:
    other = EvaluationResult("knn", {"top1": Score(0.5)}, {}, {}, ("a",), "d", 1.0)
    with pytest.raises(EvaluationError, match="linear: results of different kinds"):
        mean_over_seeds([make(0.5), other])


def test_a_file_gives_the_same_result(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "r.json", make(0.5).to_json())
    check_output_file(tmp_path / "deep" / "r.json", MARK)
    values = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert parse(EvaluationResult, values) == make(0.5) and values["scores"]["top1"]["value"] == 0.5
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_json_does_not_have_are_refused(value: float) -> None:
    with pytest.raises(EvaluationError, match="linear: top1 is"):
        make(value)


def test_one_score_of_an_evaluation_may_have_no_mean() -> None:
    more = replace(make(0.5), scores={"top1": Score(0.5), "top1_gain": Score(0.125)})
    text = printed(mean_over_seeds([more, make(0.75, "b")]), 80)
    assert re.search(r"top1_gain +│ +– │ +– │ +0.1250 │ +– │", text)


def test_a_score_that_a_checkpoint_lacks_has_no_mean() -> None:
    both = replace(
        make(0.5),
        kind="all",
        scores={"linear.top1": Score(0.5), "segmentation.ari": Score(0.25)},
        configuration={"left_out": {}},
    )
    alone = replace(
        make(0.75, "b"),
        kind="all",
        scores={"linear.top1": Score(0.75)},
        configuration={"left_out": {"segmentation": "b has no occlusion model"}},
    )
    assert "segmentation is left out" in printed(mean_over_seeds([replace(both, configuration={}), alone]), 80)
    for results in ([both, alone], [alone, both]):
        mean = mean_over_seeds(results)
        assert list(mean.scores) == ["linear.top1"] and mean.scores["linear.top1"].value == 0.625
        assert [row.get("segmentation.ari") for row in mean.details] == [
            score.value if (score := result.scores.get("segmentation.ari")) else None for result in results
        ]
        text = printed(mean, 80)
        assert "segmentation is left out: b has no occlusion model" in text
        assert re.search("ari.*0.2500.*–" if results[0] is both else "ari.*–.*0.2500", text)


def printed(result: EvaluationResult, width: int) -> str:
    """Print a result to a console that is no terminal."""
    console = Console(file=StringIO(), width=width)
    result.print(console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_table_shows_values_with_errors() -> None:
    text = printed(mean_over_seeds([make(0.5), make(0.75, "b")]), 100)
    assert "linear: 40 images of test; 3.0 s\ncheckpoints: #1 a, #2 b\n" in text
    assert re.search(r"top1 +│ +0.625 ± 0.02 │ +0.12 │ +0.5000 │ +0.7500 │", text)


@pytest.mark.parametrize("width", [80, 120])
def test_tables_of_many_checkpoints_are_whole_at_any_width(width: int) -> None:
    """Each name and value, and no sign that one was cut."""
    names = ["ari", "random_partition_foreground_weighted_covering"]
    results = [
        replace(make(0, str(number)), kind="all", scores={
            f"segmentation.{name}": Score(0.1234 + number / 10 + place / 100, 0.001) for place, name in enumerate(names)
        })
        for number in range(8)
    ]  # fmt: skip
    text = printed(mean_over_seeds(results), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for place, name in enumerate(names):
        rows = [re.findall(r"[\d.]+", line.split(name)[1]) for line in text.splitlines() if f"│ {name} " in line]
        values = [f"{0.1234 + number / 10 + place / 100:.4f}" for number in range(8)]
        assert [value for row in rows for value in row][-8:] == values and len(rows) == (4 if width == 80 else 2)


def test_details_are_tables_of_rows_alike() -> None:
    rows: list[Row] = [{"evaluation": "knn", "neighbors": count, "top1": 0.5} for count in range(PRINTED_ROWS + 1)]
    other: Row = {"evaluation": "linear", "rate": 0.1, "val top1": 0.25}
    text = printed(replace(make(0.5), details=(*rows, other)), 80)
    assert f"the JSON object has {PRINTED_ROWS + 1} rows of details of knn\n" in text
    assert re.search(r"linear +│ +0.1 │ +0.25 │", text)

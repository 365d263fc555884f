"""The final comparison of a run's trials."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from made_up_run import make_exploit, make_row
from ray.exceptions import RayTaskError, WorkerCrashedError

from adios_ray.checkpoints import Pointer
from adios_ray.errors import DatasetError, FaultError
from adios_ray.evaluation.fitness import Estimate
from adios_ray.experiment import verdict
from adios_ray.experiment.verdict import LAST_REPORTS, Final, best_control, final_fitness, gain_over_control
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.state import Member, PopulationState

POINTER = Pointer(path=Path("checkpoint"), sha256="")


def test_the_evaluation_on_the_test_split_is_tried_again_and_its_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = RayTaskError("_on_test", "Traceback ...", DatasetError("no data set in data"))
    answers = iter([WorkerCrashedError(), missing, "estimate", *[missing] * verdict.ATTEMPTS])

    def get(_: object) -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr(verdict, "PAUSE_S", 0.0)
    submitted = list[None]()
    assert verdict._answer(lambda: submitted.append(None), "runs/one") == "estimate"  # type: ignore[comparison-overlap]  # no task runs
    assert len(submitted) == 3 and "failed (DatasetError: no data set in data) and is" in capsys.readouterr().out
    with pytest.raises(FaultError) as refused:
        verdict._answer(lambda: submitted.append(None), "runs/one")
    assert "no data set in data. All trainings are kept" in str(refused.value) and "\n" not in str(refused.value)


def test_the_gain_over_the_control_is_that_of_paired_test_images() -> None:
    rng, images = np.random.default_rng(0), 400
    difficulty = rng.uniform(0.2, 0.8, images)
    skills = (0.1, 0.0)
    raw = [
        np.rint(255 * (difficulty + skill + rng.normal(0, 0.02, images)).clip(0, 1)).astype(np.uint8)
        for skill in skills
    ]
    best, control = (Estimate(outcomes.mean() / 255, 0.01, 0.5, outcomes.tobytes()) for outcomes in raw)
    gain = gain_over_control(best, control)
    expected = scipy.stats.ttest_rel(raw[0] / 255, raw[1] / 255)
    assert gain["gain"] is not None and gain["gain_standard_error"] is not None
    assert gain["gain"] / gain["gain_standard_error"] == pytest.approx(expected.statistic, rel=1e-9)
    assert gain["gain_standard_error"] < 0.1 * math.hypot(0.01, 0.01)
    # As macro F1, which is not the mean of the outcomes.
    others = [each._replace(value=each.value + 0.1) for each in (best, control)]
    assert gain_over_control(*others)["gain_standard_error"] == pytest.approx(math.hypot(0.01, 0.01))
    without = gain_over_control(Estimate(0.5), Estimate(0.4))
    assert without == {"gain": pytest.approx(0.1), "gain_standard_error": None}


def test_trials_are_compared_by_the_holdout_of_their_weights_last_reports() -> None:
    assert LAST_REPORTS == 3
    scores = {"a": 0.6, "b": 0.5, "c": WORST_SCORE, "d": None}
    members = {
        name: Member(values={}, number=number, checkpoint=POINTER, epoch=4, score=score)
        for number, (name, score) in enumerate(scores.items())
    }
    holdout = {"a": [0.9, 0.1, 0.2, 0.3], "b": [0.0, 0.4, 0.5, 0.6], "c": [0.9, 0.9, 0.9, 0.9]}
    rows = [
        make_row(name, epoch, 0.99, holdout_fitness=value, holdout_standard_error=0.01 * epoch)
        for name, values in holdout.items()
        for epoch, value in enumerate(values, start=1)
    ]
    state = PopulationState(members=members, next_decision_epoch=9)
    finals = final_fitness(state, rows, [])
    assert list(finals) == ["a", "b"]
    assert finals["a"] == pytest.approx(Final(0.2, 0.03)) and finals["b"] == pytest.approx(Final(0.5, 0.03))
    copied = final_fitness(state, rows, [make_exploit(3, "a", "b")])  # the donor's two, then its own
    assert copied["a"].fitness == pytest.approx((0.4 + 0.5 + 0.3) / 3)
    earlier = [row.model_copy(update={"holdout_fitness": math.nan, "standard_error": None}) for row in rows]
    assert final_fitness(state, earlier, [])["a"] == Final(0.99, None)


def test_a_trial_that_kept_the_configured_values_as_long_as_the_best_is_a_control() -> None:
    """In a search without controls; one that was stopped early is none."""
    finals = {"a": Final(0.4, 0.03), "b": Final(0.6, 0.04), "c": Final(0.5, None)}
    members = {
        name: Member(values={"masking.slots": slots}, number=slots, checkpoint=POINTER, epoch=4, score=0.5)
        for name, slots in (("a", 3), ("b", 4), ("c", 5))
    }
    state, configured = PopulationState(members=members, next_decision_epoch=9), {"masking.slots": 3}
    assert best_control(state, finals, "b") is None
    assert best_control(state, finals, "b", configured) == "a"
    members["a"].epoch = 1
    assert best_control(state, finals, "b", configured) is None

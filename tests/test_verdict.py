"""The final comparison of a run's trials."""

import math
from pathlib import Path

import pytest
from made_up_run import make_exploit, make_row

from adios_ray.checkpoints import Pointer
from adios_ray.experiment.verdict import LAST_REPORTS, Final, final_fitness
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.state import Member, PopulationState

POINTER = Pointer(path=Path("checkpoint"), sha256="")


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

"""Verdicts: for each, a made-up run that shows it, and one that does not."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_run import make_drop, make_exploit, make_row, make_summary
from scipy.stats import norm, sem, ttest_rel

from adios_ray.run_directory import RunDirectory
from adios_ray.tracking import run_masks
from adios_ray.tracking.outcomes import write_outcomes
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.report import verdicts
from adios_ray.tracking.report.outcome import outcome_of, search_course
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.report.significance import sureness
from adios_ray.tracking.results import Row
from adios_ray.tracking.run_masks import MaskFile

PBT = {"scheduler": "pbt", "interval_epochs": 1, "synchronous": True}
ASHA = {"scheduler": "asha", "search": "random"}


def run_of(rows: list[Row], **more: Any) -> RunData:
    """Make the records of a run, sorted like those of a file."""
    return RunData(Path("run"), sorted(rows, key=lambda row: (row.trial, row.epoch)), **more)


def curves(scores: dict[str, list[float]], **more: Any) -> list[Row]:
    """Make the reports of trials from their scores at epochs 1, 2, ..."""
    return [make_row(t, epoch, score, **more) for t, curve in scores.items() for epoch, score in enumerate(curve, 1)]


def summary_of(rows: list[Row], **more: Any) -> RunSummary:
    """Make a summary of the rows, with some fields changed."""
    return make_summary(rows).model_copy(update=more)


def masked_run(tmp_path: Path, masks: np.ndarray[Any, Any]) -> RunData:
    """Store float masks [N, S, S] of one image for the only trial's only report."""
    stored = np.rint(255 * masks[None]).astype(np.uint8)
    size = stored.shape[-1]
    RunDirectory(tmp_path).make_folders()
    run_masks.write_masks(tmp_path, "a", 1, MaskFile(np.zeros((1, size, size, 3), np.uint8), stored))
    return RunData(tmp_path, [make_row("a", 1)])


def halves(slots: int = 2) -> np.ndarray[Any, Any]:
    """Make masks that part the image in stripes, one a slot."""
    masks = np.zeros((slots, 8, 8))
    for k in range(slots):
        masks[k, k * 8 // slots : (k + 1) * 8 // slots] = 1
    return masks


def said(judge: Callable[[RunData], Any], run: RunData) -> list[str]:
    """Return the sentences of a judge; each must come with its evidence."""
    found = list(judge(run))
    assert all(verdict.evidence for verdict in found)
    return [verdict.sentence for verdict in found]


def test_gain_over_control() -> None:
    rows = curves({"a": [0.4], "b": [0.5]})
    versus = {"best_trial": "b", "control": "a"}
    clear = run_of(rows, summary=summary_of(rows, **versus, gain=0.1, gain_standard_error=0.02))
    assert said(verdicts.gain_over_control, clear) == [
        "The winner's weights are better than the control's by 10.0 ± 2.0 points"
    ]
    worse = run_of(rows, summary=summary_of(rows, **versus, gain=-0.05, gain_standard_error=0.02))
    assert said(verdicts.gain_over_control, worse) == ["The winner is worse than the control on the test split"]
    noise = run_of(rows, summary=summary_of(rows, **versus, gain=0.01, gain_standard_error=0.02))
    assert said(verdicts.gain_over_control, noise) == ["The winner is not distinguishable from the control"]
    itself = run_of(rows, summary=summary_of(rows, best_trial="a", control="a", gain=0.0))
    assert said(verdicts.gain_over_control, itself) == ["The search found nothing better than the configured values"]
    assert said(verdicts.gain_over_control, run_of(rows)) == []


def test_the_best_by_a_score_without_labels() -> None:
    def run(*trials: str, fitness: str) -> RunData:
        config = {"evaluation": {"fitness": fitness}}
        return run_of(curves({trial: [90.0] for trial in trials}), config=config)

    assert said(verdicts.chosen_without_labels, run("a", "b", fitness="lidar")) == [
        "The best of 2 trials was chosen by a score without labels"
    ]
    assert said(verdicts.chosen_without_labels, run("a", fitness="lidar")) == []
    assert said(verdicts.chosen_without_labels, run("a", "b", fitness="probe")) == []


def test_nothing_is_good_by_scores_without_labels() -> None:
    rows = curves({"a": [0.4], "b": [0.9]}, standard_error=0.01)
    summary = summary_of(rows, best_trial="b", control="a", gain=0.5, gain_standard_error=0.02)
    by_labels = run_of(rows, summary=summary)
    assert [verdict.kind for verdict in verdicts.verdicts(by_labels)] == ["good", "good"]
    without = replace(by_labels, config={"evaluation": {"fitness": "rankme"}})
    assert {verdict.kind for verdict in verdicts.verdicts(without)} == {"wrong"}


def with_outcomes(directory: Path, table: np.ndarray[Any, Any], epoch: int = 1) -> list[Row]:
    """Store outcomes [trials, images] in [0, 1] of the last reports of trials a, b, ..., and make these reports."""
    rows = []
    for name, values in zip("abcdefgh", np.rint(255 * table).astype(np.uint8), strict=False):
        (directory / "outcomes" / name).mkdir(parents=True, exist_ok=True)
        write_outcomes(directory, name, epoch, values.tobytes())
        error = float(sem(values / 255))
        rows.append(make_row(name, epoch, float(values.mean()) / 255, standard_error=error))
    return rows


def steady(rows: list[Row]) -> list[Row]:
    """Add two reports before each, on a straight line: nothing fluctuates from report to report."""
    return [
        row.model_copy(update={"epoch": row.epoch - back, "fitness": row.fitness - back / 100})
        for row in rows
        for back in (2, 1, 0)
    ]


def images(rng: np.random.Generator, trials: int, better: float = 0.0) -> np.ndarray[Any, Any]:
    """Draw outcomes of images that are hard for all trials or for none; the first trial is better by so much."""
    own = rng.normal(0, 0.1, (trials, 300))
    own[0] += better
    return np.clip(rng.uniform(0.2, 0.8, 300) + own, 0, 1)


def test_alike_trials(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    apart = with_outcomes(tmp_path / "apart", images(rng, 3, better=0.03), epoch=3)
    run = replace(run_of(steady(apart)), path=tmp_path / "apart")
    assert said(verdicts.alike_trials, run) == [
        "The trials differ by more than the noise"  # by twice what is noise here; the standard errors are 1.2 points
    ]
    # The same difference on the same images is noise where reports deviate as much by themselves.
    moved = {"a": 0.03, "b": 0.0, "c": -0.03}  # second differences of -0.06, 0 and 0.06, of variance 6 v: v = 0.024^2
    fluctuating = [
        row.model_copy(update={"fitness": row.fitness + moved[row.trial] * (row.epoch == 2)}) for row in run.rows
    ]
    # By one report it cannot be seen.
    for rows, fluctuate in ((fluctuating, "fluctuate by 2.4"), (apart, "are assumed to fluctuate by 1.0")):
        (verdict,) = verdicts.alike_trials(replace(run, rows=rows))
        assert verdict.sentence == "Selection moved within the noise"
        assert f"reports {fluctuate} points" in verdict.evidence
    alike = with_outcomes(tmp_path, images(rng, 3))
    found: dict[str, dict[str, Any]] = {
        "Selection moved within the noise": {},
        "The trials are alike so far: which of them leads is chance": {"space": PBT},
        "The trials ended alike: which of them won is chance": {"space": PBT, "summary": summary_of(alike)},
    }
    for sentence, more in found.items():
        assert said(verdicts.alike_trials, replace(run_of(alike, **more), path=tmp_path)) == [sentence]


@pytest.mark.slow
def test_alike_trials_are_told_apart_as_often_as_the_level_says(tmp_path: Path) -> None:
    rng, wrong, missed = np.random.default_rng(2), 0, 0
    for _ in range(200):
        alike, apart = images(rng, 5), images(rng, 5, better=0.05)
        alike[4] = np.clip(alike[3] + rng.normal(0, 0.02, alike.shape[1]), 0, 1)  # a copy, which agrees with its donor
        for table in (alike, apart):
            # As in the study of searches: by the choice of images alone, 55 of 200 would be told apart.
            fluctuation = rng.normal(0, 0.0055, (5, 5))
            rows = with_outcomes(tmp_path, np.clip(table + fluctuation[:, -1:], 0, 1), epoch=5)
            rows += [
                row.model_copy(update={"epoch": epoch, "fitness": row.fitness + own[epoch - 1] - own[-1]})
                for row, own in zip(rows, fluctuation, strict=True)
                for epoch in range(1, 5)
            ]
            (verdict,) = verdicts.alike_trials(replace(run_of(rows), path=tmp_path))
            wrong += table is alike and verdict.kind == "good"
            missed += table is apart and verdict.kind != "good"
    assert 3 <= wrong <= 18 and missed <= 10  # of 200 at a level of 5 %: 10 +- 3


def test_two_trials_are_compared_as_by_a_paired_test(tmp_path: Path) -> None:
    table = images(np.random.default_rng(3), 2, better=0.01)
    run = replace(run_of(steady(with_outcomes(tmp_path, table, epoch=3))), path=tmp_path)
    (verdict,) = verdicts.alike_trials(run)
    p = 2 * norm.sf(abs(ttest_rel(*np.rint(255 * table)).statistic))
    assert f"(p {p:.2g}, on the same images)" in verdict.evidence


def test_fluctuation_is_that_of_the_weights_not_of_what_they_replaced() -> None:
    rows = curves({"a": [0.1, 0.2, 0.5, math.nan, 0.6], "b": [0.3, 0.4, 0.4]})
    run = run_of(rows, exploits=[make_exploit(2, "a", "b")])

    def known(run: RunData) -> list[tuple[str | None, int, float]]:
        return [(score.trial, score.epoch, score.value) for score in run.history(rows[4])]

    assert known(run) == [("b", 1, 0.3), ("b", 2, 0.4), ("a", 3, 0.5), ("a", 5, 0.6)]
    assert known(replace(run, restarted={"a": 2})) == [("a", 3, 0.5), ("a", 5, 0.6)]


def test_trials_without_outcomes_are_not_called_alike(tmp_path: Path) -> None:
    apart = curves({"a": [0.4], "b": [0.5], "c": [0.6]}, standard_error=0.01)
    assert said(verdicts.alike_trials, run_of(apart)) == ["The trials differ by more than the noise"]
    near = curves({"a": [0.50], "b": [0.505], "c": [0.51]}, standard_error=0.01)
    for space in (PBT, ASHA):
        untold = ["The last scores do not tell the trials apart"]
        assert said(verdicts.alike_trials, run_of(near, space=space)) == untold
    assert said(verdicts.alike_trials, run_of(curves({"a": [0.5], "b": [0.6]}, standard_error=None))) == []
    # Outcomes whose mean is not the score, such as those of macro F1, are of something else.
    rows = [row.model_copy(update={"fitness": row.fitness + 0.1}) for row in with_outcomes(tmp_path, np.eye(2, 100))]
    assert said(verdicts.alike_trials, replace(run_of(rows), path=tmp_path)) == untold


def test_trials_that_were_stopped_early_are_not_compared_with_those_that_were_not() -> None:
    rows = curves({"a": [0.1], "b": [0.4, 0.5], "c": [0.4, 0.505]}, standard_error=0.01)
    untold = ["The last scores do not tell the trials apart"]
    assert said(verdicts.alike_trials, run_of(rows, space=ASHA)) == untold


CURVE = [0.3, 0.4, 0.5, 0.6]


def test_trials_of_one_curve_are_not_told_apart_by_their_epochs() -> None:
    """In runs that evolve: an opening, early divergence, and decisions of each trial for itself."""
    four = {name: CURVE for name in "abcd"}
    finished: dict[str, Any] = {"summary": summary_of(curves(four))}

    def compared(scores: dict[str, list[float]], skipped: int = 0, **more: Any) -> str:
        rows = [row for row in curves(scores, standard_error=0.01) if (row.trial, row.epoch) != ("a", skipped)]
        (verdict,) = verdicts.alike_trials(run_of(rows, space=PBT, **more))
        assert verdict.sentence == "The last scores do not tell the trials apart"
        return verdict.evidence.partition(" are between")[0]

    opening = four | {name: CURVE[:1] for name in "efgh"}
    drops = [make_drop(1, name) for name in "efgh"]
    diverged = four | {"e": [*CURVE[:1], math.nan]}
    for more in ({}, finished):
        assert compared(opening, drops=drops, **more) == "the scores of 4 trials at epoch 4"
        assert compared(diverged, **more) == "the scores of 4 trials at epoch 4"
    assert compared(four | {"e": CURVE[:2]}, **finished) == "the scores of 4 trials at epoch 4"
    ahead = {"a": CURVE, "b": CURVE[:3], "c": CURVE[:3]}
    assert compared(ahead) == "the scores of 3 trials at epoch 3"
    # A copy of a donor that was ahead has skipped an epoch.
    assert compared(ahead, skipped=3) == "the scores of 3 trials at epoch 2"
    apart = curves({"a": CURVE, "b": [0.9, 0.9]}, standard_error=0.01)
    assert said(verdicts.alike_trials, run_of(apart, space=PBT)) == ["The trials differ by more than the noise"]
    assert said(verdicts.alike_trials, run_of(curves({"a": CURVE, "b": [math.nan]}), space=PBT)) == []


def test_a_search_says_what_it_did() -> None:
    scores = {"a": [0.1], "b": [0.4, 0.5], "c": [0.1], "d": [0.4, 0.5, 0.6, 0.7], "e": [math.nan]}
    rows = [row.model_copy(update={"values": {"masking.slots": 3 + (row.trial > "b")}}) for row in curves(scores)]
    finished = {"space": ASHA, "summary": summary_of(rows, epochs=4)}
    asha = run_of(rows, **finished)
    stopped = "3 of 5 trials stopped early (2 at epoch 1, 1 at epoch 2)"
    assert search_course(asha) == f"2 combinations of values tried, {stopped}"
    assert search_course(run_of(rows, space=ASHA)) == "2 combinations of values tried"  # not known before the end
    long = run_of([row for row in rows if row.trial in "de"], **finished)
    assert search_course(long) == "1 combination of values tried, no trial stopped early"
    grid = {"scheduler": "none", "search": "grid"}
    assert search_course(run_of([r for r in rows if r.trial == "d"], **finished | {"space": grid})) == (
        "1 combination of values tried"
    )
    copies = {"exploits": [make_exploit(1, "a", "b", slots=5), make_exploit(2, "a", "a")], "space": PBT}
    assert search_course(run_of(rows, **copies)) == "1 exploit, 0 refused, 1 change of N"
    outcome = outcome_of(asha, [])
    assert "no trial trained as long with the configured values" in outcome.sureness
    single = [make_row("a", epoch, 0.1 * epoch, values={}) for epoch in (1, 2, 3)]
    run = run_of(single, space={"scheduler": "none", "search": "grid"}, summary=summary_of(single))
    assert search_course(run) == "no search"
    found = outcome_of(run, [])
    assert found.gain.startswith("20.0 ") and found.sureness == "over the best first report: nothing was searched"


def test_selection_within_noise() -> None:
    rows = curves({"a": [0.4, 0.5], "b": [0.5, 0.6]})
    exploit = make_exploit(1, "a", "b")
    unsure = [exploit.model_copy(update={"p": p}) for p in (0.09, 0.3)]
    sure = [exploit.model_copy(update={"p": 0.001})]
    within = run_of(rows, exploits=unsure)
    assert said(verdicts.selection_within_noise, within) == ["Selection moved within the noise"]
    above = run_of(rows, exploits=sure)
    assert said(verdicts.selection_within_noise, above) == ["Selection followed differences above the noise"]
    assert said(verdicts.selection_within_noise, run_of(rows, exploits=[exploit])) == []  # p is unknown


def test_no_exploits() -> None:
    rows = curves({"a": [0.4, 0.5], "b": [0.5, 0.6]})
    (verdict,) = verdicts.no_exploits(run_of(rows, space=PBT))
    assert (verdict.sentence, verdict.evidence) == ("No trial copied another", "2 epochs")
    assert "is so far a random search" in verdict.advice
    (verdict,) = verdicts.no_exploits(run_of(rows, space=PBT, exploits=[make_exploit(1, "a", "a")]))
    assert verdict.evidence == "2 epochs, 1 change of values with a trial's own weights"
    assert "random search" not in verdict.advice
    assert said(verdicts.no_exploits, run_of(rows, space=PBT, exploits=[make_exploit(1, "a", "b")])) == []
    assert said(verdicts.no_exploits, run_of(rows, space={"scheduler": "asha"})) == []


def test_one_family() -> None:
    rows = curves({name: [0.4, 0.5, 0.6] for name in "abcd"})
    copies = [make_exploit(1, "b", "a"), make_exploit(1, "c", "a"), make_exploit(2, "d", "b")]
    assert said(verdicts.one_family, run_of(rows, exploits=copies)) == ["All trials descend from a"]
    assert said(verdicts.one_family, run_of(rows, exploits=copies[:2])) == []
    # Neither a control, which copies nothing, nor a trial that left in the opening is a family of its own.
    more = [*rows, *curves({"control": [0.4, 0.5, 0.6], "left": [0.3]})]
    run = run_of(more, exploits=copies, controls=frozenset({"control"}), drops=[make_drop(1, "left")])
    (verdict,) = verdicts.one_family(run)
    assert verdict.sentence == "All trials descend from a" and verdict.evidence == "4 trials besides controls, 3 copies"
    assert said(verdicts.one_family, replace(run, exploits=copies[:2])) == []


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("optimizer.encoder_lr", 0.6, "The encoder learning rate ran against its upper bound"),
        ("optimizer.encoder_lr", 0.031, "The encoder learning rate ran against its lower bound"),
        ("optimizer.encoder_lr", 0.1, None),
        ("masking.slots", 5, "The number of masks N ran against its upper bound"),
        ("masking.slots", 3, None),
    ],
)
def test_values_at_bounds(path: str, value: float, sentence: str | None) -> None:
    rate = {"low": 0.03, "high": 0.6, "scale": "log"}
    parameters = {"optimizer.encoder_lr": rate, "masking.slots": {"low": 2, "high": 5, "scale": "integer"}}
    run = run_of([make_row("a", 1, values={path: value})], space={**PBT, "parameters": parameters})
    assert said(verdicts.values_at_bounds, run) == ([sentence] if sentence else [])
    assert all("1 of 1 trials are there so far" in verdict.evidence for verdict in verdicts.values_at_bounds(run))
    finished = replace(run, summary=summary_of(list(run.rows)))
    assert all("1 of 1 trials ended there" in verdict.evidence for verdict in verdicts.values_at_bounds(finished))


def test_copied_slots(tmp_path: Path) -> None:
    top, bottom = halves()
    copied = np.stack([bottom / 2, top / 2, bottom / 2, top / 2])
    assert said(verdicts.copied_slots, masked_run(tmp_path, copied)) == [
        "Slots 1 and 3 are copies",
        "Slots 2 and 4 are copies",
    ]
    # A larger weight makes all slots alike (docs/results.md).
    assert "fewer slots" in next(verdicts.copied_slots(masked_run(tmp_path, copied))).advice
    assert said(verdicts.copied_slots, masked_run(tmp_path, np.stack([top / 3] * 3))) == ["Slots 1, 2 and 3 are copies"]
    (verdict,) = verdicts.copied_slots(masked_run(tmp_path, np.stack([top, 0.85 * top, 0.7 * top])))
    assert verdict.evidence.startswith("their masks overlap by at least 70%")  # the first and the third
    assert said(verdicts.copied_slots, masked_run(tmp_path, halves(4))) == []


def test_degenerate_slots(tmp_path: Path) -> None:
    nothing, everything = np.zeros((8, 8)), np.ones((8, 8))
    assert said(verdicts.degenerate_slots, masked_run(tmp_path, np.stack([everything, nothing]))) == [
        "Slot 1 hides almost everything",
        "Slot 2 is empty",
    ]
    blur = masked_run(tmp_path, np.stack([everything / 2, everything / 2]))
    assert said(verdicts.degenerate_slots, blur) == ["The masks are a blur: every pixel is shared by all slots"]
    assert said(verdicts.degenerate_slots, masked_run(tmp_path, halves(4))) == []


def test_slow_data_and_idle_trials() -> None:
    slow = curves({"a": [0.4, 0.5, 0.6]}, data_wait_fraction=0.12, idle_s=30.0)  # reports are a minute apart
    assert said(verdicts.slow_data, run_of(slow)) == ["Data wait 12%: training waits for images"]
    assert said(verdicts.idle_trials, run_of(slow)) == ["Trials were idle 50% of the time"]
    quick = curves({"a": [0.4, 0.5, 0.6]}, data_wait_fraction=0.01, idle_s=1.0)
    assert said(verdicts.slow_data, run_of(quick)) == said(verdicts.idle_trials, run_of(quick)) == []


def test_diverged() -> None:
    rows = curves({"a": [0.4, math.nan, math.nan], "b": [0.4, 0.5, 0.6]})
    assert said(verdicts.diverged, run_of(rows)) == ["1 trial diverged or collapsed"]
    assert said(verdicts.diverged, run_of(curves({"b": [0.4, 0.5]}))) == []


def test_still_rising() -> None:
    rows = curves({"a": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}, standard_error=0.02)
    assert said(verdicts.still_rising, run_of(rows)) == []  # it trains on
    rising = run_of(rows, summary=summary_of(rows))
    assert said(verdicts.still_rising, rising) == ["The winner was still getting better at the end"]
    rows = curves({"a": [0.1, 0.4, 0.6, 0.69, 0.7, 0.7, 0.7, 0.71]}, standard_error=0.02)
    flat = run_of(rows, summary=summary_of(rows))
    assert said(verdicts.still_rising, flat) == []


def halves_of(gaps: dict[str, float], **more: Any) -> RunData:
    """Make a run whose trials score so much better on the images of decisions; the first leads."""
    scores = {name: 0.6 - 0.01 * number for number, name in enumerate(gaps)}
    errors = {"standard_error": 0.02, "holdout_standard_error": 0.02}
    rows = [make_row(name, 3, scores[name], holdout_fitness=scores[name] - gap, **errors) for name, gap in gaps.items()]
    return run_of(rows, **{"space": PBT, **more})


def test_luck_is_what_the_leader_loses_more_than_the_others() -> None:
    lucky = halves_of({"a": 0.1, "b": 0.01, "c": 0.02, "d": 0.03})
    (verdict,) = verdicts.selected_by_luck(lucky)
    assert verdict.sentence.startswith("The leader is partly lucky")
    # The interval of a prediction: 0.1 - 0.02 in units of a spread of 0.01, and of the error of the mean of three.
    assert f"{0.08 / (0.01 * math.sqrt(4 / 3)):.1f} standard errors" in verdict.evidence
    assert "8.0 points more than 3 other trials lose at epoch 3" in verdict.evidence
    assert said(verdicts.selected_by_luck, halves_of({"a": 0.1, "b": 0.01, "c": 0.02})) == []
    assert said(verdicts.selected_by_luck, replace(lucky, space=ASHA)) == []
    harder = {"a": 0.1, "b": 0.09, "c": 0.1, "d": 0.11}  # no decision makes one half harder for all
    assert said(verdicts.selected_by_luck, halves_of(harder)) == []
    # Student's t with two degrees of freedom: 3.5 standard errors have a p-value of 0.073.
    assert said(verdicts.selected_by_luck, halves_of({"a": 0.0604, "b": 0.01, "c": 0.02, "d": 0.03})) == []
    assert said(verdicts.selected_by_luck, halves_of(dict.fromkeys("abcd", 0.0))) == []  # no images were set aside
    earlier = [make_row(name, 2, 0.4, holdout_fitness=0.2) for name in "bcd"]
    assert said(verdicts.selected_by_luck, replace(lucky, rows=[*earlier, *lucky.rows])) == [verdict.sentence]


def test_at_chance() -> None:
    rows = curves({"a": [0.1]})
    # Of 900 guesses among 10 classes, 10 +- 1 % are right, however sure the fitness is.
    of_900 = {"test_images": 900, "test_standard_error": 0.001}
    guess = run_of(rows, summary=summary_of(rows, test_accuracy=0.115, **of_900))
    assert said(verdicts.at_chance, guess) == ["The winner guesses"]
    assert said(verdicts.at_chance, run_of(rows, summary=summary_of(rows, test_accuracy=0.118, **of_900))) == []
    skewed = {"chance": 0.5, "majority": 0.9, **of_900}
    dead = run_of(rows, summary=summary_of(rows, test_accuracy=0.915, **skewed))
    (verdict,) = verdicts.at_chance(dead)
    assert (
        verdict.sentence == "The winner guesses"
        and "always naming the most frequent class 90.0 ± 1.0 %" in verdict.evidence
    )
    assert said(verdicts.at_chance, run_of(rows, summary=summary_of(rows, test_accuracy=0.95, **skewed))) == []
    several = summary_of(rows, test_accuracy=0.1, chance=None, multi_label=True)
    assert said(verdicts.at_chance, run_of(rows, summary=several)) == []
    assert "verify" not in next(verdicts.at_chance(guess)).advice  # it compares checksums, not labels
    assert said(verdicts.at_chance, run_of(rows, summary=summary_of(rows, test_accuracy=0.5))) == []


def test_verdicts_choose_the_next_command_and_the_gravest_is_first(tmp_path: Path) -> None:
    rows = curves({"a": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "b": [0.79] * 8}, standard_error=0.02)
    masks = np.rint(255 * halves()[[0, 0]] / 2).astype(np.uint8)[None]
    RunDirectory(tmp_path).make_folders()
    run_masks.write_masks(tmp_path, "a", 8, MaskFile(np.zeros((1, 8, 8, 3), np.uint8), masks))
    with_outcomes(tmp_path, np.array([0.8, 0.79])[:, None] + 0.15 * np.array([[1, -1] * 50, [1] * 50 + [-1] * 50]), 8)
    summary = summary_of(rows, command="adios-ray train --seed 3 --name=first --preset demo")
    run = RunData(tmp_path, rows, summary=summary, config={"seed": 3})
    found = verdicts.verdicts(run)
    assert found[0].kind == "wrong" and [verdict.kind for verdict in found] == sorted(
        (verdict.kind for verdict in found), key=("wrong", "look", "good").index
    )
    assert "reports.jsonl of the output" in outcome_of(run, found).steps[0].reason
    longer, again, *_ = (step.command for step in outcome_of(run, found).steps)
    assert longer.startswith("adios-ray replay --schedule") and "--epochs 16" in longer
    assert again == "adios-ray train --preset demo --seed 5"  # its trials have the seeds 3 and 4


def test_bounds_are_widened_in_a_copy_of_the_space() -> None:
    rows = [make_row("a", 1, values={"a.b": 1.0})]
    space = {**PBT, "parameters": {"a.b": {"low": 0.0, "high": 1.0}}}
    run = run_of(rows, space=space, summary=summary_of(rows, command="adios-ray train --space s.yaml"))
    step = outcome_of(run, verdicts.verdicts(run)).steps[0]
    assert step.command == "adios-ray train --space wider.yaml" and f"copy {run.where}/space.yaml" in step.reason


@pytest.mark.parametrize(("z", "words"), [(4.0, "sure ("), (2.0, "fairly sure ("), (1.0, "not sure: within the noise")])
def test_sureness_in_words(z: float, words: str) -> None:
    assert sureness(z).startswith(words) and sureness(-z).startswith(words)


def test_sureness_is_of_a_difference_in_either_direction() -> None:
    # The better of two runs that are alike is ahead by 1.645 standard errors or more in a tenth of all cases.
    assert f"p {2 * norm.sf(1.645):.2g}" in sureness(1.645) and sureness(1.645).startswith("not sure")

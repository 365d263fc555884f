"""Decisions about populations: tests of differences, equal epochs, controls, and the toys of a benchmark."""

import base64
import math
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
from closed_forms import ASYNCHRONOUS, BEFORE, SYNCHRONOUS, Toy, naive_pbt, run_drift, run_slow, run_toy
from lcbench import EPOCHS as LAST_EPOCH
from lcbench import halving, ray_decisions
from made_up_run import make_exploit
from noisy_trainings import run_noisy
from simulated import SimulatedChannel, SimulatedRun, Simulation, optimum
from test_schedulers import EPOCHS, crashing, made_longer, simulation, space_of

from adios_ray.backend.channel import ChannelCalls
from adios_ray.backend.line import Reply
from adios_ray.config import TrialConfig, replaced, value_at
from adios_ray.evaluation.outcomes import decoded, encoded
from adios_ray.experiment.schedule import schedule_of
from adios_ray.experiment.verdict import Final, best_control
from adios_ray.files import append_line
from adios_ray.run_directory import RunDirectory
from adios_ray.search.population import WORST_SCORE, Population, scores_at_common_epoch
from adios_ray.search.state import MOST_OUTCOMES, Member, PopulationState
from adios_ray.search.suggest import startup_trials
from adios_ray.tracking.comparison import (
    Fluctuation,
    History,
    Score,
    compared,
    estimated_fluctuation,
    extended,
    familywise,
    paired,
    score_at,
    unpaired,
)
from adios_ray.tracking.decisions import Refusal, read_lineage, read_refusals
from adios_ray.tracking.live import exploit_line, refusal_line
from adios_ray.tracking.report.page import write_report
from adios_ray.tracking.results import begin_results
from adios_ray.tracking.run import Run
from adios_ray.trial_report import TrialReport

IMAGES = 200


def member(number: int, *values: float) -> Member:
    """Make a trial that has reported these scores at epochs 2, 4, ..."""
    history = tuple(Score(2 * (i + 1), value, None, f"trial_{number:02d}") for i, value in enumerate(values))
    return Member(values={}, number=number, score=values[-1], epoch=2 * len(values), history=history)


def test_trials_are_compared_at_the_last_epoch_of_both() -> None:
    fast, slow = member(0, 0.1, 0.2, 0.3, 0.4), member(1, 0.15, 0.25)
    assert [score.value for score in scores_at_common_epoch(fast, slow)] == [0.2, 0.25]
    assert [score.value for score in scores_at_common_epoch(slow, fast)] == [0.25, 0.2]
    copy = fast.model_copy(update={"replaced_history": slow.history, "epoch": 8})  # has not reported since
    assert [score.value for score in scores_at_common_epoch(copy, fast)] == [0.25, 0.2]
    failed = member(2, 0.5, 0.6, WORST_SCORE)
    assert [score.value for score in scores_at_common_epoch(failed, slow)] == [WORST_SCORE, 0.25]


def test_members_of_earlier_versions_have_a_history() -> None:
    earlier = Member.model_validate_json('{"values": {}, "number": 0, "epoch": 6, "score": 0.4, "base_score": 0.5}')
    assert earlier.reported == (Score(6, 0.4),)


def test_the_paired_test_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    first = random.random(300)
    second = np.clip(first - 0.02 + 0.1 * random.standard_normal(300), 0, 1)
    expected, found = scipy.stats.ttest_rel(first, second), paired(first, second)
    assert found.z == pytest.approx(expected.statistic, rel=1e-12)
    assert found.value == pytest.approx((first - second).mean(), rel=1e-12)
    assert paired(first, first).z == 0 and paired(np.ones(9), np.zeros(9)).z == np.inf


def test_images_are_compared_only_where_their_mean_is_the_score() -> None:
    """A score that is smoothed over reports is not, nor is macro F1 of the outcomes that earlier versions stored."""
    first, second = np.random.default_rng(0).random((2, 50))
    one, two = Score(3, first.mean(), 0.04), Score(3, second.mean(), 0.04)
    assert compared(one, two, first, second) == paired(first, second)
    smoothed = one._replace(value=one.value + 0.01)
    assert compared(smoothed, two, first, second) == unpaired(smoothed, two) != paired(first, second)
    assert compared(one, two, first, None) == unpaired(one, two)
    assert compared(one, two, first, np.tile(second, 2)) == unpaired(one, two)  # of other images


def test_scores_with_standard_errors_are_compared_unpaired() -> None:
    found = unpaired(Score(3, 0.5, 0.03), Score(3, 0.4, 0.04))
    assert found.z == pytest.approx(2) and found.standard_error == pytest.approx(0.05)
    without = unpaired(Score(3, 0.5, 0.03), Score(3, 0.4))
    assert without.value == pytest.approx(0.1) and without.z is None


@pytest.mark.parametrize("trials", [2, 4, 22])
@pytest.mark.parametrize("freedom", [3.0, 7.7, 40.0, np.inf])
@pytest.mark.parametrize("z", [-1.0, 0.0, 0.3, 2.0, 5.0])
def test_p_values_are_adjusted_for_the_choice_of_best_and_worst(z: float, freedom: float, trials: int) -> None:
    expected = scipy.stats.studentized_range.sf(max(z, 0) * np.sqrt(2), trials, freedom)
    assert familywise(z, trials, freedom) == pytest.approx(expected, abs=1e-6)


def test_far_out_p_values_are_those_of_single_pairs() -> None:
    assert familywise(7.0, 5) == pytest.approx(20 * scipy.stats.norm.sf(7), rel=1e-6)
    assert familywise(20.0, 5) == pytest.approx(20 * scipy.stats.norm.sf(20), rel=1e-6)
    assert familywise(20.0, 5, 30.0) == pytest.approx(20 * scipy.stats.t.sf(20, 30), rel=1e-6)
    assert familywise(np.inf, 5) == familywise(np.inf, 5, 3.0) == 0


@pytest.mark.parametrize("trials", [4, 16])
def test_p_values_are_uniform_where_all_trials_are_alike(trials: int) -> None:
    """Score equally good trials on the same images, some of them hard for all, and test the best against the worst."""
    random, found = np.random.default_rng(trials), []
    for _ in range(300):
        images = random.random(100) + 0.5 * random.standard_normal((trials, 100))
        order = images.mean(axis=1).argsort()
        found.append(familywise(paired(images[order[-1]], images[order[0]]).z or 0.0, trials))
    assert scipy.stats.kstest(found, "uniform").statistic < 0.09


def test_what_only_one_report_shows_is_estimated_and_widens_the_error() -> None:
    random, curve = np.random.default_rng(0), 1 - np.exp(-np.arange(1, 21) / 5)
    values = [level + curve + 0.02 * random.standard_normal(20) for level in np.linspace(0, 0.9, 40)]
    histories = [tuple(Score(epoch, float(v), 0.01, "a") for epoch, v in enumerate(own, 1)) for own in values]
    found = estimated_fluctuation(histories)
    assert found.variance == pytest.approx(0.02**2, rel=0.3)
    parallel = [tuple(Score(epoch, level + epoch**2) for epoch in (1, 2, 3)) for level in (0.0, 1.0)]
    assert estimated_fluctuation(parallel) == (0, 1)
    usual = Fluctuation(0.01**2)
    for too_few in (histories[:1], [history[:2] for history in histories], []):
        assert estimated_fluctuation(too_few) == usual
    # Copies have their donor's history, whose deviations say nothing new.
    early = [history[:12] for history in histories]
    assert estimated_fluctuation(early[:1] * 4) == usual
    assert estimated_fluctuation([*early, *early[:3]]) == estimated_fluctuation(early)
    # What fluctuated once need not do so now.
    calm = [(*own[:20], *(Score(epoch, 0.7 + i / 99) for epoch in range(21, 26))) for i, own in enumerate(histories)]
    assert estimated_fluctuation(calm).variance == pytest.approx(0, abs=1e-20)
    assert estimated_fluctuation([history[:20] for history in calm]).variance > 0
    wider = unpaired(Score(3, 0.5, 0.03), Score(3, 0.4, 0.04)).with_fluctuation(Fluctuation(0.0006, 6))
    assert wider.standard_error == pytest.approx(math.sqrt(0.0025 + 0.0012))
    assert wider.z == pytest.approx(0.1 / math.sqrt(0.0037)) and wider.value == pytest.approx(0.1)
    assert wider.freedom == pytest.approx(6 * (0.0037 / 0.0012) ** 2)


@pytest.mark.parametrize("reports", [3, *(pytest.param(reports, marks=pytest.mark.slow) for reports in (4, 5, 9))])
def test_the_degrees_of_freedom_are_those_of_a_variance_with_this_spread(reports: int) -> None:
    """An estimate with f degrees of freedom has a variance of 2 / f of its squared mean."""
    random = np.random.default_rng(reports)
    estimates = [
        estimated_fluctuation(tuple(Score(i, float(v)) for i, v in enumerate(own)) for own in trials)
        for trials in random.standard_normal((4000, 6, reports))
    ]
    variances = np.array([each.variance for each in estimates])
    assert variances.mean() == pytest.approx(1, abs=0.03)
    assert estimates[0].freedom == pytest.approx(2 / variances.var(), rel=0.1)


@pytest.mark.parametrize("reports", [3, 4, 7])
@pytest.mark.parametrize(("trials", "error"), [(4, 0.003), (8, 0.007)])
def test_decisions_are_at_the_stated_level(trials: int, error: float, reports: int) -> None:
    # With the fluctuation as known, 0.2 for four trials from the third report on; with the images' error alone, 0.68.
    assert false_copies(trials, error, reports) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("reports", [1, 2])
def test_first_decisions_are_at_the_stated_level_where_reports_fluctuate_as_assumed(reports: int) -> None:
    assert false_copies(8, 0.007, reports, fluctuation=0.01) == pytest.approx(0.1, abs=0.03)
    assert false_copies(8, 0.007, reports) < 0.05


@pytest.mark.parametrize(("copies", "since"), [(2, 1), (3, 1), (3, 2), (3, 4)])
def test_decisions_after_copies_are_at_most_at_the_stated_level(copies: int, since: int) -> None:
    """Trials that have copied share reports of their donor, which say less about the fluctuation."""
    # With each second difference as one of three independent reports: 0.20, 0.37, 0.22 and 0.13.
    assert false_copies(4, 0.003, 3 + since, copies, since) < 0.12


def false_copies(
    trials: int, error: float, reports: int, copies: int = 0, since: int = 0, fluctuation: float = 0.0055
) -> float:
    """Simulate equally good trials, and return how often the worst would copy the best at a level of 0.1.

    Their reports fluctuate, by default as those of the study do, beyond an ``error`` that their images leave. Some
    ``copies`` share the reports of the first trial until the last ones ``since`` then.
    """
    random, falsely = np.random.default_rng(reports), 0
    for _ in range(1000):
        noise = error * math.sqrt(50) * random.standard_normal((trials, 1, 50))
        noise[1 : 1 + copies] = noise[0]
        images = noise + fluctuation * random.standard_normal((trials, reports, 1))
        images[1 : 1 + copies, : reports - since] = images[0, : reports - since]
        means = images.mean(axis=2)
        histories = [tuple(Score(epoch, float(mean)) for epoch, mean in enumerate(own, 1)) for own in means]
        order = means[:, -1].argsort()
        difference = paired(images[order[-1], -1], images[order[0], -1])
        difference = difference.with_fluctuation(estimated_fluctuation(histories))
        falsely += familywise(difference.z or 0.0, trials, difference.freedom) <= 0.1
    return falsely / 1000


def test_scores_between_reports_are_interpolated() -> None:
    random = np.random.default_rng(0)
    epochs = np.unique(random.integers(1, 60, 20))
    history: History = tuple(Score(int(epoch), float(random.random()), 0.1, "a") for epoch in epochs)
    values = [score.value for score in history]
    for epoch in range(70):
        assert score_at(history, epoch).value == pytest.approx(np.interp(epoch, epochs, values), abs=1e-12)
        assert (score_at(history, epoch).trial == "a") == (epoch in epochs or not epochs[0] <= epoch <= epochs[-1])


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(0.03, 0.05, 0.05), (0.05, 0.03, 0.05), (None, 0.05, None), (0.05, None, None)]
)
def test_an_interpolated_score_has_the_larger_of_two_known_errors(
    before: float | None, after: float | None, expected: float | None
) -> None:
    history = (Score(2, 0.2, before, "a"), Score(4, 0.4, after, "a"))
    assert score_at(history, 3).standard_error == expected


def test_a_history_is_bounded_and_exact_where_it_is_new() -> None:
    history: History = ()
    for epoch in range(1, 1001):
        history = extended(history, Score(epoch, 2.0 * epoch))
        assert len(history) <= 32 and history[0].epoch == 1
    assert [score.epoch for score in history[-16:]] == list(range(985, 1001))
    assert score_at(history, 500).value == pytest.approx(1000)


def outcomes(trial: str, epoch: int, fitness: float) -> dict[str, Any]:
    """Report outcomes of images, with the fitness as their mean: equally hard for all trials, and with noise."""
    hardness = np.random.default_rng(0).uniform(-0.2, 0.2, IMAGES)
    drawn = np.random.default_rng([int(trial[-2:]), epoch]).normal(0, 0.1, IMAGES)
    values = np.clip(fitness + hardness - hardness.mean() + drawn - drawn.mean(), 0, 1)
    return {"outcomes": base64.b64encode(np.rint(255 * values).astype(np.uint8).tobytes()).decode()}


def of_groups(trial: str, epoch: int, fitness: float) -> dict[str, Any]:
    """Report the same of a measure that is no mean over images: numbers of which some are outside of [0, 1]."""
    values = decoded(base64.b64decode(outcomes(trial, epoch, fitness)["outcomes"]))[:50]
    return {"outcomes": base64.b64encode(encoded(fitness + 1.5 * (values - values.mean()))).decode()}


def ranked_by_number(simulated: Simulation) -> Simulation:
    """Let later trials score higher."""
    simulated.fitness = lambda trial, epoch, config, before: int(trial[-2:]) / 100
    return simulated


def alike(simulated: Simulation, **others: float) -> Simulation:
    """Let trials score alike but for less than the noise of their images, later ones higher; others as given."""
    simulated.fitness = lambda trial, epoch, config, before: others.get(trial, 0.5 + int(trial[-2:]) / 10_000)
    simulated.details = outcomes
    return simulated


def within_one(simulated: Simulation) -> Simulation:
    """Shrink what the trials gain, so that it is the mean of outcomes."""
    simulated.fitness = lambda trial, epoch, config, before: (before or 0.3) + optimum(config) / 100
    simulated.details = outcomes
    return simulated


def test_ties_replace_no_trial(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "alike")
    simulated.fitness = lambda trial, epoch, config, before: 0.5
    simulated.drive()
    assert simulated.lineage() == []


def test_of_equal_trials_the_first_is_kept(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=4)
    simulated.fitness = lambda trial, epoch, config, before: 0.6 if trial == "trial_01" else 0.5
    simulated.drive()
    assert {(trial, donor) for _, trial, donor, _ in simulated.lineage()} == {("trial_03", "trial_01")}


def test_a_donor_must_be_better_beyond_the_noise(tmp_path: Path) -> None:
    simulated = alike(simulation(tmp_path / "alike", population=4, interval_epochs=2))
    simulated.drive()
    refusals = read_refusals(simulated.directory)
    assert read_lineage(simulated.directory) == []
    assert [(each.epoch, each.trial, each.donor) for each in refusals] == [
        (epoch, "trial_00", "trial_03") for epoch in (2, 4, 6, 8)
    ]
    for refusal in refusals:
        better, worse = (
            decoded(base64.b64decode(outcomes(trial, refusal.epoch, fitness)["outcomes"]))
            for trial, fitness in (("trial_03", 0.5003), ("trial_00", 0.5))
        )
        # Until three reports show that nothing else fluctuates here, it is believed to.
        expected = paired(better, worse).with_fluctuation(Fluctuation(0.01**2 if refusal.epoch == 2 else 0))
        assert refusal.z == pytest.approx(expected.z, rel=1e-9)
        assert refusal.p == pytest.approx(familywise(refusal.z, 4), rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"opening": {"trials": 8, "epochs": 2}}])
def test_p_values_are_those_of_the_trials_that_take_part_and_of_their_last_reports(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Trials that have left in the opening do not count, nor do reports before the run was made longer."""
    simulated = simulation(tmp_path / "run", population=4, significance=1e-9, **options)
    simulated.config = simulated.config.model_copy(update={"epochs": 5})
    simulated.fitness = lambda trial, epoch, config, before: Random(f"{trial}{epoch}").gauss(0.5, 0.01)
    simulated.details = lambda trial, epoch, fitness: {"standard_error": 0.002}
    simulated.drive()
    made_longer(simulated, 5, EPOCHS)
    histories = {name: m.history for name, m in simulated.drive().members.items() if m.epoch == EPOCHS}
    assert len(histories) == 4
    refusals, freedoms = read_refusals(simulated.directory), set[float]()
    for refusal in refusals:
        first = 5 if refusal.epoch > 5 else 0
        known = [tuple(s for s in history if first < s.epoch <= refusal.epoch) for history in histories.values()]
        donor, own = (score_at(histories[name], refusal.epoch) for name in (refusal.donor, refusal.trial))
        expected = unpaired(donor, own).with_fluctuation(estimated_fluctuation(known))
        freedoms.add(expected.freedom)
        assert refusal.z == pytest.approx(expected.z, rel=1e-9)
        assert refusal.p == pytest.approx(familywise(refusal.z, 4, expected.freedom), rel=1e-9)
    assert len(refusals) >= 5 and min(freedoms) < 20 < max(freedoms)


@pytest.mark.parametrize("says", [outcomes, of_groups])
def test_observations_know_the_error_of_a_gain(says: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Paired with the trial's last report or, after a copy, the donor's: the same weights."""
    simulated = alike(simulation(tmp_path / "run", population=4), trial_00=0.4)
    simulated.details = says
    simulated.config = simulated.config.model_copy(update={"epochs": 3})
    state = simulated.drive()
    copied = {(trial, epoch + 1): donor for epoch, trial, donor, _ in simulated.lineage()}
    assert copied[("trial_00", 2)] == "trial_03"
    for observed in state.observations.values():
        before, after = observed.epochs
        if before:
            source = copied.get((observed.trial, after), observed.trial)
            both = (
                decoded(base64.b64decode(says(*key, simulated.fitness(*key, simulated.config, 0.0))["outcomes"]))
                for key in ((observed.trial, after), (source, before))
            )
            expected = paired(*both).standard_error
            assert observed.standard_error == pytest.approx(expected, rel=1e-12)
        else:
            assert observed.standard_error is None


def test_a_better_donor_is_copied_and_the_lineage_says_how_sure_that_is(tmp_path: Path) -> None:
    simulated = alike(simulation(tmp_path / "run", population=4), trial_00=0.4)
    simulated.config = simulated.config.model_copy(update={"epochs": 2})
    simulated.drive()
    (exploit,) = read_lineage(simulated.directory)
    assert (exploit.trial, exploit.donor) == ("trial_00", "trial_03")
    assert exploit.z is not None and exploit.z > 5 and exploit.p is not None and exploit.p < 1e-6


def test_standard_errors_alone_gate_too(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=4)
    simulated.fitness = lambda trial, epoch, config, before: int(trial[-2:]) / 20
    # The best and the worst differ by 0.15: far beyond an error of 0.001, and not beyond one of 0.1.
    simulated.details = lambda trial, epoch, fitness: {"standard_error": 0.001 if epoch < 3 else 0.1}
    simulated.drive()
    assert [epoch for epoch, _, _, _ in simulated.lineage()] == [1, 2]
    assert [refusal.epoch for refusal in read_refusals(simulated.directory)] == [3, 4, 5, 6, 7, 8]


def test_smoothed_scores_are_compared_by_their_errors(tmp_path: Path) -> None:
    """Whether their reports' outcomes have nearly the same mean is chance."""
    simulated = alike(simulation(tmp_path / "run", population=4, interval_epochs=4), trial_00=0.4)
    simulated.config = replaced(simulated.config, {"evaluation.smoothing": 0.5})
    simulated.details = lambda trial, epoch, fitness: {"standard_error": 0.2, **outcomes(trial, epoch, fitness)}
    simulated.drive()
    first, *_ = read_refusals(simulated.directory)
    assert first.trial == "trial_00" and first.z == pytest.approx(0.1003 / math.hypot(0.2, 0.2), rel=1e-3)


@pytest.mark.parametrize("level", [1, None])
def test_the_test_can_be_switched_off(tmp_path: Path, level: float | None) -> None:
    simulated = alike(simulation(tmp_path / "run", population=4, significance=level, interval_epochs=4))
    simulated.drive()
    assert len(simulated.lineage()) == 2 and read_refusals(simulated.directory) == []


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_killed_driver_refuses_the_same_copies(tmp_path: Path, every: int) -> None:
    """Half of the trials differ beyond the noise; decisions need outcomes that an earlier driver received."""

    def run(name: str) -> Simulation:
        return within_one(simulation(tmp_path / name, interval_epochs=2))

    whole, broken = run("whole"), run("broken")
    whole.drive()
    assert list(crashing(broken, every))
    lineages = [RunDirectory(simulated.directory).lineage.read_text() for simulated in (whole, broken)]
    assert lineages[0] == lineages[1]
    assert read_lineage(whole.directory) and read_refusals(whole.directory)


def test_a_refused_trial_may_explore_with_its_own_weights(tmp_path: Path) -> None:
    simulated = within_one(simulation(tmp_path / "run", population=4, explore_without_copy=True, significance=1e-9))
    state = simulated.drive()
    exploits = read_lineage(simulated.directory)
    assert len(exploits) == len(read_refusals(simulated.directory)) == EPOCHS - 1
    assert all(not exploit.copies and exploit.p is None and exploit.new != exploit.old for exploit in exploits)
    (simulated.directory / "config.json").write_text(simulated.config.model_dump_json())
    for name, member in state.members.items():
        stages = list(schedule_of(simulated.directory, name, simulated.directory).intervals())
        assert {stage.trial for stage, _ in stages} == {name}
        gains = [(end - s.from_epoch) * optimum(replaced(simulated.config, s.values)) for s, end in stages]
        assert 0.3 + sum(gains) / 100 == pytest.approx(member.score, abs=1e-9)
    # A driver may die between the lineage's line of a decision and the journal's, without which it has no effect.
    before = schedule_of(simulated.directory, "trial_00", simulated.directory)
    lost = make_exploit(EPOCHS - 1, "trial_00", "trial_01")
    append_line(RunDirectory(simulated.directory).lineage, lost.model_dump_json())
    assert schedule_of(simulated.directory, "trial_00", simulated.directory) == before


def test_decisions_are_readable(tmp_path: Path) -> None:
    exploit = make_exploit(3, "a", "b").model_copy(update={"z": 2.5, "p": 0.042})
    refusal = Refusal(time=exploit.time, epoch=4, trial="a", donor="b", difference=0.0123, z=0.5, p=0.876)
    assert exploit_line(exploit).startswith("epoch 3: a copied b (p 0.042), ")
    assert exploit_line(exploit.model_copy(update={"donor": "a"})).startswith("epoch 3: a kept its weights, ")
    assert refusal_line(refusal) == "epoch 4: a did not copy b, better by 0.0123 (p 0.88)"
    begin_results(tmp_path)
    RunDirectory(tmp_path).lineage.write_text(f"{exploit.model_dump_json()}\n{refusal.model_dump_json()}\n")
    assert "1 copies were refused" in write_report(tmp_path).read_text()


def test_controls_keep_values_and_weights_and_may_be_copied(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=8, controls=2)
    # The first control is the worst, the second the best.
    simulated.fitness = lambda trial, epoch, config, before: {"trial_00": 0.0, "trial_01": 1.0}.get(trial, 0.5)
    state = simulated.drive()
    configured = {path: value_at(simulated.config, path) for path in simulated.space.parameters}
    assert [name for name, member in state.members.items() if member.control] == ["trial_00", "trial_01"]
    assert state.members["trial_00"].values == state.members["trial_01"].values == configured
    copies = simulated.lineage()
    assert copies and {donor for _, _, donor, _ in copies} == {"trial_01"}
    assert not {trial for _, trial, _, _ in copies} & {"trial_00", "trial_01"}


def test_larger_populations_have_a_control_unless_told_otherwise() -> None:
    assert [space_of().controls_among(population) for population in (7, 8, 64)] == [0, 1, 1]
    assert space_of(controls=0).controls_among(64) == 0 and space_of(scheduler="none").controls_among(64) == 0


def test_the_random_start_of_hyperopt_follows_the_number_of_trials() -> None:
    assert [startup_trials(trials) for trials in (2, 8, 30, 1000)] == [1, 3, 10, 10]


def test_the_verdict_compares_the_best_trial_with_the_best_control() -> None:
    members = {name: Member(values={}, number=i, control=i == 0) for i, name in enumerate("abc")}
    state = PopulationState(members=members, next_decision_epoch=1)
    finals = {"a": Final(0.5, 0.03), "b": Final(0.6, 0.04), "c": Final(0.4, None)}
    assert [best_control(state, finals, best) for best in "abc"] == ["a", "a", "a"]
    assert best_control(state, {"b": finals["b"]}, "b") is None
    members["c"].control = True
    assert best_control(state, finals, "b") == "a"


def test_the_closed_forms_are_those_that_were_published() -> None:
    """The optima and the best constant value of the two toys."""

    def fitness(toy: Toy, schedule: list[float]) -> float:
        weights = toy.start
        for epoch, h in enumerate(schedule, start=1):
            weights = toy.advance(weights, h, epoch)
        return 1.2 - float(weights[0]) ** 2

    assert fitness(Toy(False), [1e-4] * 50) == pytest.approx(1.19973, abs=1e-5)
    linked = Toy(True)
    assert fitness(linked, [1e-4] * 50) == pytest.approx(0.827, abs=5e-4)
    assert fitness(linked, [1 - 0.02 * i for i in range(50)]) == pytest.approx(1.198, abs=5e-4)
    assert max(fitness(linked, [h / 200] * 50) for h in range(1, 221)) == pytest.approx(1.097, abs=1e-3)
    assert fmean(naive_pbt(linked, seed) for seed in range(20)) == pytest.approx(0.910, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pbt, interval 3", "pbt, asynchronous, interval 3", "pb2, interval 3"])
def test_decisions_every_third_epoch_solve_both_toys(name: str) -> None:
    plain, linked = (fmean(run_toy(name, linked, seed) for seed in range(3)) for linked in (False, True))
    assert plain >= 1.1995 and linked >= 1.15


@pytest.mark.slow
@pytest.mark.parametrize("slow", [1.5, 3.0])
def test_trials_on_slow_nodes_win_where_they_are_better(slow: float) -> None:
    found = [run_slow(slow, ASYNCHRONOUS, seed) for seed in range(2)]
    assert [each.found for each in found] == [8, 8]
    # Their copies on fast nodes begin behind where these were.
    assert all(1.1 < each.reports < slow for each in found)


@pytest.mark.slow
def test_noisy_populations_copy_better_donors_and_seldom_where_trials_are_alike() -> None:
    apart = [run_noisy("pbt", "trap", 8, 0.03, seed) for seed in range(4)]
    assert sum(each.false for each in apart) <= 0.1 * sum(each.exploits for each in apart) > 0
    alike = [run_noisy("pbt", "alike", 8, 0.03, seed) for seed in range(4)]
    assert sum(each.false for each in alike) <= 0.1 * sum(each.exploits + each.refusals for each in alike)


@pytest.mark.slow
def test_decisions_by_last_scores_drift_to_what_is_fast() -> None:
    """The fault that equal epochs mended, restated: without it the rows above would show nothing."""
    found = run_slow(3.0, BEFORE, 0)
    assert found.found == 0 and found.reports < 1  # copies on slow nodes begin ahead of where these were
    assert fmean(run_drift(BEFORE, seed).found for seed in range(2)) < 4


@pytest.mark.slow
def test_asynchronous_decisions_do_not_drift() -> None:
    found = {decisions: [run_drift(decisions, seed) for seed in range(12)] for decisions in (ASYNCHRONOUS, SYNCHRONOUS)}
    slots = {decisions: fmean(each.found for each in courses) for decisions, courses in found.items()}
    assert slots[ASYNCHRONOUS] == pytest.approx(slots[SYNCHRONOUS], abs=0.3)
    assert {each.reports for each in found[SYNCHRONOUS]} == {1}


def test_the_interval_of_a_copy_begins_at_the_copy(tmp_path: Path) -> None:
    """Not at the last decision about its donor: without a barrier, the next one would follow too early."""
    simulated = alike(simulation(tmp_path / "run", population=4, synchronous=False))
    simulated.drive()
    population, donor = simulated.members, simulated.members["trial_03"]
    donor.epoch, donor.decided_epoch = 8, 6
    population.copy("trial_00", "trial_03", donor.values)
    assert population["trial_00"].epoch == population["trial_00"].decided_epoch == 8


def test_outcomes_are_kept_as_long_as_a_history_has_their_report(tmp_path: Path) -> None:
    """A trial on a slow node is compared at its own epoch, a copy by what its donor reported."""

    def reports(epochs: Iterable[int]) -> History:
        return reduce(extended, (Score(epoch, 0.5, trial="trial_00") for epoch in epochs), ())

    members = {
        "trial_00": Member(values={}, number=0, epoch=200, history=reports(range(1, 201))),
        "copy": Member(values={}, number=1, epoch=40, history=reports(range(30, 41))),
    }
    members["replaced"] = members["copy"].model_copy(update={"replaced_history": reports([7])})
    state, folder = PopulationState(members=members, next_decision_epoch=1), RunDirectory(tmp_path)
    stored = folder.outcomes("trial_00", 0).parent
    stored.mkdir(parents=True)
    for epoch in range(1, MOST_OUTCOMES + 1):
        folder.outcomes("trial_00", epoch).touch()
    state.remove_old_outcomes(tmp_path, ["trial_00"])
    assert len(list(stored.iterdir())) == MOST_OUTCOMES
    for epoch in range(MOST_OUTCOMES + 1, 201):
        folder.outcomes("trial_00", epoch).touch()
    state.remove_old_outcomes(tmp_path, ["trial_00"])
    kept = {int(path.name.rpartition("_")[2]) for path in stored.iterdir()}
    assert kept == {score.epoch for score in members["trial_00"].history} | {7, *range(30, 41)}
    assert kept >= set(range(185, 201))


def test_a_trial_far_behind_is_compared_image_by_image(tmp_path: Path) -> None:
    RunDirectory(tmp_path).make_folders()
    state = PopulationState(next_decision_epoch=1)
    state.save(tmp_path)
    run, channel = cast(Run, SimulatedRun(tmp_path)), cast(ChannelCalls, SimulatedChannel())
    population = Population(TrialConfig(), state, run, channel)
    for name, epochs, fitness in (("trial_00", 20, 0.5), ("trial_01", 3, 0.4)):
        state.add(name, {})
        for epoch in range(1, epochs + 1):
            report = TrialReport(epoch=epoch, fitness=fitness, **outcomes(name, epoch, fitness))
            population.observe(name, Reply(report))
            population.commit(name)
    both = (outcomes("trial_00", 3, 0.5), outcomes("trial_01", 3, 0.4))
    expected = paired(*(decoded(base64.b64decode(each["outcomes"])) for each in both))
    assert population.compare("trial_00", "trial_01") == expected


@pytest.mark.parametrize(("grace", "factor"), [(1, 4), (2, 3), (3, 2.5)])
def test_asha_restated_is_rays_own(grace: int, factor: float) -> None:
    """Trials report every epoch, in any order among each other."""
    random = np.random.default_rng(grace)
    goals, order = random.random(12), random.permutation(np.repeat(np.arange(12), LAST_EPOCH))
    epochs, reports = [0] * 12, []
    for trial in order.tolist():
        epochs[trial] += 1
        reports.append((f"trial_{trial}", epochs[trial], float(goals[trial] + 0.3 * random.random())))
    restated = halving(reports, grace, factor, own_counts=False)
    assert ray_decisions(reports, grace, factor) == restated and 10 < sum(restated) < 40


def test_asha_may_count_the_own_score() -> None:
    """A quantile of 1 and 2 is 1.75 without the third score, 1.9, and 1.95 with it."""
    reports = [("a", 1, 1.0), ("b", 1, 2.0), ("c", 1, 1.9)]
    assert halving(reports, 1, 4, own_counts=False) == [False, False, False]
    assert halving(reports, 1, 4, own_counts=True) == [False, False, True]

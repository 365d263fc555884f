"""The opening of a population: which trials leave, when, and that every driver decides the same."""

import math
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from made_up_run import SETTINGS, make_row
from simulated import Simulation
from test_schedulers import EPOCHS, crashing, simulation

from adios_ray.config import TrialConfig, value_at
from adios_ray.errors import ConfigError
from adios_ray.run_directory import RunDirectory
from adios_ray.search.opening import Rung, leaving, rungs
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.spaces import Opening, save_space
from adios_ray.search.state import Member, PopulationState
from adios_ray.tracking.decisions import read_drops, read_lineage
from adios_ray.tracking.live import drop_line
from adios_ray.tracking.records import write_config
from adios_ray.tracking.report.page import write_report
from adios_ray.tracking.results import append_result, begin_results
from adios_ray.validation import parse

OPENING = {"trials": 11, "epochs": 3}
"""Halved to 6 at epoch 2 and to 4 at epoch 3."""


def opened(directory: Path, **options: Any) -> Simulation:
    """Make a population of 4 with an opening, whose scores are distinct and do not follow the trials' numbers."""
    simulated = simulation(directory, 4, **{"opening": OPENING, **options})
    simulated.fitness = lambda trial, epoch, config, before: (7 * int(trial[-2:]) % 11) / 10 + before / 100
    return simulated


def trial(number: int, score: float | None, control: bool = False) -> Member:
    """Make a trial."""
    return Member(values={}, number=number, score=score, epoch=2, control=control)


@pytest.mark.parametrize(
    ("trials", "epochs", "population", "expected"),
    [
        (16, 5, 8, [(5, 8)]),
        (16, 5, 4, [(3, 8), (5, 4)]),
        (11, 3, 4, [(2, 6), (3, 4)]),
        (64, 8, 5, [(1, 32), (2, 16), (4, 8), (8, 5)]),
        (64, 1, 5, [(1, 5)]),
    ],
)
def test_each_halving_is_at_half_the_epochs_of_the_next(
    trials: int, epochs: int, population: int, expected: list[tuple[int, int]]
) -> None:
    found = rungs(parse(Opening, {"trials": trials, "epochs": epochs}), population)
    assert found == tuple(Rung(*rung) for rung in expected) and rungs(None, population) == ()


def test_the_lowest_ranks_leave_but_not_the_configured_values() -> None:
    scores = [0.1, 0.5, WORST_SCORE, 0.5, None, 0.7, 0.5, 0.9]
    members = {f"t{number}": trial(number, score, number == 1) for number, score in enumerate(scores)}
    # From best to worst: 7, 5, then the equal 1, 3, 6 by number, then 0; last diverged 2, and 4 without a report.
    assert leaving(members, 4) == {"t3": 4, "t6": 5, "t2": 7, "t4": 8}
    assert leaving(members, 1).keys() == members.keys() - {"t0", "t1"}


@pytest.mark.parametrize(("synchronous", "capacity"), [(True, 1), (True, 99), (False, 3)])
def test_an_opening_leaves_the_best_trials_whose_population_evolves(
    tmp_path: Path, synchronous: bool, capacity: int
) -> None:
    simulated = opened(tmp_path / "run", capacity=capacity, order=capacity, synchronous=synchronous, interval_epochs=2)
    simulated.details = lambda trial, epoch, fitness: {"standard_error": 0.001}
    state = simulated.drive()
    drops = read_drops(simulated.directory)
    # 7 n mod 11 from the best: 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 0; trial 0 has the configured values and stays.
    assert {(d.epoch, d.trial, d.rank, d.trials) for d in drops} == {
        *((2, f"trial_{n:02d}", rank, 11) for n, rank in ((7, 6), (10, 7), (2, 8), (5, 9), (8, 10))),
        *((3, f"trial_{n:02d}", rank, 6) for n, rank in ((1, 4), (4, 5))),
    }
    rows = {(name, epoch): fitness for name, epoch, fitness in simulated.run.reports}
    assert all(drop.score == rows[drop.trial, drop.epoch] and drop.standard_error == 0.001 for drop in drops)
    left = {drop.trial: drop.epoch for drop in drops}
    assert {name: member.epoch for name, member in state.members.items()} == {
        n: left.get(n, EPOCHS) for n in state.members
    }
    assert all(member.finished for member in state.members.values())
    assert all(epoch <= left.get(name, EPOCHS) for name, epoch in rows)  # those that left trained no further
    configured = {path: value_at(simulated.config, path) for path in simulated.space.parameters}
    assert state.initial["trial_00"] == configured
    exploits = read_lineage(simulated.directory)
    assert exploits and not {name for each in exploits for name in (each.trial, each.donor)} & left.keys()
    if synchronous:  # else a trial may copy one that is behind
        assert min(exploit.epoch for exploit in exploits) == 5  # an interval after the opening


@pytest.mark.parametrize("synchronous", [True, False])
def test_the_configured_values_and_controls_survive_although_they_are_worst(tmp_path: Path, synchronous: bool) -> None:
    simulated = opened(tmp_path / "run", synchronous=synchronous, controls=2, interval_epochs=99)
    simulated.fitness = lambda trial, epoch, config, before: float(trial[-2:])
    state = simulated.drive()
    assert [name for name, member in state.members.items() if member.epoch == EPOCHS] == [
        "trial_00", "trial_01", "trial_09", "trial_10",
    ]  # fmt: skip
    assert [name for name, member in state.members.items() if member.control] == ["trial_00", "trial_01"]


@pytest.mark.parametrize(
    ("every", "capacity"),
    [(7, 3), *(pytest.param(e, c, marks=pytest.mark.slow) for e in (1, 2, 5) for c in (1, 99))],
)
def test_a_driver_that_is_killed_in_the_opening_comes_to_the_same_lineage(
    tmp_path: Path, every: int, capacity: int
) -> None:
    whole = opened(tmp_path / "whole", interval_epochs=2)
    expected = whole.drive()
    broken = opened(tmp_path / "broken", capacity=capacity, order=every, interval_epochs=2)
    assert list(crashing(broken, every))
    lineages = [RunDirectory(each.directory).lineage.read_text() for each in (whole, broken)]
    assert lineages[0] == lineages[1] and len(read_drops(broken.directory)) == 7
    found = PopulationState.load(broken.directory)
    assert {n: (m.epoch, m.score, m.values) for n, m in found.members.items()} == {
        n: (m.epoch, m.score, m.values) for n, m in expected.members.items()
    }


@pytest.mark.parametrize("seed", range(2))
def test_an_opening_ends_although_actors_die_and_nodes_leave(tmp_path: Path, seed: int) -> None:
    random, whole = Random(seed), opened(tmp_path / "whole")
    whole.drive()
    simulated = opened(tmp_path / "run", order=seed)
    simulated.loses_actor, simulated.count_capacity = lambda: random.random() < 0.3, lambda: random.choice((1, 4, 99))
    simulated.drive()
    assert read_drops(simulated.directory) == read_drops(whole.directory)
    assert simulated.lineage() == whole.lineage()


def test_a_trial_that_diverged_in_the_opening_leaves_first(tmp_path: Path) -> None:
    simulated = opened(tmp_path / "run")
    usual = simulated.fitness
    simulated.fitness = lambda trial, epoch, config, before: (
        math.nan if trial in ("trial_00", "trial_03") else usual(trial, epoch, config, before)
    )
    state = simulated.drive()
    (drop,) = [drop for drop in read_drops(simulated.directory) if drop.trial == "trial_03"]
    assert (drop.epoch, drop.rank, drop.score, drop.standard_error) == (2, 11, None, None)
    # The configured values stay although they diverged, and get a donor at the first decision.
    assert [(e.epoch, e.trial) for e in read_lineage(simulated.directory)][0] == (4, "trial_00")
    assert state.members["trial_00"].epoch == EPOCHS


def test_of_equal_trials_the_first_stay(tmp_path: Path) -> None:
    simulated = opened(tmp_path / "run")
    simulated.fitness = lambda trial, epoch, config, before: 0.5
    state = simulated.drive()
    assert [name for name, member in state.members.items() if member.epoch == EPOCHS] == [
        f"trial_{number:02d}" for number in range(4)
    ]


@pytest.mark.parametrize(
    ("opening", "message"),
    [
        ({"trials": 4, "epochs": 2}, "opening.trials 4 must be more than the population of 4"),
        ({"trials": 9, "epochs": 9}, "opening.epochs 9 must end before the last of 9 epochs"),
    ],
)
def test_an_opening_that_cannot_work_is_refused(opening: dict[str, int], message: str, tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", opening=opening)
    with pytest.raises(ConfigError, match=message):
        simulated.space.bind(simulated.config, population=4)
    with pytest.raises(ConfigError, match="opening is for pbt and pb2, not for asha"):
        simulation(tmp_path / "asha", scheduler="asha", opening=opening)


def test_an_opening_must_end_at_a_report_before_the_last(tmp_path: Path) -> None:
    space = simulation(tmp_path / "run", opening={"trials": 9, "epochs": 7}).space
    space.bind(parse(TrialConfig, {"epochs": 9}), population=4)
    with pytest.raises(ConfigError, match="opening.epochs 7 must end before the last of 8 epochs"):
        space.bind(parse(TrialConfig, {"epochs": 8, "evaluation": {"interval_epochs": 4}}), population=4)


def test_readers_are_told_who_left_and_why(tmp_path: Path) -> None:
    simulated = opened(tmp_path / "run")
    simulated.details = lambda trial, epoch, fitness: {"standard_error": 0.0125} if trial != "trial_08" else {}
    simulated.drive()
    drops = {drop.trial: drop for drop in read_drops(simulated.directory)}
    assert drop_line(drops["trial_05"]) == "epoch 2: trial_05 left, rank 9 of 11 (0.202 ± 0.0125)"
    failed = drops["trial_08"].model_copy(update={"score": None})
    assert drop_line(failed) == "epoch 2: trial_08 left, rank 10 of 11 (failed)"
    begin_results(simulated.directory, list(SETTINGS))
    append_result(simulated.directory, make_row(epoch=9, time=datetime(2027, 1, 1, tzinfo=UTC)))
    write_config(simulated.directory, {})
    save_space(simulated.space, RunDirectory(simulated.directory).space)
    page = write_report(simulated.directory).read_text()
    assert "7 trials left in the opening" in page and "20.2 ± 1.2 %" in page

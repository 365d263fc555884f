"""Decisions about populations, in a simulation that can crash at every step and that loses and gains nodes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, get_args

import hyperopt
import numpy as np
import pytest
from pydantic import ValidationError
from simulated import CrashedError, Simulation, StuckError, optimum

from adios_ray.backend import line
from adios_ray.backend.admission import Admission
from adios_ray.backend.line import Line, Lines, Note, Request
from adios_ray.checkpoints import Pointer
from adios_ray.config import EVOLVING, STOPPING, Scheduler, TrialConfig, replaced, value_at
from adios_ray.errors import ClaimError, FaultError
from adios_ray.experiment.schedule import Schedule, Stage, schedule_of
from adios_ray.run_directory import RunDirectory, trial_of
from adios_ray.search.gaussian_process import Data
from adios_ray.search.pb2 import PB2
from adios_ray.search.population import WORST_SCORE, Population
from adios_ray.search.scheduler import STOP
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import Member, Observation, PopulationState
from adios_ray.search.stopping import StoppingSearch, make_rule
from adios_ray.search.suggest import TreeParzen, initial_values, make_suggest, random_trials
from adios_ray.tracking.comparison import Score
from adios_ray.tracking.decisions import read_drops, read_lineage
from adios_ray.tracking.lineage import ancestry
from adios_ray.trial_report import TrialReport
from adios_ray.validation import parse

PARAMETERS = {
    "masking.sparsity_weight": {"low": 0.1, "high": 1.0, "scale": "linear"},
    "optimizer.encoder_lr": {"low": 0.01, "high": 1.0, "scale": "log"},
    "masking.slots": {"low": 2, "high": 6, "scale": "integer"},
}
EPOCHS = 9


def space_of(**options: Any) -> SearchSpace:
    """Make a search over three values."""
    return parse(SearchSpace, {"scheduler": "pbt", "parameters": PARAMETERS, **options})


def simulation(directory: Path, population: int = 6, capacity: int = 99, order: int = 0, **options: Any) -> Simulation:
    """Make a new population whose trials report in an order seeded by ``order``."""
    config = parse(TrialConfig, {"epochs": EPOCHS, "seed": 1, "masking": {"sparsity_weight": 0.5}})
    simulated = Simulation(directory, space_of(**options), config, population, lambda: capacity, Random(order))
    simulated.fresh()
    return simulated


def crashing(simulated: Simulation, every: int) -> Iterator[int]:
    """Kill the driver after every ``every`` steps and restart it until it finishes; yields the count of crashes."""
    steps = 0

    def crash(_: Simulation) -> None:
        nonlocal steps
        steps += 1
        if steps % every == 0:
            raise CrashedError

    simulated.on_step = crash
    crashes = 0
    while True:
        try:
            simulated.drive()
            return
        except CrashedError:
            crashes += 1
            yield crashes


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("capacity", [1, 2, 5, 99])
@pytest.mark.parametrize("order", [0, 1])
def test_every_trial_trains_to_the_end_at_any_capacity(
    tmp_path: Path, synchronous: bool, capacity: int, order: int
) -> None:
    simulated = simulation(tmp_path / "run", capacity=capacity, order=order, synchronous=synchronous, interval_epochs=2)
    most = 0

    def watch(now: Simulation) -> None:
        nonlocal most
        most = max(most, len(now.scheduler.admission.running()))
        epochs = [member.epoch for member in now.members.state.members.values() if not member.finished]
        if capacity < 6 and epochs and synchronous:
            assert max(epochs) - min(epochs) <= 2  # no trial runs ahead while others wait for resources

    simulated.on_step = watch
    state = simulated.drive()
    assert {member.epoch for member in state.members.values()} == {EPOCHS}
    assert most == min(capacity, 6)
    reported = {(trial, epoch) for trial, epoch, _ in simulated.run.reports}
    if synchronous:  # else a trial may copy one that is ahead of it or a little behind
        assert len(simulated.run.reports) == len(reported) == 6 * EPOCHS


@pytest.mark.parametrize("capacity", [2, 99])
def test_the_order_of_reports_does_not_change_a_synchronous_lineage(tmp_path: Path, capacity: int) -> None:
    lineages = []
    for order in range(4):
        simulated = simulation(tmp_path / str(order), capacity=capacity, order=order, interval_epochs=2)
        simulated.drive()
        lineages.append(simulated.lineage())
    assert len(lineages[0]) == 2 * 4 and all(lineage == lineages[0] for lineage in lineages)


def test_another_seed_draws_other_values() -> None:
    first, second = (initial_values(space_of(), parse(TrialConfig, {"seed": seed}), 4) for seed in (1, 2))
    assert first[0] == second[0]  # the configured ones
    assert all(one != two for one, two in zip(first[1:], second[1:], strict=True))


def test_another_seed_explores_other_values(tmp_path: Path) -> None:
    explored = []
    for seed in (1, 2):
        simulated = simulation(tmp_path / str(seed), population=4)  # begins with the values of seed 1
        simulated.config = simulated.config.model_copy(update={"seed": seed})
        simulated.fitness = lambda trial, epoch, config, before: int(trial[-2:]) / 100
        simulated.drive()
        explored.append([values for *_, values in simulated.lineage()])
    assert len(explored[0]) == EPOCHS - 1 and explored[0] != explored[1]


def test_no_two_decisions_draw_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a barrier, a trial that copies one behind it reaches the same epoch again."""
    simulated, scores = simulation(tmp_path / "run", order=4, synchronous=False, significance=1), Random(4)
    simulated.fitness = lambda trial, epoch, config, before: scores.random()
    random, decisions, numbers = Population.random, list[tuple[str, int]](), list[float]()

    def recorded(members: Population, name: str, again: bool = False) -> Random:
        decisions.append((name, members[name].epoch))
        numbers.append(random(members, name, again).random())
        return random(members, name, again)

    monkeypatch.setattr(Population, "random", recorded)
    simulated.drive()
    assert len(set(decisions)) < len(decisions) == len(set(numbers))


@pytest.mark.parametrize("every", [1, 2, 3, 7, 13])
@pytest.mark.parametrize("capacity", [3, 99])
def test_a_driver_that_is_killed_again_and_again_makes_the_same_decisions(
    tmp_path: Path, every: int, capacity: int
) -> None:
    whole = simulation(tmp_path / "whole", interval_epochs=2)
    expected = whole.drive()
    broken = simulation(tmp_path / "broken", capacity=capacity, interval_epochs=2)
    assert len(list(crashing(broken, every))) >= 54 // (every + 1) - 2
    assert broken.lineage() == whole.lineage()
    state = PopulationState.load(broken.directory)
    for name, member in expected.members.items():
        assert state.members[name].score == member.score and state.members[name].values == member.values


def test_a_change_that_was_cut_off_never_happened(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", interval_epochs=3)
    simulated.drive()
    journal = RunDirectory(simulated.directory).journal
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    # A crash amid writing a line leaves a part of it without the newline.
    journal.write_bytes(b"".join(lines[:20]) + lines[20][: len(lines[20]) // 2])
    cut = PopulationState.load(simulated.directory)
    journal.write_bytes(b"".join(lines[:20]))
    assert PopulationState.load(simulated.directory) == cut
    journal.write_bytes(content)
    assert PopulationState.load(simulated.directory) == simulated.members.state


@pytest.mark.parametrize("capacity", [1, 3, 99])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_actors_that_die_change_no_decision_and_lose_no_report(tmp_path: Path, capacity: int, seed: int) -> None:
    whole = simulation(tmp_path / "whole", interval_epochs=2)
    expected, random = whole.drive(), Random(seed)
    broken = simulation(tmp_path / "broken", capacity=capacity, order=seed, interval_epochs=2)
    broken.loses_actor = lambda: random.random() < 0.3
    state = broken.drive()
    assert broken.lineage() == whole.lineage()
    assert sorted(broken.run.reports) == sorted(whole.run.reports)
    assert {name: member.score for name, member in state.members.items()} == {
        name: member.score for name, member in expected.members.items()
    }


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_report_and_the_decision_that_it_leads_to_are_one_line_of_the_journal(
    tmp_path: Path, synchronous: bool
) -> None:
    simulated = simulation(tmp_path / "run", synchronous=synchronous, interval_epochs=2)
    simulated.drive()
    journal = RunDirectory(simulated.directory).journal.read_bytes()
    assert len(simulated.lineage()) > 0 and len(journal.splitlines()) == len(simulated.run.reports)


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("order", range(3))
def test_a_resumed_driver_knows_every_observation(tmp_path: Path, synchronous: bool, order: int) -> None:
    simulated = simulation(tmp_path / "run", order=order, synchronous=synchronous, interval_epochs=2)
    state = simulated.drive()
    assert PopulationState.load(simulated.directory).observations == state.observations
    assert len(simulated.lineage()) > 0


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
@pytest.mark.parametrize("seed", range(3))
def test_trials_finish_although_actors_die(tmp_path: Path, scheduler: Scheduler, seed: int) -> None:
    random, options = Random(seed), {"synchronous": False} if scheduler in EVOLVING else {}
    simulated = simulation(tmp_path / "run", capacity=2, order=seed, scheduler=scheduler, **options)
    simulated.loses_actor = lambda: random.random() < 0.3
    state = simulated.drive()
    assert len(state.members) == 6 and all(member.finished for member in state.members.values())
    if scheduler not in STOPPING:
        assert {member.epoch for member in state.members.values()} == {EPOCHS}


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_trials_finish_although_nodes_join_and_leave(tmp_path: Path, synchronous: bool, seed: int) -> None:
    random = Random(seed)
    simulated = simulation(tmp_path / "run", order=seed, synchronous=synchronous, interval_epochs=2)
    simulated.count_capacity = lambda: random.choice((0, 1, 2, 4, 8))
    state = simulated.drive()
    assert {member.epoch for member in state.members.values()} == {EPOCHS}


@dataclass
class ServesTheDead(Line):
    """The state of a trial with a fault: requests of killed actors are served like live ones, the oldest first."""

    waiting: list[Request] = field(default_factory=list)

    def restart_actor(self) -> None:
        """Keep the requests of the last actor."""

    def ask(self, missed: bool) -> Request:
        """Queue a request behind earlier ones."""
        asked = Request(missed)
        self.waiting.append(asked)
        self._advance()
        return asked

    def _advance(self) -> None:
        for asked in list(self.waiting):
            self.request = asked
            super()._advance()
            if asked.reply:
                self.waiting.remove(asked)


def is_stuck(directory: Path, seed: int) -> bool:
    """Return whether a synchronous population deadlocks while actors die and most of the cluster leaves and rejoins."""
    random, capacity = Random(seed), 6

    def count_capacity() -> int:
        nonlocal capacity
        capacity = random.choice((1, 6)) if random.random() < 0.2 else capacity
        return capacity

    simulated = simulation(directory, order=seed)
    simulated.loses_actor, simulated.count_capacity = lambda: random.random() < 0.3, count_capacity
    try:
        state = simulated.drive()
    except StuckError:
        return True
    assert {member.epoch for member in state.members.values()} == {EPOCHS}
    return False


@pytest.mark.parametrize(
    "seeds", [pytest.param(range(8), id="few"), pytest.param(range(200), id="many", marks=pytest.mark.slow)]
)
def test_actors_that_die_while_the_cluster_shrinks_cause_no_deadlock(tmp_path: Path, seeds: range) -> None:
    assert [seed for seed in seeds if is_stuck(tmp_path / str(seed), seed)] == []


def test_the_simulation_detects_deadlocks_by_requests_of_dead_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "Line", ServesTheDead)
    assert any(is_stuck(tmp_path / str(seed), seed) for seed in range(200))


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("crash_every", [math.inf, 7])
@pytest.mark.parametrize("seed", range(3))
def test_checkpoints_in_use_and_those_before_them_are_kept_and_no_others(
    tmp_path: Path, synchronous: bool, crash_every: float, seed: int
) -> None:
    """Else a resumed driver would find none, and a trial whose checkpoint is damaged none or others' weights."""
    random, borrowed, steps, finished = Random(seed), set[Path](), 0, False
    simulated = simulation(tmp_path / "run", population=8, order=seed, synchronous=synchronous, significance=1)
    simulated.fitness = lambda trial, epoch, values, before: random.random()

    def check(now: Simulation) -> None:
        nonlocal steps
        steps += 1
        members = now.members.state.members
        pointers = {name: member.checkpoint for name, member in members.items() if member.checkpoint}
        for name, pointer in pointers.items():
            assert (pointer.before is None) == (members[name].epoch == 1)
            assert all((each.path / "score").read_text() == each.sha256 for each in pointer.chain)
            borrowed.update(path for path in pointer.paths if path.parent.name != name)
        used = {path for pointer in pointers.values() for path in pointer.paths}
        for name, member in members.items():
            if member.replaced_history:  # until its first report as a copy, for workers that are loading it
                replaced = RunDirectory(now.directory).checkpoint(name, member.replaced_history[-1].epoch)
                assert replaced.is_dir()
                used |= set(replaced.parent.iterdir())
        unused = set((now.directory / "checkpoints").glob("*/*")) - used
        answered = {line.checkpoint.path for line in now.channel.lines.values() if line.checkpoint}
        # What was answered is not used until the driver has it; if the driver dies before, it is written once more.
        # What another trial has used stays until the next report of its own.
        assert unused <= answered | borrowed or math.isfinite(crash_every)
        if steps % crash_every == 0:
            raise CrashedError

    simulated.on_step = check
    while not finished:
        with suppress(CrashedError):
            simulated.drive()
            finished = True
    assert borrowed


@pytest.mark.parametrize("failure", [math.nan, math.inf, -math.inf])
def test_a_diverged_trial_scores_worst_and_is_replaced(tmp_path: Path, failure: float) -> None:
    simulated = simulation(tmp_path / "run", population=4)
    usual = simulated.fitness
    simulated.fitness = lambda trial, epoch, values, before: (
        failure if (trial, epoch) == ("trial_02", 3) else usual(trial, epoch, values, before)
    )
    simulated.drive()
    (exploit,) = [exploit for exploit in simulated.lineage() if exploit[:2] == (3, "trial_02")]
    assert exploit[2] != "trial_02"
    assert simulated.members.state.observations["trial_02/3"].scores[1] == WORST_SCORE


@pytest.mark.parametrize(("best", "worst"), [("trial_07", "trial_01"), ("trial_01", "trial_07")])
def test_all_trials_that_have_diverged_are_replaced_at_once_and_the_others_still_compete(
    tmp_path: Path, best: str, worst: str
) -> None:
    simulated = simulation(tmp_path / "run", population=8)
    failing = {f"trial_{number:02d}" for number in (2, 3, 4, 5, 6)}
    scores = {best: 3.0, worst: 1.0}  # trial_00 is the control
    simulated.fitness = lambda trial, epoch, config, before: (
        math.nan if trial in failing and epoch == 3 else scores.get(trial, 2.0) + epoch
    )
    simulated.drive()
    decided = {trial: donor for epoch, trial, donor, _ in simulated.lineage() if epoch == 3}
    assert decided == {**dict.fromkeys(failing, best), worst: best}


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_failure_that_a_trial_has_survived_is_forgotten(tmp_path: Path, synchronous: bool) -> None:
    """Asynchronously, slow trials are compared with others at the epoch at which these had failed."""
    simulated = simulation(tmp_path / "run", 4, synchronous=synchronous, interval_epochs=2, order=3)
    scores = {"trial_00": 0.1, "trial_01": 0.2, "trial_02": 0.3, "trial_03": 0.5}
    simulated.fitness = lambda trial, epoch, config, before: (
        math.nan if (trial, epoch) == ("trial_03", 1) else scores[trial] + epoch / 100
    )
    slow_last(simulated, "trial_02")
    simulated.drive()
    assert [donor for _, trial, donor, _ in simulated.lineage() if trial == "trial_03"] == []


def slow_last(simulated: Simulation, *slow: str) -> None:
    """Let these trials report only when no other one can."""
    choose = simulated.random.choice

    def fast_first(options: Sequence[Any]) -> Any:
        fast = [option for option in options if not (isinstance(option, tuple) and option[0] in slow)]
        return choose(fast or options)

    simulated.random.choice = fast_first  # type: ignore[method-assign, assignment]  # of this simulation alone


def test_slow_trials_are_ranked_among_those_that_are_done(tmp_path: Path) -> None:
    """The two best are slow: when all others have finished, the second must not become the worst."""
    simulated = simulation(tmp_path / "run", 8, interval_epochs=3, synchronous=False, controls=0)
    scores = {f"trial_{number:02d}": 0.3 + number / 500 for number in range(6)} | {"trial_06": 0.48, "trial_07": 0.51}
    simulated.fitness = lambda trial, epoch, config, before: scores[trial] + epoch / 100
    slow_last(simulated, "trial_06", "trial_07")
    state = simulated.drive()
    assert {member.epoch for member in state.members.values()} == {EPOCHS}
    assert not {"trial_06", "trial_07"} & {trial for _, trial, _, _ in simulated.lineage()}


def test_a_slow_trial_that_fails_after_others_are_done_copies_one_that_still_trains(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", 8, interval_epochs=2, synchronous=False, controls=0)
    scores = {f"trial_{number:02d}": 0.3 + number / 100 for number in range(8)}
    simulated.fitness = lambda trial, epoch, config, before: (
        math.nan if (trial == "trial_00" and epoch >= 4 and not simulated.lineage()) else scores[trial] + epoch / 100
    )
    scores["trial_00"] = 0.9  # until then, no copy
    slow_last(simulated, "trial_00", "trial_01")
    simulated.details = lambda trial, epoch, fitness: {"standard_error": 0.5}
    state = simulated.drive()
    assert ("trial_00", "trial_01") in [(trial, donor) for _, trial, donor, _ in simulated.lineage()]
    assert state.members["trial_00"].score == pytest.approx(0.9 + EPOCHS / 100)


def test_a_failure_that_is_forgotten_makes_no_trial_better_than_slower_ones(tmp_path: Path) -> None:
    """The history begins after it, and the first report in it is of a later epoch than the slow trial's."""
    simulated = simulation(tmp_path / "run", 4, interval_epochs=3, synchronous=False, controls=0)
    below = {"trial_00": 0.0, "trial_01": 0.002, "trial_02": 0.004, "trial_03": -0.05}
    simulated.fitness = lambda trial, epoch, config, before: (
        math.nan if trial == "trial_03" and epoch <= 4 else epoch / 10 + below[trial]
    )
    choose = simulated.random.choice

    def in_turn(options: Sequence[Any]) -> Any:
        """Let trial_00 wait until trial_03 has reported, and then report first."""
        epoch = {name: simulated.members[name].epoch for name in ("trial_00", "trial_03")}
        waits = "trial_00" if epoch["trial_03"] < 5 else "trial_03" if epoch["trial_00"] < 3 else ""
        return choose([each for each in options if not (isinstance(each, tuple) and each[0] == waits)] or options)

    simulated.random.choice = in_turn  # type: ignore[method-assign, assignment]  # of this simulation alone
    simulated.drive()
    assert "trial_03" not in {donor for _, _, donor, _ in simulated.lineage()}


def test_a_population_in_which_all_diverged_makes_no_copies(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=4)
    simulated.fitness = lambda trial, epoch, values, before: math.nan
    simulated.drive()
    assert simulated.lineage() == []


@pytest.mark.parametrize(
    ("first", "mean"), [(1.0, 0.75 * 1 + 0.25 * 2), pytest.param(math.nan, 2, id="after a failure")]
)
def test_smoothed_scores_are_running_means(tmp_path: Path, first: float, mean: float) -> None:
    simulated = simulation(tmp_path / "run", population=2, interval_epochs=99)
    simulated.config = parse(TrialConfig, {"epochs": 3, "evaluation": {"smoothing": 0.75}})
    simulated.fitness = lambda trial, epoch, values, before: first if epoch == 1 else float(epoch)
    state = simulated.drive()
    assert state.members["trial_00"].score == pytest.approx(0.75 * mean + 0.25 * 3, abs=1e-12)


def final_score(state: PopulationState) -> float:
    """Return the best score in a population."""
    return max(member.score for member in state.members.values() if member.score is not None)


@pytest.mark.parametrize(("scheduler", "epochs"), [("pbt", 20), pytest.param("pb2", 8, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_evolving_beats_training_the_same_trials_unchanged(tmp_path: Path, scheduler: str, epochs: int) -> None:
    gains = []
    for seed in range(3):
        still = simulation(tmp_path / f"still{seed}", order=seed, interval_epochs=99)
        moving = simulation(tmp_path / f"{scheduler}{seed}", order=seed, scheduler=scheduler)
        for simulated in (still, moving):
            simulated.config = simulated.config.model_copy(update={"epochs": epochs, "seed": seed})
        gains.append(final_score(moving.drive()) - final_score(still.drive()))
    assert min(gains) > -0.05 * epochs and sum(gains) > 0.05 * epochs


@pytest.mark.slow
def test_pb2_decisions_repeat_and_stays_inside_its_bounds(tmp_path: Path) -> None:
    lineages = []
    for run in range(2):
        simulated = simulation(tmp_path / str(run), order=run, scheduler="pb2")
        simulated.config = simulated.config.model_copy(update={"epochs": 4})
        simulated.drive()
        lineages.append(simulated.lineage())
    broken = simulation(tmp_path / "broken", scheduler="pb2")
    broken.config = broken.config.model_copy(update={"epochs": 4})
    assert list(crashing(broken, 5)) and broken.lineage() == lineages[0]
    assert lineages[0] == lineages[1] and len(lineages[0]) == 2 * 3
    for _, _, _, values in lineages[0]:
        assert 0.1 <= values["masking.sparsity_weight"] <= 1 and 0.01 <= values["optimizer.encoder_lr"] <= 1
        assert values["masking.slots"] in range(2, 7) and isinstance(values["masking.slots"], int)


@pytest.mark.slow
def test_pb2_keeps_apart_from_copies_that_an_earlier_driver_made(tmp_path: Path) -> None:
    space, random = space_of(scheduler="pb2"), Random(0)
    state = PopulationState(next_decision_epoch=3)
    for number in range(6):
        values, name = space.sample(random), f"trial_{number:02d}"
        gain = 0.5 + 0.01 * number
        history = tuple(Score(epoch, epoch * gain, 0.02, name) for epoch in (1, 2))
        state.add(name, values)
        state.members[name] = state.members[name].model_copy(
            update={"epoch": 2, "score": 2 * gain, "base_score": 2 * gain, "history": history}
        )
        state.observations[f"{name}/2"] = Observation(
            trial=name, values=values, epochs=(1, 2), scores=(gain, 2 * gain), standard_error=0.1
        )

    def choose(known: PopulationState) -> dict[str, Any]:
        return PB2(space, known)("trial_00", known.members["trial_01"], Random(1))

    alone = choose(state)
    donor = state.members["trial_01"]
    state.members["trial_02"] = donor.model_copy(update={"values": alone, "replaced_history": history})
    state.save(tmp_path)
    beside = choose(PopulationState.load(tmp_path))
    assert beside == choose(state)
    distances = [
        abs(math.log(beside[path] / alone[path])) if scale == "log" else abs(beside[path] - alone[path])
        for path, scale in (("masking.sparsity_weight", "linear"), ("optimizer.encoder_lr", "log"))
    ]
    assert max(distances) > 0.05
    state.members["trial_02"].replaced_history = None  # has reported
    assert choose(state) == alone


def test_pb2_learns_from_gains_per_epoch_of_reports_that_stand_for_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    space, state, seen = space_of(scheduler="pb2"), PopulationState(next_decision_epoch=9), list[tuple[Data, Any]]()
    values = {"masking.sparsity_weight": 0.5, "optimizer.encoder_lr": 0.1, "masking.slots": 4}

    class Recorder:
        def __init__(self, *given: Any) -> None:
            seen.append(given)

        def choose(self, *_: Any) -> Any:
            return np.array([0.3, math.log(0.2), 3.4])

    monkeypatch.setattr("adios_ray.search.pb2.Surrogate", Recorder)
    for name, epochs, scores, error in (
        ("d", (4, 6), (0.3, 0.7), 0.06),
        ("c", (2, 4), (WORST_SCORE, 0.3), 0.06),
        ("b", (0, 2), (None, 0.1), 0.06),
        ("a", (4, 6), (0.2, 0.8), 0.06),
        ("e", (1, 2), (0.1, 0.4), None),
        ("f", (2, 5), (0.1, WORST_SCORE), 0.06),
        ("g", (2, 5), (0.1, 0.4), 0.06),
    ):
        state.add(name, values)
        observed = Observation(trial=name, values=values, epochs=epochs, scores=scores, standard_error=error)
        state.observations[f"{name}/{epochs[1]}"] = observed
    donor = Member(values=values, number=0, epoch=6, score=0.7, base_score=0.7)
    chosen = PB2(space, state)("a", donor, Random(0))
    ((data, bounds),) = seen
    rest = [0.5, math.log(0.1), 4]
    np.testing.assert_allclose(data.rows, [[2, 0.1, *rest], [5, 0.1, *rest], [6, 0.2, *rest], [6, 0.3, *rest]])
    np.testing.assert_allclose(data.gains, [0.3, 0.1, 0.3, 0.2])
    np.testing.assert_allclose(data.errors, [0.0, 0.02, 0.03, 0.03])
    np.testing.assert_allclose(bounds, [[0.1, math.log(0.01), 2], [1.0, 0.0, 6]], atol=1e-12)
    assert chosen == {"masking.sparsity_weight": 0.3, "optimizer.encoder_lr": pytest.approx(0.2), "masking.slots": 3}


def test_a_scheduler_without_a_stopping_rule_is_refused() -> None:
    with pytest.raises(AssertionError, match="pbt has no stopping rule"):
        make_rule(space_of(), EPOCHS)


def by_rank(trial: str, epoch: int, config: TrialConfig, before: float) -> float:
    """Score a trial by its number."""
    return int(trial[-2:]) + epoch / 100


def test_asha_keeps_the_best_share_at_each_rung(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=27, scheduler="asha", reduction_factor=3)
    simulated.fitness = by_rank
    state = simulated.drive()
    epochs = sorted(member.epoch for member in state.members.values())
    assert epochs.count(1) >= 9 and epochs[-1] == EPOCHS and all(member.finished for member in state.members.values())
    assert state.members["trial_26"].epoch == EPOCHS
    assert sum(epochs) < 27 * EPOCHS / 2


def test_asha_stops_nothing_where_its_grace_is_longer_than_the_training(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=4, scheduler="asha", grace_epochs=EPOCHS + 1)
    assert {member.epoch for member in simulated.drive().members.values()} == {EPOCHS}


def test_median_stops_trials_below_the_median(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=12, capacity=4, scheduler="median", grace_epochs=2)
    simulated.fitness = lambda trial, epoch, config, before: -by_rank(trial, epoch, config, before)
    state = simulated.drive()
    assert [state.members[f"trial_{i:02d}"].epoch for i in range(3)] == [EPOCHS] * 3
    assert state.members["trial_11"].epoch < EPOCHS


@pytest.mark.parametrize(
    ("options", "stopped"),
    [
        ({"scheduler": "median", "grace_epochs": 4, "min_trials": 3}, 2),
        ({"scheduler": "asha", "grace_epochs": 4, "reduction_factor": 4}, 3),
    ],
)
def test_a_rule_stops_trials_at_what_was_the_last_epoch_of_a_search_that_is_made_longer(
    tmp_path: Path, options: dict[str, Any], stopped: int
) -> None:
    simulated = simulation(tmp_path / "run", population=5, **options)
    simulated.config = simulated.config.model_copy(update={"epochs": 4})
    # At the last epoch, trial_00 falls far behind the others.
    simulated.fitness = lambda trial, epoch, config, before: (
        0.51 if trial == "trial_00" else (0.9 if epoch >= 4 else 0.5) + int(trial[-2:]) / 1000
    )
    assert {member.epoch for member in simulated.drive().members.values()} == {4}
    made_longer(simulated, 4, 8)
    epochs = {name: member.epoch for name, member in simulated.drive().members.items()}
    assert epochs["trial_00"] == 4 and epochs["trial_04"] == 8
    assert list(epochs.values()).count(4) == stopped and set(epochs.values()) == {4, 8}


def made_longer(simulated: Simulation, before: int, after: int) -> None:
    """Make a run that has trained to an epoch longer, as a resumption with more epochs does."""
    state = PopulationState.load(simulated.directory)
    state.epochs = before
    state.extend(after, simulated.space.interval_epochs)
    state.save(simulated.directory)
    simulated.config = simulated.config.model_copy(update={"epochs": after})


def test_a_stopped_trial_that_has_lost_its_checkpoint_trains_to_its_last_report_and_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = simulation(tmp_path / "run", population=9, scheduler="asha", grace_epochs=2, reduction_factor=3)
    simulated.fitness = by_rank
    before = {name: member.epoch for name, member in simulated.drive().members.items()}
    stopped = next(name for name, epoch in before.items() if epoch < EPOCHS)
    state = PopulationState.load(simulated.directory)
    state.reopen(stopped, 1)
    assert state.unfinished(before) == [stopped]
    state.save(simulated.directory)
    register = Lines.register

    def fall_back(
        lines: Lines, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool
    ) -> None:
        register(lines, trial, config, checkpoint, epoch - 1, held)

    monkeypatch.setattr(Lines, "register", fall_back)
    assert {name: member.epoch for name, member in simulated.drive().members.items()} == before


def test_hyperopt_knows_the_best_trials_of_a_search_that_is_made_longer(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=8, scheduler="none", search="hyperopt", parameters=PARAMETERS)
    simulated.drive()
    made_longer(simulated, EPOCHS, 2 * EPOCHS)
    state = PopulationState.load(simulated.directory)
    suggest = make_suggest(simulated.space, simulated.config, state, 9)
    assert isinstance(suggest, TreeParzen)
    suggest("trial_08")
    assert suggest._completed == set(state.members) == {f"trial_{number:02d}" for number in range(8)}


def test_without_a_rule_every_combination_of_a_grid_trains_to_its_end(tmp_path: Path) -> None:
    grid = {"masking.slots": {"values": [2, 4]}, "optimizer.encoder_lr": {"values": [0.1, 0.2, 0.3]}}
    simulated = simulation(tmp_path / "run", capacity=2, scheduler="none", search="grid", parameters=grid)
    state = simulated.drive()
    assert [member.epoch for member in state.members.values()] == [EPOCHS] * 6
    found = [tuple(member.values.values()) for member in state.members.values()]
    assert found == [(2, 0.1), (2, 0.2), (2, 0.3), (4, 0.1), (4, 0.2), (4, 0.3)]


def test_a_diverged_trial_of_a_search_is_stopped(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", scheduler="none")
    simulated.fitness = lambda trial, epoch, values, before: math.nan if trial == "trial_03" and epoch == 4 else 1.0
    assert [member.epoch for member in simulated.drive().members.values()] == [EPOCHS] * 3 + [4] + [EPOCHS] * 2


@pytest.mark.parametrize("low", [0.2, 0.55])
@pytest.mark.parametrize("trials", [2, 3, 9])
def test_as_many_values_are_random_as_a_search_by_hyperopt_says(
    tmp_path: Path, trials: int, low: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {**PARAMETERS, "masking.sparsity_weight": {"low": low, "high": 1.0, "scale": "linear"}}
    simulated = simulation(tmp_path / "run", trials, 1, scheduler="asha", search="hyperopt", parameters=parameters)
    drawn, suggest = list[Any](), hyperopt.rand.suggest

    def draw(*arguments: Any) -> Any:
        drawn.append(arguments)
        return suggest(*arguments)

    monkeypatch.setattr(hyperopt.rand, "suggest", draw)
    simulated.drive()
    said = random_trials(simulated.space, simulated.config, trials)
    assert len(drawn) == said == max(-(-trials // 3) - 1, low > 0.5)


@pytest.mark.parametrize("low", [0.2, 0.55])
def test_a_search_by_hyperopt_begins_with_the_configured_values(tmp_path: Path, low: float) -> None:
    """Also where they are outside of the space, in which hyperopt cannot place them, and after a resumption."""
    parameters = {**PARAMETERS, "masking.sparsity_weight": {"low": low, "high": 1.0, "scale": "linear"}}
    simulated = simulation(tmp_path / "run", 3, 1, scheduler="asha", search="hyperopt", parameters=parameters)
    state = simulated.drive()
    configured = {path: value_at(simulated.config, path) for path in parameters}
    assert configured["masking.sparsity_weight"] == 0.5
    assert state.initial["trial_00"] == configured
    assert simulated.space.contains(configured) == (low < 0.5)
    suggested = [values for name, values in state.initial.items() if name != "trial_00"]
    assert all(simulated.space.contains(values) for values in suggested)
    assert len({str(values) for values in state.initial.values()}) == 3
    resumed = make_suggest(simulated.space, simulated.config, state, 4)
    assert simulated.space.contains(resumed("trial_03"))


def test_a_search_by_hyperopt_over_lists_goes_on_after_a_resumption(tmp_path: Path) -> None:
    terms = {"values": [["masked-unmasked"], ["unmasked-masked"], ["masked-unmasked", "unmasked-masked"]]}
    parameters = {"objective.terms": terms, "masking.slots": {"low": 2, "high": 6, "step": 2, "scale": "integer"}}
    simulated = simulation(tmp_path / "run", 3, 1, scheduler="asha", search="hyperopt", parameters=parameters)
    first = {"objective.terms": ["masked-unmasked"], "masking.slots": 4}
    both = {"objective.name": "simsiam", "objective.masked_views": "both", **first}
    simulated.config = replaced(simulated.config, both)
    state = simulated.drive()
    assert simulated.space.configured(simulated.config) == state.initial["trial_00"] == first
    assert simulated.space.contains(first)
    drawn = make_suggest(simulated.space, simulated.config, state, 4)("trial_03")
    assert simulated.space.contains(drawn)
    assert drawn == make_suggest(simulated.space, simulated.config, state, 4)("trial_03")


@pytest.mark.parametrize(
    ("options", "diverged"),
    [
        ({"scheduler": "asha", "reduction_factor": 3}, ["trial_01/1", "trial_02/3", "trial_03/1", "trial_04/1"]),
        ({"scheduler": "median", "min_trials": 2}, ["trial_02/3", "trial_03/1"]),
    ],
)
def test_a_resumed_rule_decides_as_the_one_that_heard_every_report(
    tmp_path: Path, options: dict[str, Any], diverged: Sequence[str]
) -> None:
    simulated = simulation(tmp_path / "run", 9, 3, **options)
    simulated.fitness = lambda trial, epoch, config, before: (
        math.nan if f"{trial}/{epoch}" in diverged else Random(f"{trial}{epoch}").random()
    )
    heard: list[tuple[str, int, float, str]] = []
    decide = StoppingSearch.decide

    def listen(search: StoppingSearch, name: str) -> str:
        decision, member = decide(search, name), search.population[name]
        assert member.score is not None
        heard.append((name, member.epoch, member.score, decision))
        return decision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoppingSearch, "decide", listen)
        simulated.drive()
    assert any(decision == STOP and score > WORST_SCORE for _, _, score, decision in heard)
    state = PopulationState.load(simulated.directory)  # as a driver finds it, which resumes after all reports
    observations = list(state.observations.items())
    assert len(observations) == len(heard)
    for count in range(len(heard) + 1):
        state.observations = dict(observations[:count])
        members = Population(simulated.config, state, simulated.members.run, simulated.members.channel)
        search = StoppingSearch(members, Admission(9, lambda: 3), make_rule(simulated.space, EPOCHS), lambda name: {})
        for name, epoch, score, decision in heard[count:]:
            state.members[name].epoch, state.members[name].score = epoch, score
            assert search.decide(name) == decision, (count, name, epoch)


@pytest.mark.parametrize(
    ("options", "epoch", "fate"),
    [
        ({}, 4, "it waits for a donor"),
        ({}, EPOCHS, "it has trained its last epoch"),
        ({"opening": {"trials": 7, "epochs": 2}}, 1, "it ranks last in the opening"),
        ({"opening": {"trials": 7, "epochs": 2}}, 4, "it waits for a donor"),
        ({"controls": 1}, 4, "it is a control, and controls never copy: the run continues without it"),
        ({"scheduler": "asha"}, 1, "it is stopped"),
        ({"scheduler": "none"}, 4, "it is stopped"),
    ],
)
def test_users_are_told_what_becomes_of_a_diverged_trial(
    tmp_path: Path, options: dict[str, Any], epoch: int, fate: str
) -> None:
    simulated = simulation(tmp_path / "run", 3, **options)
    diverges: list[str] = []

    def details(trial: str, now: int, fitness: float) -> dict[str, Any]:
        if now != epoch or diverges or (trial == "trial_00") is not ("controls" in options):
            return {}
        diverges.append(trial)
        return {"divergence": "step 7: loss is nan"}

    simulated.details = details
    simulated.drive()
    assert f"{diverges[0]} diverged at step 7: loss is nan; {fate}" in simulated.run.notes


def test_hyperopt_comes_closer_than_random_draws(tmp_path: Path) -> None:
    last = []
    for seed in range(3):
        simulated = simulation(tmp_path / str(seed), population=40, capacity=1, scheduler="none", search="hyperopt")
        simulated.config = simulated.config.model_copy(update={"epochs": 1, "seed": seed})
        simulated.fitness = lambda trial, epoch, values, before: optimum(values)
        last += [m.score for m in simulated.drive().members.values() if m.number >= 20 and m.score is not None]
    drawn = [optimum(replaced(simulated.config, simulated.space.sample(Random(seed)))) for seed in range(1000)]
    assert len(last) == 60 and fmean(last) > fmean(drawn) + 0.06  # three errors of a mean of 60 draws


@pytest.mark.slow
@pytest.mark.parametrize("low", [0.2, 0.55])
def test_a_killed_search_by_hyperopt_suggests_the_same_values(tmp_path: Path, low: float) -> None:
    """With configured values inside or outside of the space, and beyond 25 trials, where TPE begins to forget."""
    parameters = {**PARAMETERS, "masking.sparsity_weight": {"low": low, "high": 1.0, "scale": "linear"}}

    def run(name: str) -> Simulation:
        simulated = simulation(tmp_path / name, 40, 1, scheduler="none", search="hyperopt", parameters=parameters)
        simulated.config = simulated.config.model_copy(update={"epochs": 1})
        simulated.fitness = lambda trial, epoch, values, before: optimum(values)
        return simulated

    whole, broken = run("whole"), run("broken")
    assert list(crashing(broken, 7))
    resumed = PopulationState.load(broken.directory)
    assert whole.drive().initial == resumed.initial and len(resumed.initial) == 40


def test_a_killed_search_resumes_with_its_observations(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", population=12, capacity=2, scheduler="asha", search="hyperopt")
    steps = 0

    def crash(_: Simulation) -> None:
        nonlocal steps
        steps += 1
        if steps in (5, 11, 12, 20):
            raise CrashedError

    simulated.on_step = crash
    while True:
        try:
            state = simulated.drive()
            break
        except CrashedError:
            before = PopulationState.load(simulated.directory)
            assert before.members
    assert len(state.members) == 12 and all(member.finished for member in state.members.values())
    assert all(state.members[name].values == member.values for name, member in before.members.items())


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("order", range(3))
def test_a_trials_schedule_adds_up_to_its_score(tmp_path: Path, synchronous: bool, interval: int, order: int) -> None:
    simulated = simulation(tmp_path / "run", order=order, synchronous=synchronous, interval_epochs=interval)
    state = simulated.drive()
    (simulated.directory / "config.json").write_text(simulated.config.model_dump_json())
    for name, member in state.members.items():
        schedule = schedule_of(simulated.directory, name, simulated.directory)
        score, epochs = 0.0, 0
        for stage, end in schedule.intervals():
            assert stage.from_epoch == epochs
            for _ in range(epochs, end):
                score += optimum(replaced(simulated.config, stage.values))
            epochs = end
        assert score == pytest.approx(member.score, abs=1e-9)
        ancestors = ancestry(read_lineage(simulated.directory), name, member.epoch)
        stretches = [(stage.trial, stage.from_epoch, end) for stage, end in schedule.intervals()]
        assert [(each.trial, each.after, each.until) for each in ancestors] == stretches
        assert schedule.config["seed"] == 1 + state.members[schedule.stages[0].trial].number


def test_a_scaled_schedule_keeps_the_shares() -> None:
    config = parse(TrialConfig, {"epochs": 10, "evaluation": {"interval_epochs": 2}}).model_dump(mode="json")
    stages = [Stage(from_epoch=epoch, trial="t", values={}) for epoch in (0, 2, 4, 6)]
    scaled = Schedule(config=config, stages=stages).scaled(5)
    assert [stage.from_epoch for stage in scaled.stages] == [0, 0, 2, 4] and scaled.trial().epochs == 5
    assert [(stage.from_epoch, end) for stage, end in scaled.intervals()] == [(0, 2), (2, 4), (4, 5)]
    assert [stage.from_epoch for stage in Schedule(config=config, stages=stages).scaled(100).stages] == [0, 20, 40, 60]


@pytest.mark.parametrize("epochs", range(1, 25))
def test_no_stage_of_a_scaled_schedule_begins_after_the_last_epoch(epochs: int) -> None:
    config = parse(TrialConfig, {"epochs": 20, "evaluation": {"interval_epochs": 5}}).model_dump(mode="json")
    scaled = Schedule(config=config, stages=[Stage(from_epoch=e, trial="t", values={}) for e in (0, 10, 15)])
    assert [end for _, end in scaled.scaled(epochs).intervals()][-1] == epochs


@pytest.mark.parametrize(
    ("begins", "complaint"),
    [((1, 2), "the first must begin at 0"), ((0, 4, 2), "the others follow it"), ((0, 11), "after the last of 10")],
)
def test_a_schedule_whose_stages_are_out_of_order_is_refused(begins: Sequence[int], complaint: str) -> None:
    config = parse(TrialConfig, {"epochs": 10}).model_dump(mode="json")
    with pytest.raises(ValidationError, match=complaint):
        Schedule(config=config, stages=[Stage(from_epoch=epoch, trial="t", values={}) for epoch in begins])


TOO_LARGE = {"optimizer.encoder_lr": 2.0}


def too_large(trial: str, config: TrialConfig) -> bool:
    """Tell whether a trial does not fit into memory."""
    return config.optimizer.encoder_lr > 1


def given(simulated: Simulation, values: dict[str, Any], *names: str) -> None:
    """Give trials other values to start with."""
    state = PopulationState.load(simulated.directory)
    for name in names:
        state.members[name].values |= values
    state.save(simulated.directory)


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("capacity", [1, 99])
def test_a_trial_whose_values_cannot_train_stays_and_does_not_stop_the_others(
    tmp_path: Path, synchronous: bool, capacity: int
) -> None:
    simulated = simulation(tmp_path / "run", 3, capacity, synchronous=synchronous, interval_epochs=EPOCHS)
    given(simulated, TOO_LARGE, "trial_01")
    simulated.fails = too_large
    for _ in range(2):  # a resumed driver tries it again
        with pytest.raises(FaultError, match="stops because trial_01 cannot train: out of memory. No report is lost"):
            simulated.drive()
        members = dict(simulated.members.state.members)
        assert members.pop("trial_01").epoch == 0
        assert all(member.finished and member.epoch == EPOCHS for member in members.values())
    simulated.fails = lambda trial, config: False
    assert {member.epoch for member in simulated.drive().members.values()} == {EPOCHS}


def test_one_restart_is_not_taken_for_a_trial_that_cannot_train(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", 2, interval_epochs=2)
    given(simulated, TOO_LARGE, "trial_01")
    simulated.fails = too_large

    def restart(now: Simulation) -> None:
        """Let the workers of the other trial be started again, once, while this one fails."""
        if now.scheduler._trouble["trial_01"] and not now.scheduler._trouble["trial_00"]:
            now.scheduler.on_note(Note("trial_00", "its workers failed", "", "restart"))

    simulated.on_step = restart
    assert {member.epoch for member in simulated.drive().members.values()} == {EPOCHS}


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("capacity", [1, 99])
def test_a_trial_whose_values_cannot_train_copies_at_the_first_decision(
    tmp_path: Path, synchronous: bool, capacity: int
) -> None:
    simulated = simulation(tmp_path / "run", 3, capacity, synchronous=synchronous, interval_epochs=2)
    given(simulated, TOO_LARGE, "trial_01")
    simulated.fails = too_large
    assert {member.epoch for member in simulated.drive().members.values()} == {EPOCHS}
    epoch, trial, donor, values = next(entry for entry in simulated.lineage() if entry[1] == "trial_01")
    assert epoch >= 2 and donor != trial and values["optimizer.encoder_lr"] <= 1


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_trial_that_cannot_train_with_copied_values_is_tried_again_with_the_next_copy(
    tmp_path: Path, synchronous: bool
) -> None:
    simulated = simulation(tmp_path / "run", synchronous=synchronous, interval_epochs=2)
    failed: list[str] = []

    def fails(trial: str, config: TrialConfig) -> bool:
        """Fail the first copy of the worst trial."""
        _, copied, _, values = next(iter(simulated.lineage()), (0, "", "", {}))
        if trial != copied or config.optimizer.encoder_lr != values["optimizer.encoder_lr"]:
            return False
        failed.append(trial)
        return True

    simulated.fails = fails
    state = simulated.drive()
    assert failed and {member.epoch for member in state.members.values()} == {EPOCHS}
    assert any(note.startswith(f"{failed[0]}: cannot train: out of memory; it stays") for note in simulated.run.notes)
    assert sum(copied == failed[0] for _, copied, *_ in simulated.lineage()) > 1


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_trial_that_cannot_train_with_values_of_its_own_copies_at_last(
    tmp_path: Path, synchronous: bool, seed: int
) -> None:
    """A trial that explores without a copy, as trials are alike, does not draw the same unsuitable values again."""
    simulated = simulation(tmp_path / "run", 4, synchronous=synchronous, explore_without_copy=True)
    simulated.config = simulated.config.model_copy(update={"epochs": 20, "seed": seed})
    given(simulated, {"masking.slots": 3}, "trial_03")
    simulated.fitness = lambda trial, epoch, config, before: 0.5 + int(trial[-2:]) / 100
    simulated.details = lambda trial, epoch, fitness: {"standard_error": 0.3}
    simulated.fails = lambda trial, config: trial == "trial_00" and config.masking.slots > 4
    with suppress(FaultError):  # of values that it explores at the last decision
        simulated.drive()
    assert simulated.members["trial_00"].epoch > 15
    assert "trial_03" in [donor for _, trial, donor, _ in simulated.lineage() if trial == "trial_00"]


def test_a_trial_that_cannot_train_leaves_the_opening_last(tmp_path: Path) -> None:
    simulated = simulation(tmp_path / "run", 4, opening={"trials": 8, "epochs": 2})
    given(simulated, TOO_LARGE, "trial_03")
    simulated.fails = too_large
    state = simulated.drive()
    assert state.members["trial_03"].finished and state.members["trial_03"].epoch == 0
    assert [(drop.trial, drop.rank) for drop in read_drops(simulated.directory)][-1] == ("trial_03", 8)
    assert sum(member.epoch == EPOCHS for member in state.members.values()) == 4


@pytest.mark.parametrize("seed", [5, 21, 40, 57])
def test_no_trial_overwrites_a_checkpoint_that_another_still_has_to_load(tmp_path: Path, seed: int) -> None:
    """Asynchronously, donors may be behind: a trial that copies one trains epochs again that were copied from it."""
    options: dict[str, Any] = {"synchronous": False, "interval_epochs": 3, "significance": 1}
    simulated = simulation(tmp_path / "run", population=6, capacity=3, order=seed, **options)
    simulated.config = simulated.config.model_copy(update={"epochs": 30})
    drawn, overwritten, choose = Random(seed), list[str](), simulated.random.choice

    def fitness(trial: str, epoch: int, config: TrialConfig, before: float) -> float:
        run, loaded = RunDirectory(simulated.directory), simulated.channel.lines[trial].checkpoint
        targets = {run.checkpoint(trial, epoch)}
        if loaded and trial_of(loaded.path) != trial and loaded.before:  # if the donor's checkpoint were damaged
            targets.add(run.checkpoint(trial, epoch - 1))
        for other, member in simulated.members.state.members.items():
            if other != trial and member.checkpoint is not None and targets & set(member.checkpoint.paths):
                overwritten.append(f"{other} refers to {trial} at {epoch}")
        return math.nan if drawn.random() < 0.06 else before + optimum(config)

    def choose_fast(options: Sequence[Any]) -> Any:
        """Let a third of the trials report less often."""
        if isinstance(options[0], tuple) and simulated.random.random() < 0.8:
            options = [option for option in options if int(option[0][-2:]) % 3] or options
        return choose(options)

    simulated.fitness = fitness
    simulated.random.choice = choose_fast  # type: ignore[method-assign, assignment]  # of this simulation alone
    assert all(member.epoch == 30 for member in simulated.drive().members.values())
    assert not overwritten


def test_an_error_while_a_trial_is_completed_ends_the_run(tmp_path: Path) -> None:
    """Tune would take what is raised there for the trial's own failure, and start it again."""
    simulated = simulation(tmp_path / "run", population=2)

    def record(trial: str, report: TrialReport, *rest: Any) -> None:
        if report.done:
            raise ClaimError("taken over")

    simulated.on_step = lambda simulated: setattr(simulated.run, "report", record)
    with pytest.raises(ClaimError, match="taken over"):
        simulated.drive()


@pytest.mark.parametrize("options", [{}, {"synchronous": False, "opening": {"trials": 6, "epochs": 2}}])
def test_a_trial_that_fails_while_it_waits_at_a_barrier_trains_on_as_a_copy(
    options: dict[str, Any], tmp_path: Path
) -> None:
    simulated = simulation(tmp_path / "run", population=4, interval_epochs=2, significance=1, **options)
    failed = list[int]()

    def fail_once(simulated: Simulation) -> None:
        trial, waits = simulated.trials.get("trial_00"), simulated.channel.lines.get("trial_00")
        if failed or not trial or not waits or trial.pausing or not waits.held:
            return
        if waits.request is trial.request is not None:
            failed.append(simulated.members["trial_00"].epoch)
            simulated.scheduler.on_note(Note("trial_00", "its workers failed", "", "restart"))
            simulated.give_up(trial)

    simulated.on_step = fail_once
    simulated.fitness = lambda trial, epoch, config, before: (
        -float(epoch) if trial == "trial_00" else before + optimum(config)
    )
    state = simulated.drive()
    assert failed and "trial_00" in [line[1] for line in simulated.lineage()]
    assert state.members["trial_00"].epoch == EPOCHS


def test_a_copy_is_no_donor_before_it_has_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ranked by weights that it no longer has."""
    copy, copies = Population.copy, 0

    def checked(self: Population, name: str, donor: str, *others: Any) -> None:
        nonlocal copies
        copies += 1
        assert self[donor].replaced_history is None
        copy(self, name, donor, *others)
        assert self[name].base_score == self[name].history[-1].value

    def noisy(drawn: Random, trial: str, epoch: int, config: TrialConfig, before: float) -> float:
        return before + optimum(config) + drawn.gauss(0, 0.3) if drawn.random() > 0.1 else math.nan

    monkeypatch.setattr(Population, "copy", checked)
    for seed in (21, 25, 47, 48):  # of the first 60, those in which such a trial ranks highest
        options = {"population": 4, "capacity": 2, "order": seed, "synchronous": False, "significance": 1}
        simulated, drawn = simulation(tmp_path / str(seed), interval_epochs=2, **options), Random(seed)
        simulated.fitness = partial(noisy, drawn)
        simulated.drive()
    assert copies > 8

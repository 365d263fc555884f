"""The benchmark of the search: its driver without Ray, its rival without schedules, and its summary."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import judging
import numpy as np
import pytest
import scipy.stats
import search
import torch
from made_up_run import SETTINGS, make_row
from real_trainings import train_population
from rich.console import Console
from schedule_free import ScheduleFreeTrainer
from search import RIVALS, read_records, space_of, study_of
from search_summary import correlations, curve, draw, judge_measures, optimism, spearman, summary
from small import small_config
from trainers import assert_identical

from adios_ray.backend.line import Reply
from adios_ray.checkpoints import Pointer, load_checkpoint
from adios_ray.config import TrialConfig
from adios_ray.errors import ConfigError
from adios_ray.evaluation.fitness import Estimate, Fitness
from adios_ray.search.state import PopulationState
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.results import append_result, begin_results, read_results
from adios_ray.trial_report import TrialReport


class Interrupted(Exception):
    """The process was killed."""


class Toys:
    """Trainers whose checkpoints hold a number that grows the faster, the nearer lambda is to 0.6."""

    def __init__(self, directory: Path, reports: float = math.inf) -> None:
        """Train until interrupted after so many reports."""
        self.directory, self.left = directory, reports

    def __call__(self, name: str, position: Any) -> Reply:
        """Train for an epoch."""
        if self.left == 0:
            raise Interrupted
        self.left -= 1
        config: TrialConfig = position.config
        before = float((position.checkpoint.path / "score").read_text()) if position.checkpoint else 0.0
        score = before + 1 - abs(config.masking.sparsity_weight - 0.6)
        folder, epoch = self.directory / "checkpoints" / name / str(position.epoch + 1), position.epoch + 1
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "score").write_text(repr(score))
        return Reply(
            TrialReport(epoch=epoch, fitness=score, done=epoch >= config.epochs), Pointer(path=folder, sha256="")
        )


def train(row: str, directory: Path, reports: float = math.inf, **limits: Any) -> PopulationState:
    """Train one row of a study on toys."""
    study = study_of("objects")
    config = study.config.model_copy(update={"epochs": 9, "population": 8})
    trainers: Any = Toys(directory, reports)
    console = Console(quiet=True)
    return train_population(config, space_of(RIVALS[row], study), directory, trainers, console=console, **limits)


def test_an_interrupted_population_makes_the_same_decisions(tmp_path: Path) -> None:
    whole = train("pbt", tmp_path / "whole")
    for _ in range(8):
        with pytest.raises(Interrupted):
            train("pbt", tmp_path / "parts", reports=8.0)
    parts = train("pbt", tmp_path / "parts")
    lineages = [[e.model_dump(exclude={"time"}) for e in read_lineage(tmp_path / n)] for n in ("whole", "parts")]
    assert lineages[0] == lineages[1] and len(lineages[0]) >= 4
    for name, member in whole.members.items():
        assert parts.members[name].model_copy(update={"checkpoint": member.checkpoint}) == member


def test_trials_start_as_others_end_until_it_is_enough(tmp_path: Path) -> None:
    state = train("random", tmp_path, at_once=2, enough=lambda state: len(state.observations) >= 40)
    assert [(row.trial, row.epoch) for row in read_results(tmp_path)] == [
        (f"trial_{number:02d}", epoch) for number in range(4) for epoch in range(1, 10)
    ] + [(f"trial_0{number}", epoch) for number in (4, 5) for epoch in (1, 2)]
    assert [member.finished for member in state.members.values()] == [True] * 4 + [False] * 4


@pytest.mark.slow
def test_schedule_free_training_resumes_bit_for_bit(objects_dir: Path, tmp_path: Path) -> None:
    config, device = small_config(objects_dir, masking={"slots": 2}), torch.device("cpu")
    whole, first, second = (ScheduleFreeTrainer(config, device) for _ in range(3))
    whole.train_until(4)
    whole.train_until(6)
    first.train_until(4)
    second.load(first.save(tmp_path / "half"), config)
    second.train_until(6)
    states = [load_checkpoint(t.save(tmp_path / n), device) for n, t in (("whole", whole), ("second", second))]
    assert_identical(*states)
    # What is evaluated is x, and not the point y = (1 - beta) z + beta x at which gradients are taken.
    weight = next(iter(whole.networks.backbone.parameters()))
    x, z = weight.detach().clone(), whole.optimizers.encoder.state[weight]["z"]
    whole.optimizers.encoder.train()  # type: ignore[attr-defined]  # of schedule-free optimizers
    torch.testing.assert_close(weight.detach(), 0.1 * z + 0.9 * x, rtol=1e-5, atol=1e-7)
    assert not torch.equal(x, z)


def test_rows_of_plain_weights_have_no_errors_of_averaged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are unknown if an earlier version of the benchmark wrote watched.jsonl without them."""
    config: Any = SimpleNamespace(evaluation=SimpleNamespace(average_weights=True))
    trainer: Any = SimpleNamespace(
        networks=SimpleNamespace(averaged="mean weights"), train_split=None, val_split=[], image_size=32, config=config
    )
    kind: Any = Mock(return_value=trainer)
    estimates = Estimate(0.3, 0.05, 0.35), Estimate(0.2, 0.06, 0.25)
    monkeypatch.setattr(judging, "evaluate", lambda *_: Fitness(estimates))
    begin_results(tmp_path, list(SETTINGS))
    for epoch in (1, 2, 3):
        append_result(tmp_path, make_row("a", epoch))
    earlier = [
        {"trial": "a", "epoch": 1, "plain": {"fitness": 0.1, "accuracy": 0.2, "holdout": 0.4}},
        {"trial": "a", "epoch": 2},  # it diverged
    ]
    (tmp_path / "watched.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in earlier))
    watched = judging.Watched(tmp_path, config, kind, budget=10)
    watched.report("a", trainer, TrialReport(epoch=3))
    for each in (watched, judging.Watched(tmp_path, config, kind, budget=10)):
        first, second, third = each.rows("plain")
        assert (first.fitness, first.accuracy, first.holdout_fitness) == (0.1, 0.2, 0.4)
        assert first.standard_error is first.holdout_standard_error is None
        assert math.isnan(second.fitness) and second.standard_error is second.holdout_standard_error is None
        assert (third.fitness, third.standard_error, third.accuracy) == (0.3, 0.05, 0.35)
        assert (third.holdout_fitness, third.holdout_standard_error) == (0.2, 0.06)
        assert [row.standard_error for row in each.rows("averaged")] == [make_row().standard_error] * 3


def record(row: str, seed: int, tests: list[float], chosen: int, **more: Any) -> dict[str, Any]:
    """Make the record of trials with these test accuracies."""
    trials = []
    for number, share in enumerate(tests):
        scores = {"val": share + 0.01 * number, "share": share, "accuracy": share, "probe": share}
        trial = {"trial": f"trial_{number:02d}", "plain": {**scores, "reports": []}, "averaged": {"reports": []}}
        trials.append({**trial, "label_free": []})
    base = {"row": row, "seed": seed, "epochs": 20, "images": 1000, "reports": 10, "curve": [], "exploits": []}
    return {**base, "chosen": {"plain": f"trial_{chosen:02d}"}, "trials": trials, "refusals": [], **more}


def test_rows_are_summarized_over_seeds() -> None:
    records = [record("random", seed, [0.5, 0.52], 1) for seed in (1, 2)]
    records += [record("pbt", 2, [0.6, 0.5], 0), record("pbt", 1, [0.5, 0.56], 1)]
    records[3]["trials"][1]["plain"]["probe"] = 0.66
    rows = summary(records)["rows"]
    assert rows["pbt"]["test"] == {"knn": "58.00 ± 2.00", "share": "58.00 ± 2.00", "probe": "63.00 ± 3.00"}
    assert rows["random"]["test"]["knn"] == "52.00 ± 0.00"
    # Gains of 4 and 8 have a standard error of 2; 12.706 is Student's t at 97.5 %, one degree of freedom.
    assert rows["pbt"]["gain"]["knn"] == f"+6.00 ± {2 * 12.706:.2f}"
    over = summary(records, over="pbt")["rows"]["random"]["gain"]
    assert over["share"] == f"-6.00 ± {2 * 12.706:.2f}" and over["probe"] == f"-11.00 ± {3 * 12.706:.2f}"
    assert optimism(records[0], "plain") == pytest.approx(0.01)


def test_a_summary_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl has no finished row to summarize"):
        search.main("objects", tmp_path / "none.jsonl", summarize=True)
    with pytest.raises(ConfigError, match="no finished row pbt to compare with; choose among random"):
        summary([record("random", 1, [0.5], 0)], over="pbt")


def test_finished_rows_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[str, int]] = []

    def train(study: Any, row: str, seed: int, data_dir: Path, directory: Path) -> dict[str, Any]:
        assert directory == tmp_path / "results" / "objects" / f"{row}-{seed}"  # absolute, as paths of checkpoints are
        (directory / "checkpoints").mkdir(parents=True)
        trained.append((row, seed))
        return {"row": row, "seed": seed}

    monkeypatch.setattr(search, "train_row", train)
    monkeypatch.chdir(tmp_path)
    output = Path("results/objects.jsonl")
    for seeds in ((1,), (1, 2)):
        search.main("objects", output, tmp_path / "data", ("pbt", "random"), seeds)
    assert trained == [("pbt", 1), ("random", 1), ("pbt", 2), ("random", 2)]
    assert [(record["row"], record["seed"]) for record in read_records(output, "objects")] == trained
    assert "random, seed 2 (4 of 4)" in capsys.readouterr().out


def test_results_of_two_studies_are_not_mixed(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    assert read_records(output, "objects") == []
    output.write_text('{"data": "objects", "row": "pbt", "seed": 1}\n{"data": "obj')  # the last line was cut off
    assert [record["row"] for record in read_records(output, "objects")] == ["pbt"]
    with pytest.raises(ConfigError, match="holds results of objects, not of cifar10"):
        read_records(output, "cifar10")


def test_rank_correlations_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    probes = random.random(60)
    scores = np.round(probes + 0.3 * random.standard_normal(60), 1)  # with ties
    found = spearman(scores, probes, np.full(60, "random"))
    assert found["rho"] == pytest.approx(scipy.stats.spearmanr(scores, probes).statistic, abs=1e-3)
    low, high = found["interval"]
    assert low < found["rho"] < high and high - low < 0.4


@pytest.mark.slow
def test_rank_correlations_are_resampled_within_rows() -> None:
    trials = {
        "configured": [(0.1, 0.12), (0.11, 0.1), (0.12, 0.11)],
        "random": [(0.1, 0.12), (0.2, 0.3), (0.4, 0.2), (0.6, 0.4)],  # the first is the first of the configured ones
    }
    records = []
    for row, pairs in trials.items():
        made = record(row, 1, [probe for _, probe in pairs], 0)
        for (score, probe), trial in zip(pairs, made["trials"], strict=True):
            trial["label_free"] = [{"epoch": 4, "lidar": -1.0}, {"epoch": 20, "lidar": score}]
            trial["plain"]["reports"] = [[20, probe, 0.01, probe, probe]]
        records.append(made)
    found = correlations(records)
    assert {name: found[name]["trainings"] for name in found} == {"all": 6, "configured": 3, "random": 3}
    assert found["random"]["lidar"]["rho"] == 0.5 and found["random"]["votes' share"]["rho"] == 1
    # Each resample has three of the trainings that are alike: they always rank below the three others.
    assert found["all"]["lidar"]["interval"][0] > 0.5


def test_measures_are_judged_by_what_was_drawn() -> None:
    """On curves that bend by ten times the noise."""
    random = np.random.default_rng(0)
    trials = []
    for _ in range(100):
        level = 0.06 * random.standard_normal()
        values = level + 0.2 * (1 - np.arange(20) / 20) ** 2 + 0.02 * random.standard_normal(20)
        report = [[epoch, value, 0.01, value, value] for epoch, value in enumerate(values)]
        trials.append({"plain": {"reports": report, "accuracy": level}, "averaged": {"reports": report}})
    found = judge_measures([record("random", 1, [], 0, trials=trials)])["random"]
    assert len(found) == 4
    for judged in found.values():
        assert judged["signal over noise"] == pytest.approx(3, rel=0.2)
        # Spearman's of two normal variables whose correlation is 0.06 / hypot(0.06, 0.02).
        assert judged["foresight"] == pytest.approx(6 / math.pi * math.asin(0.9487 / 2), abs=0.05)


def test_a_plot_has_a_line_for_each_row() -> None:
    points = [{"reports": n, "plain": {"accuracy": n / 20}} for n in (5, 10)]
    lines = {name: curve([(record("pbt", 1, [0.5], 0, curve=points), "plain")]) for name in ("pbt", "a < b")}
    assert [(point.images, point.mean) for point in lines["pbt"]] == [(0.0005, 25.0), (0.001, 50.0)]
    root = ElementTree.fromstring(draw(lines))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert any(text.text == "a < b 50.0" for text in root.iter("{http://www.w3.org/2000/svg}text"))

"""The report: what it shows, that it loads nothing, and its charts as plotly figures."""

import json
import math
import shutil
import sys
import types
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest
import torch
from made_up_run import COPIES, SETTINGS, make_drop, make_exploit, make_row, make_run, make_summary
from PIL import Image
from scipy.stats import sem, ttest_ind
from small import SIZE, small_config

import adios_ray
from adios_ray.cli import main
from adios_ray.data.claim import TRAINING, claimed
from adios_ray.data.loader import central_views
from adios_ray.data.shards import open_shards
from adios_ray.evaluation.subject import build_subject
from adios_ray.measures import MEASURES
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights
from adios_ray.places import check_output_file
from adios_ray.run_directory import REPLAY_FILE, RunDirectory
from adios_ray.store import Store
from adios_ray.tracking import decisions, lineage, records, results, run_masks
from adios_ray.tracking.environment import record_environment
from adios_ray.tracking.log import Event, EventLog
from adios_ray.tracking.outcomes import write_outcomes
from adios_ray.tracking.report import charts, search_charts
from adios_ray.tracking.report.background import BackgroundReport
from adios_ray.tracking.report.comparison import MARK, differences, verdict_between, write_comparison
from adios_ray.tracking.report.features import feature_section, most_confused
from adios_ray.tracking.report.importance import importance_of
from adios_ray.tracking.report.inspection import MOST_IMAGES, THUMBNAIL, Inspection, InspectionInfo
from adios_ray.tracking.report.inspection_measurements import classify, measure, project
from adios_ray.tracking.report.mask_statistics import agreement, slot_overlaps, slot_statistics
from adios_ray.tracking.report.masks import mask_section, spread
from adios_ray.tracking.report.outcome import outcome_of
from adios_ray.tracking.report.page import write_report
from adios_ray.tracking.report.run_data import RunData, read_run
from adios_ray.tracking.results import Row
from adios_ray.tracking.run_masks import MaskFile


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a finished run with its report, shared by tests that only read them."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    make_run(path)
    write_report(path)
    return path


class Page(HTMLParser):
    """The URLs that a page's elements load, and its text outside scripts."""

    def __init__(self, html: str) -> None:
        """Parse the page."""
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record what the element loads."""
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        """Collect text."""
        if self.tags and self.tags[-1] != "script":
            self.text += data


def test_report_loads_nothing_and_shows_the_run(run_dir: Path) -> None:
    page = Page((run_dir / "report.html").read_text())
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert page.tags.count("script") == 3 and "link" not in page.tags
    summary = records.read_summary(run_dir)
    assert summary is not None
    best = MEASURES["knn"].text(summary.best_fitness, 0.015)
    for shown in (best, "k-NN accuracy, test", "13 min 32 s", "finished", summary.command):
        assert shown in page.text
    assert page.text.count(" ← ") == len(COPIES) + 1  # the heading's and one for each exploit


def test_masks_follow_the_ancestry(run_dir: Path) -> None:
    run = read_run(run_dir)
    section = mask_section(run)
    assert section is not None
    epochs = [sheet.epoch for sheet in section.sheets]
    assert epochs == [1, 3, 5, 7, 9, 11, 12]
    assert [sheet.trial for sheet in section.sheets] == [lineage.holder(run.path_of_best, e) for e in epochs]
    assert len({sheet.trial for sheet in section.sheets}) > 1
    last = run_masks.read_masks(run_dir, section.sheets[-1].trial, 12).masks
    assert section.sheets[-1].sizes == pytest.approx((last / 255).mean(axis=(0, 2, 3)).tolist())


def test_damaged_files_of_masks_are_named_and_left_out(tmp_path: Path) -> None:
    make_run(tmp_path)
    stored = read_run(tmp_path).mask_epochs
    first, last = (RunDirectory(tmp_path).masks(stored[epoch], epoch) for epoch in (min(stored), max(stored)))
    first.write_bytes(b"")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    last.write_bytes(content)
    run = read_run(tmp_path)
    section = mask_section(run)
    assert section is not None and len(section.damaged) == 2 and run.last_masks is not None
    assert [sheet.epoch for sheet in section.sheets] == sorted(stored)[1:-1]
    text = Page(write_report(tmp_path).read_text()).text
    assert str(first) in text and str(last) in text
    for epoch, trial in stored.items():
        RunDirectory(tmp_path).masks(trial, epoch).write_bytes(b"none")
    text = Page(write_report(tmp_path).read_text()).text
    assert text.count("cannot be read and is left out") == len(stored) and "No masks are stored" not in text


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_file_is_named_in_one_sentence(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    for name, sentence in (
        ("inspection.npz", "is damaged: its arrays cannot be read; remove it, it is computed again"),
        ("results.csv", "is damaged: it has neither its header nor reports"),
    ):
        damaged = tmp_path / name.partition(".")[0]
        shutil.copytree(run_dir, damaged)
        (damaged / name).write_bytes(content)
        assert main(["report", str(damaged)]) != 0
        assert f"{damaged / name} {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("space.yaml", "parameters:\n", "parameters = None must be a mapping"),
        ("space.yaml", "parameters: {a.b: {low: x}}", "parameters.a.b.low = 'x' must be a number"),
        ("population.json", '{"members": {"a": 1}}', "members.a = 1 must be a mapping"),
        ("config.json", '{"evaluation": {"fitness": "beauty"}}', "evaluation.fitness 'beauty' is not one of"),
    ],
)
def test_a_file_with_other_content_is_named(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, complaint: str
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    assert main(["report", str(tmp_path / "run"), "--images", "0"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run' / name}: " in said and complaint in said


def test_the_report_of_a_replay_is_refused_with_the_place_of_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / REPLAY_FILE).write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    assert f"is a replay, of which there is no report: {tmp_path}/reports.jsonl" in capsys.readouterr().err


def test_damaged_lines_of_events_are_named_and_left_out(tmp_path: Path) -> None:
    make_run(tmp_path, trials=2, epochs=2)
    log = EventLog(tmp_path)
    log.append(Event(kind="note", text="before"))
    with RunDirectory(tmp_path).events.open("ab") as file:
        file.write(b'{"kind": \xff\n')
    log.append(Event(kind="note", text="after"))
    run = read_run(tmp_path)
    assert [event.text for event in run.events] == ["before", "after"]
    text = Page(write_report(tmp_path).read_text()).text
    assert "A line of the events cannot be read and is left out" in text and "events.jsonl, line 2: " in text


def test_a_run_without_any_score_is_not_resumed_but_looked_into(tmp_path: Path) -> None:
    results.begin_results(tmp_path, list(SETTINGS))
    for trial in "ab":
        results.append_result(tmp_path, make_row(trial, 3, math.nan))
    records.write_config(tmp_path, {"population": 3})
    assert "--resume" in outcome_of(read_run(tmp_path), []).steps[0].command  # the third trial may still have one
    grid = "search: grid\nscheduler: none\nparameters: {}\n"
    (tmp_path / "space.yaml").write_text(grid)
    (tmp_path / "population.json").write_text('{"members": {"a": {}, "b": {}, "c": {}, "d": {}}}')
    records.write_config(tmp_path, {"population": 2})
    assert "--resume" in outcome_of(read_run(tmp_path), []).steps[0].command  # the grid has two more
    (tmp_path / "population.json").write_text('{"members": {"a": {}, "b": {}}}')
    records.write_config(tmp_path, {"population": 8})
    collapsed = outcome_of(read_run(tmp_path), [])
    assert collapsed.headline == "No trial has a score" and collapsed.steps == []
    step = RunDirectory(tmp_path).diverged_step("b", 3)
    step.mkdir(parents=True)
    (found,) = outcome_of(read_run(tmp_path), []).steps
    assert found.command == f"adios-ray reproduce {step.resolve()}" and "lower the learning rates" in found.reason
    page = write_report(tmp_path).read_text()
    assert "No report has a score: every trial diverged or collapsed" in page and 'id="chart-fitness"' not in page


def test_report_escapes_text_from_files(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    results.begin_results(tmp_path, list(SETTINGS))
    decisions.begin_lineage(tmp_path)
    results.append_result(tmp_path, make_row(evil, 1))
    results.append_result(tmp_path, make_row("<img src=x>", 1))
    decisions.append_decision(tmp_path, make_exploit(1, evil, "<img src=x>", slots=5))
    records.write_config(tmp_path, {evil: "</pre>" + evil})
    html = write_report(tmp_path).read_text()
    page = Page(html)
    assert evil not in html and page.tags.count("img") == 0 and page.tags.count("script") == 3
    assert evil in page.text  # as text


@pytest.mark.parametrize("rows", [[], [make_row()], [make_row(fitness=math.nan)]])
def test_report_of_a_run_that_has_just_begun(tmp_path: Path, rows: list[Row]) -> None:
    results.begin_results(tmp_path, list(SETTINGS))
    for row in rows:
        results.append_result(tmp_path, row)
    text = Page(write_report(tmp_path).read_text()).text
    assert "interrupted: no summary yet" in text and "No masks are stored yet" in text


def chart_data(run: RunData) -> charts.ChartData:
    """Make the data of charts of a run without a best report."""
    return charts.ChartData(run, dict.fromkeys(run.by_trial, "#000000"), chance=None, path=[])


@pytest.mark.parametrize("trials", [4, 32])
def test_charts_are_valid_figures_with_a_color_for_a_trial(tmp_path: Path, trials: int) -> None:
    rows = [make_row(f"trial_{i:02d}", epoch, 0.01 * i) for i in range(trials) for epoch in (1, 2)]
    run = RunData(tmp_path, rows, [make_exploit(1, "trial_03", "trial_00", slots=5)])
    path = lineage.ancestry(run.exploits, "trial_03", 2)
    colors = charts.trial_colors(run.by_trial, path)
    population = charts.ChartData(run, colors, 0.1, path)
    by_trial = [charts.fitness_chart(population), charts.lineage_chart(population), charts.overlap_chart(population)]
    by_trial += [charts.slot_size_chart(population), search_charts.survival_chart(population)]
    for drawn in by_trial:
        figure = plotly.graph_objects.Figure(drawn)
        assert all(trace.line.color == colors[trace.meta] for trace in figure.data if trace.meta)
    for drawn in charts.value_charts(population).values():
        plotly.graph_objects.Figure(drawn)
    distinct = {color for trial, color in colors.items() if trial in ("trial_00", "trial_03")}
    assert len(distinct) == 2 and len(set(colors.values())) == min(trials, 9)
    arrow = charts.fitness_chart(population)["layout"]["annotations"][0]
    assert (arrow["x"], arrow["ay"], arrow["y"]) == (1, 0.0, 0.03)


def test_steps_span_the_epochs_before_their_report(tmp_path: Path) -> None:
    rows = [make_row("a", epoch, values={"masking.slots": slots}) for epoch, slots in ((1, 4), (2, 6))]
    trace = charts.value_charts(chart_data(RunData(tmp_path, rows)))["masking.slots"]["data"][0]
    assert (trace["x"], trace["customdata"], trace["line"]["shape"]) == ([0, 1, 2], [4, 4, 6], "vh")


def test_searched_values_of_every_kind_have_a_chart(tmp_path: Path) -> None:
    kinds: dict[str, list[Any]] = {
        "optimizer.name": ["sgd", "<b>"],
        "augment.hue": [0.0, 0.1],
        "optimizer.encoder_lr": [0.1, 0.2],
    }
    kinds |= {"masking.slots": [3, 4], "channels_last": [True, False]}
    rows = [make_row("a", epoch + 1, values={path: of[epoch] for path, of in kinds.items()}) for epoch in (0, 1)]
    drawn = charts.value_charts(chart_data(RunData(tmp_path, rows)))
    types = {path: figure["layout"]["yaxis"].get("type") for path, figure in drawn.items()}
    assert types == {
        **{"optimizer.name": "category", "augment.hue": None, "optimizer.encoder_lr": "log"},
        **{"masking.slots": None, "channels_last": "category"},
    }
    assert drawn["optimizer.name"]["data"][0]["y"] == ["sgd", "sgd", "&lt;b&gt;"]
    for figure in drawn.values():
        plotly.graph_objects.Figure(figure)


def test_spread_keeps_the_ends() -> None:
    assert spread(range(1, 12), 5) == [1, 3, 6, 9, 11]
    assert spread([3, 4], 5) == [3, 4]
    assert spread([7], 5) == [7]


def test_a_label_free_fitness_is_called_by_its_name_and_is_no_percentage(run_dir: Path, tmp_path: Path) -> None:
    config = records.read_config(run_dir)
    shutil.copytree(run_dir, tmp_path, dirs_exist_ok=True)
    records.write_config(tmp_path, {**config, "evaluation": {"fitness": "rankme"}})
    page = write_report(tmp_path).read_text()
    assert "<small>RankMe fitness</small>" in page and "k-NN" not in page
    assert "RankMe fitness over epochs" in page and "accuracy" not in page.partition("<footer>")[0]
    assert "chance" not in page.partition("<footer>")[0]
    assert MEASURES["rankme"].text(41.26) == "41.3" and MEASURES["lidar"].text(math.nan) == "–"
    assert MEASURES["knn"].scores_text(0.5123, 0.0113, 0.53) == "k-NN fitness 51.2 ± 1.1 %, accuracy 53.0 %"
    assert MEASURES["knn"].difference_text(0.046, 0.015) == "4.6 ± 1.5 points"
    assert MEASURES["rankme"].difference_text(2.5) == "2.5"
    assert MEASURES["rankme"].scores_text(41.26, 0.5, math.nan) == "RankMe fitness 41.3 ± 0.5"


def test_the_first_screen_names_winner_values_gain_and_commands(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.summary is not None
    found = outcome_of(run, [])
    assert found.headline == f"{run.summary.best_trial} won" and "no control" in found.sureness
    first = max(row.fitness for row in run.rows if row.epoch == 1)
    assert found.gain == f"{100 * (run.summary.best_fitness - first):.1f} ± 1.9 points"  # 0.012 and 0.015
    assert "on the validation images of selection" in found.score_note  # none were set aside
    held = [row.model_copy(update={"holdout_fitness": 0.99 * row.fitness}) for row in run.rows]
    apart = outcome_of(RunData(run_dir, held, summary=run.summary), [])
    assert "on validation images that no decision used" in apart.score_note
    last = run.ancestral_rows[-1].values
    assert [value.path for value in found.values] == list(last)
    assert f"--checkpoint {run_dir.resolve()}/checkpoints/{run.summary.best_trial}" in found.steps[-1].command
    summary = run.summary.model_copy(update={"control": "other", "gain": 0.03, "gain_standard_error": 0.01})
    gained = outcome_of(RunData(run_dir, run.rows, summary=summary), [])
    assert gained.gain == "3.0 ± 1.0 points" and "fairly sure (3.0 standard errors, p 0.0027)" in gained.sureness


@pytest.mark.parametrize(
    ("labels", "kind"),
    [({}, "linear"), ({"multi_label": True}, "multilabel"), ({"chance": 1.0}, "labelfree")],
)
@pytest.mark.parametrize("averaged", [False, True])
def test_the_recommended_evaluation_is_one_that_labels_allow_of_the_weights_that_won(
    run_dir: Path, labels: dict[str, Any], kind: str, averaged: bool
) -> None:
    run = read_run(run_dir)
    assert run.summary is not None and run.config is not None
    config = {**run.config, "evaluation": {"average_weights": averaged}}
    found = outcome_of(replace(run, summary=run.summary.model_copy(update=labels), config=config), [])
    command = found.steps[-1].command
    assert command.startswith(f"adios-ray evaluate {kind} --checkpoint ") and ("--averaged" in command) == averaged


def test_a_running_run_says_who_leads(tmp_path: Path) -> None:
    run = RunData(tmp_path, [make_row("a", 1, 0.4), make_row("b", 1, 0.5)], controls=frozenset({"a"}))
    found = outcome_of(run, [])
    assert (found.headline, found.gain) == ("b leads", "10.0 ± 1.6 points")  # 0.011 * sqrt(2)
    assert [step.command for step in found.steps] == [f"adios-ray train --resume {tmp_path.resolve()}"]
    tied = outcome_of(replace(run, rows=[make_row("a", 1, 0.5), make_row("b", 1, 0.5)]), [])
    assert (tied.headline, tied.sureness) == ("a leads", "a, which leads, is itself the control")


def test_a_running_run_compares_leader_and_control_at_one_epoch(tmp_path: Path) -> None:
    rows = [make_row("a", 1, 0.3), make_row("b", 1, 0.4), make_row("b", 2, 0.6), make_row("c", 1, math.nan)]
    run = RunData(tmp_path, rows, controls=frozenset("a"))
    found = outcome_of(run, [])
    assert (found.headline, found.gain) == ("b leads", "10.0 ± 1.6 points")
    assert found.sureness == "b minus a at epoch 1; tested at the end"
    # Image by image, where both reports are means of their outcomes.
    images = [np.full(50, 0.4), np.linspace(0.2, 0.6, 50)]
    stored = [np.rint(255 * own).astype(np.uint8) for own in images]
    for trial, own in zip("ab", stored, strict=True):
        (tmp_path / "outcomes" / trial).mkdir(parents=True)
        write_outcomes(tmp_path, trial, 1, own.tobytes())
    paired = [make_row(trial, 1, float(own.mean()) / 255) for trial, own in zip("ab", stored, strict=True)]
    error = sem((stored[1].astype(float) - stored[0]) / 255)
    found = outcome_of(replace(run, rows=[*paired, rows[2]]), [])
    assert found.gain.endswith(f" ± {100 * error:.1f} points") and f"{100 * error:.1f}" != "1.6"
    # A copy of a donor that was ahead has skipped the control's only epoch.
    found = outcome_of(replace(run, rows=[rows[0], rows[2]]), [])
    assert found.gain == "–" and "no report of the same epoch" in found.sureness
    leading = outcome_of(replace(run, controls=frozenset("b")), [])
    assert leading.gain == "0.0 points" and "is itself the control" in leading.sureness


def test_a_control_that_diverged_is_not_said_to_be_missing(tmp_path: Path) -> None:
    rows = [make_row("a", 1, 0.4), make_row("a", 2, math.nan), make_row("b", 1, 0.4), make_row("b", 2, 0.5)]
    run = RunData(tmp_path, rows, space={"scheduler": "pbt"}, controls=frozenset("a"))
    running = outcome_of(run, [])
    assert (running.gain, running.sureness) == ("–", "the control diverged or collapsed")
    unknown = outcome_of(replace(run, controls=frozenset("z")), [])
    assert (unknown.gain, unknown.sureness) == ("–", "no control has a score yet")
    assert outcome_of(replace(run, controls=frozenset()), []).sureness == "the run has no control"
    finished = replace(run, summary=make_summary(rows))
    assert "over the best first report: the control diverged or collapsed" in outcome_of(finished, []).sureness
    assert "the run has no control" in outcome_of(replace(finished, controls=frozenset()), []).sureness
    assert "the control diverged or collapsed" in write_comparison([finished], tmp_path / "lost.html").read_text()


def test_a_run_that_is_not_finished_has_the_state_that_the_list_of_runs_shows(tmp_path: Path) -> None:
    records.write_config(tmp_path, {})
    (tmp_path / "space.yaml").write_text("scheduler: pbt\nparameters: {a.b: {low: 0, high: 1}}\n")
    runs = [read_run(tmp_path), read_run(tmp_path, "s3://bucket/run")]
    with claimed(Store(tmp_path), print, TRAINING):
        runs.append(read_run(tmp_path))
        assert runs[-1].state == "running" and "--open" in outcome_of(runs[-1], []).steps[0].command
        text = Page(write_report(tmp_path).read_text()).text
        assert "running: no summary yet" in text and "pbt, random, 1 values" in text
        assert "with these values" not in text
    states = ["interrupted", "not finished", "running"]
    assert [run.state for run in runs] == states
    text = Page(write_comparison(runs, tmp_path / "comparison.html").read_text()).text
    check_output_file(tmp_path / "comparison.html", MARK)
    assert all(f"{state}, 0 epochs" in text for state in states)


def test_members_are_read_from_snapshot_and_journal(tmp_path: Path) -> None:
    (tmp_path / "population.json").write_text(
        '{"members": {"a": {"control": true}, "b": {"control": false}}, "dataset": "sum"}'
    )
    (tmp_path / "population.jsonl").write_text(
        '{"members": {"c": {"control": true, "restarted_epoch": 4}}}\n{"members": {"cut'
    )
    run = read_run(tmp_path)
    assert run.controls == {"a", "c"} and run.dataset == "sum" and run.restarted == {"a": 0, "b": 0, "c": 4}


def test_importance_finds_the_value_that_matters(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for trial in range(60):
        good, idle = rng.uniform(0, 1), rng.uniform(0, 1)
        values = {"augment.hue": idle, "optimizer.encoder_lr": good, "optimizer.name": rng.choice(["sgd", "lars"])}
        rows.append(make_row(f"t{trial:02d}", 4, 0.3 + 0.4 * good + rng.normal(0, 0.01), values=values))
    found = importance_of(RunData(tmp_path, sorted(rows, key=lambda row: row.trial)))
    assert found is not None and not found.of_gains and found.samples == 60 and found.r2 > 0.8
    assert next(iter(found.values)) == "optimizer.encoder_lr" and found.values["optimizer.encoder_lr"][0] > 0.5
    assert all(found.values[path][0] <= max(found.noise, 0.02) for path in ("augment.hue", "optimizer.name"))
    assert found.known
    alike = [row.model_copy(update={"fitness": 0.3 + rng.normal(0, 0.01)}) for row in rows]
    unknown = importance_of(RunData(tmp_path, sorted(alike, key=lambda row: row.trial)))
    assert unknown is not None and not unknown.known
    assert importance_of(RunData(tmp_path, rows[:5])) is None


def test_a_copy_between_two_reports_is_no_gain_of_the_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        make_row(f"t{trial:02d}", epoch, 0.5 + rng.normal(0, 0.01), values={"optimizer.encoder_lr": rng.uniform()})
        for trial in range(20)
        for epoch in (2, 4)
    ]
    before = importance_of(RunData(tmp_path, rows, exploits=[make_exploit(1, "t00", "t01")]))
    assert before is not None and before.samples == 20
    for epoch in (2, 3):  # a population may decide where this trial does not report
        copied = importance_of(RunData(tmp_path, rows, exploits=[make_exploit(epoch, "t00", "t01")]))
        assert copied is not None and copied.samples == 19


def test_parallel_coordinates_place_values_between_their_bounds(tmp_path: Path) -> None:
    parameters = {"optimizer.encoder_lr": {"low": 0.01, "high": 1.0, "scale": "log"}}
    kinds = [("sgd", 0.1), ("lars", 0.01)]
    values = [{"optimizer.encoder_lr": rate, "optimizer.name": name} for name, rate in kinds]
    rows = [make_row(trial, 1, 0.1 * i, values=values[i]) for i, trial in enumerate("ab")]
    run = RunData(tmp_path, rows, space={"scheduler": "asha", "parameters": parameters})
    figure = search_charts.parallel_chart(chart_data(run))
    plotly.graph_objects.Figure(figure)
    assert [trace["x"] for trace in figure["data"]] == [[pytest.approx(0.5), 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_parallel_coordinates_tell_values_without_bounds_apart_exactly(tmp_path: Path) -> None:
    rates, settings = (0.384, 0.38400000000000006, 0.2), ([3, 2], [3, 1], [3, 2])
    values = [{"optimizer.encoder_lr": rate, "a.list": of} for rate, of in zip(rates, settings, strict=True)]
    rows = [make_row(trial, 1, 0.1 * i, values=values[i]) for i, trial in enumerate("abc")]
    figure = search_charts.parallel_chart(chart_data(RunData(tmp_path, rows)))
    assert [trace["x"][:2] for trace in figure["data"]] == [[0.5, 1.0], [1.0, 0.0], [0.0, 1.0]]


def test_families_survive_by_copies(tmp_path: Path) -> None:
    rows = [make_row(trial, epoch) for trial in "abc" for epoch in (1, 2, 3)]
    run = RunData(tmp_path, rows, [make_exploit(1, "b", "a"), make_exploit(2, "c", "b")])
    traces = search_charts.survival_chart(chart_data(run))["data"]
    assert {trace["meta"]: trace["y"] for trace in traces} == {
        "a": [1, 2, 3, 3],
        "b": [1, 0, 0, 0],
        "c": [1, 1, 0, 0],
    }
    left = RunData(tmp_path, [*rows, make_row("d", 1), make_row("d", 2)], run.exploits, drops=[make_drop(2, "d")])
    traces = search_charts.survival_chart(chart_data(left))["data"]
    assert {trace["meta"]: trace["y"] for trace in traces} == {
        "a": [1, 2, 3, 3],
        "b": [1, 0, 0, 0],
        "c": [1, 1, 0, 0],
        "d": [1, 1, 0, 0],
    }


def test_slots_are_described(tmp_path: Path) -> None:
    masks = np.zeros((2, 3, 4, 4), np.uint8)
    masks[:, 0, :2], masks[:, 1, :2], masks[:, 2, 2:] = 255, 255, 255
    overlaps = slot_overlaps(masks)
    assert overlaps.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    found = slot_statistics(masks)
    assert found.sizes == [0.5, 0.5, 0.5] and found.overlap == 1.0
    # Half of the pixels are shared equally by two of three slots.
    assert found.entropy == pytest.approx(0.5 * math.log(2) / math.log(3))
    assert agreement(masks, masks[:, ::-1]) == 1.0 and agreement(masks, masks[:, :2]) == pytest.approx(2 / 3)
    soft = np.stack([np.full((1, 4, 4), 60, np.uint8), np.full((1, 4, 4), 195, np.uint8)], axis=1)
    assert slot_overlaps(soft)[0, 1] == pytest.approx(60 / 195)


def test_time_is_parted_as_reported_and_guessed_for_earlier_versions(tmp_path: Path) -> None:
    measured = {"train_s": 40.0, "evaluate_s": 5.0, "idle_s": 10.0, "data_wait_fraction": 0.25}
    measured |= {"checkpoint_s": 2.0, "load_s": 3.0}
    shares = search_charts.time_shares(RunData(tmp_path, [make_row("a", 1, **measured), make_row("a", 2, **measured)]))
    parts = {"training": 60.0, "waiting for data": 20.0, "evaluation": 10.0, "checkpoints": 4.0, "exploits": 6.0}
    assert shares == {"a": parts | {"idle": 14.0}}
    early = [make_row("a", epoch, idle_s=12.0, data_wait_fraction=0.5) for epoch in (1, 2)]  # a minute apart
    shares = search_charts.time_shares(RunData(tmp_path, early))
    assert shares["a"] == dict.fromkeys(parts, 0.0) | {"training": 24.0, "waiting for data": 24.0, "idle": 24.0}


def test_a_single_mask_and_large_images_are_drawn(tmp_path: Path) -> None:
    make_run(tmp_path, trials=2, epochs=1)
    images = np.full((2, 200, 200, 3), 9, np.uint8)
    for trial in ("trial_00", "trial_01"):
        run_masks.write_masks(tmp_path, trial, 1, MaskFile(images, np.full((2, 1, 200, 200), 99, np.uint8)))
    section = mask_section(read_run(tmp_path))
    assert section is not None and len(section.sheets) == 1 and not section.pixelated
    assert section.statistics[1].entropy == 0.0 and "Pictures of masks" in write_report(tmp_path).read_text()


def test_runs_are_compared(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    config = {**records.read_config(run_dir), "seed": 1, "masking": {"scheme": "adios", "slots": 6}}
    records.write_config(other, config)
    rows = results.read_results(run_dir)
    summary = make_summary(rows)
    better = summary.model_copy(update={"test_fitness": summary.test_fitness + 0.05, "test_standard_error": 0.01})
    records.write_summary(other, better)
    runs = [read_run(run_dir), read_run(other)]
    assert [(row.name, row.cells) for row in differences(runs)] == [("masking.slots", ["4", "6"]), ("seed", ["0", "1"])]
    ahead = f"other is ahead of finished by 5.0 ± {100 * math.hypot(0.01, 0.01):.1f} points on test: sure"
    assert verdict_between(runs).startswith(ahead) and verdict_between(runs).endswith("another seed may change more")
    page = Page(write_comparison(runs, tmp_path / "comparison.html").read_text())
    assert ahead in page.text and "masking.slots" in page.text and not page.loads


def test_data_is_compared_by_its_checksum_or_else_its_path(run_dir: Path) -> None:
    run = read_run(run_dir)
    here, there = (replace(run, config={"data_dir": path}) for path in ("here", "there"))
    different = "The runs are of different data"
    assert verdict_between([here, there]).startswith(different)
    assert not verdict_between([replace(here, dataset="a"), replace(there, dataset="a")]).startswith(different)
    assert verdict_between([replace(here, dataset="a"), replace(here, dataset="b")]).startswith(different)
    assert not verdict_between([replace(here, dataset="a"), here]).startswith(different)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ({}, {"fitness": "rankme", "neighbors": 200}, "evaluation.fitness knn and rankme"),
        ({}, {"neighbors": 20, "temperature": 0.07, "interval_epochs": 5}, None),  # the defaults
        (
            {"neighbors": 200, "temperature": 9.5},
            {},
            "evaluation.neighbors 200 and 20, evaluation.temperature 9.5 and 0.07",
        ),
        ({"fitness": "probe", "neighbors": 200}, {"fitness": "probe"}, None),
        ({"fitness": "probe", "view": "resize-256"}, {"fitness": "probe"}, "evaluation.view resize-256 and square"),
        ({"fitness": "lidar", "view": "resize-256"}, {"fitness": "lidar"}, None),  # of random views
    ],
)
def test_fitness_on_different_scales_is_not_compared(
    run_dir: Path, first: dict[str, Any], second: dict[str, Any], differ: str | None
) -> None:
    runs = [replace(read_run(run_dir), config={"evaluation": own}) for own in (first, second)]
    refusal = f"The runs measure fitness differently ({differ}): their numbers cannot be compared."
    assert (verdict_between(runs) == refusal) == (differ is not None)
    assert differ or " is ahead of " in verdict_between(runs)


def test_runs_of_several_seeds_are_compared_over_seeds(tmp_path: Path) -> None:
    make_run(tmp_path / "made", trials=2, epochs=1)
    summary = make_summary(results.read_results(tmp_path / "made"))
    scores = {"a": [0.52, 0.50, 0.54], "b": [0.45, 0.47], "c": [0.3]}
    runs: dict[str, RunData] = {}
    for slots, (name, values) in enumerate(scores.items(), start=2):
        for seed, value in enumerate(values):
            path = tmp_path / f"{name}{seed}"
            shutil.copytree(tmp_path / "made", path)
            records.write_config(path, {"seed": seed, "storage": name, "masking": {"scheme": "adios", "slots": slots}})
            records.write_summary(path, summary.model_copy(update={"test_fitness": value}))
            runs[path.name] = read_run(path)
    result = ttest_ind(scores["a"], scores["b"])
    expected = (
        f"a0, a1, a2 are ahead of b0, b1 by 6.0 ± {6.0 / result.statistic:.1f} points on test, over seeds: fairly sure"
    )
    found = verdict_between([run for name, run in runs.items() if name[0] in "ab"])
    assert found == f"{expected} ({result.statistic:.1f} standard errors, p {result.pvalue:.2g})"
    own = f"a0, a1, a2 differ in their seeds only: 52.0 ± {100 * sem(scores['a']):.1f} % on test"
    assert verdict_between([runs[f"a{seed}"] for seed in range(3)]).startswith(own)
    alone = verdict_between([runs["a0"], runs["a1"], runs["a2"], runs["c0"]])
    assert alone.startswith(f"a0, a1, a2 are ahead of c0 by 22.0 ± {100 * 0.02 * math.sqrt(1 / 3 + 1):.1f} points")
    assert verdict_between([runs["a0"], runs["a0"]]).startswith("a0 (1) is ahead of a0 (2) by 0.0")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["report"], "name at least one run directory"),
        (["report", "{tmp}"], "is not a run directory: it has no config.json"),
        (["report", "{run}", "--output", "x.html"], "--output is for the comparison"),
        (["report", "{run}", "{run}/../finished"], "is named twice"),
        (["report", "{run}", "--images", "-1"], "--images -1 must be 0, or 2 to 10000"),
        (["report", "{run}", "--images", "10001"], "--images 10001 must be 0, or 2 to 10000"),
    ],
)
def test_wrong_uses_of_the_command(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main([argument.format(tmp=tmp_path, run=run_dir) for argument in arguments]) == 2
    assert complaint in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_environment_is_recorded_once(tmp_path: Path) -> None:
    record_environment(tmp_path)
    path = tmp_path / "environment.json"
    before = path.read_text()
    path.write_text(before.replace('"machine":', '"machine" :'))
    record_environment(tmp_path)
    assert path.read_text() != before and "CPUs" in before


def test_features_are_projected_by_pca_or_by_umap_where_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 5))
    whole, several = plane.astype(np.float32), plane[:3, None].repeat(2, axis=1).astype(np.float32)
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    points, masked, name, explained = project(whole, several)
    assert name == "PCA" and explained == pytest.approx(1.0, abs=1e-5) and masked.shape == (3, 2, 2)
    np.testing.assert_allclose(masked[:, 1], points[:3], atol=1e-5)
    # Distances in a plane are kept.
    np.testing.assert_allclose(np.linalg.norm(points[0] - points[1]), np.linalg.norm(whole[0] - whole[1]), rtol=1e-4)

    class Umap:
        def __init__(self, random_state: int) -> None:
            self.embedding_ = np.zeros((0, 2))

        def fit(self, features: Any) -> "Umap":
            self.embedding_ = features[:, :2]
            return self

        def transform(self, features: Any) -> Any:
            return features[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    points, masked, name, explained = project(whole, several)
    assert name == "UMAP" and explained == 0 and (points == whole[:, :2]).all() and (masked == several[..., :2]).all()


def inspected(labels: Any, predicted: Any, classes: int, side: int = 4) -> Inspection:
    """Make an inspection of black images with these classes, without masks."""
    images, none = len(labels), np.zeros(0, np.int64)
    info = InspectionInfo(
        trial="a",
        epoch="epoch_00001",
        weights_sha256="",
        images=images,
        data_sha256="",
        classes=[str(number) for number in range(classes)],
        projection="PCA",
        explained=0.5,
        rank=2.0,
    )
    return Inspection(
        info,
        thumbnails=np.zeros((images, side, side, 3), np.uint8),
        labels=np.asarray(labels),
        predicted=np.asarray(predicted),
        points=np.zeros((images, 2), np.float32),
        masked_points=np.zeros((0, 0, 2), np.float32),
        harm=np.zeros((images, 0), np.float32),
        neighbors=none.reshape(0, 4),
        slot_neighbors=none.reshape(0, 0, 4),
        spectrum=np.ones(3, np.float32),
        picked=none,
        picked_images=np.zeros((0, 4, 4, 3), np.uint8),
        picked_masks=np.zeros((0, 0, 4, 4), np.uint8),
    )


@pytest.mark.parametrize("fill", ["zero", "mix"])
def test_masked_versions_have_the_fill_of_the_training(fill: str, objects_dir: Path) -> None:
    """With two images, mix fills each with the other."""
    torch.manual_seed(0)
    config = small_config(objects_dir, masking={"slots": 3, "width": 8, "fill": fill})
    tensors = Networks(config, SIZE, 10).state_dict()
    subject = build_subject(Weights(config, SIZE, 10, "made for a test", tensors), open_shards(objects_dir), "val")
    found, _ = measure(subject, 2)
    chosen, networks = subject.held_out.spread(2), subject.networks
    assert networks.occlusion is not None
    with torch.no_grad():
        x = central_views(subject.held_out, chosen, SIZE, subject.device, "square")
        whole, masks = networks.backbone(x), networks.occlusion(x)
        for slot in range(3):
            m = masks[:, slot : slot + 1]
            masked = x * (1 - m) + m * (x.flip(0) if fill == "mix" else 0)
            harm = 1 - torch.nn.functional.cosine_similarity(whole, networks.backbone(masked))
            np.testing.assert_allclose(found["harm"][:, slot], harm.numpy(), atol=1e-5)


def test_a_confusion_of_few_classes_has_all_and_one_of_many_those_confused_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, predicted = [0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    heat = feature_section(inspected(labels, predicted, 4)).charts["confusion"]["data"][0]
    plotly.graph_objects.Heatmap(heat)
    assert heat["x"] == heat["y"] == ["0", "1", "2", "3"]
    assert heat["text"] == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert heat["z"][:3] == [[0.333, 0.667, 0, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0]]
    assert most_confused(inspected(labels, predicted, 4), 2).tolist() == [0, 1]
    many = np.random.default_rng(0).integers(0, 5000, (2, 400))
    found = inspected(many[0], many[1], 5000)
    section = feature_section(found)
    drawn = [int(name) for name in section.charts["confusion"]["data"][0]["x"]]
    pairs = Counter((truth, guess) for truth, guess in many.T.tolist())
    naive = [[pairs[truth, guess] for guess in drawn] for truth in drawn]
    assert section.charts["confusion"]["data"][0]["text"] == naive and len(drawn) == 100
    assert sum(len(json.dumps(figure)) for figure in section.charts.values()) < 500_000
    monkeypatch.setattr("adios_ray.tracking.report.page.read_inspection", lambda _: found)
    assert "the 100 of 5000 classes that are confused most often" in write_report(tmp_path).read_text()


def test_a_sheet_of_thousands_of_images_fits_into_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Image.Image]()
    monkeypatch.setattr("adios_ray.tracking.report.features.data_uri", drawn.append)
    labels = np.full(MOST_IMAGES, -1)
    sprites = feature_section(inspected(labels, labels, 0, side=THUMBNAIL)).sprites
    (sheet,) = drawn
    assert max(sheet.size) <= 16383  # of a WebP file
    assert sheet.width == THUMBNAIL * sprites["columns"]
    assert sheet.height == THUMBNAIL * math.ceil(MOST_IMAGES / sprites["columns"])


def test_images_of_a_single_class_have_no_classes_on_the_map() -> None:
    manifest = types.SimpleNamespace(classes=("unlabeled",), multi_label=False)
    held_out = types.SimpleNamespace(labels=np.zeros(4, np.int64))
    subject: Any = types.SimpleNamespace(dataset=types.SimpleNamespace(manifest=manifest), held_out=held_out)
    labels, predicted, classes = classify(subject, np.arange(3), torch.zeros(3, 2))
    assert labels.tolist() == predicted.tolist() == [-1, -1, -1] and classes == []


@pytest.mark.slow
def test_a_report_is_refreshed_beside_the_run_and_never_after_it(tmp_path: Path) -> None:
    make_run(tmp_path, trials=2, epochs=2)
    notes: list[str] = []
    page = BackgroundReport(tmp_path, notes.append, interval_s=0.0)
    page.refresh()
    first = page._process
    page.refresh()
    assert page._process is first is not None and first.poll() is None  # a single process, for which no caller waits
    assert first.wait() == 0 and (tmp_path / "report.html").stat().st_size > 1e6
    (tmp_path / "summary.json").write_text("damaged")
    for _ in range(2):  # of which one complaint is enough
        page.refresh()
        assert page._process is not None and page._process.wait() == 2
    page.refresh()
    running = page._process
    page.close()
    assert running is not None and running.returncode is not None
    assert len(notes) == 1 and "summary.json" in notes[0] and not list(tmp_path.glob(".*"))


def test_a_report_is_refreshed_by_the_package_that_the_run_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "job" / "adios_ray" / "tracking" / "report" / "__main__.py"
    module.parent.mkdir(parents=True)
    for folder in (module.parents[2], module.parents[1], module.parent):
        (folder / "__init__.py").touch()
    module.write_text("import pathlib, sys\npathlib.Path(sys.argv[1], 'report.html').write_text('of the job')\n")
    monkeypatch.setattr(adios_ray, "__file__", str(module.parents[2] / "__init__.py"))
    monkeypatch.chdir(tmp_path)  # python -m looks there first
    page = BackgroundReport(tmp_path, print, interval_s=0.0)
    page.refresh()
    assert page._process is not None and page._process.wait() == 0
    page.close()
    assert (tmp_path / "report.html").read_text() == "of the job"

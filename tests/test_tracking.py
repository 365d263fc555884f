"""Records of a run: files, ancestry of weights, pictures of masks and the terminal view."""

import errno
import io
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from made_up_run import SETTINGS, make_exploit, make_masks, make_row, make_run, make_summary
from PIL import Image
from rich.console import Console

from adios_ray.errors import RecordError, UsageError
from adios_ray.retry import retry
from adios_ray.run_directory import RunDirectory
from adios_ray.tracking import decisions, lineage, pictures, records, results, run_masks, run_picture
from adios_ray.tracking.formatting import duration, value_text
from adios_ray.tracking.lineage import Ancestor
from adios_ray.tracking.live import LiveView, report_line, sparkline
from adios_ray.tracking.report.run_data import read_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a finished run, shared by tests that only read it."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    make_run(path)
    return path


def test_results_round_trip_and_continue(tmp_path: Path) -> None:
    rows = [make_row("trial_00", 1), make_row("trial_00", 2, math.nan), make_row('odd, "name"', 1, 1 / 3)]
    results.begin_results(tmp_path, list(SETTINGS))
    results.append_result(tmp_path, rows[0])
    results.begin_results(tmp_path, list(SETTINGS))
    results.append_result(tmp_path, rows[1])
    results.append_result(tmp_path, rows[2])
    assert (tmp_path / "results.csv").read_text().count("time,trial,") == 1
    read = results.read_results(tmp_path)
    assert [row.model_dump_json() for row in read] == [row.model_dump_json() for row in (rows[2], *rows[:2])]


def test_columns_are_the_contract(tmp_path: Path) -> None:
    results.begin_results(tmp_path, list(SETTINGS))
    assert (tmp_path / "results.csv").read_text() == (
        "time,trial,epoch,fitness,standard_error,accuracy,holdout_fitness,holdout_standard_error,loss,penalty,"
        "probe_accuracy,slot_overlap,mask_mean_min,mask_mean_max,images_per_s,data_wait_fraction,train_s,evaluate_s,"
        "checkpoint_s,load_s,idle_s,worker_pid,"
        "masking.sparsity_weight,optimizer.encoder_lr,optimizer.occlusion_lr,masking.slots\n"
    )


def test_a_row_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    results.begin_results(tmp_path, list(SETTINGS))
    results.append_result(tmp_path, make_row())
    assert len(results.read_results(tmp_path)) == 1


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_rows_give_way_to_those_that_a_trial_reports_after_it_was_set_back(tmp_path: Path, hours: int) -> None:
    results.begin_results(tmp_path, list(SETTINGS))
    ahead = timedelta(hours=hours)  # of the first driver's clock
    for trial, epoch, fitness in [("a", 1, 0.1), ("a", 2, 0.2), ("b", 1, 0.6), ("a", 3, 0.3)]:
        row = make_row(trial, epoch, fitness)
        results.append_result(tmp_path, row.model_copy(update={"time": row.time + ahead}))
    for epoch, fitness in [(2, 0.25), (4, 0.4)]:  # a copy of a donor at epoch 1, then of one at epoch 3
        results.append_result(tmp_path, make_row("a", epoch, fitness))
    assert [row.fitness for row in results.read_results(tmp_path)] == [0.1, 0.25, 0.4, 0.6]


def test_a_lineage_keeps_the_order_of_its_decisions(tmp_path: Path) -> None:
    decided = [make_exploit(3, "a", "b"), make_exploit(2, "c", "a"), make_exploit(2, "c", "b")]
    decisions.begin_lineage(tmp_path)
    for exploit in decided:
        decisions.append_decision(tmp_path, exploit)
    assert decisions.read_lineage(tmp_path) == decided
    decisions.begin_lineage(tmp_path, lines=2)
    assert decisions.read_lineage(tmp_path) == decided[:2]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_half_written_line_is_dropped_and_the_file_continued(tmp_path: Path, cut: int) -> None:
    results.begin_results(tmp_path, list(SETTINGS))
    decisions.begin_lineage(tmp_path)
    results.append_result(tmp_path, make_row(epoch=1))
    results.append_result(tmp_path, make_row(epoch=2))
    for epoch in (1, 2):
        decisions.append_decision(tmp_path, make_exploit(epoch, "a", "b"))
    for name in ("results.csv", "lineage.jsonl"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - cut)
    assert [row.epoch for row in results.read_results(tmp_path)] == [1]
    assert [exploit.epoch for exploit in decisions.read_lineage(tmp_path)] == [1]
    results.begin_results(tmp_path, list(SETTINGS))
    results.append_result(tmp_path, make_row(epoch=3))
    decisions.append_decision(tmp_path, make_exploit(3, "a", "b"))
    assert [row.epoch for row in results.read_results(tmp_path)] == [1, 3]
    assert [exploit.epoch for exploit in decisions.read_lineage(tmp_path)] == [1, 3]


def test_lineage_summary_config_and_masks_round_trip(tmp_path: Path) -> None:
    exploit = make_exploit(4, "trial_01", "trial_00", slots=5)
    decisions.begin_lineage(tmp_path)
    decisions.append_decision(tmp_path, exploit)
    assert decisions.read_lineage(tmp_path) == [exploit]
    summary = make_summary([make_row()]).model_copy(update={"test_fitness": math.nan})
    records.write_summary(tmp_path, summary)
    assert repr(records.read_summary(tmp_path)) == repr(summary)
    records.write_config(tmp_path, {"a": {"b": [1, None]}})
    assert records.read_config(tmp_path) == {"a": {"b": [1, None]}}
    masks = make_masks(1, 2, 3, images=2, side=8)
    RunDirectory(tmp_path).make_folders()
    run_masks.write_masks(tmp_path, "trial_01", 12, masks)
    assert run_masks.mask_epochs(tmp_path, "trial_01") == [12]
    np.testing.assert_array_equal(run_masks.read_masks(tmp_path, "trial_01", 12).masks, masks.masks)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("results.csv", "time,trial\n", results.read_results),
        ("results.csv", ",".join(results.COLUMNS) + "\nnoon,a,one\n", results.read_results),
        ("lineage.jsonl", '{"epoch": 1}\n', decisions.read_lineage),
        ("lineage.jsonl", "no json\n", decisions.read_lineage),
        ("config.json", "[]", records.read_config),
        ("summary.json", '{"best_trial": "a"}', records.read_summary),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: str, read: Callable[[Path], object]) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordError, match=name):
        read(tmp_path)


def test_a_trial_name_does_not_lead_out_of_the_masks(tmp_path: Path) -> None:
    masks = make_masks(1, 2, 3, images=1, side=4)
    for name in ("..", "../x", "/tmp", "a/b", ""):
        with pytest.raises(RecordError, match="folder"):
            run_masks.write_masks(tmp_path, name, 1, masks)
        assert run_masks.mask_epochs(tmp_path, name) == []


def test_ancestry_follows_the_copies_backward() -> None:
    # d took c's weights after epoch 6, c took a's after 3; a's own later copy (7) and c's (8) are not in d's past.
    copies = [(3, "c", "a"), (5, "b", "a"), (6, "d", "c"), (7, "a", "d"), (8, "c", "b"), (10, "d", "b")]
    exploits = [make_exploit(*copy) for copy in copies]
    path = [Ancestor("a", 0, 3), Ancestor("c", 3, 6), Ancestor("d", 6, 10)]
    assert lineage.ancestry(exploits, "d", 10) == path
    assert [lineage.holder(path, epoch) for epoch in (1, 3, 4, 6, 7, 10, 11)] == [*"aaccdd", None]
    assert lineage.ancestry(exploits, "d", 6) == [Ancestor("d", 0, 6)]
    assert lineage.ancestry(exploits, "d", 11) == [Ancestor("a", 0, 5), Ancestor("b", 5, 10), Ancestor("d", 10, 11)]


def test_reports_of_weights_that_a_copy_has_replaced_do_not_count(tmp_path: Path) -> None:
    results.begin_results(tmp_path, list(SETTINGS))
    for row in (make_row(trial, epoch) for epoch in range(1, 11) for trial in "abc"):
        results.append_result(tmp_path, row)
    copy = make_exploit(6, "a", "b")  # after a's tenth report, of b at its sixth, by a driver whose clock is behind
    members = {"a": {"epoch": 6}, "b": {"epoch": 10}, "c": {}}  # an earlier version had no epochs
    RunDirectory(tmp_path).population.write_text(json.dumps({"members": members}))
    RunDirectory(tmp_path).lineage.write_text(f"{copy.model_dump_json()}\n")
    epochs = {trial: [row.epoch for row in rows] for trial, rows in read_run(tmp_path).by_trial.items()}
    assert epochs == {"a": [*range(1, 7)], "b": [*range(1, 11)], "c": [*range(1, 11)]}
    held = lineage.last_rows(results.read_results(tmp_path), [copy], "a", 6, 3)
    assert [(row.trial, row.epoch) for row in held] == [("b", 4), ("b", 5), ("b", 6)]


def test_best_row_ignores_nan_and_takes_the_earliest() -> None:
    rows = [make_row("a", 1, math.nan), make_row("a", 3, 0.5), make_row("b", 2, 0.5), make_row("b", 3, 0.4)]
    assert lineage.best_row(rows) is rows[2]
    assert lineage.best_row(rows[:1]) is None


def test_mask_colors_have_their_closed_form() -> None:
    images = np.full((1, 1, 2, 3), (30, 60, 90), dtype=np.uint8)
    masks = np.array([[[[255, 51]], [[0, 204]]]], dtype=np.uint8)
    orange, blue = np.array([0xE6, 0x9F, 0x00]), np.array([0x00, 0x72, 0xB2])
    blended = np.stack([orange, 0.2 * orange + 0.8 * blue])
    np.testing.assert_array_equal(pictures.slot_map(masks)[0, 0], np.rint(blended))
    expected = 0.35 * 60 + 0.65 * np.rint(blended)
    np.testing.assert_array_equal(pictures.overlay(images, masks)[0, 0], np.rint(expected))
    masked = pictures.masked_inputs(images, masks)[0, :, 0]
    np.testing.assert_array_equal(masked, [[[0, 0, 0], [24, 48, 72]], [[30, 60, 90], [6, 12, 18]]])


def test_slot_colors_are_distinct() -> None:
    assert len(set(pictures.slot_colors(64))) == 64
    assert pictures.slot_colors(64)[:3] == pictures.slot_colors(3)


def test_a_picture_of_a_run_has_a_row_for_each_slot(run_dir: Path, tmp_path: Path) -> None:
    run_picture.save_masks_of_run(run_dir, tmp_path / "masks.png", "trial_02")
    stored = run_masks.read_masks(run_dir, "trial_02", 12)
    images, slots = stored.masks.shape[:2]
    with Image.open(tmp_path / "masks.png") as sheet:
        assert sheet.size == (images * 100 - 4, (2 + slots) * 100 - 4)
        assert sheet.getpixel((1, 1)) == tuple(stored.images[0, 0, 0])
    with pytest.raises(RecordError, match="no masks of trial"):
        run_picture.save_masks_of_run(run_dir, tmp_path / "none.png", "trial_99")


def test_a_picture_of_a_run_replaces_no_other_file(run_dir: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run_picture.main(run_dir, tmp_path / "masks.png", trial="trial_02")
    photograph = tmp_path / "photograph.png"
    Image.new("RGB", (8, 8)).save(photograph)
    before = photograph.read_bytes()
    with pytest.raises(UsageError, match="is there already, and of another kind"):
        run_picture.main(run_dir, photograph)
    assert photograph.read_bytes() == before
    with pytest.raises(UsageError, match="nope is not a run directory: it has no config.json"):
        run_picture.main("nope", tmp_path / "masks.png")


def test_narrow_terminals_name_the_values_that_they_leave_out() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=70, record=True)
    values = {"masking.slots": 4, **{f"augment.{name}": 0.5 for name in ("brightness", "contrast", "saturation")}}
    with LiveView(10, 2, "population", console=console) as view:
        view.report(make_row("trial_00", 5, values=values))
    text = console.export_text()
    assert "augment.brightness" in text and "augment.contrast, augment.saturation" in text and "results.csv" in text


def test_eighty_columns_show_which_trial_is_best_with_which_values_and_what_waits() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    with LiveView(100, 2, "population", console=console) as view:
        view.report(make_row("trial_00", 50, 0.625))
        view.report(make_row("trial_01", 50, 0.75))
        view.keep("trial_01", "trial_01: its worker was lost; again in 20 s")
        view.hold(["trial_00"], True)
    last = console.export_text().rpartition("population")[2]
    header, worse, best, held, note, _ = (line.split() for line in last.strip().splitlines())
    assert header == "trial epoch fitness lambda encoder lr occlusion lr N".split()
    assert worse == "trial_00 50/100 0.625 ± 0.011 0.4 0.13 0.02 4".split()
    assert best == "trial_01 50/100 0.750 ± 0.011 ★ 0.4 0.13 0.02 4".split()
    assert " ".join(held) == "waiting for the others to report: trial_00" and note[-4:] == "again in 20 s".split()


def test_what_no_trial_waits_for_any_more_is_not_shown() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    with LiveView(100, 2, "population", console=console) as view:
        view.keep("trial_01", "trial_01: its worker was lost; again in 20 s")
        view.hold(["trial_00", "trial_01"], True)
        view.hold(["trial_00", "trial_01"], False)
        view.report(make_row("trial_01", 50, 0.75))
    last = console.export_text().rpartition("population")[2]
    assert "wait" not in last and "again in" not in last


def test_live_prints_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with LiveView(12, 2, "title", console=Console(file=out, width=40)) as view:
        view.report(make_row("trial_[red]", 6, 0.75, loss=1.5))
        view.exploit(make_exploit(6, "trial_02", "trial_00", slots=5))
        view.note("resumed from epoch 5")
    assert out.getvalue().splitlines() == [
        "epoch 6/12: trial_[red] fitness 0.750 ± 0.011, accuracy 0.550, loss 1.5, lambda 0.4, encoder lr 0.13, "
        "occlusion lr 0.02, N 4, 900 images/s",
        "epoch 6: trial_02 copied trial_00, N 4 -> 5, lambda 0.4 -> 0.5",
        "resumed from epoch 5",
    ]


def test_a_quiet_console_shows_nothing() -> None:
    out = io.StringIO()
    with LiveView(12, 2, "title", console=Console(file=out, quiet=True)) as view:
        view.report(make_row())
        view.note("resumed from epoch 5")
    assert not out.getvalue()


class FailingOutput(io.StringIO):
    """Output on a disk that fills, or to a terminal that is closed."""

    fails = False

    def write(self, text: str) -> int:
        """Write, unless that fails now."""
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_goes_on_where_its_output_cannot_be_written(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adios_ray.retry.PAUSE_S", 0.0)
    attempts = iter([OSError(errno.ENOSPC, "No space left on device"), None])

    def write() -> str:
        if error := next(attempts):
            raise error
        return "written"

    output = FailingOutput()
    with LiveView(12, 2, "title", console=Console(file=output, force_terminal=terminal)) as view:
        output.fails = True
        assert retry(write, view.note) == "written"
        view.report(make_row())


def test_live_table_shows_best_and_worst_of_many() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=150, record=True)
    with LiveView(10, 20, "population", console=console) as view:
        for i in range(20):
            view.report(make_row(f"trial_{i:02d}", 5, math.nan if i == 0 else i / 20))
        view.exploit(make_exploit(5, "trial_19", "trial_18"))
    text = console.export_text()
    last = text[text.rindex("population") :]
    shown = [line.split()[0] for line in last.splitlines() if line.strip().startswith("trial_")]
    assert shown == [f"trial_{i:02d}" for i in (*range(19, 11, -1), 3, 2, 1, 0)]
    assert "8 trials hidden" in last and "0.950 ± 0.011 ★" in last and "trial_18 (epoch 5)" in last


def test_live_takes_reports_from_many_threads() -> None:
    out = io.StringIO()
    view = LiveView(50, 8, "title", console=Console(file=out))
    rows = [make_row(f"trial_{i % 8}", 1 + i // 8) for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(view.report, rows))
    assert sorted(out.getvalue().splitlines()) == sorted(report_line(row, 50) for row in rows)


def test_time_left_counts_from_the_resumed_epochs() -> None:
    view = LiveView(10, 2, "title", history=[make_row("a", 4), make_row("b", 4)])
    assert view._time_left(30.0) == ""
    view.report(make_row("a", 5))
    assert view._time_left(30.0) == f", about {duration(11 * 30)} left"
    stopping = LiveView(10, None, "title", history=[make_row("a", 4)])  # how long trials train is not known
    stopping.report(make_row("b", 5))
    assert stopping._time_left(30.0) == ""


def test_whole_numbers_are_written_in_full() -> None:
    values = [1024, 1018, 1020, 0.0123456, 1.0, True, "sgd"]
    assert [value_text(value) for value in values] == ["1024", "1018", "1020", "0.0123", "1", "True", "sgd"]


def test_sparkline_spans_its_values() -> None:
    assert sparkline([0.0, 0.5, 1.0, math.nan]) == "▁▅█·"
    assert sparkline([0.3]) == "▁" and sparkline([]) == ""


def test_the_last_reports_of_copied_weights_are_the_donors() -> None:
    rows = [make_row(trial, epoch) for trial in "ab" for epoch in range(1, 6)]
    exploits = [make_exploit(2, "b", "a"), make_exploit(4, "a", "b")]

    def names(trial: str, epoch: int, most: int) -> list[str]:
        return [f"{row.trial}{row.epoch}" for row in lineage.last_rows(rows, exploits, trial, epoch, most)]

    assert names("a", 5, 3) == ["b3", "b4", "a5"] and names("b", 5, 9) == ["a1", "a2", "b3", "b4", "b5"]
    assert lineage.last_rows(rows, [make_exploit(5, "a", "b")], "a", 5, 1) == rows[-1:]  # copied at the end


def test_settings_of_no_section_can_be_searched(tmp_path: Path) -> None:
    row = make_row("trial_00", 1).model_copy(update={"values": {"batch_size": 64}})
    results.begin_results(tmp_path, ["batch_size"])
    results.append_result(tmp_path, row)
    assert results.read_results(tmp_path)[0].values == {"batch_size": 64}

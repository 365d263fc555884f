"""Tables: cells, entries and their formats, and runs of a small table that are resumed and that lose a cell."""

import ast
import csv
import importlib.util
import io
import math
import re
import shutil
import statistics
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small import COUNTS, make_objects, small_config

from adios_ray.arguments import parse_arguments
from adios_ray.backend.preflight import source_checksum
from adios_ray.commands.evaluation_kinds import PARTS, Linear
from adios_ray.commands.masks import Masks
from adios_ray.config import LINEAR_RATES, TrialConfig, replaced
from adios_ray.data.shards import open_shards
from adios_ray.errors import AGAIN, ConfigError, DatasetError, EvaluationError, InputError, RunError, UsageError
from adios_ray.evaluation.knn import NEIGHBORS, TEMPERATURES
from adios_ray.experiment.resources import Node, WorkerResources
from adios_ray.tables import cells as cells_module
from adios_ray.tables import estimate as estimate_module
from adios_ray.tables import run as run_module
from adios_ray.tables.cells import Measured, cell_name, finished, measured, run_cell, sources
from adios_ray.tables.command import Options, _check_cells, _draw_masks, main, run_table
from adios_ray.tables.estimate import estimate, tuned_images
from adios_ray.tables.evaluate import evaluate, settings_of
from adios_ray.tables.grid import Cell, Column, DataSet, Evaluation, Published, Row, Table, evaluation_of
from adios_ray.tables.methods import CHOICES_NOTE, IMAGES_NOTE, VIEW_NOTE, classification
from adios_ray.tables.render import as_csv, html, markdown
from adios_ray.tables.summary import entries, gain
from adios_ray.training.cost import StepCost
from adios_ray.validation import parse_json

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
KNN = Column("objects", "k-NN", "knn", "knn_accuracy")
SLOTS = Column("objects", "largest slot", "slots", "mask_mean_max", of_masks=True, scale=1.0, digits=3)


def config(scheme: str, **changes: object) -> TrialConfig:
    return replaced(small_config(Path("unused"), masking={"scheme": scheme}), {"data_dir": None, **changes})


def small_table(**changes: object) -> Table:
    """Two rows on the objects of the tests' data set; ``changes`` are for the second one."""
    rows = (
        Row("none", {"objects": (config("none"),)}, published={("objects", "k-NN"): Published(54.1, 0.09)}),
        Row("<adios>", {"objects": (config("adios", **changes),)}, baseline="none"),
    )
    data = {"objects": DataSet("--dataset objects --image-size 32", 96, 32)}
    return Table("A & B", rows, (KNN, SLOTS), data, ("A note.",))


def scripts() -> list[ModuleType]:
    modules = []
    for path in sorted(EXPERIMENTS.glob("*.py")):
        if "adios_ray.tables" in path.read_text():
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None
            modules.append(importlib.util.module_from_spec(spec))
            spec.loader.exec_module(modules[-1])
    return modules


def test_seeds_are_the_outer_loop_and_masks_are_measured_where_there_are_some() -> None:
    found = list(small_table().cells({"objects": "PLACE"}, seeds=2))
    assert [(cell.seed, cell.row) for cell in found] == [(0, "none"), (0, "<adios>"), (1, "none"), (1, "<adios>")]
    assert [[evaluation.kind for evaluation in cell.evaluations] for cell in found[:2]] == [["knn"], ["knn", "slots"]]
    assert all((cell.config.seed, cell.config.data_dir) == (cell.seed, "PLACE") for cell in found)


def test_a_row_has_no_evaluations_in_columns_that_it_leaves_out() -> None:
    table = small_table()
    scratch = replace(table.row("none"), name="scratch", options={"k": 1}, left_out=frozenset({"k-NN"}))
    table = replace(table, rows=(*table.rows, scratch))
    found = list(table.cells({"objects": "PLACE"}, seeds=1))
    assert [cell.evaluations for cell in found if cell.row == "scratch"] == [()]
    assert entries(table, found, lambda *_: 1.0)["scratch", "objects", "k-NN"].planned == 0


def test_fine_tuned_images_are_those_of_all_epochs_and_rates() -> None:
    table = small_table()
    tuned = Column("objects", "f.t.", "transfer", "top1", {"mode": "fine-tune", "epochs": 7, "rates": (0.1, 0.2)})
    linear = replace(tuned, name="lin.", options={**tuned.options, "mode": "linear"})
    table = replace(table, columns=(*table.columns, tuned, linear))
    cell = next(table.cells({"objects": "PLACE"}, seeds=1))
    assert tuned_images(table, cell) == 7 * 2 * table.data["objects"].images


def test_a_result_is_found_again_only_under_all_its_settings(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, names = {"objects": str(objects_dir)}, set[str]()

    def name(**options: Any) -> str:
        evaluation = Evaluation("linear", ("objects",), tuple(options.items()))
        path = cells_module._result_file(tmp_path, evaluation, places).name
        names.add(path)
        return path

    assert name() == name(epochs=None) == name(epochs=100, rates=LINEAR_RATES) != name(view="resize-256")
    monkeypatch.setattr(
        "adios_ray.tables.evaluate.PARTS", {**PARTS, "linear": Linear(solver="lbfgs")}
    )  # another default
    name()
    monkeypatch.setattr(cells_module, "VERSION", cells_module.VERSION + 1)
    name()
    assert len(names) == 4
    for module, constant, kind in (
        ("features", "VERSION", "clustering"),
        ("transfer", "VERSION", "transfer"),
    ):
        before = settings_of(kind, {})
        monkeypatch.setattr(f"adios_ray.evaluation.{module}.{constant}", -1)
        assert settings_of(kind, {}) != before
    assert settings_of("knn", {}) == settings_of("knn", {"neighbors": NEIGHBORS, "temperatures": TEMPERATURES})
    assert settings_of("slots", {}) == {} and settings_of("linear", {"view": "square"})["view"] == "square"


def test_published_numbers_of_photographs_are_compared_at_the_published_view() -> None:
    for group in ("ImageNet100-S", "ImageNet100"):
        assert all(column.options == {"view": "resize-256"} for column in classification(group))
    assert all(not column.options for column in classification("STL10"))


def test_a_table_of_the_paper_says_what_its_evaluations_and_the_published_ones_differ_in() -> None:
    tables = {module.__name__: module.paper() for module in scripts() if module.__name__.startswith("table")}
    assert len(tables) == 8 and all(IMAGES_NOTE in table.notes and len(table.notes) >= 2 for table in tables.values())
    del tables["table_wacv24"]  # another paper's
    for table in tables.values():
        columns = [column for column in table.columns if "view" in column.options]
        assert (VIEW_NOTE in table.notes) == bool(columns)
        assert (CHOICES_NOTE in table.notes) == any(column.kind in ("knn", "linear") for column in table.columns)


def test_other_peoples_masks_are_compared_at_one_learning_rate() -> None:
    table = next(module for module in scripts() if module.__name__ == "table_wacv24").paper()
    optimizers = {config.optimizer.model_dump_json() for row in table.rows for config in row.trainings["ImageNet100"]}
    assert len(optimizers) == 1


def test_the_gain_and_its_interval_are_those_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    own, baseline = rng.normal(size=5), rng.normal(size=5)
    found = gain([(own - baseline).tolist()])
    interval = stats.ttest_rel(own, baseline).confidence_interval(0.95)
    assert found is not None and found.half_width is not None
    assert found.mean == pytest.approx((own - baseline).mean(), abs=1e-12)
    assert found.mean - found.half_width == pytest.approx(interval.low, abs=1e-12)
    assert found.mean + found.half_width == pytest.approx(interval.high, abs=1e-12)


def test_the_interval_over_several_objectives_is_that_of_their_means_under_one_variance() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(level, size=count) for level, count in ((1, 3), (2, 4), (5, 1))]
    objectives = np.repeat(np.arange(3), [len(group) for group in groups])
    # The oracle: least squares with one mean for each objective, and the interval of the average coefficient.
    design, values = np.eye(3)[objectives], np.concatenate(groups)
    coefficients, (residual,), *_ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(values) - 3
    contrast = np.full(3, 1 / 3)
    error = np.sqrt(residual / freedom * contrast @ np.linalg.inv(design.T @ design) @ contrast)
    found = gain([group.tolist() for group in groups])
    assert found is not None and found.pairs == 8
    assert found.mean == pytest.approx(coefficients.mean(), abs=1e-12)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, freedom) * error, abs=1e-12)
    assert gain([[1.0], [2.0]]) == (1.5, None, 2) and gain([[], []]) is None


def test_an_average_gain_is_over_all_pairs_of_finished_trainings() -> None:
    plain = [Row(name, {"objects": (config("none"),)}) for name in ("a", "b")]
    masked = [Row(f"{row.name} + ADIOS", {"objects": (config("adios"),)}, row.name) for row in plain]
    published = {("objects", "k-NN"): Published(1.5)}
    average = Row("Avg. gain", {}, published=published, averaged=("a + ADIOS", "b + ADIOS"))
    table = replace(small_table(), rows=(*plain, *masked, average))
    found = list(table.cells({"objects": "PLACE"}, seeds=3))
    assert {cell.row for cell in found} == {row.name for row in (*plain, *masked)}
    values = {(cell.row, cell.seed): number**1.5 for number, cell in enumerate(found)}

    def score(cell: Cell, column: Column) -> float | None:
        return None if (cell.row, cell.seed) == ("b", 2) else values[cell.row, cell.seed]

    computed = entries(table, found, score)
    seeds = {"a": (0, 1, 2), "b": (0, 1)}
    own = [[values[f"{name} + ADIOS", seed] - values[name, seed] for seed in seeds[name]] for name in seeds]
    mean = np.mean([np.mean(differences) for differences in own])
    entry = computed["Avg. gain", "objects", "k-NN"]
    assert (entry.mean, entry.planned) == (None, 0) and entry.gain == gain(own)
    assert entry.gain is not None and entry.gain.pairs == 5 and entry.gain.mean == pytest.approx(mean)
    assert f"| Avg. gain |  | +1.5 | {mean:+.1f} ± " in markdown(table, computed)


def test_entries_are_means_and_deviations_of_finished_trainings() -> None:
    table = small_table()
    found = list(table.cells({"objects": "PLACE"}, seeds=3))
    values = {(cell.row, cell.seed): 10.0 * cell.seed**2 + len(cell.row) for cell in found}

    def score(cell: Cell, column: Column) -> float | None:
        return None if (cell.row, cell.seed) == ("<adios>", 1) else values[cell.row, cell.seed]

    computed = entries(table, found, score)
    none, adios = (computed[name, "objects", "k-NN"] for name in ("none", "<adios>"))
    own = [values["none", seed] for seed in range(3)]
    assert (none.mean, none.std) == (statistics.mean(own), statistics.stdev(own))
    assert (none.trainings, none.planned, none.published, none.gain) == (3, 3, Published(54.1, 0.09), None)
    assert (adios.trainings, adios.planned) == (2, 3)
    assert adios.gain is not None and (adios.gain.mean, adios.gain.pairs) == (len("<adios>") - len("none"), 2)
    one = entries(table, found, lambda cell, column: None if cell.seed else score(cell, column))
    assert one["<adios>", "objects", "k-NN"].gain == (adios.gain.mean, None, 1)
    assert entries(table, found, lambda *_: None)["<adios>", "objects", "k-NN"].gain is None
    assert computed["none", "objects", "largest slot"].planned == 0


def test_each_objective_counts_once_in_the_mean_of_an_incomplete_row() -> None:
    row = Row("none", {"objects": (config("none"), config("mae"), config("beit"))})
    table = replace(small_table(), rows=(row,))
    found = list(table.cells({"objects": "PLACE"}, seeds=3))
    values = (40.0, 60.0, 60.0)
    computed = entries(table, found, lambda cell, _: values[cell.variant] if cell.variant or not cell.seed else None)
    entry = computed["none", "objects", "k-NN"]
    assert entry.mean == pytest.approx(sum(values) / 3) and (entry.trainings, entry.planned) == (7, 9)
    assert entry.std == statistics.stdev([40.0, *[60.0] * 6])


def test_the_formats_hold_the_same_numbers() -> None:
    table = small_table()
    found = list(table.cells({"objects": "PLACE"}, seeds=2))
    computed = entries(table, found, lambda cell, column: 50 + cell.seed + (cell.row != "none"))
    text = markdown(table, computed)
    assert "| none | 50.5 (0.7) | 54.1 (0.09) |  |  |" in text
    assert "| <adios> | 51.5 (0.7) |  | +1.0 ± 0.0 | 51.500 (0.707) |" in text
    head, *lines = csv.reader(io.StringIO(as_csv(table, computed)))
    first = dict(zip(head, lines[0], strict=True))
    assert (float(first["mean"]), float(first["published_mean"]), first["gain"]) == (50.5, 54.1, "")
    page = html(table, computed)
    assert "<title>A &amp; B</title>" in page and "&lt;adios&gt;" in page and "<adios>" not in page


def test_hours_are_in_proportion_to_epochs_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "measure_step", lambda config, size, device, cpu_pixels: StepCost(0.5, 100, 0))
    table = small_table(epochs=20)
    costs = estimate(table, list(table.cells({"objects": "PLACE"}, 1)), torch.device("cpu"))
    assert [cost.hours for cost in costs] == pytest.approx([2 * 96 * 0.5 / 3600, 20 * 96 * 0.5 / 3600])
    assert [cost.disk_bytes for cost in costs] == [200, 200]


@pytest.mark.parametrize("undefined", ["null", "NaN"])  # NaN by earlier versions
def test_sizes_of_masks_are_those_of_the_last_report(undefined: str, tmp_path: Path) -> None:
    last = f'{{"mask_mean_min": 0.1, "mask_mean_max": 0.4, "slot_overlap": {undefined}, "load_s": {undefined}}}\n'
    (tmp_path / "reports.jsonl").write_text('{"epoch": 1}\n' + last)
    scores = evaluate("slots", tmp_path / "checkpoints" / "epoch_00002", {}, {}, seed=0)
    assert scores == pytest.approx({"mask_mean_min": 0.1, "mask_mean_max": 0.4, "slot_overlap": math.nan}, nan_ok=True)


@pytest.mark.slow
def test_names_follow_the_training_and_the_images(tmp_path: Path) -> None:
    counts = {"train": 8, "val": 4, "test": 4}
    first, same = make_objects(tmp_path / "a", counts=counts), make_objects(tmp_path / "b", counts=counts)
    other = make_objects(tmp_path / "c", counts={**counts, "test": 5})
    names = [cell_name(next(small_table().cells({"objects": str(place)}, 1))) for place in (first, same, other)]
    assert names[0] == names[1] != names[2]
    cell = next(small_table().cells({"objects": str(first)}, 1))
    assert cell_name(cell._replace(row="other", evaluations=())) == names[0]
    assert cell_name(cell._replace(config=replaced(cell.config, {"epochs": 3}))) != names[0]


def test_a_cell_is_trained_once_and_evaluated_as_often_as_needed(
    tmp_path: Path, objects_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings, asked = [], []

    def train(schedule: object, config: TrialConfig, output: Path, device: torch.device) -> None:
        trainings.append(config.epochs)
        (output / "checkpoints" / "epoch_00002").mkdir(parents=True)

    def evaluate(kind: str, checkpoint: Path, places: object, options: object, seed: int) -> dict[str, float]:
        asked.append((kind, checkpoint.name, places, options, seed))
        return {"knn_accuracy": 0.5}

    monkeypatch.setattr(cells_module, "replay", train)
    others = [str(shutil.copytree(objects_dir, tmp_path / name)) for name in ("other", "changed")]
    manifest = Path(others[1], "manifest.json")
    manifest.write_text(re.sub(r'"sha256": "..', '"sha256": "00', manifest.read_text()))
    places = {"objects": str(objects_dir), "other": others[0]}
    folder = tmp_path / "cell"
    cell = next(cell for cell in small_table().cells(places, 2) if cell.seed == 1)
    for _ in range(2):
        run_cell(cell, folder, places, torch.device("cpu"), evaluate)
    row = small_table().row(cell.row)
    more = Column("objects", "linear", "linear", "top1", {"epochs": 5}, data=("other",))
    both = cell._replace(evaluations=(*cell.evaluations, evaluation_of(row, more)))
    assert finished(folder, cell, places) and not finished(folder, both, places)
    run_cell(both, folder, places, torch.device("cpu"), evaluate)
    assert trainings == [2]
    assert asked == [
        ("knn", "epoch_00002", {"objects": str(objects_dir)}, {}, 1),
        ("linear", "epoch_00002", {"other": others[0]}, {"epochs": 5}, 1),
    ]
    found = measured(folder, evaluation_of(row, KNN), places)
    assert found is not None and found.scores == {"knn_accuracy": 0.5}
    assert sources(folder, both, places) == {source_checksum()}
    (folder / cells_module.SOURCE).unlink()
    assert sources(folder, both, places) == {source_checksum(), cells_module.UNKNOWN}
    assert finished(folder, both, places) and not finished(folder, both, {**places, "other": others[1]})


def test_an_undefined_score_is_kept_and_read() -> None:
    written = Measured(scores={"slot_overlap": math.nan}, seconds=1.0, source="abc").model_dump_json()
    assert math.isnan(parse_json(Measured, written, "cell").scores["slot_overlap"])


@pytest.mark.parametrize("module", scripts(), ids=lambda module: module.__name__)
def test_rows_of_a_script_differ_from_their_baselines_in_the_masks_alone(module: ModuleType) -> None:
    for make in (getattr(module, name) for name in ("paper", "small") if hasattr(module, name)):
        table = make()
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        groups = {column.group for column in table.columns}
        # Notes hold for data of another size that are given, too.
        assert not [data for data in table.data.values() if f"{data.images:,} " in " ".join(table.notes)]
        assert {group for row in table.rows for group in row.trainings} == groups <= set(table.data)
        for row in table.rows:
            for group, configs in row.trainings.items():
                assert {config.image_size for config in configs} <= {None, table.data[group].image_size}
            assert {key[0] for key in row.published} <= groups
            assert {key[1] for key in row.published} <= {column.name for column in table.columns}
            if row.baseline:
                for group, configs in table.row(row.baseline).trainings.items():
                    for own, other in zip(row.trainings[group], configs, strict=True):
                        same = ("backbone", "batch_size", "image_size")
                        assert all(getattr(own, name) == getattr(other, name) for name in same)
                        # A row of other epochs, at equal time, says so.
                        assert own.epochs == other.epochs or f"{own.epochs} epochs" in row.name
                        assert own.objective.name == other.objective.name


def test_trainings_that_rows_share_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"objects": "PLACE"}
    none, adios = small_table().cells(places, 1)
    same = none._replace(row="again")
    folders = {none: tmp_path / "a", same: tmp_path / "a", adios: tmp_path / "b"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "finished", lambda *_: True)
        assert run_module.run_cells(tmp_path, folders, places, None) == {}
    assert "2 cells: 2 finished, 0 to run" in capsys.readouterr().out


def test_the_published_average_gains_are_those_of_the_published_rows() -> None:
    table = next(module for module in scripts() if module.__name__.startswith("table5")).paper()
    average = table.rows[-1]
    for key, gained in average.published.items():
        rows = [table.row(name) for name in average.averaged]
        differences = [row.published[key].mean - table.row(row.baseline).published[key].mean for row in rows]
        assert len(differences) == 3 and np.mean(differences) == pytest.approx(gained.mean, abs=0.07)  # rounded


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_table_is_resumed_and_a_failed_cell_does_not_lose_the_others(
    tmp_path: Path, objects_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(preset="small", data=(("objects", str(objects_dir)),), storage=tmp_path, seeds=1)
    with pytest.raises(RunError, match=r"1 cell failed.*training diverged"):
        run_table("table", {"small": lambda: small_table(**{"objective.temperature": 1e-42})}, options)
    assert "2 cells: 0 finished, 2 to run" in capsys.readouterr().out
    run_table("table", {"small": small_table}, options)
    assert "2 cells: 1 finished, 1 to run" in capsys.readouterr().out
    written = (tmp_path / "table-small" / "table.csv").read_text()
    run_table("table", {"small": small_table}, options)
    assert "2 cells: 2 finished, 0 to run" in capsys.readouterr().out
    assert (tmp_path / "table-small" / "table.csv").read_text() == written
    head, *lines = csv.reader(io.StringIO(written))
    for line in lines:
        entry = dict(zip(head, line, strict=True))
        assert entry["trainings"] == entry["planned"] or entry["planned"] == "0"


@pytest.mark.parametrize(("words", "line"), [("--dry-run", "interrupted"), ("", f"interrupted; {AGAIN}")])
def test_an_interruption_says_how_to_resume_where_there_is_something_to(
    words: str,
    line: str,
    objects_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(estimate_module, "measure_step", interrupted)
    monkeypatch.setattr("adios_ray.tables.run.run_cells", interrupted)
    places = ["--data", "objects", str(objects_dir), "--storage", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["table", *words.split(), *places])
    assert main("table", "A table.", {"small": small_table}) == 130
    assert capsys.readouterr().err.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("prepare", "images", "other"),
    [
        ("--dataset objects --image-size 32", 96, None),
        ("--dataset objects --image-size 32", 98, "98 training images of objects, stored at 32 pixels"),
        ("--dataset objects", 96, "96 training images of objects, stored at 64 pixels"),
        ("--dataset cifar10 --source CIFAR10", 96, "96 training images of cifar10, stored at 32 pixels"),
    ],
)
def test_a_table_names_its_data_and_says_where_they_are_others(
    prepare: str, images: int, other: str | None, objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adios_ray.tables.run.run_cells", lambda *_: {})
    table = replace(small_table(), data={"objects": DataSet(prepare, images, 32)})
    run_table("table", {"small": lambda: table}, Options(data=(("objects", str(objects_dir)),), storage=tmp_path))
    text, checksum = (tmp_path / "table-small" / "table.md").read_text(), open_shards(objects_dir).manifest.checksum[:8]
    used = "96 training images of objects, stored at 32 pixels"
    assert f"Data: objects: {used}, checksum {checksum}.\n\nA note." in text
    said = (
        f"The table asks for {other} (`adios-ray prepare {prepare}`), and {objects_dir} has {used}: numbers of objects"
    )
    assert (said in text) == (other is not None) and ("of other data" in text) == (other is not None)


def test_an_interrupted_table_is_written_as_far_as_it_goes(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(storage: Path, folders: dict[Cell, Path], places: dict[str, str], gpus: float | None) -> None:
        cell, folder = next(iter(folders.items()))
        cells_module.last_checkpoint(folder, cell).mkdir(parents=True)
        run_cell(cell, folder, places, torch.device("cpu"), lambda *_: {"knn_accuracy": 0.5})
        raise KeyboardInterrupt

    monkeypatch.setattr("adios_ray.tables.run.run_cells", interrupted)
    options = Options(data=(("objects", str(objects_dir)),), storage=tmp_path, seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run_table("table", {"small": small_table}, options)
    text = (tmp_path / "table-small" / "table.md").read_text()
    assert "| none | 50.0 [1/2] | 54.1 (0.09) |" in text
    assert "are of 2 versions of the code" in text  # the checkpoint is not of this one
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"written: {tmp_path / 'table-small'}/table.md")


def test_pictures_show_no_more_images_than_val_has(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(Masks, "run", lambda masks: drawn.append(masks.images))
    folders = {cell: tmp_path / cell.row for cell in small_table().cells({"objects": str(objects_dir)}, 1)}
    for cell, folder in folders.items():
        cells_module.last_checkpoint(folder, cell).mkdir(parents=True)
    for images in (8, 41):
        _draw_masks(folders, tmp_path, images)
    assert drawn == [8, COUNTS["val"]]


def test_an_estimate_counts_the_images_of_the_data_that_are_given(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate_module, "measure_step", lambda *_, **__: StepCost(3600 / 96, 0, 0))  # h an epoch
    table = replace(small_table(), data={"objects": DataSet("--dataset objects", 9_600, 32)})
    for place, hours in ((), "400 hours"), ((("objects", str(objects_dir)),), "4 hours"):
        run_table("table", {"small": lambda: table}, Options(dry_run=True, data=place, seeds=1))
        assert f"2 trainings, {hours}" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="nowhere"):
        run_table(
            "table", {"small": lambda: table}, Options(dry_run=True, data=(("objects", str(tmp_path / "nowhere")),))
        )


def test_an_estimate_needs_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate_module, "measure_step", lambda *_, **__: StepCost(0.5, 0, 0))
    monkeypatch.setattr("sys.argv", ["table", "--dry-run", "--storage", str(tmp_path), "--seeds", "2"])
    assert main("table", "A table.", {"small": small_table}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "data objects: adios-ray prepare --dataset objects --image-size 32" in lines
    assert any(line.startswith("4 trainings, ") for line in lines) and not list(tmp_path.iterdir())


def test_cells_run_where_every_node_has_the_storage_and_the_data(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(storage: Path, data: str, gpus: bool) -> None:
        assert not gpus
        raise ConfigError(f"1 of 1 nodes cannot train: it does not see {storage} and {data}")

    monkeypatch.setattr(run_module, "connected", nullcontext)
    monkeypatch.setattr(run_module, "nodes", lambda: [Node(2, 0)])
    monkeypatch.setattr(run_module, "check_nodes", refuse)
    presets, data = {"small": small_table}, (("objects", str(objects_dir)),)
    with pytest.raises(ConfigError, match=f"does not see {tmp_path} and {objects_dir}"):
        run_table("table", presets, Options(data=data, storage=tmp_path))
    monkeypatch.setattr("adios_ray.tables.command.submitted_job", lambda: "7")
    with pytest.raises(ConfigError, match="--storage runs/tables is relative, and job 7 works in a copy"):
        run_table("table", presets, Options(data=data))
    with pytest.raises(ConfigError, match="--data objects images is relative"):
        run_table("table", presets, Options(data=(("objects", "images"),), storage=tmp_path))


def test_a_cell_whose_results_do_not_arrive_has_failed(
    objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"objects": str(objects_dir)}
    cell, other = list(small_table().cells(places, 1))
    cells = {str(tmp_path / "here"): cell, str(tmp_path / "elsewhere"): other}
    run_cell(cell, tmp_path / "here", places, torch.device("cpu"), lambda *_: {"knn_accuracy": 0.5})
    progress = run_module._Progress(cells, places, WorkerResources(1, 0))
    for folder in cells:
        progress.on_trial_complete(0, [], SimpleNamespace(config={"folder": folder}))
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("[1/2] here finished") and second.startswith("[2/2] elsewhere failed: its results did not")
    assert list(progress.failed) == ["elsewhere"]
    for reason, shown in (("", "its process died;"), ("Traceback\na.b.SomeError: why\n", "SomeError: why; ")):
        if reason:
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / run_module.ERROR).write_text(reason)
        progress.on_trial_error(0, [], SimpleNamespace(config={"folder": str(tmp_path / "elsewhere")}))
        said = capsys.readouterr().out
        assert f"failed: {shown}" in said and (run_module.ERROR in said) == bool(reason)


def test_a_table_says_that_no_cell_runs_and_when_one_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: now))
    progress, said = run_module._Progress({}, {}, WorkerResources(1, 0.5)), dict[float, str]()
    for seconds, status in (
        (1, "PENDING"), (9, "PENDING"), (11, "PENDING"), (30, "PENDING"), (40, "RUNNING"), (49, "PENDING"),
        (51, "PENDING"), (52, "RUNNING"), (62, "RUNNING"), (63, "PENDING"),
    ):  # fmt: skip
        now = float(seconds)
        progress.on_step_begin(0, [SimpleNamespace(status="TERMINATED"), SimpleNamespace(status=status)])
        if line := capsys.readouterr().out:
            said[now] = line
    waiting = (
        "waiting for resources: no cell has run for 10 s; each needs 1 CPU and 0.5 GPUs that nothing else on the "
        "cluster uses\n"
    )
    assert said == {11: waiting, 40: "a cell runs\n", 51: waiting, 52: "a cell runs\n"}


@pytest.mark.parametrize(
    ("gpus", "cluster", "grows", "given"),
    [
        (None, [Node(2, 0)], False, 0.0),
        (None, [Node(2, 0), Node(8, 1)], False, 1.0),
        (0.5, [Node(8, 1)], False, 0.5),
        (1.0, [Node(2, 0)], True, 1.0),
        (1.0, [Node(2, 0)], False, None),
        (2.0, [Node(8, 1), Node(8, 1)], False, None),
        (None, [Node(0, 1), Node(8, 0)], False, None),  # the node with the GPU has no CPU for its process
    ],
)
def test_cells_that_no_node_can_ever_hold_are_refused(
    gpus: float | None, cluster: list[Node], grows: bool, given: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "nodes", lambda: cluster)
    monkeypatch.setattr(run_module, "autoscaler_runs", lambda: grows)
    if given is None:
        with pytest.raises(ConfigError, match=r"which the cluster can never give \(its nodes have .*lower --gpus-per"):
            run_module._cell_resources(gpus)
    else:
        assert run_module._cell_resources(gpus) == (1, given)


@pytest.mark.parametrize(
    ("column", "scheme", "counts", "message"),
    [
        (KNN, "ground-truth", COUNTS, "row: masking.scheme ground-truth: .* has no object masks"),
        (
            Column("objects", "", "slots", ""),
            "none",
            {"train": 32, "test": 8},
            "row: .* has no 'val' split",
        ),  # is trained on alone
        (Column("objects", "", "robustness", "no_fg"), "none", COUNTS, "robustness: .* lacks the splits no_fg"),
        (Column("objects", "", "robustness", "original"), "none", COUNTS, None),
        (
            replace(KNN, options={"view": "resize-256"}),
            "none",
            COUNTS,
            "--data objects: .* stored at 256 pixels or more",
        ),
    ],
)
def test_data_that_do_not_allow_what_a_table_trains_and_measures_are_refused(
    column: Column, scheme: str, counts: dict[str, int], message: str | None, tmp_path: Path
) -> None:
    place = make_objects(tmp_path / "data", counts=counts, object_masks=False)
    table = replace(small_table(), rows=(Row("row", {"objects": (config(scheme),)}),), columns=(column,))
    cells, places = list(table.cells({"objects": str(place)}, 2)), {"objects": str(place)}
    with nullcontext() if message is None else pytest.raises(InputError, match=message):
        _check_cells(table, cells, places)


@pytest.mark.parametrize(
    "script", [path.name for path in [*EXPERIMENTS.glob("table*.py"), EXPERIMENTS / "sparsity_sweep.py"]]
)
def test_the_help_of_a_table_shows_its_command_lines(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documentation = ast.get_docstring(ast.parse((EXPERIMENTS / script).read_text()))
    monkeypatch.setattr("sys.argv", [script, "--help"])
    with pytest.raises(SystemExit):
        main(script, documentation, {"small": small_table})
    said = capsys.readouterr().out
    assert f"\n  python experiments/{script}" in said.partition("examples:")[2] and "--preset {small,paper}" in said


def test_what_a_table_lacks_is_said_before_anything_is_trained(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adios_ray.tables.run.run_cells", lambda *_: pytest.fail("trained"))
    presets = {"small": small_table}
    with pytest.raises(ConfigError, match="no data for objects: make it with `adios-ray prepare --dataset objects"):
        run_table("table", presets, Options(storage=tmp_path))
    with pytest.raises(ConfigError, match="--preset paper: choose one of small"):
        run_table("table", presets, Options(preset="paper"))
    with pytest.raises(ConfigError, match="--data scenes: the table's data sets are objects"):
        run_table("table", presets, Options(data=(("scenes", "PLACE"),)))
    twice = parse_arguments(Options, ["--data", "objects", "a", "objects", "b"])
    with pytest.raises(UsageError, match="--data objects is given twice, a and b: leave one out"):
        run_table("table", presets, twice)
    objects = (("objects", str(objects_dir)),)
    labels = replace(small_table(), columns=(Column("objects", "F1", "multilabel", "f1_macro"),))
    with pytest.raises(EvaluationError, match="multilabel: images of .* have one class each; it needs several labels"):
        run_table("table", {"small": lambda: labels}, Options(data=objects, storage=tmp_path))
    with pytest.raises(ConfigError, match="<adios>: batch_size 97 is more than the 96 training images"):
        run_table("table", {"small": lambda: small_table(batch_size=97)}, Options(data=objects, storage=tmp_path))
    with pytest.raises(UsageError, match=r"--seeds 0 must be greater than or equal to 1; --gpus-per-cell -1.0 must be"):
        parse_arguments(Options, ["--gpus-per-cell", "-1", "--seeds", "0"])
    with pytest.raises(UsageError, match=r"--gpus-per-cell 1.5 must be less than or equal to 1"):
        parse_arguments(Options, ["--gpus-per-cell", "1.5"])

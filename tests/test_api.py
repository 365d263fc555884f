"""Reading runs, evaluating and training from Python."""

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
import torch
from made_up_run import COPIES, make_run
from small import small_config

import adios_ray
from adios_ray import api
from adios_ray.commands.evaluation_kinds import KINDS
from adios_ray.errors import ConfigError, InputError, RecordError, UsageError
from adios_ray.experiment.config import SPACES, ExperimentConfig
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, save_weights
from adios_ray.tracking import decisions, records, results


def test_a_run_is_tables(tmp_path: Path) -> None:
    make_run(tmp_path, trials=2, epochs=6)
    run = adios_ray.load_run(str(tmp_path))
    rows, exploits = results.read_results(tmp_path), decisions.read_lineage(tmp_path)
    assert isinstance(run.results, pa.Table) and run.results.num_rows == len(rows) == 12
    table = run.results.to_pandas()
    assert table.fitness.tolist() == [row.fitness for row in rows]
    assert table["masking.slots"].tolist() == [row.values["masking.slots"] for row in rows]
    assert [copy["epoch"] for copy in run.exploits.to_pylist()] == [epoch for epoch in COPIES if epoch <= 6]
    for copy, exploit in zip(run.exploits.to_pylist(), exploits, strict=True):
        assert (copy["trial"], copy["donor"]) == (exploit.trial, exploit.donor)
        assert copy["donor_score"] - copy["score"] == exploit.scores[exploit.donor] - exploit.scores[exploit.trial] > 0
        assert (copy["old.masking.slots"], copy["new.masking.slots"]) == (
            exploit.old["masking.slots"],
            exploit.new["masking.slots"],
        )
    assert run.refusals.num_rows == run.drops.num_rows == 0 and run.config["seed"] == 0
    assert run.summary is not None and run.best_checkpoint.parts[-2] == run.summary.best_trial
    assert run.masks("trial_00", run.mask_epochs("trial_00")[-1]).masks.ndim == 4


def test_a_run_that_has_not_finished_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run directory"):
        adios_ray.load_run(tmp_path)
    records.write_config(tmp_path, {})
    run = adios_ray.load_run(tmp_path)
    assert run.results.num_rows == 0 and run.results.column_names == list(results.COLUMNS) and run.summary is None
    with pytest.raises(RecordError, match="has not finished"):
        run.best_checkpoint  # noqa: B018 - the property raises


@pytest.mark.slow
def test_evaluation_from_python_is_that_of_the_command(objects_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = Networks(small_config(objects_dir), 32, 10)
    file = tmp_path / "encoder.safetensors"
    save_weights(file, Weights(networks.config, 32, 10, "made for a test", networks.state_dict()))
    result = adios_ray.evaluate(file, objects_dir, neighbors=[5], temperatures=[0.1])
    from adios_ray.cli import main

    output = tmp_path / "result.json"
    options = ["--neighbors", "5", "--temperatures", "0.1", "--output", str(output)]
    assert main(["evaluate", "knn", "--checkpoint", str(file), "--data-dir", str(objects_dir), *options]) == 0
    printed = json.loads(output.read_text())["scores"]
    assert {name: score.value for name, score in result.scores.items()} == {
        name: score["value"] for name, score in printed.items()
    }
    assert set(get_args(api.KindName)) == set(KINDS)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"kind": "knnn"}, "no evaluation 'knnn'"),
        ({"neighbours": [5]}, "no option 'neighbours'; it has neighbors"),
        ({"kind": "linear", "epochs": "many"}, "epochs = 'many'"),
        ({"seed": -1}, "seed = -1 must be"),
        ({"seed": "x"}, "seed = 'x' must be a whole number"),
        ({"split": "train"}, "split = 'train' must be 'val' or 'test'"),
        ({"view": "wide"}, "view = 'wide' must be"),
        ({"seed": True}, "seed = True must be a number"),
        ({"neighbors": [5, True]}, "neighbors.1 = True must be a number"),
        ({"kind": ["knn"]}, r"no evaluation \['knn'\]"),
        ({"checkpoint": None}, "checkpoint = None must be a path or a URI"),
        ({"checkpoint": [file, 3]}, "checkpoint = 3 must be a path or a URI"),
        ({"data_dir": None}, "data_dir = None must be a path or a URI"),
        ({"kind": "robustness", "baseline": 3}, "evaluation robustness: baseline = 3 must be a text$"),
    ]
    for wrong, message in mistakes:
        with pytest.raises(UsageError, match=message):
            adios_ray.evaluate(**{"checkpoint": file, "data_dir": objects_dir, **wrong})


@pytest.mark.slow
def test_settings_of_a_training_are_those_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adios_ray.experiment import runner
    from adios_ray.experiment.command import read_arguments

    started: list[ExperimentConfig] = []

    def start(config: ExperimentConfig) -> Path:
        started.append(config)
        return tmp_path

    monkeypatch.setattr(runner, "start", start)
    values: dict[str, Any] = {"masking": {"slots": 6}, "objective": {"name": "byol"}, "epochs": 7}
    assert adios_ray.train("data/mine", preset="in100s", family="authors", **values).path == tmp_path
    adios_ray.train(preset="demo", space="asha_demo")
    flags = "--preset in100s --family authors --objective byol --masking.slots 6 --epochs 7 --data-dir data/mine"
    assert started[0] == read_arguments("", flags.split(), "pbt_in100", "pbt_demo")
    assert started[1].space == str(SPACES / "asha_demo.yaml")
    with pytest.raises(UsageError, match="s3://b/runs is a URI; only a local path"):
        adios_ray.train(preset="demo", storage="s3://b/runs")
    with pytest.raises(UsageError, match="train starts runs, or resumes that of a name"):
        adios_ray.train(preset="demo", resume="runs/one")
    with pytest.raises(UsageError, match="s3://b/one is a URI; only a local path"):
        adios_ray.load_run("s3://b/one")
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"masking": {"slot": 6}}, "unknown key 'masking.slot'"),
        ({"masking": {"sparsity_weight": True}}, "masking.sparsity_weight = True must be a number"),
        ({"space": 3}, "space = 3 must be a path or a URI"),
        ({"data_dir": 3}, "data_dir = 3 must be a path or a URI"),
        ({"preset": 3}, "there is no preset 3; choose one of demo, clevr, in100, in100s, stl10$"),
        ({"preset": "in100s", "family": 3}, "family 3 must be one of paper, authors$"),
        ({"preset": "in100s", "objective": {"name": 3}}, "objective.name 3 must be one of simclr, .*, pixel$"),
        ({"preset": "in100s", "masking": {"scheme": ["a"]}}, r"masking.scheme \['a'\] must be one of adios, "),
    ]
    for wrong, message in mistakes:
        with pytest.raises(InputError, match=message):
            adios_ray.train(**{"preset": "demo", **wrong})


def test_places_are_paths_or_uris() -> None:
    unusable: Any = None
    for function in (adios_ray.load_run, adios_ray.load_encoder, adios_ray.load_occlusion_model):
        with pytest.raises(UsageError, match="path = None must be a path or a URI"):
            function(unusable)


def test_everything_that_is_offered_is_documented() -> None:
    page = (Path(api.__file__).parent.parent / "docs" / "reference" / "python.md").read_text()
    for name in adios_ray.__all__:
        assert name.endswith("Error") or f"::: adios_ray.{name}" in page

"""Files that earlier versions wrote are still read."""

import json
import math
from pathlib import Path

import pytest
import torch
from made_up_run import make_masks
from small import small_config
from trainers import assert_identical, saved

from adios_ray.checkpoints import Pointer, damage
from adios_ray.config import TrialConfig, by_current_paths
from adios_ray.data.shards import open_shards
from adios_ray.errors import CheckpointError, RecordError
from adios_ray.files import sha256
from adios_ray.models.export import load_encoder
from adios_ray.models.networks import Networks
from adios_ray.models.weights import load_weights, unwrapped
from adios_ray.run_directory import RunDirectory
from adios_ray.search.spaces import load_space
from adios_ray.search.state import PopulationState
from adios_ray.tracking import decisions, records, results, run_masks
from adios_ray.training.trainer import Trainer
from adios_ray.validation import parse

OLD_COLUMNS = (
    "time,trial,epoch,fitness,loss,penalty,probe_accuracy,sparsity_weight,encoder_lr,occlusion_lr,slots,slot_overlap,"
    "mask_mean_min,mask_mean_max,images_per_s,data_wait_fraction,idle_s,worker_pid"
)
OLD_ROW = "2026-01-01T00:00:00+00:00,trial_00,1,0.5,2.0,1.5,0.4,0.3,0.1,0.02,4,0.1,0.2,0.3,900,0.01,0.1,7"
FOUR = ["masking.sparsity_weight", "optimizer.encoder_lr", "optimizer.occlusion_lr", "masking.slots"]


def test_results_are_read_and_continued_in_the_new_form(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(f"{OLD_COLUMNS}\n{OLD_ROW}\n")
    (row,) = results.read_results(tmp_path)
    assert row.values == dict(zip(FOUR, [0.3, 0.1, 0.02, 4], strict=True)) and row.fitness == 0.5
    results.begin_results(tmp_path, [*FOUR[:2], "augment.hue"])
    header = (tmp_path / "results.csv").read_text().splitlines()[0]
    assert header.endswith("worker_pid,masking.sparsity_weight,optimizer.encoder_lr,augment.hue")
    results.append_result(tmp_path, row.model_copy(update={"epoch": 2, "values": {**row.values, "augment.hue": 0.1}}))
    first, second = results.read_results(tmp_path)
    assert first.values == {"masking.sparsity_weight": 0.3, "optimizer.encoder_lr": 0.1}
    assert second.values == {**first.values, "augment.hue": 0.1}


def test_results_without_standard_errors_are_read_and_continued(tmp_path: Path) -> None:
    later = {"standard_error", "accuracy", "holdout_fitness", "holdout_standard_error"}
    later |= {"train_s", "evaluate_s", "checkpoint_s", "load_s"}
    old = [name for name in results.COLUMNS if name not in later]
    row = "2026-01-01T00:00:00+00:00,trial_00,1,0.5,2.0,1.5,0.4,0.1,0.2,0.3,900,0.01,0.1,7,0.2"
    (tmp_path / "results.csv").write_text(f"{','.join(old)},augment.hue\n{row}\n")
    (first,) = results.read_results(tmp_path)
    assert (first.fitness, first.standard_error) == (0.5, None) and math.isnan(first.accuracy)
    with pytest.raises(RecordError, match="for this search space"):
        results.begin_results(tmp_path, ["augment.saturation"])
    results.begin_results(tmp_path, ["augment.hue"])
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == ",".join([*results.COLUMNS, "augment.hue"])
    known = {"standard_error": 0.02, "accuracy": 0.6, "holdout_fitness": 0.4, "holdout_standard_error": 0.03}
    known |= {"train_s": 41.5, "evaluate_s": 3.25, "checkpoint_s": 0.5, "load_s": 0.25}
    second = first.model_copy(update={"epoch": 2, **known})
    results.append_result(tmp_path, second)
    assert [row.model_dump_json() for row in results.read_results(tmp_path)] == [
        row.model_dump_json() for row in (first, second)
    ]


def test_exploits_and_the_outcome_are_read(tmp_path: Path) -> None:
    settings = {"sparsity_weight": 0.3, "encoder_lr": 0.1, "occlusion_lr": 0.02, "slots": 4}
    line = {
        **{"time": "2026-01-01T00:00:00Z", "epoch": 1, "trial": "a", "donor": "b", "scores": {"a": 0.1, "b": 0.2}},
        **{"old": settings, "new": {**settings, "slots": 5}},
        "values": {"masking.slots": 5, "augment.greyscale_probability": 0.2},
    }
    (tmp_path / "lineage.jsonl").write_text(json.dumps(line) + "\n")
    (exploit,) = decisions.read_lineage(tmp_path)
    assert exploit.new == {"masking.slots": 5, "augment.grayscale_probability": 0.2}
    assert exploit.old == {"masking.slots": 4} and exploit.changes == "N 4 -> 5"
    outcome = {
        **{"best_trial": "a", "best_fitness": 0.5, "best_epoch": 3, "first_best_fitness": 0.2, "test_accuracy": 0.4},
        **{"chance": 0.1, "seconds": 9.0, "exploits": 1, "slot_changes": 1, "epochs": 3, "population": 2},
        **{"dataset": "objects", "command": "x"},
    }
    (tmp_path / "summary.json").write_text(json.dumps(outcome))
    summary = records.read_summary(tmp_path)
    assert summary is not None and summary.test_fitness == 0.4 and math.isnan(summary.test_accuracy)
    records.write_summary(tmp_path, summary.model_copy(update={"test_accuracy": 0.6}))
    summary = records.read_summary(tmp_path)
    assert summary is not None and (summary.test_fitness, summary.test_accuracy) == (0.4, 0.6)


def test_masks_with_epochs_of_four_digits_are_found(tmp_path: Path) -> None:
    RunDirectory(tmp_path).make_folders()
    run_masks.write_masks(tmp_path, "a", 3, make_masks(1, 2, 3, images=1, side=8))
    path = RunDirectory(tmp_path).masks("a", 3)
    path.rename(path.with_name("epoch_0003.npz"))
    assert run_masks.mask_epochs(tmp_path, "a") == [3] and len(run_masks.read_masks(tmp_path, "a", 3).masks) == 1


def test_configurations_and_search_spaces_with_british_spelling_are_read(tmp_path: Path) -> None:
    config = parse(
        TrialConfig,
        {
            "augment": {"greyscale_probability": 0.3, "solarise_probability": 0.1},
            "evaluation": {"neighbours": 7},
        },
    )
    assert (config.augment.grayscale_probability, config.augment.solarize_probability) == (0.3, 0.1)
    assert config.evaluation.neighbors == 7 and by_current_paths({"evaluation.neighbours": 1}) == {
        "evaluation.neighbors": 1
    }
    (tmp_path / "space.yaml").write_text(
        "scheduler: pbt\nparameters:\n  augment.greyscale_probability: {low: 0.1, high: 0.4, scale: linear}\n"
    )
    space = load_space(tmp_path / "space.yaml")
    assert list(space.parameters) == ["augment.grayscale_probability"]
    (tmp_path / "population.json").write_text(
        json.dumps(
            {
                "members": {"a": {"values": {"augment.greyscale_probability": 0.2}, "number": 0}},
                "next_decision_epoch": 1,
            }
        )
    )
    (tmp_path / "population.jsonl").touch()
    state = PopulationState.load(tmp_path)
    assert state.members["a"].values == {"augment.grayscale_probability": 0.2}


def test_a_data_set_with_an_unlabelled_split_is_read(objects_dir: Path, tmp_path: Path) -> None:
    for path in objects_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["splits"]["unlabelled"] = manifest["splits"].pop("test")
    manifest["recipe"]["unlabelled_images"] = 3
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    dataset = open_shards(tmp_path)
    assert dataset.manifest.training_splits == ("train", "unlabeled")
    assert dataset.manifest.recipe["unlabeled_images"] == 3


def test_a_checkpoint_in_torchs_format_is_read(objects_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(small_config(objects_dir), torch.device("cpu"))
    trainer.train_until(2)
    state = saved(trainer, tmp_path / "now")
    (tmp_path / "then").mkdir()
    torch.save(state, tmp_path / "then" / "state.pt")
    checksum = sha256(tmp_path / "then" / "state.pt")
    (tmp_path / "then" / "meta.json").write_text(json.dumps({"step": 2, "sha256": checksum}))
    pointer = Pointer(path=tmp_path / "then", sha256=checksum)
    assert damage(pointer) is None
    resumed = Trainer(small_config(objects_dir), torch.device("cpu"))
    resumed.load(pointer, small_config(objects_dir))
    assert_identical(saved(resumed, tmp_path / "again"), state)
    for path in (tmp_path / "then", tmp_path / "then" / "state.pt"):
        tensors = load_weights(path).tensors
        assert_identical(load_encoder(path).state_dict(), trainer.networks.backbone.state_dict())
        assert all(torch.equal(tensors[name], values) for name, values in state["networks"].items())
    (tmp_path / "then" / "state.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="state.pt is damaged"):
        resumed.load(pointer, small_config(objects_dir))


@pytest.mark.parametrize("read", ["trainer", "weights"])
def test_dinos_center_is_found_under_its_earlier_name(objects_dir: Path, read: str) -> None:
    config = small_config(objects_dir, objective={"name": "dino", "hidden_dim": 16, "output_dim": 8})
    networks = Networks(config, 32, 10)
    state = {name.replace("objective.center", "objective.centre"): t + 1 for name, t in networks.state_dict().items()}
    assert "objective.centre" in state
    networks.load_state_dict(state if read == "trainer" else unwrapped(state))
    assert torch.equal(networks.state_dict()["objective.center"], state["objective.centre"])

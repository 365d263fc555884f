"""One trial's training: exact resumption, loading a donor, changing N, divergence, and reports."""

import copy
import hashlib
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import make_objects, small_config
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils import parameters_to_vector
from trainers import assert_identical, saved, trained

from adios_ray.checkpoints import STATE_FILE, load_checkpoint
from adios_ray.cli import main
from adios_ray.config import ADAPTABLE, PROBE_LR, CentralView, OptimizerConfig, TrialConfig, check_view, replaced
from adios_ray.data import loader
from adios_ray.data.augment import apply_view
from adios_ray.data.loader import Batch, central_views
from adios_ray.data.shards import open_shards
from adios_ray.data.sources.base import NO_LABEL
from adios_ray.errors import CheckpointError, ConfigError, DatasetError, InputError
from adios_ray.evaluation.extraction import extract_features
from adios_ray.evaluation.fitness import evaluate
from adios_ray.experiment.checks import check_data
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.masking.slots import read_head, replace_head, resize_head
from adios_ray.models.networks import Networks
from adios_ray.training import cost
from adios_ray.training.divergence import Failure, Terms
from adios_ray.training.graphs import step_function
from adios_ray.training.optimizers import Optimizers, make_schedule
from adios_ray.training.reproduce import reproduce
from adios_ray.training.step import SlotLosses, StepResult, accumulate_gradients, train_step
from adios_ray.training.trainer import Trainer
from adios_ray.validation import parse

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("objective", "optimizer"),
    [("simclr", "sgd"), ("byol", "lars"), ("dino", "adamw"), ("mocov2", "sgd")],
)
@pytest.mark.slow
def test_a_resumed_training_is_bit_identical(objective: str, optimizer: str, objects_dir: Path, tmp_path: Path) -> None:
    changes = {"objective": {"name": objective}, "optimizer": {"name": optimizer}}
    config = small_config(objects_dir, masking={"scheme": "adios-s"}, **changes)
    whole, stopped = saved(trained(config, 5), tmp_path / "whole"), Trainer(config, CPU)
    for stop in (2, 3):
        stopped.train_until(stop)
        resumed = Trainer(config, CPU)
        resumed.load(stopped.save(tmp_path / f"stopped_{stop}"), config)
        resumed.train_until(5)
        assert_identical(whole, saved(resumed, tmp_path / f"resumed_{stop}"))


@pytest.mark.slow
def test_seeds_decide_everything(objects_dir: Path, tmp_path: Path) -> None:
    config = small_config(objects_dir)
    first, second = (saved(trained(config, 2), tmp_path / name) for name in ("first", "second"))
    assert_identical(first, second)
    other = saved(trained(small_config(objects_dir, seed=1), 2), tmp_path / "other")
    assert not torch.equal(first["networks"]["probe.weight"], other["networks"]["probe.weight"])


@pytest.mark.parametrize(
    ("warmup_epochs", "peak", "expected"),
    [
        (2, 0.5, {0: 0.1, 2: 0.2, 6: 0.4, 8: 0.5, 16: 0.4267767, 24: 0.25, 32: 0.0732233, 40: 0.0, 50: 0.0}),
        (0, 0.5, {0: 0.5, 10: 0.4267767, 20: 0.25, 40: 0.0}),
        (8, 0.5, {0: 0.1, 10: 0.3, 20: 0.5, 30: 0.25, 40: 0.0}),  # the warm-up ends in the middle of the training
        (2, 0.05, {0: 0.05, 4: 0.05, 8: 0.05, 24: 0.025}),  # the peak is below the first rate of the warm-up
    ],
)
def test_learning_rates_rise_in_a_line_and_fall_as_a_cosine(
    warmup_epochs: float, peak: float, expected: dict[int, float]
) -> None:
    config = OptimizerConfig(warmup_epochs=warmup_epochs, warmup_start_lr=0.1)
    schedule = make_schedule(config, epochs=10, steps_per_epoch=4)
    assert {step: schedule.lr(peak, step) for step in expected} == pytest.approx(expected, abs=1e-7)


def test_each_step_has_its_learning_rates_and_its_share_of_the_training(objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir, epochs=1, optimizer={"occlusion_lr": 0.01}), CPU)
    take_step, seen = trainer._take_step, []

    def recorded(batch: Batch, progress: float) -> StepResult:
        groups = [optimizer.param_groups[0] for optimizer in trainer.optimizers.all().values()]
        seen.append((progress, *(group["lr"] for group in groups)))
        return take_step(batch, progress)

    trainer._take_step = recorded
    trainer.train_until(3)
    expected = [(0, 0.003, 0.003, PROBE_LR), (1 / 3, 0.05, 0.01, PROBE_LR), (2 / 3, 0.025, 0.005, PROBE_LR)]
    assert seen == [pytest.approx(step) for step in expected]


@pytest.mark.slow
def test_an_exploit_takes_over_the_donor_and_its_own_new_values(objects_dir: Path, tmp_path: Path) -> None:
    donor = trained(small_config(objects_dir, seed=7), 3)
    pointer = donor.save(tmp_path / "donor")
    trial = trained(small_config(objects_dir, seed=8), 2)
    changed = small_config(objects_dir, optimizer={"encoder_lr": 0.01, "occlusion_lr": 0.02})
    trial.load(pointer, changed)
    mine, donors = saved(trial, tmp_path / "mine"), load_checkpoint(pointer, CPU)
    assert mine.pop("config") != donors.pop("config")
    assert_identical(mine, donors)
    assert (trial.step, trial.seed) == (3, 7)
    trial.train_until(4)  # the last of these steps is a quarter of the way down from the peak
    expected = pytest.approx(0.01 * (1 + math.sqrt(0.5)) / 2)
    assert all(group["lr"] == expected for group in trial.optimizers.encoder.param_groups)


@pytest.mark.slow
def test_an_exploit_copies_moco_v2s_queue(objects_dir: Path, tmp_path: Path) -> None:
    config = small_config(objects_dir, objective={"name": "mocov2", "queue": 40}, masking={"order": "alternating"})
    donor = trained(config, 3)
    pointer = donor.save(tmp_path / "donor")
    trial = trained(replaced(config, {"seed": 8}), 1)
    theirs, mine = (dict(trainer.networks.objective.named_buffers()) for trainer in (donor, trial))
    assert int(theirs["pointer"]) == 3 * 32 % 40 and int(mine["pointer"]) == 32
    assert not torch.equal(mine["queue"], theirs["queue"])
    trial.load(pointer, config)
    assert torch.equal(mine["queue"], theirs["queue"]) and torch.equal(mine["pointer"], theirs["pointer"])
    for trainer in (donor, trial):
        trainer.train_until(6)
    assert_identical(saved(donor, tmp_path / "donor_6"), saved(trial, tmp_path / "trial_6"))
    with pytest.raises(
        ConfigError, match=r"its heads of mocov2 do not fit the configured ones; set objective.queue = 40"
    ):
        Trainer(replaced(config, {"objective.queue": 41, "initial_weights": tmp_path / "donor"}), CPU)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (5, 2)])
@pytest.mark.slow
def test_n_changes_with_the_exploit_and_training_goes_on(old: int, new: int, objects_dir: Path, tmp_path: Path) -> None:
    pointer = trained(small_config(objects_dir, masking={"slots": old}), 3).save(tmp_path / "donor")
    trial = trained(small_config(objects_dir, masking={"slots": 4}), 1)
    trial.load(pointer, small_config(objects_dir, masking={"slots": new}))
    assert trial.masks(2)[1].shape == (2, new, 32, 32)
    report = trial.train_to_report()
    assert math.isfinite(report.loss) and report.epoch == 2
    again = Trainer(small_config(objects_dir, masking={"slots": new}), CPU)
    again.load(trial.save(tmp_path / "changed"), again.config)
    assert torch.equal(again.masks(2)[1], trial.masks(2)[1])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_checkpoint_of_another_memory_layout_trains_on_as_its_own(
    optimizer: str, objects_dir: Path, tmp_path: Path
) -> None:
    config = small_config(objects_dir, optimizer={"name": optimizer, "encoder_lr": 1e-3, "occlusion_lr": 1e-3})
    pointer, changed = trained(config, 2).save(tmp_path / "donor"), replaced(config, {"masking.slots": 5})
    ends = []
    for channels_last in (True, False):
        trainer = Trainer(config, CPU)
        assert trainer.networks.occlusion is not None
        trainer.networks.occlusion.use_layout(channels_last)
        trainer.load(pointer, changed)
        start = [weights.detach().clone() for weights in trainer.networks.occlusion.parameters()]
        trainer.train_until(5)
        kernels = [weights for weights in trainer.networks.occlusion.parameters() if weights.ndim == 4]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)
        ends.append(torch.cat([weights.detach().flatten() for weights in trainer.networks.occlusion.parameters()]))
    way = ends[0] - torch.cat([weights.flatten() for weights in start])
    assert float((ends[1] - ends[0]).norm()) < 0.02 * float(way.norm())


def test_how_many_slots_fit_is_measured_for_each_number_of_slots(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where nothing else differs."""
    measured = list[int]()

    def measure(config: TrialConfig, *_: Any) -> int:
        measured.append(config.masking.slots)
        return config.masking.slots

    monkeypatch.setattr("adios_ray.training.trainer.fitting_slots", measure)
    config = small_config(objects_dir)
    pointer, trainer = trained(config, 1).save(tmp_path / "donor"), Trainer(config, CPU)
    assert not measured
    trainer._measures_slots = True
    for slots, end in ((3, 1), (3, 2), (5, 2), (5, 3)):
        trainer.load(pointer, replaced(config, {"masking.slots": slots}))
        trainer.train_until(end)
        assert trainer.networks.slots_at_once == slots
    assert measured == [3, 5]


@pytest.mark.slow
def test_slots_that_fit_are_measured_with_the_labels_of_the_data(tmp_path: Path) -> None:
    """As on a GPU: the networks that are measured train on the images' own labels, however many there are."""
    trainer = Trainer(small_config(make_objects(tmp_path / "scenes", multi_label=True), batch_size=8), CPU)
    trainer._measures_slots = True
    trainer.train_until(1)
    assert trainer.networks.slots_at_once == trainer.config.masking.slots == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory")])
def test_slots_are_halved_until_training_fits(
    error: Exception, objects_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, feed and evaluation need memory: each may fail."""
    tried, config = list[tuple[int | None, str]](), small_config(objects_dir, masking={"slots": 13})
    split = open_shards(objects_dir).split("train")

    def failing_step(networks: Networks, optimizers: Optimizers, own: TrialConfig) -> Callable[..., StepResult]:
        slots, take_step = own.slots_at_once, step_function(networks, optimizers, own)

        def step(batch: Batch, weight: float) -> StepResult:
            tried.append((slots, "step"))
            if slots == 13:
                raise error
            return take_step(batch, weight)

        return step

    def failing_evaluation(*arguments: Any) -> Tensor:
        if tried[-1] == (4, "step"):
            tried.append((4, "evaluation"))
            raise error
        return extract_features(*arguments)

    def failing_view(*arguments: Any) -> Tensor:
        if tried[-1:] == [(7, "step")]:  # the batch after the first one of the second attempt
            tried.append((7, "view"))
            raise error
        return apply_view(*arguments)

    monkeypatch.setattr(cost, "step_function", failing_step)
    monkeypatch.setattr(loader, "apply_view", failing_view)
    monkeypatch.setattr(cost, "extract_features", failing_evaluation)
    state = torch.get_rng_state()
    assert cost.fitting_slots(config, split, 32, 10, CPU) == 2
    second, third = [(7, "step"), (7, "view")], [*[(4, "step")] * cost.STEPS, (4, "evaluation")]
    assert tried == [(13, "step"), *second, *third, *[(2, "step")] * cost.STEPS]
    assert torch.equal(torch.get_rng_state(), state)
    for scheme in ("none", "adios-s", "mae"):
        own = replaced(config, {"masking.scheme": scheme})
        assert cost.fitting_slots(own, split, 32, 10, CPU) == 1
        assert replaced(own, {"objective.masked_views": "both"}).most_at_once == (1 if scheme == "none" else 2)
    monkeypatch.setattr(cost, "step_function", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        cost.fitting_slots(config, split, 32, 10, CPU)


@pytest.mark.slow
def test_reports_come_at_the_interval_and_at_the_end(objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir, epochs=3, evaluation={"interval_epochs": 2}), CPU)
    first, last = trainer.train_to_report(), trainer.train_to_report()
    assert (first.epoch, last.epoch, trainer.done) == (2, 3, True)
    for report in (first, last):
        assert 0 <= report.fitness <= 1 and 0 <= report.probe_accuracy <= 1
        assert report.penalty >= 1 and 0 < report.mask_mean_min <= 1 / 3 <= report.mask_mean_max < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "scheme", "slots"), [(48, "adios", 3), (50, "none", 0), (50, "mae", 0), (50, "box", 0)]
)
def test_views_may_be_larger_than_the_stored_images(size: int, scheme: str, slots: int, objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir, image_size=size, epochs=1, masking={"scheme": scheme}), CPU)
    report = trainer.train_to_report()
    images, masks = trainer.masks(4)
    assert (images.shape, masks.shape) == ((4, size, size, 3), (4, slots, size, size))
    assert math.isfinite(report.loss) and 0 <= report.fitness <= 1


@pytest.mark.slow
def test_networks_that_draw_resume_bit_for_bit(objects_dir: Path, tmp_path: Path) -> None:
    """Check stochastic depth: what is dropped follows from seed and step, not from the generator's state."""
    name = "swin_tiny_patch4_window7_224"
    config = small_config(objects_dir, backbone={"name": name}, batch_size=8, masking={"order": "alternating"})
    whole = trained(config, 2)
    pointer = trained(config, 1).save(tmp_path / "middle")
    torch.rand(7)  # moves the global generator
    resumed = Trainer(config, CPU)
    resumed.load(pointer, config)
    resumed.train_until(2)
    assert_identical(saved(whole, tmp_path / "whole"), saved(resumed, tmp_path / "resumed"))
    assert any(getattr(module, "drop_prob", 0) > 0 for module in whole.networks.backbone.modules())


@pytest.mark.parametrize(
    ("objective", "schedule", "constant"),
    [("simsiam", None, True), ("simsiam", "cosine", False), ("byol", None, False), ("byol", "constant", True)],
)
@pytest.mark.slow
def test_the_predictor_keeps_its_rate_where_it_is_constant(
    objective: str, schedule: str | None, constant: bool, objects_dir: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"predictor_schedule": schedule, "encoder_lr": 0.05, "weight_decay": 1e-3}
    config = small_config(objects_dir, objective={"name": objective}, optimizer=changes)
    trainer = trained(config, 5)
    predictor = {id(parameter) for parameter in trainer.networks.objective.predictor.parameters()}
    half_of_the_peak = pytest.approx(0.025)  # after 2 steps of warm-up, 2 of 4 steps down to 0
    for group in trainer.optimizers.encoder.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.05 if constant and id(parameter) in predictor else half_of_the_peak)
    trainer.load(trainer.save(tmp_path / "saved"), replaced(config, {"optimizer.weight_decay": 0.5}))
    for group in trainer.optimizers.encoder.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.5}
        assert group["weight_decay"] in (0.0, 0.5)


def as_version_1(directory: Path, data_set: Path) -> Path:
    """Write the same square images as a data set of schema version 1, without stored sizes."""
    directory.mkdir()
    manifest = json.loads((data_set / "manifest.json").read_text())
    for entry in chain.from_iterable(manifest["splits"].values()):
        batch = pa.ipc.open_file(data_set / entry["file"]).get_batch(0)
        old, path = batch.select(["image", "label", "instances", "source_id"]), directory / entry["file"]
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, old.schema) as writer:
            writer.write_batch(old)
        entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    return directory


@pytest.mark.slow
def test_squares_without_stored_sizes_train_bit_for_bit_as_those_with(objects_dir: Path, tmp_path: Path) -> None:
    trainers = []
    for data_dir in (objects_dir, as_version_1(tmp_path / "old", objects_dir)):
        trainer = trained(small_config(data_dir, masking={"scheme": "box"}), 2)
        trainers.append(trainer)
        trainer.config = small_config(objects_dir)  # where the data are is all that differs
    new, old = (saved(trainer, tmp_path / name) for trainer, name in zip(trainers, ("a", "b"), strict=True))
    assert new.pop("images") != old.pop("images")  # other files
    assert_identical(new, old)
    assert trainers[0].evaluate("val") == trainers[1].evaluate("val")


@pytest.mark.slow
def test_the_view_of_evaluations_is_configured(objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir), CPU)
    indices = np.arange(8)
    features = {
        view: extract_features(trainer.networks.backbone, trainer.val_split, indices, 32, view)
        for view in get_args(CentralView)
    }
    assert (features["square"] - features["resize-256"]).abs().max() > 1e-3
    seen: list[torch.Tensor] = []
    first = next(module for module in trainer.networks.backbone.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    for view in get_args(CentralView):
        config = small_config(objects_dir, evaluation={"view": view}).evaluation
        evaluate(trainer.networks, trainer.train_split, trainer.val_split, 32, config)
        expected = central_views(trainer.val_split, np.arange(40), 32, CPU, view)
        assert torch.equal(seen[0], expected) and len(seen[1]) == 96
        assert torch.equal(seen[1], central_views(trainer.train_split, np.arange(96), 32, CPU, view))
        seen.clear()


def test_views_that_cannot_be_cut_out_of_256_pixels_are_refused(tmp_path: Path) -> None:
    view = {"view": "resize-256"}
    with pytest.raises(ConfigError, match="evaluation.view resize-256 needs views below 256 pixels, not of 256"):
        small_config(Path("unused"), image_size=256, evaluation=view)
    check_view("resize-256", 224)
    check_view("square", 320)
    large = make_objects(tmp_path / "large", size=320, counts={"train": 2, "val": 1, "test": 1})
    with pytest.raises(ConfigError, match="not of 320: take square"):
        Trainer(small_config(large, batch_size=2, evaluation=view), CPU)
    with pytest.raises(ConfigError, match="not of 320: take square"):
        check_data(parse(ExperimentConfig, {"data_dir": large, "batch_size": 2, "evaluation": view}))


def test_a_view_that_would_magnify_stored_pixels_is_refused(tmp_path: Path) -> None:
    counts, view = {"train": 8, "val": 8, "test": 8}, {"view": "resize-256"}
    small, large = (make_objects(tmp_path / str(size), size=size, counts=counts) for size in (240, 256))
    for place, fits in ((small, False), (large, True)):
        config = small_config(place, image_size=96, batch_size=8, evaluation=view)
        experiment = parse(ExperimentConfig, config.model_dump())
        with nullcontext() if fits else pytest.raises(ConfigError, match="256 pixels or more, and these are at 240"):
            Trainer(config, CPU)
        with nullcontext() if fits else pytest.raises(ConfigError, match=f"{place}: evaluation.view resize-256 needs"):
            check_data(experiment)


@pytest.mark.slow
def test_a_training_goes_on_with_its_own_images_alone(tmp_path: Path) -> None:
    config = small_config(make_objects(tmp_path / "data"))
    pointer = trained(config, 1).save(tmp_path / "checkpoint")
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = replaced(config, {"data_dir": str(tmp_path / "moved")})
    Trainer(moved, torch.device("cpu")).load(pointer, moved)
    make_objects(tmp_path / "data", unlabeled=3)
    trainer = Trainer(config, torch.device("cpu"))
    with pytest.raises(DatasetError, match=f"data is not the data set that {pointer.path} was trained on"):
        trainer.load(pointer, config)
    state = load_checkpoint(pointer, torch.device("cpu"))
    del state["images"]  # as in checkpoints of earlier versions
    trainer.restore(state, config, pointer.path)


def test_a_checkpoint_of_other_optimizer_groups_is_refused_by_name(objects_dir: Path, tmp_path: Path) -> None:
    config = small_config(objects_dir, objective={"name": "simsiam"}, optimizer={"predictor_schedule": "cosine"})
    pointer = trained(config, 1).save(tmp_path / "before")
    trainer = Trainer(replaced(config, {"optimizer.predictor_schedule": "constant"}), CPU)
    with pytest.raises(CheckpointError, match="before: the state of its encoder optimizer does not fit"):
        trainer.load(pointer, trainer.config)


def poisoned(config: TrialConfig) -> Trainer:
    """Train for two steps, then break a weight so that the third step diverges."""
    trainer = trained(config, 2)
    with torch.no_grad():
        next(trainer.networks.backbone.parameters()).fill_(torch.inf)
    return trainer


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.slow
def test_a_diverged_training_stops_before_anybody_moves_and_can_be_reproduced(
    order: str, objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = poisoned(small_config(objects_dir, masking={"order": order}))
    weights = {name: values.clone() for name, values in trainer.networks.named_parameters()}
    report = trainer.train_to_report()
    assert report.divergence == "step 2: objective of slot 0 is nan"
    assert math.isnan(report.fitness) and math.isnan(report.loss) and report.epoch == 1
    for name, values in trainer.networks.named_parameters():
        torch.testing.assert_close(values.detach(), weights[name], rtol=0, atol=0, equal_nan=True)
    trainer.save(tmp_path / "dump", trainer.take_failed_batch())
    assert main(["reproduce", str(tmp_path / "dump")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'dump'}: objective of slot 0 is nan\n"


def test_a_step_that_failed_after_the_encoder_moved_is_reproduced_from_there(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the occlusion model's gradients be nan at one state of the encoder: that after the first pass of a step."""
    fatal: list[torch.Tensor] = []

    def fail(networks: Networks, batch: Batch, slots: list[torch.Tensor], *others: Any) -> SlotLosses:
        found = accumulate_gradients(networks, batch, slots, *others)
        weights = parameters_to_vector(networks.backbone.parameters()).detach()
        if slots[0].requires_grad:
            fatal.append(weights)
            if torch.equal(weights, fatal[0]):
                for slot in slots:
                    slot.grad = torch.full_like(slot, torch.nan)
        return found

    trainer = trained(small_config(objects_dir, masking={"order": "alternating"}), 1)
    monkeypatch.setattr("adios_ray.training.step.accumulate_gradients", fail)
    assert trainer.train_to_report().divergence == "step 1: a gradient of the occlusion model is nan"
    trainer.save(tmp_path / "dump", trainer.take_failed_batch())
    assert reproduce(tmp_path / "dump", CPU) == "a gradient of the occlusion model is nan"


def test_a_penalty_that_is_not_finite_is_named(objects_dir: Path) -> None:
    trainer = trained(small_config(objects_dir, masking={"scheme": "adios-s"}), 1)
    assert trainer.networks.occlusion is not None and trainer.networks.occlusion.head.bias is not None
    with torch.no_grad():
        trainer.networks.occlusion.head.bias[1] = torch.nan
    assert "objective of slot 0" in str(trainer.train_to_report().divergence)
    assert Terms(torch.ones(3), torch.tensor([1.0, torch.inf]), torch.ones(2)).fault() == "penalty of slot 1 is inf"


@pytest.mark.parametrize(
    ("part", "name"), [("backbone", "encoder"), ("probe", "probe"), ("occlusion", "occlusion model")]
)
@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_a_gradient_that_is_not_finite_stops_the_players_although_the_loss_is(
    part: str, name: str, order: str, objects_dir: Path
) -> None:
    trainer = trained(small_config(objects_dir, masking={"order": order}), 1)
    parameter = next(getattr(trainer.networks, part).parameters())
    parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    weights = [values.clone() for values in trainer.networks.parameters()]
    assert trainer.train_to_report().divergence == f"step 1: a gradient of the {name} is inf"
    # In alternating order, the encoder has moved before the occlusion model's gradient is computed.
    held = trainer.networks if order == "simultaneous" else trainer.networks.occlusion
    assert held is not None and all(values.isfinite().all() for values in trainer.networks.parameters())
    for values, before in zip(trainer.networks.parameters(), weights, strict=True):
        if any(values is own for own in held.parameters()):
            assert torch.equal(values, before)


@pytest.mark.slow
def test_a_diverged_training_waits_for_a_donor_and_goes_on_from_it(objects_dir: Path, tmp_path: Path) -> None:
    config = small_config(objects_dir, epochs=3)
    pointer = trained(config, 3).save(tmp_path / "donor")
    trial = poisoned(config)
    trial.train_to_report()
    resumed = Trainer(config, CPU)
    resumed.load(trial.save(tmp_path / "diverged"), config)
    for trainer in (trial, resumed):
        assert trainer.train_to_report().divergence == "step 2: objective of slot 0 is nan"
        assert trainer.epoch == 2
    trial.load(pointer, config)
    trial.train_until(5)
    assert_identical(saved(trained(config, 5), tmp_path / "whole"), saved(trial, tmp_path / "rescued"))


@pytest.mark.slow
def test_a_healthy_dump_or_a_plain_checkpoint_reproduces_nothing(objects_dir: Path, tmp_path: Path) -> None:
    trainer = trained(small_config(objects_dir), 1)
    assert trainer.take_failed_batch() is None
    trainer.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="not the dump of a step that diverged"):
        reproduce(tmp_path / "checkpoint", CPU)
    batch = next(iter(trainer.loader.batches(trainer.seed, 1, 2)))
    trainer._failure = Failure(1, "", batch, encoder_moved=False)
    failed = trainer.take_failed_batch()
    assert failed is not None and failed["workers"] == 1
    finite = "dump: step 1 is finite on cpu, which may round differently from where it diverged"
    for workers, more in ((1, ""), (2, "; there, BatchNorm normalized over the images of each of 2 workers .*")):
        trainer.save(tmp_path / "dump", failed | {"workers": workers})
        with pytest.raises(InputError, match=f"{finite}{more}$"):
            reproduce(tmp_path / "dump", CPU)


def test_a_damaged_or_missing_checkpoint_is_named(objects_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(small_config(objects_dir), CPU)
    pointer = trainer.save(tmp_path / "checkpoint")
    file = pointer.path / STATE_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} is damaged"):
        trainer.load(pointer, trainer.config)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} does not exist"):
        trainer.load(pointer, trainer.config)


def test_a_batch_larger_than_the_data_is_refused(objects_dir: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size 97 is more than the 96"):
        Trainer(small_config(objects_dir, batch_size=97), CPU)


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "vit_tiny_patch16_224"])
def test_timm_backbones_train_at_the_given_size(name: str, objects_dir: Path) -> None:
    trainer = trained(small_config(objects_dir, backbone={"name": name}, batch_size=8), 1)
    assert trainer.step == 1


@pytest.mark.slow
def test_a_training_begins_with_the_weights_of_another(objects_dir: Path, tmp_path: Path) -> None:
    first = trained(small_config(objects_dir, objective={"name": "byol"}), 2)
    first.save(tmp_path / "first")
    config = small_config(objects_dir, objective={"name": "byol"}, initial_weights=tmp_path / "first", seed=5)
    second = Trainer(config, CPU)
    begun = second.networks.state_dict()
    for name, values in first.networks.state_dict().items():
        assert torch.equal(begun[name], values) != name.startswith("probe"), name
    assert second.step == 0 and math.isfinite(second.train_to_report().loss)


@pytest.mark.slow
def test_masks_to_begin_with_are_split_or_merged_to_the_configured_number(objects_dir: Path, tmp_path: Path) -> None:
    first = trained(small_config(objects_dir), 2)
    first.save(tmp_path / "first")
    before = first.masks(4)[1]
    config = small_config(objects_dir, masking={"slots": 4}, initial_weights=tmp_path / "first")
    after = Trainer(config, CPU).masks(4)[1]
    split = int((before[:, :3] - after[:, :3]).abs().mean(dim=(0, 2, 3)).argmax())
    merged = torch.cat([after[:, :split], after[:, split : split + 1] + after[:, 3:], after[:, split + 1 : 3]], dim=1)
    torch.testing.assert_close(merged, before, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_images_without_labels_are_trained_on_but_not_asked_about(tmp_path: Path) -> None:
    trainer = Trainer(small_config(make_objects(tmp_path / "some", unlabeled=64), epochs=1), CPU)
    assert len(trainer.loader.split) == 96 + 64 and trainer.loader.steps_per_epoch == 5
    assert len(trainer.train_split) == 96 and trainer.train_split.labels.min() >= 0
    probes: list[tuple[torch.Tensor, torch.Tensor]] = []
    trainer.networks.probe.register_forward_hook(lambda _, features, logits: probes.append((features[0], logits)))
    batches = list(trainer.loader.batches(trainer.seed, 0, 5))
    report = trainer.train_to_report()
    labels = torch.cat([batch.labels for batch in batches])
    predicted = torch.cat([logits.argmax(dim=1) for _, logits in probes])
    known = labels != NO_LABEL
    assert 0 < known.sum() < 5 * 32
    expected = (predicted == labels)[known].float().mean()
    assert report.probe_accuracy == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("scheme", ["none", "adios"])
def test_the_probe_learns_from_known_labels_alone(objects_dir: Path, scheme: str) -> None:
    def update(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, StepResult]:
        """Take a step; return the gradient of the probe's bias, the one by hand, and the step's result."""
        trainer = Trainer(small_config(objects_dir, masking={"scheme": scheme}), CPU)
        probe, (batch,) = trainer.networks.probe, trainer.loader.batches(trainer.seed, 0, 1)
        bias, seen = probe.bias, list[torch.Tensor]()

        def collect_gradient(*_: object) -> None:
            assert bias.grad is not None
            seen.append(bias.grad.clone())

        probe.register_forward_hook(lambda _, inputs, logits: seen.append(logits.detach()))
        trainer.optimizers.probe.register_step_pre_hook(collect_gradient)
        batch = batch._replace(labels=labels)
        result = train_step(trainer.networks, trainer.optimizers, batch, trainer.config, 0.0)
        logits, gradient = seen
        shares = torch.softmax(logits, dim=1) - one_hot(labels.clamp(min=0), logits.shape[1])
        return gradient, shares[labels != NO_LABEL].sum(dim=0), result

    labels = torch.arange(32) % 4
    labels[::3] = NO_LABEL
    gradient, total, result = update(labels)
    assert float(result.measurements.labeled) == pytest.approx(21 / 32)
    torch.testing.assert_close(gradient, total / 21, rtol=0, atol=1e-6)
    gradient, _, result = update(torch.full((32,), NO_LABEL))
    assert float(result.measurements.labeled) == float(result.measurements.probe_correct) == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.slow
def test_a_split_that_is_merged_again_leaves_the_loss(objects_dir: Path) -> None:
    losses = []
    for resized in (False, True):
        trainer = trained(small_config(objects_dir), 3)
        occlusion, optimizer = trainer.networks.occlusion, trainer.optimizers.occlusion
        assert occlusion is not None and optimizer is not None
        if resized:
            for slots in (4, 3):
                masks = trainer.masks(8)[1]
                replace_head(
                    occlusion, optimizer, resize_head(read_head(occlusion, optimizer), masks, slots, noise=0.0)
                )
        before = trainer._sums.clone()
        trainer.train_until(4)
        losses.append((trainer._sums - before)[:2])
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_grown_trial_keeps_learning(objects_dir: Path, tmp_path: Path) -> None:
    """Check that one more mask changes an epoch's loss no more than another order of the images does."""
    config = small_config(objects_dir, epochs=6)
    start = trained(config, 12)
    pointer = start.save(tmp_path / "start")
    losses: dict[int, list[float]] = {3: [], 4: []}
    for slots, found in losses.items():
        for seed in range(4):
            trainer = Trainer(config, CPU)
            trainer.load(pointer, replaced(config, {"masking.slots": slots}))
            trainer.seed = seed
            found.append(trainer.train_to_report().loss)
    usual, grown = torch.tensor(losses[3]), torch.tensor(losses[4])
    assert abs(grown.mean() - usual.mean()) <= 3 * usual.std() and grown.std() <= 3 * usual.std()


ADAPTED: dict[str, Any] = {
    "masking.slots": 5,
    "masking.sparsity_weight": 2.0,
    "masking.entropy_weight": 1.0,
    "masking.order": "alternating",
    "masking.reduction": "sum",
    "masking.fill": "blur",
    "optimizer.encoder_lr": 0.01,
    "optimizer.occlusion_lr": 0.01,
    "optimizer.momentum": 0.5,
    "optimizer.weight_decay": 0.1,
    "optimizer.warmup_epochs": 0.5,
    "optimizer.warmup_start_lr": 0.02,
    "objective.temperature": 0.5,
    "objective.momentum_start": 0.5,
    "augment.min_crop_scale": 0.5,
    "augment.brightness": 0.1,
    "augment.contrast": 0.1,
    "augment.saturation": 0.8,
    "augment.hue": 0.4,
    "augment.jitter_probability": 0.1,
    "augment.grayscale_probability": 0.9,
    "augment.blur_probability": 0.0,
    "augment.solarize_probability": 0.9,
    "augment.flip_probability": 1.0,
}
"""Another value of each that may change while a trial trains."""


def settings_of(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the settings of all parameter groups, except the learning rates, which each step sets."""
    groups = chain.from_iterable(optimizer.param_groups for optimizer in trainer.optimizers.all().values())
    return [{key: value for key, value in group.items() if key not in ("params", "lr")} for group in groups]


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Return all tensors and settings that training changes."""
    optimizers = {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.all().items()}
    return {"networks": trainer.networks.state_dict(), "optimizers": optimizers, "step": trainer.step}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loaded_value_is_that_of_a_trainer_made_with_it(optimizer: str, objects_dir: Path, tmp_path: Path) -> None:
    assert ADAPTED.keys() == ADAPTABLE
    # Of AdamW only what it keeps under another name than SGD.
    paths = list(ADAPTED) if optimizer == "sgd" else ["optimizer.momentum"]
    changes = {"optimizer": {"name": optimizer, "warmup_epochs": 1.0}, "objective": {"name": "mocov3"}, "batch_size": 4}
    config = small_config(objects_dir, **changes)
    pointer = trained(config, 2).save(tmp_path / "donor")
    trial = trained(config, 1)
    trial.load(pointer, config)
    trial.train_until(3)
    unchanged = copy.deepcopy(trial.networks.state_dict())
    for path in paths:
        changed = replaced(config, {path: ADAPTED[path]})
        fresh = Trainer(changed, CPU)
        made = settings_of(fresh), fresh.schedule
        fresh.load(pointer, changed)
        trial.load(pointer, changed)  # after all other values: nothing of them remains
        assert (settings_of(trial), trial.schedule) == made, path
        for trainer in (fresh, trial):
            trainer.train_until(3)
        assert_identical(state_of(fresh), state_of(trial))
        mine = trial.networks.state_dict()
        assert any(not torch.equal(mine[name], values) for name, values in unchanged.items()), path


def test_a_value_that_cannot_change_is_refused_by_name(objects_dir: Path, tmp_path: Path) -> None:
    config = small_config(objects_dir)
    trainer = Trainer(config, CPU)
    pointer = trainer.save(tmp_path / "checkpoint")
    trainer.load(pointer, replaced(config, {"seed": 3, "masking.slots": 4}))
    with pytest.raises(ConfigError, match=r"masking.width \(8 -> 16\) cannot change while a trial trains"):
        trainer.load(pointer, replaced(config, {"masking.width": 16, "masking.slots": 2}))
    assert trainer.config.masking.slots == 4


@pytest.mark.slow
def test_measurements_are_means_over_the_steps_since_the_last_report(objects_dir: Path, tmp_path: Path) -> None:
    """Also where more epochs are asked for after a report at the end, between two intervals."""
    settings: dict[str, Any] = {"evaluation": {"interval_epochs": 4}, "optimizer": {"encoder_lr": 1e-9}}
    trainer = Trainer(small_config(objects_dir, epochs=2, **settings), CPU)
    first = trainer.train_to_report()
    again = Trainer(small_config(objects_dir, epochs=4, **settings), CPU)
    again.load(trainer.save(tmp_path / "two"), again.config)
    assert again.train_to_report().penalty == pytest.approx(first.penalty, rel=0.2)  # half, as it was

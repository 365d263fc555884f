"""Fitness and its standard error: vote shares, probabilities, jackknife, and the halves of a split."""

import base64
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from naive import golden, naive_votes
from scipy.stats import sem
from small import SIZE, make_objects, small_config

from adios_ray.config import AugmentConfig, EvaluationConfig
from adios_ray.data.augment import apply_view, draw_parameters
from adios_ray.data.shards import Split
from adios_ray.errors import EvaluationError
from adios_ray.evaluation import fitness
from adios_ray.evaluation.extraction import extract_features
from adios_ray.evaluation.fitness import LABEL_FREE_GROUPS, check_measurable, evaluate, features_of_views, halves
from adios_ray.evaluation.jackknife import jackknife_errors
from adios_ray.evaluation.knn import knn_label_shares, knn_votes, macro_f1
from adios_ray.evaluation.label_free import alpha_req, lidar, rankme
from adios_ray.evaluation.outcomes import decoded
from adios_ray.experiment import checks
from adios_ray.experiment.checks import check_data
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.models.networks import Networks
from adios_ray.training.trainer import Trainer

CPU = torch.device("cpu")


def split_of(*items: str) -> Split:
    """Make a split of black images with these source ids."""
    images = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), (2, 2, 3)),
        pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(12 * len(items), np.uint8)), 12),
    )
    columns = {"image": images, "label": pa.array([0] * len(items), pa.int64()), "source_id": pa.array(items)}
    return Split("val", [pa.record_batch(columns)])


def test_shares_of_the_votes_equal_a_loop_and_sum_to_one() -> None:
    bank, queries, classes = torch.randn(30, 4), torch.randn(6, 4), 5
    numbers = torch.randint(classes, (30,))
    expected = torch.tensor(naive_votes(bank, torch.nn.functional.one_hot(numbers), queries, 7, 0.2))
    found = [knn_votes(bank, numbers, queries, torch.full((6,), c), 7, 0.2) for c in range(classes + 1)]
    shares = torch.stack([votes.shares for votes in found[:classes]], dim=1)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6), rtol=0, atol=1e-6)
    assert torch.equal(torch.stack([votes.correct for votes in found], dim=1).sum(dim=1), torch.ones(6).long())
    assert not found[classes].shares.any()  # a class that the bank does not have
    labels = (torch.rand(30, classes) > 0.5).byte()
    of_labels = knn_label_shares(bank, labels, queries, 7, 0.2)
    torch.testing.assert_close(of_labels, torch.tensor(naive_votes(bank, labels, queries, 7, 0.2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("key", "temperature"), [("k1_cosine_T0.07", 0.07), ("k20_cosine_T0.07", 0.07)])
def test_votes_that_are_right_are_those_of_the_published_implementation(key: str, temperature: float) -> None:
    values, neighbors = golden("knn.npz"), int(key[1:].partition("_")[0])
    bank, queries = ((values[f"{part}_features"], values[f"{part}_labels"]) for part in ("train", "test"))
    votes = knn_votes(*bank, *queries, neighbors, temperature)
    assert 100 * float(votes.correct.double().mean()) == pytest.approx(float(values[f"acc1_{key}"]), abs=1e-4)
    assert bool((votes.correct | (votes.shares <= 0.5)).all())
    if neighbors == 1:
        assert torch.equal(votes.shares, votes.correct.to(votes.shares))


def test_halves_are_disjoint_and_stay_when_other_images_are_added() -> None:
    names = [f"class_{i % 7}/image {i}.png" for i in range(400)]
    first, second = halves(split_of(*names))
    assert sorted([*first, *second]) == list(range(400)) and 160 < len(first) < 240
    more = [f"new {i}" for i in range(50)]
    grown = split_of(*more, *names[::-1])
    for half, grown_half in zip((first, second), halves(grown), strict=True):
        ids = [str(item) for item in grown.source_ids]
        assert {names[i] for i in half} == {ids[i] for i in grown_half} - set(more)
    (whole,) = halves(split_of(*names[:99]))
    assert whole.tolist() == list(range(99))


def test_a_val_split_that_is_used_whole_is_named_before_the_run(
    objects_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExperimentConfig(**small_config(objects_dir).model_dump())
    check_data(config)
    assert capsys.readouterr().out.startswith("val has 40 images, all of which decisions and the final comparison use")
    monkeypatch.setattr(checks, "SMALLEST_PARTED", 40)
    check_data(config)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "features", "settings", "message"),
    [
        (2, 64, {}, "val has 2 images: evaluation.fitness knn with min_effective_rank 1.5 needs 3 or more"),
        (4, 64, {"min_effective_rank": 4.0}, "needs 5 or more"),
        (2, 64, {"fitness": "rankme", "min_effective_rank": 0.0}, "fitness rankme with .* needs 3 or more"),
        (40, 16, {"min_effective_rank": 17.0}, "min_effective_rank 17 is above 16"),
    ],
)
def test_splits_on_which_every_trial_would_collapse_are_refused(
    images: int, features: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        check_measurable(images, features, EvaluationConfig(**settings), "val")


@pytest.mark.parametrize("name", ["knn", "rankme", "alpha-req", "lidar"])
def test_the_smallest_split_that_is_accepted_can_be_measured(name: str) -> None:
    config = EvaluationConfig(fitness=name)
    check_measurable(3, 64, config, "val")
    torch.manual_seed(0)
    features = torch.randn(3, 64)
    assert fitness._collapse(features, config) is None
    if name != "knn":
        views = features[:, None] + 0.1 * torch.randn(3, 2, 64) if name == "lidar" else features
        measure = {"rankme": rankme, "alpha-req": alpha_req, "lidar": lidar}[name]
        assert math.isfinite(fitness._label_free(measure, views, torch.arange(3))(torch.arange(3)).value)


@pytest.mark.parametrize(
    ("name", "held_out", "others", "reason"),
    [
        ("knn", math.inf, 1.0, "features of held-out images are not finite"),
        ("knn", 1.0, math.inf, "knn cannot be computed: features of training images are not finite"),
        ("lidar", 1.0, 1e9, "lidar cannot be computed: linalg.cholesky"),
        ("lidar", 1.0, math.inf, "lidar cannot be computed: it is not finite"),
        ("probe", 1.0, math.inf, "probe cannot be computed: it is not finite"),
    ],
)
def test_a_fitness_that_is_unknown_has_a_reason(
    name: str, held_out: float, others: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = iter([held_out, others])
    monkeypatch.setattr(fitness, "extract_features", lambda *arguments: next(factors) * torch.randn(40, 64))
    monkeypatch.setattr(fitness, "features_of_views", lambda *arguments: others * torch.randn(40, 2, 64))
    probe = torch.nn.Linear(64, 2)
    torch.nn.init.constant_(probe.weight, others)
    split, parts = split_of(*map(str, range(40))), (torch.nn.Linear(1, 1), probe)
    networks = SimpleNamespace(evaluated=parts, averaged=None, autocast=lambda device: None)
    halved = [np.arange(20), np.arange(20, 40)]
    found = evaluate(cast(Networks, networks), split, split, SIZE, EvaluationConfig(fitness=name), halved)
    assert [math.isnan(estimate.value) for estimate in found.estimates] == [True, True]
    assert found.collapse is not None and found.collapse.startswith(reason)


def label_free_error(measure: Callable[[torch.Tensor], float], features: torch.Tensor) -> float | None:
    """Estimate the error of a label-free measure by the jackknife."""
    return jackknife_errors(lambda kept: [measure(features[kept])], len(features), LABEL_FREE_GROUPS)[0]


@pytest.mark.slow
def test_features_of_views_equal_a_loop_over_images_and_views(
    objects_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "LIDAR_IMAGES", 10)
    monkeypatch.setattr(fitness, "LIDAR_VIEWS", 3)
    trainer = Trainer(small_config(objects_dir, augment={"brightness": 0.0, "min_crop_scale": 0.9}), CPU)
    backbone, val, expected = trainer.networks.backbone, trainer.val_split, []
    for image in (0, 4, 8, 13, 17, 21, 26, 30, 34, 39):  # spread over the 40
        own = np.array([image])
        stored = torch.from_numpy(val.gather(own))
        for number in range(3):
            drawn = draw_parameters(AugmentConfig(), 0, "view_a", number, own, val.heights[own], val.widths[own])
            with torch.no_grad():
                expected.append(backbone.eval()(apply_view(stored, drawn, SIZE))[0])
    backbone.train()
    found = features_of_views(backbone, val, SIZE)
    torch.testing.assert_close(found, torch.stack(expected).unflatten(0, (10, 3)), rtol=0, atol=1e-5)
    assert backbone.training and (found[:, 0] - found[:, 1]).abs().amax(dim=1).min() > 1e-3
    other = features_of_views(backbone, val, SIZE, seed=1)
    assert (found - other).abs().amax(dim=2).min() > 1e-3


@pytest.mark.parametrize(
    "name", ["knn", "rankme", *(pytest.param(name, marks=pytest.mark.slow) for name in ("probe", "lidar"))]
)
def test_parts_are_scored_as_if_they_were_alone(name: str, objects_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "SMALLEST_PARTED", 10)
    monkeypatch.setattr(fitness, "LIDAR_VIEWS", 2)
    monkeypatch.setattr(fitness, "LIDAR_IMAGES", 30)  # of 40
    trainer = Trainer(small_config(objects_dir, evaluation={"fitness": name}), CPU)
    torch.nn.init.normal_(trainer.networks.probe.weight, std=0.1)
    val, parts = trainer.val_split, halves(trainer.val_split)
    found = evaluate(trainer.networks, trainer.train_split, val, SIZE, trainer.config.evaluation, parts)
    whole = trainer.evaluate("val")
    assert len(found.estimates) == 2 and found.collapse is None
    if whole.outcomes is not None:
        for estimate, part in zip(found.estimates, parts, strict=True):
            assert estimate.outcomes == bytes(whole.outcomes[i] for i in part)
            exact = np.array([*estimate.outcomes]) / 255
            assert estimate.value == pytest.approx(exact.mean(), abs=1 / 255)
            assert estimate.standard_error == pytest.approx(exact.std(ddof=1) / math.sqrt(len(part)), abs=1 / 255)
        sizes = [len(part) for part in parts]
        assert whole.accuracy == pytest.approx(np.average([e.accuracy for e in found.estimates], weights=sizes))
        return
    backbone, measure = trainer.networks.backbone, {"rankme": rankme, "lidar": lidar}[name]
    images = val.spread(30) if name == "lidar" else np.arange(len(val))
    if name == "lidar":
        features = features_of_views(backbone, val, SIZE)
    else:
        features = extract_features(backbone, val, images, SIZE)
    for estimate, part in zip(found.estimates, parts, strict=True):
        own = features[np.isin(images, part)]
        assert 10 < len(own) < len(images)
        assert estimate.value == pytest.approx(measure(own))
        assert estimate.standard_error == pytest.approx(label_free_error(measure, own))


def test_the_probe_scores_the_probability_of_the_right_class(objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir, evaluation={"fitness": "probe"}), CPU)
    torch.nn.init.normal_(trainer.networks.probe.weight, std=0.3)
    val = trainer.val_split
    features = extract_features(trainer.networks.backbone, val, np.arange(len(val)), SIZE)
    with torch.no_grad():
        chances = trainer.networks.probe(features).softmax(dim=1).numpy()
    found = trainer.evaluate("val")
    assert found.value == pytest.approx(np.mean([row[label] for row, label in zip(chances, val.labels, strict=True)]))
    assert found.accuracy == pytest.approx(np.mean(chances.argmax(axis=1) == val.labels))


def test_the_probe_scores_the_right_answers_about_several_labels(tmp_path: Path) -> None:
    directory = make_objects(tmp_path / "scenes", multi_label=True)
    trainer = Trainer(small_config(directory, evaluation={"fitness": "probe"}), CPU)
    torch.nn.init.normal_(trainer.networks.probe.weight, std=0.3)
    val = trainer.val_split
    features = extract_features(trainer.networks.backbone, val, np.arange(len(val)), SIZE)
    with torch.no_grad():
        chances = trainer.networks.probe(features).sigmoid().numpy()
    present, found = val.labels > 0, trainer.evaluate("val")
    assert found.value == pytest.approx(np.where(present, chances, 1 - chances).mean(), abs=1e-6)
    assert found.accuracy == pytest.approx(((chances > 0.5) == present).mean())


def test_neighbors_are_spread_over_the_training_images(objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir, evaluation={"train_images": 10}), CPU)
    train, val, config = trainer.train_split, trainer.val_split, trainer.config.evaluation
    chosen = np.linspace(0, 95, 10).astype(int)
    bank, queries = (
        extract_features(trainer.networks.backbone, split, images, SIZE)
        for split, images in ((train, chosen), (val, np.arange(len(val))))
    )
    truth = torch.nn.functional.one_hot(torch.from_numpy(train.labels[chosen]), trainer.classes)
    votes = naive_votes(bank, truth, queries, config.neighbors, config.temperature)
    expected = np.mean([row[label] for row, label in zip(votes, val.labels, strict=True)])
    assert trainer.evaluate("val").value == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_f1_of_several_labels_is_the_mean_of_what_groups_of_images_say(tmp_path: Path) -> None:
    directory = make_objects(tmp_path / "scenes", multi_label=True)
    trainer = Trainer(small_config(directory), CPU)
    train, val, config = trainer.train_split, trainer.val_split, trainer.config.evaluation
    bank, queries = (
        extract_features(trainer.networks.backbone, split, np.arange(len(split)), SIZE) for split in (train, val)
    )
    votes = np.array(naive_votes(bank, torch.from_numpy(train.labels), queries, config.neighbors, config.temperature))
    present = val.labels > 0
    found = trainer.evaluate("val")
    assert found.accuracy == pytest.approx(((votes > 0.5) == present).mean(), abs=1e-6)
    predicted, truth = torch.tensor(votes > 0.5), torch.tensor(present)
    assert found.value == pytest.approx(macro_f1(predicted, truth), abs=1e-6)
    (error,) = jackknife_errors(lambda kept: [macro_f1(predicted[kept], truth[kept])], len(present))
    assert found.standard_error == pytest.approx(error) and error is not None
    assert found.outcomes is not None
    outcomes = decoded(found.outcomes)
    assert outcomes.mean() == pytest.approx(found.value) and sem(outcomes) == pytest.approx(error)


@pytest.mark.slow
def test_reports_measure_selection_and_holdout(objects_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "SMALLEST_PARTED", 10)
    config = small_config(objects_dir, epochs=1, masking={"scheme": "none"})
    parted = Trainer(config, CPU).train_to_report()
    monkeypatch.undo()
    trainer = Trainer(config, CPU)
    whole = trainer.train_to_report()
    assert parted.holdout_fitness != parted.fitness and whole.holdout_fitness == whole.fitness
    images = [len(base64.b64decode(report.outcomes or "")) for report in (parted, whole)]
    assert 10 < images[0] < images[1] - 10 and images[1] == len(trainer.val_split)
    assert whole.fitness == trainer.evaluate("val").value and whole.accuracy == trainer.evaluate("val").accuracy


@pytest.mark.parametrize("section", [{"fitness": "lidar", "fresh_statistics": True}, {"average_weights": True}])
def test_all_forward_passes_of_an_evaluation_are_in_the_trials_precision(
    section: dict[str, Any], objects_dir: Path
) -> None:
    trainer = Trainer(small_config(objects_dir, precision="bfloat16", evaluation=section), CPU)
    backbone, seen = trainer.networks.evaluated[0], set[torch.dtype]()
    stem = backbone.get_submodule("stem.0")
    stem.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.evaluate("val")
    assert seen == {torch.bfloat16}

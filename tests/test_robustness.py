"""Robustness: the probe, its accuracies and gains against naive computations; what is refused."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small import make_objects, small_config
from test_linear import clusters

from adios_ray.config import replaced
from adios_ray.data.shards import Dataset, open_shards
from adios_ray.errors import EvaluationError
from adios_ray.evaluation.features import Features
from adios_ray.evaluation.linear import Sgd, linear_sweep
from adios_ray.evaluation.robustness import gain, probe_variations, robustness, share
from adios_ray.evaluation.subject import Subject, build_subject
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights

quick = partial(robustness, rates=(0.1, 1.0), epochs=5, batch_size=32)


def drawn(images: int, probability: float, seed: int) -> torch.Tensor:
    """Draw which images are classified correctly, bool [images]."""
    return torch.rand(images, generator=torch.Generator().manual_seed(seed)) < probability


def test_shares_and_gains_equal_sums_over_images() -> None:
    ours, theirs = drawn(37, 0.7, 0), drawn(37, 0.5, 1)
    p = sum(ours.tolist()) / 37
    assert share(ours).value == pytest.approx(p, rel=1e-12)
    assert share(ours).standard_error == pytest.approx(math.sqrt(p * (1 - p) / 37), rel=1e-12)
    differences = [int(a) - int(b) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    mean = sum(differences) / 37
    variance = sum((d - mean) ** 2 for d in differences) / 37
    assert gain(ours, theirs).value == pytest.approx(mean, rel=1e-12)
    assert gain(ours, theirs).standard_error == pytest.approx(math.sqrt(variance / 37), rel=1e-12)


def test_a_paired_error_is_small_where_both_agree_on_most_images() -> None:
    theirs = drawn(500, 0.5, 2)
    ours = theirs | drawn(500, 0.1, 3)
    error, *apart = (found.standard_error or 0 for found in (gain(ours, theirs), share(ours), share(theirs)))
    assert 0 < error < 0.5 * math.hypot(*apart)


def test_the_probe_of_the_original_is_tested_on_each_variation() -> None:
    """Count by a loop over images which of them have the highest logit at their class."""
    sets = {name: Features(*clusters(60, 4, seed=seed)) for seed, name in enumerate(("train", "val", "a", "b"))}
    train, val = sets.pop("train"), sets.pop("val")
    sets["b"] = Features(sets["b"].features + 1.0, sets["b"].labels)
    sgd = Sgd((0.01, 0.3), epochs=10, batch_size=16, seed=5)
    found = probe_variations(train, val, sets, sgd)
    sweep = linear_sweep(train, val, sgd)
    assert found.rate == sweep.rate and found.val == sweep.accuracy.top1
    for name, (features, labels) in sets.items():
        logits = features @ sweep.classifier[:, :-1].T + sweep.classifier[:, -1]
        expected = [int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)]
        assert found.correct[name].tolist() == expected
        assert 0 < sum(expected) < 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Open objects with other images in a split that is named like a variation."""
    counts = {"train": 60, "val": 20, "test": 30, "no_fg": 25}
    return open_shards(make_objects(tmp_path_factory.mktemp("robustness") / "objects", counts=counts))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Open objects that are stored large enough for each view."""
    counts = {"train": 60, "val": 20, "test": 30}
    return open_shards(make_objects(tmp_path_factory.mktemp("robustness") / "large", size=256, counts=counts))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep features in a folder of these tests."""
    monkeypatch.setenv("ADIOS_RAY_CACHE", str(tmp_path_factory.getbasetemp() / "robustness_features"))


def subject_of(dataset: Dataset, seed: int = 0) -> Subject:
    """Take an untrained encoder and a data set."""
    config = small_config(Path("nowhere"), masking={"scheme": "none"})
    torch.manual_seed(seed)
    weights = Weights(config, 32, 10, f"seed {seed}", Networks(config, 32, 10).state_dict())
    return build_subject(weights, dataset)


def test_gains_are_the_differences_of_two_encoders(dataset: Dataset) -> None:
    ours, theirs = subject_of(dataset), subject_of(dataset, 1)
    alone, baseline, compared = quick(ours), quick(theirs), quick(ours, baseline=theirs)
    assert list(alone.scores) == ["original", "no_fg"]
    assert [row["images"] for row in alone.details] == [30, 25]
    for name, score in alone.scores.items():
        assert compared.scores[name] == score
        difference = score.value - baseline.scores[name].value
        assert compared.scores[f"{name}_gain"].value == pytest.approx(difference, abs=1e-12)
    assert [row["baseline"] for row in compared.details] == [score.value for score in baseline.scores.values()]
    same = quick(ours, baseline=ours).scores
    assert all((same[f"{name}_gain"].value, same[f"{name}_gain"].standard_error) == (0, 0) for name in alone.scores)


def test_a_variation_may_be_a_data_set_of_its_own(dataset: Dataset) -> None:
    subject = subject_of(dataset)
    found = quick(subject, {"mine": (dataset, "no_fg"), "again": (dataset, "test")})
    assert list(found.scores) == ["original", "mine", "again"]
    assert found.scores["mine"] == quick(subject).scores["no_fg"]
    assert found.scores["again"] == found.scores["original"]
    assert found.configuration["variations"]["mine"]["split"] == "no_fg"


def test_variations_are_seen_like_the_original(
    dataset: Dataset, large: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size at which they are stored, unless they are too small for that."""
    subject, views = replace(subject_of(dataset), dataset=large), []
    larger = open_shards(make_objects(tmp_path / "larger", size=260, counts={"test": 2}))

    def features(self: Subject, split: str) -> Features:
        views.append(self.view)
        labels = torch.from_numpy(self.dataset.split(split).labels)
        return Features(torch.randn(len(labels), 8), labels)

    monkeypatch.setattr(Subject, "features", features)
    monkeypatch.setattr(
        subject.networks, "config", replaced(subject.networks.config, {"evaluation.view": "resize-256"})
    )
    quick(subject, {"mine": (larger, "test")})
    assert views == ["resize-256"] * 4
    views.clear()
    with pytest.raises(EvaluationError, match=r"mine \(.*\) has images stored at 32 pixels, too small"):
        quick(subject, {"mine": (dataset, "test")})
    assert not views


def test_what_cannot_be_compared_is_refused(
    dataset: Dataset, large: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, manifest = subject_of(dataset), dataset.manifest
    monkeypatch.setattr(Subject, "features", lambda *_: pytest.fail("extracted"))
    with pytest.raises(EvaluationError, match=r"rates \[nan\], .* finite rates above 0"):
        robustness(subject, rates=(float("nan"),))
    without = {name: entries for name, entries in manifest.splits.items() if name != "no_fg"}
    plain = replace(dataset, manifest=manifest.model_copy(update={"splits": without}))
    with pytest.raises(EvaluationError, match="has none of the splits only_bg_b"):
        robustness(replace(subject, dataset=plain))
    other = replace(dataset, manifest=manifest.model_copy(update={"classes": manifest.classes[::-1]}))
    with pytest.raises(EvaluationError, match=r"mine \(.*\) has other classes than"):
        robustness(subject, {"mine": (other, "test")})
    other = replace(dataset, manifest=manifest.model_copy(update={"recipe": {**manifest.recipe, "num_images": 50}}))
    with pytest.raises(EvaluationError, match="prepare both with the same --num-images and --seed"):
        robustness(subject, {"mine": (other, "test")})
    with pytest.raises(EvaluationError, match=r"robustness: mine: .* has no only_fg split \(it has no_fg, test, train"):
        robustness(subject, {"mine": (dataset, "only_fg")})
    unlabeled = open_shards(make_objects(tmp_path / "unlabeled", unlabeled=2, counts={"test": 2}))
    with pytest.raises(EvaluationError, match="robustness: mine: 2 images of unlabeled have no label; it needs one"):
        robustness(subject, {"mine": (unlabeled, "unlabeled")})
    middle = replace(subject, dataset=large, asked_view="resize-256")
    with pytest.raises(EvaluationError, match="views of 32 pixels, and of 64 for the baseline, show .* view square"):
        robustness(middle, baseline=replace(middle, image_size=64))
    with pytest.raises(EvaluationError, match="robustness chooses its learning rate on val"):
        robustness(replace(subject, split="val"))

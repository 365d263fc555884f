"""The k-NN sweep against pinned numbers, scikit-learn and a closed form; its memory; what it refuses."""

import math

import numpy as np
import pytest
import torch
from largest_tensor import LargestTensor
from naive import golden
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from adios_ray.errors import EvaluationError
from adios_ray.evaluation import knn
from adios_ray.evaluation.knn import KnnScore, knn_sweep, knn_votes


def random_data(images: int, queries: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw overlapping classes in 8 dimensions: bank, its labels, queries, their labels."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 8, generator=generator, dtype=torch.float64)
    numbers, truth = (torch.randint(classes, (n,), generator=generator) for n in (images, queries))
    bank, features = (
        centers[y] + torch.randn(len(y), 8, generator=generator, dtype=torch.float64) for y in (numbers, truth)
    )
    return bank, numbers, features, truth


def test_the_sweep_agrees_with_the_published_implementation() -> None:
    values = golden("knn.npz")
    bank, queries = ((values[f"{part}_features"], values[f"{part}_labels"]) for part in ("train", "test"))
    pinned = {key: float(value) for key, value in values.items() if key.startswith("acc")}
    found: dict[str, float] = {}
    for score in knn_sweep(*bank, *queries, (200, 1, 5, 20, 50), (0.07, 0.1, 1.0)):
        suffix = "" if score.temperature is None else f"_T{score.temperature}"
        key = f"k{score.neighbors}_{score.distance}{suffix}"
        found |= {f"acc1_{key}": 100 * score.top1, f"acc5_{key}": 100 * score.top5}
    assert len(pinned) == 12
    assert {key: found[key] for key in pinned} == pytest.approx(pinned, abs=1e-9)


@pytest.mark.parametrize("elements", [knn.VALUES, 4096])
def test_the_sweep_agrees_with_scikit_learn_in_blocks_of_any_size(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "VALUES", elements)
    bank, numbers, features, truth = random_data(300, 90, 12)
    counts, temperatures = (1, 2, 5, 20, 100), (0.02, 0.07, 1.0)
    expected = []
    for temperature in (*temperatures, None):
        for count in counts:

            def weights(distance: np.ndarray, temperature: float | None = temperature) -> np.ndarray:
                """Weigh neighbors by their distance; scikit-learn's cosine distance is 1 - similarity."""
                return 1 / (distance + 1e-5) if temperature is None else np.exp((1 - distance) / temperature)

            distance = "euclidean" if temperature is None else "cosine"
            classifier = KNeighborsClassifier(count, weights=weights, metric=distance, algorithm="brute")
            classifier.fit(bank.numpy(), numbers.numpy())
            shares = classifier.predict_proba(features.numpy())
            best = np.argsort(-shares, axis=1, kind="stable")[:, :5]
            five = ((best == truth.numpy()[:, None]) & (np.take_along_axis(shares, best, axis=1) > 0)).any(axis=1)
            one = classifier.predict(features.numpy()) == truth.numpy()
            expected.append((distance, count, temperature, one.mean(), five.mean()))
    found = knn_sweep(bank, numbers, features, truth, counts, temperatures)
    assert [score[:3] for score in found] == [score[:3] for score in expected]
    assert [score[3:] for score in found] == [pytest.approx(score[3:], abs=1e-9) for score in expected]
    assert len({score.top1 for score in found}) > 5  # the settings differ, so that they cannot be confused unseen


def test_the_sweep_equals_the_accuracy_of_training() -> None:
    bank, numbers, features, truth = (x.float() if x.is_floating_point() else x for x in random_data(400, 70, 9, 1))
    for score in knn_sweep(bank, numbers, features, truth, (3, 30, 500), (0.07, 0.5))[:6]:
        assert score.temperature is not None
        correct = knn_votes(bank, numbers, features, truth, score.neighbors, score.temperature).correct
        assert score.top1 == pytest.approx(float(correct.double().mean()), abs=1e-9)


def test_the_lower_class_wins_a_tie_and_a_class_without_votes_is_not_among_five() -> None:
    bank = torch.tensor([[3.0, 4.0], [3.0, -4.0], [3.0, 4.0], [-5.0, 0.0], [-5.0, 0.0], [-5.0, 0.0]])
    numbers = torch.tensor([7, 4, 9, 1, 2, 3])
    for truth, first, five in ((4, 1.0, 1.0), (7, 0.0, 1.0), (9, 0.0, 1.0), (1, 0.0, 0.0), (8, 0.0, 0.0)):
        found = knn_sweep(bank, numbers, torch.tensor([[1.0, 0.0]]), torch.tensor([truth]), (3,), (0.01,))
        assert found == [
            KnnScore("cosine", 3, 0.01, first, five),
            KnnScore("euclidean", 3, None, first, five),
        ], truth
        every = knn_sweep(bank, numbers, torch.tensor([[1.0, 0.0]]), torch.tensor([truth]), (50,), (0.01,))
        # Of six classes 3 is sixth: its weight by cosine underflows as do those of 1 and 2, which come before it.
        assert [score.top5 for score in every] == [float(truth in (4, 7, 9, 1, 2))] * 2, truth


def test_top5_of_at_most_five_classes_is_one() -> None:
    bank, numbers, features, truth = random_data(40, 30, 5)
    few = knn_sweep(bank, numbers, features, truth, (1,), (0.1,))
    assert [score.top5 for score in few] == [1.0, 1.0] and max(score.top1 for score in few) < 1
    numbers[0] = 5  # a sixth class
    assert [score.top5 for score in knn_sweep(bank, numbers, features, truth, (1,), (0.1,))] != [1.0, 1.0]


def test_copies_of_a_query_are_at_distance_zero_in_single_precision() -> None:
    queries = 100 + torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    shifted = queries[:, None].repeat(1, 4, 1)
    shifted[:, range(4), range(4)] += 0.01
    bank = torch.cat([shifted.flatten(0, 1), queries])
    numbers = torch.cat([torch.arange(32) % 4, torch.full((8,), 5)])
    # The copy's weight is 1e5; the four others have 100 each. By |x|^2 - 2xy + |y|^2 all five are at about 0.3.
    scores = knn_sweep(bank, numbers, queries, numbers[32:], (1, 5), (1.0,))[-2:]
    assert [(score.distance, score.neighbors, score.top1) for score in scores] == [
        ("euclidean", 1, 1.0),
        ("euclidean", 5, 1.0),
    ]


@pytest.mark.slow
def test_memory_of_the_sweep_does_not_grow_with_images_or_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "VALUES", 2**16)
    for images, classes in ((600, 10_000), (6000, 100)):  # more than 2**16 votes, or similarities, for 60 queries
        data = random_data(images, 60, classes)
        with LargestTensor() as largest:
            knn_sweep(*data)  # 200 neighbors at 8 temperatures: more than 2**16 weights for 60 queries
        assert 0 < largest.elements <= 2**16


def test_data_that_cannot_be_swept_are_refused() -> None:
    bank, numbers, features, truth = random_data(20, 10, 6)
    holed = features.clone()
    holed[3, 2] = math.nan
    for data, message in (
        ((bank[:0], numbers[:0], features, truth), r"bank of k-NN: features of shape \[0, 8\]"),
        ((bank, numbers[:5], features, truth), r"bank of k-NN: .* with labels of shape \[5\]"),
        ((bank, numbers, features, truth[:, None]), r"queries of k-NN: .* with labels of shape \[10, 1\]"),
        ((bank, numbers, features[:, :7], truth), "8 features in the bank, 7 in the queries"),
        ((bank, numbers, holed, truth), "queries of k-NN: features are not finite"),
    ):
        with pytest.raises(EvaluationError, match=message):
            knn_sweep(*data)
    for neighbors, temperatures, message in (
        ((), (1.0,), "neighbors = "),
        ((3, 0), (1.0,), r"neighbors = \[3, 0\]; .* each >= 1"),
        ((3,), (), "temperatures = "),
        ((3,), (0.1, 0.0), r"temperatures = \[0.1, 0.0\]; .* > 0"),
        ((3,), (math.inf,), "temperatures = "),
    ):
        with pytest.raises(EvaluationError, match=message):
            knn_sweep(bank, numbers, features, truth, neighbors, temperatures)

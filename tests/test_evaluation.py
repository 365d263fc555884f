"""k-NN against pinned numbers and a loop, and its memory."""

import pytest
import torch
from largest_tensor import LargestTensor
from naive import golden, naive_votes

from adios_ray.evaluation import knn
from adios_ray.evaluation.knn import knn_label_shares, knn_votes, macro_f1


@pytest.mark.parametrize(
    ("key", "neighbors", "temperature"),
    [("k1_cosine_T0.07", 1, 0.07), ("k20_cosine_T0.07", 20, 0.07), ("k20_cosine_T1.0", 20, 1.0)],
)
def test_knn_agrees_with_the_published_implementation(key: str, neighbors: int, temperature: float) -> None:
    values = golden("knn.npz")
    bank, queries = ((values[f"{part}_features"], values[f"{part}_labels"]) for part in ("train", "test"))
    correct = knn_votes(*bank, *queries, neighbors, temperature).correct
    assert 100 * float(correct.double().mean()) == pytest.approx(float(values[f"acc1_{key}"]), abs=1e-4)


@pytest.mark.parametrize("elements", [knn.VALUES, 128])
def test_fitness_and_f1_equal_a_loop_in_parts_of_any_size(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "VALUES", elements)
    torch.manual_seed(0)
    bank, queries, classes = torch.randn(90, 4), torch.randn(23, 4), 5
    numbers, truth = torch.randint(classes, (90,)), torch.randint(classes, (23,))
    votes = naive_votes(bank, torch.nn.functional.one_hot(numbers), queries, 7, 0.2)
    named = [max(range(classes), key=row.__getitem__) for row in votes]
    expected = sum(name == true for name, true in zip(named, truth.tolist(), strict=True)) / 23
    correct = knn_votes(bank, numbers, queries, truth, 7, 0.2).correct
    assert float(correct.double().mean()) == pytest.approx(expected, abs=1e-9)

    several, present = (torch.rand(90, classes) > 0.5).byte(), (torch.rand(23, classes) > 0.5).byte()
    chosen = torch.tensor(naive_votes(bank, several, queries, 7, 0.2)) > 0.5
    scores = []
    for said, true in zip(chosen.T.tolist(), present.T.tolist(), strict=True):
        hits = sum(yes and bool(is_so) for yes, is_so in zip(said, true, strict=True))
        scores.append(2 * hits / (sum(said) + sum(true)))
    predicted = knn_label_shares(bank, several, queries, 7, 0.2) > 0.5
    assert macro_f1(predicted, present > 0) == pytest.approx(sum(scores) / classes, abs=1e-6)


def test_fewer_neighbors_than_asked_for_all_vote_and_the_lowest_class_wins_a_tie() -> None:
    bank, query = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-2.0, 0.0]]), torch.tensor([[3.0, 0.0]])
    for first, second, winner in ((7, 4, 4), (4, 7, 4), (2, 2, 2)):
        labels = torch.tensor([first, second, 0])
        for truth in range(8):
            correct = knn_votes(bank, labels, query, torch.tensor([truth]), 20, 0.5).correct
            assert correct.tolist() == [truth == winner], (first, second, truth)


def test_memory_does_not_grow_with_images_or_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "VALUES", 2**16)
    generator = torch.Generator().manual_seed(0)
    for images, classes in ((600, 10_000), (6000, 100)):  # more than 2**16 votes, or similarities, for 60 queries
        bank, queries = (torch.randn(n, 8, generator=generator) for n in (images, 60))
        numbers, truth = (torch.randint(classes, (n,), generator=generator) for n in (images, 60))
        with LargestTensor() as single:
            knn_votes(bank, numbers, queries, truth, 20, 0.07)
        assert 0 < single.elements <= 2**16
    labels = torch.randint(2, (6000, 400), generator=generator).byte()
    with LargestTensor() as multi:
        knn_label_shares(bank, labels, queries, 20, 0.07)
    assert 0 < multi.elements <= 2**16

"""k-NN against pinned numbers and a loop."""

import math

import pytest
import torch
from test_masking import golden

from adios_ray.evaluation.knn import accuracy, knn_votes, macro_f1


@pytest.mark.parametrize(
    ("key", "neighbours", "temperature"),
    [("k1_cosine_T0.07", 1, 0.07), ("k20_cosine_T0.07", 20, 0.07), ("k20_cosine_T1.0", 20, 1.0)],
)
def test_knn_agrees_with_the_published_implementation(key: str, neighbours: int, temperature: float) -> None:
    values = golden("knn.npz")
    one_hot = torch.nn.functional.one_hot(values["train_labels"])
    votes = knn_votes(values["train_features"], one_hot, values["test_features"], neighbours, temperature)
    assert 100 * accuracy(votes, values["test_labels"]) == pytest.approx(float(values[f"acc1_{key}"]), abs=1e-4)


def test_votes_equal_a_loop() -> None:
    torch.manual_seed(0)
    bank, queries = torch.randn(12, 4), torch.randn(3, 4)
    labels = (torch.rand(12, 5) > 0.6).long()
    votes = knn_votes(bank, labels, queries, neighbours=4, temperature=0.2)
    for query, row in zip(queries, votes, strict=True):
        cosine = [float(query @ b / (query.norm() * b.norm())) for b in bank]
        nearest = sorted(range(12), key=lambda i: -cosine[i])[:4]
        weights = [math.exp(cosine[i] / 0.2) for i in nearest]
        for label in range(5):
            share = sum(w for w, i in zip(weights, nearest, strict=True) if labels[i, label]) / sum(weights)
            assert float(row[label]) == pytest.approx(share, abs=1e-5)


def test_macro_f1_has_its_closed_form() -> None:
    votes = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.2, 0.7]])
    labels = torch.tensor([[1, 0], [0, 1], [1, 1]])
    first = 2 * 1 / (2 * 1 + 1 + 1)
    assert macro_f1(votes, labels) == pytest.approx((first + 1.0) / 2, abs=1e-6)

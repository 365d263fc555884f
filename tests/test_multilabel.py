"""The multi-label probe against its objective minimized by scipy, and F1 against counts; what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from adios_ray.errors import EvaluationError
from adios_ray.evaluation import multilabel
from adios_ray.evaluation.multilabel import multilabel_probe


def random_data(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features of unequal scales, and four noisy labels of decreasing frequency; the rules do not depend on it."""
    generator = torch.Generator().manual_seed(seed)
    rules = torch.randn(6, 4, generator=torch.Generator().manual_seed(9))
    x = torch.randn(images, 6, generator=generator)
    noise = 2 * torch.randn(images, 4, generator=generator)
    labels = (x @ rules + noise > torch.tensor([-2.0, 0.0, 2.0, 4.0])).byte()
    return x * torch.logspace(-2, 2, 6) + 5, labels


def naive_f1(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Count F1 scores decision by decision: micro, macro, weighted by the number of positives."""
    counts = [[0, 0, 0] for _ in range(truth.shape[1])]
    for true_row, said_row in zip(truth.tolist(), predicted.tolist(), strict=True):
        for count, true, said in zip(counts, true_row, said_row, strict=True):
            for place, value in enumerate((true and said, true, said)):
                count[place] += bool(value)
    scores = [2 * hits / (true + said) if true + said else 0.0 for hits, true, said in counts]
    hits, true, said = (sum(column) for column in zip(*counts, strict=True))
    weighted = sum(score * count[1] for score, count in zip(scores, counts, strict=True)) / true
    return 2 * hits / (true + said), sum(scores) / len(scores), weighted


def naive_predictions(known: np.ndarray, target: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Minimize the summed log loss plus half the squared norm of the weights, on standardized features."""
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    x, signs = (known - mean) / deviation, 2.0 * target - 1

    def objective(parameters: np.ndarray) -> float:
        """Compute the regularized loss; the intercept, which comes last, is free."""
        margins = signs * (x @ parameters[:-1] + parameters[-1])
        return float(np.logaddexp(0, -margins).sum() + (parameters[:-1] ** 2).sum() / 2)

    best = minimize(objective, np.zeros(x.shape[1] + 1)).x
    return np.asarray(((unknown - mean) / deviation) @ best[:-1] + best[-1] > 0)


def test_scores_equal_those_of_the_minimized_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilabel, "ROWS", 64)  # standardization in several parts
    (known, targets), (unknown, truth) = random_data(200, 0), random_data(400, 1)
    parts = [naive_predictions(known.double().numpy(), y, unknown.double().numpy()) for y in targets.numpy().T]
    found = multilabel_probe(known, targets, unknown, truth)
    assert found[:3] == pytest.approx(naive_f1(truth.numpy(), np.stack(parts, axis=1)), abs=1e-3)
    assert found.constant == () and len({round(score, 2) for score in found[:3]}) == 3


def test_labels_without_both_kinds_of_examples_are_predicted_constant_and_named() -> None:
    (known, targets), (unknown, truth) = random_data(200, 0), random_data(100, 1)
    plain = multilabel_probe(known, targets, unknown, truth)
    targets[:, 0], targets[:, 3] = 1, 0
    found = multilabel_probe(known, targets, unknown, truth)
    assert found.constant == (0, 3)
    present = int(truth[:, 0].sum())
    middle = multilabel_probe(known, targets[:, 1:3], unknown, truth[:, 1:3])
    macro = (2 * present / (present + 100) + 2 * middle.f1_macro + 0) / 4
    assert found.f1_macro == pytest.approx(macro, abs=1e-9) and found.f1_macro != plain.f1_macro
    none = multilabel_probe(known, targets * 0, unknown, truth)
    assert none[:4] == (0, 0, 0, (0, 1, 2, 3))


def test_data_that_cannot_be_probed_are_refused() -> None:
    (known, targets), (unknown, truth) = random_data(20, 0), random_data(10, 1)
    for data, message in (
        (
            (known[:0], targets[:0], unknown, truth),
            r"training images of a multi-label probe: features of shape \[0, 6\]",
        ),
        ((known, targets, unknown, truth[:, 0]), r"images to predict of .* with labels of shape \[10\]"),
        ((known, targets, unknown, truth[:4]), r"images to predict of .* with labels of shape \[4, 4\]"),
        ((known, targets[:, :1], unknown, truth[:, :1]), "1 labels; at least two are needed"),
        ((known, targets + 1, unknown, truth), "labels other than zeros and ones"),
        ((known, targets, unknown * math.inf, truth), "images to predict of .* features are not finite"),
        ((known, targets, unknown[:, :5], truth), "6 and 5 features, 4 and 4 labels"),
        ((known, targets, unknown, truth[:, :3]), "6 and 6 features, 4 and 3 labels"),
    ):
        with pytest.raises(EvaluationError, match=message):
            multilabel_probe(*data)

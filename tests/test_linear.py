"""Linear evaluation against torch.optim.SGD, scikit-learn and loops; its memory; what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from largest_tensor import LargestTensor
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from adios_ray.errors import EvaluationError
from adios_ray.evaluation import linear
from adios_ray.evaluation.linear import (
    Labeled,
    Lbfgs,
    Sgd,
    evaluate_linear,
    linear_sweep,
    logistic_regression,
    train_rates,
)

SOLVERS = (Sgd(epochs=9), Lbfgs())


def clusters(images: int, classes: int, size: int = 6, seed: int = 0, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    """Draw features around the centers of classes, float64 [images, size], and labels, the same centers each time."""
    centers = torch.randn(classes, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (images - classes,), generator=generator)])
    return centers[labels] + noise * torch.randn(images, size, generator=generator, dtype=torch.float64), labels


def thrice(features: Tensor, labels: Tensor) -> tuple[Labeled, Labeled, Labeled]:
    """Make one split the training, the validation and the test split."""
    return (features, labels), (features, labels), (features, labels)


def naive_sgd(features: Tensor, labels: Tensor, rate: float, epochs: int, batch_size: int, seed: int) -> Tensor:
    """Train a layer by torch.optim.SGD, with milestones at epochs 3 and 5; return weights and bias, [C, F + 1].

    Features are [M, F], or those of each epoch, [epochs, M, F].
    """
    epoch_features = features.expand(epochs, -1, -1)
    layer = torch.nn.Linear(features.shape[-1], int(labels.max()) + 1, dtype=features.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5], gamma=0.1)
    generator = torch.Generator().manual_seed(seed)
    for own in epoch_features:
        order = torch.randperm(len(own), generator=generator)
        for first in range(0, len(own), batch_size):
            rows = order[first : first + batch_size]
            optimizer.zero_grad()
            torch.nn.CrossEntropyLoss()(layer(own[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_each_rate_equals_an_optimizer_of_its_own(classes: int, standardize: bool) -> None:
    features, labels = clusters(50, classes)
    features = 3 * features + torch.arange(6)
    rates = [0.003, 0.1, 2.0]
    sgd = Sgd(tuple(16 * rate for rate in rates), 7, 16, (3, 5), seed=4)  # for batches of 256
    found = train_rates((features, labels), sgd, standardize)
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    for number, rate in enumerate(rates):
        if standardize:
            expected = naive_sgd((features - mean) / std, labels, rate, 7, 16, 4)
            weights = expected[:, :-1] / std
            expected = torch.cat([weights, expected[:, -1:] - (weights @ mean)[:, None]], dim=1)
        else:
            expected = naive_sgd(features, labels, rate, 7, 16, 4)
        torch.testing.assert_close(found[:, number], expected, rtol=0, atol=1e-10)


def test_features_of_each_epoch_equal_an_optimizer_that_sees_them() -> None:
    features, labels = clusters(50, 5)
    views = features + torch.randn(7, 50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rates = [0.01, 0.5]
    sgd = Sgd(tuple(16 * rate for rate in rates), 7, 16, (3, 5), seed=4)
    found = train_rates((features, labels), sgd, batches=lambda epoch, order: (views[epoch, own] for own in order))
    for number, rate in enumerate(rates):
        torch.testing.assert_close(found[:, number], naive_sgd(views, labels, rate, 7, 16, 4), rtol=0, atol=1e-10)


def naive_accuracy(classifier: Tensor, features: Tensor, labels: Tensor, top: int) -> float:
    """Count images whose class is among the ``top`` highest logits, image by image."""
    right = 0
    for row, label in zip(features, labels.tolist(), strict=True):
        logits = (classifier[:, :-1] @ row + classifier[:, -1]).tolist()
        right += label in sorted(range(len(logits)), key=lambda number: -logits[number])[:top]
    return right / len(labels)


@pytest.mark.parametrize("elements", [linear.VALUES, 150])
def test_a_sweep_reports_every_rate_and_the_best_on_test(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "VALUES", elements)  # 150: each rate is trained by itself, and accuracy is in parts
    train, val, test = (clusters(n, 8, seed=seed, noise=0.7) for n, seed in ((60, 1), (90, 2), (70, 3)))
    rates, batch_size = (1e-4, 0.3, 30.0, 0.1), 16
    sgd = Sgd(rates, 6, batch_size, (3, 5), seed=5)
    sweep = linear_sweep(train, val, sgd)
    classifiers = [naive_sgd(*train, rate * batch_size / 256, 6, batch_size, 5) for rate in rates]
    expected = [naive_accuracy(classifier, *val, 1) for classifier in classifiers]
    assert [found.rate for found in sweep.rates] == list(rates)
    for found, classifier, top1 in zip(sweep.rates, classifiers, expected, strict=True):
        top5 = naive_accuracy(classifier, *val, 5)
        assert found.accuracy is not None
        assert found.accuracy[:2] == pytest.approx((top1, top5), abs=1e-12)
        errors = [math.sqrt(share * (1 - share) / 90) for share in (top1, top5)]
        assert found.accuracy[2:] == pytest.approx(errors, abs=1e-12)
    assert len(set(expected)) == 4  # else the choice of the best rate would not be tested
    best = expected.index(max(expected))
    assert (sweep.rate, sweep.accuracy) == sweep.rates[best]
    torch.testing.assert_close(sweep.classifier, classifiers[best], rtol=0, atol=1e-10)

    result = evaluate_linear(train, val, test, sgd)
    assert (result.rate, result.val) == sweep.rates[best]
    assert result.test[:2] == pytest.approx([naive_accuracy(classifiers[best], *test, top) for top in (1, 5)])


@pytest.mark.parametrize("elements", [linear.VALUES, 150])
def test_a_rate_at_which_the_training_diverges_is_never_chosen(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "VALUES", elements)
    features, labels = clusters(60, 8)
    split = 1e4 * features.float(), labels
    sweep = linear_sweep(split, split, Sgd((1e38, 0.1, 1e37), epochs=5, batch_size=16))
    (alone,) = linear_sweep(split, split, Sgd((0.1,), epochs=5, batch_size=16)).rates
    assert sweep.rates == ((1e38, None), alone, (1e37, None))
    assert (sweep.rate, sweep.accuracy) == alone and sweep.classifier.isfinite().all()
    with pytest.raises(EvaluationError, match=r"diverged at all rates \(1e\+38, 1e\+37\); add smaller ones"):
        linear_sweep(split, split, Sgd((1e38, 1e37), epochs=5, batch_size=16))


@pytest.mark.parametrize("scale", [1e10, 1e20])
def test_a_logistic_regression_that_diverges_has_no_accuracy(scale: float) -> None:
    features, labels = clusters(60, 5)
    with pytest.raises(EvaluationError, match="logistic regression diverged: the features are too large; standardize"):
        logistic_regression(scale * features.float(), labels)


def test_equal_and_undefined_logits_are_wrong() -> None:
    features, labels = torch.ones(7, 2), torch.arange(7)
    for value in (0.0, math.nan):
        (found,) = linear._accuracies(torch.full((7, 1, 3), value), features, labels)
        assert found == (0, 0, 0, 0)


@pytest.mark.parametrize("elements", [linear.VALUES, 500])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.slow
def test_logistic_regression_equals_scikit_learn(classes: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "VALUES", elements)
    monkeypatch.setattr(linear, "HISTORY_VALUES", elements)
    (features, labels), (others, truth) = (clusters(n, classes, seed=seed) for n, seed in ((300, 1), (1000, 2)))
    penalty = 3e-3
    inverse = (2 if classes == 2 else 1) / (penalty * len(features))
    model = LogisticRegression(C=inverse, tol=1e-8, max_iter=1000).fit(features.numpy(), labels.numpy())
    expected = model.score(others.numpy(), truth.numpy())
    for dtype in (torch.float32, torch.float64):
        split = others.to(dtype), truth
        found = evaluate_linear((features.to(dtype), labels), split, split, Lbfgs(penalty))
        assert found.test.top1 == pytest.approx(expected, abs=1e-3)
        assert found.rate is None and found.val == found.test
    classifier = logistic_regression(features, labels, penalty)
    logits = functional.pad(others, (0, 1), value=1.0) @ classifier.T
    probabilities = torch.from_numpy(model.predict_proba(others.numpy()))
    torch.testing.assert_close(logits.softmax(dim=1), probabilities, rtol=0, atol=1e-4)


def test_standardized_logistic_regression_does_not_depend_on_units() -> None:
    features, labels = clusters(80, 3)
    scale, shift = torch.tensor([1.0, 100, 0.01, 5, 1, 1]), torch.tensor([0.0, 3, 0, -50, 0, 1])
    found, expected = (logistic_regression(x, labels, 0.01, True) for x in (features * scale + shift, features))
    weights = expected[:, :-1] / scale
    torch.testing.assert_close(found[:, :-1], weights, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found[:, -1], expected[:, -1] - weights @ shift.double(), rtol=1e-5, atol=1e-5)


def test_a_constant_feature_can_be_standardized() -> None:
    features, labels = clusters(40, 3)
    features[:, 2] = 7
    rest = features[:, [0, 1, 3, 4, 5]]
    for solver in SOLVERS:
        found = evaluate_linear(*thrice(features, labels), solver, standardize=True)
        assert found == evaluate_linear(*thrice(rest, labels), solver, standardize=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_integers_of_any_width_and_classes_without_images(dtype: torch.dtype) -> None:
    features, labels = clusters(60, 3)
    labels = labels * 60  # there are more classes without images than images
    for solver in SOLVERS:
        wide = evaluate_linear(*thrice(features, labels), solver)
        assert evaluate_linear(*thrice(features, labels.to(dtype)), solver) == wide
        assert wide.test.top1 > 0.5


def test_half_precision_is_computed_in_single_precision() -> None:
    features, labels = clusters(60, 3)
    half = features.half()
    found = evaluate_linear(*thrice(half, labels), Sgd(epochs=5))
    assert found == evaluate_linear(*thrice(half.float(), labels), Sgd(epochs=5))


@pytest.mark.slow
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "VALUES", 2**16)
    for images, classes in ((9000, 10), (1000, 1000)):  # more than 2**16 features, logits and weights of all rates
        features, labels = clusters(images, classes, 9)
        with LargestTensor() as sweep:
            linear_sweep((features, labels), (features, labels), Sgd((0.1,) * 9, epochs=1, batch_size=60))
        with LargestTensor() as regression:
            logistic_regression(features, labels, penalty=1.0)
        assert 0 < sweep.elements <= 2**16 and 0 < regression.elements <= 2**16


@pytest.mark.parametrize(("values", "pairs"), [(2**28, 100), (2**9, 12), (1, 5)])
def test_the_history_of_lbfgs_is_bounded(values: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Recording(torch.optim.LBFGS):
        def __init__(self, weights: list[Tensor], **settings: Any) -> None:
            asked.append(settings["history_size"])
            super().__init__(weights, **settings)

    monkeypatch.setattr(linear, "HISTORY_VALUES", values)
    monkeypatch.setattr(torch.optim, "LBFGS", Recording)
    classifier = logistic_regression(*clusters(60, 3))
    assert asked == [pairs] and classifier.numel() == 21  # two tensors a pair


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", lambda x, y: (x, y * 0 + 1), "train: all 20 images are of one class; .* needs at least two"),
        ("train", lambda x, y: (x[:0], y[:0]), r"train: .* shape \[0, 6\]; .* needs floating-point features"),
        ("val", lambda x, y: (x[:, :5], y), r"val: .* shape \[20, 5\]; .* needs floating-point features \[images, 6\]"),
        ("test", lambda x, y: (x.long(), y), "test: torch.int64 features"),
        ("val", lambda x, y: (x / 0, y), "val: features are not finite"),
        ("test", lambda x, y: (x, y[1:]), r"test: .* labels of shape \[19\] of 20 images; .* one integer for each"),
        ("train", lambda x, y: (x, y.double()), "train: torch.float64 labels"),
        ("train", lambda x, y: (x, functional.one_hot(y)), r"train: .* labels of shape \[20, 3\]"),
        ("train", lambda x, y: (x, y - 1), "train: labels from -1 to 1; .* needs labels from 0$"),
        ("val", lambda x, y: (x, y + 1), "val: labels from 1 to 3; .* from 0 to 2, the highest of the training images"),
    ],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_splits_that_cannot_be_used_are_refused(
    solver: Sgd | Lbfgs, split: str, change: Callable[[Tensor, Tensor], Labeled], message: str
) -> None:
    splits = {name: clusters(20, 3) for name in ("train", "val", "test")}
    splits[split] = change(*splits[split])
    with pytest.raises(EvaluationError, match=message):
        evaluate_linear(splits["train"], splits["val"], splits["test"], solver)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rates": ()}, "at least one rate"),
        ({"rates": (0.1, 0.0)}, r"rates \[0.1, 0.0\], .* above 0"),
        ({"rates": (0.1, math.nan)}, r"rates \[0.1, nan\], .* finite rates"),
        ({"rates": (math.inf,)}, r"rates \[inf\], .* finite rates"),
        ({"epochs": 0}, "0 epochs"),
        ({"batch_size": 0}, "batches of 0"),
    ],
)
def test_settings_of_sgd_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        Sgd(**setting)


def test_a_penalty_out_of_range_is_refused() -> None:
    with pytest.raises(EvaluationError, match="penalty 0; .* needs one above 0"):
        evaluate_linear(*thrice(*clusters(20, 3)), Lbfgs(0.0))


def test_the_rate_decays_after_60_and_80_percent_of_the_epochs() -> None:
    assert Sgd().decays == (60, 80) and Sgd(epochs=7).decays == (4, 6) and Sgd(milestones=()).decays == ()

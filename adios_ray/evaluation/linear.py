"""Linear evaluation of frozen features by the paper's protocol, or by logistic regression (paper, Section 3.1).

The protocol (Zhou et al. 2021): SGD with momentum and without weight decay for 100 epochs, at several learning rates,
each times 0.1 after epochs 60 and 80. The rate with the highest top-1 accuracy on the validation split is reported on
the test split. The classifiers of all rates see the same batches, so that they are trained as one: one matrix product
for the logits of all rates and one for their gradients, which have a closed form.

A classifier is a matrix [C, F + 1] whose last column is the bias. Shapes: M images, B of them in a batch, F features,
C classes, R rates. Classes are the first dimension of everything, since a softmax over a short last one takes 20 times
as long on a CPU.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import LINEAR_RATES
from adios_ray.devices import copied_to
from adios_ray.errors import EvaluationError
from adios_ray.evaluation.result import Score
from adios_ray.measures import share_error

DECAY = 0.1
"""Factor of the learning rate at each milestone."""
PENALTY = 1e-4
"""Default factor of half the squared weights in logistic regression."""
SMALLEST_LOGARITHM = -60.0
"""Of a probability relative to the largest: 1e-26 changes no sum, and denormal numbers double the time on a CPU."""
ITERATIONS = 1000
"""Most iterations of L-BFGS."""
GRADIENT_TOLERANCE = 1e-6
"""Largest gradient at which L-BFGS has converged."""
HISTORY = 100
"""Most pairs of past steps and gradients that L-BFGS keeps."""
SHORTEST_HISTORY = 5
VALUES = 2**25
"""Most elements of any tensor that is allocated (128 MiB in single precision), if one classifier and a batch fit."""
HISTORY_VALUES = 2**28
"""Most elements of the history of L-BFGS (1 GiB in single precision), if the shortest one fits."""


class Accuracy(NamedTuple):
    """Shares of images whose class has the highest logit, or one of the five highest; each 0 to 1.

    An equal logit counts as higher, so that a classifier that tells nothing apart is never right. ``top5`` is 1 where
    there are at most five classes.

    Attributes:
        top1: Top-1 accuracy.
        top5: Top-5 accuracy.
        top1_error: Standard error of ``top1`` over images, sqrt(p (1 - p) / M).
        top5_error: Standard error of ``top5``.
    """

    top1: float
    top5: float
    top1_error: float
    top5_error: float


class RateAccuracy(NamedTuple):
    """A learning rate for batches of 256, and the accuracy on the validation split with it; None where it diverged."""

    rate: float
    accuracy: Accuracy | None


class Sweep(NamedTuple):
    """The result of a sweep over learning rates.

    Attributes:
        rates: All rates, in the order given.
        rate: The rate with the highest top-1 accuracy, the first of equal ones.
        accuracy: Its accuracy on the validation split.
        classifier: Its classifier, [C, F + 1].
    """

    rates: tuple[RateAccuracy, ...]
    rate: float
    accuracy: Accuracy
    classifier: Tensor


class LinearEvaluation(NamedTuple):
    """The result of a linear evaluation.

    Attributes:
        test: Accuracy on the test split.
        val: Accuracy on the validation split.
        rate: The rate that was best there, for batches of 256; None for L-BFGS, which has none.
        rates: All rates, with their accuracies on the validation split.
    """

    test: Accuracy
    val: Accuracy
    rate: float | None
    rates: tuple[RateAccuracy, ...] = ()


Labeled = tuple[Tensor, Tensor]
"""Features [M, F] of the images of a split, and their classes, integers [M], 0 to C - 1."""
Batches = Callable[[int, Sequence[Tensor]], Iterable[Tensor]]
"""Features [B, F] of each batch of an epoch, given the epoch and the indices of each batch, int64 [B] on the CPU.

Batches are given all at once, so that their images can be read ahead.
"""


@dataclass(frozen=True)
class Sgd:
    """Settings of SGD with momentum; by default those of the protocol.

    Attributes:
        rates: Learning rates > 0 for batches of 256; they are multiplied by ``batch_size`` / 256.
        epochs: >= 1.
        batch_size: >= 1; the last batch of an epoch may be smaller.
        milestones: After how many epochs the rate is multiplied by 0.1; None: after 60 % and 80 % of them.
        momentum: As in ``torch.optim.SGD``.
        seed: Of the order of the images.
    """

    rates: tuple[float, ...] = LINEAR_RATES
    epochs: int = 100
    batch_size: int = 256
    milestones: tuple[int, ...] | None = None
    momentum: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            EvaluationError: If there is no rate, one is not finite or not above 0, or there is no epoch or an empty
                batch.
        """
        usable = bool(self.rates) and all(0 < rate < math.inf for rate in self.rates)
        if not usable or self.epochs < 1 or self.batch_size < 1:
            raise EvaluationError(
                f"rates {list(self.rates)}, {self.epochs} epochs, batches of {self.batch_size}; "
                "linear evaluation needs at least one rate, finite rates above 0, one epoch and one image in a batch"
            )

    @property
    def decays(self) -> tuple[int, ...]:
        """The milestones, whether given or not."""
        default = round(0.6 * self.epochs), round(0.8 * self.epochs)
        return default if self.milestones is None else self.milestones

    @property
    def configuration(self) -> dict[str, Any]:
        """The settings that a result names; the seed is common to all evaluations."""
        return {
            "rates": self.rates,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "milestones": self.decays,
            "momentum": self.momentum,
        }


@dataclass(frozen=True)
class Lbfgs:
    """Settings of logistic regression by L-BFGS, which chooses nothing by the validation split.

    Attributes:
        penalty: See ``logistic_regression``.
    """

    penalty: float = PENALTY


PROTOCOL = Sgd()
"""The protocol of the paper."""


def evaluate_linear(
    train: Labeled,
    val: Labeled,
    test: Labeled,
    solver: Sgd | Lbfgs = PROTOCOL,
    standardize: bool = False,
    device: torch.device | None = None,
    batches: Batches | None = None,
) -> LinearEvaluation:
    """Train a linear classifier, and report its accuracy on the test split.

    Args:
        train: The training images.
        val: The images by which the rate is chosen.
        test: The images of the result.
        solver: The protocol (see ``linear_sweep``), or logistic regression.
        standardize: Normalize by mean and standard deviation of the training features; the authors do not.
        device: Where to compute; None: where the training features are.
        batches: Of ``Sgd``; see ``train_rates``.

    Raises:
        EvaluationError: If features, labels or a setting cannot be used.
    """
    device = device or train[0].device
    classes = _check_training(*train)
    for name, split in (("val", val), ("test", test)):
        check_split(name, *split, train[0].shape[1], classes)
    if isinstance(solver, Sgd):
        sweep = linear_sweep(train, val, solver, standardize, device, batches)
        return LinearEvaluation(accuracy(sweep.classifier, *test), sweep.accuracy, sweep.rate, sweep.rates)
    classifier = logistic_regression(*train, solver.penalty, standardize, device)
    return LinearEvaluation(accuracy(classifier, *test), accuracy(classifier, *val), None)


def rates_at_once(classes: int, size: int, batch_size: int) -> int:
    """Return how many classifiers for features of a size train together, by the memory for their gradients."""
    return max(VALUES // (classes * max(size + 1, batch_size)), 1)


def linear_sweep(
    train: Labeled,
    val: Labeled,
    sgd: Sgd = PROTOCOL,
    standardize: bool = False,
    device: torch.device | None = None,
    batches: Batches | None = None,
) -> Sweep:
    """Train a linear classifier at each learning rate by SGD, and compare them on the validation split.

    Args:
        train: The training images.
        val: The validation images.
        sgd: Rates and settings.
        standardize: Normalize by mean and standard deviation of the training features; the authors do not.
        device: Where to compute; None: where the training features are.
        batches: See ``train_rates``. Where the classifiers of all rates do not fit together, groups of rates take them
            in turn.

    Raises:
        EvaluationError: If features or labels cannot be used, or the training diverged at all rates.
    """
    classes, size = _check_training(*train), train[0].shape[1]
    check_split("val", *val, size, classes)
    # Rates are independent of each other: where their classifiers do not fit together, groups are trained in turn.
    group = rates_at_once(classes, size, sgd.batch_size)
    found: list[RateAccuracy] = []
    best: tuple[float, Accuracy, Tensor] | None = None
    for first in range(0, len(sgd.rates), group):
        some = replace(sgd, rates=sgd.rates[first : first + group])
        classifiers = train_rates(train, some, standardize, device, batches)
        accuracies, finite = _accuracies(classifiers, *val), classifiers.isfinite().all(dim=2).all(dim=0).tolist()
        for number, (rate, own) in enumerate(zip(some.rates, accuracies, strict=True)):
            found.append(RateAccuracy(rate, own if finite[number] else None))
            if finite[number] and (best is None or own.top1 > best[1].top1):
                best = rate, own, classifiers[:, number].clone()  # a view would keep those of all rates
    if best is None:
        rates = ", ".join(f"{rate:g}" for rate in sgd.rates)
        raise EvaluationError(f"linear evaluation: the training diverged at all rates ({rates}); add smaller ones")
    return Sweep(tuple(found), *best)


@torch.no_grad()
def train_rates(
    train: Labeled,
    sgd: Sgd,
    standardize: bool = False,
    device: torch.device | None = None,
    batches: Batches | None = None,
) -> Tensor:
    """Train one classifier for each of R learning rates by SGD on the cross entropy, from zero.

    Each epoch takes the images in the order of the next ``torch.randperm`` of a CPU generator with the seed.

    Args:
        train: The training images.
        sgd: Rates and settings.
        standardize: Train on features normalized by their mean and standard deviation.
        device: Where to compute; None: where the features are.
        batches: What to train on in place of the features, such as features of other augmented views in each epoch.

    Returns:
        Classifiers for features that are not normalized, [C, R, F + 1], at least in single precision.
    """
    features, count = train[0], len(sgd.rates)
    device = device or features.device
    inputs = _Inputs(features, standardize, device)
    labels = train[1].to(device, torch.int64)
    classes = int(labels.max()) + 1
    weights = torch.zeros(classes * count, features.shape[1] + 1, dtype=inputs.dtype, device=device)
    # The learning rate is part of the velocity, v = momentum v - rate gradient: this saves a pass over all weights.
    velocity = torch.zeros_like(weights)
    rates = [rate * sgd.batch_size / 256 for rate in sgd.rates]
    steps = -torch.tensor(rates, dtype=inputs.dtype, device=device)[:, None]
    generator = torch.Generator().manual_seed(sgd.seed)
    for epoch in range(sgd.epochs):
        if epoch in sgd.decays:
            steps *= DECAY
            velocity *= DECAY
        order = torch.randperm(len(features), generator=generator)
        if batches is None:
            given: Iterable[Tensor] = (features[own] for own in copied_to(order, features.device).split(sgd.batch_size))
        else:
            given = batches(epoch, order.split(sgd.batch_size))
        for rows, truth in zip(given, labels[copied_to(order, device)].split(sgd.batch_size), strict=True):
            x = inputs.rows(copied_to(rows, device))
            logits = (weights @ x.T).view(classes, count, len(x))
            gradient = _gradient(logits, truth, steps / len(x))
            velocity.addmm_(gradient.flatten(0, 1), x, beta=sgd.momentum)
            weights += velocity
    return inputs.unscaled(weights).view(classes, count, -1)


@torch.no_grad()
def logistic_regression(
    features: Tensor,
    labels: Tensor,
    penalty: float = PENALTY,
    standardize: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """Minimize the mean cross entropy + penalty / 2 * the sum of squared weights, without the bias, by L-BFGS.

    The same as ``sklearn.linear_model.LogisticRegression(C=1 / (penalty * M))`` for three classes or more. For two,
    scikit-learn has one vector of weights, the difference of these two: there, C is 2 / (penalty * M).

    Args:
        features: [M, F].
        labels: Integers [M], 0 to C - 1.
        penalty: > 0.
        standardize: Normalize by mean and standard deviation of the features; the penalty is on the weights of these.
        device: Where to compute; None: where the features are.

    Returns:
        A classifier for features that are not normalized, [C, F + 1], at least in single precision.

    Raises:
        EvaluationError: If features, labels or the penalty cannot be used, or features are so large that it diverges.
    """
    classes = _check_training(features, labels)
    if penalty <= 0:
        raise EvaluationError(f"penalty {penalty:g}; logistic regression needs one above 0")
    device = device or features.device
    inputs = _Inputs(features, standardize, device)
    labels = labels.to(device, torch.int64)
    weights = torch.zeros(classes, features.shape[1] + 1, dtype=inputs.dtype, device=device)
    share = weights.new_full((1, 1), 1 / len(features))
    block = max(VALUES // max(weights.shape), 1)

    def loss_and_gradient() -> float:
        loss = penalty / 2 * float(weights[:, :-1].square().sum())
        gradient = penalty * weights
        gradient[:, -1] = 0
        for part, truth in zip(features.split(block), labels.split(block), strict=True):
            x = inputs.rows(part)
            logits = weights @ x.T
            loss += float((logits.logsumexp(dim=0) - logits.gather(0, truth[None])).sum()) / len(features)
            gradient.addmm_(_gradient(logits[:, None], truth, share).flatten(0, 1), x)
        weights.grad = gradient
        return loss

    # Of 10,000 classes and 2,048 features, a hundred pairs would take 16 GB; a short history needs few more steps.
    history = min(max(HISTORY_VALUES // (2 * weights.numel()), SHORTEST_HISTORY), HISTORY)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=ITERATIONS,
        tolerance_grad=GRADIENT_TOLERANCE,
        history_size=history,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(loss_and_gradient)
    assert weights.grad is not None
    if not (weights.isfinite().all() and weights.grad.norm().isfinite()):
        raise EvaluationError("logistic regression diverged: the features are too large; standardize them")
    return inputs.unscaled(weights)


def accuracy(classifier: Tensor, features: Tensor, labels: Tensor) -> Accuracy:
    """Compute the accuracy of a classifier [C, F + 1] on features [M, F] with labels [M], integers 0 to C - 1."""
    return _accuracies(classifier[:, None], features, labels)[0]


def accuracy_scores(prefix: str, found: Accuracy) -> dict[str, Score]:
    """Return the scores ``top1`` and ``top5``, with a prefix."""
    return {
        f"{prefix}top1": Score(found.top1, found.top1_error),
        f"{prefix}top5": Score(found.top5, found.top5_error),
    }


def correct(classifier: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Tell which images count for ``Accuracy.top1``, bool [M] on the classifier's device; arguments as ``accuracy``."""
    return torch.cat([lower[0] == len(classifier) - 1 for lower in _lower(classifier[:, None], features, labels)])


class _Inputs:
    """Inputs of a classifier, made of features batch by batch: a converted copy of all would double the memory."""

    def __init__(self, features: Tensor, standardize: bool, device: torch.device) -> None:
        """Compute mean and standard deviation of features [M, F]; without ``standardize`` they are 0 and 1."""
        self.device = device
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        size = features.shape[1]
        self._mean = torch.zeros(size, dtype=self.dtype, device=device)
        self._std = torch.ones(size, dtype=self.dtype, device=device)
        if standardize:
            std, mean = torch.std_mean(features, dim=0, correction=0)
            self._mean += mean.to(device)
            self._std = torch.where(std > 0, std, 1).to(device, self.dtype)

    def rows(self, features: Tensor) -> Tensor:
        """Convert and normalize features [B, F], and append a one for the bias, [B, F + 1]."""
        return functional.pad((features.to(self.device, self.dtype) - self._mean) / self._std, (0, 1), value=1.0)

    def unscaled(self, weights: Tensor) -> Tensor:
        """Convert weights [K, F + 1] of normalized features to those of the features themselves."""
        scaled = weights[:, :-1] / self._std
        return torch.cat([scaled, weights[:, -1:] - (scaled @ self._mean)[:, None]], dim=1)


def _gradient(logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Compute scale * (softmax(logits) - truth), the scaled gradient of the cross entropy with respect to logits.

    Args:
        logits: [C, R, B]; overwritten by the result.
        labels: int64 [B].
        scale: [R, 1].
    """
    # By hand: in place and with the scale in the denominator it takes half the time of softmax() and a product.
    logits = logits.sub_(logits.amax(dim=0)).clamp_(min=SMALLEST_LOGARITHM)
    logits.exp_()
    logits *= scale / logits.sum(dim=0)
    shape = 1, *logits.shape[1:]
    return logits.scatter_add_(0, labels.expand(shape), (-scale).expand(shape))


def _accuracies(classifiers: Tensor, features: Tensor, labels: Tensor) -> list[Accuracy]:
    """Compute the accuracy of each of R classifiers [C, R, F + 1] on features [M, F] with labels [M]."""
    classes, count, _ = classifiers.shape
    hits = torch.zeros(2, count, dtype=torch.int64, device=classifiers.device)
    for lower in _lower(classifiers, features, labels):
        hits += torch.stack([lower >= classes - 1, lower >= classes - 5]).sum(dim=2)
    shares = [(top1 / len(labels), top5 / len(labels)) for top1, top5 in hits.T.tolist()]
    return [
        Accuracy(top1, top5, share_error(top1, len(labels)), share_error(top5, len(labels))) for top1, top5 in shares
    ]


@torch.no_grad()
def _lower(classifiers: Tensor, features: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Count the classes with a lower logit than the image's own, for blocks of B images, int64 [R, B]."""
    inputs = _Inputs(features[:0].to(classifiers.dtype), False, classifiers.device)
    classes, count, size = classifiers.shape
    block = max(VALUES // max(size, count * classes), 1)
    for part, truth in zip(features.split(block), labels.to(classifiers.device).split(block), strict=True):
        logits = (classifiers.flatten(0, 1) @ inputs.rows(part).T).view(classes, count, len(part))
        own = logits.gather(0, truth.long().expand(1, count, -1))
        # Not the number of higher logits: nan, which is not lower than any, would be right.
        yield (logits < own).sum(dim=0)


def _check_training(features: Tensor, labels: Tensor) -> int:
    """Check the training split, and return the number of classes C."""
    check_split("train", features, labels, features.shape[-1])
    if len(labels.unique()) < 2:
        raise EvaluationError(f"train: all {len(labels)} images are of one class; linear evaluation needs at least two")
    return int(labels.max()) + 1


def check_split(name: str, features: Tensor, labels: Tensor, size: int, classes: int | None = None) -> None:
    """Check a split: features [M, size] that are finite, labels [M] from 0 to classes - 1 (any number if None).

    Raises:
        EvaluationError: If they are not; names the split.
    """
    if features.ndim != 2 or not len(features) or features.shape[1] != size or not features.is_floating_point():
        raise EvaluationError(
            f"{name}: {features.dtype} features of shape {list(features.shape)}; "
            f"linear evaluation needs floating-point features [images, {size}]"
        )
    if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise EvaluationError(
            f"{name}: {labels.dtype} labels of shape {list(labels.shape)} of {len(features)} images; "
            "linear evaluation needs one integer for each image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        upper = "" if classes is None else f" to {classes - 1}, the highest of the training images"
        raise EvaluationError(f"{name}: labels from {low} to {high}; linear evaluation needs labels from 0{upper}")
    if not all(part.isfinite().all() for part in features.split(max(VALUES // size, 1))):
        raise EvaluationError(f"{name}: features are not finite; linear evaluation needs finite ones")

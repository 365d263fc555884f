"""Robustness to changed backgrounds: a probe of the original images, tested on variations (paper, Section 3.3).

The variations are those of the backgrounds challenge (Xiao et al. 2021). M is the number of images of a variation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adios_ray.config import LINEAR_RATES, seen_view
from adios_ray.data.shards import Dataset
from adios_ray.data.sources.backgrounds import ORIGINAL, VARIATIONS
from adios_ray.errors import EvaluationError
from adios_ray.evaluation.features import Features
from adios_ray.evaluation.linear import PROTOCOL, Sgd, check_split, correct, linear_sweep
from adios_ray.evaluation.requirements import check_labels, check_selection
from adios_ray.evaluation.result import GAIN, EvaluationResult, Row, Score
from adios_ray.evaluation.subject import Subject


class ProbedVariations(NamedTuple):
    """The result of a probe that was trained on original images.

    Attributes:
        rate: Its learning rate, which was best on the validation images.
        val: Top-1 accuracy on these, 0 to 1.
        correct: Which images of each variation are classified correctly, bool [M] on the CPU.
    """

    rate: float
    val: float
    correct: dict[str, Tensor]


def robustness(
    subject: Subject,
    variations: Mapping[str, tuple[Dataset, str]] | None = None,
    baseline: Subject | None = None,
    rates: Sequence[float] = LINEAR_RATES,
    epochs: int = 100,
    batch_size: int = 256,
) -> EvaluationResult:
    """Train a linear probe on the original images, and test it on variations of them.

    Args:
        subject: What to evaluate, on the data set of the original images, whose reported split is tested too.
        variations: Data set and split of each variation, by its name. None takes the splits of the data set that are
            named like a variation of the backgrounds challenge.
        baseline: Another encoder, to be compared image by image, with the same view.
        rates: Learning rates for batches of 256; see ``linear_sweep``.
        epochs: Of SGD; the rate is multiplied by 0.1 after 60 % and 80 % of them.
        batch_size: Images in a step.

    Returns:
        Top-1 accuracy of each variation as a score of its name, and the gain over the baseline as ``NAME_gain``; a row
        of details for each variation.

    Raises:
        EvaluationError: If there is no variation, one has other classes or was rendered from other pictures than the
            original, a split is missing, labels or features cannot be used, or the baseline sees other parts of them.
    """
    known = check_selection(subject, "robustness")
    if baseline is not None:
        check_baseline(subject, baseline.image_size)
    sgd = Sgd(tuple(rates), epochs, batch_size, seed=subject.seed)
    own = subject.dataset
    if variations is None:
        variations = {name: (own, name) for name in VARIATIONS if own.manifest.splits.get(name)}
    if not variations:
        raise EvaluationError(
            f"robustness: {own.location} has none of the splits {', '.join(VARIATIONS)}; name data sets of variations"
        )
    for name, (dataset, split) in variations.items():
        _check_variation(name, dataset, subject)
        check_labels(dataset, f"robustness: {name}", (split,), known=known)
    tested = {ORIGINAL: (own, subject.split), **variations}
    probed = _probe(subject, tested, sgd)
    scores = {name: share(hits) for name, hits in probed.correct.items()}
    details: list[Row] = [
        {"variation": name, "images": len(hits), "accuracy": scores[name].value, "error": scores[name].standard_error}
        for name, hits in probed.correct.items()
    ]
    configuration: dict[str, Any] = {
        **sgd.configuration,
        "selected_on": "val",
        "selected_rate": probed.rate,
        "variations": {
            name: {"data": dataset.location, "split": split, "sha256": dataset.manifest.checksum}
            for name, (dataset, split) in variations.items()
        },
    }
    if baseline is not None:
        compared = _probe(baseline, tested, sgd)
        for row, (name, hits) in zip(details, compared.correct.items(), strict=True):
            scores[f"{name}{GAIN}"] = gained = gain(probed.correct[name], hits)
            row |= {"baseline": share(hits).value, "gain": gained.value, "gain error": gained.standard_error}
        configuration["baseline"] = {
            "origin": baseline.origin,
            "sha256": baseline.weights_sha256,
            "fresh_statistics": baseline.networks.config.evaluation.fresh_statistics,
            "selected_rate": compared.rate,
        }
    return subject.result("robustness", scores, configuration, ("train", "val", subject.split), details)


def check_baseline(subject: Subject, image_size: int) -> None:
    """Check that a baseline with views of ``image_size`` pixels sees the same part of each photograph as a subject.

    Raises:
        EvaluationError: If it does not.
    """
    if subject.view == "resize-256" and subject.image_size != image_size:
        raise EvaluationError(
            f"robustness: views of {subject.image_size} pixels, and of {image_size} for the baseline, show different "
            "parts of a photograph resized to 256: take the view square"
        )


def probe_variations(
    train: Features,
    val: Features,
    variations: Mapping[str, Features],
    sgd: Sgd = PROTOCOL,
    device: torch.device | None = None,
) -> ProbedVariations:
    """Train a linear probe on original images and test it on each variation; see ``linear_sweep``.

    Args:
        train: Features and classes of the original's training images.
        val: Those of its validation images, by which the rate is chosen.
        variations: Those of the images of each variation, by its name.
        sgd: Rates and settings.
        device: Where to compute; None: where the features are.

    Raises:
        EvaluationError: If features or labels cannot be used; names the variation.
    """
    # Before the training, which would be lost if a variation did not fit.
    for name, (features, labels) in variations.items():
        check_split(name, features, labels, train.features.shape[-1], int(train.labels.max()) + 1)
    sweep = linear_sweep(train, val, sgd, device=device)
    found = {name: correct(sweep.classifier, *images).cpu() for name, images in variations.items()}
    return ProbedVariations(sweep.rate, sweep.accuracy.top1, found)


def share(correct: Tensor) -> Score:
    """Compute the share p of bool [M] that is true, with its standard error over images, sqrt(p (1 - p) / M)."""
    return _mean(correct.double())


def gain(correct: Tensor, baseline: Tensor) -> Score:
    """Compute the gain in accuracy over a baseline on the same images, with its paired standard error.

    That is the error of the mean of M differences of -1, 0 or 1: images that are easy or hard for both do not add to
    it.

    Args:
        correct: Which images are classified correctly, bool [M].
        baseline: The same of the baseline, bool [M].
    """
    return _mean(correct.double() - baseline.double())


def _check_variation(name: str, dataset: Dataset, subject: Subject) -> None:
    """Raise an EvaluationError if a data set cannot be a variation of the original, the subject's."""
    original, stored = subject.dataset, dataset.manifest.image_size
    if seen_view(subject.view, stored, subject.image_size) != subject.view:
        raise EvaluationError(
            f"robustness: {name} ({dataset.location}) has images stored at {stored} pixels, too small for the view "
            f"{subject.view}: prepare larger ones, or take the view square"
        )
    if dataset.manifest.classes != original.manifest.classes:
        raise EvaluationError(f"robustness: {name} ({dataset.location}) has other classes than {original.location}")
    # Splits of rendered sets are ranges of pictures: with another number, some that are tested were trained on.
    rendered = [[of.manifest.recipe.get(option) for option in ("num_images", "seed")] for of in (dataset, original)]
    if rendered[0] != rendered[1]:
        raise EvaluationError(
            f"robustness: {name} ({dataset.location}) does not show the pictures of {original.location}; prepare both "
            "with the same --num-images and --seed"
        )


def _mean(values: Tensor) -> Score:
    """Compute the mean of [M] and its standard error, from the uncorrected standard deviation."""
    return Score(float(values.mean()), float(values.std(correction=0)) / math.sqrt(len(values)))


def _probe(subject: Subject, tested: Mapping[str, tuple[Dataset, str]], sgd: Sgd) -> ProbedVariations:
    train, val = subject.features("train"), subject.features("val")
    features = {
        # With the view of the original, whatever the size at which a variation is stored.
        name: replace(subject, dataset=dataset, asked_view=subject.view).features(split)
        for name, (dataset, split) in tested.items()
    }
    return probe_variations(train, val, features, sgd, subject.device)

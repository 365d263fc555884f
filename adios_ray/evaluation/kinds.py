"""The kinds of evaluations of a frozen encoder: each checks the data, extracts features once, and returns a result.

Settings such as k or a learning rate are chosen on the validation split and reported on another one. Splits that are
too small for a measure are refused before features are extracted. docs/evaluation.md has the protocols and sources.
"""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from adios_ray.config import LINEAR_RATES
from adios_ray.data.augment import denormalize
from adios_ray.errors import EvaluationError
from adios_ray.evaluation import label_free
from adios_ray.evaluation.clustering import clustering_scores
from adios_ray.evaluation.extraction import CROPS_AND_FLIPS, STREAM, view_feature_batches
from adios_ray.evaluation.fitness import LABEL_FREE_GROUPS, LIDAR_IMAGES, LIDAR_VIEWS, features_of_views
from adios_ray.evaluation.jackknife import jackknife_errors
from adios_ray.evaluation.knn import (
    NEIGHBORS,
    TEMPERATURES,
    KnnScore,
    check_settings,
    knn_label_shares,
    knn_sweep,
    macro_f1,
)
from adios_ray.evaluation.linear import Batches, Lbfgs, Sgd, accuracy_scores, evaluate_linear, rates_at_once
from adios_ray.evaluation.multilabel import multilabel_probe
from adios_ray.evaluation.requirements import check_labels, check_masks_are_learned, check_object_masks, why_not_val
from adios_ray.evaluation.result import LEFT_OUT, EvaluationResult, Row, Score
from adios_ray.evaluation.segmentation import Masks, color_kmeans, random_partition, segment
from adios_ray.evaluation.subject import Subject
from adios_ray.measures import share_error


def knn(subject: Subject, neighbors: Sequence[int] = (), temperatures: Sequence[float] = ()) -> EvaluationResult:
    """Classify by the nearest training images: at the checkpoint's own k and temperature, and at the best of a sweep.

    Top-1 and top-5 accuracy are those of the distance, k and temperature that have the highest on val. Multi-label data
    are scored by the macro F1 at the checkpoint's setting alone.

    Args:
        subject: What to evaluate.
        neighbors: Numbers of neighbors k of the sweep, each >= 1; empty: those of the paper for which train has enough
            images.
        temperatures: Of the sweep, each > 0; empty: those of the paper.

    Raises:
        EvaluationError: If the data have no classes, train has fewer images than a given k, or lacks a class of the
            others, a setting is out of range, or settings are given for multi-label data.
    """
    own, manifest = subject.networks.config.evaluation, subject.dataset.manifest
    # Of several labels an image nothing is chosen on val.
    val = ("val",) if subject.has_val and not manifest.multi_label else ()
    splits = ("train", *val, subject.split)
    check_labels(subject.dataset, "knn", splits, manifest.multi_label)
    images = len(subject.dataset.split("train"))
    if images < (most := max(neighbors, default=0)):
        raise EvaluationError(f"knn: train has {images} images; {most} neighbors need at least {most}")
    voting = min(own.neighbors, images)  # as in training, where all images vote if there are fewer
    if manifest.multi_label and (neighbors or temperatures):
        raise EvaluationError("knn: multi-label data have no sweep; leave neighbors and temperatures out")
    configuration: dict[str, Any] = {"neighbors": voting, "temperature": own.temperature}
    counts = neighbors or [count for count in NEIGHBORS if count <= images]
    check_settings(counts, temperatures or TEMPERATURES)
    # Without repetitions, in this order: among equally good settings, the first one is chosen.
    swept_counts = tuple(dict.fromkeys((*counts, voting)))
    swept_temperatures = tuple(dict.fromkeys((*(temperatures or TEMPERATURES), own.temperature)))
    bank = _on_device(subject, "train")
    if manifest.multi_label:
        features, labels = _on_device(subject, subject.split)
        predicted, present = knn_label_shares(*bank, features, voting, own.temperature) > 0.5, labels > 0
        (error,) = jackknife_errors(lambda kept: [macro_f1(predicted[kept], present[kept])], len(present))
        f1 = Score(macro_f1(predicted, present), error)
        return subject.result("knn", {"knn_macro_f1": f1}, configuration, splits)
    sweeps = {
        split: knn_sweep(*bank, *_on_device(subject, split), swept_counts, swept_temperatures) for split in splits[1:]
    }
    configuration |= {"swept_neighbors": swept_counts, "swept_temperatures": swept_temperatures, "selected_on": None}
    reported, queries = {score[:3]: score for score in sweeps[subject.split]}, len(subject.held_out)
    scores = {"knn_accuracy": _share(reported["cosine", voting, own.temperature].top1, queries)}
    if subject.has_val:
        configuration["selected_on"] = "val"
        for measure in ("top1", "top5"):
            setting = max(sweeps["val"], key=operator.attrgetter(measure))[:3]
            scores[measure] = _share(getattr(reported[setting], measure), queries)
            configuration[f"selected_for_{measure}"] = dict(zip(KnnScore._fields, setting, strict=False))
    details = []
    for settings in zip(*sweeps.values(), strict=True):
        distance, count, temperature = settings[0][:3]
        row: Row = {"distance": distance, "neighbors": count, "temperature": temperature}
        for split, score in zip(sweeps, settings, strict=True):
            row |= {f"{split} top1": score.top1, f"{split} top5": score.top5}
        details.append(row)
    return subject.result("knn", scores, configuration, splits, details)


def linear(
    subject: Subject,
    solver: Literal["sgd", "lbfgs"] = "sgd",
    augment: bool = False,
    rates: Sequence[float] = LINEAR_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    standardize: bool = False,
) -> EvaluationResult:
    """Train a linear classifier on frozen features; the learning rate is chosen on val.

    Args:
        subject: What to evaluate.
        solver: See ``evaluate_linear``.
        augment: Train on features of another random crop, flipped or not, of each image in each epoch, instead of on
            those of the central views. Each epoch is one forward pass over train, for all rates that fit into memory.
        rates: Learning rates of SGD for batches of 256.
        epochs: Of SGD; the rate is multiplied by 0.1 after 60 % and 80 % of them.
        batch_size: Of SGD.
        standardize: Normalize features by the mean and standard deviation of the training features.

    Raises:
        EvaluationError: If the data have no classes, there are several rates and no val split to choose one on, train
            lacks a class of the others, or a setting is out of range.
    """
    if augment and solver != "sgd":
        raise EvaluationError(f"linear: augmented views need the solver sgd, not {solver}")
    settings = Sgd(tuple(rates), epochs, batch_size, seed=subject.seed) if solver == "sgd" else Lbfgs()
    chooses = solver == "sgd" and len(rates) > 1
    if chooses and not subject.has_val:
        raise EvaluationError(
            f"linear evaluation chooses one of {len(rates)} rates on val, and {why_not_val(subject)}. Without a "
            "choice: one rate, or the solver lbfgs"
        )
    splits = ("train", "val", subject.split) if subject.has_val else ("train", subject.split)
    check_labels(subject.dataset, "linear", splits)
    features = {split: subject.features(split) for split in splits}
    train, held_out = features["train"], features[subject.split]
    together = rates_at_once(len(subject.dataset.manifest.classes), train.features.shape[1], batch_size)
    steps = epochs * len(train.features) * math.ceil(len(rates) / together) if solver == "sgd" else 0
    with subject.progress("linear classifiers", steps) as advance:
        batches = _augmented(subject) if augment else _stored(train.features)
        counted, val = _counted(batches, advance), features.get("val", held_out)
        found = evaluate_linear(train, val, held_out, settings, standardize, subject.device, counted)
    configuration: dict[str, Any] = {"solver": solver, "standardize": standardize}
    if isinstance(settings, Sgd):
        chosen = {"selected_rate": found.rate, "selected_on": "val" if chooses else None}
        configuration |= {"augment": augment, **settings.configuration, **chosen}
    else:
        configuration["penalty"] = settings.penalty
    seen = "val" if subject.has_val else subject.split
    details: list[Row] = [
        {
            "rate": rate,
            f"{seen} top1": accuracy.top1 if accuracy else "diverged",
            f"{seen} top5": accuracy.top5 if accuracy else "diverged",
        }
        for rate, accuracy in found.rates
    ]
    scores = accuracy_scores("", found.test) | (accuracy_scores("val_", found.val) if subject.has_val else {})
    return subject.result("linear", scores, configuration, splits, details)


def _stored(features: Tensor) -> Batches:
    """Give the batches of each epoch from features [M, F] of central views."""
    return lambda epoch, batches: (features[batch] for batch in batches)


def _augmented(subject: Subject) -> Batches:
    """Extract the features of each epoch's augmented views of the training images."""
    backbone, images, size = subject.networks.backbone, subject.dataset.split("train"), subject.image_size

    def extracted(epoch: int, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        orders = [batch.numpy() for batch in batches]
        return view_feature_batches(backbone, images, orders, size, CROPS_AND_FLIPS, subject.seed, STREAM, epoch)

    return extracted


def _counted(given: Batches, advance: Callable[[int], object]) -> Batches:
    """Report the images of each batch."""

    def counted(epoch: int, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for features in given(epoch, batches):
            advance(len(features))
            yield features

    return counted


def clustering(subject: Subject) -> EvaluationResult:
    """Compare k-means clusters of the reported split's features with its classes: FMI, ARI and NMI.

    Raises:
        EvaluationError: If the images are of fewer than two classes, have several labels each, or are fewer than twice
            as many as their classes.
    """
    check_labels(subject.dataset, "clustering", (subject.split,))
    labels = subject.held_out.labels
    classes = len(np.unique(labels))
    if len(labels) < 2 * classes:
        raise EvaluationError(
            f"clustering: {subject.split} has {len(labels)} images of {classes} classes; "
            f"it needs twice as many images as classes, {2 * classes}"
        )
    found = clustering_scores(*subject.features(subject.split), subject.seed, errors=True)
    names = "fmi", "ari", "nmi"
    scores = {name: Score(getattr(found, name), error) for name, error in zip(names, found.errors, strict=True)}
    return subject.result("clustering", scores, {"clusters": classes}, (subject.split,))


def multilabel(subject: Subject) -> EvaluationResult:
    """Fit a logistic regression for each label, and report F1: micro, macro, weighted.

    Raises:
        EvaluationError: If images have one class each, or train has no image with a label of the others.
    """
    check_labels(subject.dataset, "multilabel", ("train", subject.split), multi_label=True)
    found = multilabel_probe(*subject.features("train"), *subject.features(subject.split), errors=True)
    names = subject.dataset.manifest.classes
    configuration = {"labels": len(names), "constant_labels": tuple(names[number] for number in found.constant)}
    measures = "f1_micro", "f1_macro", "f1_weighted"
    scores = {name: Score(getattr(found, name), error) for name, error in zip(measures, found.errors, strict=True)}
    return subject.result("multilabel", scores, configuration, ("train", subject.split))


def segmentation(subject: Subject) -> EvaluationResult:
    """Compare the occlusion model's masks with the objects of the images; floors are computed on the same images.

    The floors are k-means clusters of each image's colors and positions, and random partitions, with as many slots.

    Raises:
        EvaluationError: If the checkpoint has no occlusion model, the data have no object masks, or fewer than two
            images have objects.
    """
    check_masks_are_learned(subject.networks.config, subject.origin)
    occlusion = subject.networks.occlusion
    assert occlusion is not None
    check_object_masks(subject.dataset)
    slots, rng = occlusion.slots, np.random.default_rng(subject.seed)
    partitions: dict[str, Callable[[Tensor], Masks]] = {
        "": occlusion,
        "color_kmeans_": lambda x: color_kmeans(denormalize(x).cpu().numpy(), slots, subject.seed),
        "random_partition_": lambda x: random_partition(denormalize(x).cpu().numpy(), slots, rng),
    }
    images = subject.held_out
    indices = np.arange(len(images))
    found = {}
    with subject.progress("masks", len(partitions) * len(images)) as advance:

        def counted(masks_of: Callable[[Tensor], Masks]) -> Callable[[Tensor], Masks]:
            """Report the images that were segmented."""

            def masks(x: Tensor) -> Masks:
                advance(len(x))
                return masks_of(x)

            return masks

        for name, masks_of in partitions.items():
            try:
                found[name] = segment(
                    counted(masks_of), images, indices, subject.image_size, subject.device, subject.view
                )
            except EvaluationError as error:
                place = f"{subject.split} of {subject.dataset.location}"
                raise EvaluationError(f"segmentation: {place}: {error}") from None
    measures = found[""].scores._fields
    scores = {
        f"{name}{measure}": Score(getattr(own.scores, measure), getattr(own.standard_errors, measure))
        for measure in measures
        for name, own in found.items()
    }
    configuration = {"slots": slots, "images_without_objects": found[""].without_objects}
    return subject.result("segmentation", scores, configuration, (subject.split,))


def labelfree(subject: Subject) -> EvaluationResult:
    """Compute scores that need no labels: ranks, decay of the spectrum, spread, uniformity and alignment.

    LiDAR and alignment compare augmented views of at most 512 images. Standard errors are those of a jackknife. A score
    that the features of a collapsed encoder do not have, as alpha-ReQ without a second eigenvalue, is left out.

    Raises:
        EvaluationError: If the split has too few images for a rank, or the features are not finite.
    """
    images, width = len(subject.held_out), subject.networks.features
    for measure, needed in (
        ("RankMe and α-ReQ", width),
        ("LiDAR", min(LIDAR_IMAGES, width + 1)),  # of M images, the rank between them is at most M - 1
    ):
        if images < needed:
            raise EvaluationError(
                f"{measure}: {subject.split} has {images} images; a rank of {width} features needs at least {needed}"
            )
    features = subject.features(subject.split).features.to(subject.device)
    views = features_of_views(subject.networks.backbone, subject.held_out, subject.image_size, seed=subject.seed)
    measures: dict[str, tuple[Callable[[Tensor], float], Tensor]] = {
        "rankme": (label_free.rankme, features),
        "alpha_req": (label_free.alpha_req, features),
        "lidar": (label_free.lidar, views),
        "feature_std": (label_free.feature_std, features),
        # The same images without each group: another choice of them would count as a part of the error.
        "uniformity": (label_free.uniformity, label_free.compared(features)),
        "alignment": (label_free.alignment, views),
    }
    try:
        scores = {name: _jackknifed(measure, values) for name, (measure, values) in measures.items()}
    # Of features so large that rounding outweighs what LiDAR adds to their covariance.
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # documented, but missing in __all__
        raise EvaluationError(f"LiDAR cannot be computed of features of this size: {error}") from error
    undefined = [name for name, score in scores.items() if not math.isfinite(score.value)]
    configuration: dict[str, Any] = {"features": width, "view_images": len(views), "views": LIDAR_VIEWS}
    if undefined:
        reason = "features that are all alike have no such score: the encoder has collapsed"
        configuration[LEFT_OUT] = dict.fromkeys(undefined, reason)
    defined = {name: score for name, score in scores.items() if name not in undefined}
    return subject.result("labelfree", defined, configuration, (subject.split,))


def _on_device(subject: Subject, split: str) -> tuple[Tensor, Tensor]:
    """Return features and labels of a split on the device."""
    features, labels = subject.features(split)
    return features.to(subject.device), labels.to(subject.device)


def _jackknifed(measure: Callable[[Tensor], float], values: Tensor) -> Score:
    """Measure values of M images, [M, ...], with the standard error over these."""
    (error,) = jackknife_errors(lambda kept: [measure(values[kept])], len(values), LABEL_FREE_GROUPS)
    return Score(measure(values), error)


def _share(value: float, images: int) -> Score:
    """Return a share of images with its standard error."""
    return Score(value, share_error(value, images))

"""Fitness of a trial: a score of its frozen features on held-out images, never the training loss."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adios_ray import parallel
from adios_ray.config import AugmentConfig, EvaluationConfig
from adios_ray.data.shards import Split
from adios_ray.errors import EvaluationError
from adios_ray.evaluation.extraction import Indices, extract_features, view_feature_batches
from adios_ray.evaluation.jackknife import jackknife_errors, pseudo_values
from adios_ray.evaluation.knn import knn_label_shares, knn_votes, macro_f1
from adios_ray.evaluation.label_free import alpha_req, effective_rank, feature_std, lidar, rankme
from adios_ray.evaluation.outcomes import encoded, standard_error
from adios_ray.evaluation.statistics import fresh_statistics, refresh_statistics
from adios_ray.measures import MEASURES
from adios_ray.models.networks import Networks

SMALLEST_PARTED = 100
"""Images from which on a split is parted in halves; fewer are used whole for both purposes."""
GATE_IMAGES = 2048
"""Held-out images by which a collapse is detected."""
LABEL_FREE_GROUPS = 10
"""Groups of the jackknife of label-free measures, each of which costs the measure once more."""
LIDAR_IMAGES = 512
LIDAR_VIEWS = 10


class Estimate(NamedTuple):
    """A measure on some images, and how sure it is.

    Attributes:
        value: The configured measure, higher is better; nan where it cannot be computed (``Fitness.collapse``).
        standard_error: Its standard error over images; None where it is unknown.
        accuracy: Share of images classified correctly, 0 to 1, multi-label: of all labels; nan without labels.
        outcomes: Encoded numbers with the value as their mean, of single images or, for macro F1, of groups of them;
            None for measures without labels.
    """

    value: float
    standard_error: float | None = None
    accuracy: float = math.nan
    outcomes: bytes | None = None


UNKNOWN = Estimate(math.nan)


class Fitness(NamedTuple):
    """The result of an evaluation.

    Attributes:
        estimates: The measure on each part of the held-out images.
        collapse: Why the features cannot be measured: the statistic that shows a collapse, with its value, or what is
            not finite; None where all estimates are finite.
    """

    estimates: tuple[Estimate, ...]
    collapse: str | None = None


def halves(split: Split) -> tuple[Indices, ...]:
    """Part a split for selection and for the final comparison of what was selected (int64 indices, ascending).

    The half of an image is a bit of a hash of its source id: it does not depend on a seed, nor on the other images.

    Returns:
        The two halves; the whole split alone if it has fewer than ``SMALLEST_PARTED`` images.
    """
    if len(split) < SMALLEST_PARTED:
        return (np.arange(len(split)),)
    hashes = (hashlib.blake2b(item.encode(), digest_size=1).digest() for item in split.source_ids.to_pylist())
    second = np.array([digest[0] & 1 for digest in hashes], dtype=bool)
    return np.flatnonzero(~second), np.flatnonzero(second)


@dataclass(frozen=True)
class _Evaluated:
    """Inputs of a measure."""

    backbone: nn.Module
    probe: nn.Module
    train: Split
    held_out: Split
    features: Tensor
    """Features of the held-out images, [M, F]."""
    image_size: int
    config: EvaluationConfig
    precision: AbstractContextManager[object]

    @property
    def labels(self) -> Tensor:
        """Labels of the held-out images on the features' device, int64 [M], or zeros and ones [M, C]."""
        return torch.from_numpy(self.held_out.labels).to(self.features.device)


Score = Callable[[Tensor], Estimate]
"""Estimates a measure on some held-out images, given by their indices, int64 [m]."""


def evaluate(
    networks: Networks,
    train: Split,
    held_out: Split,
    image_size: int,
    config: EvaluationConfig,
    parts: Sequence[Indices] | None = None,
) -> Fitness:
    """Compute the fitness on held-out images, after a check that the features have not collapsed.

    Args:
        networks: Backbone and probe, or their averages where there are any.
        train: Split of the neighbors of ``knn``.
        held_out: Split that is classified or scored.
        image_size: Side S of the views in pixels.
        config: The measure, and the thresholds of a collapse.
        parts: Parts of the held-out split, int64 indices, each of which is estimated by itself; None takes all as one.
    """
    chosen = [torch.from_numpy(part) for part in parts or [np.arange(len(held_out))]]
    backbone, probe = networks.evaluated
    precision = networks.autocast(next(backbone.parameters()).device)
    fresh: AbstractContextManager[None] = nullcontext()
    if networks.averaged is not None:
        # Mean weights have no statistics of their own; these are kept, so that what is exported is what was evaluated.
        refresh_statistics(backbone, train, image_size, config.view, precision)
    elif config.fresh_statistics:
        fresh = fresh_statistics(backbone, train, image_size, config.view, precision)
    with fresh:
        whole = np.arange(len(held_out))
        features = extract_features(backbone, held_out, whole, image_size, config.view, precision)
        # The first worker decides: measures extract further features, which all workers must do together.
        if collapse := parallel.from_first(_collapse(features, config)):
            found = Fitness((UNKNOWN,) * len(chosen), collapse)
        else:
            evaluated = _Evaluated(backbone, probe, train, held_out, features, image_size, config, precision)
            try:
                score = _MEASURES[config.fitness](evaluated)
                estimates = tuple(score(part.to(features.device)) for part in chosen)
                if not all(math.isfinite(estimate.value) for estimate in estimates):
                    raise FloatingPointError("it is not finite")
                found = Fitness(estimates)
            # LinAlgError: of features so large that rounding outweighs what LiDAR adds to their covariance.
            except (FloatingPointError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]  # documented, but missing in __all__
                found = Fitness((UNKNOWN,) * len(chosen), f"{config.fitness} cannot be computed: {error}")
        return parallel.from_first(found)


def check_measurable(images: int, features: int, config: EvaluationConfig, split: str) -> None:
    """Check that the measure and the check for a collapse can be passed on a split.

    Args:
        images: Images of the split, M.
        features: Width of the backbone's features, F.
        config: The measure, and the thresholds of a collapse.
        split: Name of the split, for the message.

    Raises:
        EvaluationError: If no features whatever could pass; names what is needed.
    """
    # Centering takes one from the rank. A label-free measure is computed again without a tenth of the images, of which
    # two must be left.
    needed = max(math.ceil(config.min_effective_rank) + 1, 2 if MEASURES[config.fitness].is_share else 3)
    if images < needed:
        raise EvaluationError(
            f"{split} has {images} images: evaluation.fitness {config.fitness} with min_effective_rank "
            f"{config.min_effective_rank:g} needs {needed} or more; prepare the data set with a larger one"
        )
    if config.min_effective_rank > (most := min(features, GATE_IMAGES - 1)):
        raise EvaluationError(
            f"evaluation.min_effective_rank {config.min_effective_rank:g} is above {most}, the largest rank that the "
            "backbone's features can have: every trial would count as collapsed"
        )


def _collapse(features: Tensor, config: EvaluationConfig) -> str | None:
    """Describe why features [M, F] of held-out images cannot be measured; None if they can."""
    if not features.isfinite().all():
        return "features of held-out images are not finite"
    some = features[:GATE_IMAGES]
    std, rank = feature_std(some), effective_rank(some)
    if std < config.min_feature_std:
        return f"collapsed: feature std {std:.3g} is below {config.min_feature_std:g}"
    if rank < config.min_effective_rank:
        return f"collapsed: effective rank {rank:.3g} is below {config.min_effective_rank:g}"
    return None


def _knn(evaluated: _Evaluated) -> Score:
    """Let neighbors vote: the share of the right class, multi-label: macro F1."""
    train, config, features, labels = evaluated.train, evaluated.config, evaluated.features, evaluated.labels
    bank = train.spread(config.train_images)
    size, precision = evaluated.image_size, evaluated.precision
    train_features = extract_features(evaluated.backbone, train, bank, size, config.view, precision)
    if not train_features.isfinite().all():
        raise FloatingPointError("features of training images are not finite")
    train_labels = torch.from_numpy(train.labels[bank]).to(features.device)
    voters, settings = (train_features, train_labels, features), (config.neighbors, config.temperature)
    if labels.ndim == 1:
        shares, correct = knn_votes(*voters, labels, *settings)
        return lambda chosen: _mean(shares[chosen], correct[chosen])
    predicted, present = knn_label_shares(*voters, *settings) > 0.5, labels > 0

    def score(chosen: Tensor) -> Estimate:
        own, truth = predicted[chosen], present[chosen]
        # F1 is no mean of what single images say, but it is one of what groups of them do.
        outcomes = pseudo_values(lambda kept: macro_f1(own[kept], truth[kept]), len(chosen))
        accuracy = float((own == truth).double().mean())
        return Estimate(macro_f1(own, truth), standard_error(outcomes), accuracy, encoded(outcomes))

    return score


def _probe(evaluated: _Evaluated) -> Score:
    """Average the probability that the online probe gives the right class; multi-label: the right answers."""
    labels = evaluated.labels
    with torch.no_grad():
        logits = evaluated.probe(evaluated.features).double()
    if labels.ndim == 2:
        outcomes, correct = _of_right_answers(logits.sigmoid(), labels > 0), (logits > 0) == (labels > 0)
    else:
        outcomes = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
        correct = logits.argmax(dim=1) == labels
    return lambda chosen: _mean(outcomes[chosen], correct[chosen])


def _of_right_answers(shares: Tensor, present: Tensor) -> Tensor:
    """Average the share of the right answer over labels, [M]; ``shares`` [M, C] are those of a yes."""
    return shares.where(present, 1 - shares).mean(dim=1)


def _mean(outcomes: Tensor, correct: Tensor) -> Estimate:
    """Estimate the mean of outcomes [m]; ``correct``, [m] or [m, C], gives the accuracy."""
    values, accuracy = outcomes.double(), float(correct.double().mean())
    error = float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(float(values.mean()), error, accuracy, _bytes(outcomes))


def _bytes(outcomes: Tensor) -> bytes:
    return (255 * outcomes).round().byte().cpu().numpy().tobytes()


def _label_free(measure: Callable[[Tensor], float], values: Tensor, indices: Tensor) -> Score:
    """Score features ``values`` [K, ...] of the held-out images ``indices``, int64 [K], by a measure of features."""

    def score(chosen: Tensor) -> Estimate:
        own = values[torch.isin(indices, chosen)]
        (error,) = jackknife_errors(lambda kept: [measure(own[kept])], len(own), LABEL_FREE_GROUPS)
        return Estimate(measure(own), error)

    return score


def _of_features(measure: Callable[[Tensor], float]) -> Callable[[_Evaluated], Score]:
    """Make a measure of the features of central views."""

    def of(evaluated: _Evaluated) -> Score:
        features = evaluated.features
        return _label_free(measure, features, torch.arange(len(features), device=features.device))

    return of


def _lidar(evaluated: _Evaluated) -> Score:
    """Compute LiDAR of random views of some held-out images."""
    views = features_of_views(evaluated.backbone, evaluated.held_out, evaluated.image_size, evaluated.precision)
    indices = torch.from_numpy(evaluated.held_out.spread(LIDAR_IMAGES)).to(views.device)
    return _label_free(lidar, views, indices)


def features_of_views(
    backbone: nn.Module,
    split: Split,
    image_size: int,
    precision: AbstractContextManager[object] | None = None,
    seed: int = 0,
) -> Tensor:
    """Extract features of K random views, the same ones at each call with a seed, [M, K, F].

    Views are made by the default augmentations, not the trial's: a search over augmentations must not change the score.
    """
    indices = split.spread(LIDAR_IMAGES)  # not the first: shards of some sources hold few classes each
    config, views = AugmentConfig(), list[Tensor]()
    for number in range(LIDAR_VIEWS):
        views += view_feature_batches(backbone, split, [indices], image_size, config, seed, "view_a", number, precision)
    return torch.stack(views, dim=1)


_MEASURES: Mapping[str, Callable[[_Evaluated], Score]] = {
    "knn": _knn,
    "probe": _probe,
    "rankme": _of_features(rankme),
    "alpha-req": _of_features(alpha_req),
    "lidar": _lidar,
}
"""Measures by name."""

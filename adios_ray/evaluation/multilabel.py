"""Multi-label probe: logistic regression of each label on frozen features (paper, Section 4.2 and Table 7)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from adios_ray.errors import EvaluationError
from adios_ray.evaluation.jackknife import jackknife_errors

ITERATIONS = 1000
ROWS = 4096
"""Rows from which means and deviations are computed at once, because scikit-learn does so in double precision."""


class MultilabelScores(NamedTuple):
    """F1 scores of a multi-label probe, 0 to 1.

    Attributes:
        f1_micro: F1 of the decisions on all labels of all images together.
        f1_macro: Mean of the labels' F1; 0 is the F1 of a label that is neither present nor predicted.
        f1_weighted: Mean of the labels' F1, weighted by the number of images with the label.
        constant: Columns of the labels that are predicted as always present or always absent, because all training
            images are so.
        errors: Standard errors of the three F1 scores over the predicted images; empty if not asked for.
    """

    f1_micro: float
    f1_macro: float
    f1_weighted: float
    constant: tuple[int, ...]
    errors: tuple[float | None, ...] = ()


def multilabel_probe(
    train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, errors: bool = False
) -> MultilabelScores:
    """Fit a logistic regression for each label on frozen features, and score its predictions.

    Features are standardized by means and deviations of the training images. The regression is scikit-learn's: the sum
    of the log losses plus half the squared norm of the weights is minimized, and a probability above half is a yes.

    Args:
        train_features: Features of training images, [M, F].
        train_labels: Zeros and ones, [M, C], C >= 2.
        features: Features of the images to predict, [Q, F].
        labels: Zeros and ones, [Q, C].
        errors: Whether to estimate standard errors, by a jackknife.

    Raises:
        EvaluationError: Shapes do not fit or have no rows, there are fewer than two labels, or values are not finite or
            not zeros and ones.
    """
    _check("training images", train_features, train_labels)
    _check("images to predict", features, labels)
    if (train_features.shape[1], train_labels.shape[1]) != (features.shape[1], labels.shape[1]):
        widths = f"{train_features.shape[1]} and {features.shape[1]} features"
        widths += f", {train_labels.shape[1]} and {labels.shape[1]} labels"
        raise EvaluationError(f"multilabel: {widths}; equal numbers are needed")
    known, unknown = _standardized(train_features, features)
    targets, truth = (part.byte().cpu().numpy() for part in (train_labels, labels))
    predicted = np.empty_like(truth)
    constant = []
    for number, target in enumerate(targets.T):
        if target.min() == target.max():
            constant.append(number)
            predicted[:, number] = target[0]
        else:
            probe = LogisticRegression(max_iter=ITERATIONS).fit(known, target)
            predicted[:, number] = probe.predict(unknown)

    def scores(rows: slice | npt.NDArray[np.int64]) -> list[float]:
        return [
            float(f1_score(truth[rows], predicted[rows], average=average, zero_division=0))
            for average in ("micro", "macro", "weighted")
        ]

    micro, macro, weighted = scores(slice(None))
    found = jackknife_errors(scores, len(truth)) if errors else ()
    return MultilabelScores(micro, macro, weighted, tuple(constant), found)


def _check(name: str, features: Tensor, labels: Tensor) -> None:
    """Raise EvaluationError for features and labels that the probe cannot use."""
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels) or not features.numel():
        shapes = f"features of shape {list(features.shape)} with labels of shape {list(labels.shape)}"
        raise EvaluationError(f"{name} of a multi-label probe: {shapes}; [M, F] and [M, C] with M, F >= 1 are needed")
    if labels.shape[1] < 2:
        raise EvaluationError(f"{name} of a multi-label probe: {labels.shape[1]} labels; at least two are needed")
    if not ((labels == 0) | (labels == 1)).all():
        raise EvaluationError(f"{name} of a multi-label probe: labels other than zeros and ones")
    # Norms instead of the features themselves, whose mask would have as many elements.
    if not features.norm(dim=1).isfinite().all():
        raise EvaluationError(f"{name} of a multi-label probe: features are not finite")


def _standardized(*features: Tensor) -> list[npt.NDArray[np.floating]]:
    """Copy features to the CPU, with the first argument's mean 0 and deviation 1 in each column."""
    scaler = StandardScaler()
    for part in features[0].split(ROWS):
        scaler.partial_fit(part.detach().cpu().numpy())
    return [scaler.transform(part.detach().cpu().numpy()) for part in features]

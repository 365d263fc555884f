"""Requirements of evaluations, checked before the work: learned masks, object masks, labels, a validation split."""

from collections.abc import Sequence

import numpy as np

from adios_ray.config import TrialConfig
from adios_ray.data.shards import Dataset
from adios_ray.data.sources.base import NO_LABEL
from adios_ray.errors import EvaluationError
from adios_ray.evaluation.subject import Subject


def check_masks_are_learned(config: TrialConfig, origin: str) -> None:
    """Check that a checkpoint has an occlusion model, whose masks can be segmented.

    Raises:
        EvaluationError: If not; names the checkpoint's origin and its masking scheme.
    """
    if not config.masking.learned:
        raise EvaluationError(
            f"segmentation: {origin} has no occlusion model, as masking.scheme was {config.masking.scheme}; "
            "it needs a checkpoint whose masks are learned"
        )


def check_object_masks(dataset: Dataset) -> None:
    """Check that a data set has object masks, with which masks can be compared.

    Raises:
        EvaluationError: If not; names it.
    """
    if not dataset.manifest.has_instances:
        raise EvaluationError(f"segmentation: {dataset.location} has no object masks, which it needs")


def check_labels(
    dataset: Dataset,
    measure: str,
    splits: Sequence[str],
    multi_label: bool = False,
    known: set[int] | None = None,
) -> set[int]:
    """Check that images have labels of the needed kind, and that the training images have all classes of the others.

    Args:
        dataset: The data set.
        measure: Name of the measure, for messages.
        splits: Names of the splits that are used.
        multi_label: Whether images must have several labels each, or one class.
        known: Numbers of the classes of the training images. None: the first split has them, and two or more where
            images have one class each.

    Returns:
        Numbers of the classes of the training images.

    Raises:
        EvaluationError: If not; names the measure, what it has and what it needs.
    """
    manifest, location = dataset.manifest, dataset.location
    if len(manifest.classes) < 2:
        raise EvaluationError(
            f"{measure}: {location} has no labels but {', '.join(manifest.classes)!r}; it needs two classes or more"
        )
    if manifest.multi_label != multi_label:
        has, needs = ("several labels", "one class") if manifest.multi_label else ("one class", "several labels")
        raise EvaluationError(f"{measure}: images of {location} have {has} each; it needs {needs} for each image")
    for split in splits:
        if not manifest.splits.get(split):
            raise EvaluationError(f"{measure}: {_lacks(dataset, split)}")
        labels = dataset.split(split).labels
        if len(labels) < 2:
            raise EvaluationError(f"{measure}: {split} of {location} has {len(labels)} images; it needs at least two")
        if unlabeled := int((labels == NO_LABEL).sum()):
            raise EvaluationError(
                f"{measure}: {unlabeled} images of {split} have no label; it needs one for each image"
            )
        present = set(np.flatnonzero(labels.any(axis=0)).tolist() if multi_label else labels.tolist())
        if known is None and not multi_label and len(present) < 2:
            raise EvaluationError(
                f"{measure}: all images of {split} of {location} are of one class; it needs two classes or more"
            )
        known = present if known is None else known
        if missing := [manifest.classes[number] for number in sorted(present - known)]:
            raise EvaluationError(
                f"{measure}: train has no images of {len(missing)} classes of {split}, such as {missing[0]}; "
                "it needs at least one image of each class"
            )
    return known or set()


def check_selection(subject: Subject, measure: str) -> set[int]:
    """Check that settings can be chosen on val and reported on another split, all with labels of one class each.

    Returns:
        Numbers of the classes of the training images.

    Raises:
        EvaluationError: If not; names the measure, what it has and what it needs.
    """
    if not subject.has_val:
        raise EvaluationError(f"{measure} chooses its learning rate on val, and {why_not_val(subject)}")
    return check_labels(subject.dataset, measure, ("train", "val", subject.split))


def why_not_val(subject: Subject) -> str:
    """Say why nothing can be chosen on val: there is none, or it is the split that is reported."""
    if not subject.dataset.manifest.splits.get("val"):
        return _lacks(subject.dataset, "val")
    return "reports another split, not val: give the split test"


def _lacks(dataset: Dataset, split: str) -> str:
    """Say that a data set has no such split."""
    has = ", ".join(sorted(dataset.manifest.splits))
    return f"{dataset.location} has no {split} split (it has {has}); prepare it with one"

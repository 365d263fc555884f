"""Evaluation of a cell: the kinds of ``adios-ray evaluate``, and what the training reported of its masks."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adios_ray.commands.evaluate import PARTS, Robustness, Transfer
from adios_ray.config import CentralView
from adios_ray.data.shards import Dataset, open_shards
from adios_ray.evaluation.requirements import check_labels, check_object_masks
from adios_ray.evaluation.subject import build_subject, opened
from adios_ray.models.weights import load_weights
from adios_ray.run_directory import REPORTS_FILE

SLOTS = "slots"
"""Kind that returns sizes and overlap of the masks from the training's last report."""


def check_data(kind: str, dataset: Dataset) -> None:
    """Check that a data set has the labels or object masks of an evaluation, before hours of training.

    Args:
        kind: Name of the evaluation.
        dataset: The data set to evaluate.

    Raises:
        EvaluationError: If not; names what it has and what the evaluation needs.
    """
    if kind == "segmentation":
        check_object_masks(dataset)
    elif kind == "multilabel":
        check_labels(dataset, kind, ("train", "test"), multi_label=True)
    elif kind not in (SLOTS, "labelfree"):
        check_labels(dataset, kind, ("train", "val", "test"))


def settings_of(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of an evaluation, the defaults too: what its result follows from, beside weights and data."""
    if kind == SLOTS:
        return {}
    view, evaluation = _resolved(kind, options)
    return {"view": view, **asdict(evaluation)}


def _resolved(kind: str, options: Mapping[str, Any]) -> tuple[CentralView | None, Any]:
    own = dict(options)
    defaults: Mapping[str, Any] = {**PARTS, "transfer": Transfer()}
    return own.pop("view", None), replace(defaults[kind], **own)


def evaluate(
    kind: str, checkpoint: Path, places: Mapping[str, str], options: Mapping[str, Any], seed: int
) -> dict[str, float]:
    """Evaluate the last checkpoint of a cell.

    Args:
        kind: Name of the evaluation.
        checkpoint: Directory of the checkpoint.
        places: Directories or URIs of the data sets by name: the one to evaluate, for robustness its variations too.
        options: Options of the evaluation; ``view`` is that of ``adios-ray evaluate``.
        seed: Seed of the evaluation's own random numbers, such as those of a training from scratch.

    Returns:
        Scores by name.

    Raises:
        EvaluationError: If the data do not allow this evaluation.
    """
    if kind == SLOTS:
        *_, last = (checkpoint.parents[1] / REPORTS_FILE).read_text().splitlines()
        report = json.loads(last)
        return {name: report[name] for name in ("mask_mean_min", "mask_mean_max", "slot_overlap")}
    place, *_ = places.values()
    view, evaluation = _resolved(kind, options)
    if isinstance(evaluation, Robustness):
        _, *variations = places.items()
        evaluation = replace(evaluation, variation=tuple(f"{name}={of}" for name, of in variations))
    with opened(build_subject(load_weights(checkpoint), open_shards(place), view=view, seed=seed)) as subject:
        result = evaluation.evaluate(subject)
    return {name: score.value for name, score in result.scores.items()}

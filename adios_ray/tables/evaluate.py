"""Evaluation of a cell: the kinds of ``adios-ray evaluate``, and what the training reported of its masks."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any

from adios_ray.commands.evaluation_kinds import PARTS, Knn, Linear, Robustness, Transfer, prepared_for
from adios_ray.config import CentralView, check_view
from adios_ray.data.shards import open_shards
from adios_ray.data.sources.backgrounds import ORIGINAL
from adios_ray.errors import ConfigError, EvaluationError
from adios_ray.evaluation import features, kinds, transfer
from adios_ray.evaluation.knn import NEIGHBORS, TEMPERATURES
from adios_ray.evaluation.requirements import check_labels, check_object_masks
from adios_ray.evaluation.subject import build_subject, opened
from adios_ray.models.weights import load_weights
from adios_ray.run_directory import REPORTS_FILE
from adios_ray.tables.grid import Evaluation

SLOTS = "slots"
"""Kind that returns sizes and overlap of the masks from the training's last report."""


def check_data(
    evaluation: Evaluation, scores: Collection[str], places: Mapping[str, str], image_size: int | None
) -> None:
    """Check that data sets have what an evaluation needs, before hours of training.

    Args:
        evaluation: The evaluation.
        scores: Names of the scores that are asked of it.
        places: Directory or URI of each data set by name.
        image_size: Side of the views in pixels; None takes that of the stored images.

    Raises:
        ConfigError: If the stored images are too small for its view.
        EvaluationError: If labels, object masks or splits are missing; names what is there and what is needed.
    """
    kind, (name, *others), options = evaluation
    dataset = open_shards(places[name])
    manifest = dataset.manifest
    if view := dict(options).get("view"):
        try:
            check_view(view, image_size or manifest.image_size, manifest.image_size)
        except ConfigError as error:
            raise ConfigError(f"--data {name}: {error}") from None
    if kind == "robustness" and not others:
        if missing := [split for split in sorted({*scores} - {ORIGINAL}) if not manifest.splits.get(split)]:
            raise EvaluationError(f"robustness: {dataset.location} lacks the splits {', '.join(missing)}")
    if kind == "segmentation":
        check_object_masks(dataset)
    elif kind == "multilabel":
        check_labels(dataset, kind, ("train", "test"), multi_label=True)
    elif kind not in (SLOTS, "labelfree"):
        check_labels(dataset, kind, ("train", "val", "test"))


def settings_of(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the result of an evaluation follows from, beside weights and data: also defaults and versions."""
    if kind == SLOTS:
        return {}
    view, evaluation = _resolved(kind, options)
    settings = {"view": view, **asdict(evaluation), "features": features.VERSION}
    if isinstance(evaluation, Linear):  # options that are not given are None there, and defaults of the function
        parameters = signature(kinds.linear).parameters
        settings |= {
            name: parameters[name].default for name, value in settings.items() if name in parameters and value is None
        }
    if isinstance(evaluation, Knn):
        settings["neighbors"] = evaluation.neighbors or NEIGHBORS
        settings["temperatures"] = evaluation.temperatures or TEMPERATURES
    if isinstance(evaluation, Transfer):
        settings["version"] = transfer.VERSION
    return settings


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
        found = {name: report[name] for name in ("mask_mean_min", "mask_mean_max", "slot_overlap")}
        return {name: math.nan if value is None else value for name, value in found.items()}
    place, *_ = places.values()
    view, evaluation = _resolved(kind, options)
    if isinstance(evaluation, Robustness):
        _, *variations = places.items()
        evaluation = replace(evaluation, variation=tuple(f"{name}={of}" for name, of in variations))
    subject = build_subject(load_weights(checkpoint), open_shards(place), view=view, seed=seed)
    with opened(prepared_for(evaluation, subject)) as subject:
        result = evaluation.evaluate(subject)
    return {name: score.value for name, score in result.scores.items()}

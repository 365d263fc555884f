"""One cell of a table: a training and its evaluations, resumed where an earlier run of any table has left them."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field

from adios_ray.backend.preflight import source_checksum
from adios_ray.config import Strict, TrialConfig
from adios_ray.data.shards import open_shards
from adios_ray.experiment.replay import replay
from adios_ray.experiment.schedule import Schedule, Stage
from adios_ray.files import write_output
from adios_ray.run_directory import epoch_name
from adios_ray.tables.evaluate import settings_of
from adios_ray.tables.grid import Cell, Evaluation
from adios_ray.validation import read_json

TRAINING = "training"
"""Folder of a cell that holds its training."""
EVALUATIONS = "evaluations"
"""Folder of a cell that holds a JSON file for each evaluation."""
VERSION = 2
"""Raised when results of evaluations change without what ``settings_of`` returns: kept ones are not found then."""
SOURCE = "source.txt"
"""File of a cell's folder with the checksum of the package's code that trained it last."""
UNKNOWN = "unknown"
"""Stands for the checksum of code in cells of versions that did not write it down."""
REPORTS = 4
"""Reports of a training, at least; a cell that is interrupted repeats what follows the last one."""

Evaluate = Callable[[str, Path, Mapping[str, str], Mapping[str, Any], int], dict[str, float]]
"""Evaluates: kind, checkpoint, places of the data sets by name, options and the seed to scores by name."""


class Measured(Strict):
    """Result of one evaluation of a cell."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")  # a score may be undefined

    scores: dict[str, float]
    """Scores by name."""
    seconds: float = Field(ge=0)
    """How long it took."""
    source: str
    """Checksum of the package's code."""


def cell_name(cell: Cell) -> str:
    """Name the folder of a cell by what it trains on which images, so that tables share trainings.

    Raises:
        DatasetError: If the data set cannot be read.
    """
    config = cell.config
    assert config.data_dir is not None
    images = _images(config.data_dir)
    # Without defaults, so that a setting that a later version adds leaves the names as they are.
    digest = _checksum([config.model_dump(mode="json", exclude={"data_dir"}, exclude_defaults=True), images])
    parts = (cell.group, config.backbone.name, config.objective.name, config.masking.scheme, f"seed{cell.seed}")
    return "-".join([*(re.sub(r"[^a-z0-9]+", "", part.lower()) for part in parts), digest])


def measured(folder: Path, evaluation: Evaluation, places: Mapping[str, str]) -> Measured | None:
    """Read the result of an evaluation of a cell on the data sets at ``places``; None if it is still to be done."""
    path = _result_file(folder, evaluation, places)
    return read_json(Measured, path) if path.is_file() else None


def sources(folder: Path, cell: Cell, places: Mapping[str, str]) -> set[str]:
    """Collect the checksums of the package's code that trained and evaluated a cell, as far as it is finished."""
    results = [found for each in cell.evaluations if (found := measured(folder, each, places)) is not None]
    trained = folder / SOURCE
    return {found.source for found in results} | (
        {trained.read_text() if trained.is_file() else UNKNOWN} if results else set()
    )


def finished(folder: Path, cell: Cell, places: Mapping[str, str]) -> bool:
    """Tell whether all evaluations of a cell on the data sets at ``places`` are there."""
    return all(_result_file(folder, evaluation, places).is_file() for evaluation in cell.evaluations)


def last_checkpoint(folder: Path, cell: Cell) -> Path:
    """Return the directory of the checkpoint with which the training of a cell ends."""
    return folder / TRAINING / "checkpoints" / epoch_name(cell.config.epochs)


def run_cell(cell: Cell, folder: Path, places: Mapping[str, str], device: torch.device, evaluate: Evaluate) -> None:
    """Train a cell and evaluate it; continue what is there already.

    Args:
        cell: The cell.
        folder: Its directory, which only this call uses.
        places: Directory or URI of each data set by name.
        device: Where to train.
        evaluate: Evaluates the trained encoder.

    Raises:
        AdiosRayError: If the training diverges, or the data does not allow an evaluation.
    """
    config = _reporting(cell.config)
    schedule = Schedule(
        config=config.model_dump(mode="json"), stages=[Stage(from_epoch=0, trial=folder.name, values={})]
    )
    last, source = last_checkpoint(folder, cell), source_checksum()
    if not last.is_dir():
        write_output(folder / SOURCE, source.encode())
        replay(schedule, config, folder / TRAINING, device)
    for evaluation in cell.evaluations:
        path = _result_file(folder, evaluation, places)
        if path.is_file():
            continue
        began = time.perf_counter()
        data = {name: places[name] for name in evaluation.data}
        scores = evaluate(evaluation.kind, last, data, dict(evaluation.options), cell.seed)
        found = Measured(scores=scores, seconds=time.perf_counter() - began, source=source)
        write_output(path, found.model_dump_json(indent=1).encode())


def _reporting(config: TrialConfig) -> TrialConfig:
    """Report at a few epochs alone: a table needs the end of a training, and what comes before only to resume."""
    interval = max(1, config.epochs // REPORTS)
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"interval_epochs": interval})})


def _result_file(folder: Path, evaluation: Evaluation, places: Mapping[str, str]) -> Path:
    images = [_images(places[name]) for name in evaluation.data]
    settings = settings_of(evaluation.kind, dict(evaluation.options))
    digest = _checksum([VERSION, evaluation.kind, evaluation.data, settings, images])
    return folder / EVALUATIONS / f"{evaluation.kind}-{digest}.json"


@cache  # a table asks for each of its entries
def _images(place: str) -> str:
    """Read the checksum of a data set's images."""
    return open_shards(place).manifest.checksum


def _checksum(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]

"""Judging the rows of the search benchmark: scores of encoders on the test split, and a curve over compute."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adios_ray.config import TrialConfig
from adios_ray.data.loader import central_views
from adios_ray.data.shards import Split
from adios_ray.evaluation.extraction import extract_features
from adios_ray.evaluation.fitness import evaluate, features_of_views, halves
from adios_ray.evaluation.knn import knn_votes
from adios_ray.evaluation.label_free import alpha_req, lidar, rankme
from adios_ray.evaluation.linear import accuracy, logistic_regression
from adios_ray.evaluation.statistics import fresh_statistics
from adios_ray.experiment.verdict import final_fitness
from adios_ray.files import append_line, complete_lines
from adios_ray.masking.fill import hide
from adios_ray.models.networks import Networks
from adios_ray.search.state import Member, PopulationState
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.results import Row, read_results
from adios_ray.training.trainer import Trainer
from adios_ray.trial_report import TrialReport

POINTS = 10
"""Points of a curve of test accuracy over compute."""
MEASURED_EVERY = 4
"""Epochs between two measurements of scores without labels."""
LABEL_FREE = {"rankme", "alpha-req", "lidar", "gap"}
Variant = Literal["plain", "averaged"]


@contextmanager
def plain(networks: Networks) -> Iterator[None]:
    """Make evaluations use the weights themselves inside the block."""
    averaged, networks.averaged = networks.averaged, None
    try:
        yield
    finally:
        networks.averaged = averaged


@torch.no_grad()
def masking_gap(trainer: Trainer, features: Tensor) -> float:
    """Average 1 - cosine similarity between features [M, F] of whole validation images and of masked ones."""
    networks, split = trainer.networks, trainer.val_split
    backbone, training = networks.backbone, networks.backbone.training
    backbone.eval()
    gaps = []
    for chosen in np.array_split(np.arange(len(split)), -(-len(split) // 256)):
        x = central_views(split, chosen, trainer.image_size, trainer.device)
        for mask in networks.occlude(x).split(1, dim=1):
            gaps.append(1 - functional.cosine_similarity(backbone(hide(x, mask)).float(), features[chosen]))
    backbone.train(training)
    return float(torch.cat(gaps).mean())


def measure(trainer: Trainer) -> dict[str, float]:
    """Score the features of validation images without labels."""
    networks, split = trainer.networks, trainer.val_split
    features = extract_features(networks.backbone, split, np.arange(len(split)), trainer.image_size)
    return {
        "rankme": rankme(features),
        "alpha-req": alpha_req(features),
        "lidar": lidar(features_of_views(networks.backbone, split, trainer.image_size)),
        "gap": masking_gap(trainer, features),
    }


class Judge:
    """Scores checkpoints on the test split."""

    def __init__(self, config: TrialConfig, kind: type[Trainer]) -> None:
        """Judge checkpoints of trainers of one class."""
        self._trainer, self._config = kind(config, torch.device("cpu")), config

    @property
    def images_of_report(self) -> int:
        """Images that pass through the encoder for a report: of an epoch and its evaluation, not for statistics."""
        trainer = self._trainer
        trained = trainer.loader.steps_per_epoch * self._config.batch_size
        return trained + len(trainer.train_split) + len(trainer.val_split)

    def __call__(self, member: Member, variant: Variant, probe: bool = False) -> dict[str, float]:
        """Return the votes' mean share and the accuracy of k-NN, and the accuracy of a linear probe if asked."""
        trainer, config = self._trainer, self._config
        assert member.checkpoint is not None
        trainer.load(member.checkpoint, config)
        with plain(trainer.networks) if variant == "plain" else nullcontext():
            backbone, _ = trainer.networks.evaluated
            evaluation = config.evaluation
            fresh = evaluation.fresh_statistics or variant == "averaged"
            block = fresh_statistics(backbone, trainer.train_split, trainer.image_size) if fresh else nullcontext()
            with block:
                bank, queries = (self._features(split) for split in (trainer.train_split, self._test))
        votes = knn_votes(*bank, *queries, evaluation.neighbors, evaluation.temperature)
        scores = {"share": float(votes.shares.mean()), "accuracy": float(votes.correct.double().mean())}
        if probe:
            classifier = logistic_regression(*bank, standardize=True)
            scores["probe"] = accuracy(classifier, *queries).top1
        return scores

    @property
    def _test(self) -> Split:
        return self._trainer.dataset.split("test")

    def _features(self, split: Split) -> tuple[Tensor, Tensor]:
        backbone, _ = self._trainer.networks.evaluated
        features = extract_features(backbone, split, np.arange(len(split)), self._trainer.image_size)
        return features, torch.from_numpy(split.labels)


class Watched:
    """Records of a row beside the run's own files, in ``watched.jsonl`` of its run directory."""

    def __init__(self, directory: Path, config: TrialConfig, kind: type[Trainer], budget: int) -> None:
        """Continue the records of a run directory.

        Args:
            directory: The run directory.
            config: What all trials have in common.
            kind: Class of the trainers.
            budget: Reports of the whole row.
        """
        self._file, self._directory, self._every = directory / "watched.jsonl", directory, max(budget // POINTS, 1)
        self.variants: tuple[Variant, ...] = ("averaged", "plain") if config.evaluation.average_weights else ("plain",)
        self.reports: dict[tuple[str, int], dict[str, Any]] = {}
        self.curve: dict[int, dict[str, Any]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._file.touch()
        for line in complete_lines(self._file).splitlines():
            self._keep(json.loads(line))
        self.judge = Judge(config, kind)

    def _keep(self, entry: dict[str, Any]) -> None:
        if "trial" in entry:
            self.reports[entry["trial"], entry["epoch"]] = entry
        else:
            self.curve[entry["reports"]] = entry

    def _add(self, entry: dict[str, Any]) -> None:
        append_line(self._file, json.dumps(entry))
        self._keep(entry)

    def report(self, name: str, trainer: Trainer, report: TrialReport) -> None:
        """Measure what the report does not hold."""
        entry: dict[str, Any] = {"trial": name, "epoch": report.epoch}
        if report.divergence is None:
            if "averaged" in self.variants:
                parts = halves(trainer.val_split)
                with plain(trainer.networks):
                    found = evaluate(
                        trainer.networks,
                        trainer.train_split,
                        trainer.val_split,
                        trainer.image_size,
                        trainer.config.evaluation,
                        parts,
                    )
                first, last = found.estimates[0], found.estimates[-1]
                entry["plain"] = {
                    "fitness": first.value,
                    "standard_error": first.standard_error,
                    "accuracy": first.accuracy,
                    "holdout": last.value,
                    "holdout_standard_error": last.standard_error,
                }
            if report.epoch % MEASURED_EVERY == 0 or report.done:
                entry |= measure(trainer)
        self._add(entry)

    def rows(self, variant: Variant) -> list[Row]:
        """Read all reports, with the fitness of the weights themselves or of averaged ones."""
        rows = read_results(self._directory)
        if variant == self.variants[0]:
            return rows
        unknown = {"fitness": math.nan, "accuracy": math.nan, "holdout": math.nan}
        found = {key: entry.get(variant, unknown) for key, entry in self.reports.items()}
        updates = {
            key: {
                "fitness": scores["fitness"],
                "accuracy": scores["accuracy"],
                "holdout_fitness": scores["holdout"],
                # Earlier records lack these errors; the row's own are of averaged weights.
                "standard_error": scores.get("standard_error"),
                "holdout_standard_error": scores.get("holdout_standard_error"),
            }
            for key, scores in found.items()
        }
        return [row.model_copy(update=updates[row.trial, row.epoch]) for row in rows]

    def finals(self, state: PopulationState, variant: Variant) -> dict[str, float]:
        """Return by what each trial enters the final comparison on val, as the package does; the best first."""
        finals = final_fitness(state, self.rows(variant), read_lineage(self._directory))
        names = sorted(finals, key=lambda name: (-finals[name].fitness, state.members[name].number))
        return {name: finals[name].fitness for name in names}

    def point(self, state: PopulationState) -> None:
        """Add a point to the curve if one is due: the trial that val would choose now, on the test split."""
        done = len(state.observations)
        if done % self._every or done in self.curve or not done:
            return
        entry: dict[str, Any] = {"reports": done}
        for variant in self.variants:
            for name, fitness in islice(self.finals(state, variant).items(), 1):
                entry[variant] = {"trial": name, "val": fitness, **self.judge(state.members[name], variant)}
        self._add(entry)


def trial_record(
    name: str, member: Member, watched: Watched, finals: Mapping[Variant, Mapping[str, float]]
) -> dict[str, Any]:
    """Judge one trial; its reports are epoch, fitness, its standard error, accuracy, and fitness on the holdout."""
    record: dict[str, Any] = {"trial": name, "values": member.values, "epoch": member.epoch, "control": member.control}
    for variant in watched.variants:
        record[variant] = {
            "reports": [
                [row.epoch, row.fitness, row.standard_error, row.accuracy, row.holdout_fitness]
                for row in watched.rows(variant)
                if row.trial == name
            ]
        }
        if name in finals[variant]:
            record[variant] |= {"val": finals[variant][name], **watched.judge(member, variant, probe=True)}
    own = [entry for (trial, _), entry in sorted(watched.reports.items()) if trial == name]
    record["label_free"] = [
        {key: entry[key] for key in ("epoch", *LABEL_FREE)} for entry in own if LABEL_FREE <= entry.keys()
    ]
    return record

"""The subject of an evaluation: a frozen encoder, and the data set on which it is evaluated."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from adios_ray import __version__
from adios_ray.config import CentralView, check_view, seen_view
from adios_ray.console import say_aside
from adios_ray.data.shards import Dataset, Split
from adios_ray.devices import best_device, prepare_device
from adios_ray.errors import EvaluationError
from adios_ray.evaluation.features import Features, MapParts, Progress, features_of, no_progress
from adios_ray.evaluation.result import EvaluationResult, Row, Score
from adios_ray.evaluation.statistics import fresh_statistics
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, build_networks, checksum


@dataclass(frozen=True)
class Subject:
    """A frozen encoder, and the data set on which it is evaluated; see ``build_subject`` and ``opened``.

    Attributes:
        networks: All networks of the checkpoint, in evaluation mode, on ``device``.
        origin: Source of the weights, for people.
        weights_sha256: Checksum of their tensors.
        dataset: The data set.
        image_size: Side S of the views in pixels.
        asked_view: Part of each photograph that was asked for; None: see ``view``.
        split: Name of the split that is reported.
        seed: Seed of everything that is drawn, >= 0.
        device: Where to compute.
        map_parts: Where features are extracted.
        progress: Shows the progress of long work.
        began: When the evaluation began, in seconds of ``time.perf_counter``.
    """

    networks: Networks
    origin: str
    weights_sha256: str
    dataset: Dataset
    image_size: int
    asked_view: CentralView | None
    split: str
    seed: int
    device: torch.device
    map_parts: MapParts = map
    progress: Progress = no_progress
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        """Check the view.

        Raises:
            ConfigError: If it does not fit the image size or the stored images.
        """
        check_view(self.view, self.image_size, self.dataset.manifest.image_size)

    @property
    def view(self) -> CentralView:
        """The part of each photograph that is seen.

        If none was asked for, it is that of the checkpoint's configuration, or the whole square where the stored images
        have too few pixels for it.
        """
        configured, stored = self.networks.config.evaluation.view, self.dataset.manifest.image_size
        return self.asked_view or seen_view(configured, stored, self.image_size)

    @property
    def held_out(self) -> Split:
        """The split that is reported."""
        return self.dataset.split(self.split)

    @property
    def has_val(self) -> bool:
        """Whether settings can be chosen on a split that is not the reported one."""
        return self.split != "val" and bool(self.dataset.manifest.splits.get("val"))

    def features(self, split: str) -> Features:
        """Extract the features of a split, or read kept ones, onto the CPU; see ``features_of``.

        Raises:
            EvaluationError: If they are not finite.
        """
        view, mapping, progress = self.view, self.map_parts, self.progress
        found = features_of(self.networks, self.dataset, split, self.image_size, view, None, mapping, progress)
        # Norms instead of the features themselves, whose mask would have as many elements.
        if not found.features.norm(dim=1).isfinite().all():
            raise EvaluationError(f"{self.origin}: features of {split} are not finite; use weights of an earlier epoch")
        return found

    def result(
        self,
        kind: str,
        scores: Mapping[str, Score],
        configuration: Mapping[str, Any],
        splits: Sequence[str],
        details: Sequence[Row] = (),
    ) -> EvaluationResult:
        """Complete a result by what all kinds of evaluations have in common.

        Args:
            kind: Name of the evaluation.
            scores: Scores by name.
            configuration: Settings of this kind.
            splits: Names of the splits of which all images were used.
            details: See ``EvaluationResult``.
        """
        common = {
            "version": __version__,
            "torch": str(torch.__version__),
            "origin": self.origin,
            "data": self.dataset.location,
            "backbone": self.networks.config.backbone.name,
            "fresh_statistics": self.networks.config.evaluation.fresh_statistics,
            "image_size": self.image_size,
            "view": self.view,
            "split": self.split,
            "seed": self.seed,
        }
        return EvaluationResult(
            kind,
            dict(scores),
            {**common, **configuration},
            {split: len(self.dataset.split(split)) for split in splits},
            (self.weights_sha256,),
            self.dataset.manifest.checksum,
            round(time.perf_counter() - self.began, 3),
            tuple(details),
        )


def build_subject(
    weights: Weights,
    dataset: Dataset,
    split: str = "test",
    view: CentralView | None = None,
    seed: int = 0,
    map_parts: MapParts = map,
    progress: Progress = no_progress,
) -> Subject:
    """Build the networks of a checkpoint for evaluations on a data set, with the statistics of BatchNorm that it has.

    Args:
        weights: The checkpoint.
        dataset: The data set.
        split: Name of the split that is reported.
        view: Part of each photograph; None: see ``Subject.view``.
        seed: Seed of everything that is drawn, >= 0.
        map_parts: Where features are extracted; see ``features_of``.
        progress: Shows the progress of long work.

    Raises:
        CheckpointError: If the tensors do not fit the configured networks.
        ConfigError: If the view does not fit the image size or the stored images.
        DatasetError: If there is no such split.
        EvaluationError: If the checkpoint asks for statistics of training images, and there are none.
    """
    device = best_device()
    prepare_device(device)
    dataset.split(split)
    if weights.config.evaluation.fresh_statistics and "train" not in dataset.manifest.splits:
        raise EvaluationError(
            f"{weights.origin}: evaluation.fresh_statistics needs training images, and {dataset.location} has no train"
        )
    networks = build_networks(weights).to(device)
    networks.choose_layouts(device, compiled=False)  # evaluations compile nothing, whatever the training did
    return Subject(
        networks,
        weights.origin,
        checksum(weights.tensors),
        dataset,
        weights.image_size,
        view,
        split,
        seed,
        device,
        map_parts,
        progress,
    )


@contextlib.contextmanager
def opened(subject: Subject) -> Iterator[Subject]:
    """Evaluate a subject inside the block.

    BatchNorm's statistics are computed from training images if the checkpoint's ``evaluation.fresh_statistics`` says
    so. That another view is seen than the checkpoint's own, though none was asked for, is said.
    """
    config, stored = subject.networks.config.evaluation, subject.dataset.manifest.image_size
    if subject.asked_view is None and subject.view != config.view:
        say_aside(f"evaluates central squares: images stored at {stored} pixels are too small for {config.view}")
    with contextlib.ExitStack() as stack:
        if config.fresh_statistics:
            backbone, train = subject.networks.backbone, subject.dataset.split("train")
            stack.enter_context(fresh_statistics(backbone, train, subject.image_size, subject.view))
        yield subject

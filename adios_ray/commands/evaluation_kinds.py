"""The kinds of ``adios-ray evaluate``: one dataclass each, whose fields are its options."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import tyro

from adios_ray.config import LINEAR_RATES, TRANSFER_RATES, Count, Positive, Rates
from adios_ray.errors import EvaluationError, UsageError, resumable
from adios_ray.store import Location

if TYPE_CHECKING:
    from adios_ray.evaluation.result import EvaluationResult
    from adios_ray.evaluation.subject import Subject
    from adios_ray.evaluation.transfer import TransferConfig


class Kind(Protocol):
    """An evaluation with its options."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate a frozen encoder.

        Raises:
            EvaluationError: If the data do not allow this evaluation.
        """


@dataclass(frozen=True)
class Knn:
    """Weighted k-nearest-neighbor accuracy at the checkpoint's own k and temperature, and at the best of a sweep."""

    neighbors: tuple[Count, ...] = ()
    """Numbers of neighbors of the sweep; 1, 2, 5, 10, 20, 50, 100 and 200, where train has that many images, if not
    given."""

    temperatures: tuple[Positive, ...] = ()
    """Temperatures of the sweep; 0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5 and 1 if not given."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``kinds.knn``."""
        from adios_ray.evaluation import kinds

        return kinds.knn(subject, self.neighbors, self.temperatures)


@dataclass(frozen=True)
class Linear:
    """Accuracy of a linear classifier on frozen features; its learning rate is chosen on val."""

    solver: Literal["sgd", "lbfgs"] = "sgd"
    """sgd: the paper's protocol; lbfgs: logistic regression, in a fraction of the time."""

    augment: bool = False
    """Train on random crops and flips, another of each image in each epoch, instead of on the central views. Each epoch
    is a forward pass over train, in this process."""

    rates: Rates | None = None
    """Learning rates of sgd for batches of 256; 0.003, 0.01, 0.03, 0.1, 0.3, 1 and 3 if not given."""

    epochs: Count | None = None
    """Epochs of sgd, 100 if not given; the rate is multiplied by 0.1 after 60 % and 80 % of them."""

    batch_size: Count | None = None
    """Images in a batch of sgd, 256 if not given; rates are multiplied by this / 256."""

    standardize: bool = False
    """Normalize features by mean and standard deviation of the training features."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``kinds.linear``."""
        from adios_ray.evaluation import kinds

        return kinds.linear(subject, self.solver, self.augment, standardize=self.standardize, **self.given)

    @property
    def given(self) -> dict[str, Any]:
        """The settings of sgd that were given."""
        settings = {"rates": self.rates, "epochs": self.epochs, "batch_size": self.batch_size}
        return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True)
class Clustering:
    """Agreement of k-means clusters with classes: Fowlkes-Mallows index, adjusted Rand index, mutual information."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``kinds.clustering``."""
        from adios_ray.evaluation import kinds

        return kinds.clustering(subject)


@dataclass(frozen=True)
class Multilabel:
    """F1 (micro, macro, weighted) of one logistic regression for each label, on frozen features."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``kinds.multilabel``."""
        from adios_ray.evaluation import kinds

        return kinds.multilabel(subject)


@dataclass(frozen=True)
class Segmentation:
    """Agreement of the occlusion model's masks with the images' objects, beside color k-means and random partitions."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``kinds.segmentation``."""
        from adios_ray.evaluation import kinds

        return kinds.segmentation(subject)


@dataclass(frozen=True)
class Labelfree:
    """Scores without labels: RankMe, alpha-ReQ, LiDAR, feature spread, uniformity and alignment."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``kinds.labelfree``."""
        from adios_ray.evaluation import kinds

        return kinds.labelfree(subject)


@dataclass(frozen=True)
class Robustness:
    """Accuracy of a linear probe of the original images on variations of them, and its gain over a baseline."""

    variation: tuple[str, ...] = ()
    """NAME=DATA_DIR for each variation: a data set of the same classes, of which the split that is evaluated is used.
    Of a data set `--dataset backgrounds`, its variations if not given. The original is --data-dir."""

    baseline: Location | None = None
    """Checkpoint or weights file to compare with, a path or a URI, image by image."""

    rates: Rates = LINEAR_RATES
    """Learning rates of the probe for batches of 256, of which one is chosen on val."""

    epochs: Count = 100
    """Epochs of the probe; the rate is multiplied by 0.1 after 60 % and 80 % of them."""

    batch_size: Count = 256
    """Images in a batch; rates are multiplied by this / 256."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``robustness.robustness``.

        Raises:
            UsageError: See ``variations``.
        """
        from adios_ray.data.shards import open_shards
        from adios_ray.evaluation.robustness import robustness
        from adios_ray.evaluation.subject import build_subject, opened
        from adios_ray.models.weights import load_weights

        variations = {name: (open_shards(place), subject.split) for name, place in self.variations.items()}
        with contextlib.ExitStack() as stack:
            baseline = None
            if self.baseline is not None:
                weights, dataset, split = load_weights(self.baseline), subject.dataset, subject.split
                shown = subject.view, subject.seed, subject.map_parts, subject.progress
                baseline = stack.enter_context(opened(build_subject(weights, dataset, split, *shown)))
            return robustness(subject, variations or None, baseline, self.rates, self.epochs, self.batch_size)

    @property
    def variations(self) -> dict[str, str]:
        """The data sets of the variations by name.

        Raises:
            UsageError: If a variation is not NAME=DATA_DIR, or has the name of another one.
        """
        from adios_ray.evaluation.result import GAIN

        places: dict[str, str] = {}
        for text in self.variation:
            name, _, place = text.partition("=")
            if not name or not place:
                raise UsageError(f"--variation {text} must be NAME=DATA_DIR, such as no_fg=data/objects/no_fg")
            if name in places or name == "original":
                raise UsageError(f"--variation {text}: {name} is there already; give another name")
            if name.endswith(GAIN):
                raise UsageError(f"--variation {text}: names that end in {GAIN} are those of gains; give another name")
            places[name] = place
        return places


@dataclass(frozen=True)
class Transfer:
    """Accuracy on a data set that a classifier is trained on; its learning rate is chosen on val.

    Each rate's result is kept in the cache directory ($ADIOS_RAY_CACHE): run again after an interruption to resume.
    """

    mode: Literal["fine-tune", "linear", "scratch"] = "fine-tune"
    """fine-tune: train all weights; linear: train a classifier on the frozen encoder; scratch: begin with new weights
    of the same architecture."""

    rates: Rates = TRANSFER_RATES
    """Learning rates at the first step."""

    epochs: Count = 100
    """Passes over the training images at each rate."""

    batch_size: int = 512
    """Most images in a step; an epoch is cut into equal batches."""

    image_size: int | None = None
    """Side of the views in pixels; the checkpoint's, or that of the stored images if it is smaller, if not given."""

    cifar_stem: bool = False
    """fine-tune and scratch of ResNets: a new stem of 3x3 pixels and stride 1 without max-pooling, as in the paper for
    CIFAR."""

    def evaluate(self, subject: "Subject") -> "EvaluationResult":
        """Evaluate; see ``transfer.transfer``."""
        from adios_ray.evaluation.transfer import FOLDER, transfer
        from adios_ray.local_cache import cache_folder

        with resumable():
            return transfer(subject, self.config, cache_folder(FOLDER))

    @property
    def config(self) -> "TransferConfig":
        """The options, checked.

        Raises:
            ConfigError: If one is out of range, or they do not go together.
        """
        from adios_ray.evaluation.transfer import TransferConfig
        from adios_ray.validation import parse

        return parse(TransferConfig, asdict(self), "transfer")


def prepared_for(kind: Kind, subject: "Subject") -> "Subject":
    """Give a subject the size of an evaluation's views, before it is opened: then statistics are taken of views.

    Raises:
        ConfigError: See ``transfer.prepared``.
        EvaluationError: Likewise.
    """
    from adios_ray.evaluation.transfer import prepared

    return prepared(subject, kind.config) if isinstance(kind, Transfer) else subject


PARTS: Mapping[str, Kind] = {
    "knn": Knn(),
    "linear": Linear(),
    "clustering": Clustering(),
    "multilabel": Multilabel(),
    "segmentation": Segmentation(),
    "labelfree": Labelfree(),
    "robustness": Robustness(),
}
"""Kinds of evaluation that ``all`` includes."""


@dataclass(frozen=True)
class All:
    """All evaluations of frozen features and masks that the data set allows, and why the others are left out."""

    def evaluate(self, subject: "Subject", averaged: bool = False) -> "EvaluationResult":
        """Evaluate with the default options of each kind; scores are named ``knn.top1``, and details by evaluation.

        Args:
            subject: What is evaluated.
            averaged: Whether its encoder has averaged weights, which no masks are of.

        Raises:
            EvaluationError: If the data allow none.
        """
        from adios_ray.evaluation.result import ALL, EVALUATION, LEFT_OUT

        results: dict[str, EvaluationResult] = {}
        left_out = {"segmentation": OF_MASKS} if averaged else {}
        for name, kind in PARTS.items():
            if name in left_out:
                continue
            try:
                results[name] = kind.evaluate(subject)
            except EvaluationError as error:
                left_out[name] = str(error).removeprefix(f"{name}: ")
        if not results:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise EvaluationError(f"no evaluation is possible: {reasons}")
        for name, of in results.items():
            left_out |= {f"{name}.{score}": reason for score, reason in of.configuration.get(LEFT_OUT, {}).items()}
        scores = {f"{name}.{score}": own for name, of in results.items() for score, own in of.scores.items()}
        configuration = {name: of.configuration for name, of in results.items()} | {LEFT_OUT: left_out}
        splits = dict.fromkeys(split for of in results.values() for split in of.images_per_split)
        details = [{EVALUATION: name, **row} for name, of in results.items() for row in of.details]
        return subject.result(ALL, scores, configuration, list(splits), details)


OF_MASKS = "--averaged is for an encoder, and segmentation is of masks: leave it out"
"""Why segmentation does not go with ``--averaged``."""
KINDS: Mapping[str, type[Kind]] = {
    **{name: type(part) for name, part in PARTS.items()},
    "transfer": Transfer,
    "all": All,
}
"""All kinds of evaluation by name."""
Kinds = (
    Annotated[Knn, tyro.conf.subcommand("knn")]
    | Annotated[Linear, tyro.conf.subcommand("linear")]
    | Annotated[Clustering, tyro.conf.subcommand("clustering")]
    | Annotated[Multilabel, tyro.conf.subcommand("multilabel")]
    | Annotated[Segmentation, tyro.conf.subcommand("segmentation")]
    | Annotated[Labelfree, tyro.conf.subcommand("labelfree")]
    | Annotated[Robustness, tyro.conf.subcommand("robustness")]
    | Annotated[Transfer, tyro.conf.subcommand("transfer")]
    | Annotated[All, tyro.conf.subcommand("all")]
)

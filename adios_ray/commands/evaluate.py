"""The command that evaluates frozen encoders: one dataclass for each kind, whose fields are its options."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import tyro

from adios_ray.config import LINEAR_RATES, TRANSFER_RATES, CentralView, Count, Positive, Rates, Seed
from adios_ray.errors import AGAIN, EvaluationError, UsageError, resumable
from adios_ray.store import Location, local_path, split_location

if TYPE_CHECKING:
    from rich.console import Console

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
        left_out = {"segmentation": _OF_MASKS} if averaged else {}
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


_OF_MASKS = "--averaged is for an encoder, and segmentation is of masks: leave it out"
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


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a frozen encoder and print the result as one JSON object; docs/evaluation.md has the protocols."""

    kind: Annotated[Kinds, tyro.conf.arg(name="")] = Knn()
    """Evaluation; `adios-ray evaluate KIND --help` lists its options."""

    checkpoint: tuple[Location, ...]
    """Checkpoint directory of a run, or a weights file; a path or a URI (s3://, gs://, ...). Of several, such as those
    of several seeds, the mean is printed, with its standard error over them."""

    data_dir: str
    """Directory or URI of a data set made by `adios-ray prepare`."""

    output: Location | None = None
    """File to write the JSON object to as well, *.json; a path or a URI."""

    split: Literal["val", "test"] = "test"
    """Split whose images are evaluated; settings are chosen on val, and reported on test."""

    view: CentralView | None = None
    """Part of each photograph: its central square, or the middle of the photograph resized to 256 pixels on its shorter
    side, as published for ImageNet100 and ImageNet100-S, for which images must be stored at 256 pixels or more. If not
    given, the view of the checkpoint's configuration, or the central square where stored images are smaller."""

    averaged: bool = False
    """Evaluate the checkpoints' averaged weights (evaluation.average_weights), not those of the last step."""

    seed: Seed = 0
    """Seed of the order of images, crops, and starts of k-means."""

    ray: bool = False
    """Extract features on a Ray cluster: that of RAY_ADDRESS or of `ray start`, else one that is started here."""

    def run(self) -> None:
        """Print the JSON object on standard output; a table, and progress, on standard error."""
        from rich.console import Console

        from adios_ray.evaluation.result import MARK, write_json
        from adios_ray.places import check_output_file, check_place, delivered

        if self.output is not None:
            reads = [*self.checkpoint, self.data_dir]
            if isinstance(self.kind, Robustness):
                reads += [*self.kind.variations.values(), *([self.kind.baseline] if self.kind.baseline else [])]
            check_output_file(self.output, MARK, *reads)
            if not str(self.output).endswith(".json"):
                raise UsageError(f"--output {self.output} must end in .json: the result is a JSON object")
            if local_path(self.output) is None:
                check_place(split_location(self.output)[0])
        console = Console(stderr=True)
        # Whatever else is printed, such as the address of Ray's dashboard, must not precede the JSON object.
        with contextlib.redirect_stdout(sys.stderr):
            result = self.result(console)
        values = {**(_earlier_names(result) if result.kind == "knn" else {}), **result.to_json()}
        print(json.dumps(values, allow_nan=False), flush=True)  # first: storage may fail
        result.print(console)
        if self.output is not None:
            with delivered(self.output) as output:
                write_json(output, values)

    def result(self, console: "Console") -> "EvaluationResult":
        """Evaluate, with progress on a console.

        Raises:
            UsageError: If there is no checkpoint, or an option would not be used.
            ConfigError: If a checkpoint is missing, or of another kind.
            CheckpointError: If a checkpoint is damaged, or does not fit its configuration.
            DatasetError: If the data set cannot be used.
            EvaluationError: If the data do not allow this evaluation.
        """
        from adios_ray.console import printable
        from adios_ray.data.shards import open_shards
        from adios_ray.evaluation.features import MapParts
        from adios_ray.evaluation.result import mean_over_seeds
        from adios_ray.evaluation.subject import build_subject, opened
        from adios_ray.models.weights import averaged, checksum, load_weights

        self._check_options()
        weights, dataset = [load_weights(path) for path in self.checkpoint], open_shards(self.data_dir)
        if self.averaged:
            weights = [averaged(own) for own in weights]
        checksums = {checksum(own.tensors) for own in weights}
        if len(checksums) < len(weights):
            raise UsageError("--checkpoint has the same weights twice: their spread over seeds would be too small")
        baseline_size: int | None = None
        if isinstance(self.kind, Robustness) and self.kind.baseline is not None:
            baseline = load_weights(self.kind.baseline)
            if checksum(baseline.tensors) in checksums:
                raise UsageError("--baseline has the weights of --checkpoint: every gain would be 0")
            baseline_size = baseline.image_size
        for own in weights:  # all of them before the first is evaluated, which may take hours
            subject = prepared_for(self.kind, build_subject(own, dataset, self.split, self.view))
            self._check(subject, baseline_size)
        with contextlib.ExitStack() as stack:
            map_parts: MapParts = map
            if self.ray:
                from adios_ray.backend.cluster import connected
                from adios_ray.backend.extraction import map_on_cluster

                stack.enter_context(connected())
                map_parts = map_on_cluster
            results = []
            for path, own in zip(self.checkpoint, weights, strict=True):
                given = self.split, self.view, self.seed, map_parts, _progress(console)
                kept = resumable(f"the features of finished splits are kept: {AGAIN}")
                with kept, opened(prepared_for(self.kind, build_subject(own, dataset, *given))) as subject:
                    if isinstance(self.kind, All):
                        results.append(self.kind.evaluate(subject, self.averaged))
                    else:
                        results.append(self.kind.evaluate(subject))
                if len(weights) > 1:  # printed at once, since a later one may fail, hours from now
                    console.print(f"{printable(path)}:", markup=False, highlight=False, soft_wrap=True)
                    results[-1].print(console)
        return mean_over_seeds(results)

    def _check(self, subject: "Subject", baseline_size: int | None) -> None:
        """Raise the errors of ``result`` that follow from a checkpoint's configuration, and the size of a baseline."""
        from adios_ray.evaluation.requirements import check_masks_are_learned
        from adios_ray.evaluation.robustness import check_baseline

        if isinstance(self.kind, Segmentation):
            check_masks_are_learned(subject.networks.config, subject.origin)
        if baseline_size is not None:
            check_baseline(subject, baseline_size)

    def _check_options(self) -> None:
        """Raise a UsageError for an option that is missing, or that the others leave without a use."""
        kind = self.kind
        if not self.checkpoint:
            raise UsageError("--checkpoint needs at least one file")
        if isinstance(kind, Linear) and kind.solver == "lbfgs":
            unused = [*kind.given, *(["augment"] if kind.augment else [])]
            if unused:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
                raise UsageError(f"--solver lbfgs does not use {flags}: leave out, or take --solver sgd")
        if isinstance(kind, Transfer) and kind.mode == "scratch" and (self.averaged or len(self.checkpoint) > 1):
            advice = "leave out --averaged" if self.averaged else "give one --checkpoint, and other seeds by --seed"
            raise UsageError(f"--mode scratch uses no weights: {advice}")
        if self.averaged and isinstance(kind, Robustness) and kind.baseline is not None:
            raise UsageError("--baseline is evaluated by the weights of its last step: leave out --averaged")
        if self.averaged and isinstance(kind, Segmentation):
            raise UsageError(_OF_MASKS)
        if self.ray and isinstance(kind, Segmentation | Transfer):
            name = type(kind).__name__.lower()
            raise UsageError(f"--ray extracts features, of which {name} uses none: leave it out")


def _progress(
    console: "Console",
) -> Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]:
    """Return bars on standard error; they are shown in terminals only."""
    from rich.progress import MofNCompleteColumn, Progress

    @contextlib.contextmanager
    def shown(description: str, total: int) -> Iterator[Callable[[int], object]]:
        columns = *Progress.get_default_columns(), MofNCompleteColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(description, total=total)
            yield lambda done: progress.advance(bar, done)

    return shown


def _earlier_names(result: "EvaluationResult") -> dict[str, Any]:
    """Return the object that earlier versions printed, which scripts read."""
    configuration, measure = result.configuration, next(iter(result.scores))
    return {
        **{name: configuration[name] for name in ("backbone", "image_size", "view", "split", "neighbors")},
        "images": result.images_per_split[configuration["split"]],
        measure: result.scores[measure].value,
    }

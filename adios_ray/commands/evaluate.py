"""The command that evaluates frozen encoders."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from adios_ray.commands.evaluation_kinds import (
    OF_MASKS,
    All,
    Kinds,
    Knn,
    Linear,
    Robustness,
    Segmentation,
    Transfer,
    prepared_for,
)
from adios_ray.config import CentralView, Seed
from adios_ray.errors import AGAIN, UsageError, resumable
from adios_ray.store import Location, local_path, split_location

if TYPE_CHECKING:
    from rich.console import Console

    from adios_ray.evaluation.result import EvaluationResult
    from adios_ray.evaluation.subject import Subject


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
            raise UsageError(OF_MASKS)
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

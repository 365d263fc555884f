"""Compare simultaneous and alternating updates of SimCLR-ADIOS: does the cheaper order learn as well?

Simultaneous updates take both players' gradients from one backward pass. Alternating updates run the slots a second
time against the updated encoder, as the authors' code does, and took 1.4 to 1.7 times as long where it was
measured. Equal epochs, several seeds each:

    python experiments/compare_orders.py --data-dir data/cifar10-5k --epochs 15 --output runs/orders.jsonl

trains 2 orders x 3 seeds in one process, appends one JSON object per run to the output (runs already in it are not
repeated) and prints the table: k-NN and linear accuracy on the test split, mean (std). 5,000 images of 32 pixels take
8 minutes per run on one core with simultaneous updates, 11 with alternating ones. Results are in docs/log.md.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from adios_ray.arguments import parse_arguments
from adios_ray.config import Count, TrialConfig
from adios_ray.data.manifest import read_manifest
from adios_ray.data.shards import open_shards
from adios_ray.errors import UsageError, exit_status
from adios_ray.evaluation.extraction import extract_features
from adios_ray.evaluation.linear import accuracy, logistic_regression
from adios_ray.evaluation.requirements import check_labels
from adios_ray.experiment.presets import preset_config
from adios_ray.experiment.trial_checks import check_trial
from adios_ray.files import append_line, complete_lines
from adios_ray.places import check_output_file, require_local
from adios_ray.store import Location, split_location
from adios_ray.training.trainer import Trainer
from adios_ray.validation import parse, parse_json

ORDERS = ("simultaneous", "alternating")
Recipe = Literal["photographs", "objects"]
RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "photographs": {
        "batch_size": 128,
        "backbone": {"name": "resnet_small"},
        "objective": {"hidden_dim": 512},
        "masking": {"slots": 4, "sparsity_weight": 0.3, "width": 8},
        "optimizer": {"encoder_lr": 0.1, "occlusion_lr": 0.05, "warmup_epochs": 1.0},
        "augment": {"min_crop_scale": 0.2},
    },
    "objects": preset_config("demo").trial().model_dump(exclude_unset=True),
}
MARK = '{"data": '
"""How each line of the output begins."""
PENALTY = 10
"""Weight of half the sum of squared weights beside the sum of all images' losses."""


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    data_dir: Location
    """Data set with train, val and test splits, whose images have one class each; a path or a URI."""
    output: Location
    """Local file of JSON lines, one per run."""
    recipe: Recipe = "photographs"
    """Settings for the kind of images."""
    epochs: Count = 15
    """Epochs of each run."""
    seeds: Count = 3
    """Runs of each order."""
    threads: Count = 1
    """CPU threads."""


def configure(options: Options, order: str, seed: int) -> TrialConfig:
    """Configure one run."""
    values = RECIPES[options.recipe]
    masking = {**values["masking"], "order": order}
    own = {"data_dir": options.data_dir, "epochs": options.epochs, "seed": seed, "masking": masking}
    return parse(TrialConfig, {**values, **own})


def train(options: Options, order: str, seed: int) -> dict[str, Any]:
    """Train one run and measure its accuracies (percent) and seconds."""
    trainer = Trainer(configure(options, order, seed), torch.device("cpu"))
    began = time.perf_counter()
    trainer.train_until(options.epochs * trainer.loader.steps_per_epoch)
    seconds = time.perf_counter() - began
    knn = 100 * trainer.evaluate("test").accuracy
    linear = 100 * linear_accuracy(trainer)
    return {
        "data": name_of(options.data_dir),
        "recipe": options.recipe,
        "order": order,
        "seed": seed,
        "epochs": options.epochs,
        "knn": round(knn, 2),
        "linear": round(linear, 2),
        "seconds": round(seconds),
    }


def name_of(data_dir: Location) -> str:
    """Name a data set by its folder and its checksum: others may have the same name."""
    return f"{split_location(data_dir)[1]} {read_manifest(data_dir).checksum[:8]}"


def linear_accuracy(trainer: Trainer) -> float:
    """Measure the test accuracy, 0 to 1, of logistic regression on standardized frozen features."""
    backbone, size, view = trainer.networks.backbone, trainer.image_size, trainer.config.evaluation.view
    train, test = (
        (extract_features(backbone, split, np.arange(len(split)), size, view), torch.from_numpy(split.labels))
        for split in (trainer.train_split, trainer.dataset.split("test"))
    )
    classifier = logistic_regression(*train, penalty=PENALTY / len(trainer.train_split), standardize=True)
    return accuracy(classifier, *test).top1


def table(runs: list[dict[str, Any]]) -> str:
    """Format one line per data set, recipe, number of epochs and order: mean (std) over seeds."""
    lines = ["| data | recipe | epochs | order | k-NN | linear | seconds per run |", "|---|---|---|---|---|---|---|"]
    for kind in sorted({_kind(run) for run in runs}):
        own = [run for run in runs if _kind(run) == kind]
        columns = [[run[key] for run in own] for key in ("knn", "linear", "seconds")]
        knn, linear = (_with_deviation(column) for column in columns[:2])
        named = " | ".join(map(str, kind))
        lines.append(f"| {named} | {knn} | {linear} | {statistics.median(columns[2]):.0f} |")
    return "\n".join(lines)


def _kind(run: dict[str, Any]) -> tuple[str, str, int, str]:
    """Return what runs that differ in their seeds share; earlier versions did not write the recipe."""
    return run["data"], run.get("recipe", "photographs"), run["epochs"], run["order"]


def _with_deviation(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ({statistics.stdev(values):.1f})" if values[1:] else "")


def main(options: Options) -> None:
    """Train the runs that are missing, then print the table."""
    torch.set_num_threads(options.threads)
    name, output = name_of(options.data_dir), require_local(options.output, "--output")
    check_output_file(output, MARK, options.data_dir)
    lines = enumerate(complete_lines(output).splitlines(), start=1)
    runs = [parse_json(dict[str, Any], line, f"{output}, line {number}", UsageError) for number, line in lines]
    done = {(*_kind(run), run["seed"]) for run in runs}
    data = str(options.data_dir)
    # Orders and seeds differ in nothing that is checked.
    check_trial(configure(options, ORDERS[0], seed=0), read_manifest(data), data, gpu=False)
    check_labels(open_shards(data), "linear", ("train", "test"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()
    # Seeds outside, orders inside: whenever it is interrupted, both orders have about the same number of runs.
    for seed in range(options.seeds):
        for order in ORDERS:
            if (name, options.recipe, options.epochs, order, seed) in done:
                continue
            # Written after each run, so that an interruption loses one run at most.
            runs.append(train(options, order, seed))
            append_line(output, json.dumps(runs[-1]))
    print(table(runs))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

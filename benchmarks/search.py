"""A search against its rivals, on real trainings of equal compute, judged on test images alone; hours.

Usage: ``python benchmarks/search.py --data objects --data-dir DIR --output FILE.jsonl [--rows ...] [--seeds ...]``.
Each finished row and seed is appended to FILE.jsonl at once; a second start skips it, and continues an interrupted one.
``--summarize`` prints one JSON object: each row's scores on test, and its gains over the row ``--over`` by the same
seeds (``random`` by default) with 95 % intervals. ``--plot FILE.svg`` also draws the best test accuracy over compute.

Rows; P is the population and E the epochs, so that all train P E epochs with an evaluation after each:

- ``configured``: P trainings with the configured values; ``configured_long``: one training of P E epochs
- ``random``: P trainings, the first with the configured values; ``asha_hyperopt``: as many as P E epochs allow
- ``pbt_before``: PBT as it was: the accuracy on all of val decides and chooses, significance 1, no control
- ``pbt``: PBT; ``pbt_averaged``: the same by the fitness of averaged weights; ``pbt_explore``: with
  ``explore_without_copy``; ``pb2``: PB2
- ``schedule_free``, ``schedule_free_long``: as the configured rows, by schedule-free AdamW (Defazio et al. 2024)

Searches have the study's search space. That of objects, ``pbt_demo``, decides after every epoch (``interval_epochs`` 1)
and lets up to half of the population copy (``quantile_fraction`` 0.5; the default is 0.25), which is the hardest case
for PBT without a test; that of CIFAR-10 decides every fourth epoch and lets a quarter copy. The encoder is chosen by
val. All trials train in this process by the package's own decisions (``real_trainings.py``), whose reports are those of
the real backend, bit for bit. Data of the two studies::

    adios-ray prepare --dataset objects --output DIR --num-images 33400 --train-images 2100 --val-images 450 \
        --test-images 5000 --image-size 32
    adios-ray prepare --dataset cifar10 --source CIFAR10 --output DIR --train-images 5000 --val-images 1000 \
        --test-images 5000

``results/search_objects.jsonl`` and ``results/search_cifar10.jsonl`` hold the rows and seeds that are finished so far.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from judging import Watched, trial_record
from real_trainings import Trainers, train_population
from schedule_free import ScheduleFreeTrainer
from search_summary import summary

from adios_ray.arguments import parse_arguments
from adios_ray.config import Scheduler, replaced
from adios_ray.errors import ConfigError, exit_status
from adios_ray.experiment.config import SPACES, ExperimentConfig
from adios_ray.experiment.presets import preset_config
from adios_ray.files import append_line, complete_lines
from adios_ray.places import check_output_file
from adios_ray.run_directory import RunDirectory
from adios_ray.search.spaces import Search, SearchSpace, load_space
from adios_ray.search.state import PopulationState
from adios_ray.tracking.decisions import read_lineage, read_refusals
from adios_ray.training.trainer import Trainer
from adios_ray.trial_report import TrialReport


class Study(NamedTuple):
    """A setting of the benchmark.

    Attributes:
        config: The configured values, by section.
        space: Name of the search space.
        population: P.
        epochs: E.
    """

    config: ExperimentConfig
    space: str
    population: int
    epochs: int


Data = Literal["objects", "cifar10", "demo"]


def study_of(data: Data) -> Study:
    """Return the study of a data set; "demo" is that of objects at the size of ``make demo``."""
    demo = preset_config("demo")
    if data == "demo":
        return Study(demo, "pbt_demo", demo.population, demo.epochs)
    if data == "objects":
        return Study(demo, "pbt_demo", 8, 20)
    changes = {
        "objective.hidden_dim": 512,
        "objective.output_dim": None,
        "masking.slots": 4,
        "optimizer.encoder_lr": 0.1,
        "optimizer.warmup_epochs": 2,
        "augment": {"min_crop_scale": 0.2},
        "batch_size": 128,
    }
    return Study(replaced(demo, {**changes, "preset": None}), "pbt_cifar10", 4, 36)


class AccuracyTrainer(Trainer):
    """Reports the accuracy on all of val as fitness, without what a test of differences needs."""

    def train_to_report(self, idle_s: float = 0.0) -> TrialReport:
        """See ``Trainer.train_to_report``."""
        report = super().train_to_report(idle_s)
        value = math.nan if self.divergence else self.evaluate("val").accuracy
        unknown = {
            "standard_error": None,
            "outcomes": None,
            "holdout_fitness": math.nan,
            "holdout_standard_error": None,
        }
        return report.model_copy(update={"fitness": value, "accuracy": value, **unknown})


@dataclass(frozen=True)
class Rival:
    """One row.

    Attributes:
        scheduler: Scheduler of the search space.
        search: Search of the search space.
        options: Further options of the search space.
        searched: Whether values are searched; else all trials have the configured ones.
        long: Whether one trial trains P E epochs, instead of P trials E epochs each.
        changes: Changes of the configuration, by path.
        trainer: Class of the trainers.
    """

    scheduler: Scheduler = "none"
    search: Search | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    searched: bool = True
    long: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    trainer: type[Trainer] = Trainer


AVERAGED = {"evaluation.average_weights": True}
SCHEDULE_FREE = {
    "optimizer.encoder_lr": 0.0025,  # the default of the authors' package, for both players
    "optimizer.occlusion_lr": 0.0025,
    "evaluation.fresh_statistics": True,  # as the authors advise: BatchNorm has seen other weights than those evaluated
}
RIVALS: Mapping[str, Rival] = {
    "configured": Rival(searched=False, changes=AVERAGED),
    "random": Rival(changes=AVERAGED),
    "pbt_before": Rival("pbt", options={"significance": 1, "controls": 0}, trainer=AccuracyTrainer),
    "pbt": Rival("pbt"),
    "pbt_averaged": Rival("pbt", changes=AVERAGED),
    "pbt_explore": Rival("pbt", options={"explore_without_copy": True}),
    "pb2": Rival("pb2"),
    "asha_hyperopt": Rival("asha", "hyperopt", {"grace_epochs": 2, "reduction_factor": 3}),
    "configured_long": Rival(searched=False, long=True),
    "schedule_free": Rival(searched=False, changes=SCHEDULE_FREE, trainer=ScheduleFreeTrainer),
    "schedule_free_long": Rival(searched=False, long=True, changes=SCHEDULE_FREE, trainer=ScheduleFreeTrainer),
}


def space_of(rival: Rival, study: Study) -> SearchSpace:
    """Make a rival's search space."""
    space = load_space(SPACES / f"{study.space}.yaml", rival.scheduler, rival.search)
    values = {**space.model_dump(), **rival.options, **({} if rival.searched else {"parameters": {}})}
    return SearchSpace.model_validate(values)


def train_row(study: Study, row: str, seed: int, data_dir: Path, directory: Path) -> dict[str, Any]:
    """Train one row under one seed, and judge it.

    Args:
        study: What is trained.
        row: Name of the row.
        seed: Seed of the study; those of its trials follow from it and are the same for all rows.
        data_dir: The prepared data set.
        directory: The run directory.

    Returns:
        The line of the output file.
    """
    began, rival, budget = time.perf_counter(), RIVALS[row], study.population * study.epochs
    count = 1 if rival.long else 10 * study.population if rival.scheduler == "asha" else study.population
    changes = {"data_dir": data_dir, "seed": 1000 * seed, "epochs": budget if rival.long else study.epochs}
    config = replaced(study.config, {**changes, **rival.changes}).model_copy(update={"population": count})
    watched = Watched(directory, config.trial(), rival.trainer, budget)

    def enough(state: PopulationState) -> bool:
        watched.point(state)
        return len(state.observations) >= budget

    trainers = Trainers(directory, rival.trainer, watched.report)
    state = train_population(config, space_of(rival, study), directory, trainers, study.population, enough)
    finals = {variant: watched.finals(state, variant) for variant in watched.variants}
    trials = [trial_record(name, member, watched, finals) for name, member in state.members.items()]
    return {
        "row": row,
        "seed": seed,
        "population": study.population,
        "epochs": study.epochs,
        "reports": len(state.observations),
        "images": len(state.observations) * watched.judge.images_of_report,
        "chosen": {variant: next(iter(finals[variant]), None) for variant in watched.variants},
        "curve": [watched.curve[reports] for reports in sorted(watched.curve)],
        "trials": trials,
        "exploits": [exploit.model_dump(mode="json", exclude={"time"}) for exploit in read_lineage(directory)],
        "refusals": [refusal.model_dump(mode="json", exclude={"time"}) for refusal in read_refusals(directory)],
        "seconds": time.perf_counter() - began,
    }


def line_of(record: Mapping[str, Any]) -> str:
    """Write a record with five digits, for a file that is kept with the code."""
    rounded = json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.5g}"))
    return json.dumps(rounded, separators=(",", ":"))


def read_records(output: Path, data: Data) -> list[dict[str, Any]]:
    """Read the finished rows and seeds of an output file; none if it does not exist.

    Raises:
        ConfigError: If they are of another study.
    """
    records: list[dict[str, Any]] = [json.loads(line) for line in complete_lines(output).splitlines()]
    if others := {record["data"] for record in records} - {data}:
        raise ConfigError(f"{output} holds results of {', '.join(sorted(others))}, not of {data}: name another file")
    return records


def main(
    data: Data,
    output: Path,
    data_dir: Path | None = None,
    rows: tuple[str, ...] = tuple(RIVALS),
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5),
    summarize: bool = False,
    over: str = "random",
    plot: Path | None = None,
) -> None:
    """Train what is missing in the output file, or summarize it.

    Args:
        data: The study: a population of 8 over 20 epochs of rendered objects, of 4 over 36 epochs of CIFAR-10, or that
            of ``make demo``, on the data of objects.
        output: File of one JSON object for each row and seed; run directories are made beside it.
        data_dir: The prepared data set.
        rows: Rows to train, in this order under each seed.
        seeds: Seeds, one after another.
        summarize: Print the summary instead.
        over: Row that the summary compares the others with.
        plot: SVG file for the summary's plot.
    """
    if summarize:
        if not (records := read_records(output, data)):
            raise ConfigError(f"{output} has no finished row to summarize")
        print(json.dumps(summary(records, over, plot)))
        return
    if unknown := set(rows) - set(RIVALS):
        raise ConfigError(f"there is no row {', '.join(sorted(unknown))}; choose among {', '.join(RIVALS)}")
    if data_dir is None:
        raise ConfigError("--data-dir must name the prepared data set")
    check_output_file(output, '{"data":')
    torch.set_num_threads(1)
    output = output.absolute()  # checkpoints are found below the run directory by absolute paths
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()
    study, todo = study_of(data), [(row, seed) for seed in seeds for row in rows]
    for number, (row, seed) in enumerate(todo, start=1):
        if any((record["row"], record["seed"]) == (row, seed) for record in read_records(output, data)):
            continue
        print(f"{row}, seed {seed} ({number} of {len(todo)})", flush=True)
        directory = output.with_suffix("") / f"{row}-{seed}"
        record = train_row(study, row, seed, data_dir, directory)
        append_line(output, line_of({"data": data, **record}))
        shutil.rmtree(RunDirectory(directory).checkpoints)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: parse_arguments(main), "start again to continue"))

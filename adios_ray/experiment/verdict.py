"""Final evaluation of a run: the best trial on the test split, and the files that conclude the run."""

import math
import shlex
import sys
from pathlib import Path

import ray

from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig, replaced
from adios_ray.data.shards import read_manifest
from adios_ray.errors import RunError
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.resources import WorkerResources
from adios_ray.experiment.schedule import schedule_of
from adios_ray.measures import MEASURES
from adios_ray.run_directory import RunDirectory
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.state import Member, PopulationState
from adios_ray.tracking.records import RunSummary, read_lineage, read_results, write_summary
from adios_ray.tracking.report import write_report


def conclude(config: ExperimentConfig, run_dir: Path, state: PopulationState, resources: WorkerResources) -> Path:
    """Evaluate the best trial on the test split, once, and write summary, schedule and report.

    Args:
        config: The experiment's configuration.
        run_dir: The run directory.
        state: The population, all of whose trials have finished.
        resources: CPUs and GPUs of the evaluation.

    Returns:
        The run directory.

    Raises:
        RunError: If every trial diverged.
    """
    name, best = max(state.members.items(), key=lambda item: _comparable(item[1]))
    if best.checkpoint is None or _comparable(best) == WORST_SCORE:
        write_report(run_dir)
        raise RunError(
            f"every trial diverged; {RunDirectory(run_dir).diverged} holds the steps, lower learning rates may help"
        )
    assert config.data_dir is not None and best.score is not None
    own = replaced(config.trial(), best.values)
    # As a Ray task: the driver's node may have no GPU. Only the trial that is best on validation sees the test split:
    # the maximum over the population would be biased upward.
    judge = ray.remote(_test_fitness).options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    test_fitness = ray.get(judge.remote(own, best.checkpoint))
    manifest, rows, lineage = read_manifest(config.data_dir), read_results(run_dir), read_lineage(run_dir)
    first_epoch = min(row.epoch for row in rows)
    summary = RunSummary(
        best_trial=name,
        best_fitness=best.score,
        best_epoch=best.epoch,
        first_best_fitness=max(
            (row.fitness for row in rows if row.epoch == first_epoch and math.isfinite(row.fitness)), default=0.0
        ),
        test_fitness=test_fitness,
        chance=1 / len(manifest.classes),
        seconds=state.seconds,
        exploits=len(lineage),
        slot_changes=sum(exploit.changes_slots for exploit in lineage),
        epochs=config.epochs,
        population=config.population,
        dataset=str(manifest.recipe.get("dataset", config.data_dir)),
        command=shlex.join(sys.argv),
    )
    write_summary(run_dir, summary)
    schedule_of(run_dir, name).save(RunDirectory(run_dir).schedule)
    measure = MEASURES[config.evaluation.fitness]
    chance = f" (chance {measure.text(summary.chance)})" if measure.is_share else ""
    print(
        f"Best: {name}, {measure.label} {measure.text(best.score)} on validation, {measure.text(test_fitness)} on test"
        f"{chance}; {summary.exploits} exploits, {summary.slot_changes} changes of N, "
        f"{summary.seconds:.0f} s"
    )
    print(f"Report: {write_report(run_dir)}", flush=True)
    return run_dir


def _comparable(member: Member) -> float:
    return WORST_SCORE if member.score is None else member.score


def _test_fitness(config: TrialConfig, checkpoint: Pointer) -> float:
    """Measure the fitness of a checkpoint on the test split; runs as a Ray task."""
    from adios_ray.devices import best_device
    from adios_ray.training.trainer import Trainer

    trainer = Trainer(config, best_device())
    trainer.load(checkpoint, config)
    return trainer.evaluate("test").value

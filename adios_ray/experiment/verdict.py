"""Final evaluation of a run: the best trial on the test split, and the files that conclude the run."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from adios_ray.backend.faults import Fault, fault_of
from adios_ray.backend.node_checks import outside
from adios_ray.backend.preflight import find_refused_nodes
from adios_ray.backend.tasks import cancelled_on_error
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig, replaced
from adios_ray.console import say
from adios_ray.data.manifest import read_manifest
from adios_ray.errors import CheckpointError, FaultError, RunError, StorageError
from adios_ray.evaluation.outcomes import decoded
from adios_ray.experiment.command import repeating_command
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.resources import WorkerResources, count_workers, nodes
from adios_ray.experiment.schedule import schedule_of
from adios_ray.measures import MEASURES
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.spaces import load_space
from adios_ray.search.state import PopulationState
from adios_ray.store import Location
from adios_ray.tracking.comparison import Score, compared
from adios_ray.tracking.decisions import Exploit, read_lineage, read_refusals
from adios_ray.tracking.formatting import label, value_text
from adios_ray.tracking.lineage import last_rows
from adios_ray.tracking.records import RunSummary, write_summary
from adios_ray.tracking.report.run_data import read_run
from adios_ray.tracking.results import Row, read_results
from adios_ray.tracking.run import Run

if TYPE_CHECKING:  # the driver needs no torch for it
    from ray import ObjectRef

    from adios_ray.evaluation.fitness import Estimate

ATTEMPTS = 4
"""How often the evaluation on the test split is started."""
PAUSE_S = 5.0
"""Seconds before the second attempt, twice as many before the third, and so on."""
LAST_REPORTS = 3
"""Reports over which the holdout fitness of a trial is averaged."""


def conclude(config: ExperimentConfig, run: Run, state: PopulationState, resources: WorkerResources) -> RunSummary:
    """Evaluate the best trial on the test split, once, and write schedule, report and, last of all, the summary.

    Trials are compared by the half of val that took no part in decisions: the best of many on the other half is so by
    chance too.

    Args:
        config: The experiment's configuration.
        run: The run's record.
        state: The population, all of whose trials have finished.
        resources: CPUs and GPUs of the evaluation.

    Returns:
        The summary.

    Raises:
        RunError: If every trial diverged or collapsed.
        FaultError: If the evaluation fails again and again, or a trial that it needs has lost its last checkpoint.
        StorageError: If the run's storage stays away.
        ClaimError: If another driver has taken the run over; nothing is written then.
    """
    # Here: the first steps of a run need not wait for scipy, which this imports.
    from adios_ray.tracking.report.outcome import search_course

    storage, run_dir = run.storage, run.directory
    rows, lineage = read_results(run_dir), read_lineage(run_dir)
    finals = final_fitness(state, rows, lineage)
    if not finals:
        run.write_page()
        steps = RunDirectory(run_dir).diverged  # not there if all trials collapsed
        held = f"; {storage.place}/{steps.name} holds the steps that diverged" if storage.names(steps) else ""
        raise RunError(f"every trial diverged or collapsed{held}; lower learning rates may help")
    name = max(finals, key=lambda name: finals[name].fitness)
    space, control = load_space(RunDirectory(run_dir).space), None
    if len(state.members) > 1:
        control = best_control(state, finals, name, None if space.evolving else space.configured(config.trial()))

    def on_test(trial: str) -> OnTest:
        run.note(f"{trial} is evaluated on the test split, as soon as the cluster has a place for it", trial=trial)
        member = state.members[trial]
        assert member.checkpoint is not None
        own = replaced(config.trial(), member.values)
        try:
            return _answer(run, trial, partial(_submit, own, member.checkpoint, storage.place, resources))
        except CheckpointError as error:
            state.reopen(trial, space.interval_epochs)
            run.write(lambda: state.journal(run_dir, [trial]))
            run.write(storage.push)
            raise FaultError(
                f"{storage.place}: {trial} cannot be evaluated: {error}. Its last epochs can be trained again: run "
                f"again with --resume {storage.place}"
            ) from error

    # Only the trial that is best on validation, and what it is compared with, see the test split: the maximum over the
    # population would be biased upward.
    test = on_test(name)
    summary = _summarize(config, storage, state, rows, lineage, name, finals[name], test)
    if control is not None:
        gain = {"gain": 0.0} if control == name else gain_over_control(test.estimate, on_test(control).estimate)
        summary = summary.model_copy(update={"control": control, **gain})
    run.write(lambda: schedule_of(run_dir, name, storage.place).save(RunDirectory(run_dir).schedule))
    drawn = run.write_page(summary)
    run.write(storage.push)
    # Last, at a URI too: by its summary a run counts as finished, while one that was stopped before is concluded again.
    run.write(lambda: write_summary(run_dir, summary))
    run.write(storage.push)
    measure = MEASURES[config.evaluation.fitness]
    chance = ""
    if measure.is_share and summary.chance is not None:
        largest = f", the most frequent class {measure.text(summary.majority or 0.0)}" if summary.imbalanced else ""
        chance = f" (chance {measure.text(summary.chance)}{largest})"
    if summary.gain is not None:
        ahead = measure.difference_text(summary.gain, summary.gain_standard_error)
        say(f"Best minus control: {ahead} on test ({summary.compared})")
    values = ", ".join(f"{label(path)} {value_text(value)}" for path, value in state.members[name].values.items())
    if values:
        say(f"Values of {name}: {values}")
    say(
        f"Best: {name}, {measure.label} fitness {measure.text(summary.best_fitness, summary.best_standard_error)} on "
        f"validation, {measure.scores_text(*test.estimate[:3])} on test{chance}; "
        f"{search_course(read_run(run_dir))}, {summary.seconds:.0f} s"
    )
    if drawn:
        say(f"Report: {storage.place}/{RunDirectory(run_dir).report.name}")
    return summary


def _summarize(
    config: ExperimentConfig,
    storage: RunStorage,
    state: PopulationState,
    rows: Sequence[Row],
    lineage: Sequence[Exploit],
    name: str,
    final: "Final",
    test: "OnTest",
) -> RunSummary:
    """Summarize a run whose best trial is ``name``."""
    assert config.data_dir is not None
    run_dir, best = storage.directory, state.members[name]
    manifest = read_manifest(config.data_dir)
    first_epoch = min(row.epoch for row in rows)
    return RunSummary(
        best_trial=name,
        best_fitness=final.fitness,
        best_standard_error=final.standard_error,
        best_epoch=best.epoch,
        first_best_fitness=max(
            (_final([row]).fitness for row in rows if row.epoch == first_epoch and math.isfinite(row.fitness)),
            default=0.0,
        ),
        test_fitness=test.estimate.value,
        test_standard_error=test.estimate.standard_error,
        test_accuracy=test.estimate.accuracy,
        test_images=manifest.images("test"),
        chance=None if manifest.multi_label else 1 / len(manifest.classes),
        majority=test.majority,
        multi_label=manifest.multi_label,
        seconds=state.seconds,
        exploits=sum(exploit.copies for exploit in lineage),
        refusals=len(read_refusals(run_dir)),
        slot_changes=sum(exploit.changes_slots for exploit in lineage),
        epochs=config.epochs,
        population=len(state.members),
        dataset=str(manifest.recipe.get("dataset", config.data_dir)),
        command=repeating_command(config, storage.place),
    )


def _submit(
    config: TrialConfig, checkpoint: Pointer, place: Location, resources: WorkerResources
) -> "ObjectRef[OnTest]":
    """Start the evaluation on the test split as a Ray task, on a node that can train: the driver's may have no GPU."""
    assert config.data_dir is not None
    refused = find_refused_nodes(place, config.data_dir, resources.gpus > 0)
    # If no other node can hold it, it fails on one of these, with the reason, instead of waiting without end.
    holds = count_workers(resources, [node for node in nodes() if node.id not in refused])
    labels = outside(refused) if holds else {}
    task = ray.remote(_on_test).options(num_cpus=resources.cpus, num_gpus=resources.gpus, label_selector=labels or None)
    return task.remote(config, checkpoint, place, resources.gpus)


def _answer(run: Run, trial: str, submit: Callable[[], "ObjectRef[OnTest]"]) -> "OnTest":
    """Return what the evaluation of a trial on the test split finds, after a bounded number of attempts.

    Raises:
        CheckpointError: If the trial's checkpoint cannot be read.
        FaultError: If each failed, with the reason of the last; the trial's log has all of them whole.
        StorageError: If the run's storage stays away.
    """
    lost: CheckpointError | None = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            found = run.read(partial(_evaluated, submit))
        except RayTaskError as error:
            lost = error.cause if isinstance(error.cause, CheckpointError) else None
            fault = Fault(f"{type(error.cause).__name__}: {error.cause}", str(error))
        except RayError as error:  # its process or node was lost, or ran out of memory
            fault, lost = fault_of(error), None
        else:
            return found
        again = " and is started again" if attempt < ATTEMPTS else ""
        text = f"its evaluation on the test split failed ({fault.reason}){again}"
        run.trial_note(trial, text, fault.details, "restart")
        if again:
            time.sleep(PAUSE_S * attempt)
    if lost:
        raise lost
    layout, place = RunDirectory(run.directory), run.storage.place
    raise FaultError(
        f"{place}: the evaluation on the test split failed {ATTEMPTS} times, at last with {fault.reason}; "
        f"{place}/{layout.relative(layout.log(trial))} has the traceback. No training is lost: fix the cause, then run "
        f"again with --resume {place}"
    )


def _evaluated(submit: Callable[[], "ObjectRef[OnTest]"]) -> "OnTest":
    """Wait for one evaluation on the test split.

    Raises:
        OSError: If the run's storage failed there.
        RayError: If it failed otherwise.
    """
    task = submit()
    try:
        with cancelled_on_error([task]):
            found: OnTest = ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise OSError(str(error.cause)) from error
        raise
    return found


class Final(NamedTuple):
    """A trial's fitness in the final comparison.

    Attributes:
        fitness: Mean holdout fitness of the last reports of the weights that the trial holds.
        standard_error: Its standard error over images; None where it is unknown.
    """

    fitness: float
    standard_error: float | None


def best_control(
    state: PopulationState, finals: Mapping[str, Final], best: str, configured: Mapping[str, Any] | None = None
) -> str | None:
    """Return the best of the controls, which may be the best trial itself; None without any that can be evaluated.

    Args:
        state: The population.
        finals: How each trial enters the comparison.
        best: The best trial.
        configured: The configured values, by path, of a search whose trials keep their values: a trial that trained as
            long as the best with these is a control. Empty where nothing is searched: then there is none.
    """
    epoch = state.members[best].epoch
    controls = [
        name
        for name, member in state.members.items()
        if name in finals and (member.control or (configured and member.values == configured and member.epoch == epoch))
    ]
    return max(controls, key=lambda name: finals[name].fitness, default=None)


def gain_over_control(best: "Estimate", control: "Estimate") -> dict[str, float | None]:
    """Compute the fields of ``RunSummary`` by which the best trial is better on test than the control.

    On test, where neither was chosen: of many trials, the best on val is better there by luck as well.
    """
    outcomes = [None if each.outcomes is None else decoded(each.outcomes) for each in (best, control)]
    first, second = (Score(0, each.value, each.standard_error) for each in (best, control))
    difference = compared(first, second, *outcomes)
    return {"gain": best.value - control.value, "gain_standard_error": difference.standard_error}


def final_fitness(state: PopulationState, rows: Sequence[Row], lineage: Sequence[Exploit]) -> dict[str, Final]:
    """Compute by what each trial enters the final comparison, without trials that diverged or collapsed.

    Args:
        state: The population.
        rows: Reports of all trials, those of a trial by epoch.
        lineage: Exploits in the order of their decisions.
    """
    return {
        name: _final(last_rows(rows, lineage, name, member.epoch, LAST_REPORTS))
        for name, member in state.members.items()
        if member.checkpoint is not None and member.score not in (None, WORST_SCORE)
    }


def _final(rows: Sequence[Row]) -> Final:
    """Average the holdout fitness of the last reports of a trial's weights."""
    held = [(row.holdout_fitness, row.holdout_standard_error) for row in rows if math.isfinite(row.holdout_fitness)]
    # Earlier versions had no holdout.
    held = held or [(row.fitness, row.standard_error) for row in rows if math.isfinite(row.fitness)]
    errors = [error for _, error in held if error is not None]
    # The reports are of the same images, whose outcomes hardly change between them: no error averages out.
    return Final(mean(value for value, _ in held), mean(errors) if errors else None)


class OnTest(NamedTuple):
    """The result of an evaluation on the test split.

    Attributes:
        estimate: The fitness.
        majority: Share of the images that are of the most frequent class; None where they have several labels each.
    """

    estimate: "Estimate"
    majority: float | None


def _on_test(config: TrialConfig, checkpoint: Pointer, run: str, gpus: float) -> OnTest:
    """Estimate the fitness of a run's checkpoint on the test split; runs as a Ray task that has so many GPUs."""
    import numpy as np

    from adios_ray.devices import CPU, best_device, limit_memory
    from adios_ray.training.trainer import Trainer

    # Not by what torch sees: where the user has initialized Ray, a task without GPUs may see them all.
    device = best_device() if gpus else CPU
    limit_memory(device, gpus)
    config = replaced(config, {"initial_weights": None})  # the checkpoint has all weights, and that file may be gone
    trainer, storage = Trainer(config, device), RunStorage(run)
    here = storage.here(checkpoint)
    try:
        storage.open()
        storage.fetch(here)
    except OSError as error:  # retried by the driver, which says so
        raise StorageError(str(error)) from error
    trainer.load(here, config)
    storage.close()
    labels = trainer.dataset.split("test").labels
    return OnTest(
        trainer.evaluate("test"), None if labels.ndim == 2 else float(np.bincount(labels).max() / len(labels))
    )

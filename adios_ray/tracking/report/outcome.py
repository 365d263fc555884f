"""The first screen of a report: what won, with which values, by how much, how sure, and what to do next."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from adios_ray.config import STOPPING
from adios_ray.console import counted
from adios_ray.run_directory import REPORTS_FILE, RunDirectory
from adios_ray.tracking.formatting import SLOTS, value_text
from adios_ray.tracking.records import RunSummary
from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.report.significance import sureness
from adios_ray.tracking.report.verdicts import Remedy, Verdict

LOST_CONTROLS = "the control diverged or collapsed"
"""Why a run with controls has nothing to compare its best trial with."""


@dataclass(frozen=True)
class WinningValue:
    """A searched value of the winner."""

    path: str
    last: str
    course: str
    """How it changed along the ancestry, e.g. "0.06 → 0.048 → 0.2"; "" if it did not."""
    at: float | None
    """Position of the last value between the bounds, 0 to 1; None without bounds."""
    bounds: str


@dataclass(frozen=True)
class NextStep:
    """A recommended next command."""

    reason: str
    command: str


@dataclass(frozen=True)
class Outcome:
    """The first screen."""

    headline: str
    score: str
    score_note: str
    gain: str
    sureness: str
    values: list[WinningValue]
    steps: list[NextStep]


def outcome_of(run: RunData, verdicts: Sequence[Verdict]) -> Outcome:
    """Summarize a run, finished or not."""
    if run.best is None:
        headline = f"No trial has a score{'' if run.without_a_score else ' yet'}"
        return Outcome(headline, "–", "", "–", "", [], _steps(run, verdicts))
    trial, epoch = run.best
    summary, text = run.summary, run.measure.text
    if summary is None:
        row = next(row for row in run.by_trial[trial] if row.epoch == epoch)
        note = f"epoch {epoch}, on the validation images of selection; the best of many scores is partly luck"
        return Outcome(
            f"{trial} leads",
            text(row.fitness, row.standard_error),
            note,
            *_gain_so_far(run),
            _values(run),
            _steps(run, verdicts),
        )
    test = text(summary.test_fitness, summary.test_standard_error)
    images = "validation images that no decision used" if run.has_holdout else "the validation images of selection"
    return Outcome(
        f"{trial} won",
        text(summary.best_fitness, summary.best_standard_error),
        f"epoch {epoch}, mean of the last reports on {images}; on test {test}",
        *_gain(run),
        _values(run),
        _steps(run, verdicts),
    )


def search_course(run: RunData) -> str:
    """Say in one line what a search did: exploits, or trials that were stopped and how many combinations were tried."""
    if run.evolves:
        left = [f"{counted(len(run.drops), 'trial')} left in the opening"] * bool(run.drops)
        exploits = counted(sum(exploit.copies for exploit in run.exploits), "exploit")
        changes = [f"{counted(sum(e.changes_slots for e in run.exploits), 'change')} of N"] * (SLOTS in run.searched)
        return ", ".join([*left, exploits, f"{len(run.refusals)} refused", *changes])
    if not run.searched:
        return "no search"
    tried = {str(sorted(row.values.items())) for row in run.rows}
    course = [f"{counted(len(tried), 'combination')} of values tried"]
    if run.summary is not None:
        last = [rows[-1] for rows in run.by_trial.values()]
        stopped = Counter(row.epoch for row in last if row.epoch < run.summary.epochs and math.isfinite(row.fitness))
        if stopped or run.scheduler in STOPPING:
            course.append(_stops(stopped, len(last)))
    return ", ".join(course)


def _stops(stopped: Counter[int], trials: int) -> str:
    """Say how many of the trials were stopped early, and when."""
    if not stopped:
        return "no trial stopped early"
    if len(stopped) <= 3:
        when = ", ".join(f"{number} at epoch {epoch}" for epoch, number in sorted(stopped.items()))
    else:
        when = f"between epochs {min(stopped)} and {max(stopped)}"
    return f"{stopped.total()} of {trials} trials stopped early ({when})"


def _gain(run: RunData) -> tuple[str, str]:
    summary = run.summary
    assert summary is not None
    if summary.gain is None:
        error = _error_of_difference(summary.best_standard_error, _error_of_first(run))
        text = run.measure.difference_text(summary.best_fitness - summary.first_best_fitness, error)
        if not run.searched:
            return text, "over the best first report: nothing was searched"
        without = "the run has no control" if run.evolves else "no trial trained as long with the configured values"
        control = LOST_CONTROLS if run.lost_controls else without
        return text, f"over the best first report: {control}, so some of it is mere training"
    if summary.control == summary.best_trial:
        return run.measure.difference_text(0.0), f"{summary.compared}: the search found nothing better"
    text = run.measure.difference_text(summary.gain, summary.gain_standard_error)
    if not summary.gain_standard_error:
        return text, f"{summary.compared}; its error is unknown"
    return text, f"{summary.compared}: {sureness(summary.gain / summary.gain_standard_error)} over images, of one seed"


def _error_of_difference(*errors: float | None) -> float | None:
    """Bound the standard error of a difference: scores on the same images are correlated, which makes it smaller."""
    known = [error for error in errors if error is not None]
    return math.hypot(*known) if len(known) == len(errors) else None


def _error_of_first(run: RunData) -> float | None:
    """Return the standard error of the best score among the first reports; None where it is unknown."""
    epoch = min(row.epoch for row in run.rows)
    first = [row for row in run.rows if row.epoch == epoch and math.isfinite(row.holdout_fitness)]
    return max(first, key=lambda row: row.holdout_fitness).holdout_standard_error if first else None


def _gain_so_far(run: RunData) -> tuple[str, str]:
    """Compare the best of the last reports' trials with the best control, at the last epoch that both have reported."""
    # Stable: of equal trials the first comes first, as the one that leads.
    last = sorted((list(rows.values())[-1] for rows in run.comparable.values()), key=lambda row: -row.fitness)
    controls = [row.trial for row in last if row.trial in run.controls]
    if not controls:
        reason = "no control has a score yet" if run.controls else "the run has no control"
        return "–", LOST_CONTROLS if run.lost_controls else reason
    name, control = last[0].trial, controls[0]
    if name == control:
        return run.measure.difference_text(0.0), f"{control}, which leads, is itself the control"
    pair = run.rows_at_common_epoch([name, control])
    if not pair:
        return "–", f"{name} and {control}, the control, have no report of the same epoch"
    text = run.measure.difference_text(pair[0].fitness - pair[1].fitness, run.difference(*pair).standard_error)
    return text, f"{name} minus {control} at epoch {pair[0].epoch}; tested at the end"


def _values(run: RunData) -> list[WinningValue]:
    rows = run.ancestral_rows
    found = []
    for path, last in rows[-1].values.items() if rows else ():
        course = [text for text, _ in groupby(value_text(row.values[path]) for row in rows if path in row.values)]
        shown = course if len(course) <= 4 else [course[0], "…", *course[-2:]]
        bounds = run.bounds.get(path)
        numeric = bounds is not None and isinstance(last, int | float)
        found.append(
            WinningValue(
                path,
                value_text(last),
                " → ".join(shown) if len(course) > 1 else "",
                min(max(bounds.position(last), 0.0), 1.0) if bounds is not None and numeric else None,
                f"{value_text(bounds.low)} to {value_text(bounds.high)}" if bounds is not None else "",
            )
        )
    return found


def _steps(run: RunData, verdicts: Sequence[Verdict]) -> list[NextStep]:
    """Choose what to do next, most useful first."""
    if run.without_a_score:
        return list(_reproductions(run))
    if run.summary is None:
        return list(_steps_before_the_end(run))
    remedies = {verdict.remedy for verdict in verdicts if verdict.remedy is not None}
    return [*_remedy_steps(run, run.summary, remedies), *_evaluation_step(run, run.summary)]


def _steps_before_the_end(run: RunData) -> Iterator[NextStep]:
    """Say how to follow a run that is training, and how to resume it."""
    where = shlex.quote(run.where)
    resume = f"adios-ray train --resume {where}"
    if run.state == "interrupted":
        yield NextStep("continue the run", resume)
    else:
        yield NextStep("see the newest state", f"adios-ray report {where}{'' if run.uri else ' --open'}")
        yield NextStep("if the run is interrupted", resume)


def _remedy_steps(run: RunData, summary: RunSummary, remedies: Set[Remedy]) -> Iterator[NextStep]:
    """Give the commands of the verdicts' remedies."""
    layout = RunDirectory(Path())
    if "train longer" in remedies:
        schedule = shlex.quote(f"{run.where}/{layout.schedule}")
        output = shlex.quote(f"{run.name if run.uri else run.where}-longer")
        longer = f"adios-ray replay --schedule {schedule} --epochs {2 * summary.epochs} --output {output}"
        what = "schedule" if run.evolves else "values"
        reason = f"train the winner's {what} twice as long; {REPORTS_FILE} of the output then has the numbers"
        yield NextStep(reason, longer)
    if "another seed" in remedies:
        # The seeds of its trials are this one and those that follow it: none may be one of these.
        seed = int((run.config or {}).get("seed", 0)) + len(run.by_trial)
        again = f"{_without(summary.command, '--seed', '--name')} --seed {seed}"
        yield NextStep("repeat with another seed", again)
    if "wider bounds" in remedies:
        wider = f"{_without(summary.command, '--space', '--name')} --space wider.yaml"
        yield NextStep(f"copy {run.where}/{layout.space} to wider.yaml, widen its bounds, and search again", wider)


def _evaluation_step(run: RunData, summary: RunSummary) -> Iterator[NextStep]:
    """Give the command that evaluates the winner, if the run names its data."""
    config = run.config or {}
    if data_dir := config.get("data_dir"):
        checkpoint = f"{run.where}/{RunDirectory(Path()).checkpoint(summary.best_trial, summary.best_epoch)}"
        kind, how = _evaluation(summary)
        averaged = " --averaged" if config.get("evaluation", {}).get("average_weights") else ""
        evaluate = f"adios-ray evaluate {kind} --checkpoint {shlex.quote(checkpoint)}"
        yield NextStep(f"evaluate the winner {how}", f"{evaluate} --data-dir {shlex.quote(data_dir)}{averaged}")


def _reproductions(run: RunData) -> Iterator[NextStep]:
    """Say how to look into a step that diverged, if its folder is there: trials that collapsed have none."""
    for trial, rows in run.by_trial.items():
        step = RunDirectory(run.path).diverged_step(trial, rows[-1].epoch)
        if run.uri or step.exists():  # a copy of a run lacks them
            place = f"{run.where}/{RunDirectory(run.path).relative(step)}"
            reason = "lower the learning rates in the search space and search again; this repeats a step that diverged"
            yield NextStep(reason, f"adios-ray reproduce {shlex.quote(place)}")
            return


def _evaluation(summary: RunSummary) -> tuple[str, str]:
    """Choose the kind of evaluation that the labels of a run's data allow, and say how it evaluates."""
    if summary.multi_label:
        return "multilabel", "with a classifier for each label"
    if summary.chance == 1:  # of a single class
        return "labelfree", "by all scores that need no labels"
    return "linear", "with a linear classifier"


def _without(command: str, *flags: str) -> str:
    """Remove flags and their values from a command line; without its name, a run does not resume the one it repeats."""
    words, kept = shlex.split(command), []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in flags:
            skip = True
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return shlex.join(kept)

"""Decisions of every scheduler where the truth is known: closed forms and a model of noisy training, no network.

Usage: ``python benchmarks/schedulers.py [--seeds 20] [--lcbench FILE]``. Prints one JSON object; at 20 seeds it takes
some minutes on two cores. The schedulers are the package's own, with a driver that trains all trials in this process.

- ``toys``: two problems of PBT-Zoo (Chebykin et al., TMLR 2025, section 5.2), 22 trials, 50 epochs, factor 2. In
  ``plain``, a low value is always better (the best is 1.19973). In ``time_linked``, what is better now is worse later:
  the best constant value reaches 1.097, the best schedule 1.198. ``naive_pbt`` is written from Jaderberg et al. (2017).
- ``drift``: mean N at the end, where N costs time and has no effect; and how many of 8 final trials descend from slow
  trials, where those are better. ``reports over trials x epochs``: above 1 where copies of donors behind repeat epochs.
  ``by last scores`` restates the asynchronous decisions of earlier versions.
- ``noisy``: a model of fitness on rendered objects (``objects_curves.py``). As in a run, the first trial has configured
  values, populations from 8 on have a control, and the trial is chosen by its last reports on the holdout. ``over
  random``: true fitness of the chosen trial minus that of random search with as many epochs, in points. ``donor
  better``: share of copies whose donor was truly better; ``false exploits per decision``: copies whose donor was not
  truly better, as a share of all tests, which a level of significance bounds; ``points per exploit``: mean true
  difference of donor and trial. Keys are landscape, population, and the noise of a report.
- ``lcbench``: learning curves of 34 tasks (``lcbench.py``). ``regret``: the best of 4,000 configurations minus the best
  accuracy within equal epochs, in points. ``decisions``, and how many were unlike those of Ray's own ASHA, of the
  published rule restated, and of Syne Tune's variant, in which a trial's own score counts for the quantile.
"""

import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import lcbench
from closed_forms import ASYNCHRONOUS, BEFORE, SYNCHRONOUS, TOY_SPACES, Course, run_drift, run_slow, run_toy
from known_truth import MEMORY
from noisy_trainings import EVERYWHERE, LANDSCAPES, NOISES, NOISY_SPACES, POPULATIONS, Outcome, noisy_row, run_noisy

from adios_ray.arguments import parse_arguments
from adios_ray.config import Count
from adios_ray.errors import exit_status

SLOW = (1.5, 2.0, 3.0)
"""Times that an epoch takes on the slow half of the nodes."""
Job = tuple[Callable[..., Any], tuple[Any, ...]]


def run_lcbench(file: Path, name: str, task: str, seed: int) -> lcbench.Searched:
    """Search a task of LCBench."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        return lcbench.search(file, name, task, Path(directory), seed)


def summary(values: list[float], digits: int = 4) -> dict[str, float]:
    """Summarize runs by mean and standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), digits), "std": round(spread, digits)}


def end_at_signals() -> None:
    """Let signals end a worker process, without a traceback of its own."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def call(job: Job) -> Any:
    """Run a job in a worker process."""
    function, arguments = job
    return function(*arguments)


@dataclass(frozen=True)
class Options:
    """Size of the benchmark."""

    seeds: Count = 20
    """Populations of each row."""
    lcbench: Path | None = None
    """LCBench's surrogate network (lcbench_surrogate.onnx, lcbench_tasks.json beside it)."""


def main(options: Options) -> None:
    """Run every problem under every scheduler."""
    seeds = options.seeds
    toys = [(name, linked) for linked in (False, True) for name in ("naive_pbt", *TOY_SPACES)]
    noisy = [
        (name, landscape, population, noise)
        for landscape in LANDSCAPES
        for population in POPULATIONS
        for noise in NOISES
        for name in NOISY_SPACES
        # Without noise, reports have no standard errors, and there is no test.
        if (name in EVERYWHERE or population == 8) and (noise or name in ("random", "pbt"))
    ]
    searches = []
    if options.lcbench is not None:
        tasks = lcbench.task_numbers(options.lcbench)
        searches = [(options.lcbench, name, task) for name in lcbench.SPACES for task in tasks]
    rows: list[Job] = [
        *((run_toy, row) for row in toys),
        *((run_drift, (decisions,)) for decisions in (BEFORE, ASYNCHRONOUS, SYNCHRONOUS)),
        *((run_slow, (slow, decisions)) for slow in SLOW for decisions in (BEFORE, ASYNCHRONOUS)),
        *((run_noisy, row) for row in noisy),
        *((run_lcbench, row) for row in searches),
    ]
    # The drift is small beside its spread; tasks are many.
    counts = {run_drift: 2 * seeds, run_lcbench: max(1, seeds // 10)}
    jobs = [(function, (*row, seed)) for function, row in rows for seed in range(counts.get(function, seeds))]
    began = time.perf_counter()
    # Not multiprocessing's Pool, which waits for ever for a worker that a signal ended while it fetched a job.
    with ProcessPoolExecutor(2, initializer=end_at_signals) as pool:
        done = pool.map(call, jobs)
        found = {(function, row): list(islice(done, counts.get(function, seeds))) for function, row in rows}
    result: dict[str, Any] = {"seeds": seeds, "seconds": round(time.perf_counter() - began)}
    result["toys"] = {
        problem: {name: summary(found[run_toy, (name, linked)], 5) for name, of in toys if of == linked}
        for problem, linked in (("plain", False), ("time_linked", True))
    }
    result["drift"] = {
        decisions: {
            "mean N": drift_row(found[run_drift, (decisions,)]),
            **{
                f"descendants of trials {slow:g} times as slow": drift_row(found[run_slow, (slow, decisions)])
                for slow in SLOW
                if decisions != SYNCHRONOUS
            },
        }
        for decisions in (BEFORE, ASYNCHRONOUS, SYNCHRONOUS)
    }
    result["noisy"] = {}
    for row in noisy:
        name, landscape, population, noise = row
        rivals = cast(list[Outcome], found[run_noisy, ("random", *row[1:])])
        key = f"{landscape}, {population} trials, {100 * noise:g} points"
        result["noisy"].setdefault(key, {})[name] = noisy_row(cast(list[Outcome], found[run_noisy, row]), rivals)
    if searches:
        result["lcbench"] = {
            name: lcbench_row([each for row in searches if row[1] == name for each in found[run_lcbench, row]])
            for name in lcbench.SPACES
        }
    print(json.dumps(result))


def drift_row(courses: list[Course]) -> dict[str, float]:
    """Summarize the outcomes of trials of uneven speed."""
    reports = statistics.fmean(course.reports for course in courses)
    return {**summary([course.found for course in courses], 2), "reports over trials x epochs": round(reports, 2)}


def lcbench_row(found: list[lcbench.Searched]) -> dict[str, Any]:
    """Summarize the searches of one scheduler over tasks and seeds."""
    row = {
        "regret": summary([each.regret for each in found], 2),
        "trials": statistics.fmean(each.trials for each in found),
    }
    fields = ("decisions", "unlike_ray", "unlike_rule", "unlike_syne_tune")
    return row | {name: sum(getattr(each, name) for each in found) for name in fields if found[0].decisions}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

"""Fit the model of noisy trainings in ``noisy_trainings.py`` to real populations on rendered objects.

Usage: ``python benchmarks/objects_curves.py RUN_DIR... > benchmarks/objects_curves.json``. The runs are those of a
search that changes encoder rate and sparsity weight, such as ``adios-ray train --preset demo``, at one report an epoch.
"""

import json
import math
import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tyro
from scipy.optimize import least_squares

from adios_ray.arguments import parse_arguments
from adios_ray.errors import UsageError, exit_status
from adios_ray.search.state import PopulationState
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.outcomes import read_outcomes

RATE, WEIGHT = "optimizer.encoder_lr", "masking.sparsity_weight"
GUESS = {
    "start": (0.1, 0.13, 0.3),
    "goal": (0.2, 0.32, 1.0),
    "approach": (0.02, 0.2, 0.9),
    "best_rate": (-1.5, -1.2, -0.3),
    "rate_loss": (0.0, 0.1, 0.5),
    "best_weight": (0.1, 0.5, 1.0),
    "weight_loss": (0.0, 0.05, 0.5),
}
"""Least, first and greatest value of each number of the curves."""


class RealRun:
    """The curves and outcomes of one run."""

    def __init__(self, directory: Path) -> None:
        """Read a run directory."""
        observed = PopulationState.load(directory).observations.values()
        self._observed = {(each.trial, each.epochs[1]): each for each in observed}
        lineage = read_lineage(directory)
        self._copies = {(each.trial, each.epoch): each.donor for each in lineage if each.copies}
        self._changes = {(each.trial, each.epoch) for each in lineage}
        self._epochs = sorted({epoch for _, epoch in self._observed})
        self._outcomes = {}
        for trial, epoch in self._observed:
            if (found := read_outcomes(directory, trial, epoch)) is not None:
                self._outcomes[trial, epoch] = found

    def residuals(self, numbers: dict[str, float]) -> list[float]:
        """Return measured minus modeled fitness of all reports; a copy continues from its donor's model."""
        found, state = [], dict.fromkeys({trial for trial, _ in self._observed}, numbers["start"])
        for epoch in self._epochs:
            before = dict(state)
            for trial in state:
                if (trial, epoch) not in self._observed:
                    continue
                now = self._observed[trial, epoch]
                x, y = math.log10(now.values[RATE]), now.values[WEIGHT]
                goal = numbers["goal"] - numbers["rate_loss"] * (x - numbers["best_rate"]) ** 2
                goal -= numbers["weight_loss"] * (y - numbers["best_weight"]) ** 2
                origin = before[self._copies.get((trial, epoch - 1), trial)]
                state[trial] = origin + numbers["approach"] * (goal - origin)
                found.append(now.scores[1] - state[trial])
        return found

    def variances(self) -> dict[str, list[float]]:
        """Return variances over images: of outcomes, and of differences between trials and between epochs."""
        own = self._outcomes
        pairs = [((a, e), (b, f)) for (a, e), (b, f) in combinations(own, 2)]
        across = [np.var(own[p] - own[q], ddof=1) for p, q in pairs if p[1] == q[1]]
        after = [
            np.var(own[p] - own[p[0], p[1] + 1], ddof=1)
            for p in own
            if (p[0], p[1] + 1) in own and (p[0], p[1]) not in self._copies
        ]
        return {
            "outcomes": [float(np.var(each, ddof=1)) for each in own.values()],
            "across": [float(each) for each in across],
            "after": [float(each) for each in after],
        }

    def images(self) -> int:
        """Count the images of selection."""
        return len(next(iter(self._outcomes.values())))

    def bends(self) -> list[float]:
        """Return how far each report is from the mean of the ones before and after it, where values stayed."""
        score = {key: each.scores[1] for key, each in self._observed.items()}
        return [
            score[t, e] - (score[t, e - 1] + score[t, e + 1]) / 2
            for t, e in score
            if e > 3 and (t, e - 1) in score and (t, e + 1) in score and not {(t, e - 1), (t, e)} & self._changes
        ]


def main(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Fit the model and print it.

    Args:
        runs: Run directories.

    Raises:
        UsageError: If there is none.
    """
    if not runs:
        raise UsageError("name at least one run directory")
    real = [RealRun(run) for run in runs]
    names = list(GUESS)
    low, first, high = (np.array(column) for column in zip(*GUESS.values(), strict=True))

    def residuals(vector: Any) -> list[float]:
        numbers = dict(zip(names, vector, strict=True))
        return [each for run in real for each in run.residuals(numbers)]

    fitted = least_squares(residuals, first, bounds=(low, high))
    numbers = dict(zip(names, (round(float(value), 4) for value in fitted.x), strict=True))
    means = {
        key: fmean(each for run in real for each in run.variances()[key]) for key in ("outcomes", "across", "after")
    }
    # Two trials differ by what both have of their own; two epochs of one trial by what it does not remember.
    own, memory = means["across"] / 2, 1 - means["after"] / means["across"]
    # An independent deviation of variance v bends a curve by 1.5 v; so does what images say without being kept.
    bend = np.var([each for run in real for each in run.bends()])
    forgotten = own * (1.5 - 2 * memory + 0.5 * memory**2) / fmean(run.images() for run in real)
    jitter = math.sqrt(max(0.0, float(bend) - forgotten) / 1.5)
    model = {
        "start": numbers["start"],
        "goal": numbers["goal"],
        "approach": numbers["approach"],
        "rate": [numbers["best_rate"], numbers["rate_loss"]],
        "weight": [numbers["best_weight"], numbers["weight_loss"]],
        "jitter": round(jitter, 5),
        "image_variance": round(means["outcomes"] - own, 5),
        "own_variance": round(own, 5),
        "memory": round(memory, 3),
    }
    sys.stderr.write(f"{len(fitted.fun)} reports, residual deviation {np.std(fitted.fun):.4f}\n")
    print(json.dumps(model, indent=1))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: parse_arguments(main)))

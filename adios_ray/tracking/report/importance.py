"""Which searched values mattered: permutation importance in a random forest, with a band of noise."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adios_ray.tracking.report.run_data import RunData
from adios_ray.tracking.results import Row

FEWEST_SAMPLES = 12
"""Samples below which nothing is computed: a forest would fit noise."""
MOST_SAMPLES = 600
FOLDS, TREES, SHADOWS, SEED = 4, 40, 3, 0

Floats = npt.NDArray[np.float64]


class Importance(NamedTuple):
    """The importance of each searched value.

    Attributes:
        values: By path: drop of the explained variance (R²) of held-out trials when the value is shuffled, and its
            standard error over folds.
        noise: The largest that shuffled copies of the values reached: below it, nothing is known to matter.
        samples: Number of samples.
        of_gains: Whether the samples are gains between reports (values change in training), or last scores of trials.
        r2: Explained variance of held-out trials; <= 0 if the forest explains nothing.
    """

    values: dict[str, tuple[float, float]]
    noise: float
    samples: int
    of_gains: bool
    r2: float

    @property
    def known(self) -> bool:
        """Whether any value is known to matter: its importance is above the noise."""
        return any(mean > self.noise for mean, _ in self.values.values())


class _Sample(NamedTuple):
    """A report whose values are the features, what they explain, and what else explains it."""

    row: Row
    target: float
    context: tuple[float, ...] = ()


def importance_of(run: RunData) -> Importance | None:
    """Compute the permutation importance of the searched values (Breiman 2001); None for too few reports.

    In a run whose values change, a sample is the gain between two reports of the same weights; its epoch and the score
    before it enter as further features, which are not ranked. Else it is a trial's score at the last epoch that at
    least half of the trials reached. Folds hold out whole trials. The band of noise comes from shuffled copies of the
    values among the features (Kursa and Rudnicki 2010).
    """
    samples, paths = list(_gains(run) if run.evolves else _last_scores(run)), run.searched
    if len(samples) < FEWEST_SAMPLES or len({sample.row.trial for sample in samples}) < FOLDS or not paths:
        return None
    if len({sample.target for sample in samples}) == 1:
        return None
    from sklearn.ensemble import RandomForestRegressor  # takes a second to import
    from sklearn.model_selection import GroupKFold

    rng = np.random.default_rng(SEED)
    if len(samples) > MOST_SAMPLES:
        samples = [samples[number] for number in rng.choice(len(samples), MOST_SAMPLES, replace=False)]
    features = np.array([[_number(run, path, sample.row.values.get(path)) for path in paths] for sample in samples])
    target = np.array([sample.target for sample in samples])
    context = np.array([sample.context for sample in samples], dtype=np.float64)
    groups = [sample.row.trial for sample in samples]
    shadows = np.concatenate([rng.permuted(features, axis=0) for _ in range(SHADOWS)], axis=1)
    everything = np.concatenate([features, shadows, context], axis=1)
    ranked = features.shape[1] * (1 + SHADOWS)
    drops, scores = [], []
    for train, test in GroupKFold(FOLDS).split(everything, target, groups):
        forest = RandomForestRegressor(TREES, min_samples_leaf=3, max_features=0.5, random_state=SEED)
        forest.fit(everything[train], target[train])
        base, fold = _drops(forest, everything[test], target[test], ranked, rng)
        scores.append(base)
        drops.append(fold)
    # Errors are pooled over folds before they are related to the variance: a fold of few samples has little of its own.
    variance = float(np.var(target)) or 1.0
    pooled = np.stack(drops) / variance
    means, errors = pooled.mean(axis=0), pooled.std(axis=0, ddof=1) / math.sqrt(FOLDS)
    own = len(paths)
    noise = float(max(0.0, *(means[own:] + errors[own:])))
    values = {path: (float(means[i]), float(errors[i])) for i, path in enumerate(paths)}
    ordered = dict(sorted(values.items(), key=lambda item: -item[1][0]))
    return Importance(ordered, noise, len(target), run.evolves, 1 - float(np.mean(scores)) / variance)


def _drops(
    forest: Any, features: Floats, target: Floats, ranked: int, rng: np.random.Generator
) -> tuple[float, Floats]:
    """Compute the squared error of held-out samples, and its rise when each of the first features is shuffled."""
    repeats = 3
    base = float(np.mean((forest.predict(features) - target) ** 2))
    shuffled = np.tile(features, (ranked * repeats, 1, 1))
    for number in range(ranked * repeats):
        column = number // repeats
        shuffled[number, :, column] = rng.permutation(features[:, column])
    # All at once: a forest's prediction costs more by the call than by the sample.
    predicted = forest.predict(shuffled.reshape(-1, features.shape[1])).reshape(ranked, repeats, -1)
    return base, np.asarray(((predicted - target) ** 2).mean(axis=(1, 2)) - base)


def _gains(run: RunData) -> Iterator[_Sample]:
    """Yield the gain between each two reports of the same weights, with its epoch and the score before it."""
    copies = defaultdict[str, list[int]](list)
    for exploit in run.exploits:
        if exploit.copies:
            copies[exploit.trial].append(exploit.epoch)
    for trial, reports in run.by_trial.items():
        for before, row in itertools.pairwise(reports):
            gain = row.fitness - before.fitness
            # A copy may be decided between two reports.
            if math.isfinite(gain) and not any(before.epoch <= copy < row.epoch for copy in copies[trial]):
                yield _Sample(row, gain, (row.epoch, before.fitness))


def _last_scores(run: RunData) -> Iterator[_Sample]:
    """Yield the scores at the last epoch that at least half of the trials reached."""
    last = sorted((rows[-1].epoch for rows in run.by_trial.values()), reverse=True)
    reached = last[(len(last) - 1) // 2] if last else 0
    for row in run.rows:
        if row.epoch == reached and math.isfinite(row.fitness):
            yield _Sample(row, row.fitness)


def _number(run: RunData, path: str, value: Any) -> float:
    """Encode a searched value; a category by its rank among those that occur, which a forest can split apart."""
    if isinstance(value, int | float):
        return float(value)
    return float(run.categories[path].index(str(value)))

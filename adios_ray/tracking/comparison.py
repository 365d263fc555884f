"""Comparisons of two trials: scores at one epoch, and a test whether one trial is better than the other.

Decisions of a population (without smoothing) and the verdicts of a report are by the same test.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from adios_ray.evaluation.outcomes import Outcomes, standard_error


class Score(NamedTuple):
    """A trial's score at one of its reports.

    Attributes:
        epoch: Epoch of the report.
        value: The score.
        standard_error: Of the score; None where it is not known.
        trial: Trial that reported; None for a score between two reports.
    """

    epoch: int
    value: float
    standard_error: float | None = None
    trial: str | None = None


History = tuple[Score, ...]
"""Scores at successive reports, oldest first."""

LONGEST_HISTORY = 32
_KEPT_EXACT = 16
_RECENT = 5
_USUAL_FLUCTUATION = 0.01**2
"""Variance of a report where a population's own is not known yet: in the study of searches, the first three reports of
trials with equal values deviate by 0.012 on objects, and by 0.006 on CIFAR-10."""
_STEPS_PER_UNIT = 10
_FEW = 100
"""Outcomes, of groups or of the images of a small split, whose error is an estimate; that of more is taken as known."""
_SURE = 1e-4
"""Share of the variance of a difference below which the fluctuation makes its standard error no less certain."""


def extended(history: History, score: Score) -> History:
    """Append a score; beyond 32, every second one of the older half is dropped, since scores are interpolated."""
    history = (*history, score)
    return history if len(history) <= LONGEST_HISTORY else (*history[:-_KEPT_EXACT:2], *history[-_KEPT_EXACT:])


def score_at(history: History, epoch: int) -> Score:
    """Return the score at an epoch, linear between the two reports around it; outside, that of the nearest report."""
    if epoch >= history[-1].epoch:  # nearly always: a synchronous decision asks each trial about each other
        return history[-1]
    index = bisect_left(history, (epoch,))  # scores are in the order of their epochs
    after = history[index]
    if after.epoch == epoch or index == 0:
        return after
    before = history[index - 1]
    share = (epoch - before.epoch) / (after.epoch - before.epoch)
    # The errors of two reports of one trial are nearly the same images' errors: averaging does not shrink them.
    errors = [score.standard_error for score in (before, after) if score.standard_error is not None]
    value = (1 - share) * before.value + share * after.value
    return Score(epoch, value, max(errors) if len(errors) == 2 else None)


class Fluctuation(NamedTuple):
    """How much a report deviates for its epoch alone.

    Attributes:
        variance: Of a report, in squared units of the score.
        freedom: Degrees of freedom of the variance's estimate; infinite where it is taken as known.
    """

    variance: float
    freedom: float = math.inf


class Difference(NamedTuple):
    """How much better the first of two trials is.

    Attributes:
        value: Difference of the scores.
        standard_error: Of the difference, in the same units; None where the reports say nothing about theirs.
        z: Difference over standard error; None without one.
        freedom: Degrees of freedom of the standard error; infinite where it is taken as known.
        paired: Whether the error is that of the same images' differences.
    """

    value: float
    standard_error: float | None = None
    z: float | None = None
    freedom: float = math.inf
    paired: bool = False

    def with_fluctuation(self, fluctuation: Fluctuation) -> "Difference":
        """Add to the error that each of the two reports also fluctuates by what no image shows."""
        if self.standard_error is None or not fluctuation.variance:
            return self
        added, own = 2 * fluctuation.variance, self.standard_error**2
        total = own + added
        error = math.sqrt(total)
        # Satterthwaite 1946.
        parts = (own, self.freedom), (0.0 if added < _SURE * total else added, fluctuation.freedom)
        unsure = sum((part / total) ** 2 / freedom for part, freedom in parts)
        freedom = 1 / unsure if unsure else math.inf
        return self._replace(standard_error=error, z=_ratio(self.value, error), freedom=freedom)


def estimated_fluctuation(histories: Iterable[History]) -> Fluctuation:
    """Estimate the variance by which a report deviates for this epoch alone, pooled over reports and trials.

    A difference that the next epoch does not keep is no reason for a copy, and the images of one report do not show
    it. It is seen in second differences of scores over three equally distant reports, whose variance is six times that
    of a report; what they have in common at an epoch is the curve of learning. Only each trial's last five reports
    count: weights fluctuate less and less as the learning rates fall.

    Args:
        histories: Scores of each trial.

    Returns:
        The estimate, which includes changes of single images; without three reports of two trials, a usual variance.
    """
    from scipy.sparse import csr_array  # here: the first steps of a run need not wait for the import

    found: dict[History, None] = {}  # each once: after a copy, two histories share reports of the donor
    for history in histories:
        last = history[-_RECENT:]
        for first, second, third in zip(last, last[1:], last[2:], strict=False):
            if third.epoch - second.epoch == second.epoch - first.epoch:
                found[first, second, third] = None
    by_epoch = Counter(three[2].epoch for three in found)
    triples = [three for three in found if by_epoch[three[2].epoch] > 1]
    # With the reports x of variance v, the second differences are y = C x, and M subtracts the mean of each epoch:
    # E(y' M y) = v tr(M C C'), and the degrees of freedom are those of a variance that spreads as y' M y does.
    reports = {score: column for column, score in enumerate(dict.fromkeys(chain.from_iterable(triples)))}
    columns = [reports[score] for three in triples for score in three]
    starts, weights = np.arange(0, 3 * len(triples) + 1, 3), np.tile([1.0, -2.0, 1.0], len(triples))
    second = csr_array((weights, columns, starts), shape=(len(triples), len(reports)))
    bends, gram = second @ np.array([score.value for score in reports]), (second @ second.T).toarray()
    epochs = np.array([three[2].epoch for three in triples])
    for own in (epochs == epoch for epoch in np.unique(epochs)):
        bends[own] -= bends[own].mean()
        gram[own] -= gram[own].mean(axis=0)
        gram[:, own] -= gram[:, own].mean(axis=1, keepdims=True)
    if (trace := float(np.trace(gram))) < 1e-9:
        return Fluctuation(_USUAL_FLUCTUATION)
    return Fluctuation(float(bends @ bends) / trace, trace**2 / float((gram**2).sum()))


def paired(first: Outcomes, second: Outcomes) -> Difference:
    """Compare two trials image by image, or group by group: what makes an image hard for both cancels out."""
    differences = first - second
    mean, error = float(differences.mean()), standard_error(differences)
    freedom = len(differences) - 1 if len(differences) <= _FEW else math.inf
    return Difference(mean, error, _ratio(mean, error), freedom, paired=True)


def unpaired(first: Score, second: Score) -> Difference:
    """Compare two scores by their standard errors; without them, there is no test."""
    difference = first.value - second.value
    if first.standard_error is None or second.standard_error is None:
        return Difference(difference)
    error = math.hypot(first.standard_error, second.standard_error)
    return Difference(difference, error, _ratio(difference, error))


def compared(first: Score, second: Score, outcomes: Outcomes | None, others: Outcomes | None) -> Difference:
    """Compare two scores paired where they are the means of outcomes of the same images, else by their errors."""
    if outcomes is not None and others is not None and len(outcomes) == len(others):
        if _mean_is(outcomes, first.value) and _mean_is(others, second.value):
            return paired(outcomes, others)
    return unpaired(first, second)


def _mean_is(outcomes: Outcomes, value: float) -> bool:
    """Return whether a score is the mean of outcomes, which are rounded to bytes.

    A score that is smoothed over reports is no such mean, nor is macro F1 of the outcomes that earlier versions stored
    with it: these would test something else than what ranks the trials.
    """
    return abs(float(outcomes.mean()) - value) < 1 / 255


def familywise(z: float, trials: int, freedom: float = math.inf) -> float:
    """Compute the p-value of the difference between the best and the worst of several trials (Tukey 1949).

    Args:
        z: Difference over its standard error.
        trials: How many trials the two are the best and the worst of, k >= 2.
        freedom: Degrees of freedom f > 0 of the standard error.

    Returns:
        How probable so large a range of k scores is where all trials are alike; between other trials than the best and
        the worst, differences are smaller, and the value is an upper bound.
    """
    from scipy.special import ndtr, stdtr  # here, as above

    if z <= 0:
        return 1.0
    # P(range <= r) = k int phi(x) (Phi(x + r) - Phi(x))^(k - 1) dx over the lowest score x, with r = sqrt(2) z s in
    # units of one score's error, and s the estimated error over the true one; the trapezoidal rule is exact to rounding
    # for such integrands.
    x = np.arange(-8 * _STEPS_PER_UNIT, 8 * _STEPS_PER_UNIT + 1) / _STEPS_PER_UNIT
    density = np.exp(-x * x / 2) / (_STEPS_PER_UNIT * math.sqrt(2 * math.pi))
    ratios, weights = _error_ratios(freedom)
    inside = ndtr(x + math.sqrt(2) * z * ratios[:, None]) - ndtr(x)
    p = 1 - trials * float(weights @ inside ** (trials - 1) @ density)
    # Far out, p is lost to rounding, but there each of the ordered pairs adds its own part of the tail.
    return p if p > 1e-9 else trials * (trials - 1) * float(ndtr(-z) if freedom == math.inf else stdtr(freedom, -z))


def _error_ratios(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """List values of an estimated standard error over the true one, and their probabilities."""
    if freedom == math.inf:
        return np.ones(1), np.ones(1)
    # f s^2 is distributed as chi^2 with f degrees of freedom, so that y = log s has the density exp(f (y - e^2y / 2)),
    # up to a constant. Ends and steps are chosen for the trapezoidal rule to be exact to about 1e-9.
    width = math.sqrt(35 / freedom)
    y = np.arange(-35 / freedom - width, width, 0.25 / math.sqrt(freedom))
    weights = np.exp(freedom * (y - np.exp(2 * y) / 2 + 0.5))
    return np.exp(y), weights / weights.sum()


def _ratio(difference: float, error: float) -> float:
    return difference / error if error else math.copysign(math.inf, difference) if difference else 0.0

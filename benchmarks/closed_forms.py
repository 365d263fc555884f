"""Problems in closed form for schedulers: two toys of PBT-Zoo, and trials of uneven speed."""

import heapq
import math
import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import numpy as np
from known_truth import SLOTS, WEIGHT, Measured, Values, Weights, evolve, space_of

from adios_ray.config import TrialConfig, replaced
from adios_ray.search.spaces import SearchSpace
from adios_ray.validation import parse


class Exact(ABC):
    """Base of the closed forms: reports without noise, and epochs of one second."""

    @abstractmethod
    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the fitness of weights."""

    def measure(self, weights: Weights, config: TrialConfig, random: np.random.Generator) -> Measured:
        """Report the truth."""
        return {"fitness": self.truth(weights, config)}

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return one second."""
        return 1.0


TOY_TRIALS, TOY_EPOCHS, TOY_STEPS = 22, 50, 20


@dataclass
class Toy(Exact):
    """Gradient steps on 1.2 - theta^2 whose rate is larger for a lower value h.

    Attributes:
        time_linked: Whether the distance of h from a falling line accumulates and slows all later steps.
    """

    time_linked: bool
    start: Weights = (0.9, 0.0)
    epochs: int = TOY_EPOCHS

    def train(self, weights: Weights, config: TrialConfig, epoch: int, random: np.random.Generator) -> Weights:
        """Take 20 steps."""
        return self.advance(weights, config.masking.sparsity_weight, epoch)

    def advance(self, weights: Weights, h: float, epoch: int) -> Weights:
        """Take 20 steps under h."""
        theta, distance = weights
        if self.time_linked:
            distance += abs(h - (1 - 0.02 * (epoch - 1)))
        return theta * (1 - 0.002 * max(2 - h - 0.2 * distance, 0.0)) ** TOY_STEPS, distance

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the fitness."""
        return 1.2 - float(weights[0]) ** 2


def naive_pbt(toy: Toy, seed: int) -> float:
    """Run PBT as in its paper's pseudocode (Jaderberg et al. 2017), truncation selection, one decision an epoch."""
    random = Random(seed)
    members = [(toy.start, random.uniform(0.9, 1.1)) for _ in range(TOY_TRIALS)]
    share = math.ceil(TOY_TRIALS / 4)
    for epoch in range(1, toy.epochs + 1):
        members = [(toy.advance(weights, h, epoch), h) for weights, h in members]
        members.sort(key=lambda member: -member[0][0])
        if epoch < toy.epochs:
            copies = [random.choice(members[-share:]) for _ in range(share)]
            changed = [(weights, min(max(h * random.choice((2, 0.5)), 1e-4), 1.1)) for weights, h in copies]
            members[:share] = changed
    return 1.2 - float(members[-1][0][0]) ** 2


TOY_PARAMETERS = {WEIGHT: {"low": 1e-4, "high": 1.1, "scale": "linear", "factor": 2}}
TOY_PBT = {"scheduler": "pbt", "resample_probability": 0, "controls": 0}
TOY_SPACES: dict[str, dict[str, Any]] = {
    "pbt": TOY_PBT,
    "pbt, interval 3": {**TOY_PBT, "interval_epochs": 3},
    "pbt, asynchronous": {**TOY_PBT, "synchronous": False},
    "pbt, asynchronous, interval 3": {**TOY_PBT, "synchronous": False, "interval_epochs": 3},
    "pb2, interval 3": {"scheduler": "pb2", "interval_epochs": 3, "controls": 0},
    "asha": {"scheduler": "asha", "grace_epochs": 3},
    "median": {"scheduler": "median", "grace_epochs": 3},
    "none": {"scheduler": "none"},
}


def run_toy(name: str, time_linked: bool, seed: int) -> float:
    """Return the best final fitness of a population on a toy."""
    toy = Toy(time_linked)
    if name == "naive_pbt":
        return naive_pbt(toy, seed)
    random = Random(seed)
    initial = [{WEIGHT: random.uniform(0.9, 1.1)} for _ in range(TOY_TRIALS)]
    return evolve(space_of(TOY_PARAMETERS, **TOY_SPACES[name]), toy, initial, seed).best()


SYNCHRONOUS, ASYNCHRONOUS, BEFORE = "synchronous", "asynchronous", "asynchronous, by last scores"


@dataclass
class Uneven(Exact):
    """Trials of uneven speed, whose fitness is the sum of what their values earn in each epoch.

    Attributes:
        slow: How many times as long an epoch takes on the nodes of trials of odd numbers; None for even nodes, on which
            it takes the longer the more masks a trial has.
        reports: Reports of all trials so far, one for each epoch that was trained.
    """

    slow: float | None
    start: Weights = (0.0,)
    epochs: int = 100
    reports: int = 0

    def train(self, weights: Weights, config: TrialConfig, epoch: int, random: np.random.Generator) -> Weights:
        """Gain what the values earn, with diminishing returns."""
        self.reports += 1
        return (weights[0] + (1 - abs(config.masking.sparsity_weight - 0.6)) / math.sqrt(epoch),)

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the sum of all gains."""
        return float(weights[0])

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return the cost of one step on a CPU, up to a factor."""
        if self.slow is None:
            return 3 * (config.masking.slots + 1) + 1.4
        return self.slow if int(trial[-2:]) % 2 else 1.0


def last_scores(problem: Uneven, space: SearchSpace, initial: list[Values], seed: int) -> list[tuple[int, Values]]:
    """Decide asynchronously as before: by last scores, whatever their epochs, and in place of the worse trial.

    Returns:
        The trial in which the weights of each began, and its values.
    """
    random, config = Random(seed), parse(TrialConfig, {"epochs": problem.epochs})
    generator = np.random.default_rng(seed)
    weights, values = [problem.start] * len(initial), list(initial)
    origins, epochs, decided, scores = list(range(len(initial))), [0] * len(initial), [0] * len(initial), {}

    def seconds(number: int) -> float:
        return problem.seconds(f"trial_{number:02d}", replaced(config, values[number]))

    queue = [(seconds(number), number) for number in origins]
    heapq.heapify(queue)
    while queue:
        now, number = heapq.heappop(queue)
        own = replaced(config, values[number])
        weights[number] = problem.train(weights[number], own, epochs[number] + 1, generator)
        epochs[number] += 1
        scores[number] = problem.truth(weights[number], own)
        if epochs[number] >= problem.epochs:
            continue
        # Of equal ones, the trial itself counts as the worst: trials on equally slow nodes report one after another.
        ranked = sorted(scores, key=lambda other: (scores[other], other != number))
        count = min(math.ceil(len(ranked) / 4), len(ranked) // 2)
        if epochs[number] - decided[number] >= space.interval_epochs:
            decided[number] = epochs[number]
            if number in ranked[:count]:
                donor = random.choice(ranked[-count:])
                weights[number], epochs[number] = weights[donor], epochs[donor]
                origins[number], decided[number] = origins[donor], epochs[donor]
                values[number] = space.explore(values[donor], random)
        if epochs[number] < problem.epochs:
            heapq.heappush(queue, (now + seconds(number), number))
    return list(zip(origins, values, strict=True))


class Course(NamedTuple):
    """Outcome of trials of uneven speed.

    Attributes:
        found: Mean N at the end (``run_drift``), or the number of descendants of slow trials (``run_slow``).
        reports: Reports over trials x epochs: above 1 where copies repeat epochs, below 1 where they skip some.
    """

    found: float
    reports: float


def run_drift(decisions: str, seed: int) -> Course:
    """Find the mean N at the end of 8 trials whose quality does not depend on it."""
    weight = {"low": 0.1, "high": 1.0, "scale": "linear"}
    parameters = {WEIGHT: weight, SLOTS: {"low": 2, "high": 8, "scale": "integer"}}
    options = {"scheduler": "pbt", "interval_epochs": 10, "controls": 0}
    space = space_of(parameters, synchronous=decisions == SYNCHRONOUS, **options)
    initial = [space.sample(Random(f"{seed}/{number}")) for number in range(8)]
    problem = Uneven(None)
    if decisions == BEFORE:
        final = [values for _, values in last_scores(problem, space, initial, seed)]
    else:
        members = evolve(space, problem, initial, seed).members.state.members
        final = [member.values for member in members.values()]
    return Course(statistics.fmean(values[SLOTS] for values in final), problem.reports / (8 * problem.epochs))


def run_slow(slow: float, decisions: str, seed: int) -> Course:
    """Count which of 8 final trials descend from the four on slow nodes, which begin with better values."""
    parameters = {WEIGHT: {"low": 0.1, "high": 1.0, "scale": "linear", "factor": 1.01}}
    space = space_of(parameters, **TOY_PBT, synchronous=False, interval_epochs=10)
    initial = [{WEIGHT: 0.6 if number % 2 else 0.3} for number in range(8)]
    problem = Uneven(slow)
    if decisions == BEFORE:
        origins = [origin for origin, _ in last_scores(problem, space, initial, seed)]
    else:
        origins = [int(name[-2:]) for name in evolve(space, problem, initial, seed).ancestors()]
    return Course(sum(origin % 2 for origin in origins), problem.reports / (8 * problem.epochs))

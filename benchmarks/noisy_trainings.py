"""Populations of noisy trainings whose truth is known: a model of fitness on rendered objects, and its runs."""

import base64
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from known_truth import RATE, WEIGHT, Measured, Values, Weights, evolve, space_of

from adios_ray.config import Strict, TrialConfig
from adios_ray.search.opening import rungs
from adios_ray.validation import read_json


class Curves(Strict):
    """A model fitted to real trainings; see ``objects_curves.py``."""

    start: float
    """Fitness of a new trial."""
    goal: float
    """Fitness that the best values approach."""
    approach: float
    """Share of the way to the goal that an epoch covers."""
    rate: tuple[float, float]
    """Logarithm (base 10) of the best encoder rate, and the loss of the goal per square of the distance from it."""
    weight: tuple[float, float]
    """Best sparsity weight, and the loss of the goal per square of the distance from it."""
    jitter: float
    """Standard deviation of the fitness from one epoch to the next, which later epochs do not keep."""
    image_variance: float
    """Variance of outcomes over images that all trials have in common."""
    own_variance: float
    """Variance of what an image's outcome is in one trial beyond that."""
    memory: float
    """Correlation of the latter from one epoch to the next; copies of weights inherit it."""


class State(NamedTuple):
    """A noisy trial's weights: lasting fitness, momentary deviation, and the latter of each image."""

    fitness: float
    jitter: float
    own: Any


CURVES = Path(__file__).with_name("objects_curves.json")


@dataclass
class Noisy:
    """Trials whose shares of votes on rendered objects follow ``Curves``, measured on some validation images.

    Attributes:
        landscape: "plain": as fitted; "alike": the same, ten times flatter; "trap": a high rate is worse now and better
            later.
        noise: Standard error of a report, 0 to 1; 0 also leaves out the jitter of training.
    """

    landscape: str
    noise: float
    epochs: int = 20

    def __post_init__(self) -> None:
        """Read the model and draw the images."""
        self.model = read_json(Curves, CURVES)
        images = round((self.model.image_variance + self.model.own_variance) / self.noise**2) if self.noise else 1
        share = (np.arange(images) + 0.5) / images
        # Quantiles of a uniform distribution, so that the images' mean is exact, for selection and for the holdout.
        self._common = np.tile(math.sqrt(12 * self.model.image_variance) * (share - 0.5), (2, 1))
        self.start: Weights = State(self.model.start, 0.0, None)

    def train(self, weights: Weights, config: TrialConfig, epoch: int, random: np.random.Generator) -> Weights:
        """Approach the goal, and change what single images say."""
        model, before = self.model, State(*weights)
        x, y = math.log10(config.optimizer.encoder_lr), config.masking.sparsity_weight
        lost_by_weight = model.weight[1] * (y - model.weight[0]) ** 2
        if self.landscape == "trap":
            speed, goal = model.approach * min(10 ** (x + 1), 3) ** 0.7, model.goal - lost_by_weight
        else:
            flat = 0.1 if self.landscape == "alike" else 1
            speed = model.approach
            goal = model.goal - flat * (model.rate[1] * (x - model.rate[0]) ** 2 + lost_by_weight)
        fitness = before.fitness + speed * (goal - before.fitness)
        if not self.noise:
            return State(fitness, 0.0, None)
        drawn = math.sqrt(model.own_variance) * random.standard_normal(self._common.shape)
        own = drawn
        if before.own is not None:
            own = model.memory * before.own + math.sqrt(1 - model.memory**2) * drawn
        return State(fitness, model.jitter * random.standard_normal(), own)

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the true fitness, without what later epochs do not keep."""
        x = math.log10(config.optimizer.encoder_lr / 0.03)
        return float(weights[0]) - (0.4 * self.model.goal * x if self.landscape == "trap" else 0)

    def measure(self, weights: Weights, config: TrialConfig, random: np.random.Generator) -> Measured:
        """Measure the fitness on both halves of the validation images."""
        state, truth = State(*weights), self.truth(weights, config)
        if state.own is None:
            return {"fitness": truth}
        values = np.rint(255 * np.clip(truth + state.jitter + self._common + state.own, 0, 1)) / 255
        selection, holdout = values
        error = float(selection.std(ddof=1)) / math.sqrt(len(selection))
        outcomes = base64.b64encode(np.rint(255 * selection).astype(np.uint8).tobytes()).decode()
        return {
            "fitness": float(selection.mean()),
            "standard_error": error,
            "outcomes": outcomes,
            "holdout_fitness": float(holdout.mean()),
        }

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return one second."""
        return 1.0


NOISY_PARAMETERS = {
    WEIGHT: {"low": 0.1, "high": 1.0, "scale": "linear"},
    RATE: {"low": 0.03, "high": 0.6, "scale": "log"},
}
CONFIGURED: Values = {WEIGHT: 0.3, RATE: 0.06}
"""Values of the first trial: those of the demo."""
NOISY_SPACES: dict[str, dict[str, Any]] = {
    "random": {"scheduler": "none"},
    "pbt": {"scheduler": "pbt", "interval_epochs": 2},
    "pbt, no test": {"scheduler": "pbt", "interval_epochs": 2, "significance": 1},
    "pbt, significance 0.01": {"scheduler": "pbt", "interval_epochs": 2, "significance": 0.01},
    "pbt, significance 0.001": {"scheduler": "pbt", "interval_epochs": 2, "significance": 0.001},
    "pbt, explore_without_copy": {"scheduler": "pbt", "interval_epochs": 2, "explore_without_copy": True},
    # 12 trials for 4 epochs, then 7 for 16: as many epochs as 8 trials for 20.
    "pbt, opening": {"scheduler": "pbt", "interval_epochs": 2, "opening": {"trials": 12, "epochs": 4}},
}
EVERYWHERE = ("random", "pbt", "pbt, no test")
"""Rows of all populations; the others are of 8 trials."""
LANDSCAPES, POPULATIONS, NOISES = ("plain", "alike", "trap"), (4, 8, 16), (0.0, 0.01, 0.03)


class Outcome(NamedTuple):
    """The result of a noisy population.

    Attributes:
        accuracy: True fitness of the chosen trial.
        exploits: How many copies were made, and ``false``, how many from a donor that was not better.
        refusals: How many were refused.
        gained: Sum of the true differences of donors and trials.
    """

    accuracy: float
    exploits: int
    false: int
    refusals: int
    gained: float


def run_noisy(name: str, landscape: str, population: int, noise: float, seed: int) -> Outcome:
    """Train a noisy population."""
    space = space_of(NOISY_PARAMETERS, **NOISY_SPACES[name])
    trials = space.opening.trials if space.opening else population
    initial = [CONFIGURED, *(space.sample(Random(f"{seed}/{number}")) for number in range(1, trials))]
    trained = evolve(space, Noisy(landscape, noise), initial, seed, rungs(space.opening, population - 1))
    gains = [exploit.donor - exploit.trial for exploit in trained.exploits]
    false = sum(gain <= 0 for gain in gains)
    return Outcome(trained.best(), len(gains), false, trained.refusals, sum(gains))


def noisy_row(outcomes: list[Outcome], rivals: list[Outcome]) -> dict[str, Any]:
    """Summarize noisy populations beside random search by the same seeds."""
    gains = [100 * (own.accuracy - other.accuracy) for own, other in zip(outcomes, rivals, strict=True)]
    exploits, false = sum(o.exploits for o in outcomes), sum(o.false for o in outcomes)
    tests = exploits + sum(o.refusals for o in outcomes)
    return {
        "accuracy": round(100 * statistics.fmean(o.accuracy for o in outcomes), 2),
        "over random": round(statistics.fmean(gains), 2),
        "standard error": round(statistics.stdev(gains) / math.sqrt(len(gains)), 2) if len(gains) > 1 else None,
        "exploits": round(exploits / len(outcomes), 1),
        "donor better": round(1 - false / exploits, 3) if exploits else None,
        "false exploits per decision": round(false / tests, 3) if tests else None,
        "points per exploit": round(100 * sum(o.gained for o in outcomes) / exploits, 2) if exploits else None,
    }

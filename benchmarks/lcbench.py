"""Early stopping on learning curves of LCBench (34 data sets), by a surrogate network that ``schedulers.py`` is given.

The network is YAHPO Gym's (slds-lmu/yahpo_data, Apache-2.0), ``lcbench_surrogate.onnx`` beside ``lcbench_tasks.json``.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from known_truth import KnownTruth, Measured, Weights
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from adios_ray.backend.admission import Admission
from adios_ray.config import TrialConfig, value_at
from adios_ray.search.population import Population
from adios_ray.search.scheduler import STOP, LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.stopping import StoppingSearch, make_rule
from adios_ray.search.suggest import make_suggest
from adios_ray.validation import parse

EPOCHS, WORKERS, BUDGET = 52, 4, 8 * 52
"""Epochs of a trial, trials that train at once, and epochs of all trials of a search together."""
LEFT_OUT = ("#na#", "167083")
"""Names that are not tasks of the surrogate's paper."""
REFERENCE_DRAWS = 4000
"""Random configurations among which the best of a task is looked for."""
RANGES: dict[str, tuple[float, float, bool]] = {
    "batch_size": (16, 512, True),
    "learning_rate": (1e-4, 0.1, True),
    "momentum": (0.1, 0.99, False),
    "weight_decay": (1e-5, 0.1, False),
    "num_layers": (1, 5, False),
    "max_units": (64, 1024, True),
    "max_dropout": (0, 1, False),
}
"""Inputs of the network after the epoch: lowest and highest value, and whether on a log scale."""
WHOLE = ("batch_size", "num_layers", "max_units")
STAND_INS = tuple(
    f"augment.{name}"
    for name in ("brightness", "contrast", "saturation", "jitter_probability", "grayscale_probability")
) + ("augment.blur_probability", "augment.solarize_probability")
"""Values in [0, 1] of a trial's configuration that stand for the seven, scaled to [0, 1]."""
SPACES: dict[str, dict[str, Any]] = {
    "random": {"scheduler": "none"},
    "median": {"scheduler": "median", "grace_epochs": 2},
    "asha": {"scheduler": "asha", "grace_epochs": 2, "reduction_factor": 3},
    "asha + hyperopt": {"scheduler": "asha", "grace_epochs": 2, "reduction_factor": 3, "search": "hyperopt"},
}


class Surrogate:
    """The network's learning curves of one task."""

    def __init__(self, file: Path, task: str) -> None:
        """Load the network, on one thread."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._network = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._task = task_numbers(file)[task]

    def accuracies(self, units: Sequence[Sequence[float]], epochs: Sequence[int]) -> np.ndarray[Any, Any]:
        """Predict validation accuracies.

        Args:
            units: The seven values of each row, in [0, 1], [n, 7].
            epochs: Epoch of each row, [n].

        Returns:
            Shares of images, [n].
        """
        columns = [np.array(epochs, dtype=np.float32)]
        for (name, (low, high, logarithmic)), unit in zip(RANGES.items(), np.array(units, np.float64).T, strict=True):
            value = low * (high / low) ** unit if logarithmic else low + unit * (high - low)
            columns.append(np.rint(value) if name in WHOLE else value)
        inputs = {
            "x_cat": np.full((len(epochs), 1), self._task, np.int32),
            "x_cont": np.stack(columns, axis=1).astype(np.float32),
        }
        return np.asarray(self._network.run(None, inputs)[0][:, 1] / 100, dtype=np.float64)

    @cache  # noqa: B019  # one object lives as long as its worker process
    def best(self) -> float:
        """Return the best final accuracy of many random configurations."""
        units = np.random.default_rng(0).random((REFERENCE_DRAWS, len(RANGES)))
        return float(self.accuracies(units.tolist(), [EPOCHS] * REFERENCE_DRAWS).max())


def task_numbers(file: Path) -> dict[str, int]:
    """Read the tasks' numbers by name from the file beside the network."""
    numbers: dict[str, int] = json.loads((file.parent / "lcbench_tasks.json").read_text())["OpenML_task_id"]
    return {name: number for name, number in numbers.items() if name not in LEFT_OUT}


surrogate = cache(Surrogate)


class Curves:
    """Trials whose accuracies are those of a surrogate; each epoch takes a second."""

    start: Weights = ()
    epochs = EPOCHS

    def __init__(self, network: Surrogate) -> None:
        """Train on a network's task."""
        self._network = network
        self._known: dict[Weights, np.ndarray[Any, Any]] = {}

    def train(self, weights: Weights, config: TrialConfig, epoch: int, random: np.random.Generator) -> Weights:
        """Return the configuration's seven values and the epoch, from which all follows."""
        return (*(value_at(config, path) for path in STAND_INS), epoch)

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the accuracy."""
        *units, epoch = weights
        key = tuple(units)
        if key not in self._known:
            self._known[key] = self._network.accuracies([units] * EPOCHS, range(1, EPOCHS + 1))
        return float(self._known[key][epoch - 1])

    def measure(self, weights: Weights, config: TrialConfig, random: np.random.Generator) -> Measured:
        """Report the accuracy."""
        return {"fitness": self.truth(weights, config)}

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return one second, and a little more for later trials, which orders reports."""
        return 1.0 + 1e-6 * int(trial[-2:])


class Searched(NamedTuple):
    """The result of a search.

    Attributes:
        regret: Best final accuracy of the task minus the best that was reached within the budget, in points.
        trials: Trials that were started within the budget.
        decisions: Decisions before a trial's last epoch.
        unlike_ray: Those unlike Ray's own scheduler, and ``unlike_rule``, unlike the published rule restated.
        unlike_syne_tune: Those unlike Syne Tune's variant.
    """

    regret: float
    trials: int
    decisions: int = 0
    unlike_ray: int = 0
    unlike_rule: int = 0
    unlike_syne_tune: int = 0


class Recorded(StoppingSearch):
    """Keeps whether each report stopped its trial."""

    stops: list[bool]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide about a trial."""
        decision = super().on_trial_result(tune_controller, trial, result)
        self.stops.append(decision == STOP)
        return decision


def search(file: Path, name: str, task: str, directory: Path, seed: int) -> Searched:
    """Search one task with one scheduler."""
    network = surrogate(file, task)
    unit = {"low": 0.0, "high": 1.0, "scale": "linear"}
    space = parse(SearchSpace, {"parameters": dict.fromkeys(STAND_INS, unit), **SPACES[name]})
    population = KnownTruth(space, Curves(network), [], seed, directory)

    stops = list[bool]()

    def sample(trial: str) -> dict[str, Any]:
        return space.sample(Random(f"{seed}/{trial}"))

    def make(members: Population, admission: Admission) -> LiveScheduler:
        hyperopt = space.search == "hyperopt"
        suggest = make_suggest(space, members.config, members.state, 10) if hyperopt else sample
        scheduler = Recorded(members, admission, make_rule(space, EPOCHS), suggest)
        scheduler.stops = stops
        return scheduler

    population.run(make, WORKERS, BUDGET)
    best = max(each.fitness for each in population.reports)
    found = Searched(100 * (network.best() - best), len(population.members.state.members))
    if space.scheduler != "asha":
        return found

    def differ(other: list[bool]) -> int:
        return sum(a != b for a, b in zip(stops, other, strict=True))

    reports = [(each.trial, each.epoch, each.fitness) for each in population.reports]
    options = (space.grace_epochs, space.reduction_factor)
    return found._replace(
        decisions=len(stops),
        unlike_ray=differ(ray_decisions(reports, *options)),
        unlike_rule=differ(halving(reports, *options, own_counts=False)),
        unlike_syne_tune=differ(halving(reports, *options, own_counts=True)),
    )


Report = tuple[str, int, float]


def ray_decisions(reports: Sequence[Report], grace: int, factor: float) -> list[bool]:
    """Ask Ray's own ASHA which reports stop their trial, except reports of the last epoch."""

    class Reported:
        def __init__(self, name: str) -> None:
            self.trial_id = name

    options = {"time_attr": "epoch", "metric": "fitness", "mode": "max", "stop_last_trials": False}
    rule: TrialScheduler = AsyncHyperBandScheduler(max_t=EPOCHS, grace_period=grace, reduction_factor=factor, **options)
    trials: dict[str, Any] = {}
    stops = []
    for name, epoch, fitness in reports:
        if name not in trials:
            trials[name] = Reported(name)
            rule.on_trial_add(None, trials[name])
        result = {"epoch": epoch, "fitness": fitness}
        if epoch < EPOCHS:
            stops.append(rule.on_trial_result(None, trials[name], result) == STOP)
        else:
            rule.on_trial_complete(None, trials[name], result)
    return stops


def halving(reports: Sequence[Report], grace: int, factor: float, own_counts: bool) -> list[bool]:
    """Restate asynchronous successive halving (Li et al. 2020), in its variant that stops trials.

    At rungs of grace, grace x factor, ... epochs, a trial stops below the (1 - 1/factor) quantile of the scores there.

    Args:
        reports: Trial, epoch and score of each report, in order.
        grace: Epochs of the first rung.
        factor: Reduction factor.
        own_counts: Whether the trial's own score is one of those of the quantile, as in Syne Tune; in Ray, it is not.

    Returns:
        Whether each report stops its trial, except reports of the last epoch.
    """
    rungs: dict[int, list[float]] = {}
    level = float(grace)
    while level <= EPOCHS * (1 + 1e-12):
        rungs[math.ceil(level - 1e-9)] = []
        level *= factor
    stops = []
    for _, epoch, fitness in reports:
        others = rungs.get(epoch)
        stop = False
        if others is not None:
            compared = [*others, fitness] if own_counts else others
            stop = len(compared) > own_counts and bool(fitness < np.quantile(compared, 1 - 1 / factor))
            others.append(fitness)
        if epoch < EPOCHS:
            stops.append(stop)
    return stops

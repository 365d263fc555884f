"""Decisions of every scheduler where the truth is known: closed forms and a model of noisy training, no network.

Usage: ``python benchmarks/schedulers.py [--seeds 20]``. Prints one JSON object; at 20 seeds it takes some minutes on
two cores. The schedulers are the package's own, with a driver that trains all trials in this process.

- ``toys``: two problems of PBT-Zoo (Chebykin et al., TMLR 2025, section 5.2), 22 trials, 50 epochs, factor 2. In
  ``plain``, a low value is always better (the best is 1.19973). In ``time_linked``, what is better now is worse later:
  the best constant value reaches 1.097, the best schedule 1.198. ``naive_pbt`` is written from Jaderberg et al. (2017).
- ``drift``: mean N at the end, where N costs time and has no effect; and how many of 8 final trials descend from slow
  trials, where those are better.
- ``noisy``: share of exploits whose donor is truly better, and the true accuracy of the trial chosen at the end minus
  that of random search with as many epochs, in points. Keys are landscape, population, and the noise of a report.
"""

import base64
import heapq
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import tyro
from ray.tune.experiment import Trial

from adios_ray.backend.admission import Admission
from adios_ray.backend.channel import ChannelCalls
from adios_ray.backend.line import Reply
from adios_ray.backend.trial import REPLY
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig
from adios_ray.errors import exit_status
from adios_ray.run_storage import RunStorage
from adios_ray.search.pb2 import PB2
from adios_ray.search.pbt import PopulationBasedTraining
from adios_ray.search.population import Population
from adios_ray.search.scheduler import STOP, LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState
from adios_ray.search.stopping import StoppingSearch, make_rule
from adios_ray.tracking.run import Run
from adios_ray.trial_report import TrialReport
from adios_ray.validation import parse

MEMORY = Path("/dev/shm")
"""Directory that Linux keeps in memory, because a population journals every report."""
WEIGHT, RATE, SLOTS = "masking.sparsity_weight", "optimizer.encoder_lr", "masking.slots"
Weights = tuple[float, ...]
Values = dict[str, Any]


class Problem(Protocol):
    """A model of training.

    Attributes:
        start: Weights of a new trial.
        epochs: Epochs of a trial.
    """

    start: Weights
    epochs: int

    def train(self, weights: Weights, config: TrialConfig, epoch: int) -> Weights:
        """Return the weights after one more epoch, counted from 1."""

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the true fitness of weights."""

    def measure(self, truth: float, random: np.random.Generator) -> dict[str, Any]:
        """Return what a report says of the fitness."""

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return how long an epoch takes."""


class Decided(NamedTuple):
    """A copy: the true fitness of donor and trial at the decision."""

    donor: float
    trial: float


@dataclass(eq=False)
class _Trial:
    """The part of a Tune trial that schedulers read."""

    config: dict[str, Any]
    status: str = Trial.RUNNING


@dataclass
class InProcess:
    """A population that trains in this process, and stands in for its channel and its records.

    Attributes:
        space: The search space.
        problem: What is trained.
        initial: First values of each trial.
        seed: Seed of the decisions and of the noise.
        exploits: The copies so far.
        members: The population.
    """

    space: SearchSpace
    problem: Problem
    initial: list[Values]
    seed: int
    directory: Path
    exploits: list[Decided] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the population."""
        self.storage = RunStorage(self.directory)
        self.config = parse(TrialConfig, {"epochs": self.problem.epochs, "seed": self.seed})
        self._random = np.random.default_rng(self.seed)
        self._held: set[str] = set()
        self._at: dict[str, tuple[Pointer | None, TrialConfig, int]] = {}
        self._stored: dict[Path, tuple[Weights, str, int]] = {}
        state = PopulationState(next_decision_epoch=self.space.interval_epochs)
        for number, values in enumerate(self.initial):
            state.add(f"trial_{number:02d}", values)
        state.save(self.directory)
        self.members = Population(self.config, state, cast(Run, self), cast(ChannelCalls, self))

    def register(self, trial: str, config: TrialConfig, checkpoint: Pointer | None, epoch: int, held: bool) -> None:
        """Take in a trial."""
        self._at[trial] = checkpoint, config, epoch

    def load(self, trial: str, checkpoint: Pointer, epoch: int, config: TrialConfig) -> None:
        """Copy weights into a trial."""
        self._at[trial] = checkpoint, config, epoch

    def hold(self, trials: Iterable[str], held: bool) -> None:
        """Hold trials at the barrier, or release them."""
        self._held = self._held | set(trials) if held else self._held - set(trials)

    def report(self, *_: object) -> None:
        """Keep no rows."""

    def note(self, text: str) -> None:
        """Drop a note."""

    def refusal(self, **_: object) -> None:
        """Keep no refusals."""

    def exploit(self, trial: str, donor: str, **_: object) -> None:
        """Keep the truth behind a copy."""
        if donor != trial:
            self.exploits.append(Decided(self.truth(donor), self.truth(trial)))

    def truth(self, trial: str) -> float:
        """Return the true fitness of a trial's weights."""
        checkpoint, config, _ = self._at[trial]
        assert checkpoint is not None
        return self.problem.truth(self._stored[checkpoint.path][0], config)

    def run(self, make: Callable[[Population, Admission], LiveScheduler]) -> None:
        """Train every trial to its end, in the order in which epochs are over."""
        names = list(self.members.state.members)
        trials = {name: _Trial({"trial": name}) for name in names}
        admission = Admission(len(names), lambda: len(names))
        scheduler = make(self.members, admission)
        for trial in trials.values():
            scheduler.on_trial_add(None, cast(Trial, trial))
        queue = [(self.problem.seconds(name, self._at[name][1]), number, name) for number, name in enumerate(names)]
        heapq.heapify(queue)
        idle: set[str] = set()
        while queue:
            now, number, name = heapq.heappop(queue)
            reply = self._train(name)
            if reply.report is not None and reply.report.done:
                scheduler.on_trial_complete(None, cast(Trial, trials[name]), {REPLY: reply})
            elif scheduler.on_trial_result(None, cast(Trial, trials[name]), {REPLY: reply}) != STOP:
                idle.add(name)
            for other in sorted(idle - self._held):
                idle.remove(other)
                seconds = self.problem.seconds(other, self._at[other][1])
                heapq.heappush(queue, (now + seconds, names.index(other), other))

    def _train(self, name: str) -> Reply:
        checkpoint, config, epoch = self._at[name]
        before = self._stored[checkpoint.path][0] if checkpoint else self.problem.start
        weights = self.problem.train(before, config, epoch + 1)
        ancestor = self._stored[checkpoint.path][1] if checkpoint else name
        path = Path(name) / str(len(self._stored))
        self._stored[path] = weights, ancestor, epoch + 1
        pointer = Pointer(path=path, sha256="")
        self._at[name] = pointer, config, epoch + 1
        measured = self.problem.measure(self.problem.truth(weights, config), self._random)
        return Reply(TrialReport(epoch=epoch + 1, done=epoch + 1 >= self.problem.epochs, **measured), pointer)

    def ancestors(self) -> list[str]:
        """List the trials in which the weights of each trial began."""
        return [self._stored[pointer.path][1] for pointer, _, _ in self._at.values() if pointer is not None]

    def best(self) -> float:
        """Return the true fitness of the trial that scores best at the end."""
        members = self.members.state.members
        return self.truth(max(members, key=lambda name: (members[name].score or -math.inf, -members[name].number)))


def evolve(space: SearchSpace, problem: Problem, initial: list[Values], seed: int) -> InProcess:
    """Train a population under the scheduler of a space."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        population = InProcess(space, problem, initial, seed, Path(directory))

        def make(members: Population, admission: Admission) -> LiveScheduler:
            if space.scheduler == "pb2":
                return PopulationBasedTraining(members, admission, space, PB2(space, members.state))
            if space.evolving:
                return PopulationBasedTraining(
                    members, admission, space, lambda name, donor, random: space.explore(donor.values, random)
                )
            return StoppingSearch(members, admission, make_rule(space, problem.epochs), lambda name: {})

        population.run(make)
        return population


def space_of(parameters: dict[str, Any], **options: Any) -> SearchSpace:
    """Make a search space."""
    return parse(SearchSpace, {"parameters": parameters, **options})


class Exact:
    """What closed forms share: reports without noise, epochs of one second."""

    def measure(self, truth: float, random: np.random.Generator) -> dict[str, Any]:
        """Report the truth."""
        return {"fitness": truth}

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

    def train(self, weights: Weights, config: TrialConfig, epoch: int) -> Weights:
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
        return 1.2 - weights[0] ** 2


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
    return 1.2 - members[-1][0][0] ** 2


TOY_PARAMETERS = {WEIGHT: {"low": 1e-4, "high": 1.1, "scale": "linear", "factor": 2}}
TOY_SPACES: dict[str, dict[str, Any]] = {
    "pbt": {"scheduler": "pbt", "resample_probability": 0},
    "pbt, interval 3": {"scheduler": "pbt", "resample_probability": 0, "interval_epochs": 3},
    "pbt, asynchronous": {"scheduler": "pbt", "resample_probability": 0, "synchronous": False},
    "pbt, asynchronous, interval 3": {
        "scheduler": "pbt",
        "resample_probability": 0,
        "synchronous": False,
        "interval_epochs": 3,
    },
    "pb2, interval 10": {"scheduler": "pb2", "interval_epochs": 10},
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


@dataclass
class Uneven(Exact):
    """Trials of uneven speed, whose fitness is the sum of what their values earn in each epoch.

    Attributes:
        slow: How many times as long an epoch takes on the nodes of trials of odd numbers; None for even nodes, on which
            it takes the longer the more masks a trial has.
    """

    slow: float | None
    start: Weights = (0.0,)
    epochs: int = 100

    def train(self, weights: Weights, config: TrialConfig, epoch: int) -> Weights:
        """Gain what the values earn, with diminishing returns."""
        return (weights[0] + (1 - abs(config.masking.sparsity_weight - 0.6)) / math.sqrt(epoch),)

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the sum of all gains."""
        return weights[0]

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return the cost of one step on a CPU, up to a factor."""
        if self.slow is None:
            return 3 * (config.masking.slots + 1) + 1.4
        return self.slow if int(trial[-2:]) % 2 else 1.0


def run_drift(synchronous: bool, seed: int) -> float:
    """Return the mean N at the end of 8 trials whose quality does not depend on it."""
    weight = {"low": 0.1, "high": 1.0, "scale": "linear"}
    parameters = {WEIGHT: weight, SLOTS: {"low": 2, "high": 8, "scale": "integer"}}
    space = space_of(parameters, scheduler="pbt", synchronous=synchronous, interval_epochs=10)
    initial = [space.sample(Random(f"{seed}/{number}")) for number in range(8)]
    population = evolve(space, Uneven(None), initial, seed)
    return statistics.fmean(member.values[SLOTS] for member in population.members.state.members.values())


def run_slow(slow: float, seed: int) -> int:
    """Count which of 8 final trials descend from the four on slow nodes, which begin with better values."""
    parameters = {WEIGHT: {"low": 0.1, "high": 1.0, "scale": "linear", "factor": 1.01}}
    space = space_of(parameters, scheduler="pbt", synchronous=False, interval_epochs=10, resample_probability=0)
    initial = [{WEIGHT: 0.6 if number % 2 else 0.3} for number in range(8)]
    population = evolve(space, Uneven(slow), initial, seed)
    return sum(int(name[-2:]) % 2 for name in population.ancestors())


@dataclass
class Noisy:
    """A model of accuracies: curves that approach a goal set by the values, measured on some validation images.

    Attributes:
        landscape: "plain": best at a rate of 0.1 and a weight of 0.6; "alike": the same, ten times flatter; "trap": a
            high rate is worse now and better later.
        noise: Standard error of a report, 0 to 1.
    """

    landscape: str
    noise: float
    start: Weights = (0.15,)
    epochs: int = 20

    def train(self, weights: Weights, config: TrialConfig, epoch: int) -> Weights:
        """Approach the goal."""
        x, y = math.log10(config.optimizer.encoder_lr / 0.1), config.masking.sparsity_weight - 0.6
        if self.landscape == "trap":
            speed = 0.12 * min(10**x, 3) ** 0.7
            return (weights[0] + speed * (0.6 - 0.3 * y**2 - weights[0]),)
        flat = 0.1 if self.landscape == "alike" else 1
        return (weights[0] + 0.12 * (0.6 - flat * (0.15 * x**2 + 0.3 * y**2) - weights[0]),)

    def truth(self, weights: Weights, config: TrialConfig) -> float:
        """Return the true accuracy."""
        now = 0.25 * math.log10(config.optimizer.encoder_lr / 0.03) if self.landscape == "trap" else 0
        return min(max(weights[0] - now, 0.01), 0.99)

    def measure(self, truth: float, random: np.random.Generator) -> dict[str, Any]:
        """Classify as many images as give the noise; some of them are hard for all trials."""
        if not self.noise:
            return {"fitness": truth}
        skill = float(np.interp(truth, self._accuracies, self._skills))
        hits = random.random(len(self._hardness)) < chances(skill, self._hardness)
        error = float(hits.std(ddof=1)) / math.sqrt(len(hits))
        outcomes = base64.b64encode((255 * hits).astype(np.uint8).tobytes()).decode()
        return {"fitness": float(hits.mean()), "standard_error": error, "outcomes": outcomes}

    def __post_init__(self) -> None:
        """Choose the images."""
        images = round(0.25 / self.noise**2) if self.noise else 1
        share = (np.arange(images) + 0.5) / images
        self._hardness = 2 * np.log(share / (1 - share))  # quantiles of a logistic distribution
        self._skills = np.linspace(-15, 15, 151)
        self._accuracies = [float(chances(skill, self._hardness).mean()) for skill in self._skills]

    def seconds(self, trial: str, config: TrialConfig) -> float:
        """Return one second."""
        return 1.0


def chances(skill: float, hardness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the probability of a hit on each image."""
    return 1 / (1 + np.exp(hardness - skill))


NOISY_PARAMETERS = {
    WEIGHT: {"low": 0.1, "high": 1.0, "scale": "linear"},
    RATE: {"low": 0.03, "high": 0.6, "scale": "log"},
}
EXPLORING = "pbt, explore_without_copy"
NOISY_SPACES: dict[str, dict[str, Any]] = {
    "random": {"scheduler": "none"},
    "pbt": {"scheduler": "pbt", "interval_epochs": 2},
    EXPLORING: {"scheduler": "pbt", "interval_epochs": 2, "explore_without_copy": True},
    "pbt, no test": {"scheduler": "pbt", "interval_epochs": 2, "significance": 1},
}
LANDSCAPES, POPULATIONS, NOISES = ("plain", "alike", "trap"), (4, 8, 16), (0.0, 0.01, 0.03)


class Outcome(NamedTuple):
    """The result of a noisy population: true accuracy of the chosen trial, exploits, and those of better donors."""

    accuracy: float
    exploits: int
    true: int


def run_noisy(name: str, landscape: str, population: int, noise: float, seed: int) -> Outcome:
    """Train a noisy population."""
    space = space_of(NOISY_PARAMETERS, **NOISY_SPACES[name])
    initial = [space.sample(Random(f"{seed}/{number}")) for number in range(population)]
    trained = evolve(space, Noisy(landscape, noise), initial, seed)
    return Outcome(trained.best(), len(trained.exploits), sum(e.donor > e.trial for e in trained.exploits))


def summary(values: list[float], digits: int = 4) -> dict[str, float]:
    """Summarize runs by mean and standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), digits), "std": round(spread, digits)}


def call(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    """Run a job in a worker process."""
    function, arguments = job
    return function(*arguments)


SLOW = (1.5, 2.0, 3.0)


def main(seeds: int = 20) -> None:
    """Run every problem under every scheduler.

    Args:
        seeds: Populations of each row.
    """
    toys = [(name, linked) for linked in (False, True) for name in ("naive_pbt", *TOY_SPACES)]
    noisy = [
        (name, landscape, population, noise)
        for landscape in LANDSCAPES
        for population in POPULATIONS
        for noise in NOISES
        for name in NOISY_SPACES
        if name != EXPLORING or population == 8
    ]
    rows: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        *((run_toy, row) for row in toys),
        *((run_drift, (synchronous,)) for synchronous in (True, False)),
        *((run_slow, (slow,)) for slow in SLOW),
        *((run_noisy, row) for row in noisy),
    ]
    began = time.perf_counter()
    # The drift is small beside its spread.
    runs = [4 * seeds if function is run_drift else seeds for function, _ in rows]
    jobs = [
        (function, (*row, seed)) for (function, row), count in zip(rows, runs, strict=True) for seed in range(count)
    ]
    with ProcessPoolExecutor(2) as pool:
        done = pool.map(call, jobs, chunksize=4)
        found = {row: list(islice(done, count)) for row, count in zip(rows, runs, strict=True)}
    seconds = round(time.perf_counter() - began)
    result: dict[str, Any] = {"seeds": seeds, "seconds": seconds, "toys": {"plain": {}, "time_linked": {}}, "noisy": {}}
    for name, linked in toys:
        result["toys"]["time_linked" if linked else "plain"][name] = summary(found[run_toy, (name, linked)], 5)
    result["drift"] = {
        "synchronous": summary(found[run_drift, (True,)], 2),
        "asynchronous": summary(found[run_drift, (False,)], 2),
        **{
            f"descendants of trials on nodes {slow:g} times as slow": summary(found[run_slow, (slow,)], 2)
            for slow in SLOW
        },
    }
    for name, landscape, population, noise in noisy:
        outcomes = cast(list[Outcome], found[run_noisy, (name, landscape, population, noise)])
        plain = cast(list[Outcome], found[run_noisy, ("random", landscape, population, noise)])
        gains = [100 * (own.accuracy - other.accuracy) for own, other in zip(outcomes, plain, strict=True)]
        exploits, true = sum(o.exploits for o in outcomes), sum(o.true for o in outcomes)
        result["noisy"].setdefault(f"{landscape}, {population} trials, {100 * noise:g} points", {})[name] = {
            "accuracy": round(100 * statistics.fmean(o.accuracy for o in outcomes), 2),
            "over random": round(statistics.fmean(gains), 2),
            "standard error": round(statistics.stdev(gains) / math.sqrt(seeds), 2) if seeds > 1 else None,
            "exploits": round(exploits / seeds, 1),
            "donor better": round(true / exploits, 3) if exploits else None,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: tyro.cli(main)))

"""Decisions of every scheduler where the truth is known: closed forms and a model of noisy training, no network.

Usage: ``python benchmarks/schedulers.py [--seeds 20] [--lcbench FILE]``. Prints one JSON object; at 20 seeds it takes
some minutes on two cores. The schedulers are the package's own, with a driver that trains all trials in this process.

- ``toys``: two problems of PBT-Zoo (Chebykin et al., TMLR 2025, section 5.2), 22 trials, 50 epochs, factor 2. In
  ``plain``, a low value is always better (the best is 1.19973). In ``time_linked``, what is better now is worse later:
  the best constant value reaches 1.097, the best schedule 1.198. ``naive_pbt`` is written from Jaderberg et al. (2017).
- ``drift``: mean N at the end, where N costs time and has no effect; and how many of 8 final trials descend from slow
  trials, where those are better. ``by last scores`` restates the asynchronous decisions of earlier versions.
- ``noisy``: a model of fitness on rendered objects (``objects_curves.py``). As in a run, the first trial has configured
  values, populations from 8 on have a control, and the trial is chosen by its last reports on the holdout. ``over
  random``: true fitness of the chosen trial minus that of random search with as many epochs, in points. ``donor
  better``: share of copies whose donor was truly better; ``false exploits per decision``: the others' share of all
  tests, where a level of significance bounds it; ``points per exploit``: mean true difference of donor and trial. Keys
  are landscape, population, and the noise of a report.
- ``lcbench``: learning curves of 34 tasks (``lcbench.py``). ``regret``: the best of 4,000 configurations minus the best
  accuracy within equal epochs, in points. ``decisions``, and how many were unlike those of Ray's own ASHA, of the
  published rule restated, and of Syne Tune's variant, in which a trial's own score counts for the quantile.
"""

import base64
import heapq
import json
import math
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple, cast

import lcbench
import numpy as np
import tyro
from known_truth import KnownTruth, Measured, Problem, Values, Weights

from adios_ray.backend.admission import Admission
from adios_ray.config import Strict, TrialConfig, replaced
from adios_ray.errors import exit_status
from adios_ray.search.opening import Rung, rungs
from adios_ray.search.pb2 import PB2
from adios_ray.search.pbt import PopulationBasedTraining
from adios_ray.search.population import Population
from adios_ray.search.scheduler import LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.stopping import StoppingSearch, make_rule
from adios_ray.validation import parse, read_json

MEMORY = Path("/dev/shm")
"""Directory that Linux keeps in memory, because a population journals every report."""
WEIGHT, RATE, SLOTS = "masking.sparsity_weight", "optimizer.encoder_lr", "masking.slots"


def evolve(
    space: SearchSpace, problem: Problem, initial: list[Values], seed: int, halvings: tuple[Rung, ...] = ()
) -> KnownTruth:
    """Train a population under the scheduler of a space, after the halvings of an opening."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        population = KnownTruth(space, problem, initial, seed, Path(directory))
        if halvings:
            population.members.state.next_decision_epoch = halvings[0].epoch

        def make(members: Population, admission: Admission) -> LiveScheduler:
            if space.scheduler == "pb2":
                return PopulationBasedTraining(members, admission, space, PB2(space, members.state))
            if space.evolving:
                return PopulationBasedTraining(
                    members, admission, space, lambda name, donor, random: space.explore(donor.values, random), halvings
                )
            return StoppingSearch(members, admission, make_rule(space, problem.epochs), lambda name: {})

        population.run(make)
        return population


def space_of(parameters: dict[str, Any], **options: Any) -> SearchSpace:
    """Make a search space."""
    return parse(SearchSpace, {"parameters": parameters, **options})


class Exact(ABC):
    """What closed forms share: reports without noise, epochs of one second."""

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
    """

    slow: float | None
    start: Weights = (0.0,)
    epochs: int = 100

    def train(self, weights: Weights, config: TrialConfig, epoch: int, random: np.random.Generator) -> Weights:
        """Gain what the values earn, with diminishing returns."""
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
        ranked = sorted(scores, key=lambda other: (scores[other], other != number))  # noqa: B023  # used at once
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


def run_drift(decisions: str, seed: int) -> float:
    """Return the mean N at the end of 8 trials whose quality does not depend on it."""
    weight = {"low": 0.1, "high": 1.0, "scale": "linear"}
    parameters = {WEIGHT: weight, SLOTS: {"low": 2, "high": 8, "scale": "integer"}}
    options = {"scheduler": "pbt", "interval_epochs": 10, "controls": 0}
    space = space_of(parameters, synchronous=decisions == SYNCHRONOUS, **options)
    initial = [space.sample(Random(f"{seed}/{number}")) for number in range(8)]
    if decisions == BEFORE:
        return statistics.fmean(values[SLOTS] for _, values in last_scores(Uneven(None), space, initial, seed))
    population = evolve(space, Uneven(None), initial, seed)
    return statistics.fmean(member.values[SLOTS] for member in population.members.state.members.values())


def run_slow(slow: float, decisions: str, seed: int) -> int:
    """Count which of 8 final trials descend from the four on slow nodes, which begin with better values."""
    parameters = {WEIGHT: {"low": 0.1, "high": 1.0, "scale": "linear", "factor": 1.01}}
    space = space_of(parameters, **TOY_PBT, synchronous=False, interval_epochs=10)
    initial = [{WEIGHT: 0.6 if number % 2 else 0.3} for number in range(8)]
    if decisions == BEFORE:
        return sum(origin % 2 for origin, _ in last_scores(Uneven(slow), space, initial, seed))
    population = evolve(space, Uneven(slow), initial, seed)
    return sum(int(name[-2:]) % 2 for name in population.ancestors())


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


def run_lcbench(file: Path, name: str, task: str, seed: int) -> lcbench.Searched:
    """Search a task of LCBench."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        return lcbench.search(file, name, task, Path(directory), seed)


def summary(values: list[float], digits: int = 4) -> dict[str, float]:
    """Summarize runs by mean and standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), digits), "std": round(spread, digits)}


def call(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    """Run a job in a worker process."""
    function, arguments = job
    return function(*arguments)


SLOW = (1.5, 2.0, 3.0)


Job = tuple[Callable[..., Any], tuple[Any, ...]]


def main(seeds: int = 20, lcbench_file: Annotated[Path | None, tyro.conf.arg(name="lcbench")] = None) -> None:
    """Run every problem under every scheduler.

    Args:
        seeds: Populations of each row.
        lcbench_file: LCBench's surrogate network (lcbench_surrogate.onnx, lcbench_tasks.json beside it).
    """
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
    if lcbench_file is not None:
        tasks = lcbench.task_numbers(lcbench_file)
        searches = [(lcbench_file, name, task) for name in lcbench.SPACES for task in tasks]
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
    with ProcessPoolExecutor(2) as pool:
        done = pool.map(call, jobs, chunksize=4)
        found = {(function, row): list(islice(done, counts.get(function, seeds))) for function, row in rows}
    result: dict[str, Any] = {"seeds": seeds, "seconds": round(time.perf_counter() - began)}
    result["toys"] = {
        problem: {name: summary(found[run_toy, (name, linked)], 5) for name, of in toys if of == linked}
        for problem, linked in (("plain", False), ("time_linked", True))
    }
    result["drift"] = {
        decisions: {
            "mean N": summary(found[run_drift, (decisions,)], 2),
            **{
                f"descendants of trials {slow:g} times as slow": summary(found[run_slow, (slow, decisions)], 2)
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


def lcbench_row(found: list[lcbench.Searched]) -> dict[str, Any]:
    """Summarize the searches of one scheduler over tasks and seeds."""
    row = {
        "regret": summary([each.regret for each in found], 2),
        "trials": statistics.fmean(each.trials for each in found),
    }
    fields = ("decisions", "unlike_ray", "unlike_rule", "unlike_syne_tune")
    return row | {name: sum(getattr(each, name) for each in found) for name in fields if found[0].decisions}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: tyro.cli(main)))

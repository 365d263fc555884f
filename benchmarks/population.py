"""Scaling of the driver with the population: 64 and 256 toy trials that share a simulated cluster by pausing.

The trials do not train: a score in closed form, a checkpoint of a few bytes, no torch. Scheduler, channel, admission
and records are those of real runs. Four nodes of four CPUs are simulated on this machine; each trial takes one CPU.

Prints one JSON object. For each population: ``report_ms``, the scheduler's median milliseconds per report, and
``report_cpu_ms``, the CPU time in them (the rest is waiting for the disk, the channel and a free core);
``report_ms_late``, the median over the last quarter of the reports; ``driver_mib_per_trial``, growth of the driver's
memory; ``files_per_trial`` and ``kib_per_trial`` of the run directory; ``behind``, the largest difference between two
trials in epochs; ``left``, the number of leaked processes and placement groups. The small population is run before and
after the large one, and its times are the means of both runs, since the speed of machines drifts. ``growth`` is the
ratio of the large population's figures to the small one's.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from adios_ray.arguments import parse_arguments
from adios_ray.backend.admission import Admission, GatedSearch
from adios_ray.backend.channel import ChannelCalls, find_channel, start_channel
from adios_ray.backend.cluster import DRIVER_ENVIRONMENT
from adios_ray.backend.line import Reply
from adios_ray.backend.trial import REPLY
from adios_ray.checkpoints import Pointer
from adios_ray.config import Count, TrialConfig
from adios_ray.errors import exit_status
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.search.pbt import PopulationBasedTraining
from adios_ray.search.population import Population
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import PopulationState
from adios_ray.search.suggest import fill
from adios_ray.tracking.decisions import begin_lineage
from adios_ray.tracking.live import LiveView
from adios_ray.tracking.metrics import RayMetrics
from adios_ray.tracking.records import write_config
from adios_ray.tracking.run import Run
from adios_ray.tracking.trackers.isolation import Trackers
from adios_ray.trial_report import TrialReport
from adios_ray.validation import parse

NODES, CPUS, EPOCHS, INTERVAL = 4, 4, 6, 2
SPACE = {
    "scheduler": "pbt",
    "synchronous": False,
    "interval_epochs": INTERVAL,
    "significance": 1,  # copies at every decision, however alike the trials are
    "parameters": {"optimizer.encoder_lr": {"low": 0.01, "high": 1.0, "scale": "log"}},
}


@dataclass(frozen=True)
class Options:
    """Sizes of the measurement."""

    populations: tuple[Count, Count] = (64, 256)
    """Sizes of the two populations to compare."""


class ToyTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no type information
    """A live trial whose worker is the trial itself."""

    def setup(self, config: dict[str, Any]) -> None:
        """Join the channel."""
        self._channel = find_channel(config["channel"])
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in the same process, which ``reuse_actors`` asks for."""
        self._missed = True
        self._trial, self._directory = new_config["trial"], Path(new_config["run_dir"])
        return True

    def step(self) -> dict[str, Any]:
        """Take commands until the trial has reported or was preempted."""
        if self._missed:
            # Not in ``setup``: Tune may hand a trial to two processes, of which only one trains.
            config, self._checkpoint, self._position = ray.get(self._channel.start.remote(self._trial))
            self._lr = config.optimizer.encoder_lr
        reply = self._channel.request.remote(self._trial, self._missed)
        self._missed = False
        taken = self._channel.take.remote(self._trial, self._position)
        while True:
            done, _ = ray.wait([reply, taken])
            if reply in done:
                return self._result(ray.get(reply))
            command = ray.get(taken)
            self._position += 1
            if command.kind == "load":
                self._checkpoint, self._lr = command.checkpoint, command.config.optimizer.encoder_lr
            elif command.kind == "train":
                self._train()
                return self._result(ray.get(reply))
            taken = self._channel.take.remote(self._trial, self._position)

    def _result(self, reply: Reply) -> dict[str, Any]:
        return {REPLY: reply, "done": reply.report is not None and reply.report.done}

    def _train(self) -> None:
        """Compute one epoch in closed form, write its checkpoint, and report."""
        epochs, score = json.loads((self._checkpoint.path / "state").read_text()) if self._checkpoint else (0, 0.0)
        epoch, score = int(epochs) + 1, score + 1 / (1 + abs(self._lr - 0.1))
        directory = RunDirectory(self._directory).checkpoint(self._trial, epoch)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "state").write_text(json.dumps([epoch, score]))
        self._checkpoint = Pointer(path=directory, sha256="")
        report = TrialReport(epoch=epoch, fitness=score, done=epoch >= EPOCHS, worker_pid=os.getpid())
        ray.get(self._channel.answer.remote(self._trial, self._position - 1, report, self._checkpoint))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write an empty file, which Tune requires; the population knows the checkpoint that a trial resumes from."""
        Path(checkpoint_dir, "nothing").touch()

    def load_checkpoint(self, checkpoint: str | None) -> None:
        """Load nothing; see ``save_checkpoint``."""


class TimedPopulation(PopulationBasedTraining):
    """Population based training that measures the time of each report."""

    seconds: list[float]
    cpu_seconds: list[float]
    behind: int

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide, and record the wall and CPU time of the decision."""
        began, began_cpu = time.perf_counter(), time.thread_time()
        decision = super().on_trial_result(tune_controller, trial, result)
        self.seconds.append(time.perf_counter() - began)
        self.cpu_seconds.append(time.thread_time() - began_cpu)
        epochs = [member.epoch for member in self.population.state.members.values() if not member.finished]
        self.behind = max(self.behind, max(epochs, default=0) - min(epochs, default=0))
        return decision


def evolve(population: int, directory: Path) -> dict[str, float]:
    """Run a population to its end and return the measurements."""
    config = parse(TrialConfig, {"epochs": EPOCHS})
    space, state = parse(SearchSpace, SPACE), PopulationState(next_decision_epoch=INTERVAL)
    names = [f"trial_{number:03d}" for number in range(population)]
    fill(state, space, config, names)
    directory.mkdir()
    write_config(directory, config.model_dump(mode="json"))
    state.save(directory)
    begin_lineage(directory)
    before = psutil.Process().memory_info().rss
    channel, admission = start_channel(directory.name, population, 1), Admission(population, lambda: NODES * CPUS)
    storage, view = RunStorage(directory), LiveView(EPOCHS, population, "toys")
    with (
        Trackers([], storage, view.note) as trackers,
        Run(storage, list(space.parameters), view, RayMetrics("toys"), trackers) as run,
    ):
        members = Population(config, state, run, ChannelCalls(channel))
        scheduler = TimedPopulation(members, admission, space, lambda name, donor, r: space.explore(donor.values, r))
        scheduler.seconds, scheduler.cpu_seconds, scheduler.behind = [], [], 0
        began = time.perf_counter()
        tune.Tuner(
            tune.with_resources(ToyTrial, {"CPU": 1}),
            param_space={"trial": tune.grid_search(names), "run_dir": str(directory), "channel": directory.name},
            tune_config=tune.TuneConfig(scheduler=scheduler, search_alg=GatedSearch(admission), reuse_actors=True),
            run_config=tune.RunConfig(name="tune", storage_path=str(directory.parent / "tune"), verbose=0),
        ).fit()
        wall = time.perf_counter() - began
    assert all(member.finished and member.epoch == EPOCHS for member in state.members.values())
    ray.kill(channel)
    files = [path for path in directory.rglob("*") if path.is_file()]
    late = scheduler.seconds[-len(scheduler.seconds) // 4 :]
    return {
        "report_ms": 1000 * statistics.median(scheduler.seconds),
        "report_cpu_ms": 1000 * statistics.median(scheduler.cpu_seconds),
        "report_ms_late": 1000 * statistics.median(late),
        "reports": len(scheduler.seconds),
        "wall_s": wall,
        "driver_mib_per_trial": (psutil.Process().memory_info().rss - before) / 2**20 / population,
        "files_per_trial": len(files) / population,
        "kib_per_trial": sum(path.stat().st_size for path in files) / 1024 / population,
        "behind": scheduler.behind,
        "left": left_behind(),
    }


def left_behind() -> int:
    """Count the trial processes and placement groups that still exist half a minute after the end."""
    # Ray removes both in the background; return as soon as they are gone.
    deadline = time.monotonic() + 30
    while True:
        lines = (process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"]))
        left: int = sum("ToyTrial" in line[0] for line in lines if line)
        left += sum(group["state"] != "REMOVED" for group in placement_group_table().values())
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def main(options: Options) -> None:
    """Measure and print."""
    os.environ.update(DRIVER_ENVIRONMENT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=CPUS)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(sys.stderr):  # runs show their progress
        evolve(8, Path(temporary) / "warm")  # warm-up: imports and allocations that happen once
        order = (options.populations[0], options.populations[1], options.populations[0])
        before, large, after = (evolve(size, Path(temporary) / str(run)) for run, size in enumerate(order))
    small = before | {key: (before[key] + after[key]) / 2 for key in before if key.startswith("report_")}
    ray.shutdown()
    cluster.shutdown()
    flat = ("report_ms", "report_cpu_ms", "driver_mib_per_trial", "files_per_trial", "kib_per_trial")
    growth = {key: round(large[key] / small[key], 2) for key in flat if small[key]}
    figures = [{key: round(value, 3) for key, value in figure.items()} for figure in (small, large)]
    print(json.dumps({"populations": options.populations, "small": figures[0], "large": figures[1], "growth": growth}))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

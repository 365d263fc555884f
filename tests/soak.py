"""Disturb a running population repeatedly at random moments, and check that nothing is lost or left behind.

    python tests/soak.py                      every kill 20 times, every end 10, faults 5 or 10 (`make soak`)
    python tests/soak.py --kinds worker --rounds 1
    python tests/soak.py --kinds disk+node+driver      kills and faults one after the other in each round
    python tests/soak.py --storage s3         kills, signals, and storage away, with the runs on an S3 server that fails

Each round starts a population of two trials on a simulated cluster of three nodes and disturbs it, by kind, at a random
moment after the population was written down, or after the first report. Kills: a worker, a trial's actor, the driver
(restarted to resume the run), a node (another one joins later). Faults: ``disk``, storage is full for a while (needs
permission to mount a file system); ``storage``, it is away for ten seconds; ``checkpoint``, a newest checkpoint is
truncated and its workers killed; ``data``, workers are killed and the data set is away for ten seconds; ``fault``, it
is away until the run stops, and then the run is resumed; ``channel``, its process is killed, which ends the run, and
the run is resumed; ``stranger``, a node that does not see the storage (needs permission to mount, too) has joined, so
that the run is refused, and resumed without that node; ``newcomer``, such a node joins after a node was lost, until
another one joins; ``grow``, the run has a cluster of its own whose autoscaler, of both versions in turn, has started no
node yet; every second run is interrupted, and resumed when no node is left again; ``beside``, another population is
trained on the same cluster, which holds one, and trains nothing for half a minute; ``silence``, a URI takes requests
and does not answer for half a minute, in every second run until the driver is interrupted. Ends: ``interrupt`` and
``terminate``, the driver gets Ctrl-C or SIGTERM, and the run is resumed; ``second``, another driver of the same run is
refused; ``moved``, the driver is killed, and the run is resumed in another place. The round then waits for the end and
checks that all trials are at their last epoch, that every report exists once, that lineage and numbers equal those of
an undisturbed training in one process bit for bit (except after ``checkpoint``, where a trial steps back), that no
process, placement group or temporary file is left, and that another job's detached actor and placement group are as
they were. Prints a table, and one line for each failed round; the exit status is 1 if there was any.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import ray
import torch
import tyro
import yaml
from autoscaled import autoscaled
from ray.cluster_utils import Cluster
from ray.util import placement_group, placement_group_table
from rich.console import Console
from rich.table import Table
from s3 import INTERNAL_ERROR, S3Server, s3_server
from small import make_objects, small_config

from adios_ray.checkpoints import STATE_FILE
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.places import fetched
from adios_ray.ray_private import POLL_INTERVAL_VARIABLE
from adios_ray.search.spaces import load_space
from adios_ray.search.state import PopulationState
from adios_ray.store import Location, Store, split_location
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.results import read_results

KILLS = ("worker", "actor", "driver", "node")
FAULTS = (
    "disk",
    "storage",
    "checkpoint",
    "data",
    "fault",
    "channel",
    "stranger",
    "newcomer",
    "grow",
    "beside",
    "silence",
)
SIGNALS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
ENDS = (*SIGNALS, "second", "moved")
ALONE = (*ENDS, "stranger", "grow", "beside", "silence")
"""Disturbances that cannot be joined with others."""
HALF = (*ENDS, "stranger", "newcomer", "grow", "beside", "silence")
"""Disturbances of half as many rounds as kills."""
ON_S3 = (*KILLS, "storage", "silence", *SIGNALS)
"""Disturbances of a run at a URI; silence is of no other run."""
CHANGING = ("checkpoints", "masks", "outcomes", "report.html")
"""Files that a running driver may remove or replace while its run is copied."""
DISK_BYTES, AWAY_S, SILENT_S, ENDED_S, HELD_S = 2**26, 10.0, 30.0, 25.0, 30.0
HEAD = {"num_cpus": 0, "resources": {"head": 1}, "include_dashboard": False}
SERVICES = ("Foreign", "IDLE", "DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor", "TrainStateActor")
"""Title prefixes of processes that Ray keeps while a cluster runs."""
TITLES = {
    "worker": "ray::RayTrainWorker",
    "actor": "ray::ResourceTrainable",
    "channel": "ray::Channel",
}
EPOCHS, LATEST, TRIALS, TIMEOUT_S = 12, 4, 2, 480.0
PATIENCE = {"RAY_raylet_start_wait_time_s": "300", "RAY_worker_register_timeout_seconds": "300"}
"""Environment variables: Ray kills its processes that take longer to start, which on a busy machine they do."""
DRIVER = (
    "import sys; from pathlib import Path; from adios_ray.experiment.runner import resume, start;"
    "from adios_ray.experiment.config import ExperimentConfig; from adios_ray.errors import exit_status;"
    "what = sys.argv[1]; path = Path(what);"
    "sys.exit(exit_status(lambda: resume(what) if '://' in what or path.is_dir() else "
    "start(ExperimentConfig.model_validate_json(path.read_text()))))"
)
SPACE = {
    "scheduler": "pbt",
    "interval_epochs": 2,
    "quantile_fraction": 0.5,
    "significance": 1,  # copies at every decision, however alike the trials are
    "parameters": {
        "masking.sparsity_weight": {"low": 0.1, "high": 1.0, "scale": "linear"},
        "optimizer.encoder_lr": {"low": 0.01, "high": 0.1, "scale": "log"},
        "masking.slots": {"low": 2, "high": 4, "scale": "integer"},
    },
}


Variables = Mapping[str, str]
NONE: Variables = {}


class WrongError(Exception):
    """A round that did not end as expected."""


class Outcome(NamedTuple):
    """The outcome of a run: its decisions, and the numbers of its reports."""

    lineage: list[tuple[Any, ...]]
    numbers: dict[tuple[str, int], tuple[float, ...]]


@dataclass(frozen=True)
class Options:
    """Options of the soak test."""

    kinds: tuple[str, ...] = (*KILLS, *FAULTS, *ENDS)
    """Kills (worker, actor, driver, node), faults (disk, storage, checkpoint, data, fault, channel, stranger, newcomer,
    grow, beside, silence), and ends (interrupt, terminate, second, moved); kills and faults but stranger, grow, beside
    and silence can be joined with +."""
    rounds: int = 20
    """Rounds of each kill; each end, and each fault of nodes or of a silent URI, has half of them, each other fault a
    quarter."""
    seed: int = 0
    """Seed of the random moments."""
    storage: Literal["disk", "s3"] = "disk"
    """Storage of the runs: this machine's disk, or an S3 server of which every twentieth request fails and every
    hundredth takes two seconds; nodes then share no disk."""


class Foreign:
    """An actor of another job."""

    def __init__(self) -> None:
        """Start to count."""
        self._calls = 0

    def count(self) -> int:
        """Count the calls."""
        self._calls += 1
        return self._calls


class Bystander:
    """Another job on the head node: a detached actor and a detached placement group, which no run may touch."""

    def __init__(self) -> None:
        """Start both."""
        actor = ray.remote(Foreign).options(name="foreign", lifetime="detached", num_cpus=0, resources={"head": 0.1})
        self._calls, self._actor = 0, actor.remote()
        self._group = placement_group([{"head": 0.1}], lifetime="detached", name="foreign")
        ray.get(self._group.ready())

    def placement_groups_beside(self) -> list[str]:
        """List the placement groups of others."""
        own = self._group.id.hex()
        groups = placement_group_table().items()
        return [name for name, group in groups if group["state"] != "REMOVED" and name != own]

    def check(self) -> None:
        """Check that the actor is still the same process, and that the placement group exists."""
        self._calls += 1
        if ray.get(self._actor.count.remote()) != self._calls:
            raise WrongError("another job's actor was started again")
        if placement_group_table()[self._group.id.hex()]["state"] != "CREATED":
            raise WrongError("another job's placement group was removed")


class Stage:
    """A simulated cluster with the data, on which drivers are started."""

    def __init__(self, directory: Path, server: S3Server | None) -> None:
        """Start a head without CPUs, and two nodes with one each: no capacity is spare."""
        self.directory, self.server, self._caches = directory, server, itertools.count()
        os.environ.update(PATIENCE)
        self.cluster = Cluster(initialize_head=True, head_node_args=HEAD)
        self.nodes = [self.add_node() for _ in range(2)]
        os.environ["RAY_ADDRESS"] = self.cluster.address
        os.environ[POLL_INTERVAL_VARIABLE] = "0.2"
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        self.cluster.wait_for_nodes()
        self.bystander = Bystander()
        self.data = make_objects(directory / "objects")
        (directory / "space.yaml").write_text(yaml.safe_dump(SPACE))

    def add_node(self) -> Any:
        """Add a node with a CPU and a cache of its own."""
        cache = self.directory / f"cache-{next(self._caches)}"
        return self.cluster.add_node(num_cpus=1, env_vars={"ADIOS_RAY_CACHE": str(cache)})

    def start(self, name: str, joining: Variables = NONE) -> tuple["subprocess.Popen[str]", Location]:
        """Start a driver with its own storage, which can be filled and taken away; return both."""
        if self.server is not None:
            return self._start(name, f"{self.server.uri}/{name}", joining)
        disk, storage = self.directory / f"{name}.disk", self.directory / name
        disk.mkdir()
        if "disk" in name.rpartition("-")[0].split("+"):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "soak", str(disk)], check=True)
        # A directory in it, which can be renamed where the file system is mounted.
        runs = disk / "runs"
        runs.mkdir()
        storage.symlink_to(runs)  # a link, because storage is behind one on many machines
        return self._start(name, storage, joining)

    def _start(self, name: str, storage: Location, joining: Variables) -> tuple["subprocess.Popen[str]", Location]:
        file = self.directory / f"{name}.json"
        file.write_text(self.config(storage).model_dump_json())
        return self.drive(file, name, joining), storage

    def config(self, storage: Location) -> ExperimentConfig:
        """Make the configuration of a population."""
        trial = small_config(self.data, epochs=EPOCHS).model_dump()
        return ExperimentConfig(
            **trial, space=self.directory / "space.yaml", storage=storage, population=TRIALS, cpus_per_worker=0.9
        )

    def drive(self, what: Location, name: str, joining: Variables = NONE) -> "subprocess.Popen[str]":
        """Start a driver for a configuration file, or to resume a run directory, on this cluster or another one.

        Args:
            what: The file or the directory.
            name: Of its log.
            joining: Variables with which it joins the other cluster.
        """
        log, command = self.log(name).open("a"), [sys.executable, "-c", DRIVER, str(what)]
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, env={**os.environ, **joining})

    def log(self, name: str) -> Path:
        """Name the file with what a driver prints."""
        return self.directory / f"{name}.log"

    def replace_node(self, rng: random.Random) -> None:
        """Remove a node, and add another one a little later."""
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        time.sleep(rng.uniform(0, 4))
        self.nodes.append(self.add_node())

    @contextmanager
    def stranger(self) -> Iterator[None]:
        """Let a node take part, for a while, that sees an empty directory in place of this stage's."""
        script = f"mount -t tmpfs hidden {self.directory} && exec {sys.executable} -m ray.scripts.scripts start --block"
        before = len(ray.nodes())
        command = ["unshare", "--mount", "sh", "-c", f"{script} --address={self.cluster.address} --num-cpus=1"]
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: len(ray.nodes()) > before, "no node without the storage has joined")
            yield
        finally:
            node.terminate()
            node.wait()

    def discard(self, name: str) -> None:
        """Remove the storage of a round."""
        if self.server is not None:
            Store(f"{self.server.uri}/{name}").remove("")
            return
        disk = self.directory / f"{name}.disk"
        if disk.is_mount():
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        shutil.rmtree(disk, ignore_errors=True)  # a failed round may have none

    def close(self) -> None:
        """Take the cluster down."""
        ray.shutdown()
        self.cluster.shutdown()


def titles() -> dict[psutil.Process, str]:
    """Find the titles of Ray's processes, on all nodes that this process has started."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if line and line[0].startswith("ray::"):
            found[process] = line[0]
    return found


def processes(kind: str) -> list[psutil.Process]:
    """Find the processes of a kind."""
    return [process for process, title in titles().items() if title.startswith(TITLES[kind])]


def strangers() -> list[str]:
    """List the titles of processes that a run must not leave."""
    return [title for title in titles().values() if not title.startswith(tuple(f"ray::{name}" for name in SERVICES))]


@contextmanager
def suspended(these: list[psutil.Process]) -> Iterator[None]:
    """Suspend processes for a while."""
    for process in these:
        process.suspend()
    try:
        yield
    finally:
        for process in these:
            process.resume()


def wait_for(reached: Callable[[], bool], otherwise: str) -> None:
    """Wait until something is reached."""
    deadline = time.monotonic() + TIMEOUT_S
    while not reached():
        if time.monotonic() > deadline:
            raise WrongError(otherwise)
        time.sleep(0.2)


def place_of(storage: Location, driver: "subprocess.Popen[str]", reports: int) -> Location:
    """Wait until a driver's run has a number of reports; return its run directory or URI."""
    store, deadline = Store(storage), time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        for name in store.names():
            if store.size(f"{name}/population.json") is None:
                continue  # the driver is still starting
            header, *lines = complete_rows(store, f"{name}/results.csv")
            if len({tuple(line.split(b",")[1:3]) for line in lines}) >= reports:
                return f"{storage}/{name}" if store.local is None else store.local / name
        if driver.poll() is not None:
            raise WrongError(f"the driver ended with {driver.returncode} before it had {reports} reports")
        time.sleep(0.05 if store.local is not None else 0.5)  # the S3 server shares this process
    raise WrongError(f"no {reports} reports in {TIMEOUT_S:.0f} s")


def complete_rows(store: Store, name: str) -> list[bytes]:
    """Read the complete lines of a file; one empty line without a file."""
    try:
        return store.read(name).rpartition(b"\n")[0].splitlines() or [b""]
    except OSError:
        return [b""]


def disturb(stage: Stage, kind: str, driver: "subprocess.Popen[str]", place: Location, rng: random.Random) -> Any:
    """Disturb a run; return its driver, which is a new one after a kill of the driver."""
    time.sleep(rng.uniform(0, 0.6))  # short enough for the run to be still running
    run = Path(place)
    if kind == "storage" and stage.server is not None:
        stage.server.fault = lambda method, path: INTERNAL_ERROR
        time.sleep(AWAY_S)
        stage.server.fault = occasional
    elif kind == "disk":
        fill(run.parent / "filler", rng.uniform(5, 10))
    elif kind == "storage":
        take_away(run.parent.readlink())
    elif kind == "checkpoint":
        newest = {path.parent: path for path in sorted((run / "checkpoints").glob("trial_*/epoch_*"))}
        state = rng.choice(list(newest.values())) / STATE_FILE
        os.truncate(state, state.stat().st_size // 2)
        for worker in processes("worker"):
            worker.kill()
    elif kind in ("data", "fault"):
        away = stage.data.rename(stage.data.with_suffix(".away"))
        for worker in processes("worker"):
            worker.kill()
        if kind == "data":
            time.sleep(AWAY_S)
        elif not driver.wait(timeout=TIMEOUT_S):
            raise WrongError("the run finished without its data")
        away.rename(stage.data)
        if kind == "fault":
            return resumed_after(stage, "cannot train: its workers failed 6 times: no data set", run)
    elif kind == "node":
        stage.replace_node(rng)
    elif kind == "newcomer":
        stage.cluster.remove_node(stage.nodes.pop(rng.randrange(len(stage.nodes))), allow_graceful=False)
        with stage.stranger():
            said = "cannot train: it does not see the run directory"
            wait_for(lambda: said in stage.log(run.parent.name).read_text(), "the newcomer was not refused")
            time.sleep(rng.uniform(0, 5))
            stage.nodes.append(stage.add_node())
            driver.wait(timeout=TIMEOUT_S)
    elif kind == "driver":
        driver.kill()
        driver.wait()
        return stage.drive(place, split_location(split_location(place)[0])[1])
    else:
        wait_for(lambda: bool(processes(kind)) or driver.poll() is not None, f"there is no {kind}")
        if driver.poll() is not None:
            raise WrongError(f"the run ended before a process of the {kind} could be killed")
        rng.choice(processes(kind)).kill()
        if kind == "channel":
            driver.wait(timeout=TIMEOUT_S)
            return resumed_after(stage, "it has lost a process that it needs", run)
    return driver


def occasional(method: str, path: str) -> str | None:
    """Fail at every twentieth request, and take two seconds for every hundredth."""
    number = next(_requests)
    if number % 100 == 50:
        time.sleep(2)
    return INTERNAL_ERROR if number % 20 == 0 else None


_requests = itertools.count(1)


def grow(stage: Stage, name: str, number: int, rng: random.Random) -> tuple["subprocess.Popen[str]", Location]:
    """Run on a cluster that an autoscaler grows from no node, and shrinks to none; return the driver and its run."""
    with autoscaled({"CPU": 1}, TRIALS + 1, version=2 if number // 2 % 2 else 1) as cluster:
        driver, storage = stage.start(name, cluster.environment)
        try:
            run = place_of(storage, driver, rng.randint(1, TRIALS * LATEST))
            if f"waiting for nodes: 0 of {TRIALS} trials fit" not in stage.log(name).read_text():
                raise WrongError("the run did not say that it waits for nodes")
            if number % 2:
                driver.send_signal(signal.SIGINT)
                wait_for(lambda: driver.poll() is not None, "the driver did not end after Ctrl-C")
                wait_for(lambda: not cluster.nodes(), "nodes are left after Ctrl-C")
                driver = stage.drive(run, name, cluster.environment)
            wait_for(lambda: driver.poll() is not None, "the driver did not end")
            wait_for(lambda: not cluster.nodes(), "nodes are left")
        finally:
            driver.kill()
    return driver, run


def beside(stage: Stage, name: str, expected: Outcome, rng: random.Random) -> tuple["subprocess.Popen[str]", Location]:
    """Run two populations on a cluster that holds one; check the second one, and return the first with its driver."""
    names = name, f"{name}-other"
    with contextlib.ExitStack() as stack:
        started = []
        for own in names:
            started.append(stage.start(own))
            stack.callback(started[-1][0].kill)
            time.sleep(rng.uniform(0, 4))
        wait_for(lambda: bool(processes("worker")), "no worker was started")
        # Else, on a fast machine, all would have trained before one run has waited long enough to say so.
        with suspended(processes("worker")):
            time.sleep(HELD_S)
        places = [place_of(storage, driver, 0) for driver, storage in started]
        for driver, _ in started:
            driver.wait(timeout=TIMEOUT_S)
        if not any("waiting for resources that are in use" in stage.log(own).read_text() for own in names):
            raise WrongError("neither run said that it waits for the other one")
    (driver, _), (other, _) = started
    if other.returncode:
        raise WrongError(f"the other driver ended with status {other.returncode}")
    check(stage, places[1], expected)
    stage.discard(names[1])
    return driver, places[0]


def silence(stage: Stage, number: int, driver: "subprocess.Popen[str]", place: Location) -> "subprocess.Popen[str]":
    """Let the S3 server answer nothing for a while; return the run's driver, a new one if it was interrupted."""
    assert stage.server is not None
    name, answers = split_location(split_location(place)[0])[1], threading.Event()

    def silent(method: str, path: str) -> None:
        answers.wait()

    stage.server.fault = silent
    try:
        if number % 2 == 0:
            time.sleep(SILENT_S)
            return driver
        time.sleep(AWAY_S)
        driver.send_signal(signal.SIGINT)
        if driver.wait(timeout=ENDED_S) != 128 + signal.SIGINT:
            raise WrongError(f"the driver ended with status {driver.returncode}")
    except subprocess.TimeoutExpired:
        raise WrongError(f"the driver did not end within {ENDED_S:.0f} s of Ctrl-C") from None
    finally:
        stage.server.fault = occasional
        answers.set()
    expect_line(stage, name, "resume with --resume ")
    return stage.drive(place, name)


def resumed_after(stage: Stage, error: str, run: Path) -> "subprocess.Popen[str]":
    """Check that a run's driver has ended with an error, and resume the run."""
    name = run.parent.name
    if error not in (stage.directory / f"{name}.log").read_text().splitlines()[-1]:
        raise WrongError(f"the driver did not end with {error!r}")
    return stage.drive(run, name)


def end(
    stage: Stage, kind: str, driver: "subprocess.Popen[str]", place: Location, rng: random.Random
) -> tuple["subprocess.Popen[str]", Location]:
    """End a driver, or start another one; return the one that remains, and where its run is."""
    time.sleep(rng.uniform(0, 3))
    name, run = split_location(split_location(place)[0])[1], Path(place)
    if kind == "moved":
        driver.kill()
        driver.wait()
        place = run.rename(run.parent / "elsewhere-moved")
    elif kind == "second":
        if stage.drive(run, f"{name}-second").wait(timeout=TIMEOUT_S) != 1:
            raise WrongError("a second driver was not refused")
        expect_line(stage, f"{name}-second", f"error: {run.resolve()} is being trained by process {driver.pid} on ")
        return driver, run
    else:
        number, before, began = SIGNALS[kind], epochs_of(place), time.monotonic()
        driver.send_signal(number)
        if (status := driver.wait(timeout=TIMEOUT_S)) != 128 + number:
            raise WrongError(f"the driver ended with status {status} after {kind}")
        print(f"{name}: ended after {time.monotonic() - began:.1f} s", flush=True)
        expect_line(stage, name, f"resume with --resume {place if stage.server is not None else run.resolve()}")
        nothing_left(strangers)
        if lost := [trial for trial, epoch in epochs_of(place).items() if epoch < before[trial]]:
            raise WrongError(f"{lost} lost epochs")
    return stage.drive(place, name), place


def epochs_of(place: Location) -> dict[str, int]:
    """Read the epoch of each trial."""
    state = PopulationState.load(fetched(place, without=CHANGING))
    return {name: member.epoch for name, member in state.members.items()}


def expect_line(stage: Stage, name: str, text: str) -> None:
    """Check that the last line that a driver printed contains a text, and that it printed no stack."""
    log = stage.log(name).read_text()
    if text not in log.splitlines()[-1] or "Traceback" in log or "*** SIG" in log:
        raise WrongError(f"the driver did not end with {text!r} alone")


def take_away(disk: Path) -> None:
    """Replace a directory by an empty one for a while, as an unmounted file system does: writes are lost."""
    disk.rename(disk.with_suffix(".away"))
    disk.mkdir()
    time.sleep(AWAY_S)
    disk.rename(disk.with_suffix(".lost"))
    disk.with_suffix(".away").rename(disk)
    shutil.rmtree(disk.with_suffix(".lost"))


def fill(file: Path, seconds: float) -> None:
    """Fill the file system of a file to its last byte for some seconds."""
    try:
        with file.open("wb", buffering=0) as stream:
            while stream.write(bytes(4096)):
                pass
    except OSError:
        time.sleep(seconds)
    file.unlink()


def check(stage: Stage, place: Location, expected: Outcome | None) -> None:
    """Check that everything exists once, nothing else is left, and the outcome is as expected (None: any)."""
    run = fetched(place)
    state = PopulationState.load(run)
    if epochs := [m.epoch for m in state.members.values() if not m.finished or m.epoch != EPOCHS]:
        raise WrongError(f"trials ended at epochs {epochs}")
    rows = read_results(run)
    if len(rows) != TRIALS * EPOCHS:
        raise WrongError(f"{len(rows)} reports instead of {TRIALS * EPOCHS}")
    if expected and (lineage := decisions(run)) != expected.lineage:
        raise WrongError(f"another lineage: {lineage}, not {expected.lineage}")
    if expected and (numbers := measured(run)) != expected.numbers:
        differing = [key for key, values in numbers.items() if values != expected.numbers[key]]
        raise WrongError(f"other numbers in the reports {differing}")
    if left := [str(path) for path in run.rglob("*") if path.suffix == ".tmp"]:
        raise WrongError(f"temporary files are left: {left}")
    nothing_left(strangers)
    nothing_left(stage.bystander.placement_groups_beside)
    stage.bystander.check()


def nothing_left(look: Callable[[], list[str]]) -> None:
    """Wait up to half a minute for nothing to be left; Ray takes its processes down one after the other."""
    deadline = time.monotonic() + 30
    while left := look():
        if time.monotonic() > deadline:
            raise WrongError(f"left after half a minute: {', '.join(left)}")
        time.sleep(0.2)


def decisions(run: Path) -> list[tuple[Any, ...]]:
    """List the population's decisions."""
    return [(e.epoch, e.trial, e.donor, json.dumps(e.new, sort_keys=True)) for e in read_lineage(run)]


def measured(run: Path) -> dict[tuple[str, int], tuple[float, ...]]:
    """Collect fitness, loss and N by trial and epoch."""
    return {(row.trial, row.epoch): (row.fitness, row.loss, row.values["masking.slots"]) for row in read_results(run)}


def undisturbed(stage: Stage) -> Outcome:
    """Train the population in this process, without Ray and without a disturbance; return the outcome."""
    sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # pytest takes it from pyproject.toml
    from real_trainings import Trainers, train_population

    run = stage.directory / "undisturbed"
    config = stage.config(run)
    torch.set_num_threads(1)  # like a trial's worker
    train_population(config, load_space(config.space), run, Trainers(run), console=Console(quiet=True))
    return Outcome(decisions(run), measured(run))


def play(stage: Stage, kind: str, number: int, seed: int, expected: Outcome) -> float:
    """Run one round; return its seconds."""
    rng, name, began = random.Random(f"{seed}/{kind}/{number}"), f"{kind}-{number}", time.monotonic()
    place: Location
    if kind == "grow":
        driver, place = grow(stage, name, number, rng)
    elif kind == "beside":
        driver, place = beside(stage, name, expected, rng)
    elif kind == "stranger":
        with stage.stranger():
            driver, storage = stage.start(name)
            driver.wait(timeout=TIMEOUT_S)
    else:
        driver, storage = stage.start(name)
    try:
        if kind == "stranger":
            (run,) = (path.parent for path in Path(storage).glob("*-*/population.json"))
            place, unseen = run, f"it does not see the run directory {Path(storage).resolve()}"
            driver = resumed_after(stage, unseen, run)
        elif kind in ENDS:
            place = place_of(storage, driver, rng.randint(0, TRIALS * LATEST))
            driver, place = end(stage, kind, driver, place, rng)
        elif kind == "silence":
            driver = silence(stage, number, driver, place := place_of(storage, driver, rng.randint(0, TRIALS * LATEST)))
        elif kind not in ("grow", "beside"):
            joined, reports = kind.split("+"), 0
            for part in joined:
                # What disturbs the data or the checkpoints needs a run that has begun.
                fewest = 0 if part in (*KILLS, "disk", "storage", "channel") else 1
                reports += rng.randint(fewest, math.ceil(TRIALS * LATEST / len(joined)))
                place = place_of(storage, driver, reports)
                driver = disturb(stage, part, driver, place, rng)
        if driver.wait(timeout=TIMEOUT_S):
            raise WrongError(f"the driver ended with status {driver.returncode}")
        check(stage, place, None if "checkpoint" in kind else expected)
    except subprocess.TimeoutExpired:
        raise WrongError(f"the driver did not end in {TIMEOUT_S:.0f} s") from None
    finally:
        driver.kill()
    stage.discard(name)
    return time.monotonic() - began


def main(options: Options) -> int:
    """Run all rounds; return 1 if one failed."""
    table = Table("disturbed", "rounds", "passed", "median s")
    wrong: list[str] = []
    kinds = options.kinds
    for kind in kinds:
        if unknown := set(parts := kind.split("+")) - {*KILLS, *FAULTS, *ENDS}:
            raise SystemExit(f"--kinds {kind}: there is no {', '.join(sorted(unknown))}")
        if len(parts) > 1 and (alone := set(parts) & set(ALONE)):
            raise SystemExit(f"--kinds {kind}: {', '.join(sorted(alone))} cannot be joined with others")
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        server = stack.enter_context(s3_server()) if options.storage == "s3" else None
        if server is None:
            kinds = tuple(kind for kind in kinds if kind != "silence")
        else:
            server.fault, kinds = occasional, tuple(kind for kind in kinds if set(kind.split("+")) <= set(ON_S3))
            logging.getLogger("werkzeug").setLevel("ERROR")
        stage = Stage(Path(directory), server)
        expected = undisturbed(stage)
        for kind in kinds:
            seconds, rounds = [], math.ceil(options.rounds / (1 if kind in KILLS else 2 if kind in HALF else 4))
            for number in range(rounds):
                try:
                    seconds.append(play(stage, kind, number, options.seed, expected))
                    print(f"{kind}, {number + 1} of {rounds}: passed in {seconds[-1]:.0f} s", flush=True)
                except WrongError as error:
                    log = stage.log(f"{kind}-{number}").read_text().splitlines()[-3:]
                    wrong.append(f"{kind}, round {number}: {error}; its log ends: {' | '.join(log)}")
                    stage.discard(f"{kind}-{number}")
                    print(wrong[-1], flush=True)
            median = f"{sorted(seconds)[len(seconds) // 2]:.0f}" if seconds else "-"
            table.add_row(kind, str(rounds), str(len(seconds)), median)
            print(f"{kind}: {len(seconds)} of {rounds} rounds passed", flush=True)
        stage.close()
    Console(width=80).print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

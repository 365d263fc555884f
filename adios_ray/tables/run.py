"""The cells of a table under Ray Tune: each one a trial, finished ones left alone, a failed one lost by itself."""

import logging
import re
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.experiment import Trial

from adios_ray.backend.autoscaling import autoscaler_runs
from adios_ray.backend.capacity import WAITING_S
from adios_ray.backend.cluster import connected
from adios_ray.backend.loop_config import threads_of
from adios_ray.backend.preflight import check_nodes
from adios_ray.console import say
from adios_ray.data.claim import TRAINING, claimed
from adios_ray.devices import best_device, limit_memory
from adios_ray.errors import ConfigError
from adios_ray.experiment.resources import WorkerResources, count_workers, gpus_of_each, nodes, nodes_have
from adios_ray.files import write_output
from adios_ray.ray_private import fit
from adios_ray.store import Store
from adios_ray.tables.cells import finished, run_cell
from adios_ray.tables.evaluate import evaluate
from adios_ray.tables.grid import Cell
from adios_ray.tracking.formatting import duration

ERROR = "error.txt"
"""File of a cell's folder with the traceback of its last run, if that failed."""


def run_cells(
    storage: Path, folders: Mapping[Cell, Path], places: Mapping[str, str], gpus: float | None
) -> dict[str, str]:
    """Train and evaluate the cells that are not finished.

    Args:
        storage: The directory of all of them.
        folders: The directory of each cell, which all nodes of the cluster see; cells with the same one are run once.
        places: Directory or URI of each data set by name.
        gpus: GPUs of each cell, 0 to 1; None takes one if the cluster has any.

    Returns:
        The last line of the error of each cell that failed, by the name of its directory, which holds the whole error.

    Raises:
        ConfigError: If a node of the cluster lacks the storage, the data or the packages, or none can ever hold a cell.
    """
    pending: dict[str, Cell] = {}
    for cell, folder in folders.items():
        if str(folder) in pending:  # two rows of a table may share a training, and evaluate it differently
            both = (*pending[str(folder)].evaluations, *cell.evaluations)
            cell = cell._replace(evaluations=tuple(dict.fromkeys(both)))
        if not finished(folder, cell, places):
            pending[str(folder)] = cell
    trainings = len(set(folders.values()))
    say(f"{trainings} cells: {trainings - len(pending)} finished, {len(pending)} to run")
    if not pending:
        return {}
    with connected(), tempfile.TemporaryDirectory() as records:
        resources = _cell_resources(gpus)
        for place in sorted(set(places.values())):
            check_nodes(storage, place, resources.gpus > 0)
        for name in pending:  # an earlier run's, which a process that dies before it claims its cell would leave
            Path(name, ERROR).unlink(missing_ok=True)
        progress = _Progress(pending, places, resources)
        # Tune logs the traceback of a failed cell, which is in the cell's folder, and the reason is printed; so is what
        # cells wait for.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, cells=pending, places=places),
                {"cpu": resources.cpus, "gpu": resources.gpus},
            ),
            param_space={"folder": tune.grid_search(list(pending))},
            run_config=tune.RunConfig(name="table", storage_path=records, verbose=0, callbacks=[progress]),
        )
        fit(tuner)
    return progress.failed


def _cell_resources(gpus: float | None) -> WorkerResources:
    """Choose the resources of each cell.

    Raises:
        ConfigError: If no node can ever give them.
    """
    cluster = nodes()
    resources = WorkerResources(1.0, gpus_of_each(gpus, cluster))
    if not count_workers(resources, cluster) and not autoscaler_runs():
        raise ConfigError(
            f"a cell needs 1 CPU and {resources.gpus:g} GPUs on one node, which the cluster can never give "
            f"({nodes_have(cluster)}): lower --gpus-per-cell, or add nodes"
        )
    return resources


def _trial(settings: Mapping[str, Any], cells: Mapping[str, Cell], places: Mapping[str, str]) -> None:
    """Run one cell; the body of a Tune trial."""
    torch.set_num_threads(threads_of(_assigned("CPU")))
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(Store(folder), say, TRAINING):  # two tables that run at the same time may share the cell
        (folder / ERROR).unlink(missing_ok=True)
        try:
            device = best_device()
            limit_memory(device, _assigned("GPU"))
            run_cell(cells[settings["folder"]], folder, places, device, evaluate)
        except Exception:
            write_output(folder / ERROR, traceback.format_exc().encode())
            raise
    tune.report({"finished": 1})  # of a trial without a result Tune prints a line of its own


def _assigned(resource: str) -> float:
    """Return how much of a resource Ray has assigned to this cell, if it has one."""
    return float(ray.get_runtime_context().get_assigned_resources().get(resource, 1))


class _Progress(tune.Callback):  # type: ignore[misc]  # Ray ships no type information
    """Prints a line for each cell that ends, or if none runs, and keeps the reasons of those that failed."""

    def __init__(self, cells: Mapping[str, Cell], places: Mapping[str, str], resources: WorkerResources) -> None:
        self.failed: dict[str, str] = {}
        self._cells, self._places, self._resources = cells, places, resources
        self._ended, self._began = 0, time.monotonic()
        self._ran, self._waits = self._began, False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Say that no cell has run for a while, such as where others hold what it needs, and when one runs again."""
        if any(trial.status == Trial.RUNNING for trial in trials):
            self._ran = time.monotonic()
        waits = time.monotonic() - self._ran > WAITING_S
        if waits and not self._waits:
            say(
                f"waiting for resources: no cell has run for {WAITING_S:.0f} s; each needs 1 CPU and "
                f"{self._resources.gpus:g} GPUs that nothing else on the cluster uses"
            )
        elif self._waits and not waits:
            say("a cell runs")
        self._waits = waits

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say that a cell is finished, if its results are here: a node that joined later may lack the storage."""
        folder = trial.config["folder"]
        if finished(Path(folder), self._cells[folder], self._places):
            self._say(trial, "finished")
        else:
            self._fail(trial, "its results did not arrive on this node, which must share --storage with all others")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say that a cell has failed, and why."""
        file = Path(trial.config["folder"]) / ERROR
        # The last line of a traceback, without the module of the exception's class.
        last = re.sub(r"^(\w+\.)+(?=\w+: )", "", file.read_text().splitlines()[-1]) if file.is_file() else ""
        self._fail(trial, last or "its process died")

    def _fail(self, trial: Trial, reason: str) -> None:
        file = Path(trial.config["folder"]) / ERROR
        self.failed[file.parent.name] = reason
        self._say(trial, f"failed: {reason}" + (f"; {file}" if file.is_file() else ""))

    def _say(self, trial: Trial, what: str) -> None:
        self._ended += 1
        elapsed = time.monotonic() - self._began
        left = elapsed / self._ended * (len(self._cells) - self._ended)
        count, times = f"[{self._ended}/{len(self._cells)}]", f"{duration(elapsed)}, about {duration(left)} left"
        say(f"{count} {Path(trial.config['folder']).name} {what}; {times}")

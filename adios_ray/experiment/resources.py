"""Resources of a trial's workers, and how many trials fit into a cluster."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import ray

from adios_ray.backend.cluster import submitted_job
from adios_ray.console import say
from adios_ray.errors import ConfigError
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.ray_private import entry_point


class WorkerResources(NamedTuple):
    """Resources of each worker of a trial; may be fractions."""

    cpus: float
    gpus: float


class Node(NamedTuple):
    """Resources of a node of the cluster, and its ID."""

    cpus: float
    gpus: float
    id: str = ""


def nodes() -> list[Node]:
    """List the nodes of the running cluster that are alive, without what this Ray job reserves for its entry point."""
    alive = ((node["Resources"], node["NodeID"]) for node in ray.nodes() if node["Alive"])
    found = [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), node) for resources, node in alive]
    if job := submitted_job():
        own = _entry_point(job)
        found = [Node(n.cpus - own.cpus, n.gpus - own.gpus, n.id) if n.id == own.node else n for n in found]
    return found


_entry_point = cache(entry_point)


def worker_resources(config: ExperimentConfig, cluster: Sequence[Node], grows: bool = False) -> WorkerResources:
    """Choose CPUs and GPUs of each worker: as configured, else one GPU if there are any, and a share of the CPUs.

    The share is the largest with which as many trials fit at once as with the smallest. A GPU's is at most an even one
    of its node's CPUs. Nodes that cannot hold a worker do not count: a head without GPUs takes none from the others.

    Args:
        config: The experiment.
        cluster: The cluster's nodes.
        grows: Whether an autoscaler adds nodes: then resources that no node has yet are believed to come. What is
            chosen without seeing such a node is printed.

    Raises:
        ConfigError: If not even one trial fits, and never will.
    """
    gpus = gpus_of_each(config.gpus_per_worker, cluster)
    resources = WorkerResources(config.cpus_per_worker or _cpu_share(config, gpus, cluster), gpus)
    if count_capacity(config, resources, cluster):
        if grows and config.gpus_per_worker is None and not gpus:  # a head, say, that is up before the others
            say(
                "no node has a GPU yet, so that all workers of the run use CPUs, whatever nodes the autoscaler adds: "
                "for GPUs, give --gpus-per-worker 1"
            )
        return resources
    if not grows:
        raise ConfigError(
            f"a trial's {config.workers_per_trial} workers need {resources.cpus:g} CPUs and {gpus:g} GPUs each, which "
            f"the cluster can never give ({nodes_have(cluster)}): lower --workers-per-trial, --cpus-per-worker or "
            "--gpus-per-worker"
        )
    if None in (config.cpus_per_worker, config.gpus_per_worker):
        say(
            f"no node fits a worker yet, so that each is given {resources.cpus:g} CPUs and {gpus:g} GPUs, whatever "
            "nodes the autoscaler adds: choose with --cpus-per-worker and --gpus-per-worker"
        )
    return resources


def gpus_of_each(asked: float | None, cluster: Sequence[Node]) -> float:
    """Return the GPUs of each worker: as many as are asked for; if None, one where any node has one, else none."""
    return float(any(node.gpus for node in cluster)) if asked is None else asked


def nodes_have(cluster: Sequence[Node]) -> str:
    """Say what the nodes of a cluster have, for an error."""
    return "its nodes have " + ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in cluster)


def _cpu_share(config: ExperimentConfig, gpus: float, cluster: Sequence[Node]) -> float:
    def trials(cpus: float) -> int:
        return min(count_capacity(config, WorkerResources(cpus, gpus), cluster), config.population)

    workers = config.population * config.workers_per_trial
    shares = {
        _round_down(node.cpus / count)
        for node in set(cluster)
        for count in ([_fit_gpus(node.gpus, gpus)] if gpus else range(1, workers + 1))
        if count
    }
    most = trials(_SMALLEST_SHARE)
    return max(share for share in shares if trials(share) == most) if most else 1.0


_SMALLEST_SHARE = 0.001


def _round_down(cpus: float) -> float:
    """Round to whole CPUs, which a worker uses as threads, or below one to thousandths.

    Ray counts ten-thousandths: if it rounded up, the last worker would not fit.
    """
    return float(math.floor(cpus)) if cpus >= 1 else max(math.floor(1000 * cpus) / 1000, _SMALLEST_SHARE)


def bundles(config: ExperimentConfig, resources: WorkerResources) -> list[dict[str, float]]:
    """List the resources of all workers of a trial, as Ray takes them."""
    needed = {"CPU": resources.cpus, "GPU": resources.gpus}
    return [{name: amount for name, amount in needed.items() if amount}] * config.workers_per_trial


def count_capacity(config: ExperimentConfig, resources: WorkerResources, cluster: Sequence[Node]) -> int:
    """Count the trials that fit into a cluster at once; a worker needs one node, a trial's workers may use several."""
    return count_workers(resources, cluster) // config.workers_per_trial


def count_workers(resources: WorkerResources, cluster: Sequence[Node]) -> int:
    """Count the workers that fit into a cluster at once, each of them on one node."""
    return sum(min(_fit(node.cpus, resources.cpus), _fit_gpus(node.gpus, resources.gpus)) for node in cluster)


def _fit(available: float, each: float) -> int:
    """Count how often ``each`` fits; Ray counts fractions to a ten-thousandth."""
    return math.floor(available / each + 1e-6) if each else 10**6


def _fit_gpus(available: float, each: float) -> int:
    """Count how often GPUs fit; a part is one of a single GPU."""
    return math.floor(available) * _fit(1, each) if 0 < each < 1 else _fit(available, each)

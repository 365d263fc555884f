"""Resources of a trial's workers, and how many trials fit into a cluster."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import ray

from adios_ray.errors import ConfigError
from adios_ray.experiment.config import ExperimentConfig


class WorkerResources(NamedTuple):
    """Resources of each worker of a trial; may be fractions."""

    cpus: float
    gpus: float


class Node(NamedTuple):
    """Resources of a node of the cluster."""

    cpus: float
    gpus: float


def nodes() -> list[Node]:
    """List the nodes of the running cluster that are alive."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def worker_resources(config: ExperimentConfig, cluster: Sequence[Node]) -> WorkerResources:
    """Choose CPUs and GPUs of each worker: as configured, else one GPU if there are any, and an even share of the CPUs.

    Args:
        config: The experiment; if CPUs are not configured, they are shared so that the whole population fits at once.
        cluster: The cluster's nodes.

    Raises:
        ConfigError: If not even one trial fits.
    """
    gpus = float(any(node.gpus for node in cluster)) if config.gpus_per_worker is None else config.gpus_per_worker
    at_once = config.population * config.workers_per_trial
    if gpus:
        at_once = min(at_once, sum(_fit(node.gpus, gpus) for node in cluster) or 1)
    # Rounded down to a thousandth: Ray counts ten-thousandths, and if it rounded up, the last worker would not fit.
    share = min(sum(node.cpus for node in cluster) / at_once, 1.0)
    cpus = config.cpus_per_worker or max(math.floor(1000 * share) / 1000, 0.001)
    resources = WorkerResources(cpus, gpus)
    if not count_capacity(config, resources, cluster):
        has = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in cluster)
        raise ConfigError(
            f"a trial's {config.workers_per_trial} workers need {cpus:g} CPUs and {gpus:g} GPUs each, which the "
            f"cluster can never give (its nodes have {has}): lower --workers-per-trial, --cpus-per-worker or "
            "--gpus-per-worker"
        )
    return resources


def count_capacity(config: ExperimentConfig, resources: WorkerResources, cluster: Sequence[Node]) -> int:
    """Count the trials that fit into a cluster at once; a worker needs one node, a trial's workers may use several."""
    workers = sum(min(_fit(node.cpus, resources.cpus), _fit(node.gpus, resources.gpus)) for node in cluster)
    return workers // config.workers_per_trial


def _fit(available: float, each: float) -> int:
    """Count how often ``each`` fits; Ray counts fractions to a ten-thousandth."""
    return math.floor(available / each + 1e-6) if each else 10**6

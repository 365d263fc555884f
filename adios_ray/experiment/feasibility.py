"""Whether an experiment fits a machine: hours, memory and disk from a measured step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from adios_ray.checkpoints import KEPT_CHECKPOINTS
from adios_ray.devices import CONTEXT_BYTES
from adios_ray.experiment.config import DEMO, DEMO_IMAGE_SIZE, ExperimentConfig
from adios_ray.experiment.resources import Node, count_capacity, worker_resources
from adios_ray.training.cost import StepCost

PAPERS_IMAGE_SIZE = 224
"""Side of the views where neither the preset nor a data set says."""


class Needs(NamedTuple):
    """Time, memory and disk of a run.

    Attributes:
        hours: From its first step to its last, without evaluations.
        memory_bytes: Memory of the trials that train at once on one machine: of each GPU, or of the machine.
        disk_bytes: Checkpoints that stay.
        at_once: Trials that train at once.
    """

    hours: float
    memory_bytes: float
    disk_bytes: float
    at_once: int


def view_size(config: ExperimentConfig, stored: int | None) -> int:
    """Return the side of the views in pixels; ``stored`` is that of the data set's images, if there is one."""
    return config.image_size or stored or (DEMO_IMAGE_SIZE if config.preset == DEMO else PAPERS_IMAGE_SIZE)


def needs(config: ExperimentConfig, images: int, step: StepCost, cluster: Sequence[Node]) -> Needs:
    """Estimate what a run needs.

    Args:
        config: The experiment.
        images: Training images.
        step: A measured step; of a CPU, on one core.
        cluster: Nodes that it would run on, all like the one that was measured.

    Raises:
        ConfigError: If not even one trial fits.
    """
    each = worker_resources(config, cluster)
    at_once = min(count_capacity(config, each, cluster), config.population)
    alone = config.epochs * images * step.seconds_per_image / 3600
    # Workers are taken to share a trial's steps, and threads the work of a worker, without loss.
    used = at_once * config.workers_per_trial * (min(each.gpus, 1.0) if each.gpus else each.cpus)
    if each.gpus:
        memory = (step.memory_bytes / config.workers_per_trial + CONTEXT_BYTES) * max(1 / each.gpus, 1.0)
    else:
        memory = step.memory_bytes * math.ceil(at_once / len(cluster))
    return Needs(
        alone * config.population / used, memory, config.population * KEPT_CHECKPOINTS * step.state_bytes, at_once
    )

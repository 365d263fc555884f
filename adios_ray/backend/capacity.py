"""Places in a cluster: how many trials it can hold, and giving back those of processes that have died.

The cluster may be shared, and a placement group that is removed takes with it what runs there. A run therefore touches
only groups that it knows as its own: each Ray Train controller leaves its actor's ID in the run directory before it
makes a group, where a driver finds it that resumes the run as another job.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from adios_ray.backend.ray_private import is_dead, placement_groups
from adios_ray.retry import retry_in_run
from adios_ray.run_directory import RunDirectory

WAITING_S = 10.0
"""A trial whose workers have waited so long does not fit, whatever the nodes have in all."""


class ControllerRecord:
    """Records a Ray Train controller in the run directory as long as a placement group of its may be left."""

    def __init__(self, run_dir: Path) -> None:
        """Record into a run's directory."""
        self._run_dir = run_dir

    def started(self) -> None:
        """Record the controller before it makes its first group; without a record it makes none.

        Raises:
            StorageError: If storage refuses it for five minutes.
        """
        retry_in_run(self._run_dir, lambda: record_controller(self._run_dir), print)

    def finished(self, error: BaseException | None) -> None:
        """Forget a controller that has taken its group down; after an error it may not have."""
        if error is None:
            with contextlib.suppress(OSError):  # a record too many does no harm
                _record_of(self._run_dir, ray.get_runtime_context().get_actor_id()).unlink()


def record_controller(run_dir: Path) -> None:
    """Record the actor that calls this as one whose placement groups are the run's."""
    record = _record_of(run_dir, ray.get_runtime_context().get_actor_id())
    record.parent.mkdir(exist_ok=True)
    record.touch()


def _record_of(run_dir: Path, actor_id: str) -> Path:
    return RunDirectory(run_dir).controllers / actor_id


class Group(NamedTuple):
    """A placement group that one of the run's controllers has made: the places of one trial's workers.

    Attributes:
        id: Its identity.
        placed: Whether the workers have their places; else they wait for them.
        deserted: Whether the controller has died.
    """

    id: ray.PlacementGroupID
    placed: bool
    orphaned: bool


def groups(run_dir: Path) -> list[Group]:
    """List the placement groups that the run's controllers have made, under this driver or an earlier one."""
    found = []
    for group in placement_groups():
        # Storage that is away has no records either: nothing is known to be the run's until it is back.
        if not group.removed and os.path.exists(_record_of(run_dir, group.maker)):
            # The maker is looked up after its group. It is dead only where Ray says so: no answer is not enough.
            found.append(Group(group.id, group.placed, is_dead(group.maker)))
    return found


def remove_orphaned(run_dir: Path) -> None:
    """Remove the placement groups of the run's dead controllers.

    Ray keeps a group until its job ends, and for ever if its maker, in the moment between the end of its job and its
    own, made another one. What Ray Train has for that is a process more for each trial, and needs the dashboard.
    """
    for group in groups(run_dir):
        if group.orphaned:
            remove_placement_group(PlacementGroup(group.id))


class ClusterCapacity:
    """Counts the trials that the cluster can hold.

    These are as many as fit into its nodes, until one waits in vain because others hold a part of them: then no more
    than have their places.
    """

    def __init__(self, run_dir: Path, count_fitting: Callable[[], int]) -> None:
        """Count for a run, beginning with what ``count_fitting`` says of the nodes."""
        self._run_dir, self._count_fitting = run_dir, count_fitting
        self._waiting_since: dict[ray.PlacementGroupID, float] = {}

    def count(self) -> int:
        """How many there are now."""
        living, now = [group for group in groups(self._run_dir) if not group.orphaned], time.monotonic()
        placed = sum(group.placed for group in living)
        self._waiting_since = {group.id: self._waiting_since.get(group.id, now) for group in living if not group.placed}
        in_vain = any(now - since > WAITING_S for since in self._waiting_since.values())
        return placed if in_vain else self._count_fitting()

"""The cluster's capacity for trials, and removal of placement groups orphaned by dead controllers.

The cluster may be shared, and removing a placement group kills what runs in it. A run therefore removes only groups
that are recorded as its own: each Ray Train controller writes its actor's ID into the run directory before it creates a
group. A driver that resumes the run as another job finds the record there.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from adios_ray.backend.ray_private import is_dead, placement_groups
from adios_ray.retry import retry_in_run
from adios_ray.run_directory import RunDirectory

WAITING_S = 10.0
"""Seconds after which a pending placement group counts as not fitting, whatever the nodes' totals are."""


class ControllerRecord:
    """Keeps a record of a Ray Train controller in the run directory while its placement group may exist."""

    def __init__(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Record into a run directory; ``say`` tells the user of storage that refuses the record."""
        self._run_dir, self._say = run_dir, say

    def started(self) -> None:
        """Record the controller before it creates its first group; a controller that cannot be recorded creates none.

        Raises:
            StorageError: If storage refuses it for five minutes.
        """
        # Record first: a crash in between leaves a record without a group, which is harmless. The other order could
        # leave a group that no driver recognizes; it would hold its resources until its job ends, or for ever.
        retry_in_run(self._run_dir, lambda: record_controller(self._run_dir), self._say)

    def finished(self, error: BaseException | None) -> None:
        """Delete the record of a controller that has removed its group; after an error it may not have."""
        if error is None:
            with contextlib.suppress(OSError):  # a record that is left over does no harm
                _record_of(self._run_dir, ray.get_runtime_context().get_actor_id()).unlink()


def record_controller(run_dir: Path) -> None:
    """Record the calling actor as one whose placement groups belong to the run."""
    record = _record_of(run_dir, ray.get_runtime_context().get_actor_id())
    record.parent.mkdir(exist_ok=True)
    record.touch()


def _record_of(run_dir: Path, actor_id: str) -> Path:
    return RunDirectory(run_dir).controllers / actor_id


class Group(NamedTuple):
    """A placement group that one of the run's controllers created: the resources of one trial's workers.

    Attributes:
        id: The group's ID.
        placed: Whether the resources are reserved; otherwise the group is pending.
        orphaned: Whether the controller has died.
    """

    id: ray.PlacementGroupID
    placed: bool
    orphaned: bool


def groups(run_dir: Path) -> list[Group]:
    """List the placement groups that the run's controllers created, under this driver or an earlier one."""
    found = []
    for group in placement_groups():
        # While storage is away no record is found, and no group is known to be the run's. Unlike Path.exists,
        # os.path.exists then returns False for every OSError, a stale file handle included.
        if not group.removed and os.path.exists(_record_of(run_dir, group.maker)):
            # The maker's state is read after the group's, so it is the newer of the two. A maker that Ray does not know
            # counts as alive: removing a living controller's group would kill its workers.
            found.append(Group(group.id, group.placed, is_dead(group.maker)))
    return found


def remove_orphaned(run_dir: Path) -> None:
    """Remove the placement groups of the run's dead controllers.

    Ray keeps such a group until its job ends; for ever, if the controller created it between the end of its job and its
    own end. Ray Train's own cleaner is one more process for each trial, and needs the dashboard.
    """
    for group in groups(run_dir):
        if group.orphaned:
            remove_placement_group(PlacementGroup(group.id))


class ClusterCapacity:
    """Counts the trials that fit into the cluster at once.

    Capacity follows from the nodes' resources, unless a placement group has been pending for ``WAITING_S`` seconds
    because other jobs hold resources; then it is the number of groups already placed.
    """

    def __init__(
        self, run_dir: Path, count_fitting: Callable[[], int], wanted: int, say: Callable[[str], None]
    ) -> None:
        """Count for a run.

        Args:
            run_dir: The run directory.
            count_fitting: Returns how many trials the nodes' resources suffice for.
            wanted: How many trials are to train at once.
            say: Prints what trials wait for, whenever that changes.
        """
        self._run_dir, self._count_fitting, self._wanted, self._say = run_dir, count_fitting, wanted, say
        self._said = ""
        self._waiting_since: dict[ray.PlacementGroupID, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Drop everything when Tune pickles its search, which is not used again: a terminal cannot be pickled."""
        return {}

    def count(self) -> int:
        """Count them now."""
        living, now = [group for group in groups(self._run_dir) if not group.orphaned], time.monotonic()
        placed = sum(group.placed for group in living)
        self._waiting_since = {group.id: self._waiting_since.get(group.id, now) for group in living if not group.placed}
        in_vain = any(now - since > WAITING_S for since in self._waiting_since.values())
        fitting = self._count_fitting()
        self._tell(waiting_line(placed, fitting, self._wanted, in_vain))
        return placed if in_vain else fitting

    def _tell(self, line: str) -> None:
        if line and line != self._said:
            self._say(line)
        self._said = line


def waiting_line(placed: int, fitting: int, wanted: int, in_vain: bool) -> str:
    """Say what trials wait for; nothing if they wait for none.

    Args:
        placed: Trials whose resources are reserved.
        fitting: Trials that the nodes' resources suffice for.
        wanted: Trials that are to train at once.
        in_vain: Whether a trial waits for resources that the nodes have.
    """
    if fitting < wanted and placed >= fitting:
        return f"waiting for nodes: {fitting} of {wanted} trials fit"
    if in_vain:
        return f"waiting for resources that others on the cluster use: {placed} of {min(fitting, wanted)} trials run"
    return ""

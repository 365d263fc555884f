"""Places in a cluster: how many trials it can hold, and giving back those of processes that have died."""

import time
from collections.abc import Callable
from typing import NamedTuple

import ray
from ray._private.state import state as cluster_state  # Ray's public tables do not say who made a placement group
from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

WAITING_S = 10.0
"""A trial whose workers have waited so long does not fit, whatever the nodes have in all."""


class Group(NamedTuple):
    """A placement group that an actor has made: the places of one trial's workers.

    Attributes:
        id: Its identity.
        placed: Whether the workers have their places; else they wait for them.
        deserted: Whether the actor has died.
    """

    id: ray.PlacementGroupID
    placed: bool
    deserted: bool


def groups() -> list[Group]:
    """The placement groups that actors of this job have made, and those that dead jobs have left."""
    accessor, mine = cluster_state._connect_and_get_accessor(), ray.get_runtime_context().get_job_id()
    tables = [PlacementGroupTableData.FromString(row) for row in accessor.get_placement_group_table()]
    tables = [table for table in tables if table.state != PlacementGroupTableData.REMOVED and not table.is_detached]
    # The makers are looked up after the groups: one that is not alive by now has died.
    actors = accessor.get_actor_table(ray.JobID.from_hex(mine), "ALIVE")
    alive = {ActorTableData.FromString(row).actor_id for row in actors}
    dead_jobs = {job["JobID"] for job in cluster_state.job_table() if job["IsDead"]}
    found = []
    for table in tables:
        job, by_actor = table.creator_job_id.hex(), not ray.ActorID(table.creator_actor_id).is_nil()
        if by_actor and (job == mine or job in dead_jobs):
            placed, deserted = table.state == PlacementGroupTableData.CREATED, table.creator_actor_id not in alive
            found.append(Group(ray.PlacementGroupID(table.placement_group_id), placed, deserted))
    return found


def give_back_deserted() -> list[Group]:
    """Remove the placement groups of dead actors; returns the others.

    Ray keeps a group until its job ends, and for ever if its maker, in the moment between the end of its job and its
    own, made another one. What Ray Train has for that is a process more for each trial, and needs the dashboard.
    """
    found = groups()
    for group in found:
        if group.deserted:
            remove_placement_group(PlacementGroup(group.id))
    return [group for group in found if not group.deserted]


class Places:
    """Counts the trials that the cluster can hold.

    These are as many as fit into its nodes, until one waits in vain because others hold a part of them: then no more
    than have their places.
    """

    def __init__(self, count_fitting: Callable[[], int]) -> None:
        """Begin with what ``count_fitting`` says of the nodes."""
        self._count_fitting = count_fitting
        self._waiting_since: dict[ray.PlacementGroupID, float] = {}

    def count(self) -> int:
        """How many there are now; what dead processes held is given back first."""
        living, now = give_back_deserted(), time.monotonic()
        placed = sum(group.placed for group in living)
        self._waiting_since = {group.id: self._waiting_since.get(group.id, now) for group in living if not group.placed}
        in_vain = any(now - since > WAITING_S for since in self._waiting_since.values())
        return placed if in_vain else self._count_fitting()

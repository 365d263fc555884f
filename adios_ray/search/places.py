"""Places in a cluster: how many trials it can hold, and giving back those of processes that have died."""

import time
from collections.abc import Callable
from typing import NamedTuple

import ray
from ray._private.state import state as cluster_state  # Ray's public tables do not say who made a placement group
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
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


def own_groups() -> list[Group]:
    """The placement groups that actors of this job have made."""
    job, groups = ray.get_runtime_context().get_job_id(), []
    for row in cluster_state._connect_and_get_accessor().get_placement_group_table():
        table = PlacementGroupTableData.FromString(row)
        removed = table.state == PlacementGroupTableData.REMOVED
        if removed or table.creator_job_id.hex() != job or ray.ActorID(table.creator_actor_id).is_nil():
            continue
        placed = table.state == PlacementGroupTableData.CREATED
        groups.append(Group(ray.PlacementGroupID(table.placement_group_id), placed, table.creator_actor_dead))
    return groups


def give_back_deserted() -> list[Group]:
    """Remove the placement groups of dead actors; returns the others.

    Ray keeps a group until its job ends. What Ray Train has for that is a process more for each trial, and needs the
    dashboard.
    """
    groups = own_groups()
    for group in groups:
        if group.deserted:
            remove_placement_group(PlacementGroup(group.id))
    return [group for group in groups if not group.deserted]


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
        groups, now = give_back_deserted(), time.monotonic()
        placed = sum(group.placed for group in groups)
        self._waiting_since = {group.id: self._waiting_since.get(group.id, now) for group in groups if not group.placed}
        in_vain = any(now - since > WAITING_S for since in self._waiting_since.values())
        return placed if in_vain else self._count_fitting()

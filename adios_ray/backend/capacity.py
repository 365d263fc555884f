"""The cluster's capacity for trials, and removal of placement groups orphaned by dead actors of trials.

The cluster may be shared, and removing a placement group kills what runs in it. A run therefore removes only groups
that are recorded as its own: each trial's actor writes its ID into the run directory before it creates a group for its
workers. A driver that resumes the run as another job finds the record there.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from adios_ray.console import counted
from adios_ray.ray_private import is_dead, placement_groups
from adios_ray.retry import retry_in_run
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.store import Location

GAP_S = 10.0
"""Most seconds between two pending placement groups of an actor that waits all the time."""
WAITING_S = 10.0
"""Seconds after which a pending placement group counts as not fitting, whatever the nodes' totals are."""


@contextmanager
def own_groups(run: RunStorage, say: Callable[[str], None]) -> Iterator[None]:
    """Let the calling actor create placement groups that belong to the run; none is left at the end.

    Args:
        run: The run, which has a record of the actor meanwhile.
        say: Tells the user of storage that refuses the record.

    Raises:
        StorageError: If storage refuses the record for five minutes.
    """
    # Record first: a crash in between leaves a record without a group, which is harmless. The other order could leave a
    # group that no driver recognizes; it would hold its resources until its job ends, or for ever.
    own, record = _own_id(), own_record(run)
    retry_in_run(run.directory, partial(record_actor, run, record), say)
    try:
        yield
    finally:
        for group in placement_groups():  # as a rule, Ray Train has removed its own
            if group.maker == own and not group.removed:
                remove_placement_group(PlacementGroup(group.id))
        run.remove(record)


def own_record(run: RunStorage) -> Path:
    """Return the path of a new record of the calling actor.

    Each has a name of its own: where storage is slow, the removal of an earlier one may still continue.
    """
    return RunDirectory(run.directory).actors / f"{_own_id()}-{uuid.uuid4().hex}"


def record_actor(run: RunStorage, record: Path) -> None:
    """Record the calling actor as one whose placement groups belong to the run."""
    record.touch()
    run.publish(record)


def _own_id() -> str:
    actor_id: str = ray.get_runtime_context().get_actor_id()
    return actor_id


class Group(NamedTuple):
    """A placement group that one of the run's actors created: the resources of one trial's workers.

    Attributes:
        id: The group's ID.
        maker: ID of the actor that created it.
        placed: Whether the resources are reserved; otherwise the group is pending.
        orphaned: Whether the actor has died.
    """

    id: ray.PlacementGroupID
    maker: str
    placed: bool
    orphaned: bool


def groups(run: Location) -> list[Group]:
    """List the placement groups of the run as ``read_groups`` does; none while storage fails."""
    with suppress(OSError):
        return read_groups(run)
    return []


def read_groups(run: Location) -> list[Group]:
    """List the placement groups that the run's actors created, under this driver or an earlier one.

    Raises:
        OSError: If storage fails or does not answer within 3 s: no group is known to be the run's then.
    """
    existing = [group for group in placement_groups() if not group.removed]
    storage = RunStorage(run)
    # After the groups: their records are older.
    records = storage.read_names(RunDirectory(storage.directory).actors) if existing else set()
    recorded = {name.partition("-")[0] for name in records}
    found = []
    for group in existing:
        if group.maker in recorded:
            # The maker's state is read after the group's, so it is the newer of the two. A maker that Ray does not know
            # counts as alive: removing a living actor's group would kill its workers.
            found.append(Group(group.id, group.maker, group.placed, is_dead(group.maker)))
    return found


def remove_orphaned(run: Location) -> None:
    """Remove the placement groups of the run's dead actors.

    Ray keeps such a group until its job ends; for ever, if the actor created it between the end of its job and its
    own end. Ray Train's own cleaner is one more process for each trial, and needs the dashboard.
    """
    for group in groups(run):
        if group.orphaned:
            remove_placement_group(PlacementGroup(group.id))


class _Waiting(NamedTuple):
    """Since when an actor's placement groups have been pending, and when one was last seen."""

    since: float
    seen: float


class ClusterCapacity:
    """Counts the trials that fit into the cluster at once.

    Capacity follows from the nodes' resources, unless a placement group has been pending for ``WAITING_S`` seconds
    because its resources are in use; then it is the number of groups already placed.
    """

    def __init__(
        self,
        run: Location,
        count_fitting: Callable[[], int],
        count_wanted: Callable[[], int],
        grows: bool,
        say: Callable[[str], None],
    ) -> None:
        """Count for a run.

        Args:
            run: The run's directory or URI.
            count_fitting: Returns how many trials the nodes' resources suffice for.
            count_wanted: Returns how many trials are to train at once.
            grows: Whether an autoscaler can add nodes.
            say: Prints what trials wait for, whenever that changes.
        """
        self._run, self._count_fitting, self._count_wanted, self._say = run, count_fitting, count_wanted, say
        self._grows, self._said = grows, ""
        self._waiting: dict[str, _Waiting] = {}
        self._counted: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Drop everything when Tune pickles its search, which is not used again: a terminal cannot be pickled."""
        return {}

    def count(self) -> int:
        """Count them now; while storage fails, the last count holds."""
        try:
            found = read_groups(self._run)
        except OSError:
            return self._count_fitting() if self._counted is None else self._counted
        living, now = [group for group in found if not group.orphaned], time.monotonic()
        placed = sum(group.placed for group in living)
        self._note_waiting(living, now)
        in_vain = any(now - waiting.since > WAITING_S for waiting in self._waiting.values())
        fitting = self._count_fitting()
        self._tell(waiting_line(placed, fitting, self._count_wanted(), in_vain, self._grows))
        self._counted = placed if in_vain else fitting
        return self._counted

    def _note_waiting(self, living: Sequence[Group], now: float) -> None:
        # By maker: Ray Train replaces a group that has been pending for a minute, and there is none for a moment.
        before, makers = self._waiting, {group.maker for group in living}
        self._waiting = {
            maker: waiting for maker, waiting in before.items() if maker not in makers and now - waiting.seen < GAP_S
        }
        for group in living:
            if not group.placed:
                since = before[group.maker].since if group.maker in before else now
                self._waiting[group.maker] = _Waiting(since, now)

    def _tell(self, line: str) -> None:
        if line and line != self._said:
            self._say(line)
        self._said = line


def waiting_line(placed: int, fitting: int, wanted: int, in_vain: bool, grows: bool) -> str:
    """Say what trials wait for; nothing if they wait for none.

    Args:
        placed: Trials whose resources are reserved.
        fitting: Trials that the nodes' resources suffice for.
        wanted: Trials that are to train at once.
        in_vain: Whether a trial waits for resources that the nodes have.
        grows: Whether an autoscaler can add nodes.
    """
    # This case is not told from the next by ``placed``, which drops for a moment whenever trials take turns.
    if in_vain and placed < (needed := min(fitting, wanted)):
        return f"waiting for resources that are in use: {placed} of {needed} trials run"
    if fitting < wanted and (grows or not fitting):
        return f"waiting for nodes: {fitting} of {wanted} trials fit"
    if fitting < wanted:
        return f"the nodes hold {counted(fitting, 'trial')} at once; the others wait"
    return ""

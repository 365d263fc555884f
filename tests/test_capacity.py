"""Capacity of a cluster: a run removes placement groups of its own dead actors, and never those of others."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray import PlacementGroupID
from ray._private.state import state as cluster_state  # public tables need a dashboard
from ray.util import placement_group_table
from waiting import until

from adios_ray.backend import capacity
from adios_ray.backend.capacity import ClusterCapacity, Group, groups, remove_orphaned
from adios_ray.run_directory import RunDirectory

pytestmark = pytest.mark.ray
OTHER_DRIVER = """
import sys
import ray
sys.path.insert(0, sys.argv[2])
from test_capacity import holder
ray.init(address=sys.argv[1], namespace="others", log_to_driver=False)
options = {"name": sys.argv[3], "lifetime": "detached"} if sys.argv[3] else {}
actor = holder(num_cpus=0, **options)
print(*ray.get(actor.hold.remote(1.0, sys.argv[4] or None, sys.argv[5] or None)), flush=True)
sys.stdin.read()
"""


def holder(**options: Any) -> Any:
    """Start an actor that creates placement groups, as a trial's does for its workers."""

    class Holder:  # local, so that it is pickled by value: workers cannot import this module
        def hold(self, cpus: float, run_dir: str | None, signal: str | None = None) -> tuple[str, str, int]:
            """Create a group now, or once a file exists; return the IDs of actor, group ("-" for later) and process."""
            import os
            import threading
            import time
            from pathlib import Path

            import ray
            from ray.util import placement_group

            def make() -> str:
                while signal and not Path(signal).exists():
                    time.sleep(0.001)
                self._group = placement_group([{"CPU": cpus}])
                return str(self._group.id.hex())

            if run_dir:
                from adios_ray.backend.capacity import own_record, record_actor
                from adios_ray.run_storage import RunStorage

                run = RunStorage(Path(run_dir))
                record_actor(run, own_record(run))
            if signal:
                threading.Thread(target=make, daemon=True).start()
            return ray.get_runtime_context().get_actor_id(), "-" if signal else make(), os.getpid()

    return ray.remote(Holder).options(**options).remote()


class Other:
    """Another driver on the tests' cluster, and the placement group that its actor holds."""

    def __init__(self, detached: str = "", run_dir: Path | str = "", signal: Path | str = "") -> None:
        """Start the driver, whose actor creates a group."""
        address, here = ray.get_runtime_context().gcs_address, str(Path(__file__).parent)
        arguments = [address, here, detached, str(run_dir), str(signal)]
        self.driver = subprocess.Popen(
            [sys.executable, "-c", OTHER_DRIVER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.driver.stdout is not None
        self.actor, self.group, pid = self.driver.stdout.readline().split()
        self.pid = int(pid)

    def end(self) -> None:
        """Kill the driver, which ends its job."""
        self.driver.kill()
        self.driver.communicate()

    def is_dead(self) -> bool:
        """Tell whether Ray records the actor as dead."""
        row = cluster_state.actor_table(self.actor)
        return bool(row["State"] == "DEAD")


def has_ended(other: Other) -> bool:
    """Tell whether the job of another driver is over; actors' IDs end with their job's ID."""
    return any(job["IsDead"] for job in cluster_state.job_table() if other.actor.endswith(job["JobID"]))


Hold = Callable[[float], tuple[Any, str]]


@pytest.fixture
def hold(ray_cluster: None, tmp_path: Path) -> Iterator[Hold]:
    """Provide a function that starts an actor of the run holding some of the four CPUs; it returns actor and group."""
    RunDirectory(tmp_path).make_folders()
    holders: list[Any] = []

    def make(cpus: float) -> tuple[Any, str]:
        holders.append(holder(num_cpus=0))
        return holders[-1], ray.get(holders[-1].hold.remote(cpus, str(tmp_path)))[1]

    yield make
    for each in holders:
        ray.kill(each)
    until(lambda: all(group.orphaned for group in groups(tmp_path)))
    remove_orphaned(tmp_path)


@pytest.fixture
def other(ray_cluster: None) -> Iterator[Callable[..., Other]]:
    """Provide a function that starts other drivers; they and their groups are removed at the end."""
    others: list[Other] = []

    def make(**options: Any) -> Other:
        others.append(Other(**options))
        return others[-1]

    yield make
    for each in others:
        each.end()
        if not each.is_dead():
            os.kill(each.pid, signal.SIGKILL)
    until(lambda: all(each.is_dead() for each in others))
    until(lambda: not any(is_held(each.group) for each in others))


def has_group_or_none_to_come(run_dir: Path, pid: int) -> bool:
    """Tell whether a run has a group, or the process that was to create one has ended."""
    ended = not psutil.pid_exists(pid)  # first: it may have created one just before its end
    return bool(groups(run_dir)) or ended


def is_held(group: str) -> bool:
    """Tell whether a placement group's resources are reserved."""
    return bool(placement_group_table().get(group, {}).get("state") == "CREATED")


def test_placement_groups_of_dead_actors_are_removed(hold: Hold, tmp_path: Path) -> None:
    (doomed, theirs), (_, mine) = hold(2.0), hold(2.0)
    until(lambda: all(group.placed for group in groups(tmp_path)))
    assert {group.id.hex() for group in groups(tmp_path)} == {theirs, mine}
    remove_orphaned(tmp_path)
    assert len(groups(tmp_path)) == 2
    ray.kill(doomed)
    until(lambda: any(group.orphaned for group in groups(tmp_path)))
    assert ClusterCapacity(tmp_path, lambda: 2, lambda: 2, False, print).count() == 2
    assert len(groups(tmp_path)) == 2  # counting removes nothing
    remove_orphaned(tmp_path)
    (left,) = groups(tmp_path)
    assert left.id.hex() == mine and left.placed and not left.orphaned


def test_resources_that_others_hold_are_not_counted(
    hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "WAITING_S", 0.5)
    outsider = holder(num_cpus=1)
    ray.get(outsider.__ray_ready__.remote())
    said: list[str] = []
    counted = ClusterCapacity(tmp_path, lambda: 2, lambda: 2, False, said.append)
    hold(2.0)
    until(lambda: all(group.placed for group in groups(tmp_path)))
    hold(2.0)
    assert counted.count() == 2
    time.sleep(0.6)
    assert counted.count() == counted.count() == 1
    assert said == ["waiting for resources that are in use: 1 of 2 trials run"]
    ray.kill(outsider)
    until(lambda: all(group.placed for group in groups(tmp_path)))
    assert counted.count() == 2


@pytest.mark.parametrize("every", [1, 6])
def test_a_trial_that_waits_for_long_is_told_once(every: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray Train replaces its group each minute, between which there is none for two seconds; drivers may be slow."""
    said: list[str] = []
    counted, seconds = ClusterCapacity(tmp_path, lambda: 2, lambda: 2, False, said.append), 0.0

    def made(run: object) -> list[Group]:
        """List a placed group, and one that waits until the tenth minute."""
        groups = [Group(PlacementGroupID.from_random(), "a", True, False)]
        if seconds % 62 < 60:
            groups.append(Group(PlacementGroupID.from_random(), "b", seconds > 600, False))
        return groups

    monkeypatch.setattr(capacity, "read_groups", made)
    monkeypatch.setattr(capacity, "time", SimpleNamespace(monotonic=lambda: seconds))
    found = []
    for step in range(0, 700, every):
        seconds = float(step)
        found.append(counted.count())
    waits = range(11, 601)
    assert found == [1 if step in waits else 2 for step in range(0, 700, every)] and len(said) == 1


def test_a_group_that_was_created_after_the_end_of_its_job_is_removed_by_the_next_driver(
    other: Callable[..., Other], tmp_path: Path
) -> None:
    """Ray keeps such a group for ever: it recorded the maker as dead before the group existed."""

    def dying(name: str) -> Path:
        """Make a run whose driver was killed, with a group that its actor created afterwards."""
        run_dir, go = tmp_path / name, tmp_path / f"go_{name}"
        run_dir.mkdir()
        RunDirectory(run_dir).make_folders()
        # The actor's process is stopped while its job ends and continued afterwards, so that it creates its group when
        # Ray has already recorded it as dead; or Ray ends the process before that, and it is done again.
        while not groups(run_dir):
            go.unlink(missing_ok=True)
            before, driver = set(placement_group_table()), other(run_dir=run_dir, signal=go)
            os.kill(driver.pid, signal.SIGSTOP)
            driver.end()
            until(driver.is_dead)
            go.touch()
            with suppress(ProcessLookupError):
                os.kill(driver.pid, signal.SIGCONT)
            until(partial(has_group_or_none_to_come, run_dir, driver.pid))
        (driver.group,) = set(placement_group_table()) - before
        until(lambda: is_held(driver.group))
        return run_dir

    mine, theirs = dying("mine"), dying("theirs")
    assert [group.orphaned for group in groups(mine) + groups(theirs)] == [True, True]
    remove_orphaned(mine)
    assert not groups(mine) and groups(theirs)
    remove_orphaned(theirs)


def test_an_actor_that_outlives_its_job_keeps_its_group(other: Callable[..., Other], tmp_path: Path) -> None:
    RunDirectory(tmp_path).make_folders()
    survivor = other(detached="survivor", run_dir=tmp_path)
    survivor.end()
    until(lambda: has_ended(survivor))
    remove_orphaned(tmp_path)
    (group,) = groups(tmp_path)
    assert group.id.hex() == survivor.group and group.placed and not group.orphaned and is_held(survivor.group)


@pytest.mark.parametrize("ended", [True, False])
def test_groups_of_others_are_never_removed(
    other: Callable[..., Other], hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Cover a detached actor whose job has ended, alive and then dead, and an actor of a job that still runs."""
    removed: list[str] = []
    monkeypatch.setattr(capacity, "remove_placement_group", lambda group: removed.append(group.id.hex()))
    doomed, mine = hold(1.0)
    theirs = other(detached="stranger" if ended else "")
    until(lambda: is_held(theirs.group))
    ray.kill(doomed)
    until(lambda: all(group.orphaned for group in groups(tmp_path)))
    if ended:
        theirs.end()
        until(lambda: all(job["IsDead"] for job in cluster_state.job_table() if job["JobID"] == theirs.actor[-8:]))
    remove_orphaned(tmp_path)
    assert is_held(theirs.group) and not theirs.is_dead()
    os.kill(theirs.pid, signal.SIGKILL)
    until(theirs.is_dead)
    assert ended or is_held(theirs.group)  # Ray itself removes the group of a detached actor that died
    remove_orphaned(tmp_path)
    assert removed == [mine, mine]


def test_a_run_without_records_removes_nothing(hold: Hold, tmp_path: Path) -> None:
    doomed, mine = hold(1.0)
    ray.kill(doomed)
    until(lambda: all(group.orphaned for group in groups(tmp_path)))
    RunDirectory(tmp_path).actors.rename(tmp_path / "away")  # like storage that is away
    assert groups(tmp_path) == []
    remove_orphaned(tmp_path)
    assert is_held(mine)
    (tmp_path / "away").rename(RunDirectory(tmp_path).actors)
    remove_orphaned(tmp_path)
    assert groups(tmp_path) == [] and not is_held(mine)

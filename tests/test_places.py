"""Places of a cluster: those of dead actors are given back, and those that others hold are not counted on."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from adios_ray.search import places
from adios_ray.search.places import Places, give_back_deserted, groups

pytestmark = pytest.mark.ray


def holder(**options: Any) -> Any:
    """An actor that makes placement groups, as Ray Train's controller does for its workers."""

    class Holder:  # of no module that workers would have to import
        def hold(self, cpus: float) -> str:
            from ray.util import placement_group

            self._group = placement_group([{"CPU": cpus}])
            return str(self._group.id.hex())

    return ray.remote(Holder).options(**options).remote()


@pytest.fixture
def hold(ray_cluster: None) -> Iterator[Callable[[float], tuple[Any, str]]]:
    """Makes an actor that holds CPUs, of four; returns it and its placement group."""
    holders: list[Any] = []

    def make(cpus: float) -> tuple[Any, str]:
        holders.append(holder(num_cpus=0))
        return holders[-1], ray.get(holders[-1].hold.remote(cpus))

    yield make
    for each in holders:
        ray.kill(each)
    until(lambda: all(group.deserted for group in groups()))
    give_back_deserted()


def until(done: Callable[[], bool]) -> None:
    """Wait until something that Ray does on its own is done."""
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_places_of_dead_actors_are_given_back(hold: Callable[[float], tuple[Any, str]]) -> None:
    (doomed, theirs), (_, mine) = hold(2.0), hold(2.0)
    until(lambda: all(group.placed for group in groups()))
    assert {group.id.hex() for group in groups()} == {theirs, mine}
    assert len(give_back_deserted()) == len(groups()) == 2
    ray.kill(doomed)
    until(lambda: any(group.deserted for group in groups()))
    (left,) = give_back_deserted()
    assert groups() == [left]
    assert left.id.hex() == mine and left.placed and not left.deserted


def test_places_that_others_hold_are_not_counted_on(
    hold: Callable[[float], tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "WAITING_S", 0.5)
    outsider = holder(num_cpus=1)
    ray.get(outsider.__ray_ready__.remote())
    counted = Places(lambda: 2)
    hold(2.0)
    until(lambda: all(group.placed for group in groups()))
    hold(2.0)
    assert counted.count() == 2
    time.sleep(0.6)
    assert counted.count() == 1
    ray.kill(outsider)
    until(lambda: all(group.placed for group in groups()))
    assert counted.count() == 2

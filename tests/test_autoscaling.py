"""Requests to an autoscaler, and what trials wait for; `ray` itself is not started."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.exceptions import ActorDiedError

from adios_ray.backend import autoscaling
from adios_ray.backend.autoscaling import EXPIRY_S, NodeRequest, autoscaler_runs
from adios_ray.backend.capacity import waiting_line

TRIAL = [{"CPU": 1.0, "GPU": 1.0}]


class Coordinator:
    """Ray's own coordinator in this process, in place of its actor.

    Attributes:
        sent: Requests that it sent to the autoscaler.
        now: Its time in seconds.
    """

    def __init__(self) -> None:
        """Start without requests."""
        self.sent: list[list[dict[str, float]]] = []
        self.selectors: list[Any] = []
        self.now = 0.0
        self.actor = _AutoscalingCoordinatorActor(lambda: self.now, self._send, list)
        self.request_resources = SimpleNamespace(remote=self._request)
        self.cancel_request = SimpleNamespace(remote=self.actor.cancel_request)

    def _request(self, *arguments: Any, **options: Any) -> str:
        self.actor.request_resources(*arguments, **options)
        return "reference"

    def _send(self, bundles: list[dict[str, float]], label_selectors: Any = None) -> None:
        self.sent.append(list(bundles))
        self.selectors.append(label_selectors)


@pytest.mark.parametrize(
    ("reports", "runs"), [([None, None, True], True), ([None, False], False), ([None] * 99, False)]
)
def test_a_cluster_that_has_just_started_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, reports: list[bool | None], runs: bool
) -> None:
    answers, clock = iter(reports), itertools.count()
    monkeypatch.setattr(autoscaling, "reported_autoscaler", lambda: next(answers))
    monkeypatch.setattr(autoscaling, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None))
    assert autoscaler_runs() == runs


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # it starts no thread of its own then
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(autoscaling, "unmet_bundles", list)
    made = Coordinator()
    monkeypatch.setattr(autoscaling, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(autoscaling, "find_or_start_coordinator", lambda: made)
    return made


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_request_is_added_to_those_of_others_and_withdrawn_however_the_run_ends(
    coordinator: Coordinator, error: type[BaseException] | None
) -> None:
    coordinator.actor.request_resources("train-1", TRIAL, 60)  # as Ray Train does for another job
    try:
        with NodeRequest("/runs/first", TRIAL, print) as first, NodeRequest("/runs/second", TRIAL, print) as second:
            first.update(3)
            assert coordinator.sent[-1] == TRIAL * 4
            second.update(2)
            first.update(0)
            assert coordinator.sent[-1] == TRIAL * 3
            if error:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    assert coordinator.sent[-1] == TRIAL


def test_a_request_expires_unless_it_is_renewed(coordinator: Coordinator) -> None:
    with NodeRequest("/runs/first", TRIAL, print) as request:
        request.update(2)
        coordinator.now = 0.9 * EXPIRY_S
        request.update(2)
        coordinator.now = 1.8 * EXPIRY_S
        coordinator.actor._tick()
        assert coordinator.sent[-1] == TRIAL * 2
        coordinator.now = 2 * EXPIRY_S
        coordinator.actor._tick()
        assert coordinator.sent[-1] == []


class SecondVersion:
    """The second version of the autoscaler, by Ray's own scheduler, for nodes of four GPUs whose number is limited.

    Attributes:
        nodes: Nodes that run.
        unmet: What it says it can never fulfill.
    """

    def __init__(self, most: int) -> None:
        """Start with no node, and up to ``most``."""
        self.nodes, self.unmet, self._most = 0, [], most  # type: ignore[var-annotated]

    def look(self, request: list[dict[str, float]]) -> None:
        """Act on a request."""
        wanted = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(bundle) for bundle in request])
        kind = NodeTypeConfig(
            name="gpu", min_worker_nodes=0, max_worker_nodes=self._most, resources={"CPU": 8, "GPU": 4}
        )
        reply = ResourceDemandScheduler(None).schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs={"gpu": kind},
                max_num_nodes=self._most,
                cluster_resource_constraints=[ClusterResourceConstraint(resource_requests=wanted)] if wanted else [],
            )
        )
        self.nodes = max(self.nodes, sum(launch.count for launch in reply.to_launch))
        self.unmet = request if reply.infeasible_cluster_resource_constraints else []


@pytest.mark.parametrize(("trials", "others", "most"), [(8, 0, 2), (9, 0, 2), (16, 0, 2), (64, 4, 4), (3, 8, 2)])
def test_all_nodes_are_started_where_the_population_needs_more_than_there_can_be(
    trials: int, others: int, most: int, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = SecondVersion(most)
    monkeypatch.setattr(autoscaling, "unmet_bundles", lambda: cluster.unmet)
    if others:
        coordinator.actor.request_resources("others", TRIAL * others, 10_000)
    fits, asked = min(4 * most - others, trials), []
    with NodeRequest("/runs/first", TRIAL, print) as request:
        for coordinator.now in range(240):
            request.update(trials, fitting=max(min(4 * cluster.nodes - others, trials), 0))
            if coordinator.now % 5 == 0:
                cluster.look(coordinator.sent[-1])
            asked.append(len(coordinator.sent[-1]) - others)
        assert cluster.nodes == -(-(fits + others) // 4)
        assert set(asked[150:]) == {fits} and not cluster.unmet
        for coordinator.now in range(240, 700):  # others go, and their nodes are free
            if coordinator.now == 240:
                coordinator.actor.cancel_request("others")
            request.update(trials, fitting=fits)
            if coordinator.now % 5 == 0:
                cluster.look(coordinator.sent[-1])
        assert len(coordinator.sent[-1]) == min(4 * most, trials)


def test_what_no_node_can_ever_hold_is_said_once(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, said = SecondVersion(2), list[str]()
    monkeypatch.setattr(autoscaling, "unmet_bundles", lambda: cluster.unmet)
    with NodeRequest("/runs/first", [{"CPU": 1.0, "GPU": 8.0}], said.append) as request:
        for coordinator.now in range(700):
            request.update(8)
            if coordinator.now % 5 == 0:
                cluster.look(coordinator.sent[-1])
    (line,) = said
    assert "can start no nodes for a trial, whose 1 workers need {'CPU': 1.0, 'GPU': 8.0} each" in line


def test_nodes_that_cannot_train_are_not_counted(coordinator: Coordinator) -> None:
    with NodeRequest("/runs/first", TRIAL, print) as request:
        request.update(2)
        assert coordinator.selectors[-1] is None
        request.update(2, refused=["bad", "worse"])
        assert coordinator.selectors[-1] == [{"ray.io/node-id": "!in(bad,worse)"}] * 2


def test_a_coordinator_that_was_lost_is_found_again(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(reference: object) -> None:
        raise ActorDiedError

    with NodeRequest("/runs/first", TRIAL, print) as request:
        request.update(2)
        other = Coordinator()
        monkeypatch.setattr(autoscaling, "find_or_start_coordinator", lambda: other)
        request.update(3)
        assert not other.sent
        monkeypatch.setattr(ray, "get", lost)
        request.update(3)
        assert other.sent[-1] == TRIAL * 3


@pytest.mark.parametrize(
    ("placed", "fitting", "in_vain", "grows", "line"),
    [
        (0, 0, True, True, "waiting for nodes: 0 of 8 trials fit"),
        (2, 2, True, True, "waiting for nodes: 2 of 8 trials fit"),
        (1, 2, False, True, "waiting for nodes: 2 of 8 trials fit"),
        (0, 0, False, False, "waiting for nodes: 0 of 8 trials fit"),
        (2, 2, False, False, "the nodes hold 2 trials at once; the others wait"),
        (0, 1, False, False, "the nodes hold 1 trial at once; the others wait"),
        (1, 8, True, True, "waiting for resources that are in use: 1 of 8 trials run"),
        (1, 4, True, False, "waiting for resources that are in use: 1 of 4 trials run"),
        (8, 8, False, True, ""),
        (0, 8, False, False, ""),
    ],
)
def test_the_line_says_what_trials_wait_for(placed: int, fitting: int, in_vain: bool, grows: bool, line: str) -> None:
    assert waiting_line(placed, fitting, 8, in_vain, grows) == line

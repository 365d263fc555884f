"""Requests to an autoscaler, and what trials wait for; `ray` itself is not started."""

import itertools
from types import SimpleNamespace

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor

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
        self.now = 0.0
        self.actor = _AutoscalingCoordinatorActor(lambda: self.now, self._send, list)
        self.request_resources = SimpleNamespace(remote=self.actor.request_resources)
        self.cancel_request = SimpleNamespace(remote=self.actor.cancel_request)

    def _send(self, bundles: list[dict[str, float]]) -> None:
        self.sent.append(list(bundles))


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
    monkeypatch.setattr(ray, "wait", lambda references, timeout: None)
    made = Coordinator()
    monkeypatch.setattr(autoscaling, "find_or_start_coordinator", lambda: made)
    return made


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_request_is_added_to_those_of_others_and_withdrawn_however_the_run_ends(
    coordinator: Coordinator, error: type[BaseException] | None
) -> None:
    coordinator.actor.request_resources("train-1", TRIAL, 60)  # as Ray Train does for somebody else
    try:
        with NodeRequest("/runs/first", TRIAL) as first, NodeRequest("/runs/second", TRIAL) as second:
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
    with NodeRequest("/runs/first", TRIAL) as request:
        request.update(2)
        coordinator.now = 0.9 * EXPIRY_S
        request.update(2)
        coordinator.now = 1.8 * EXPIRY_S
        coordinator.actor._tick()
        assert coordinator.sent[-1] == TRIAL * 2
        coordinator.now = 2 * EXPIRY_S
        coordinator.actor._tick()
        assert coordinator.sent[-1] == []


@pytest.mark.parametrize(
    ("placed", "fitting", "in_vain", "line"),
    [
        (0, 0, True, "waiting for nodes: 0 of 8 trials fit"),
        (2, 2, True, "waiting for nodes: 2 of 8 trials fit"),
        (1, 8, True, "waiting for resources that others on the cluster use: 1 of 8 trials run"),
        (1, 4, True, "waiting for resources that others on the cluster use: 1 of 4 trials run"),
        (8, 8, False, ""),
        (0, 8, False, ""),
    ],
)
def test_the_line_says_what_trials_wait_for(placed: int, fitting: int, in_vain: bool, line: str) -> None:
    assert waiting_line(placed, fitting, 8, in_vain) == line

"""Requests to an autoscaler, and what trials wait for; `ray` itself is not started."""

import pytest

from adios_ray.backend import autoscaling
from adios_ray.backend.autoscaling import requested
from adios_ray.backend.capacity import waiting_line


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_request_is_withdrawn_however_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    requests: list[list[dict[str, float]]] = []
    monkeypatch.setattr(autoscaling, "request_resources", lambda bundles: requests.append(bundles))
    try:
        with requested([{"CPU": 1}, {"CPU": 1}]):
            assert requests == [[{"CPU": 1}, {"CPU": 1}]]
            if error:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    assert requests[1:] == [[]]


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

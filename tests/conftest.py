"""Fixtures shared by the tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster with four logical CPUs for the whole session."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, address="local")
    yield
    ray.shutdown()

"""Requests to a cluster's autoscaler, which starts and stops nodes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ray.autoscaler.sdk import request_resources


@contextmanager
def requested(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Ask the autoscaler for nodes that hold all bundles at once, until the end of the block, however it ends.

    A cluster has one such request at a time, of whichever run asked last. Placement groups that wait count besides.
    """
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        yield
    finally:
        request_resources(bundles=[])

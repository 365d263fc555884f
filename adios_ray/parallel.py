"""The collective operations of a training step; each is a no-op in a single process.

Every worker of a trial must call them in the same order.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


_alone = False
"""Whether this process acts as the only worker; not by thread, as gradients are computed in threads of their own."""


@contextmanager
def alone() -> Iterator[None]:
    """Act as the only worker inside the block: for steps that may fail here and succeed on another worker.

    An operation that the others do not take part in would wait for them forever.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    """Count the workers of the trial; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() and not _alone else 1


def has_others() -> bool:
    """Return whether the trial has several workers, also where this one acts as if it were alone."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Return this worker's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() and not _alone else 0


class _Gather(torch.autograd.Function):
    """Gathers rows, and sums their gradients; torch's own all_gather has no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        gathered = [torch.empty_like(values) for _ in range(world_size())]
        distributed.all_gather(gathered, values.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy: autograd may have given the same tensor to the other summand of a sum.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.chunk(world_size())[rank()]


def gather_with_gradient(values: Tensor) -> Tensor:
    """Gather the rows of all workers in the order of their ranks, [B, ...] to [workers * B, ...].

    In the backward pass, each worker's rows receive the sum of all workers' gradients with respect to them.
    """
    if world_size() == 1:
        return values
    result: Tensor = _Gather.apply(values)
    return result


def shuffled(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Apply a function to the rows of all workers in a random order, each worker to its share; without gradient.

    Args:
        function: Maps rows [B, ...] to as many results.
        rows: This worker's rows, [B, ...]; every worker has as many.

    Returns:
        The results of this worker's rows, in their order.
    """
    order = torch.randperm(len(rows) * world_size(), device=rows.device)
    broadcast_from_first([order])
    results = gather_with_gradient(function(gather_with_gradient(rows)[order.chunk(world_size())[rank()]]))
    return results[order.argsort().chunk(world_size())[rank()]]


def begin_averaging(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Begin to average tensors over the workers, with one all-reduce, while the device computes other things.

    Returns:
        A function that waits for the means and puts them in place of the tensors.
    """
    if world_size() == 1:
        return lambda: None
    # By hand and not by DistributedDataParallel, which reduces during backward(): a step has several backward passes,
    # some of them with a frozen encoder.
    values = list(tensors)
    flat = _joined(values)
    exchange = distributed.all_reduce(flat, async_op=True)

    def finish() -> None:
        exchange.wait()
        flat.div_(world_size())
        _take_apart(flat, values)

    return finish


def average(values: Tensor) -> Tensor:
    """Average a tensor over the workers, in place."""
    if world_size() > 1:
        distributed.all_reduce(values)
        values /= world_size()
    return values


def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy the first worker's values to every worker, in place, with one broadcast for each type of numbers."""
    if world_size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for values in by_type.values():
        flat = _joined(values)
        distributed.broadcast(flat, src=0)
        _take_apart(flat, values)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def _take_apart(flat: Tensor, tensors: list[Tensor]) -> None:
    """Copy what ``_joined`` has joined back into the tensors."""
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def from_first(value: Value) -> Value:
    """Return the first worker's value, a plain Python object, on every worker.

    For decisions that follow from floating point sums (which mask is split, whether features have collapsed): kernels
    that add in changing order round differently on each worker, and one different decision would separate the workers
    for good.
    """
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather_values(value: Value) -> list[Value]:
    """Collect a plain Python object of every worker, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values

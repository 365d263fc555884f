"""Whose weights were whose: tracing a trial's weights back through the exploits.

A trial that exploits at epoch e reports epoch e with its own weights and epoch e + 1 with the donor's, trained on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adios_ray.tracking.records import Exploit, Row


@dataclass(frozen=True)
class Ancestor:
    """A stretch of training in one trial: the epochs ``after`` < epoch <= ``until``."""

    trial: str
    after: int
    """Epoch at which the weights were copied into the trial; 0 where they were drawn there."""
    until: int


def ancestry(exploits: Sequence[Exploit], trial: str, epoch: int) -> list[Ancestor]:
    """The trials in which the weights that ``trial`` had at ``epoch`` were trained, oldest first."""
    path: list[Ancestor] = []
    for exploit in reversed(exploits):  # clocks of drivers may differ; the order of decisions does not
        if exploit.trial != trial:
            continue
        if exploit.epoch < epoch:
            path.append(Ancestor(trial, exploit.epoch, epoch))
            trial, epoch = exploit.donor, exploit.epoch
        elif exploit.epoch == epoch and path:  # a donor that was itself a copy, and had not trained since
            trial = exploit.donor
    return [Ancestor(trial, 0, epoch), *path[::-1]]


def holder(path: Sequence[Ancestor], epoch: int) -> str | None:
    """The trial that held the traced weights when it reported ``epoch``; None beyond the end of the path."""
    return next((ancestor.trial for ancestor in path if epoch <= ancestor.until), None)


def best_row(rows: Sequence[Row]) -> Row | None:
    """The report of highest fitness, the earliest of equals; None if there is none, or none that is a number."""
    valid = [row for row in rows if not math.isnan(row.fitness)]
    return min(valid, key=lambda row: (-row.fitness, row.epoch, row.trial), default=None)

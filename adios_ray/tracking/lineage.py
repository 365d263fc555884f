"""Whose weights were whose: tracing a trial's weights back through the exploits.

A trial that exploits at epoch e reports epoch e with its own weights and epoch e + 1 with the donor's, trained on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adios_ray.tracking.records import Exploit, Row


@dataclass(frozen=True)
class Ancestor:
    """A stretch of training in one trial: the epochs ``after`` < epoch <= ``until``."""

    trial: str
    after: int
    """Epoch at which the weights were copied into the trial; 0 where they were drawn there."""
    until: int


def copies(exploits: Sequence[Exploit], trial: str, epoch: float = math.inf) -> Iterator[Exploit]:
    """The exploits through which the weights that ``trial`` had at ``epoch`` (now, if not given) came, newest first.

    Args:
        exploits: In the order in which they were decided; clocks of drivers may differ.
        trial: Holder of the weights.
        epoch: Report at which it held them.
    """
    copied = False
    for exploit in reversed(exploits):
        # At an exploit's own epoch the trial reported its own weights; a donor gave what it had copied just before.
        if exploit.trial == trial and (exploit.epoch < epoch or (copied and exploit.epoch == epoch)):
            yield exploit
            trial, epoch, copied = exploit.donor, exploit.epoch, True


def ancestry(exploits: Sequence[Exploit], trial: str, epoch: int) -> list[Ancestor]:
    """The trials in which the weights that ``trial`` had at ``epoch`` were trained, oldest first."""
    path: list[Ancestor] = []
    for exploit in copies(exploits, trial, epoch):
        if exploit.epoch < epoch:
            path.append(Ancestor(exploit.trial, exploit.epoch, epoch))
        trial, epoch = exploit.donor, exploit.epoch
    return [Ancestor(trial, 0, epoch), *path[::-1]]


def holder(path: Sequence[Ancestor], epoch: int) -> str | None:
    """The trial that held the traced weights when it reported ``epoch``; None beyond the end of the path."""
    return next((ancestor.trial for ancestor in path if epoch <= ancestor.until), None)


def best_row(rows: Sequence[Row]) -> Row | None:
    """The report of highest fitness, the earliest of equals; None if there is none, or none that is a number."""
    valid = [row for row in rows if not math.isnan(row.fitness)]
    return min(valid, key=lambda row: (-row.fitness, row.epoch, row.trial), default=None)

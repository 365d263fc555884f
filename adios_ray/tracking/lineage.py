"""Ancestry of weights: traces a trial's weights back through the exploits.

A trial that exploits at epoch e reports epoch e with its own weights and epoch e + 1 with the donor's, trained further.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adios_ray.tracking.decisions import Exploit
from adios_ray.tracking.results import Row


@dataclass(frozen=True)
class Ancestor:
    """A stretch of training in one trial: the epochs ``after`` < epoch <= ``until``."""

    trial: str
    after: int
    """Epoch at which the weights were copied into the trial; 0 where they were drawn there."""
    until: int


def copies(exploits: Sequence[Exploit], trial: str, epoch: float = math.inf) -> Iterator[Exploit]:
    """Iterate over the exploits behind the weights of ``trial`` at ``epoch`` (by default now), newest first.

    Args:
        exploits: In the order of their decisions; times would mislead, since the clocks of drivers differ.
        trial: Trial that held the weights.
        epoch: Epoch of its report.
    """
    copied = False
    for exploit in reversed(exploits):
        # A trial's report at the epoch of its exploit is of its own weights. A donor may have copied at that very epoch
        # before it was copied itself (asynchronous decisions), and then gave those weights.
        if exploit.trial == trial and (exploit.epoch < epoch or (copied and exploit.epoch == epoch)):
            yield exploit
            trial, epoch, copied = exploit.donor, exploit.epoch, True


def ancestry(exploits: Sequence[Exploit], trial: str, epoch: int) -> list[Ancestor]:
    """List the trials in which the weights of ``trial`` at ``epoch`` were trained, oldest first."""
    path: list[Ancestor] = []
    for exploit in copies(exploits, trial, epoch):
        if exploit.epoch < epoch:  # else a donor's copy was copied before it trained: no epoch in between
            path.append(Ancestor(exploit.trial, exploit.epoch, epoch))
        trial, epoch = exploit.donor, exploit.epoch
    return [Ancestor(trial, 0, epoch), *path[::-1]]


def holder(path: Sequence[Ancestor], epoch: int) -> str | None:
    """Return the trial that reported ``epoch`` with the traced weights; None beyond the end of the path."""
    return next((ancestor.trial for ancestor in path if epoch <= ancestor.until), None)


def last_rows(rows: Sequence[Row], exploits: Sequence[Exploit], trial: str, epoch: int, most: int) -> list[Row]:
    """Return the newest reports, at most ``most``, of the weights that ``trial`` holds after ``epoch``, oldest first.

    Reports of donors count where weights were copied, and not the trial's own before it copied them.

    Args:
        rows: Reports of all trials, those of a trial by epoch.
        exploits: In the order of their decisions.
        trial: Trial that holds the weights.
        epoch: Epoch of its last report, or of its donor's at the last copy.
        most: How many reports, >= 1.
    """
    # One further: at ``epoch`` itself, the trial's report is still of the weights before a copy.
    path = ancestry(exploits, trial, epoch + 1)
    held = [
        row
        for part in path
        for row in rows
        if row.trial == part.trial and part.after < row.epoch <= min(part.until, epoch)
    ]
    return held[-most:]


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the report of highest fitness, the earliest among equals; None if no report has a number."""
    valid = [row for row in rows if not math.isnan(row.fitness)]
    return min(valid, key=lambda row: (-row.fitness, row.epoch, row.trial), default=None)

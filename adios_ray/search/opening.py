"""The opening of an evolving population: many trials begin, and successive halving chooses those that make it up.

At each rung all trials have trained equally long, and the better half continues (Jamieson & Talwalkar 2016). Population
based training begins with the checkpoints of those that remain after the last one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from adios_ray.search.spaces import Opening
from adios_ray.search.state import Member


class Rung(NamedTuple):
    """One halving.

    Attributes:
        epoch: Epoch at which it is decided.
        survivors: Trials that continue.
    """

    epoch: int
    survivors: int


def rungs(opening: Opening | None, population: int) -> tuple[Rung, ...]:
    """Plan an opening's halvings down to ``population`` trials.

    The last is at the opening's last epoch, each other one at half of the next one's. Those that fall into one epoch
    are decided at once.
    """
    if opening is None:
        return ()
    sizes = [opening.trials]
    while sizes[-1] > population:
        sizes.append(max(population, -(-sizes[-1] // 2)))
    planned = {-(-opening.epochs // 2 ** (len(sizes) - 1 - i)): size for i, size in enumerate(sizes) if i > 0}
    return tuple(Rung(epoch, size) for epoch, size in planned.items())


def stays(member: Member) -> bool:
    """Return whether a trial stays whatever it scores: controls, and the first, which has the configured values."""
    return member.control or member.number == 0


def leaving(members: Mapping[str, Member], survivors: int) -> dict[str, int]:
    """Choose the trials that leave the population at a rung.

    Args:
        members: The trials that still take part, by name.
        survivors: How many continue.

    Returns:
        The rank of each trial that leaves, from 1, by name.
    """

    def order(name: str) -> tuple[bool, float, int]:
        member = members[name]
        # Ties in favor of the first, as in later decisions: the order of reports must not decide.
        return member.score is None, -(member.score or 0.0), member.number

    ranked = sorted(members, key=order)
    safe = [name for name in ranked if stays(members[name])]
    others = [name for name in ranked if name not in safe]
    gone = others[max(0, survivors - len(safe)) :]
    return {name: ranked.index(name) + 1 for name in gone}

"""The population by trial name: what is remembered of each member, written down before it takes effect."""

import math
import time
from collections.abc import Sequence
from random import Random
from typing import Any

from adios_ray.backend.channel import ChannelCalls
from adios_ray.backend.line import Reply
from adios_ray.config import TrialConfig, replaced
from adios_ray.retry import retry
from adios_ray.search.state import Member, Observation, PopulationState
from adios_ray.tracking.run import Run

WORST_SCORE = -1e9
"""Of trials that diverged, collapsed or failed: below every fitness."""


class Population:
    """A population's memory, records and channel.

    Attributes:
        config: What all trials have in common.
        state: The population as it stands.
        run: Where reports and exploits are recorded.
        channel: How the trials are reached.
    """

    def __init__(self, config: TrialConfig, state: PopulationState, run: Run, channel: ChannelCalls) -> None:
        """Take up a population, fresh or as an earlier driver left it."""
        self.config, self.state, self.run, self.channel = config, state, run, channel
        self._registered: set[str] = set()
        self._began, self._seconds_before = time.monotonic(), state.seconds

    def __getstate__(self) -> dict[str, Any]:
        """What Tune stores with its own files: nothing that is open; ``PopulationState`` is the real memory."""
        return {key: value for key, value in self.__dict__.items() if key not in ("run", "channel")}

    def __getitem__(self, name: str) -> Member:
        """The member of that name."""
        return self.state.members[name]

    def register(self, name: str, held: bool = False) -> None:
        """Tell the channel where a trial goes on; one that waits for others stays held."""
        member = self[name]
        self._registered.add(name)
        self.channel.register(name, self._own_config(member), member.checkpoint, member.epoch, held)

    def _own_config(self, member: Member) -> TrialConfig:
        """The configuration with which a member begins."""
        return replaced(self.config, {**member.values, "seed": self.config.seed + member.number})

    def observe(self, name: str, reply: Reply) -> bool:
        """Write a report down and update its member; ``commit`` makes it last.

        Returns:
            Whether the report is news; one that repeats an epoch, after a step back to an older checkpoint, is not.
        """
        for note in reply.notes:
            self.run.note(f"{name}: {note}")
        member, report = self[name], reply.report
        if report is None or report.epoch <= member.epoch:
            return False
        epoch = report.epoch
        self.run.report(name, report, member.values, self._own_config(member))
        if report.divergence:
            self.run.note(f"{name} diverged at {report.divergence}; it waits for a donor")
        score = self._score(member, report.fitness)
        self.state.observations[f"{name}/{epoch}"] = Observation(
            trial=name, values=member.values, epochs=(member.epoch, epoch), scores=(member.base_score, score)
        )
        member.score = member.base_score = score
        member.epoch = epoch
        if reply.checkpoint is not None:
            member.checkpoint = reply.checkpoint
        return True

    def _score(self, member: Member, fitness: float) -> float:
        """The fitness, smoothed over reports where that is configured; never nan."""
        if not math.isfinite(fitness):
            return WORST_SCORE
        weight = self.config.evaluation.smoothing
        before = member.base_score
        return fitness if before in (None, WORST_SCORE) else weight * float(before or 0) + (1 - weight) * fitness

    def copy(self, name: str, donor: str, values: dict[str, Any]) -> None:
        """Make a member a copy of its donor with other values, in memory and in the lineage."""
        old, source = self[name], self[donor]
        new = source.model_copy(
            update={"values": values, "number": old.number, "score": old.score, "base_score": source.score}
        )
        scores = {who: self[who].score for who in (name, donor)}
        self.run.exploit(
            epoch=source.epoch,
            trial=name,
            donor=donor,
            old=old.values,
            new=values,
            scores={who: score for who, score in scores.items() if score is not None and score > WORST_SCORE},
        )
        self.state.exploits += 1
        self.state.members[name] = new

    def push_checkpoint(self, name: str) -> None:
        """Have a trial's workers load what its member is a copy of; one that has not begun here will by itself."""
        member = self[name]
        if name not in self._registered:
            return
        assert member.checkpoint is not None
        self.channel.load(name, member.checkpoint, member.epoch, replaced(self.config, member.values))

    def hold(self, names: Sequence[str], held: bool) -> None:
        """Let trials wait for the others, or let them go on."""
        self.channel.hold([name for name in names if name in self._registered], held)

    def commit(self, *names: str) -> None:
        """Write down how these members stand, in one step, and delete what nobody goes on from any more."""
        self.state.seconds = self._seconds_before + time.monotonic() - self._began
        keys = [key for name in names if (key := f"{name}/{self[name].epoch}") in self.state.observations]
        retry(lambda: self.state.journal(self.run.directory, names, keys), self.run.note)
        self.state.remove_unused_checkpoints(self.run.directory, names)

    def random(self, name: str) -> Random:
        """Random numbers for a decision about a member, the same in a driver that decides again."""
        return Random(f"{self.config.seed}/{name}/{self[name].epoch}")

"""The population by trial name: each change of its state is journaled before it takes effect on the trials."""

import base64
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

from adios_ray.backend.channel import ChannelCalls
from adios_ray.backend.line import Reply
from adios_ray.checkpoints import Pointer
from adios_ray.config import TrialConfig, replaced
from adios_ray.evaluation.outcomes import Outcomes, decoded
from adios_ray.run_directory import RunDirectory
from adios_ray.search.state import Member, Observation, PopulationState, lenders
from adios_ray.tracking.comparison import Difference, Score, compared, extended, score_at
from adios_ray.tracking.outcomes import read_outcomes, write_outcomes
from adios_ray.tracking.run import Run

WORST_SCORE = -1e9
"""Score of trials that diverged, collapsed or failed: below every fitness."""
LONGEST_JOURNAL_BYTES = 2**20
"""Length of the journal of a run at a URI from which it is replaced by a snapshot."""


class Population:
    """A population's state, with the record and the channel that follow it.

    Attributes:
        config: What all trials have in common.
        state: The members and their observations.
        run: Records reports and exploits.
        channel: Reaches the trials' workers.
    """

    def __init__(self, config: TrialConfig, state: PopulationState, run: Run, channel: ChannelCalls) -> None:
        """Continue from a state, new or left by an earlier driver."""
        self.config, self.state, self.run, self.channel = config, state, run, channel
        self._registered: set[str] = set()
        self._unwritten: dict[str, list[str]] = {}
        self._configs: dict[str, tuple[dict[str, Any], TrialConfig]] = {}
        self._lenders = state.lenders()
        self._began, self._seconds_before = time.monotonic(), state.seconds

    def __getstate__(self) -> dict[str, Any]:
        """Drop open files and actors when Tune pickles its scheduler; runs resume from ``PopulationState`` instead."""
        return {key: value for key, value in self.__dict__.items() if key not in ("run", "channel")}

    def __getitem__(self, name: str) -> Member:
        """Return the member of that name."""
        return self.state.members[name]

    def register(self, name: str, held: bool = False) -> None:
        """Tell the channel from which checkpoint a trial starts, and whether it is held at a barrier."""
        member = self[name]
        self._registered.add(name)
        self.channel.register(name, self._own_config(name), member.checkpoint, member.epoch, held)

    def _own_config(self, name: str) -> TrialConfig:
        """Return the configuration that a member trains with, with its own seed."""
        member = self[name]
        # Kept as long as the values: to validate it again at each report would be a quarter of a report's time.
        values, config = self._configs.get(name, (None, self.config))
        if values != member.values:
            config = replaced(self.config, {**member.values, "seed": self.config.seed + member.number})
            self._configs[name] = member.values, config
        return config

    def observe(self, name: str, reply: Reply) -> bool:
        """Record a report and update its member; ``commit`` makes the update durable.

        Returns:
            Whether the report is new. It is not if it repeats an epoch, after workers fell back to an older checkpoint.
        """
        member, report = self[name], reply.report
        if report is None:
            return False
        if report.epoch <= member.epoch:
            self._replace_checkpoint(name, reply.checkpoint)
            return False
        epoch = report.epoch
        # If the driver dies before commit(), the next one asks again and writes a second row; readers keep the last.
        self.run.report(name, report, member.values, self._own_config(name))
        value = self._score(member, report.fitness)
        score = Score(epoch, value, report.standard_error, name)
        outcomes = None if report.outcomes is None else base64.b64decode(report.outcomes)
        if outcomes is not None:
            # Before the journal: a resumed driver finds what a decision about the journaled report needs.
            self.run.write(partial(write_outcomes, self.run.directory, name, epoch, outcomes))
        self._unwritten.setdefault(name, []).append(f"{name}/{epoch}")
        self.state.observations[f"{name}/{epoch}"] = Observation(
            trial=name,
            values=member.values,
            epochs=(member.epoch, epoch),
            scores=(member.base_score, value),
            # After an exploit, against the donor's last report: the same weights.
            standard_error=self._change(score, outcomes, member.history[-1]) if member.history else None,
        )
        member.score = member.base_score = value
        # A failure that the weights have survived: at its epoch, others would win by a number that stands for no score.
        earlier = (each for each in member.history if each.value > WORST_SCORE or value == WORST_SCORE)
        member.history = extended(tuple(earlier), score)
        member.replaced_history = None
        member.epoch = epoch
        if reply.checkpoint is not None:
            member.checkpoint = self.run.storage.here(reply.checkpoint)
            self._note_borrowing(name)
        return True

    def _replace_checkpoint(self, name: str, repeated: Pointer | None) -> None:
        """Take the checksum of a checkpoint that was damaged and is written again: on GPUs it may have other bits."""
        member = self[name]
        if repeated is None or member.checkpoint is None:
            return
        repeated = self.run.storage.here(repeated)
        # A report from before an exploit, which an actor asks for again, has another path than the donor's.
        if repeated.path == member.checkpoint.path and repeated.sha256 != member.checkpoint.sha256:
            member.checkpoint = repeated
            self.commit(name)

    def _change(self, score: Score, outcomes: bytes | None, before: Score) -> float | None:
        """Compute the standard error of the change of a trial's score since its last report."""
        if outcomes is None or self.config.evaluation.smoothing:  # not paired
            return compared(score, before, None, None).standard_error
        return compared(score, before, decoded(outcomes), self._outcomes(before)).standard_error

    def _score(self, member: Member, fitness: float) -> float:
        """Smooth the fitness over reports as configured; never nan."""
        # A number instead of nan, which would compare as neither worse nor better and make ranks depend on order.
        if not math.isfinite(fitness):
            return WORST_SCORE
        weight = self.config.evaluation.smoothing
        # The score of the weights, not of the trial: after an exploit the mean continues from the donor's.
        before = member.base_score
        return fitness if before in (None, WORST_SCORE) else weight * float(before or 0) + (1 - weight) * fitness

    def compare(self, first: str, second: str) -> Difference:
        """Compare two trials at the last epoch that both have reported, paired where outcomes are stored."""
        one, two = scores_at_common_epoch(self[first], self[second])
        return compared(one, two, self._outcomes(one), self._outcomes(two))

    def _outcomes(self, score: Score) -> Outcomes | None:
        """Read the outcomes in a report; a score between two reports has none, nor has one that is smoothed."""
        if score.trial is None or self.config.evaluation.smoothing:
            return None
        return self.run.read(partial(read_outcomes, self.run.directory, score.trial, score.epoch))

    def refuse(self, name: str, donor: str, difference: Difference, p: float) -> None:
        """Record that a member does not copy a donor, which is not better by enough."""
        self.run.refusal(
            epoch=self[name].epoch, trial=name, donor=donor, difference=difference.value, z=difference.z, p=p
        )
        self.state.lineage_lines += 1

    def drop(self, name: str, rank: int, trials: int) -> None:
        """End a member that ranks too low in the opening, in memory and in the lineage.

        Args:
            name: The member.
            rank: Its rank, from 1.
            trials: Among how many.
        """
        member = self[name]
        scored = member.score is not None and member.score > WORST_SCORE
        self.run.drop(
            epoch=member.epoch,
            trial=name,
            rank=rank,
            trials=trials,
            score=member.score if scored else None,
            standard_error=member.reported[-1].standard_error if scored else None,
        )
        self.state.lineage_lines += 1
        member.finished = True

    def copy(
        self, name: str, donor: str, values: dict[str, Any], z: float | None = None, p: float | None = None
    ) -> None:
        """Make a member a copy of its donor with other values, in memory and in the lineage.

        Args:
            name: The member.
            donor: The donor; the member itself if it keeps its weights and takes other values.
            values: Searched values by path.
            z: Of the test whether the donor is better; None if there was none.
            p: Of the same test.
        """
        old, source = self[name], self[donor]
        # ``score`` stays the trial's own until it reports under the copied weights; until then others rank it by that.
        new = source.model_copy(
            update={
                "values": values,
                "number": old.number,
                "score": old.score,
                "decided_epoch": source.epoch,
                "replaced_history": old.reported,
                "control": False,
            }
        )
        scores = {member: self[member].score for member in (name, donor)}
        # The lineage is written before the journal, whose count of lines then says which of them took effect; a
        # resumed driver drops the rest.
        self.run.exploit(
            epoch=source.epoch,
            trial=name,
            donor=donor,
            old=old.values,
            new=values,
            scores={member: score for member, score in scores.items() if score is not None and score > WORST_SCORE},
            z=z,
            p=p,
        )
        self.state.lineage_lines += 1
        self.state.members[name] = new
        self._note_borrowing(name)

    def _note_borrowing(self, name: str) -> None:
        """Keep up with whose checkpoints a member uses."""
        if others := lenders(name, self[name].checkpoint):
            self._lenders[name] = others
        else:
            self._lenders.pop(name, None)

    def push_checkpoint(self, name: str) -> None:
        """Send the copied checkpoint to the trial's workers.

        A trial that this driver has not started yet loads it at its start.
        """
        member = self[name]
        if name not in self._registered:
            return
        assert member.checkpoint is not None
        self.channel.load(name, member.checkpoint, member.epoch, self._own_config(name))

    def hold(self, names: Sequence[str], held: bool) -> None:
        """Hold trials at a barrier, or release them; trials that this driver has not started are skipped."""
        self.channel.hold([name for name in names if name in self._registered], held)
        self.run.hold(names, held)

    def preempt(self, names: Sequence[str]) -> None:
        """End the trials' requests without a report; trials that this driver has not started are skipped."""
        for name in names:
            if name in self._registered:
                self.channel.preempt(name)

    def commit(self, *names: str) -> None:
        """Journal these members in one atomic step, then delete the checkpoints that no member uses any more."""
        self.state.seconds = self._seconds_before + time.monotonic() - self._began
        # Not by the members' epochs: a member that has become a copy is at its donor's, which may be another one.
        keys = [key for name in names for key in self._unwritten.get(name, ())]
        self.run.write(lambda: self.state.journal(self.run.directory, names, keys))
        for name in names:
            self._unwritten.pop(name, None)
        if self.run.storage.uri is not None:
            self._copy_to_uri()
        # Only now: until the journal has the new pointers, a resumed driver would look for the old checkpoints.
        borrowers = [other for other, used in self._lenders.items() if not used.isdisjoint(names)]
        self.state.remove_unused_checkpoints(self.run.storage, names, borrowers)
        with suppress(OSError):  # what is left is removed with a later report
            self.state.remove_old_outcomes(self.run.directory, names)

    def committed(self, name: str) -> bool:
        """Return whether all reports of a member are in the journal."""
        return name not in self._unwritten

    def _copy_to_uri(self) -> None:
        """Make the journal durable at the run's URI; if it is long, replace it by a snapshot there."""
        directory, push = self.run.directory, self.run.storage.push
        self.run.write(push)
        # Nothing can be appended to at a URI: every commit copies the whole journal. The snapshot follows the journal
        # that led to it, so that a crash between the copies leaves files of which each gives the same state.
        if RunDirectory(directory).journal.stat().st_size > LONGEST_JOURNAL_BYTES:
            self.run.write(lambda: self.state.save(directory))
            self.run.write(push)

    def random(self, name: str, again: bool = False) -> Random:
        """Seed the random numbers of a decision about a member by (seed, trial, epoch), so that it can be repeated.

        Args:
            name: The member.
            again: Whether it may be the same epoch's decision once more, with other numbers: by the lineage so far.
        """
        before = f"/{self.state.lineage_lines}" if again else ""
        return Random(f"{self.config.seed}/{name}/{self[name].epoch}{before}")


def scores_at_common_epoch(first: Member, second: Member) -> tuple[Score, Score]:
    """Look up the scores of two members, both of which have reported, at the last epoch that both have reached."""
    one, two = first.reported, second.reported
    # A failure counts at once, whatever the trial scored before it.
    if WORST_SCORE in (first.score, second.score):
        return one[-1], two[-1]
    # Trials on fast nodes are ahead: their last scores would win by the epochs alone.
    epoch = min(one[-1].epoch, two[-1].epoch)
    return score_at(one, epoch), score_at(two, epoch)

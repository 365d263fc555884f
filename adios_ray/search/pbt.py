"""Population based training of live trials: exploits happen in place and restart no process.

Between two of its own steps, a trial loads its donor's checkpoint under a new configuration. A decision is journaled
before it takes effect, so that a restarted driver resumes the same population and, with synchronous decisions, the
same lineage.
"""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from adios_ray.backend.admission import Admission
from adios_ray.run_directory import epoch_of, trial_of
from adios_ray.search.opening import Rung, leaving, stays
from adios_ray.search.population import WORST_SCORE, Population, scores_at_common_epoch
from adios_ray.search.scheduler import CONTINUE, PAUSE, STOP, LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import Member
from adios_ray.tracking.comparison import Difference, Fluctuation, estimated_fluctuation, familywise

Explore = Callable[[str, Member, Random], dict[str, Any]]
"""Makes the values of a copy from the trial's name, its donor and the decision's random numbers."""


class PopulationBasedTraining(LiveScheduler):
    """PBT (Jaderberg et al. 2017): the worst trials copy the best and explore; with another ``explore``, PB2."""

    def __init__(
        self,
        population: Population,
        admission: Admission,
        space: SearchSpace,
        explore: Explore,
        halvings: Sequence[Rung] = (),
    ) -> None:
        """Evolve the population over a search space.

        Args:
            population: The population, with all trials of its opening.
            admission: Which trials may run.
            space: When to decide, and the quantile that is replaced.
            explore: Makes the values of a copy.
            halvings: The opening's rungs, in the order of their epochs.
        """
        super().__init__(population, admission)
        self._space, self._explore, self._halvings = space, explore, halvings
        self._ended: set[str] = set()
        self._opening = self._in_opening()
        # Of all trials' reports, for one round of decisions; None until one needs it.
        self._fluctuation: Fluctuation | None = None

    def introduce(self, name: str) -> None:
        """Register a trial's starting point with the channel, held if it waits at the barrier."""
        self.population.register(name, held=not self.ready(name))

    def ready(self, name: str) -> bool:
        """Return whether a trial may train, that is, does not wait at the barrier of a synchronous decision."""
        state = self.population.state
        return not self._has_barrier or state.members[name].epoch < state.next_decision_epoch

    @property
    def _has_barrier(self) -> bool:
        """Whether trials wait for each other; those of an opening always do, to be ranked after equal epochs."""
        return self._space.synchronous or self._opening

    def _in_opening(self) -> bool:
        # By the journaled members alone, so that a resumed driver is where the last one was.
        members = self.population.state.members.values()
        remaining = sum(not member.finished for member in members)
        return any(rung.survivors < remaining for rung in self._halvings)

    def fate_of_diverged(self, name: str) -> str:
        """Say that the trial waits for a donor, ranks last in the opening, or is a control, which never copies."""
        if self._opening and not stays(self.population[name]):
            return "it ranks last in the opening"
        if self.population[name].control:
            return "it is a control, and controls never copy: the run continues without it"
        return "it waits for a donor"

    def decide(self, name: str) -> str:
        """Exploit and explore where the interval is over, and return what the trial does next.

        A synchronous decision covers all trials and is made when the last of them reports.
        """
        member = self.population[name]
        if self._has_barrier:
            if self.ready(name):
                return str(CONTINUE)
            # Hold first: passing the barrier releases every waiting trial, this one included.
            self.population.hold([name], True)
            self._pass_barrier()
            if member.finished:
                return str(STOP)
            # A held trial keeps its workers, which saves a restart, unless another trial could use the resources.
            return str(CONTINUE if self.ready(name) or not self.others_waiting() else PAUSE)
        if member.epoch - member.decided_epoch < self._space.interval_epochs:
            return str(CONTINUE)
        self._evolve([name, *self.set_aside])
        return str(PAUSE if self.others_waiting() else CONTINUE)

    def trial_ended(self, name: str) -> None:
        """Stop waiting for this trial; it may have been the last that the barrier waited for."""
        if not self.population[name].finished:
            self._ended.add(name)
        self._pass_barrier()

    def trial_set_aside(self, name: str) -> None:
        """Stop waiting for a trial that cannot train; it may have been the last that the barrier waited for."""
        self._pass_barrier()

    def _pass_barrier(self) -> None:
        """Decide about the whole population once no trial is still training towards the decision's epoch."""
        state = self.population.state
        # Trials that have not started are members too (epoch 0), so the decision never leaves one of them out.
        absent = self._ended | self.set_aside.keys()
        waiting = [name for name, member in state.members.items() if not member.finished and name not in absent]
        if not self._has_barrier or not waiting or any(self.ready(name) for name in waiting):
            return
        if self._opening:
            self._halve(waiting)
            return
        # The order matters. 1. Advance the barrier before the exploits are journaled, so that one line records both: a
        # driver killed before that line makes the same decision again, one killed after it does not decide twice.
        state.next_decision_epoch += self._space.interval_epochs
        # 2. Journal the exploits, then post their loads.
        self._evolve([*waiting, *self.set_aside])
        # 3. Release last: a released request appends "train" to the trial's commands at once, and the "load" of an
        # exploit must come before it.
        self.population.hold(waiting, False)

    def _halve(self, waiting: Sequence[str]) -> None:
        """End the trials that rank too low at a rung of the opening; after the last rung, PBT begins."""
        population = self.population
        epoch = min(population[name].epoch for name in waiting)
        survivors = min(rung.survivors for rung in self._halvings if rung.epoch <= epoch)
        remaining = {name: member for name, member in population.state.members.items() if not member.finished}
        # What was set aside ranks last: it has not trained as long as the others.
        unable = {name: remaining[name].model_copy(update={"score": None}) for name in self.set_aside}
        ranks = leaving(remaining | unable, survivors)
        for name, rank in ranks.items():
            population.drop(name, rank, len(remaining))
            self.set_aside.pop(name, None)
        for name in waiting:
            population[name].decided_epoch = epoch
        following = (rung.epoch for rung in self._halvings if rung.epoch > epoch)
        population.state.next_decision_epoch = next(following, epoch + self._space.interval_epochs)
        self._opening = self._in_opening()
        # As with exploits: the journal first, in one line, then what follows from it.
        population.commit(*remaining)
        population.preempt(list(ranks))
        population.hold([name for name in waiting if name not in ranks], False)

    def _evolve(self, names: Sequence[str]) -> None:
        """Let each of ``names`` that scores in the lowest quantile copy a better trial from the highest.

        A trial that was set aside is tried again with what it has copied; until then it keeps its place.
        """
        changed, self._fluctuation = [], None
        for name in names:
            member = self.population[name]
            member.decided_epoch = member.epoch
            if (donors := self._donors(name)) and self._exploit(name, donors):
                changed.append(name)
        # Journal before any worker loads. If the driver dies in between, the next one starts the trials from the
        # journaled checkpoints and misses no load. In the other order, it would not know whose weights a trial trains.
        self.population.commit(*names)
        for name in changed:
            self.population.push_checkpoint(name)
            if self.set_aside.pop(name, None):
                # It may have been held when its workers failed, and barriers release only trials that they wait for.
                self.population.hold([name], False)

    def _exploit(self, name: str, donors: Sequence[str]) -> bool:
        """Let a trial copy one of ``donors`` if the test shows that it is better; return whether the trial changes."""
        # Seeded by (seed, trial, epoch) instead of drawn from one stream: a restarted driver repeats an interrupted
        # decision exactly, and the order in which trials report has no influence.
        again = name in self.set_aside or not self._space.synchronous  # a copy may be set back to an earlier epoch
        random = self.population.random(name, again)
        # exploit: continue from the weights of one of the best
        donor = source = random.choice(donors)
        z = p = None
        if name not in self.set_aside:  # else it takes any better one
            difference = self._compare(donor, name)
            # Adjusted for the choice of the two among all trials: the best and the worst differ by chance too.
            z = difference.z
            p = None if z is None else familywise(z, len(self._ranked()), difference.freedom)
            if p is not None and p > (self._space.significance or 1):
                self.population.refuse(name, donor, difference, p)
                if not self._space.explore_without_copy:
                    return False
                z, p, source = None, None, name
        # explore: with other values
        self.population.copy(name, source, self._explore(name, self.population[source], random), z, p)
        return True

    def _compare(self, donor: str, name: str) -> Difference:
        """Compare a donor with a trial; the error includes the fluctuation of all trials' reports."""
        if self._fluctuation is None:
            # Not `history`: a trial that has just copied keeps what it reported, or the order of trials would matter.
            # At the rates of the last epochs before a restart, reports fluctuated less.
            valid = [
                tuple(s for s in member.reported if s.value > WORST_SCORE and s.epoch > member.restarted_epoch)
                for member in self._ranked().values()
            ]
            self._fluctuation = estimated_fluctuation(valid)
        return self.population.compare(donor, name).with_fluctuation(self._fluctuation)

    def _ranked(self) -> dict[str, Member]:
        """Select the trials that take part in decisions: also those that are done, by what they reported before."""
        members, epochs = self.population.state.members, self.population.config.epochs
        return {
            name: member
            for name, member in members.items()
            if member.score is not None and name not in self._ended
            if not member.finished or member.epoch >= epochs
        }

    def _donors(self, name: str) -> list[str]:
        """List the best trials that are better than this one; none unless it is among the worst and may be replaced.

        Trials that are done give nothing: with their weights, a copy would have nothing to train.
        """
        member, members = self.population[name], self._ranked()
        if member.control:
            return []
        if name not in members:
            # Without a report it has no rank; if it cannot train, it takes any of the best.
            return self._best() if name in self.set_aside and member.score is None else []
        # By how much each scores better at the last epoch that both have reached.
        margins = {}
        for other, rival in members.items():
            theirs, own = scores_at_common_epoch(rival, member)
            margins[other] = theirs.value - own.value
        # Ties in favor of the first, which has the published values: the order of reports must not decide.
        ranked = sorted(members, key=lambda other: (margins[other], -members[other].number))
        sound = [other for other in ranked if not self._failed(other)]
        # A trial that has failed is replaced however many have.
        if not self._failed(name):
            count = self._quantile(sound)
            replaceable = [other for other in sound[: len(sound) - count] if not members[other].control]
            if name not in replaceable[:count]:
                return []
        # A trial that copies a donor behind it writes its epochs again; if the donor's checkpoint is damaged, also the
        # donor's.
        kept = self._last_epoch_in_use(name)
        return [
            other
            for other in self._highest([other for other in sound if not members[other].finished])
            if margins[other] > 0
            and self._can_give(other)
            and not self._too_far_ahead(other, name)
            and members[other].epoch > kept
            # Else it would be better by its epochs alone: what it reported before it failed is forgotten.
            and members[other].reported[0].epoch <= member.reported[-1].epoch
        ]

    def _failed(self, name: str) -> bool:
        """Return whether a trial has diverged, collapsed or been set aside."""
        return self.population[name].score == WORST_SCORE or name in self.set_aside

    def _best(self) -> list[str]:
        """List the best of the trials that train, by their last scores, as donors of one that has no score."""
        members = self._ranked()
        training = [name for name in members if not members[name].finished and not self._failed(name)]
        ranked = sorted(training, key=lambda name: (members[name].score, -members[name].number))
        return [name for name in self._highest(ranked) if self._can_give(name)]

    def _highest(self, ranked: Sequence[str]) -> Sequence[str]:
        """Select the quantile of the best, at least one."""
        return ranked[-(self._quantile(ranked) or 1) :]

    def _quantile(self, names: Sequence[str]) -> int:
        """Count the trials in the quantile that is replaced, or that gives."""
        # Rounded up so that small populations exploit too, but at most half: a trial in both quantiles could be
        # replaced and copied in one decision, whose outcome would then depend on the order of the trials.
        return min(math.ceil(len(names) * self._space.quantile_fraction), len(names) // 2)

    def _can_give(self, name: str) -> bool:
        """Return whether a trial has weights that have neither diverged nor collapsed, and values that can train.

        A copy that has not reported yet has none: it is ranked by the weights that it has replaced.
        """
        donor = self.population[name]
        scored = donor.score is not None and donor.score > WORST_SCORE and donor.replaced_history is None
        return scored and donor.checkpoint is not None and name not in self.set_aside

    def _last_epoch_in_use(self, name: str) -> int:
        """Return the last epoch of this trial whose checkpoint or outcomes another one still refers to; 0 without."""
        # A copy of this trial loads its checkpoint once it has resources, or later if its own first one is damaged, and
        # is compared by its outcomes for some reports more; all are kept under the trial's name and epoch.
        others = [member for other, member in self.population.state.members.items() if other != name]
        paths = [path for member in others if member.checkpoint for path in member.checkpoint.paths]
        checkpoints = [epoch_of(path) for path in paths if trial_of(path) == name]
        outcomes = [score.epoch for member in others for score in member.reported if score.trial == name]
        return max(checkpoints + outcomes, default=0)

    def _too_far_ahead(self, donor: str, name: str) -> bool:
        """Return whether copying the donor would skip more than one interval, for a trial that can train by itself."""
        # Trials on fast nodes are ahead. One that is copied far ahead of the copying trial spreads by its speed: the
        # copy has fewer decisions left, at which it might be replaced. Donors may be behind, however: otherwise, slow
        # trials would copy fast ones and not the other way round. Training still ends, since the least trained trial is
        # never set back, and one that has copied it is compared with it only by what both have trained since.
        lag = self.population[donor].epoch - self.population[name].epoch
        return lag > self._space.interval_epochs and name not in self.set_aside

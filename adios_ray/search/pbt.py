"""Population based training over live trials: exploits in place, which restart nothing.

A trial is told to load its donor's checkpoint under a new configuration through the population's channel, between two
of its own steps. Everything that a decision rests on is written down before the decision takes effect, so that a
killed driver comes back to the same population and, with synchronous decisions, to the same lineage.
"""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from adios_ray.backend.admission import Admission
from adios_ray.search.population import WORST_SCORE, Population
from adios_ray.search.scheduler import CONTINUE, PAUSE, LiveScheduler
from adios_ray.search.spaces import SearchSpace
from adios_ray.search.state import Member

Explore = Callable[[str, Member, Random], dict[str, Any]]
"""Values for a trial, by its name, that becomes a copy of a member."""


class PopulationBasedTraining(LiveScheduler):
    """PBT (Jaderberg et al. 2017): the worst copy the best and explore; with another ``explore``, PB2."""

    def __init__(self, population: Population, admission: Admission, space: SearchSpace, explore: Explore) -> None:
        """Evolve the members over a space.

        Args:
            population: The population.
            admission: Which trials may run.
            space: When to decide, and about how many.
            explore: Makes a copy's values.
        """
        super().__init__(population, admission)
        self._space, self._explore = space, explore
        self._ended: set[str] = set()

    def introduce(self, name: str) -> None:
        """Tell the channel where a trial begins, and whether it waits for the others."""
        self.population.register(name, held=not self.ready(name))

    def ready(self, name: str) -> bool:
        """Whether a trial need not wait for the others at a synchronous decision."""
        state = self.population.state
        return not self._space.synchronous or state.members[name].epoch < state.next_decision_epoch

    def decide(self, name: str) -> str:
        """Decide about the trial (synchronous: about all, once the last has arrived) where the interval is over."""
        member = self.population[name]
        if self._space.synchronous:
            if self.ready(name):
                return str(CONTINUE)
            self.population.hold([name], True)
            self._pass_barrier()
            return str(CONTINUE if self.ready(name) or not self.others_waiting() else PAUSE)
        if member.epoch - member.decided_epoch < self._space.interval_epochs:
            return str(CONTINUE)
        self._evolve([name])
        return str(PAUSE if self.others_waiting() else CONTINUE)

    def trial_ended(self, name: str) -> None:
        """The others no longer wait for this trial."""
        if not self.population[name].finished:
            self._ended.add(name)
        self._pass_barrier()

    def _pass_barrier(self) -> None:
        """Decide about the whole population once nobody is on the way to the decision's epoch any more."""
        state = self.population.state
        waiting = [name for name, member in state.members.items() if not member.finished and name not in self._ended]
        if not self._space.synchronous or not waiting or any(self.ready(name) for name in waiting):
            return
        state.next_decision_epoch += self._space.interval_epochs
        self._evolve(waiting)
        self.population.hold(waiting, False)

    def _evolve(self, names: Sequence[str]) -> None:
        """Let each of ``names`` that scores in the lowest quantile copy from one of the highest."""
        lower, upper = self._quantiles()
        exploits = []
        for name in names:
            member = self.population[name]
            member.decided_epoch = member.epoch
            donors = [donor for donor in upper if not self._too_far_behind(donor, member)]
            if name in lower and donors:
                random = self.population.random(name)
                donor = random.choice(donors)
                self.population.copy(name, donor, self._explore(name, self.population[donor], random))
                exploits.append(name)
        self.population.commit(*names)
        for name in exploits:
            self.population.push_checkpoint(name)

    def _too_far_behind(self, donor: str, member: Member) -> bool:
        """Whether a copy would lose a whole interval of training; so every trial comes to its end."""
        return self.population[donor].epoch <= member.epoch - self._space.interval_epochs

    def _quantiles(self) -> tuple[list[str], list[str]]:
        """The worst and the best, as many of each as the quantile says; nobody is in both."""
        scores = {
            name: member.score
            for name, member in self.population.state.members.items()
            if member.score is not None and not member.finished and name not in self._ended
        }
        ranked = sorted(scores, key=lambda name: (scores[name], name))
        count = min(math.ceil(len(ranked) * self._space.quantile_fraction), len(ranked) // 2)
        if not count:
            return [], []
        best = [name for name in ranked[-count:] if scores[name] > WORST_SCORE and self.population[name].checkpoint]
        return ranked[:count], best

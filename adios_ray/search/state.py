"""What a population remembers between two runs of its driver.

A snapshot is written when a driver starts, and each change after it is one line of a journal: what a report costs does
not grow with the population. A line without its newline was being written when the driver died, and never took effect.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from adios_ray.checkpoints import Pointer
from adios_ray.config import SearchedValues
from adios_ray.errors import ConfigError
from adios_ray.files import append_line, atomic_write, complete_lines
from adios_ray.run_directory import RunDirectory, newest_epochs
from adios_ray.validation import parse_json, read_json

KEPT_CHECKPOINTS = 2


class Member(BaseModel):
    """One trial's place in the population."""

    values: SearchedValues
    """Searched values by configuration path, as the trial uses them from its checkpoint on."""
    number: int
    """Position in the population, which decides the trial's seed."""
    checkpoint: Pointer | None = None
    """What the trial goes on from: its own last report's, or a donor's."""
    epoch: int = 0
    """Epochs behind that checkpoint."""
    score: float | None = None
    """Score at the last report; never nan, a trial that diverged or collapsed is below all others."""
    base_score: float | None = None
    """Score of the weights in that checkpoint: a donor's after an exploit."""
    decided_epoch: int = 0
    """Epoch of the last decision about the trial."""
    finished: bool = False
    """Whether the trial has trained its last epoch, or was stopped for good."""


class Observation(BaseModel):
    """What became of a trial between two of its reports."""

    trial: str
    values: SearchedValues
    """Searched values in use."""
    epochs: tuple[int, int]
    """Epochs of the two reports."""
    scores: tuple[float | None, float]
    """Scores at the two reports; the first is None where the trial had none yet."""


class Change(BaseModel):
    """What changed at once: a line of the journal, which takes effect as a whole."""

    members: dict[str, Member]
    observations: dict[str, Observation]
    next_decision_epoch: int
    exploits: int
    seconds: float


class PopulationState(BaseModel):
    """All members, and the clock of synchronous decisions."""

    members: dict[str, Member] = Field(default_factory=dict)
    """Trials by name."""
    initial: dict[str, SearchedValues] = Field(default_factory=dict)
    """Searched values with which each trial began."""
    observations: dict[str, Observation] = Field(default_factory=dict)
    """All observations, by trial and epoch."""
    next_decision_epoch: int
    """Synchronous populations: epoch that all trials must reach before the next decision."""
    exploits: int = 0
    """Lines of the lineage that belong to this state; a decision that a crash cut off is made again."""
    seconds: float = 0.0
    """Wall time of earlier runs of the driver and this one."""

    def add(self, name: str, values: dict[str, Any]) -> Member:
        """Take in a trial that begins with these values."""
        self.members[name] = Member(values=values, number=len(self.members))
        self.initial[name] = values
        return self.members[name]

    def unfinished(self, names: Iterable[str]) -> list[str]:
        """Those of some trials, begun or not, that have not ended; the one that is furthest behind first."""
        epochs = {name: member.epoch for name, member in self.members.items()}
        finished = {name for name, member in self.members.items() if member.finished}
        return sorted((name for name in names if name not in finished), key=lambda name: epochs.get(name, 0))

    def save(self, run_dir: Path) -> None:
        """Write a snapshot, and begin the journal anew."""
        run = RunDirectory(run_dir)
        atomic_write(run.population, self.model_dump_json().encode())
        atomic_write(run.journal, b"")

    def journal(self, run_dir: Path, members: Iterable[str], observations: Iterable[str] = ()) -> None:
        """Write down, in one step, how some members stand, some observations, and the clock."""
        change = Change(
            members={name: self.members[name] for name in members},
            observations={key: self.observations[key] for key in observations},
            next_decision_epoch=self.next_decision_epoch,
            exploits=self.exploits,
            seconds=self.seconds,
        )
        append_line(RunDirectory(run_dir).journal, change.model_dump_json())

    @staticmethod
    def load(run_dir: Path) -> "PopulationState":
        """Read the state of a run: its snapshot, and what was changed since.

        Raises:
            ConfigError: If the directory is not one of a run.
        """
        run = RunDirectory(run_dir)
        if not run.population.is_file():
            raise ConfigError(f"{run_dir} is not a run directory: it has no {run.population.name}")
        state = read_json(PopulationState, run.population)
        for number, line in enumerate(complete_lines(run.journal).splitlines(), start=1):
            change = parse_json(Change, line, f"{run.journal}, line {number} is damaged")
            for name in change.members.keys() - state.members.keys():
                state.initial[name] = change.members[name].values
            state.members.update(change.members)
            state.observations.update(change.observations)
            state.next_decision_epoch, state.exploits = change.next_decision_epoch, change.exploits
            state.seconds = change.seconds
        return state

    def remove_unused_checkpoints(self, run_dir: Path, trials: Iterable[str]) -> None:
        """Delete the checkpoints of some trials that nobody goes on from, but for each one's newest two."""
        older: set[Path] = set()
        for trial in trials:
            older.update(list(newest_epochs(RunDirectory(run_dir).checkpoints / trial))[KEPT_CHECKPOINTS:])
        if older:  # who uses what is asked of everybody, and only then
            older -= {member.checkpoint.path for member in self.members.values() if member.checkpoint}
        for directory in older:
            shutil.rmtree(directory, ignore_errors=True)

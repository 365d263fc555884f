"""The state of a population on disk, from which a restarted driver resumes.

A snapshot is written when a driver starts, and each later change is one line of a journal, so that the cost of a report
does not grow with the population. A line without its newline was cut off by a crash and never took effect.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, BaseModel, Field, model_validator

from adios_ray.checkpoints import Pointer
from adios_ray.config import SearchedValues
from adios_ray.errors import ConfigError
from adios_ray.files import append_line, atomic_write, complete_lines
from adios_ray.run_directory import RunDirectory, epoch_name, newest_epochs, trial_of
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.comparison import LONGEST_HISTORY, History, Score
from adios_ray.validation import parse_json, read_json

MOST_OUTCOMES = 2 * LONGEST_HISTORY
"""Reports of a trial with stored outcomes from which those that no test needs any more are deleted."""


class Member(BaseModel):
    """The state of one trial of the population."""

    values: SearchedValues
    """Searched values by configuration path, in use from the checkpoint on."""
    number: int
    """Position in the population, which decides the trial's seed."""
    checkpoint: Pointer | None = None
    """Checkpoint that the trial resumes from: of its own last report, or of a donor."""
    epoch: int = 0
    """Epochs trained up to that checkpoint."""
    score: float | None = None
    """Score at the last report; never nan: a trial that diverged or collapsed has ``WORST_SCORE``."""
    base_score: float | None = None
    """Score of the weights in that checkpoint: a donor's after an exploit."""
    history: History = ()
    """Scores of the weights in that checkpoint since their first report, some of the older ones left out."""
    replaced_history: History | None = None
    """After an exploit, until the next report: the history of the replaced weights, which ranks the trial till then."""
    control: bool = False
    """Whether the trial keeps its values and its weights to the end, for comparison."""
    decided_epoch: int = 0
    """Epoch of the last decision about the trial."""
    finished: bool = False
    """Whether the trial has trained its last epoch or was stopped early."""
    reopened: bool = False
    """Whether it had finished, and lost its checkpoint: it trains to its last report again, and no further."""
    restarted_epoch: int = 0
    """Epoch at which it had finished before the run was made longer: higher learning rates follow. 0 if it had not."""

    @model_validator(mode="after")
    def _read_earlier_version(self) -> Self:
        """Begin the history where an earlier version left none."""
        if self.score is not None and not self.history:
            self.history = (Score(self.epoch, self.score),)
        return self

    @property
    def reported(self) -> History:
        """The scores that rank the trial: those of the weights that it reported last."""
        return self.history if self.replaced_history is None else self.replaced_history


class Observation(BaseModel):
    """The change of a trial's score between two of its reports."""

    trial: str
    values: SearchedValues
    """Searched values in use."""
    epochs: tuple[int, int]
    """Epochs of the two reports."""
    scores: tuple[float | None, float]
    """Scores at the two reports; the first is None where the trial had none yet."""
    standard_error: float | None = None
    """Standard error of the change; None where it is unknown."""


_LINEAGE_LINES = AliasChoices("lineage_lines", "exploits")
"""Earlier versions, whose lineage had no refusals, called their count ``exploits``."""


class Change(BaseModel):
    """One line of the journal: changes that take effect together."""

    members: dict[str, Member]
    observations: dict[str, Observation]
    next_decision_epoch: int
    lineage_lines: int = Field(validation_alias=_LINEAGE_LINES)
    seconds: float


class PopulationState(BaseModel):
    """All members, their observations, and the next synchronous decision."""

    members: dict[str, Member] = Field(default_factory=dict)
    """Trials by name."""
    initial: dict[str, SearchedValues] = Field(default_factory=dict)
    """Searched values that each trial started with."""
    observations: dict[str, Observation] = Field(default_factory=dict)
    """All observations, by trial and epoch."""
    next_decision_epoch: int
    """Synchronous populations: epoch of the barrier, which all trials must reach before the next decision."""
    lineage_lines: int = Field(0, validation_alias=_LINEAGE_LINES)
    """Lines of the lineage that belong to this state; later ones are of a decision that a crash cut off."""
    seconds: float = 0.0
    """Wall time of this driver and all earlier ones."""
    epochs: int | None = None
    """Epochs at which trials have finished; None in earlier versions."""
    dataset: str | None = None
    """Checksum of the data set, by which it is recognized at another location; None in earlier versions."""

    def add(self, name: str, values: dict[str, Any], control: bool = False) -> Member:
        """Add a trial that starts with these values."""
        self.members[name] = Member(values=values, number=len(self.members), control=control)
        self.initial[name] = values
        return self.members[name]

    def unfinished(self, names: Iterable[str]) -> list[str]:
        """Select the trials that have not finished, started or not; the least trained first."""
        epochs = {name: member.epoch for name, member in self.members.items()}
        finished = {name for name, member in self.members.items() if member.finished}
        return sorted((name for name in names if name not in finished), key=lambda name: epochs.get(name, 0))

    def extend(self, epochs: int, interval_epochs: int) -> None:
        """Let trials that have trained to the end train on, to a later one; those that were stopped early stay so."""
        assert self.epochs is not None
        ended = [member for member in self.members.values() if member.finished and member.epoch >= self.epochs]
        if epochs > self.epochs:
            for member in ended:
                member.finished, member.restarted_epoch = False, member.epoch
                # Asynchronously, one interval is trained before the first decision, as at first.
                member.decided_epoch = member.epoch
            for member in self.members.values():
                member.reopened = False
            if ended:
                self._move_barrier(interval_epochs)
        self.epochs = epochs

    def reopen(self, name: str, interval_epochs: int) -> None:
        """Let a finished trial train to its last report again, from the checkpoint before."""
        member = self.members[name]
        member.finished, member.reopened = False, True
        self._move_barrier(interval_epochs)

    def _move_barrier(self, interval_epochs: int) -> None:
        """Move the barrier on until trials that had finished can pass it: no decision was made at their last epoch."""
        epochs = [member.epoch for member in self.members.values() if not member.finished]
        while self.next_decision_epoch <= min(epochs):
            self.next_decision_epoch += interval_epochs

    def save(self, run_dir: Path) -> None:
        """Write a snapshot and empty the journal."""
        run = RunDirectory(run_dir)
        # A crash between the two is harmless: lines hold whole members, so that replaying them changes nothing.
        stored = self.model_copy(update={"members": _with_pointers(self.members, run.relative)})
        atomic_write(run.population, stored.model_dump_json().encode())
        atomic_write(run.journal, b"")

    def journal(self, run_dir: Path, members: Iterable[str], observations: Iterable[str] = ()) -> None:
        """Append some members, some observations and the next decision's epoch to the journal as one line."""
        run = RunDirectory(run_dir)
        change = Change(
            members=_with_pointers({name: self.members[name] for name in members}, run.relative),
            observations={key: self.observations[key] for key in observations},
            next_decision_epoch=self.next_decision_epoch,
            lineage_lines=self.lineage_lines,
            seconds=self.seconds,
        )
        append_line(run.journal, change.model_dump_json())

    @staticmethod
    def load(run_dir: Path) -> "PopulationState":
        """Read the state of a run: its snapshot and the changes since.

        Raises:
            ConfigError: If the directory is no run directory, or one of the two files is damaged.
        """
        run = RunDirectory(run_dir)
        if not run.population.is_file():
            raise ConfigError(f"{run_dir} is not a run directory: it has no {run.population.name}")
        state = read_json(PopulationState, run.population)
        for number, line in enumerate(complete_lines(run.journal).splitlines(), start=1):
            change = parse_json(Change, line, f"{run.journal}, line {number} is damaged")
            # A trial that a search added after the snapshot: its first line holds the values that it started with.
            for name in change.members.keys() - state.members.keys():
                state.initial[name] = change.members[name].values
            state.members.update(change.members)
            state.observations.update(change.observations)
            state.next_decision_epoch, state.lineage_lines = change.next_decision_epoch, change.lineage_lines
            state.seconds = change.seconds
        state.members = _with_pointers(state.members, run.located)
        return state

    def remove_old_outcomes(self, run_dir: Path, trials: Iterable[str]) -> None:
        """Delete the outcomes of images in reports of these trials that no member's history has any more.

        A trial that is far behind is compared at its own epoch, with reports that the others made long before.
        """
        # Trials that have trained for fewer epochs have fewer reports.
        longer = [trial for trial in trials if self.members[trial].epoch > MOST_OUTCOMES]
        stored = {trial: newest_epochs(RunDirectory(run_dir).outcomes(trial, 0).parent) for trial in longer}
        many = {trial: paths for trial, paths in stored.items() if len(paths) > MOST_OUTCOMES}
        # All members are asked once for many reports, since this runs at each.
        if many:
            histories = (history for member in self.members.values() for history in (member.history, member.reported))
            needed = {(score.trial, epoch_name(score.epoch)) for history in histories for score in history}
            for trial, paths in many.items():
                for path in paths:
                    if (trial, path.name) not in needed:
                        path.unlink(missing_ok=True)

    def lenders(self) -> dict[str, set[str]]:
        """Map the trials that use checkpoints of others to these others."""
        used = {name: lenders(name, member.checkpoint) for name, member in self.members.items()}
        return {name: others for name, others in used.items() if others}

    def remove_unused_checkpoints(self, storage: RunStorage, trials: Iterable[str], borrowers: Iterable[str]) -> None:
        """Delete the checkpoints of these trials that no member resumes from, nor would if its own were damaged.

        Those of a copy stay until its first report: its workers may be about to load one, the best score so far may be
        that of its last weights, and after a crash of the machine the journal may lack the copy.

        Args:
            storage: Where the checkpoints are.
            trials: The trials; none of them trains, so that no checkpoint is newer than its last report's.
            borrowers: All other trials that use theirs; to look for them at each report would be slow.
        """
        pointers = [self.members[name].checkpoint for name in {*trials, *borrowers}]
        used = {path for pointer in pointers if pointer for path in pointer.paths}
        for trial in trials:
            if self.members[trial].replaced_history is not None:
                continue
            for directory in storage.epochs(RunDirectory(storage.directory).checkpoints / trial):
                if directory not in used:
                    storage.remove(directory)


def lenders(name: str, pointer: Pointer | None) -> set[str]:
    """Select the other trials whose checkpoints a trial uses, to resume from or in case its own is damaged."""
    return {trial_of(path) for path in pointer.paths} - {name} if pointer else set()


def _with_pointers(members: Mapping[str, Member], move: Callable[[Path], Path]) -> dict[str, Member]:
    """Copy members, with the paths of their checkpoints moved."""
    moved = {}
    for name, member in members.items():
        moved[name] = member.model_copy(update={"checkpoint": member.checkpoint and member.checkpoint.moved(move)})
    return moved

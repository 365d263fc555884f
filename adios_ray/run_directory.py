"""The layout of a run directory: where everything of a run is stored.

::

    RUN/
      config.json  space.yaml             the resolved configuration and search space; written first
      token                               random text that no other run has, of whatever name
      initial_weights.safetensors         a copy of the initial weights, if there are any
      environment.json                    versions, machine and threads at the start
      population.json  population.jsonl   the population: a snapshot and the journal of changes since
      driver.json                         the driver's process, while one is alive, or after a takeover (data/claim.py)
      results.csv  lineage.jsonl          a line for each report; for each exploit, refusal, or trial that left
      events.jsonl                        one line for each note, exploit, refusal, restart and wait
      outcomes/TRIAL/epoch_NNNNN          what the images that select say, of the reports in trials' histories
      checkpoints/TRIAL/epoch_NNNNN/      weights
      masks/TRIAL/epoch_NNNNN.npz         masks of the first validation images
      diverged/TRIAL/epoch_NNNNN/         what reproduces a step that became non-finite
      actors/ACTOR_ID-ID                  trials' actors whose placement groups may be left behind
      logs/TRIAL.log                      what happened to each trial's processes, with tracebacks and output
      logs/tracker_NAME.log               what each tracker's process printed
      wandb/  tensorboard/  log.jsonl     of trackers that were asked for
      inspection.npz                      features of validation images, for the report
      tune/                               Ray Tune's and Ray Train's own files
      report.html  schedule.json          for people; the schedule is written when the run has finished
      summary.json                        the outcome; written last: by it, a run counts as finished
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adios_ray.errors import RecordError

MASKS = "masks"
"""Name of the folder of masks."""
INITIAL_WEIGHTS = "initial_weights.safetensors"
"""Name of the copy of the initial weights."""
TRACKERS = frozenset({"wandb", "tensorboard", "log.jsonl"})
"""Names of what trackers write."""
REPLAY_FILE, REPORTS_FILE = "replay.json", "reports.jsonl"
"""Files of a replay's directory: the schedule that it trains, and its reports, one per line."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of all files in a run directory; no file is read or written here.

    Attributes:
        path: The directory.
    """

    path: Path

    def make_folders(self) -> None:
        """Create the folders of an existing run directory that are missing.

        Its driver does so when it starts; after that, only trials' folders in these are created. A folder that is made
        where storage is unmounted would take what is written, and lose it.

        Raises:
            OSError: If storage fails.
        """
        folders = (self.checkpoints, self._masks, self.diverged, self.actors, self._logs, self._outcomes)
        for folder in folders:
            folder.mkdir(exist_ok=True)

    @property
    def driver_names(self) -> set[str]:
        """Names of the files and folders that a driver writes beside the population, before any trial trains."""
        files = (self.environment, self.journal, self.results, self.lineage, self.events, self._logs, self._outcomes)
        return {*(path.name for path in files), *TRACKERS}

    @property
    def config(self) -> Path:
        """The resolved configuration. Every run has one: if it is missing, the run's storage is unavailable."""
        return self.path / "config.json"

    @property
    def space(self) -> Path:
        """The search space."""
        return self.path / "space.yaml"

    @property
    def token(self) -> Path:
        """Random text that tells the run from others of its name; runs of earlier versions have none."""
        return self.path / "token"

    @property
    def initial_weights(self) -> Path:
        """A copy of the initial weights, which every node reads; most runs have none."""
        return self.path / INITIAL_WEIGHTS

    @property
    def environment(self) -> Path:
        """Versions and machine at the start of the run."""
        return self.path / "environment.json"

    @property
    def population(self) -> Path:
        """Snapshot of the population."""
        return self.path / "population.json"

    @property
    def journal(self) -> Path:
        """Changes of the population since the snapshot."""
        return self.path / "population.jsonl"

    @property
    def results(self) -> Path:
        """One line for each report."""
        return self.path / "results.csv"

    @property
    def lineage(self) -> Path:
        """One line for each exploit, each that was refused, and each trial that left in the opening."""
        return self.path / "lineage.jsonl"

    @property
    def events(self) -> Path:
        """One line for everything that happened, for people and programs; nothing resumes from it."""
        return self.path / "events.jsonl"

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    @property
    def inspection(self) -> Path:
        """Features of validation images, for the report."""
        return self.path / "inspection.npz"

    @property
    def summary(self) -> Path:
        """The outcome of a finished run."""
        return self.path / "summary.json"

    @property
    def schedule(self) -> Path:
        """The best trial's schedule."""
        return self.path / "schedule.json"

    @property
    def actors(self) -> Path:
        """An empty file for each trial's actor that may have a placement group, named by its ID."""
        return self.path / "actors"

    @property
    def checkpoints(self) -> Path:
        """A folder of checkpoints for each trial."""
        return self.path / "checkpoints"

    @property
    def diverged(self) -> Path:
        """A folder of diverged steps for each trial."""
        return self.path / "diverged"

    def tracker_log(self, name: str) -> Path:
        """Return the path of what a tracker's process printed."""
        return self._logs / f"tracker_{name}.log"

    def log(self, trial: str) -> Path:
        """Return the path of a trial's log."""
        return self._logs / f"{trial}.log"

    def trial_folders(self, trial: str) -> tuple[Path, ...]:
        """List the folders that a trial's workers write into."""
        return tuple(folder / trial for folder in (self.checkpoints, self._masks, self.diverged))

    def checkpoint(self, trial: str, epoch: int) -> Path:
        """Return the path of the checkpoint that a trial writes after an epoch."""
        return self.checkpoints / trial / epoch_name(epoch)

    def relative(self, path: Path) -> Path:
        """Return the path of something stored in the run, from the run on: a moved run finds it by that."""
        return path.relative_to(self.path)

    def located(self, path: Path) -> Path:
        """Return where a checkpoint is now, by its path from the run on.

        Earlier versions recorded whole paths, of the place where the run was then.
        """
        return self.path / (Path(*path.parts[-_CHECKPOINT_PARTS:]) if path.is_absolute() else path)

    def outcomes(self, trial: str, epoch: int) -> Path:
        """Return the path of the outcomes of the validation images of selection, in a trial's report."""
        return self._outcomes / trial / epoch_name(epoch)

    def outcome_folders(self) -> list[Path]:
        """List the folders of outcomes, one for each trial that has reported some."""
        return sorted(self._outcomes.glob("*"))

    def diverged_step(self, trial: str, epoch: int) -> Path:
        """Return the folder of the step at which a trial diverged, by the epoch of its report."""
        return self.diverged / trial / epoch_name(epoch)

    def masks(self, trial: str, epoch: int) -> Path:
        """Return the path of the masks that a trial writes after an epoch.

        Raises:
            RecordError: If the trial's name would lead out of the run directory.
        """
        # Names come from files of the run, which may be damaged or manipulated.
        if trial in ("", ".", "..") or set(trial) & set("/\\\0"):
            raise RecordError(f"the trial name {trial!r} cannot name a folder")
        return self._masks / trial / f"{epoch_name(epoch)}.npz"

    def stored_masks(self, trial: str) -> dict[int, Path]:
        """Find a trial's files of masks by epoch, ascending; earlier versions padded epochs to four digits."""
        files = {epoch_of(path): path for path in self.masks(trial, 0).parent.glob("*.npz")}
        return dict(sorted(files.items()))

    @property
    def _masks(self) -> Path:
        return self.path / MASKS

    @property
    def _logs(self) -> Path:
        return self.path / "logs"

    @property
    def _outcomes(self) -> Path:
        return self.path / "outcomes"


_EPOCH = "epoch_"
_CHECKPOINT_PARTS = 3
"""Parts of a checkpoint's path from the run on: checkpoints, trial, epoch."""


def epoch_name(epoch: int) -> str:
    """Return the name of what is written after an epoch; names sort by epoch."""
    return f"{_EPOCH}{epoch:05d}"


def epoch_of(path: Path) -> int:
    """Return the epoch after which something was written, by the name that ``epoch_name`` gave it."""
    return int(path.stem.removeprefix(_EPOCH))


def trial_of(path: Path) -> str:
    """Return the trial that has written something after an epoch."""
    return path.parent.name


def newest_epochs(folder: Path) -> list[Path]:
    """List what was written into a folder after each epoch, newest first; nothing if there is no such folder.

    Raises:
        OSError: If storage fails.
    """
    try:
        return newest_first(folder, os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def newest_first(folder: Path, names: Iterable[str]) -> list[Path]:
    """Select those names in a folder that ``epoch_name`` gives, the newest epoch first."""
    return [folder / name for name in sorted(names, reverse=True) if name.startswith(_EPOCH)]

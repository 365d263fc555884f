"""What a population remembers between two runs of its driver: a file that is always whole."""

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from adios_ray.config import ConfigError, load_json, parse
from adios_ray.tracking.records import write_atomically
from adios_ray.training.checkpoints import Pointer

STATE_FILE = "population.json"
KEPT_CHECKPOINTS = 2


class Member(BaseModel):
    """One trial's place in the population."""

    values: dict[str, Any]
    """Searched values by configuration path, as the trial uses them from its checkpoint on."""
    checkpoint: Pointer | None = None
    """What the trial goes on from: its own last report's, or a donor's."""
    epoch: int = 0
    """Epochs behind that checkpoint."""
    score: float | None = None
    """Fitness at the last report; never nan, a diverged trial scores below all others."""
    decided_epoch: int = 0
    """Epoch of the last decision about the trial."""
    finished: bool = False
    """Whether the trial has trained its last epoch."""


class PopulationState(BaseModel):
    """All members, and the clock of synchronous decisions."""

    members: dict[str, Member] = Field(default_factory=dict)
    """Trials by name."""
    next_decision_epoch: int
    """Synchronous populations: epoch that all trials must reach before the next decision."""
    exploits: int = 0
    """Lines of the lineage that belong to this state; a decision that a crash cut off is made again."""
    seconds: float = 0.0
    """Wall time of earlier runs of the driver and this one."""

    def save(self, run_dir: Path) -> None:
        """Write the state atomically."""
        write_atomically(run_dir / STATE_FILE, self.model_dump_json(indent=1).encode())

    @staticmethod
    def load(run_dir: Path) -> "PopulationState":
        """Read the state of a run.

        Raises:
            ConfigError: If the directory is not one of a run.
        """
        path = run_dir / STATE_FILE
        if not path.is_file():
            raise ConfigError(f"{run_dir} is not a run directory: it has no {STATE_FILE}")
        return parse(PopulationState, load_json(path), str(path))

    def remove_unused_checkpoints(self, run_dir: Path) -> None:
        """Delete checkpoints that nobody goes on from, but for each trial's newest two."""
        used = {member.checkpoint.path for member in self.members.values() if member.checkpoint}
        for trial in self.members:
            newest_first = sorted((run_dir / "checkpoints" / trial).glob("epoch_*"), reverse=True)
            for directory in newest_first[KEPT_CHECKPOINTS:]:
                if directory not in used:
                    shutil.rmtree(directory, ignore_errors=True)

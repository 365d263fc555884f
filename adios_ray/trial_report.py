"""A trial's report: made by its trainer, and the same object on its way to the population and the run's files."""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict


class Measured(BaseModel):
    """What a report says of the epochs since the one before."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", use_attribute_docstrings=True)

    epoch: int
    """Epochs completed."""
    fitness: float = math.nan
    """What ``evaluation.fitness`` names, on the validation images; nan where the trial diverged or collapsed."""
    loss: float = math.nan
    penalty: float = math.nan
    """Mean sparsity term."""
    probe_accuracy: float = math.nan
    slot_overlap: float = 0.0
    """Largest overlap of two slots, 0 to 1."""
    mask_mean_min: float = 0.0
    """Mean mask value of the smallest slot."""
    mask_mean_max: float = 0.0
    """Mean mask value of the largest slot."""
    images_per_s: float = 0.0
    data_wait_fraction: float = 0.0
    """Share of the epoch spent waiting for data, 0 to 1."""
    idle_s: float = 0.0
    """Seconds between the report before and the first step after it: decisions, waiting for others, loading."""
    worker_pid: int = 0


class TrialReport(Measured):
    """A report as the trainer makes it."""

    divergence: str | None = None
    """How the trial diverged or collapsed; None where it did not."""
    done: bool = False
    """Whether this was the last epoch."""

    @classmethod
    def failed(cls, epoch: int, reason: str) -> Self:
        """Report for workers that failed again and again: nothing was measured, and the trial needs a donor."""
        return cls(epoch=epoch, divergence=reason)

"""Logs to Weights & Biases: one wandb run for each trial, grouped by population."""

import math
import os
from pathlib import Path
from typing import Any

from adios_ray.config import TrialConfig
from adios_ray.tracking.records import Row


class WandbLog:
    """Logs each trial's reports; mode "offline" needs no login.

    A resumed population continues its wandb runs, whose IDs are made of the names of the run and the trial.
    """

    def __init__(self, directory: Path, mode: str, experiment: dict[str, Any]) -> None:
        """Log into a run directory.

        Args:
            directory: The run directory, whose name is that of the group.
            mode: "offline" or "online".
            experiment: The experiment's configuration, overridden by each trial's own values.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        self._directory, self._mode, self._experiment = directory, mode, experiment
        self._runs: dict[str, Any] = {}

    def report(self, row: Row, config: TrialConfig) -> None:
        """Log one report of a trial and the configuration it was made under."""
        own = config.model_dump(mode="json")
        run = self._runs.get(row.trial) or self._start(row.trial, {**self._experiment, **own})
        run.config.update(own, allow_val_change=True)  # wandb refuses changes by default, and exploits make some
        measured = {**row.model_dump(exclude={"time", "trial", "values", "worker_pid"}), **row.values}
        known = {key: value for key, value in measured.items() if value is not None}
        run.log({key: value for key, value in known.items() if not isinstance(value, float) or math.isfinite(value)})

    def _start(self, trial: str, config: dict[str, Any]) -> Any:
        import wandb  # slow to import, and only runs that log to it need it

        self._runs[trial] = wandb.init(
            project="adios_ray",
            group=self._directory.name,
            name=trial,
            id=f"{self._directory.name}-{trial}",
            # Offline, wandb ignores this with a warning.
            resume="allow" if self._mode == "online" else None,
            mode="online" if self._mode == "online" else "offline",
            dir=self._directory,
            config=config,
            reinit="create_new",  # several runs are open at once in this process, one for each trial
        )
        return self._runs[trial]

    def finish(self) -> None:
        """Close all wandb runs."""
        for run in self._runs.values():
            run.finish()

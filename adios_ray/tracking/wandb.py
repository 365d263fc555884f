"""Reports to Weights & Biases: one wandb run a trial, grouped by population."""

import math
import os
from pathlib import Path
from typing import Any

from adios_ray.config import TrialConfig
from adios_ray.tracking.records import Row


class WandbLog:
    """Logs each trial's reports; works offline where nobody is logged in.

    A resumed population continues its wandb runs: their ids are made of the run's and the trials' names.
    """

    def __init__(self, directory: Path, mode: str, experiment: dict[str, Any]) -> None:
        """Log under ``directory`` with mode "offline" or "online".

        Args:
            directory: The run's directory, which names the group.
            mode: "offline" or "online".
            experiment: The experiment's configuration; each trial's own values take precedence.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        self._directory, self._mode, self._experiment = directory, mode, experiment
        self._runs: dict[str, Any] = {}

    def report(self, row: Row, config: TrialConfig) -> None:
        """Log one report of a trial, made under ``config``, at its epoch."""
        own = config.model_dump(mode="json")
        run = self._runs.get(row.trial) or self._start(row.trial, {**self._experiment, **own})
        run.config.update(own, allow_val_change=True)  # an exploit may have changed it
        figures = {**row.model_dump(exclude={"time", "trial", "values", "worker_pid"}), **row.values}
        run.log({key: value for key, value in figures.items() if not isinstance(value, float) or math.isfinite(value)})

    def _start(self, trial: str, config: dict[str, Any]) -> Any:
        import wandb  # imported here: only runs that log to it pay for it

        self._runs[trial] = wandb.init(
            project="adios_ray",
            group=self._directory.name,
            name=trial,
            id=f"{self._directory.name}-{trial}",
            resume="allow" if self._mode == "online" else None,
            mode="online" if self._mode == "online" else "offline",
            dir=self._directory,
            config=config,
            reinit="create_new",
        )
        return self._runs[trial]

    def finish(self) -> None:
        """Close all wandb runs."""
        for run in self._runs.values():
            run.finish()

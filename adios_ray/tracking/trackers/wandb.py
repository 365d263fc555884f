"""Weights & Biases: one wandb run for each trial, grouped by population."""

import os
from typing import Any, Literal

from adios_ray.config import TrialConfig, replaced
from adios_ray.errors import ConfigError
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.decisions import Exploit
from adios_ray.tracking.records import RunSummary, read_config, read_token
from adios_ray.tracking.results import Row
from adios_ray.tracking.trackers.measurements import lineage_of, measurements, sheets

PROJECT = "adios_ray"
"""Project where WANDB_PROJECT names none; wandb itself reads WANDB_ENTITY."""


def check_login() -> None:
    """Check that there are credentials for ``--wandb online``, without contacting the server.

    Raises:
        ConfigError: If there are none, or wandb cannot look for them.
    """
    import wandb

    try:
        found = wandb.login(prompt=False, verify=False)
    except RuntimeError as error:  # without a home directory
        raise ConfigError(f"wandb cannot look for a login: {error} Set HOME") from None
    finally:
        wandb.teardown()  # else trackers would use this process's service, for which it waits at its end
    if not found:
        raise ConfigError(
            "wandb online needs a login: run `wandb login` or set WANDB_API_KEY; --wandb offline needs none"
        )


class WandbLog:
    """Logs each trial's reports, masks and exploits, by epoch.

    A resumed population continues its wandb runs, whose IDs are made of the run's token and the trial's name: another
    population of the same name has others. Offline, each start leaves folders of its own, which `wandb sync` puts
    together by those IDs.
    """

    def __init__(self, storage: RunStorage, mode: Literal["online", "offline"]) -> None:
        """Log into a run directory.

        Args:
            storage: The run's files; the name of their directory is that of the group.
            mode: offline keeps files in the run directory, for `wandb sync`.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        self._storage, self._directory, self._mode = storage, (directory := storage.directory), mode
        self._experiment = read_config(directory)  # overridden by each trial's own values
        self._token = read_token(directory) or directory.name  # as earlier versions did
        self._runs: dict[str, Any] = {}
        self._configs: dict[str, TrialConfig] = {}

    def report(self, row: Row, config: TrialConfig) -> None:
        """Log one report, with the epoch as its step, and the trial's masks as images."""
        import wandb

        self._configs[row.trial] = config
        run = self._run(row.trial, config)
        images = [
            wandb.Image(sheet, caption=f"validation image {number}, epoch {row.epoch}: image, slots, masked inputs")
            for number, sheet in enumerate(sheets(self._storage, row))
        ]
        run.log(measurements(row) | {"epoch": row.epoch} | ({"masks": images} if images else {}))

    def exploit(self, exploit: Exploit) -> None:
        """Update the trial's configuration, of which its lineage is a part."""
        config = self._configs.get(exploit.trial)
        if config is None:  # a resumed run whose trial has not reported yet; its next report has everything
            return
        self._run(exploit.trial, replaced(config, exploit.new))

    def summary(self, summary: RunSummary) -> None:
        """Add the outcome to the summary of the best trial's run."""
        outcome = summary.model_dump(include={"test_fitness", "test_standard_error", "test_accuracy", "gain"})
        known = {key: value for key, value in outcome.items() if value is not None}
        # The trial may have ended under an earlier driver: its run is continued, with the configuration that it has.
        run = self._runs.get(summary.best_trial) or self._start(summary.best_trial, None)
        run.summary.update({"best": True, **known})

    def close(self) -> None:
        """Close all wandb runs."""
        import wandb

        for run in self._runs.values():
            run.finish()
        wandb.teardown()  # only then is everything in the files

    def _run(self, trial: str, config: TrialConfig) -> Any:
        """Return the trial's wandb run, under a configuration and with the trial's lineage."""
        own = {**config.model_dump(mode="json"), "lineage": lineage_of(self._directory, trial)}
        run = self._runs.get(trial) or self._start(trial, {**self._experiment, **own})
        run.config.update(own, allow_val_change=True)  # wandb refuses changes by default, and exploits make some
        return run

    def _start(self, trial: str, config: dict[str, Any] | None) -> Any:
        """Start a trial's wandb run, or continue an earlier driver's; None keeps the configuration that it has."""
        import wandb  # slow to import, and only runs that log to it need it

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._directory.name,
            name=trial,
            id=f"{self._token}-{trial}",
            # Offline, wandb ignores this with a warning.
            resume="allow" if self._mode == "online" else None,
            mode=self._mode,
            dir=self._directory,
            config=config,
            reinit="create_new",  # several runs are open at once in this process, one for each trial
        )
        # wandb's own step must never decrease, and a trial that was set back repeats epochs.
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        self._runs[trial] = run
        return run

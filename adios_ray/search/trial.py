"""A Tune trial around a live Ray Train run."""

import json
import threading
from pathlib import Path
from typing import Any, TypedDict

import ray
from ray import tune

from adios_ray.search.channel import find_channel

POINTER_FILE = "pointer.json"
POLL_S = 2.0
STOP_TIMEOUT_S = 30.0
WORKER_RESTARTS = 3


class TrialSettings(TypedDict):
    """What Tune hands to each trial; the configuration itself comes through the channel.

    Attributes:
        trial: Name of the trial.
        run_dir: The run's directory.
        channel: Name of the run, by which its channel is found.
        workers: Ray Train workers of the trial.
        cpus_per_worker: CPUs of each worker, may be a fraction.
        gpus_per_worker: GPUs of each worker, may be a fraction.
    """

    trial: str
    run_dir: str
    channel: str
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float


class LiveTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no type information
    """Starts one ``TorchTrainer`` and keeps it: stepping, loading and changing configuration happen in place."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the Ray Train run in a thread."""
        self._channel, self._trial = find_channel(config["channel"]), config["trial"]
        self._error: BaseException | None = None
        trainer = _build_trainer(config, self._channel)
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to step(), which raises it where Tune sees it
            self._error = error

    def step(self) -> dict[str, Any]:
        """Train to the trial's next report.

        Raises:
            RuntimeError: If the Ray Train run ended instead.
        """
        reply = self._channel.request.remote(self._trial)
        while not ray.wait([reply], timeout=POLL_S)[0]:
            if not self._thread.is_alive():
                raise RuntimeError(f"the Ray Train run of {self._trial} ended early") from self._error
        report: dict[str, Any] = ray.get(reply)
        self._checkpoint = report["checkpoint"]
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save a pointer to the checkpoint of the last report; the weights lie where Ray Train's worker put them."""
        (Path(checkpoint_dir) / POINTER_FILE).write_text(json.dumps(self._checkpoint))

    def load_checkpoint(self, checkpoint: str | None) -> None:
        """Have the running workers load what a saved pointer names, under the configuration they have."""
        if checkpoint is None:
            return
        pointer = json.loads((Path(checkpoint) / POINTER_FILE).read_text())
        ray.get(self._channel.load.remote(self._trial, pointer))

    def cleanup(self) -> None:
        """Stop the worker loop and wait for Ray Train to take its processes down."""
        self._channel.stop.remote(self._trial)
        self._thread.join(timeout=STOP_TIMEOUT_S)


def _build_trainer(config: dict[str, Any], channel: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from adios_ray.training.loop import LoopConfig, train_loop

    checkpoints = Path(config["run_dir"]) / "checkpoints"
    # The channel knows where a trial goes on; Ray Train's own list may name checkpoints that are gone by now.
    (checkpoints / config["trial"] / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    loop = LoopConfig(
        trial=config["trial"],
        run_dir=config["run_dir"],
        channel=channel,
        threads=max(int(config["cpus_per_worker"]), 1),
    )
    gpus = config["gpus_per_worker"]
    return TorchTrainer(
        train_loop,
        train_loop_config=loop,
        scaling_config=ScalingConfig(
            num_workers=config["workers"],
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": config["cpus_per_worker"], **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=config["trial"],
            storage_path=str(checkpoints),
            failure_config=FailureConfig(max_failures=WORKER_RESTARTS),
        ),
    )

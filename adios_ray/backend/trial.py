"""A Tune trial around a live Ray Train run."""

import threading
from pathlib import Path
from typing import Any, TypedDict

import ray
from ray import tune

from adios_ray.backend.capacity import ControllerRecord
from adios_ray.backend.channel import find_channel
from adios_ray.backend.line import Reply
from adios_ray.backend.loop_config import LoopConfig
from adios_ray.backend.ray_private import checkpoint_list_file, controller_callback, lean_trainer_class
from adios_ray.checkpoints import Pointer
from adios_ray.files import check_writable
from adios_ray.retry import retry_in_run
from adios_ray.run_directory import RunDirectory

REPLY = "reply"
"""Under this name Tune carries a ``Reply`` to the scheduler, as it is."""
POINTER_FILE = "pointer.json"
POLL_S = 2.0
STOP_TIMEOUT_S = 30.0
WORKER_RESTARTS = 1
"""Of a worker group by Ray Train, before the whole Ray Train run is started again."""
RUN_RESTARTS = 1
"""Of a Ray Train run without a report in between, before the trial waits for a donor."""


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

    def setup(self, config: TrialSettings) -> None:
        """Start the Ray Train run in a thread."""
        self._channel, self._trial = find_channel(config["channel"]), config["trial"]
        self._settings, self._failures, self._missed = config, 0, True
        self._checkpoint: Pointer | None = None
        self._start()

    def _start(self) -> None:
        self._error: BaseException | None = None
        trainer = build_trainer(self._settings, self._channel)
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to step(), which says it
            self._error = error

    def step(self) -> dict[str, Any]:
        """Train to the trial's next report.

        A Ray Train run that ends before it is started again; one that ends again and again is answered for, so that the
        trial is replaced by a copy of a better one and the population goes on.
        """
        reply = self._channel.request.remote(self._trial, self._missed)
        while not ray.wait([reply], timeout=POLL_S)[0]:
            if not self._thread.is_alive():
                self._recover()
        answer: Reply = ray.get(reply)
        self._checkpoint, self._missed, self._failures = answer.checkpoint, False, 0
        return {REPLY: answer, "done": answer.report is not None and answer.report.done}  # Tune reads "done"

    def _recover(self) -> None:
        """Start the workers again, or report that they cannot go on."""
        reason, run_dir = _first_line(self._error), Path(self._settings["run_dir"])
        retry_in_run(run_dir, lambda: check_writable(run_dir), self._note)
        self._failures += 1
        if self._failures <= RUN_RESTARTS:
            self._note(f"its workers are started again after: {reason}")
        else:
            ray.get(self._channel.give_up.remote(self._trial, f"{RUN_RESTARTS + 1} attempts: {reason}"))
        self._start()

    def _note(self, text: str) -> None:
        ray.get(self._channel.note.remote(self._trial, text))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save a pointer to the checkpoint of the last report; the weights lie where Ray Train's worker put them."""
        (Path(checkpoint_dir) / POINTER_FILE).write_text(
            self._checkpoint.model_dump_json() if self._checkpoint else "null"
        )

    def load_checkpoint(self, checkpoint: str | None) -> None:
        """Nothing: where a trial goes on, after an exploit too, is known to the channel, which workers ask first."""

    def cleanup(self) -> None:
        """Stop the worker loop and wait for Ray Train to take its processes down."""
        self._channel.stop.remote(self._trial)
        self._thread.join(timeout=STOP_TIMEOUT_S)


def _first_line(error: BaseException | None) -> str:
    """What went wrong, in one line."""
    if error is None:
        return "the Ray Train run ended by itself"
    cause = error
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = failure
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def run_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs; it alone imports torch."""
    from adios_ray.backend.loop import train_loop

    train_loop(LoopConfig(**config))  # type: ignore[typeddict-item]  # Ray Train hands over what it was given


def build_trainer(config: TrialSettings, channel: Any) -> Any:
    """The Ray Train trainer of a trial; ``channel`` is handed to its workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    checkpoints = RunDirectory(Path(config["run_dir"])).checkpoints
    # The channel knows where a trial goes on; Ray Train's own list may name checkpoints that are gone by now.
    checkpoint_list_file(checkpoints / config["trial"]).unlink(missing_ok=True)
    loop = LoopConfig(
        trial=config["trial"],
        run_dir=config["run_dir"],
        channel=channel,
        threads=max(int(config["cpus_per_worker"]), 1),
    )
    gpus, record = config["gpus_per_worker"], ControllerRecord(Path(config["run_dir"]))
    # Workers read shards themselves, and the driver watches over the placement groups of all trials. One worker needs
    # no process group, so that its trial's actor need not import torch.
    return lean_trainer_class(process_group=config["workers"] > 1)(
        run_worker,
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
            callbacks=[controller_callback(record.started, record.finished)],
        ),
    )

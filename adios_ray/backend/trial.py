"""A Tune trial that keeps one Ray Train run alive over all its reports, loads and restarts."""

import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import ray
from ray import tune

from adios_ray.backend.capacity import own_groups
from adios_ray.backend.channel import find_channel, note
from adios_ray.backend.faults import ATTEMPTS, WAITS_S, Fault, fault_of
from adios_ray.backend.line import Reply
from adios_ray.backend.loop_config import LoopConfig, threads_of
from adios_ray.backend.node_checks import outside
from adios_ray.backend.output import OutputCopy, Unread, read_rest
from adios_ray.backend.preflight import node_names
from adios_ray.checkpoints import Pointer
from adios_ray.errors import AdiosRayError, NodeError, StorageError
from adios_ray.ray_private import lean_trainer_class
from adios_ray.retry import TIMEOUT_S, retry, retry_in_run
from adios_ray.run_storage import RunStorage

REPLY = "reply"
"""Key of Tune's result under which the ``Reply`` reaches the scheduler unchanged."""
POINTER_FILE = "pointer.json"
TUNE = "tune"
"""Folder of a run for Ray's own files."""
POLL_S = 2.0
"""Seconds between two checks, while a report is awaited, that the Ray Train run is alive."""
STOP_TIMEOUT_S = 30.0
"""Seconds that Ray Train has to take its processes down when the trial ends or is paused."""


class TrialSettings(TypedDict):
    """Settings that Tune hands to each trial; the training configuration comes through the channel.

    Attributes:
        trial: Name of the trial.
        run_dir: The run's directory, on storage that all nodes share, or its URI.
        channel: Name of the run's channel.
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


def full_name(settings: TrialSettings) -> str:
    """Return the name of a trial with its run's, by which Ray lists what belongs to it, e.g. "first/trial_00"."""
    return f"{Path(settings['run_dir']).name}/{settings['trial']}"


class LiveTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no type information
    """Starts one Ray Train run and keeps it: training, loading and changes of configuration happen in place."""

    def __repr__(self) -> str:
        """Return the name of run and trial, by which Ray lists the actor."""
        return full_name(self._settings)

    def setup(self, config: TrialSettings) -> None:
        """Start the Ray Train run in a thread.

        Raises:
            NodeError: If trials cannot train on this node; Tune starts the trial elsewhere.
        """
        # ``_missed``: a new actor cannot know whether its predecessor's last reply reached Tune, so it asks again.
        self._channel, self._trial = find_channel(config["channel"]), config["trial"]
        self._settings, self._failures, self._missed = config, 0, True
        self._run = RunStorage(config["run_dir"])
        self._checkpoint: Pointer | None = None
        _check_node(self._channel)
        ray.get(self._channel.start_actor.remote(self._trial))
        self._start()

    def _start(self) -> None:
        self._note_refused()  # nodes that are refused from now on may explain a failure, earlier ones do not
        # At its second failure a trial leaves the nodes where it failed, as far as others can hold it.
        self._avoided: list[str] = (
            ray.get(self._channel.avoided_nodes.remote(self._trial)) if self._failures > 1 else []
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def _find_labels(self) -> dict[str, str]:
        """Select the nodes on which workers may start; at the first call of a start, none that the trial avoids."""
        self._note_refused()
        # Once only: if Ray Train finds no place for a minute, other jobs may hold the other nodes for hours.
        avoided, self._avoided = self._avoided, []
        return outside([*self._refused, *avoided])

    def _note_refused(self) -> None:
        self._refused: list[str] = ray.get(self._channel.refused_nodes.remote())

    def _note_nodes(self, nodes: Sequence[str]) -> None:
        ray.get(self._channel.place.remote(self._trial, nodes))

    def _say(self, text: str) -> None:
        note(self._channel, self._trial, text, kind="wait")

    def _fit(self) -> None:
        try:
            retry(self._run.open, self._say)
            with own_groups(self._run, self._say):
                build_trainer(self._settings, self._channel, self._find_labels, self._note_nodes).fit()
        except BaseException as error:  # step() reads it once this thread has ended
            self._error = error

    def step(self) -> dict[str, Any]:
        """Train to the trial's next report.

        A Ray Train run that ends before the report is restarted. If it keeps failing, the reply names the fault, and
        the scheduler sets the trial aside.
        """
        # Asked once, outside the loop. The request waits in the channel while workers are restarted, and a new worker
        # group finds its "train" there; a second request would replace the first and raise ReplacedError.
        reply = self._channel.request.remote(self._trial, self._missed)
        while not ray.wait([reply], timeout=POLL_S)[0]:
            if self._thread.is_alive() or ray.wait([reply], timeout=0)[0]:  # the answer may have come meanwhile
                continue
            if fault := self._recover():
                return {REPLY: Reply(None, self._checkpoint, fault), "done": False}
        answer: Reply = ray.get(reply)
        self._checkpoint, self._missed, self._failures = answer.checkpoint, False, 0
        return {REPLY: answer, "done": answer.report is not None and answer.report.done}  # Tune reads "done"

    def _recover(self) -> Fault | None:
        """Restart the workers after a wait; after too many failures in a row, return the last one instead."""
        fault = fault_of(self._error)
        self._read_rest()
        try:
            # Wait for storage before counting the failure: an outage would use up the attempts of every trial.
            retry(self._run.open, self._say)
            retry_in_run(self._run.directory, self._run.check_writable, self._say)
        except StorageError as error:
            self._failures += 1
            return Fault(f"storage has failed for {TIMEOUT_S:.0f} s: {error.__cause__}", fault.details)
        except AdiosRayError as error:  # such as a cache directory of this node that cannot be written to
            fault = fault_of(error)
        if self._failures:  # for the second time in a row: a node may have lost its storage or data since its check
            ray.get(self._channel.check_nodes_again.remote())
        if len(ray.get(self._channel.refused_nodes.remote())) > len(self._refused):
            # Not counted: the workers may have been on that node, where they cannot be again.
            text = f"its workers failed ({fault.reason}) and are started elsewhere"
            note(self._channel, self._trial, text, fault.details, "restart")
            self._start()
            return None
        self._failures += 1
        ray.get(self._channel.workers_failed.remote(self._trial, node_names(), fault))
        if self._failures == ATTEMPTS:
            return fault._replace(reason=f"its workers failed {ATTEMPTS} times: {fault.reason}")
        wait_s = WAITS_S[self._failures - 1]
        when = f"again in {wait_s:g} s" if wait_s else "again"
        text = f"its workers failed ({fault.reason}) and are started {when}, attempt {self._failures + 1} of {ATTEMPTS}"
        note(self._channel, self._trial, text, fault.details, "restart")
        time.sleep(wait_s)
        self._start()
        return None

    def _read_rest(self) -> None:
        """Pass on what workers printed last that died before they could."""
        unread: dict[int, Unread] = ray.get(self._channel.take_unread.remote(self._trial))
        for rank, lines in read_rest(unread).items():
            ray.get(self._channel.printed.remote(self._trial, rank, lines))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save a pointer to the checkpoint of the last report; the weights stay where the worker wrote them."""
        if not self._failures:  # else storage may be what failed, and was waited for
            # Tune copies the pointer next, and would take an error of storage for one of this actor.
            retry_in_run(self._run.directory, self._run.check_writable, self._say)
        (Path(checkpoint_dir) / POINTER_FILE).write_text(
            self._checkpoint.model_dump_json() if self._checkpoint else "null"
        )

    def load_checkpoint(self, checkpoint: str | None) -> None:
        """Do nothing: workers ask the channel where to resume, which also knows of exploits since the checkpoint."""

    def cleanup(self) -> None:
        """Stop the worker loop and wait for Ray Train to take its processes down."""
        # Without waiting for the channel, which may have died with its driver. Joining first, before Tune kills this
        # actor, lets Ray Train remove its placement group.
        self._channel.stop.remote(self._trial)
        self._thread.join(timeout=STOP_TIMEOUT_S)
        self._run.close()


def run_worker(config: dict[str, Any]) -> None:
    """Run the worker loop. Torch is imported only here, in the worker's process."""
    from ray.train import get_context

    settings = LoopConfig(**config)  # type: ignore[typeddict-item]  # Ray Train hands over what it was given
    _check_node(settings["channel"])
    rank, context = get_context().get_world_rank(), ray.get_runtime_context()
    node, process = context.get_node_id(), context.get_worker_id()

    def send(lines: str, positions: Mapping[str, int]) -> None:
        settings["channel"].printed.remote(settings["trial"], rank, lines, Unread(node, process, positions))

    try:
        with OutputCopy(send):
            from adios_ray.backend.loop import train_loop  # here, because imports may print, or crash

            train_loop(settings)
    except Exception as error:
        error.add_note(traceback.format_exc().rstrip())  # Ray Train passes on the error without its traceback
        raise


def _check_node(channel: Any) -> None:
    """Make sure that trials can train on this node; wait while it is checked.

    Raises:
        NodeError: If they cannot, with the reason.
    """
    if problem := ray.get(channel.check_node.remote(ray.get_runtime_context().get_node_id())):
        raise NodeError(problem)


def build_trainer(
    config: TrialSettings,
    channel: Any,
    find_labels: Callable[[], Mapping[str, str]],
    on_placed: Callable[[Sequence[str]], None],
) -> Any:
    """Build the Ray Train trainer of a trial, which only an actor can run.

    It ends with the first failure of a worker; the trial starts another one, and says why.

    Args:
        config: Settings of the trial.
        channel: Handle of the channel, which the workers receive.
        find_labels: Selects the nodes on which workers may be placed.
        on_placed: Called with the IDs of the nodes on which workers start.
    """
    from ray.train import RunConfig, ScalingConfig

    name, gpus = full_name(config), config["gpus_per_worker"]
    loop = LoopConfig(
        trial=config["trial"],
        run_dir=config["run_dir"],
        channel=channel,
        threads=threads_of(config["cpus_per_worker"]),
        gpus=gpus,
    )
    # A single worker needs no process group, and without one the trial's actor need not import torch.
    return lean_trainer_class(name, config["workers"] > 1, find_labels, on_placed)(
        run_worker,
        train_loop_config=loop,
        scaling_config=ScalingConfig(
            num_workers=config["workers"],
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": config["cpus_per_worker"], **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(name=name, storage_path=str(RunStorage(config["run_dir"]).directory / TUNE)),
    )

"""All undocumented parts of Ray that the package uses, without any logic of the package's own.

``tests/test_ray_private.py`` fails where Ray changes one of these names. Each is here because no public one exists:

- ``ray._private.state`` and the tables of ``ray.core.generated.gcs_pb2``: which actor created a placement group, and
  whether it is dead. ``ray.util.placement_group_table`` does not name the creator; ``ray.util.state`` names only its
  job, and both that and its ``get_actor`` need the dashboard, which a cluster may run without.
- ``TrainController`` of ``ray.train.v2._internal``, and the method of the trainers that starts it as an actor: that is
  one more process for each trial, where the trial's own actor has nothing to do but wait. No setting changes it.
- ``DataParallelTrainer`` of ``ray.train.v2.api``: a trainer that does not import torch. ``TorchTrainer`` does, and the
  ``DataParallelTrainer`` of ``ray.train.data_parallel_trainer`` belongs to the first version of Ray Train.
- ``DatasetsCallback`` and ``PlacementGroupCleanerCallback`` of Ray Train: both start a process for every trainer, and
  no setting leaves them out.
- ``WorkerGroup`` of Ray Train's ``worker_group``: it leaves workers behind that fail last in their start, and does not
  tell the nodes of those that do.
- ``RayTrainWorker`` and ``placement_group`` of the same module, and ``to_placement_group`` of Tune's resource
  requests: Ray gives these actors and placement groups no names, and no setting does.
- ``SynchronizationActor`` of the same module, and the function that kills it: each worker group starts a process where
  workers wait for each other in ``ray.train.report``, which none here calls, and no setting leaves it out.
- ``FailurePolicy`` and ``ControllerCallback`` of Ray Train: its own policy starts workers that die in their start again
  without end and without a word, and a selector of nodes that is fixed when a training starts would keep it from nodes
  that have been mended since.
- The path of the file that names the running cluster: ``ray.init`` reads it, but reports the address only once it has
  connected, for which it waits minutes.
- The IDs of this machine's nodes, and the table of a cluster's: ``ray.init`` waits a minute for a node that is in both,
  and then does not say what is missing.
- The call that ``ray.init`` makes first, and Ray's channel for it: ``ray.init`` waits minutes for an answer, and fills
  the terminal for 20 s if the cluster refuses this process's token. Also the function by which ``ray.init("auto")``
  begins to use the token that is stored for the user.
- The file into which Tune appends the errors of a trial on the driver's node: the public ``get_error`` looks for it in
  the storage, into which Tune copies it with its snapshots.
- ``JOB_CONFIG_VARIABLE``, the environment variable that a Ray job's entry point has and no other process: the public
  ``ray.get_runtime_context`` knows the job only once it is connected.
- The key and namespace of the control store under which Ray keeps what a job reserves for its entry point: the public
  client of jobs needs the dashboard and its address.
- ``LOG_MARKERS``, with which lines begin that Ray writes for itself into the files of what workers print.
- ``_global_node`` of ``ray._private.worker``: whether ``ray.init`` has started the cluster, which it does not tell.
- ``print_to_stdstream`` of ``ray._private.worker``: prints messages of nodes into the driver's terminal, whatever
  ``log_to_driver`` is; among them the advice that many processes are running, which is what a population is.
- The status that an autoscaler leaves in the control store, and the names that it gives to nodes of a cluster which
  nothing scales: no public function tells whether nodes can be added.
- ``HEAD_NODE_RESOURCE_NAME``, a resource that the head node alone has: no public option places a task there.
- The coordinator of Ray's libraries, which replaces the cluster's only request to the autoscaler by the sum of those
  that it has received; one made by the public ``ray.autoscaler.sdk.request_resources`` would soon be replaced too.
- ``get_cluster_status`` of Ray's client of the control store: no public function tells that an autoscaler cannot
  fulfill the cluster's request.
- ``tag_callbacks``, by which Tune counts the callbacks of known loggers for Ray's statistics: to know them, it imports
  wandb, MLflow, Comet and Aim where they are installed. That costs each run a second or more, and wandb leaves two
  temporary directories behind when the driver is killed. No setting leaves it out.
- ``FixedScalingPolicy`` of Ray Train: it sends that coordinator requests of its own, which outlive a killed trial by
  minutes, and no setting leaves them out.
- Two environment variables, ``POLL_INTERVAL_VARIABLE`` and ``PREEMPTION_WATCHER_VARIABLE``: no argument of the trainers
  and no documented variable does what they do.

Ray Data, Ray Train and Tune are imported inside the functions that need them, because the imports take a second.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import worker as ray_worker
from ray._private.authentication.authentication_token_setup import (
    AUTH_MODE_ENV_VAR,
    AuthenticationTokenLoader,
    _enable_token_auth,
)
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import (
    DEBUG_AUTOSCALING_STATUS,
    KV_NAMESPACE_JOB,
    LOG_PREFIX_ACTOR_NAME,
    LOG_PREFIX_JOB_ID,
    LOG_PREFIX_TASK_NAME,
)
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import find_node_ids
from ray._private.state import state as cluster_state
from ray._private.utils import get_ray_address_file
from ray._raylet import RAY_INTERNAL_NAMESPACE_PREFIX  # type: ignore[attr-defined]  # a compiled module
from ray.autoscaler._private.util import format_readonly_node_type
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import gcs_service_pb2_grpc
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.core.generated.gcs_pb2 import ActorTableData, GcsNodeInfo, PlacementGroupTableData
from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest, GetClusterIdRequest
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table

POLL_INTERVAL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Environment variable: seconds between two polls of the workers by Ray Train."""
JOB_CONFIG_VARIABLE: str = RAY_JOB_CONFIG_JSON_ENV_VAR
"""Environment variable: settings of the Ray job whose entry point this process is."""
LOG_MARKERS = (LOG_PREFIX_ACTOR_NAME, LOG_PREFIX_JOB_ID, LOG_PREFIX_TASK_NAME)
"""Beginnings of lines that Ray writes for itself into the files of what workers print."""
PROCESS_ADVICE = "worker processes have been started on node"
"""Occurs in a node's advice that many processes are running."""
PREEMPTION_WATCHER_VARIABLE = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Environment variable: 0 keeps Ray Train from starting an actor that watches for nodes about to be preempted."""


def cluster_started_here() -> bool:
    """Tell whether this process has started the cluster that it is connected to, whose nodes then have its settings."""
    node = ray_worker._global_node
    return node is not None and bool(node.is_head())


def silence_process_advice() -> None:
    """Keep the advice that many processes are running out of this driver's terminal; other messages are printed."""
    printed = ray_worker.print_to_stdstream

    def print_others(data: dict[str, Any], **options: Any) -> None:
        if not any(PROCESS_ADVICE in line for line in data["lines"]):
            printed(data, **options)

    ray_worker.print_to_stdstream = print_others


def fit(tuner: Any) -> None:
    """Run a ``ray.tune.Tuner``, whose callbacks are not counted."""
    from ray.air._internal import usage

    count = usage.tag_callbacks
    usage.tag_callbacks = lambda callbacks: False
    try:
        tuner.fit()
    finally:
        usage.tag_callbacks = count


def ask_for_cluster(address: str, timeout_s: float) -> grpc.StatusCode:
    """Ask the control store of a cluster for the cluster's ID, and return the status of the answer."""
    with init_grpc_channel(address) as channel:
        try:
            gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            status: grpc.StatusCode = error.code()
            return status
    return grpc.StatusCode.OK


def nodes_here() -> set[str]:
    """Return the IDs of the nodes, of any cluster, whose processes run on this machine."""
    return set(find_node_ids())


def is_alive_in(address: str, nodes: Iterable[str], timeout_s: float) -> bool:
    """Tell whether a cluster lists one of some nodes as alive; not if it does not answer in time."""
    selectors = [GetAllNodeInfoRequest.NodeSelector(node_id=bytes.fromhex(node)) for node in nodes]
    request = GetAllNodeInfoRequest(node_selectors=selectors, state_filter=GcsNodeInfo.ALIVE)
    with init_grpc_channel(address) as channel, suppress(grpc.RpcError):
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        return len(stub.GetAllNodeInfo(request, timeout=timeout_s).node_info_list) > 0
    return False


def last_error(trial: Any) -> str:
    """Return the text of the last error with which Tune lost the actor of one of its trials; empty if there is none."""
    try:
        errors = Path(trial.error_file or "").read_text()
    except OSError:
        return ""
    return errors.rpartition("Failure # ")[2].partition("\n")[2]


def use_stored_token() -> bool:
    """Begin to authenticate with the user's token, if there is one; return whether there is.

    It is that of ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``. A mode that the user has set is
    kept.
    """
    stored: bool = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    if AUTH_MODE_ENV_VAR in os.environ or not stored:
        return False
    _enable_token_auth()
    return True


def reported_autoscaler() -> bool | None:
    """Tell whether an autoscaler adds nodes to the cluster; a monitor that only reports runs in every other one.

    On KubeRay the second version of the autoscaler runs where nothing is to be scaled, too, and counts as one that adds
    nodes: it does not say which it is.

    Returns:
        None while neither has reported a node, in a cluster that has just started.
    """
    if is_autoscaler_v2(fetch_from_server=True):
        return True
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    if status is None:
        return None
    # Not its active nodes: one that reports nothing yet is none, such as a head without resources.
    types = json.loads(status).get("autoscaler_report", {}).get("node_type_mapping") or {}
    if not types:
        return None
    # Without a configuration, each node is the only one of its type, which is named by its ID.
    return not {format_readonly_node_type(node["NodeID"]) for node in ray.nodes()}.issuperset(types.values())


class EntryPoint(NamedTuple):
    """Resources that a Ray job reserves for its entry point, and the ID of the node where it runs."""

    node: str = ""
    cpus: float = 0.0
    gpus: float = 0.0


def entry_point(job: str) -> EntryPoint:
    """Look up the resources of a Ray job's entry point; none if the cluster does not know the job."""
    stored = _internal_kv_get(f"{RAY_INTERNAL_NAMESPACE_PREFIX}job_info_{job}", namespace=KV_NAMESPACE_JOB)
    info = json.loads(stored or "{}")
    return EntryPoint(
        info.get("driver_node_id") or "", info.get("entrypoint_num_cpus") or 0.0, info.get("entrypoint_num_gpus") or 0.0
    )


def find_or_start_coordinator() -> Any:
    """Find the detached actor that adds up what is requested of the cluster's autoscaler, or start it on the head node.

    Ray starts it on the node of the caller, which an autoscaler then could not stop after the run.
    """

    def on_head() -> Any:  # local, so that the head need not have this package
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        return get_or_create_autoscaling_coordinator()

    task = ray.remote(num_cpus=0, resources={HEAD_NODE_RESOURCE_NAME: 0.001})(on_head)
    return ray.get(task.remote())


def unmet_bundles() -> list[dict[str, float]]:
    """List what the cluster's request asks for, if an autoscaler says that it can never fulfill it.

    The first version of the autoscaler starts as many nodes as it may, and says nothing.
    """
    with suppress(RayError):
        reply = GetClusterStatusReply.FromString(ray_worker.global_worker.gcs_client.get_cluster_status())
        requests = (
            request
            for constraint in reply.autoscaling_state.infeasible_cluster_resource_constraints
            for request in constraint.resource_requests
        )
        return [dict(each.request.resources_bundle) for each in requests for _ in range(each.count)]
    return []


class MadeGroup(NamedTuple):
    """A placement group of the cluster, of any job.

    Attributes:
        id: The group's ID.
        maker: ID of the actor that created it, in hexadecimal; the nil ID if a driver did.
        placed: Whether its resources are reserved.
        removed: Whether it was removed; Ray lists such groups for a while.
    """

    id: ray.PlacementGroupID
    maker: str
    placed: bool
    removed: bool


def placement_groups() -> list[MadeGroup]:
    """List the placement groups of all jobs in the cluster."""
    rows = cluster_state._connect_and_get_accessor().get_placement_group_table()
    return [
        MadeGroup(
            ray.PlacementGroupID(table.placement_group_id),
            ray.ActorID(table.creator_actor_id).hex(),
            placed=table.state == PlacementGroupTableData.CREATED,
            removed=table.state == PlacementGroupTableData.REMOVED,
        )
        for table in map(PlacementGroupTableData.FromString, rows)
    ]


def is_dead(actor: str) -> bool:
    """Tell whether Ray records an actor as dead; an actor that it does not know is not."""
    row = cluster_state._connect_and_get_accessor().get_actor_info(ray.ActorID.from_hex(actor))
    return row is not None and bool(ActorTableData.FromString(row).state == ActorTableData.DEAD)


def named_resources(bundle: Mapping[str, float], name: str, labels: Callable[[], Mapping[str, str]]) -> Any:
    """Request resources for a Tune trial, in placement groups that carry a name.

    Args:
        bundle: The resources.
        name: The name.
        labels: Returns, as each group is created, a selector for the labels of nodes; an empty one selects all nodes.
    """
    from ray.tune import PlacementGroupFactory

    class NamedResources(PlacementGroupFactory):  # type: ignore[misc]  # Ray ships no type information
        def to_placement_group(self) -> PlacementGroup:
            return _named_group(**self._bound.arguments, bundle_label_selector=[dict(labels())])

    return NamedResources([dict(bundle)], name=name)


def _named_group(*args: Any, name: str, **options: Any) -> PlacementGroup:
    """Create a placement group whose name begins with ``name``."""
    # Ray refuses a name that another group has, and a trial's last group may still exist when it gets its next one.
    return placement_group(*args, name=f"{name}/{secrets.token_hex(4)}", **options)


class _NoActor:
    """Stands in for a class of actors, and starts none."""

    @staticmethod
    def options(**_: Any) -> type["_NoActor"]:
        return _NoActor

    @staticmethod
    def remote(**_: Any) -> str:
        return "no actor"


def lean_trainer_class(
    name: str,
    process_group: bool,
    find_labels: Callable[[], Mapping[str, str]] = dict[str, str],
    on_placed: Callable[[Sequence[str]], None] = lambda nodes: None,
) -> Any:
    """Build a trainer class that starts no process but its workers, requests no nodes, and ends with the first failure.

    Ray's own start an actor each to control the workers, to split Ray Data sets, to clean up placement groups, and to
    let workers wait for each other. Here, workers read shards themselves, the driver removes orphaned groups of all
    trials, and control runs in the calling process, which has to be an actor's. It waits for its placement group, which
    an autoscaler sees, however long that takes.

    Args:
        name: The ``repr_name`` of the workers; the names of placement groups begin with it.
        process_group: Whether the workers form a torch process group; torch is imported here only in that case.
        find_labels: Selects the nodes on which workers may be placed; asked again each time that they have not found
            their resources for a minute.
        on_placed: Called with the IDs of the nodes that have the workers' resources, before workers start there.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    if process_group:
        from ray.train.torch import TorchTrainer as Base
    else:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer as Base

    worker_group.placement_group = partial(_named_group, name=name)
    worker_group.SynchronizationActor = _NoActor
    state._shutdown_sync_actor = lambda actor: None

    class Policy(FixedScalingPolicy):  # type: ignore[misc]  # Ray ships no type information
        def after_controller_start(self, train_run_context: Any) -> None:
            pass  # without the client that it would make here, there is nothing to cancel at the end either

        def _maybe_send_resource_request(self) -> None:
            pass

    class NoRetries(FailurePolicy):  # type: ignore[misc]  # Ray ships no type information
        # Ray's own repeats a start in which a worker dies without end, and says so nowhere.
        def make_decision(self, training_failed_error: Exception) -> Any:
            failure = getattr(training_failed_error, "controller_failure", None)
            waits = isinstance(failure, WorkerGroupStartupTimeoutError)
            return FailureDecision.RETRY if waits else FailureDecision.RAISE

    class Labels(ControllerCallback):  # type: ignore[misc]  # Ray ships no type information
        def on_controller_start_worker_group(self, **_: Any) -> dict[str, str]:
            return dict(find_labels())

    class Workers(WorkerGroup):  # type: ignore[misc]  # Ray ships no type information
        # Derived under the same name, which is what Ray calls the actors' class.
        _worker_cls = type(RayTrainWorker.__name__, (RayTrainWorker,), {"__repr__": lambda self: name})

        def _start(self) -> None:
            try:
                super()._start()
            except Exception:
                # Ray leaves workers that fail last in their start, and their resources, for which the next would wait.
                if self.has_started():
                    self._worker_group_state.shutdown()
                raise

        def _create_workers(
            self, num_workers: int, placement_group: PlacementGroup, *resources: Any, **options: Any
        ) -> Any:
            table = placement_group_table(placement_group)
            on_placed(sorted(set(table["bundles_to_node_id"].values())))
            return super()._create_workers(num_workers, placement_group, *resources, **options)

    class Controller(TrainController):  # type: ignore[misc]  # Ray ships no type information
        worker_group_cls = Workers

    class LeanTrainer(Base):  # type: ignore[misc]  # Ray ships no type information
        def _initialize_and_run_controller(self, *, callbacks: list[Any], **arguments: Any) -> Any:
            left_out = DatasetsCallback | PlacementGroupCleanerCallback
            kept = [each for each in callbacks if not isinstance(each, left_out)]
            policies = {
                "scaling_policy": Policy(self.scaling_config),
                "failure_policy": NoRetries(self.run_config.failure_config),
            }
            controller = Controller(callbacks=[*kept, Labels()], **arguments | policies)
            asyncio.run(controller.run())
            return controller.get_result()

    return LeanTrainer


def running_cluster_address_file() -> Path:
    """Name the file in which the last cluster on this machine stored its address, host and port."""
    return Path(get_ray_address_file(None))

"""Ray's undocumented names that the package uses still exist and behave as expected.

Each test checks names of Ray's, so that a version of Ray that changes one fails here and not during a training.
"""

import asyncio
import dataclasses
import inspect
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray
from ray._common.utils import get_ray_address_file
from ray._private import worker as ray_worker
from ray._private.state import GlobalStateAccessor
from ray._private.state import state as cluster_state
from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, RunConfig, ScalingConfig, WorkerGroupError
from ray.train._internal.storage import StorageContext
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client, create_scaling_policy
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune import tune as tune_module
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup
from waiting import TIMEOUT_S

from adios_ray import ray_private
from adios_ray.backend.faults import fault_of
from adios_ray.backend.node_checks import outside
from adios_ray.ray_private import (
    cluster_started_here,
    is_alive_in,
    is_dead,
    last_error,
    lean_trainer_class,
    named_resources,
    nodes_here,
    placement_groups,
    reported_autoscaler,
    running_cluster_address_file,
    silence_process_advice,
)

ACTOR, GROUP = "ab" * 16, "cd" * 18
LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)


def parameters(function: Callable[..., Any]) -> list[str]:
    """List the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def answer(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Make Ray's tables return these answers, without a cluster."""
    accessor = SimpleNamespace(**answers)
    monkeypatch.setattr(ray_private, "cluster_state", SimpleNamespace(_connect_and_get_accessor=lambda: accessor))


def row(state: int) -> bytes:
    """Serialize a row of the table of placement groups."""
    ids = {"placement_group_id": bytes.fromhex(GROUP), "creator_actor_id": bytes.fromhex(ACTOR)}
    return bytes(PlacementGroupTableData(state=state, **ids).SerializeToString())


def test_the_tables_are_reached_as_before() -> None:
    assert parameters(cluster_state._connect_and_get_accessor) == []
    assert parameters(GlobalStateAccessor.get_placement_group_table) == ["self"]
    assert parameters(GlobalStateAccessor.get_actor_info) == ["self", "actor_id"]


def test_the_tables_have_the_columns_and_states_that_are_read() -> None:
    columns = PlacementGroupTableData.DESCRIPTOR.fields_by_name
    for name in ("placement_group_id", "creator_actor_id"):
        assert columns[name].type == columns[name].TYPE_BYTES
    states = {"PENDING": 0, "PREPARED": 1, "CREATED": 2, "REMOVED": 3, "RESCHEDULING": 4}
    assert dict(PlacementGroupTableData.PlacementGroupState.items()) == states
    assert columns["state"].enum_type is PlacementGroupTableData.PlacementGroupState.DESCRIPTOR
    states = {"DEPENDENCIES_UNREADY": 0, "PENDING_CREATION": 1, "ALIVE": 2, "RESTARTING": 3, "DEAD": 4}
    assert dict(ActorTableData.ActorState.items()) == states
    column = ActorTableData.DESCRIPTOR.fields_by_name["state"]
    assert column.enum_type is ActorTableData.ActorState.DESCRIPTOR


@pytest.mark.parametrize("name", ["PENDING", "PREPARED", "CREATED", "REMOVED", "RESCHEDULING"])
def test_placement_groups_are_listed_with_maker_and_state(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answer(monkeypatch, get_placement_group_table=lambda: [row(getattr(PlacementGroupTableData, name))])
    (group,) = placement_groups()
    assert (group.id.hex(), group.maker) == (GROUP, ACTOR)
    assert PlacementGroup(group.id).id == group.id
    assert (group.placed, group.removed) == (name == "CREATED", name == "REMOVED")


@pytest.mark.parametrize("name", ["DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD"])
def test_an_actor_is_dead_if_its_row_records_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = {ray.ActorID.from_hex(ACTOR): ActorTableData(state=getattr(ActorTableData, name)).SerializeToString()}
    answer(monkeypatch, get_actor_info=rows.get)
    assert is_dead(ACTOR) == (name == "DEAD")
    assert not is_dead("ef" * 16)


@pytest.mark.ray
def test_a_running_cluster_answers_in_these_forms(ray_cluster: None) -> None:
    group = ray.util.placement_group([{"CPU": 0.001}])
    assert group.wait(TIMEOUT_S)
    (mine,) = [each for each in placement_groups() if each.id == group.id]
    assert mine.placed and not mine.removed and ray.ActorID.from_hex(mine.maker).is_nil()
    assert not is_dead(ACTOR)
    ray.util.remove_placement_group(group)
    context = ray.get_runtime_context()
    assert context.get_node_id() in nodes_here()
    assert is_alive_in(context.gcs_address, nodes_here(), TIMEOUT_S)
    assert not is_alive_in(context.gcs_address, ["ab" * 28], TIMEOUT_S)
    assert not is_alive_in("127.0.0.1:1", nodes_here(), 0.1)


@pytest.mark.ray
def test_a_process_knows_whether_it_has_started_its_cluster(ray_cluster: None) -> None:
    joined = (
        "import ray; from adios_ray.ray_private import cluster_started_here; "
        f"ray.init({ray.get_runtime_context().gcs_address!r}, log_to_driver=False); print(cluster_started_here())"
    )
    printed = subprocess.check_output([sys.executable, "-c", joined], text=True, timeout=TIMEOUT_S)
    assert cluster_started_here() and printed.split()[-1] == "False"


@pytest.mark.ray  # Tune writes into the cluster's session
def test_the_last_error_of_a_trial_is_where_tune_writes_it(ray_cluster: None, tmp_path: Path) -> None:
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="tune", trial_dir_name="trial_00")
    trial = Trial("trial", stub=True, storage=storage)
    assert last_error(trial) == ""
    trial.init_local_path()
    for error in (RayTaskError("setup", "Traceback\nOSError: away", OSError()), ActorDiedError()):
        trial.handle_error(error)
        assert last_error(trial) == f"{error}\n"


def trainer(trainer_class: Any, storage: Path | str = "/none", scaling: ScalingConfig | None = None) -> Any:
    """Build a trainer without starting it, of one worker unless told."""
    run = RunConfig(name="trial", storage_path=str(storage))
    scaling = scaling or ScalingConfig(num_workers=1)
    return trainer_class(print, train_loop_config={}, scaling_config=scaling, run_config=run)


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Provide ``lean_trainer_class`` for a trial, whose changes of Ray Train last until the end of the test."""
    for owner, name in (
        (worker_group, "placement_group"),
        (worker_group, "SynchronizationActor"),
        (state, "_shutdown_sync_actor"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", lambda function: function)  # needs a cluster
    monkeypatch.setenv(constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR, "0")
    return partial(lean_trainer_class, "run/trial_00")


class Group:
    """Stands for a worker group, which polls give some states in turn."""

    polls: ClassVar[list[WorkerStatus]] = []
    calls: ClassVar[list[str]] = []
    callbacks: ClassVar[list[type]] = []

    @classmethod
    def create(cls, *, callbacks: list[Any], **options: Any) -> "Group":
        """Start none."""
        cls.calls.append(f"start in process {os.getpid()}")
        cls.callbacks[:] = [type(each) for each in callbacks]
        return cls()

    def poll_status(self, timeout: float) -> WorkerGroupPollStatus:
        """Return the next state."""
        self.calls.append("poll")
        return WorkerGroupPollStatus({0: self.polls.pop(0)})

    def get_worker_group_state(self) -> None:
        """Ray's policy of a fixed size ignores it."""

    def shutdown(self) -> None:
        """Stop none."""
        self.calls.append("stop")


@pytest.mark.slow
@pytest.mark.parametrize("base", [DataParallelTrainer, TorchTrainer])
@pytest.mark.parametrize("error", [None, ValueError("no such file")])
def test_a_lean_trainer_controls_its_workers_from_the_calling_process(
    error: Exception | None, base: Any, lean: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer_class = lean(process_group=base is TorchTrainer)
    assert issubclass(trainer_class, DataParallelTrainer)
    assert issubclass(trainer_class, TorchTrainer) == (base is TorchTrainer)
    monkeypatch.setattr(worker_group.WorkerGroup, "create", Group.create)
    Group.polls[:] = [WorkerStatus(running=True), WorkerStatus(running=False, error=error)]
    Group.calls.clear()
    trained = trainer(trainer_class, tmp_path)
    if error is None:
        assert trained.fit().error is None
    else:
        with pytest.raises(WorkerGroupError) as raised:
            trained.fit()
        assert raised.value.worker_failures == {0: error}
    assert Group.calls == [f"start in process {os.getpid()}", "poll", "poll", "stop"]
    usual = [type(each) for each in trainer(base)._create_default_callbacks()]
    assert all(usual.count(each) == 1 for each in LEFT_OUT)
    assert not set(LEFT_OUT) & set(Group.callbacks) and BackendSetupCallback in Group.callbacks


@pytest.mark.parametrize("started", [False, True])
def test_workers_that_fail_last_in_their_start_are_ended(
    started: bool, lean: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended: list[str] = []

    def start(group: Any, builder: Any) -> None:
        if started:
            group._worker_group_state = SimpleNamespace(shutdown=lambda: ended.append("workers"))
        raise ArithmeticError("a worker has died")

    monkeypatch.setattr(worker_group.WorkerGroup, "_start_impl", start)
    monkeypatch.setattr(state.WorkerGroupStateBuilder, "shutdown", lambda self: ended.append("what was started"))
    with pytest.raises(ControllerError, match="a worker has died"):
        trainer(lean(process_group=False), tmp_path).fit()
    assert ended == (["workers"] if started else ["what was started"])


def test_a_worker_that_dies_in_its_start_ends_the_training_with_the_reason(
    lean: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts: list[Any] = []

    def create(**options: Any) -> Group:
        starts.append(options)
        raise WorkerGroupStartupFailedError("a worker has died") from ActorDiedError()

    monkeypatch.setattr(worker_group.WorkerGroup, "create", create)
    with pytest.raises(ControllerError) as raised:
        trainer(lean(process_group=False), tmp_path).fit()
    assert len(starts) == 1 and fault_of(raised.value).reason.startswith("The actor died unexpectedly")


def test_workers_wait_for_their_resources_on_the_nodes_that_can_train_now(
    lean: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    selectors: list[Any] = []

    def create(*, worker_group_context: Any, **options: Any) -> Group:
        selectors.append(worker_group_context.label_selector)
        if len(selectors) < 4:
            raise WorkerGroupStartupTimeoutError(1)
        return Group.create(**options)

    monkeypatch.setattr(worker_group.WorkerGroup, "create", create)
    Group.polls[:] = [WorkerStatus(running=False)]
    found = iter([outside(["a"]), outside(["a", "b"]), {}, {}])
    assert trainer(lean(process_group=False, find_labels=lambda: next(found)), tmp_path).fit().error is None
    assert selectors == [[outside(["a"])], [outside(["a", "b"])], None, None]


def test_the_advice_about_processes_is_not_printed_and_everything_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(ray_worker, "print_to_stdstream", lambda data, ignore_prefix: printed.extend(data["lines"]))
    silence_process_advice()
    advice = "WARNING: 8 PYTHON worker processes have been started on node: ab with address: 127.0.0.1"
    messages = iter([advice, "the node is low on memory"])

    class Subscriber:
        def subscribe(self) -> None:
            pass

        def poll(self) -> tuple[None, dict[str, Any]]:
            text = next(messages, None)
            if text is None:
                raise ConnectionError
            return None, {"job_id": None, "error_message": text}

    job = SimpleNamespace(binary=lambda: b"job")
    driver = SimpleNamespace(gcs_error_subscriber=Subscriber(), current_job_id=job)
    ray_worker.listen_error_messages(driver, threading.Event())
    assert printed == ["the node is low on memory"]
    raylet = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    with raylet.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
        assert program.find(b"worker processes have been started on node") > 0


@pytest.mark.parametrize(
    ("kinds", "runs"),
    [(None, None), ([], None), (["node_" + "ab" * 28], False), (["head"], True), (["head", "gpu"], True)],
)
def test_an_autoscaler_is_known_by_the_types_of_nodes_that_it_reports(
    monkeypatch: pytest.MonkeyPatch, kinds: list[str] | None, runs: bool | None
) -> None:
    report = {"autoscaler_report": {"node_type_mapping": dict(enumerate(kinds or [])) or None}}
    monkeypatch.setattr(ray_private, "is_autoscaler_v2", lambda fetch_from_server: False)
    monkeypatch.setattr(ray_private, "_internal_kv_get", lambda key: None if kinds is None else json.dumps(report))
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "ab" * 28}])
    assert reported_autoscaler() == runs
    assert "node_type_mapping" in {field.name for field in dataclasses.fields(AutoscalerSummary)}


class StartedError(Exception):
    """Raised in place of starting something in the cluster, with what would have been started."""


def raise_started(*args: Any, **options: Any) -> None:
    """Stand for a function of Ray's that starts something."""
    raise StartedError(args, options)


def test_ray_train_asks_for_its_workers_and_requests_no_nodes(
    lean: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests: list[str] = []

    def remember(**request: Any) -> None:
        requests.append(request["requester_id"])

    coordinator = SimpleNamespace(
        request_resources=SimpleNamespace(remote=remember), cancel_request=SimpleNamespace(remote=remember)
    )
    monkeypatch.setattr(autoscaling_coordinator_client, "get_or_create_autoscaling_coordinator", lambda: coordinator)
    monkeypatch.setattr(ray, "get", lambda reference, timeout: reference)

    def live(policy: Any) -> list[Any]:
        policy.after_controller_start(trainer(DataParallelTrainer).train_run_context)
        decisions = [
            policy.make_decision_for_non_running_worker_group(),
            policy.make_decision_for_running_worker_group(None, None),
        ]
        asyncio.run(policy.before_controller_shutdown())
        policy.before_controller_abort()
        return decisions

    two, policies = ScalingConfig(num_workers=2), list[Any]()

    async def run(controller: Any) -> None:
        policies.append(controller._scaling_policy)

    decisions = live(create_scaling_policy(two))
    assert len(requests) == 3 and len(set(requests)) == 1  # one request, and two withdrawals
    monkeypatch.setattr(TrainController, "run", run)
    monkeypatch.setattr(TrainController, "get_result", lambda controller: SimpleNamespace(error=None))
    trainer(lean(process_group=False), tmp_path, two).fit()
    assert live(policies[0]) == decisions and len(requests) == 3


def test_ray_train_starts_workers_and_groups_that_carry_the_name(
    lean: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    groups: list[dict[str, Any]] = []
    made: list[Any] = []

    def start(group: Any, builder: Any) -> None:
        made.append(group)
        group._create_placement_group(ScalingConfig(), group._worker_group_context)
        raise ArithmeticError

    two = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5})
    monkeypatch.setattr(ray_private, "placement_group", lambda **options: groups.append(options))
    monkeypatch.setattr(worker_group.WorkerGroup, "_start_impl", start)
    for _ in range(2):
        with pytest.raises(ControllerError):
            trainer(lean(process_group=False), tmp_path, two).fit()
    names = [group.pop("name") for group in groups]
    assert groups[0]["bundles"] == [{"CPU": 0.5}] * 2
    assert len(set(names)) == 2 and all(name.startswith("run/trial_00/") for name in names)
    worker = made[0]._worker_cls
    assert issubclass(worker, RayTrainWorker) and worker.__name__ == "RayTrainWorker"
    assert repr(worker()) == "run/trial_00"


def test_a_worker_group_starts_no_process_beside_its_workers(
    lean: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lean(process_group=False)
    actor = worker_group.SynchronizationActor.options(label_selector={"node": "here"}).remote(timeout_s=None)
    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    builder, handle = state.WorkerGroupStateBuilder(), SimpleNamespace(shutdown=lambda: None)
    builder.with_placement_group_handle(handle).with_workers([]).with_sync_actor(actor)
    builder.build().shutdown()
    builder.shutdown()
    assert killed == [] and not isinstance(actor, ray.actor.ActorHandle)


def test_the_groups_of_tune_carry_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[dict[str, Any]] = []

    class Made:
        def ready(self) -> str:
            return "future"

    def create(**options: Any) -> Any:
        groups.append(options)
        return Made()

    monkeypatch.setattr(ray_private, "placement_group", create)
    monkeypatch.setattr("ray.air.execution.resources.placement_group.remove_placement_group", lambda group: None)
    made = partial(named_resources, {"memory": 1}, labels=partial(outside, ["ab", "cd"]))
    request = ray.cloudpickle.loads(ray.cloudpickle.dumps(made("run/trial_00")))
    assert request == made("run/trial_00") != made("run/trial_01")
    PlacementGroupResourceManager().request_resources(request)
    assert groups[0]["bundles"] == [{"memory": 1}] and groups[0]["name"].startswith("run/trial_00/")
    assert groups[0]["bundle_label_selector"] == [{"ray.io/node-id": "!in(ab,cd)"}]


@pytest.mark.ray
def test_no_group_of_tune_is_placed_on_a_refused_node(ray_cluster: None) -> None:
    own = ray.get_runtime_context().get_node_id()
    for refused, ready in (([], True), (["a" * 56], True), ([own], False)):
        group = named_resources({"memory": 1}, "run/trial_00", partial(outside, refused)).to_placement_group()
        assert group.wait(TIMEOUT_S if ready else 1) == ready
        ray.util.remove_placement_group(group)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR", None])
def test_the_address_of_the_running_cluster_is_where_ray_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)  # tempfile determines it once in a process
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    file = running_cluster_address_file()
    assert file == Path(get_ray_address_file(None))
    assert file.is_relative_to(tmp_path) == bool(variable)


def test_environment_variables_have_the_names_that_ray_train_reads() -> None:
    assert ray_private.POLL_INTERVAL_VARIABLE == constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR
    assert ray_private.PREEMPTION_WATCHER_VARIABLE == constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR
    ours = {ray_private.POLL_INTERVAL_VARIABLE, ray_private.PREEMPTION_WATCHER_VARIABLE}
    assert ours <= constants.ENV_VARS_TO_PROPAGATE


@pytest.mark.slow
def test_what_takes_long_to_import_is_imported_when_it_is_needed() -> None:
    code = """
import sys
from pathlib import Path
from adios_ray.backend import cluster
from adios_ray.backend import capacity
from adios_ray import ray_private
assert "ray.train" not in sys.modules
from adios_ray.backend import trial
ray_private.lean_trainer_class("", process_group=False)
assert "torch" not in sys.modules
import adios_ray.experiment.runner, adios_ray.backend.loop
# They are for reports, some searches and compiled steps: the first steps of a run need not wait for them.
late = {"scipy", "sklearn", "plotly", "jinja2", "hyperopt", "timm", "torchvision", "wandb", "torch._dynamo"}
assert not late & sys.modules.keys(), late & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@pytest.mark.slow
def test_tune_imports_no_loggers_to_count_callbacks() -> None:
    """By the name under which Tune calls the count; without ``fit``, it imports wandb."""
    code = """
import sys
from types import SimpleNamespace
from ray.tune import Callback, tune
from adios_ray.ray_private import fit
def count():
    tune.air_usage.tag_callbacks([Callback()])
    assert "wandb" not in sys.modules
before = tune.air_usage.tag_callbacks
fit(SimpleNamespace(fit=count))
assert tune.air_usage.tag_callbacks is before
before([Callback()])
assert "wandb" in sys.modules
"""
    assert "air_usage.tag_callbacks(" in inspect.getsource(tune_module.run)
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))

"""All undocumented parts of Ray that the package uses, without any logic of the package's own.

``tests/test_ray_private.py`` fails where Ray changes one of these names. Each is here because no public one exists:

- ``ray._private.state`` and the tables of ``ray.core.generated.gcs_pb2``: which actor created a placement group, and
  whether it is dead. ``ray.util.placement_group_table`` does not name the creator; ``ray.util.state`` names only its
  job, and both that and its ``get_actor`` need the dashboard, which a cluster may run without.
- ``ControllerCallback`` of ``ray.train.v2._internal``: runs in Ray Train's controller before it creates a placement
  group. The public ``UserCallback`` is called only after reports and exceptions, when the group has long existed.
- ``DataParallelTrainer`` of ``ray.train.v2.api``: a trainer that does not import torch. ``TorchTrainer`` does, and the
  ``DataParallelTrainer`` of ``ray.train.data_parallel_trainer`` belongs to the first version of Ray Train.
- ``_create_default_callbacks`` of the trainers, ``DatasetsCallback`` and ``PlacementGroupCleanerCallback``: the two
  callbacks start a process each for every trainer, and no setting leaves them out.
- The name of Ray Train's snapshot of its checkpoints: a run with the name of an earlier one resumes from that file, and
  no setting prevents it.
- The path of the file that names the running cluster: ``ray.init`` reads it, but reports the address only once it has
  connected, for which it waits minutes.
- ``JOB_CONFIG_VARIABLE``, the environment variable that a Ray job's entry point has and no other process: the public
  ``ray.get_runtime_context`` knows the job only once it is connected.
- Two environment variables, ``POLL_INTERVAL_VARIABLE`` and ``PREEMPTION_WATCHER_VARIABLE``: no argument of the trainers
  and no documented variable does what they do.

Ray Train is imported inside the functions that need it, because the import takes a second.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.state import state as cluster_state
from ray._private.utils import get_ray_address_file
from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

POLL_INTERVAL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Environment variable: seconds between two polls of the workers by Ray Train's controller."""
JOB_CONFIG_VARIABLE: str = RAY_JOB_CONFIG_JSON_ENV_VAR
"""Environment variable: settings of the Ray job whose entry point this process is."""
PREEMPTION_WATCHER_VARIABLE = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Environment variable: 0 keeps Ray Train from starting an actor that watches for nodes about to be preempted."""


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


def controller_callback(started: Callable[[], None], finished: Callable[[BaseException | None], None]) -> Any:
    """Make a callback for ``RunConfig.callbacks``; both functions run in the process of Ray Train's controller.

    Args:
        started: Called before the controller creates its first placement group; if it raises, the run fails.
        finished: Called after the controller has stopped its workers, with the run's error or None.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Calls(ControllerCallback):  # type: ignore[misc]  # Ray ships no type information
        def after_controller_start(self, train_run_context: Any) -> None:
            started()

        def after_controller_finish(self, result: Any) -> None:
            finished(result.error)

    return Calls()


def lean_trainer_class(process_group: bool) -> Any:
    """Build a trainer class that starts no process to split Ray Data sets, and none to clean up placement groups.

    Args:
        process_group: Whether the workers form a torch process group; torch is imported here only in that case.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    if process_group:
        from ray.train.torch import TorchTrainer as Base
    else:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer as Base

    class LeanTrainer(Base):  # type: ignore[misc]  # Ray ships no type information
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [
                each for each in callbacks if not isinstance(each, DatasetsCallback | PlacementGroupCleanerCallback)
            ]

    return LeanTrainer


def checkpoint_list_file(train_run_dir: Path) -> Path:
    """Name the file in which Ray Train lists a run's checkpoints; a new run of the same name starts from that list."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    return train_run_dir / str(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)


def running_cluster_address_file() -> Path:
    """Name the file in which the last cluster on this machine stored its address, host and port."""
    return Path(get_ray_address_file(None))

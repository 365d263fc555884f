"""All that the package uses of Ray without Ray's documentation promising it, and none of the package's own rules.

``tests/test_ray_private.py`` fails where Ray changes one of these names. Each is here for want of a public one:

- ``ray._private.state`` and the tables of ``ray.core.generated.gcs_pb2``: who made a placement group, and whether that
  actor is dead. ``ray.util.placement_group_table`` does not name the maker; ``ray.util.state`` names its job alone, and
  both that and its ``get_actor`` need the dashboard, which a cluster may run without.
- ``ControllerCallback`` of ``ray.train.v2._internal``: what runs in Ray Train's controller before it makes a placement
  group. The public ``UserCallback`` is called after reports and exceptions, when there has long been a group.
- ``DataParallelTrainer`` of ``ray.train.v2.api``: a trainer that does not import torch. ``TorchTrainer`` does, and the
  ``DataParallelTrainer`` of ``ray.train.data_parallel_trainer`` belongs to the first version of Ray Train.
- ``_create_default_callbacks`` of the trainers, ``DatasetsCallback`` and ``PlacementGroupCleanerCallback``: each starts
  a process for each trainer, and no setting leaves it out.
- The name of Ray Train's snapshot of its checkpoints: whoever takes the name of an earlier run goes on from that file,
  and no setting says otherwise.
- The place of the file that names the running cluster: ``ray.init`` reads it, but tells the address only once it has
  connected, for which it waits minutes.
- Two environment variables, ``POLL_INTERVAL_VARIABLE`` and ``PREEMPTION_WATCHER_VARIABLE``: no argument of the trainers
  and no documented variable does what they do.

Ray Train is imported where it is needed, as it takes a second.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray._private.state import state as cluster_state
from ray._private.utils import get_ray_address_file
from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

POLL_INTERVAL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Environment variable: seconds between two looks of Ray Train's controller at its workers."""
PREEMPTION_WATCHER_VARIABLE = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Environment variable: 0 if Ray Train is to start no actor that looks for nodes about to be taken away."""


class MadeGroup(NamedTuple):
    """A placement group of the cluster, of whatever job.

    Attributes:
        id: Its identity.
        maker: The ID of the actor that made it, in hexadecimal; that of no actor if a driver did.
        placed: Whether it has its places.
        removed: Whether it was given back; Ray remembers such groups for a while.
    """

    id: ray.PlacementGroupID
    maker: str
    placed: bool
    removed: bool


def placement_groups() -> list[MadeGroup]:
    """List the placement groups of the cluster."""
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
    """Tell whether Ray says that an actor is dead; of an actor that it does not know it does not say so."""
    row = cluster_state._connect_and_get_accessor().get_actor_info(ray.ActorID.from_hex(actor))
    return row is not None and bool(ActorTableData.FromString(row).state == ActorTableData.DEAD)


def controller_callback(started: Callable[[], None], finished: Callable[[BaseException | None], None]) -> Any:
    """Make a callback for ``RunConfig.callbacks``; both functions are called in the process of Ray Train's controller.

    Args:
        started: Called before the controller makes its first placement group; if it raises, the run fails.
        finished: Called after the controller has taken its workers down, with the run's error if there was one.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Calls(ControllerCallback):  # type: ignore[misc]  # Ray ships no type information
        def after_controller_start(self, train_run_context: Any) -> None:
            started()

        def after_controller_finish(self, result: Any) -> None:
            finished(result.error)

    return Calls()


def lean_trainer_class(process_group: bool) -> Any:
    """Build a class of trainers that start no process to share out Ray Data sets, and none to watch placement groups.

    Args:
        process_group: Whether the workers form a process group of torch; only then is torch imported here.
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
    """Name the file in which Ray Train keeps the list of a run's checkpoints; a run of the same name begins with it."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    return train_run_dir / str(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)


def running_cluster_address_file() -> Path:
    """Name the file in which this machine's last cluster has left its address, host and port."""
    return Path(get_ray_address_file(None))

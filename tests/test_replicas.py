"""Workers of one trial stay replicas: the first decides for all, and parameters are compared after each load."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_config
from torch import Tensor, distributed
from torch.multiprocessing.spawn import start_processes

from adios_ray import parallel
from adios_ray.backend import loop
from adios_ray.backend.loop import load_intact
from adios_ray.checkpoints import Pointer, load_checkpoint
from adios_ray.config import replaced
from adios_ray.errors import CheckpointError, ReplicaError
from adios_ray.evaluation import fitness
from adios_ray.masking.slots import read_head
from adios_ray.run_storage import RunStorage
from adios_ray.training import trainer as training
from adios_ray.training.trainer import Trainer

WORKERS = 2
CPU = torch.device("cpu")


def head_of(trainer: Trainer) -> dict[str, Tensor]:
    """Collect the slots' convolution with its optimizer's moments."""
    assert trainer.networks.occlusion is not None and trainer.optimizers.occlusion is not None
    head = read_head(trainer.networks.occlusion, trainer.optimizers.occlusion)
    return {"weight": head.weight, "bias": head.bias, "moment": head.moments["momentum_buffer"][0]}


def work(rank: int, data: str, directory: str) -> None:
    """Run one worker; rank 1 is manipulated as if rounding had led it to other decisions."""
    torch.set_num_threads(1)
    meeting_point = f"file://{directory}/meeting"
    distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=WORKERS)
    config = small_config(Path(data))
    trainer = Trainer(config, CPU)
    trainer.train_until(2)
    pointer = trainer.save(Path(directory) / "donor") if rank == 0 else None
    pointer = parallel.from_first(pointer)
    assert isinstance(pointer, Pointer)
    results: dict[str, Any] = {}
    for slots in (4, 2):
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                masks = trainer.masks
                patch.setattr(trainer, "masks", lambda images, masks=masks: _reversed(masks(images)))
            trainer.load(pointer, replaced(config, {"masking.slots": slots}))
        results[f"{slots} slots"] = head_of(trainer)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(fitness, "_collapse", lambda features, config: "collapsed on worker 1 alone")
        results["fitness"] = trainer.evaluate("val").value
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(training, "load_checkpoint", lambda *arguments: _disturbed(load_checkpoint(*arguments)))
        with pytest.raises(ReplicaError, match=r"loading .*donor, worker 1 of 2 holds other parameters than worker 0"):
            trainer.load(pointer, config)
    four = replaced(config, {"masking.slots": 4})
    trainer.load(pointer, four)
    resized = parallel.from_first(trainer.save(Path(directory) / "resized") if rank == 0 else None)
    assert isinstance(resized, Pointer)
    with pytest.raises(ReplicaError, match=r"loading .*, worker 1 of 2 holds other parameters than worker 0"):
        trainer.load(resized if rank == 0 else pointer, four)  # worker 1 alone has masks to split
    trainer.load(pointer, config)
    fall_back(trainer, rank, Path(directory) / "trial")
    torch.save(results, Path(directory) / f"{rank}.pt")
    distributed.destroy_process_group()


def fall_back(trainer: Trainer, rank: int, folder: Path) -> None:
    """Load checkpoints that one worker cannot read: epochs 4 and 0 the second, 2 and 1 the first."""
    pointers: list[Pointer] = []
    for step in range(5):
        if rank == 0:
            trainer.step = step
            saved = trainer.save(folder / f"epoch_0000{step}")
            pointers.append(saved.after(pointers[-1] if pointers else None))
    pointers = parallel.from_first(pointers)
    said, storage = list[str](), RunStorage(folder)
    with pytest.MonkeyPatch.context() as patch:

        def load_except(pointer: Pointer, device: torch.device) -> dict[str, Any]:
            if pointer.path.name[-1] in ("12", "04")[rank]:
                raise CheckpointError(f"worker {rank} cannot read {pointer.path.name}")
            return load_checkpoint(pointer, device)

        patch.setattr(loop, "load_checkpoint", load_except)
        for newest in (4, 3):
            loaded = load_intact(trainer, pointers[newest], trainer.config, storage, said.append)
            assert loaded is not None and loaded.path == pointers[3].path and trainer.step == 3
        for worker, newest in ((0, 2), (0, 1), (1, 0)):  # the one before cannot be read either, or there is none
            with pytest.raises(CheckpointError, match=f"worker {worker} cannot read epoch_0000{newest}"):
                load_intact(trainer, pointers[newest], trainer.config, storage, said.append)
    resumed = f"worker 1 cannot read epoch_00004; it resumes from {folder.name}/epoch_00003"
    assert said == ([] if rank else [resumed])


def _reversed(seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Reverse the order of the masks, so that another one is the largest."""
    return seen[0], seen[1].flip(1)


def _disturbed(state: dict[str, Any]) -> dict[str, Any]:
    """Flip one bit of one parameter in a checkpoint's state."""
    weight = state["networks"]["backbone.stem.0.weight"]
    weight.view(torch.int32)[0, 0, 0, 0] ^= 1
    return state


@pytest.mark.slow
def test_workers_decide_together_and_notice_when_they_differ(objects_dir: Path, tmp_path: Path) -> None:
    start_processes(work, (str(objects_dir), str(tmp_path)), nprocs=WORKERS, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORKERS))
    for slots in (4, 2):
        for name, values in first[f"{slots} slots"].items():
            assert len(values) == slots and torch.equal(values, second[f"{slots} slots"][name]), name
    assert first["fitness"] == second["fitness"] and math.isfinite(first["fitness"])


def test_one_process_is_always_the_first() -> None:
    assert parallel.from_first("own") == "own" and parallel.gather_values(3) == [3]

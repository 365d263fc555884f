"""The loop of a worker without Ray: what it measures between reports."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
import torch
from small import small_config

from adios_ray.backend import loop
from adios_ray.backend.line import Command, Start
from adios_ray.checkpoints import STATE_FILE, Pointer, load_checkpoint
from adios_ray.config import replaced
from adios_ray.errors import CheckpointError
from adios_ray.run_directory import RunDirectory
from adios_ray.run_storage import RunStorage
from adios_ray.tracking.records import write_config
from adios_ray.training.trainer import Trainer
from adios_ray.trial_report import TrialReport


class Clock:
    """A clock that stands still but for what the test's parts take."""

    now = 100.0

    def monotonic(self) -> float:
        """Tell the time, as ``time.monotonic``."""
        return self.now

    def passing(self, seconds: float, result: Any = None) -> Any:
        """Make a function that takes so long."""

        def pass_by(*_: Any, **__: Any) -> Any:
            self.now += seconds
            return result

        return pass_by


def test_reports_tell_the_idle_time_and_checkpoints_what_they_continue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Idle is all between sending a report and the next step."""
    run, clock, reports, checkpoints = tmp_path / "run", Clock(), list[TrialReport](), list[Pointer]()
    notes = list[str]()
    run.mkdir()
    write_config(run, {})
    donor, config = Pointer(path=run / "donor", sha256="", before=Pointer(path=run, sha256="")), small_config(tmp_path)

    def train_to_report(idle_s: float) -> TrialReport:
        clock.now += 1000
        trainer.measured_slots, trainer.networks.slots_at_once = [(3, 2), (3, 2), (5, 5)][len(reports)]
        trainer.config = replaced(config, {"masking.slots": trainer.measured_slots})
        return TrialReport(epoch=len(reports) + 1, idle_s=idle_s)

    def answer(trial: str, position: int, report: TrialReport, checkpoint: Pointer) -> None:
        reports.append(report)
        checkpoints.append(checkpoint)
        clock.now += 1

    def save(path: Path) -> Pointer:
        clock.now += 300
        return Pointer(path=path, sha256="")

    trainer = SimpleNamespace(
        train_to_report=train_to_report,
        take_failed_batch=lambda: None,
        save=save,
        networks=SimpleNamespace(occlusion=None, slots_at_once=1),
        device=torch.device("cpu"),
        measured_slots=0,
    )
    line = [Command("train"), Command("load", config, donor), Command("train"), Command("train"), Command("stop")]

    def take(trial: str, position: int) -> Command:
        clock.now += 20
        return line[position]

    channel = SimpleNamespace(
        take=SimpleNamespace(remote=take),
        answer=SimpleNamespace(remote=answer),
        note=SimpleNamespace(remote=lambda trial, text, *_: notes.append(text)),
    )
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "load_intact", clock.passing(7, donor))
    monkeypatch.setattr(ray, "get", lambda done: done)
    settings: Any = {"trial": "trial_00", "run_dir": str(run), "channel": channel, "threads": 1, "gpus": 0.0}
    storage = RunStorage(str(run))
    storage.open()
    loop._follow(cast(Trainer, trainer), Start(config, None, 0), settings, storage)
    assert notes == ["2 of 3 slots at once fit into the GPU's memory"]  # once for each measurement, where not all fit
    # The answer, and taking the next command; in between a load, which is a command, too.
    assert [report.idle_s for report in reports] == [0, 1 + 20 + 7 + 20, 1 + 20]
    assert [report.load_s for report in reports] == [0, 7, 0]
    assert [report.checkpoint_s for report in reports] == [300, 300, 300]
    assert [checkpoint.before and checkpoint.before.path for checkpoint in checkpoints] == [
        None,
        donor.path,
        checkpoints[1].path,
    ]
    assert all(checkpoint.before is None or checkpoint.before.before is None for checkpoint in checkpoints)


def test_masks_that_storage_refuses_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the write is retried; drawing is no access to storage that a slow one would be named for."""
    run, notes, refusals = tmp_path / "run", list[str](), iter([OSError("full"), None])
    run.mkdir()
    write_config(run, {})

    def write(*fields: Any) -> None:
        if error := next(refusals):
            raise error

    monkeypatch.setattr(loop, "write_masks", write)
    monkeypatch.setattr("adios_ray.retry.PAUSE_S", 0.0)
    monkeypatch.setattr(ray, "get", lambda done: done)
    drawn = iter([(torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 2))])
    trainer = SimpleNamespace(
        config=small_config(tmp_path),
        train_to_report=lambda idle_s: TrialReport(epoch=1),
        take_failed_batch=lambda: None,
        save=lambda path: Pointer(path=path, sha256=""),
        masks=lambda count: next(drawn),
        networks=SimpleNamespace(occlusion=object(), slots_at_once=1),
        measured_slots=0,
        epoch=1,
        done=True,
    )
    channel = SimpleNamespace(
        answer=SimpleNamespace(remote=lambda *_: None),
        note=SimpleNamespace(remote=lambda trial, text, *_: notes.append(text)),
    )
    settings: Any = {"trial": "trial_00", "run_dir": str(run), "channel": channel}
    loop._train(cast(Trainer, trainer), settings, RunStorage(str(run)), 0, None, 0.0, 0.0)
    assert [text.partition(" (")[0] for text in notes] == ["storage refuses", "storage has answered after 0 s"]


def test_a_copy_whose_checkpoint_is_damaged_never_falls_back_to_the_weights_that_it_has_replaced(
    objects_dir: Path, tmp_path: Path
) -> None:
    config, said, storage = small_config(objects_dir), list[str](), RunStorage(tmp_path)
    trainer = Trainer(config, torch.device("cpu"))

    def saved(trial: str, epoch: int, before: Pointer | None = None) -> Pointer:
        path = RunDirectory(tmp_path).checkpoint(trial, epoch)
        path.parent.mkdir(parents=True, exist_ok=True)
        trainer.step = len(pointers)
        return trainer.save(path).after(before)

    pointers: list[Pointer] = []
    donor = saved("trial_00", 4)
    pointers.append(donor)
    replaced_weights = saved("trial_01", 4)
    copy = saved("trial_01", 5, donor)
    (copy.path / STATE_FILE).write_bytes(b"")
    assert loop.load_intact(trainer, copy, config, storage, said.append) == donor
    assert trainer.step == 0 and said[0].endswith("it resumes from trial_00/epoch_00004")
    (donor.path / STATE_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="trial_01/epoch_00005.* is damaged"):
        loop.load_intact(trainer, copy, config, storage, said.append)
    assert load_checkpoint(replaced_weights, torch.device("cpu"))["step"] == 1


def test_a_training_whose_first_checkpoint_is_damaged_begins_again(objects_dir: Path, tmp_path: Path) -> None:
    config, said, storage = small_config(objects_dir), list[str](), RunStorage(tmp_path)
    trainer = Trainer(config, torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.networks.state_dict().items()}

    def damaged(trial: str, epoch: int) -> Pointer:
        path = RunDirectory(tmp_path).checkpoint(trial, epoch)
        path.parent.mkdir(parents=True)
        pointer = trainer.save(path)
        (pointer.path / STATE_FILE).write_bytes(b"")
        return pointer

    pointer = damaged("trial_00", 1)
    loop.load_intact(trainer, pointer, config, storage, said.append, pointer.path)
    assert len(said) == 1 and said[0].endswith("not the one it was saved with; it trains from the beginning")
    assert all(torch.equal(value, before[name]) for name, value in trainer.networks.state_dict().items())
    for other in damaged("trial_01", 2), damaged("trial_02", 1):  # others were before it; it is another trial's
        with pytest.raises(CheckpointError, match="is damaged"):
            loop.load_intact(trainer, other, config, storage, said.append, pointer.path)
    with pytest.raises(CheckpointError, match="is damaged"):  # an exploit in place: these weights are no beginning
        loop.load_intact(trainer, pointer, config, storage, said.append)

"""The loop of a worker without Ray: what it measures between reports."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from adios_ray.config import TrialConfig, replaced
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


@dataclass
class Loop:
    """A worker's loop whose trainer and channel only take time, and keep what they are given.

    A report takes 1000 s of training and 1 s to answer, a checkpoint 300, a command 20, and a load 7.
    """

    run: Path
    config: TrialConfig
    reports: list[TrialReport] = field(default_factory=list)
    checkpoints: list[Pointer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    slots: Sequence[tuple[int, int]] = ()
    """Number of slots of the trial, and of those that fit into a GPU's memory, at each report."""

    def follow(self, commands: Sequence[Command], monkeypatch: pytest.MonkeyPatch) -> None:
        """Follow the commands to the last."""
        clock = Clock()
        trainer = SimpleNamespace(
            config=self.config,
            take_failed_batch=lambda: None,
            networks=SimpleNamespace(occlusion=None, slots_at_once=1),
            device=torch.device("cpu"),
            measured_slots=0,
        )

        def train_to_report(idle_s: float) -> TrialReport:
            clock.now += 1000
            if self.slots:
                trainer.measured_slots, trainer.networks.slots_at_once = self.slots[len(self.reports)]
                trainer.config = replaced(self.config, {"masking.slots": trainer.measured_slots})
            return TrialReport(epoch=len(self.reports) + 1, idle_s=idle_s)

        def save(path: Path) -> Pointer:
            clock.now += 300
            return Pointer(path=path, sha256="")

        def answer(trial: str, position: int, report: TrialReport, checkpoint: Pointer) -> None:
            clock.now += 1
            self.reports.append(report)
            self.checkpoints.append(checkpoint)

        def take(trial: str, position: int) -> Command:
            clock.now += 20
            return commands[position]

        def load(trainer: object, checkpoint: Pointer, *_: object) -> Pointer:
            clock.now += 7
            return checkpoint

        trainer.train_to_report, trainer.save = train_to_report, save
        methods = {"take": take, "answer": answer, "note": lambda trial, text, *_: self.notes.append(text)}
        channel = SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})
        monkeypatch.setattr(loop, "time", clock)
        monkeypatch.setattr(loop, "load_intact", load)
        monkeypatch.setattr(ray, "get", lambda done: done)
        settings: Any = {"trial": "trial_00", "run_dir": str(self.run), "channel": channel, "threads": 1, "gpus": 0.0}
        self.run.mkdir()
        write_config(self.run, {})
        storage = RunStorage(str(self.run))
        storage.open()
        loop._follow(cast(Trainer, trainer), Start(self.config, None, 0), settings, storage)


def test_reports_tell_the_idle_time_and_checkpoints_what_they_continue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Idle is all between sending a report and the next step."""
    found, train = Loop(tmp_path / "run", small_config(tmp_path)), Command("train")
    donor = Pointer(path=tmp_path / "donor", sha256="", before=Pointer(path=tmp_path, sha256=""))
    found.follow([train, Command("load", found.config, donor), train, train, Command("stop")], monkeypatch)
    # The answer, and taking the next command; in between a load, which is a command, too.
    assert [report.idle_s for report in found.reports] == [0, 1 + 20 + 7 + 20, 1 + 20]
    assert [report.load_s for report in found.reports] == [0, 7, 0]
    assert [report.checkpoint_s for report in found.reports] == [300, 300, 300]
    before = [checkpoint.before and checkpoint.before.path for checkpoint in found.checkpoints]
    assert before == [None, donor.path, found.checkpoints[1].path]
    assert all(checkpoint.before is None or checkpoint.before.before is None for checkpoint in found.checkpoints)


def test_slots_that_do_not_all_fit_are_noted_once_for_each_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Loop(tmp_path / "run", small_config(tmp_path), slots=[(3, 2), (3, 2), (5, 5), (4, 1)])
    found.follow([*[Command("train")] * 4, Command("stop")], monkeypatch)
    assert found.notes == [
        f"{most} of {slots} slots at once fit into the GPU's memory" for slots, most in ((3, 2), (4, 1))
    ]


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

"""Replay of a schedule: its stages in turn, an interruption, a wrong output directory, divergence."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from small import make_objects, small_config
from trainers import assert_identical

from adios_ray.checkpoints import STATE_FILE, newest_intact, open_checkpoint
from adios_ray.cli import main
from adios_ray.config import replaced
from adios_ray.errors import AGAIN, ConfigError, InputError
from adios_ray.experiment.replay import replay
from adios_ray.experiment.schedule import Schedule, Stage, schedule_of
from adios_ray.run_directory import REPLAY_FILE, RunDirectory
from adios_ray.search.state import Member, PopulationState
from adios_ray.tracking.environment import record_environment
from adios_ray.training.trainer import Trainer

CPU = torch.device("cpu")
VALUES: list[dict[str, Any]] = [
    {"masking": {"slots": 3, "sparsity_weight": 0.3}, "optimizer": {"encoder_lr": 0.05}},
    {"masking": {"slots": 4, "sparsity_weight": 0.6}, "optimizer": {"encoder_lr": 0.02}},
]


def schedule(data_dir: Path, **changes: Any) -> Schedule:
    """Make a schedule of three epochs; the last two use other values, with these changes applied."""
    config = small_config(data_dir, epochs=3).model_dump(mode="json")
    first = Stage(from_epoch=0, trial="trial_01", values=VALUES[0])
    return Schedule(config=config, stages=[first, Stage(from_epoch=1, trial="trial_00", values=VALUES[1] | changes)])


def final(output: Path) -> dict[str, Any]:
    return open_checkpoint(output / "checkpoints" / "epoch_00003", CPU)


def reports(output: Path) -> list[dict[str, Any]]:
    """Read the reports of a replay, whose lines are JSON: without NaN."""

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=refuse) for line in (output / "reports.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_replay_trains_its_stages_and_resumes_where_it_was_cut_off(objects_dir: Path, tmp_path: Path) -> None:
    plan, output = schedule(objects_dir), tmp_path / "replayed"
    trainer = Trainer(replaced(plan.trial(), VALUES[0]), CPU)
    trainer.train_until(3)
    trainer.load(trainer.save(tmp_path / "first"), replaced(plan.trial(), VALUES[1]))
    trainer.train_until(9)
    trainer.save(tmp_path / "by_hand")
    replay(plan, plan.trial(), output, CPU)
    unreported = {"sums": None, "reported_step": None}  # nothing was reported by hand
    expected = {**open_checkpoint(tmp_path / "by_hand", CPU), **unreported}
    assert_identical({**final(output), **unreported}, expected)
    reported = reports(output)
    assert [(report["epoch"], report["trial"]) for report in reported] == [
        (1, "trial_01"),
        (2, "trial_00"),
        (3, "trial_00"),
    ]

    whole = final(output)
    (output / "checkpoints" / "epoch_00003" / STATE_FILE).write_bytes(b"cut off")
    replay(plan, plan.trial(), output, CPU)
    assert_identical(final(output), whole)
    learned = ("epoch", "trial", "fitness", "loss")
    assert [[r[key] for key in learned] for r in reports(output)] == [[r[key] for key in learned] for r in reported]


@pytest.mark.slow
def test_the_command_stretches_a_schedule_and_prints_the_fitness_on_test(
    objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule(objects_dir).save(tmp_path / "schedule.json")
    output = tmp_path / "replayed"
    options = ["--schedule", str(tmp_path / "schedule.json"), "--output", str(output)]
    assert main(["replay", *options, "--epochs", "6", "--seed", "3"]) == 0
    *epochs, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in epochs] == [f"epoch {epoch}" for epoch in range(1, 7)]
    assert [report["trial"] for report in reports(output)] == ["trial_01"] * 2 + ["trial_00"] * 4
    trainer = Trainer(replaced(small_config(objects_dir, epochs=6), VALUES[1]), CPU)
    pointer = newest_intact(output / "checkpoints")
    assert pointer is not None and pointer.path.name == "epoch_00006"
    trainer.load(pointer, trainer.config)
    assert trainer.seed == 3
    found = trainer.evaluate("test")
    assert found.standard_error is not None
    value, error, accuracy = (f"{100 * number:.1f}" for number in (found.value, found.standard_error, found.accuracy))
    scores = f"k-NN fitness {value} ± {error} %, accuracy {accuracy} %"
    assert last == f"{scores} on test; checkpoints: {output / 'checkpoints'}"


def test_an_interruption_says_how_to_resume(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(trainer: Trainer) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_to_report", interrupted)
    schedule(objects_dir).save(tmp_path / "schedule.json")
    assert (
        main(["replay", "--schedule", str(tmp_path / "schedule.json"), "--output", str(tmp_path / "replayed")]) == 130
    )
    assert capsys.readouterr().err == f"interrupted; {AGAIN} from the last report\n"


@pytest.mark.parametrize(
    ("recorded", "options", "expected"),
    [(3, [], 3), (3, ["--threads", "2"], 2), (9, ["--threads", "5"], 5), (9, [], 4), (None, [], 1)],
)
def test_a_replay_has_the_threads_of_the_runs_workers(
    recorded: int | None, options: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most as many as there are CPUs, here 4, unless they are asked for."""
    RunDirectory(tmp_path).config.write_text("{}")
    member = Member(values={}, number=0)
    PopulationState(members={"a": member}, initial={"a": {}}, next_decision_epoch=1).save(tmp_path)
    record_environment(tmp_path, recorded)
    written = schedule_of(tmp_path, "a", tmp_path).model_dump(mode="json")
    if recorded is None:
        del written["threads"]  # as earlier versions wrote it
    (tmp_path / "schedule.json").write_text(json.dumps(written))
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    for source in (["--schedule", str(tmp_path / "schedule.json")], ["--run", str(tmp_path), "--trial", "a"]):
        # It ends before it trains: there is no data set.
        assert main(["replay", *source, *options, "--output", str(tmp_path / "out")]) == 2
    assert used == [expected, expected]


@pytest.mark.slow
def test_a_replay_leaves_alone_what_is_not_its_own(
    objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {"hidden_dim": 16, "output_dim": 8}
    plan, other = schedule(objects_dir), schedule(objects_dir, objective={**heads, "temperature": 0.3})
    output = tmp_path / "replayed"
    replay(plan, plan.trial(), output, CPU)
    before = final(output)
    with pytest.raises(
        ConfigError,
        match=r"replayed holds .* other settings \(stages.1.values.objective.* is None there and .*0.3.* here\)",
    ):
        replay(other, other.trial(), output, CPU)
    fewer = Schedule(config=plan.config, stages=plan.stages[:1])
    with pytest.raises(ConfigError, match=r"other settings \(stages.1 is .* there and None here\)"):
        replay(fewer, plan.trial(), output, CPU)
    earlier = json.loads((output / REPLAY_FILE).read_text())
    (output / REPLAY_FILE).write_text(json.dumps({**earlier, "threads": 7}))
    capsys.readouterr()
    replay(plan, plan.trial(), output, CPU)
    assert capsys.readouterr().out.startswith("began with --threads 7: with 1, sums are rounded otherwise\n")
    assert earlier.pop("threads") == torch.get_num_threads()
    del earlier["config"]["sync_batch_norm"]  # as a version wrote it that had neither
    (output / REPLAY_FILE).write_text(json.dumps(earlier))
    replay(plan, plan.trial(), output, CPU)
    assert_identical(final(output), before)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "cat.jpg").touch()
    with pytest.raises(ConfigError, match=r"photographs is not the directory of a replay"):
        replay(plan, plan.trial(), tmp_path / "photographs", CPU)
    assert [path.name for path in (tmp_path / "photographs").iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize(
    ("data", "values", "changes", "message"),
    [
        ({"counts": {"train": 96, "val": 40}}, {}, {}, "has no 'test' split"),
        ({"counts": {"train": 96, "test": 40}}, {}, {}, "has no 'val' split"),
        ({"counts": {"train": 8, "val": 4, "test": 4}}, {}, {}, "batch_size 32 is more than the 8 training images"),
        ({"one_class": True}, {}, {}, "evaluation.fitness knn needs labels"),
        (
            {},
            {"masking": {"slots": 0}},
            {},
            "masking.slots = 0 must be greater than or equal to 2",
        ),  # of the last stage
        ({}, {"masking": {"slotz": 3}}, {}, "masking.slotz"),
        ({}, {"masking": {"width": 16}}, {}, r"masking.width \(32 -> 16\) cannot change while a trial trains"),
        ({}, {}, {"initial_weights": "gone.safetensors"}, "weights gone.safetensors do not exist"),
        ({}, {}, {"data_dir": None}, "the schedule names no data set: give --data-dir"),
    ],
)
def test_a_replay_that_could_not_end_is_refused_before_it_begins(
    data: dict[str, Any], values: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plan, output = schedule(make_objects(tmp_path / "data", **data), **values), tmp_path / "replayed"
    with pytest.raises(InputError, match=message):
        replay(plan, plan.trial(changes), output, CPU)
    assert not output.exists()


def test_a_replay_has_the_default_epochs_of_a_schedule_without_them() -> None:
    plan = Schedule(config={}, stages=[Stage(from_epoch=0, trial="trial_00", values={})])
    assert [end for _, end in plan.intervals()] == [plan.trial().epochs]


@pytest.mark.slow
def test_a_replay_on_images_that_are_too_small_for_its_view_evaluates_them_whole(
    objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = schedule(objects_dir)
    config = plan.trial({"epochs": 1, "image_size": 32, "evaluation.view": "resize-256"})
    short = plan.scaled(1)
    trainer = replay(short, config, tmp_path / "replayed", CPU)
    assert trainer.config.evaluation.view == "square"
    assert "evaluates central squares: images stored at 32 pixels are too small" in capsys.readouterr().out


@pytest.mark.slow
def test_a_replay_that_diverges_says_so_and_keeps_what_it_had(objects_dir: Path, tmp_path: Path) -> None:
    plan = schedule(objects_dir, **{"objective.temperature": 1e-42})  # every logit overflows
    with pytest.raises(RuntimeError, match=r"training diverged at step 3: .* lower learning rates may help"):
        replay(plan, plan.trial(), tmp_path / "replayed", CPU)
    assert (tmp_path / "replayed" / "diverged" / "epoch_00002" / STATE_FILE).is_file()
    assert [path.name for path in (tmp_path / "replayed" / "checkpoints").iterdir()] == ["epoch_00001"]

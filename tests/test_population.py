"""A small population through the main program: evolution, records, failures and resuming."""

import json
import math
import re
import runpy
import sys
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from real_trainings import Trainers, train_population
from rich.console import Console
from small import small_config
from trainers import assert_identical
from waiting import TIMEOUT_S, until

from adios_ray.checkpoints import STATE_FILE, damage, load_checkpoint, open_checkpoint
from adios_ray.cli import main
from adios_ray.config import MOST_EPOCHS
from adios_ray.errors import ClaimError, FaultError
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.schedule import load_schedule, schedule_of
from adios_ray.search.spaces import load_space
from adios_ray.search.state import PopulationState
from adios_ray.tracking.decisions import read_drops, read_lineage
from adios_ray.tracking.records import RunSummary, read_summary, read_token
from adios_ray.tracking.results import read_results
from adios_ray.training.reproduce import reproduce

pytestmark = pytest.mark.ray
SCRIPT = Path(__file__).parent.parent / "experiments" / "pbt_in100.py"


def write_space(path: Path) -> Path:
    """Write a synchronous search over all four values with a decision after every epoch."""
    space = {
        "scheduler": "pbt",
        "synchronous": True,
        "interval_epochs": 1,
        "quantile_fraction": 0.5,
        "significance": 1,  # copies at every decision, however alike the trials are
        "resample_probability": 0.5,
        "parameters": {
            "masking.sparsity_weight": {"low": 0.1, "high": 1.0, "scale": "linear"},
            "optimizer.encoder_lr": {"low": 0.01, "high": 0.1, "scale": "log"},
            "optimizer.occlusion_lr": {"low": 0.01, "high": 0.1, "scale": "log"},
            "masking.slots": {"low": 2, "high": 4, "scale": "integer"},
        },
    }
    path.write_text(yaml.safe_dump(space))
    return path


def experiment(data_dir: Path, tmp_path: Path, **changes: Any) -> ExperimentConfig:
    """Configure two trials on the small data set."""
    trial = small_config(data_dir, **changes).model_dump()
    space = write_space(tmp_path / "space.yaml")
    return ExperimentConfig(
        **trial, space=space, storage=tmp_path / "runs", population=2, gpus_per_worker=0, cpus_per_worker=1
    )


def test_a_population_evolves_and_leaves_its_records(ray_cluster: None, objects_dir: Path, tmp_path: Path) -> None:
    from adios_ray.experiment.runner import resume, start

    config = experiment(objects_dir, tmp_path, epochs=4).model_copy(update={"wandb": "offline"})
    run_dir = start(config)
    rows, lineage, summary = read_results(run_dir), read_lineage(run_dir), read_summary(run_dir)
    assert {(row.trial, row.epoch) for row in rows} == {(f"trial_0{t}", e) for t in (0, 1) for e in (1, 2, 3, 4)}
    assert [exploit.epoch for exploit in lineage] == [1, 2, 3]
    assert summary is not None and summary.exploits == 3 and 0 <= summary.test_fitness <= 1
    by_key = {(row.trial, row.epoch): row for row in rows}
    for exploit in lineage:
        assert exploit.scores[exploit.donor] >= exploit.scores[exploit.trial]
        before, after = (by_key[exploit.trial, exploit.epoch + i] for i in (0, 1))
        assert before.worker_pid == after.worker_pid
        assert (before.values, after.values) == (exploit.old, exploit.new)
    assert "<html" in (run_dir / "report.html").read_text()
    names = {path.name.rpartition("-trial_0")[0] for path in (run_dir / "wandb").glob("offline-run-*-trial_0?")}
    assert {name.rpartition("-")[2] for name in names} == {read_token(run_dir)}
    state = PopulationState.load(run_dir)
    kept = list((run_dir / "checkpoints").glob("trial_*/epoch_*"))
    assert len(kept) <= 2 * 2 and all(member.finished for member in state.members.values())
    replayed_alone(run_dir, tmp_path / "replayed", summary.best_trial, state)
    trained_in_one_process(config, run_dir, tmp_path / "in_process")
    Path(config.space).unlink()  # a job's working directory is deleted with the job; the run has a copy
    modified = {path: path.stat().st_mtime_ns for path in kept}
    resume(run_dir)
    assert {path: path.stat().st_mtime_ns for path in kept} == modified
    trained_again_from_the_checkpoint_before(run_dir, summary)


def trained_again_from_the_checkpoint_before(run_dir: Path, summary: RunSummary) -> None:
    """Assert that a run whose winner has lost its last checkpoint can be resumed, and ends as it did."""
    from adios_ray.experiment.runner import resume

    pointer = PopulationState.load(run_dir).members[summary.best_trial].checkpoint
    assert pointer is not None
    (pointer.path / STATE_FILE).write_bytes(b"damaged")
    (run_dir / "summary.json").unlink()
    with pytest.raises(FaultError, match=f"{summary.best_trial} cannot be evaluated: checkpoint .* is damaged"):
        resume(run_dir)
    resume(run_dir)
    again = read_summary(run_dir)
    assert damage(pointer) is None and again is not None
    assert again.model_copy(update={"seconds": summary.seconds}) == summary


def trained_in_one_process(config: ExperimentConfig, run_dir: Path, output: Path) -> None:
    """Assert that the driver of benchmarks, without Ray, reports the same numbers and copies the same trials."""
    train_population(config, load_space(config.space), output, Trainers(output), console=Console(quiet=True))
    of_this_machine = {"time", "images_per_s", "data_wait_fraction", "idle_s", "worker_pid", "train_s", "evaluate_s"}
    of_this_machine |= {"checkpoint_s", "load_s"}
    for read in (read_results, read_lineage):
        lines = ([line.model_dump_json(exclude=of_this_machine) for line in read(d)] for d in (run_dir, output))
        expected, found = lines
        assert found == expected and found


def replayed_alone(run_dir: Path, output: Path, best: str, state: PopulationState) -> None:
    """Assert that the best trial's schedule, trained without a population, ends with the same bits."""
    schedule = load_schedule(run_dir / "schedule.json")
    assert schedule == schedule_of(run_dir, best, run_dir) and schedule.threads == 1
    assert main(["replay", "--run", str(run_dir), "--trial", best, "--output", str(output)]) == 0
    pointer = state.members[best].checkpoint
    assert pointer is not None and sorted(path.name for path in (output / "checkpoints").iterdir())[-1] == "epoch_00004"
    trained = load_checkpoint(pointer, torch.device("cpu"))
    alone = open_checkpoint(output / "checkpoints" / "epoch_00004", torch.device("cpu"))
    assert_identical({**alone, "config": None}, {**trained, "config": None})  # seeds differ in name, not in effect


@pytest.mark.slow
def test_a_diverged_trial_is_reported_dumped_and_replaced(
    ray_cluster: None, objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where trials take turns: two of three CPUs do not fit into four."""
    from adios_ray.experiment.runner import start

    config = experiment(objects_dir, tmp_path, epochs=2)
    space = yaml.safe_load(Path(config.space).read_text())
    # The first trial keeps the configured temperature; the other draws one at which every logit overflows.
    space["parameters"]["objective.temperature"] = {"low": 1e-42, "high": 1e-41, "scale": "log"}
    Path(config.space).write_text(yaml.safe_dump(space))
    run_dir = start(config.model_copy(update={"cpus_per_worker": 3.0}))
    fitness = {(row.trial, row.epoch): row.fitness for row in read_results(run_dir)}
    assert fitness.keys() == {(f"trial_0{trial}", epoch) for trial in range(2) for epoch in (1, 2)}
    assert math.isnan(fitness["trial_01", 1]) and not math.isnan(fitness["trial_00", 2])
    (exploit,) = read_lineage(run_dir)
    assert (exploit.trial, exploit.donor, exploit.epoch) == ("trial_01", "trial_00", 1)
    summary = read_summary(run_dir)
    assert summary is not None and summary.best_trial == "trial_00"
    assert "trial_01 diverged at step 0: objective of slot 0 is nan" in capsys.readouterr().out
    dump = run_dir / "diverged" / "trial_01" / "epoch_00001"
    assert reproduce(dump, torch.device("cpu")) == "objective of slot 0 is nan"


@pytest.mark.long
def test_an_opening_leaves_a_population(ray_cluster: None, objects_dir: Path, tmp_path: Path) -> None:
    from adios_ray.experiment.runner import start

    config = experiment(objects_dir, tmp_path, epochs=2)
    space = {**yaml.safe_load(Path(config.space).read_text()), "opening": {"trials": 3, "epochs": 1}}
    Path(config.space).write_text(yaml.safe_dump(space))
    run_dir = start(config.model_copy(update={"cpus_per_worker": 2.0}))  # of four CPUs: one trial is paused
    (drop,) = read_drops(run_dir)
    rows = {(row.trial, row.epoch): row.fitness for row in read_results(run_dir)}
    ranked = sorted((f"trial_0{number}" for number in range(3)), key=lambda name: -rows[name, 1])
    assert drop.trial == next(name for name in reversed(ranked) if name != "trial_00")
    assert drop.rank == ranked.index(drop.trial) + 1 and drop.score == rows[drop.trial, 1]
    assert rows.keys() == {(name, epoch) for name in ranked for epoch in (1, 2) if epoch == 1 or name != drop.trial}
    assert read_summary(run_dir) is not None


@pytest.mark.slow
def test_an_interrupted_call_leaves_nothing_in_a_cluster_that_goes_on(
    ray_cluster: None, objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, whose process keeps its connection, and the exception with all that it refers to."""
    import ray

    from adios_ray.backend.capacity import groups
    from adios_ray.experiment.runner import start
    from adios_ray.search.population import Population

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Population, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        start(experiment(objects_dir, tmp_path, epochs=2))
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert not groups(run_dir) and kept.tb is not None
    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def in_background(config: ExperimentConfig) -> Future[Path]:
    """Start a population in a daemon thread, so that a hang does not keep the tests from exiting."""
    from adios_ray.experiment.runner import start

    result: Future[Path] = Future()

    def run() -> None:
        try:
            result.set_result(start(config))
        except BaseException as error:
            result.set_exception(error)

    Thread(target=run, daemon=True).start()
    return result


def run_dir_of(storage: Path, running: Future[Path]) -> Path:
    """Wait for the run directory and return it."""
    return until(lambda: list(storage.glob("*/population.json")), lambda: not running.done())[0].parent


@pytest.mark.slow
def test_a_driver_stops_soon_after_another_one_has_taken_its_run_over(
    ray_cluster: None, objects_dir: Path, tmp_path: Path
) -> None:
    """Not only at its next report, which may be hours away: until then its workers would write checkpoints."""
    config = experiment(objects_dir, tmp_path, epochs=MOST_EPOCHS, evaluation={"interval_epochs": MOST_EPOCHS})
    space = {**yaml.safe_load(Path(config.space).read_text()), "interval_epochs": MOST_EPOCHS}
    Path(config.space).write_text(yaml.safe_dump(space))
    running = in_background(config)
    run_dir = run_dir_of(tmp_path / "runs", running)
    until(
        lambda: (run_dir / "actors").is_dir() and any((run_dir / "actors").iterdir()),
        lambda: not running.done(),
    )
    (run_dir / "driver.json").write_text(json.dumps({"token": "another"}))
    with pytest.raises(ClaimError, match="taken over"):
        running.result(TIMEOUT_S)


@pytest.mark.slow
def test_a_fault_is_said_at_once_and_burns_no_epoch(
    ray_cluster: None, objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = in_background(experiment(objects_dir, tmp_path, epochs=2))
    run_dir = run_dir_of(tmp_path / "runs", running)
    (run_dir / "masks").mkdir(exist_ok=True)
    in_the_way, log = run_dir / "masks" / "trial_01", run_dir / "logs" / "trial_01.log"
    in_the_way.write_text("a file where the trial's masks should be written")
    until(log.exists, lambda: not running.done())
    assert not [row for row in read_results(run_dir) if row.trial == "trial_01"]
    in_the_way.unlink()
    assert running.result(TIMEOUT_S) == run_dir
    output = capsys.readouterr().out
    assert re.search(r"trial_01: its workers failed \(\w+Error: .*trial_01.*\) and are started again", output), output
    assert re.search(r" its workers failed .*\n    worker 0:\n    Traceback .*write_masks", log.read_text(), re.DOTALL)
    rows = read_results(run_dir)
    assert len(rows) == 4 and all(row.fitness >= 0 for row in rows) and "diverged" not in output


@pytest.mark.slow
def test_storage_that_is_away_for_a_while_stops_no_trial(
    ray_cluster: None, objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from soak import take_away

    storage = tmp_path / "runs"
    running = in_background(experiment(objects_dir, tmp_path, epochs=4))
    run_dir = run_dir_of(storage, running)
    until(lambda: read_results(run_dir), lambda: not running.done())
    take_away(storage)
    assert running.result(TIMEOUT_S) == run_dir
    rows = read_results(run_dir)
    assert {(row.trial, row.epoch) for row in rows} == {(f"trial_0{t}", e) for t in (0, 1) for e in range(1, 5)}
    assert all(math.isfinite(row.fitness) for row in rows)
    assert "storage refuses" in capsys.readouterr().out


def test_bad_input_is_one_line_before_anything_starts(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adios_ray.experiment.runner.connected", lambda *_: pytest.fail("it has started"))
    broken = tmp_path / "broken"
    broken.mkdir()
    manifest = json.loads((objects_dir / "manifest.json").read_text())
    del manifest["splits"]["test"]
    for file in objects_dir.glob("*.arrow"):
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "manifest.json").write_text(json.dumps(manifest))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in objects_dir.iterdir():
        content = bytearray(file.read_bytes())
        if file.name.startswith("val"):
            content[len(content) // 2] ^= 1
        (damaged / file.name).write_bytes(content)
    wrong = {
        "no data": [],
        "test": ["--data-dir", str(broken)],
        "val-00000.arrow": ["--data-dir", str(damaged)],
        "not a run directory": ["--resume", str(tmp_path)],
        "batch_size": ["--data-dir", str(objects_dir), "--batch-size", "512"],
        "no model 'resnet19'": ["--data-dir", str(objects_dir), "--batch-size", "32", "--backbone.name", "resnet19"],
        "nowhere do not exist": ["--data-dir", str(objects_dir), "--batch-size", "32", "--initial-weights", "nowhere"],
    }
    for text, arguments in wrong.items():
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        said = capsys.readouterr()
        assert ended.value.code == 2, text
        assert text in said.err and said.err.count("\n") == 1 and said.out == ""

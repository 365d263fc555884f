"""Runs that end without a result: a trial did not finish, or all diverged; what there is to see is written."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_run import make_row, recorded
from small import small_config

from adios_ray.errors import RunError
from adios_ray.experiment import evolution, runner
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.experiment.resources import Node, WorkerResources
from adios_ray.experiment.verdict import conclude
from adios_ray.run_directory import RunDirectory
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.spaces import load_space, save_space
from adios_ray.search.state import PopulationState
from adios_ray.tracking import decisions, records, results


def experiment(data_dir: Path, storage: Path) -> ExperimentConfig:
    """Configure three trials on the small data set."""
    trial = small_config(data_dir).model_dump()
    return ExperimentConfig(**trial, storage=storage, name="run", population=3, scheduler="pbt")


def test_a_trial_that_tune_has_not_trained_to_its_end_is_named_with_how_to_resume(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish_the_second(names: Sequence[str], *_: Any) -> None:
        state = PopulationState.load(tmp_path / "run")
        state.members[names[1]].finished = True
        state.save(tmp_path / "run")

    monkeypatch.setattr(runner, "connected", nullcontext)
    monkeypatch.setattr(runner, "nodes", lambda: [Node(4, 0)])
    for module in (runner, evolution):
        monkeypatch.setattr(module, "autoscaler_runs", lambda: False)
    monkeypatch.setattr(evolution, "check_nodes", lambda *_: {})
    monkeypatch.setattr(evolution, "start_channel", lambda *_: None)
    monkeypatch.setattr(evolution, "ChannelCalls", lambda _: SimpleNamespace(register=lambda *_: None))
    monkeypatch.setattr(evolution, "RayMetrics", lambda _: None)
    monkeypatch.setattr(evolution, "run_trials", finish_the_second)
    monkeypatch.setattr(evolution, "remove_orphaned", lambda _: None)
    run = tmp_path / "run"
    with pytest.raises(RunError) as stopped:
        runner.start(experiment(objects_dir, tmp_path))
    assert str(stopped.value) == f"not all trials finished (trial_00, trial_02); resume with --resume {run}"
    assert "<html" in (run / "report.html").read_text() and not RunDirectory(run).summary.exists()


@pytest.mark.parametrize("diverged", [False, True])
def test_a_run_all_of_whose_trials_diverged_or_collapsed_has_a_report_and_no_summary(
    diverged: bool, objects_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    layout, config = RunDirectory(run), experiment(objects_dir, tmp_path)
    layout.make_folders()
    records.write_config(run, config.model_dump(mode="json"))
    space = load_space(config.space, config.scheduler, config.search)
    save_space(space, layout.space)
    state = evolution.fresh_population(config, space, "checksum")
    results.begin_results(run, list(space.parameters))
    decisions.begin_lineage(run)
    for name, member in state.members.items():
        results.append_result(run, make_row(name, 2, math.nan, values=member.values))
        member.score, member.epoch, member.finished = WORST_SCORE, 2, True
        if diverged:
            layout.diverged_step(name, 2).mkdir(parents=True)
    state.save(run)
    with pytest.raises(RunError) as stopped:
        conclude(config, recorded(run), state, WorkerResources(1, 0))
    held = f"; {run}/diverged holds the steps that diverged" if diverged else ""
    assert str(stopped.value) == f"every trial diverged or collapsed{held}; lower learning rates may help"
    assert "<html" in layout.report.read_text() and not layout.summary.exists()

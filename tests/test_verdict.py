"""The final comparison of a run's trials."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from made_up_run import SETTINGS, make_exploit, make_row, make_run, recorded
from ray.exceptions import RayTaskError, WorkerCrashedError
from small import small_config

from adios_ray import devices
from adios_ray.checkpoints import Pointer
from adios_ray.errors import CheckpointError, ClaimError, DatasetError, FaultError, StorageError
from adios_ray.evaluation.fitness import Estimate
from adios_ray.evaluation.outcomes import encoded
from adios_ray.experiment import verdict
from adios_ray.experiment.config import SPACES, ExperimentConfig
from adios_ray.experiment.resources import WorkerResources
from adios_ray.experiment.verdict import LAST_REPORTS, Final, best_control, final_fitness, gain_over_control
from adios_ray.run_directory import RunDirectory
from adios_ray.search.population import WORST_SCORE
from adios_ray.search.spaces import load_space, save_space
from adios_ray.search.state import Member, PopulationState
from adios_ray.tracking.log import read_events
from adios_ray.tracking.records import RunSummary, read_summary, write_config

POINTER = Pointer(path=Path("checkpoint"), sha256="")


def test_the_evaluation_on_the_test_split_is_tried_again_and_its_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = RayTaskError("_on_test", "Traceback ...\n  in line 1", DatasetError("no data set in data"))
    away = RayTaskError("_on_test", "Traceback ...\n  in line 2", StorageError("[Errno 5] Input/output error"))
    # Ray raises the error of a task as one of its cause's type too.
    away, missing = away.as_instanceof_cause(), missing.as_instanceof_cause()
    answers = iter([WorkerCrashedError(), missing, *[away] * 9, "estimate", *[missing] * verdict.ATTEMPTS])

    def get(_: object) -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.wait", lambda tasks, **_: (tasks, []))  # another test may have connected to Ray
    monkeypatch.setattr(verdict, "PAUSE_S", 0.0)
    monkeypatch.setattr("adios_ray.retry.PAUSE_S", 0.0)
    RunDirectory(tmp_path).config.touch()
    submitted, run = list[None](), recorded(tmp_path)
    assert verdict._answer(run, "a", lambda: submitted.append(None)) == "estimate"  # type: ignore[comparison-overlap]  # no task runs
    printed = capsys.readouterr().out
    assert len(submitted) == 12 and "failed (DatasetError: no data set in data) and is" in printed
    assert printed.count("storage refuses ([Errno 5] Input/output error); retrying") == 1
    assert [event.kind for event in read_events(tmp_path)[0]] == ["restart", "restart", "wait", "wait"]
    assert (tmp_path / "logs" / "a.log").read_text().count("in line 1") == 1
    lost = RayTaskError("_on_test", "Traceback ...", CheckpointError("checkpoint a is damaged")).as_instanceof_cause()
    answers = iter([lost, "estimate"])
    assert verdict._answer(run, "a", lambda: None) == "estimate"  # type: ignore[comparison-overlap]  # as above
    answers = iter([missing, *[lost] * (verdict.ATTEMPTS - 1)])
    with pytest.raises(CheckpointError, match="checkpoint a is damaged"):
        verdict._answer(run, "a", lambda: None)
    answers = iter([lost, *[missing] * (verdict.ATTEMPTS - 1)])
    with pytest.raises(FaultError) as refused:
        verdict._answer(run, "a", lambda: submitted.append(None))
    assert f"no data set in data; {tmp_path}/logs/a.log has the traceback" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (tmp_path / "logs" / "a.log").read_text().count("in line 1") == 1 + verdict.ATTEMPTS


def test_an_interrupted_evaluation_on_the_test_split_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    cancelled = list[tuple[object, dict[str, bool]]]()
    monkeypatch.setattr("ray.get", interrupted)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.wait", lambda tasks, **_: ([], tasks))
    monkeypatch.setattr("ray.cancel", lambda task, **how: cancelled.append((task, how)))
    RunDirectory(tmp_path).config.touch()
    with pytest.raises(KeyboardInterrupt):
        verdict._answer(recorded(tmp_path), "a", lambda: "task")
    assert cancelled == [("task", {"force": True})]


@pytest.mark.parametrize(("gpus", "device", "limits"), [(0.0, "cpu", []), (0.25, "cuda:0", [(0.25, 0)])])
def test_the_evaluation_on_the_test_split_keeps_to_its_share_of_the_gpu(
    gpus: float, device: str, limits: list[tuple[float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list[tuple[float, int]]()
    monkeypatch.setattr(devices, "CONTEXT_BYTES", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**30))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: found.append((share, device.index))
    )

    class BuiltError(Exception):
        pass

    def build(config: object, device: torch.device) -> None:
        raise BuiltError(str(device))  # after the limit, which is to hold for all that is built

    monkeypatch.setattr("adios_ray.training.trainer.Trainer", build)
    with pytest.raises(BuiltError, match=f"^{device}$"):
        verdict._on_test(small_config(Path("data")), POINTER, "run", gpus)
    assert found == limits


CONCLUSION = ("schedule.json", "report.html", "summary.json")


@pytest.fixture
def concluded(
    tmp_path: Path, objects_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], None]], RunSummary]:
    """Return a function that concludes a made-up run in ``tmp_path``, under a claim that is checked as given."""
    make_run(tmp_path, trials=2)
    (tmp_path / "summary.json").unlink()
    pointer = POINTER.model_copy(update={"path": tmp_path / "checkpoints" / "a" / "epoch_00012"})
    members = {
        name: Member(values=SETTINGS, number=number, epoch=12, score=0.5, checkpoint=pointer, finished=True)
        for number, name in enumerate(("trial_00", "trial_01"))
    }
    initial = {name: member.values for name, member in members.items()}
    state = PopulationState(members=members, initial=initial, next_decision_epoch=12, epochs=12)
    config = ExperimentConfig(**small_config(objects_dir, epochs=12).model_dump(), population=2)
    state.save(tmp_path)
    write_config(tmp_path, config.model_dump(mode="json"))
    save_space(load_space(SPACES / "pbt_in100.yaml"), tmp_path / "space.yaml")
    monkeypatch.setattr(verdict, "_answer", lambda *_: verdict.OnTest(Estimate(0.4, 0.01, 0.5), 0.1))

    def conclude(check_claim: Callable[[], None]) -> RunSummary:
        return verdict.conclude(config, recorded(tmp_path, check_claim), state, WorkerResources(1, 0))

    return conclude


def test_a_run_counts_as_finished_once_all_that_concludes_it_is_written(
    concluded: Callable[[Callable[[], None]], RunSummary], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("of the training")
    times = list[tuple[bool, ...]]()

    def look() -> None:
        written = [(tmp_path / name).exists() for name in CONCLUSION]
        written[1] = (tmp_path / "report.html").read_text() != "of the training"
        times.append(tuple(written))

    summary = concluded(look)
    assert read_summary(tmp_path) == summary and all((tmp_path / name).is_file() for name in CONCLUSION)
    assert "finished" in (tmp_path / "report.html").read_text()
    assert times == sorted(times) and set(times) >= {(False,) * 3, (True, True, False)}
    assert not any(finished for *_, finished in times[: times.index((True, True, False))])


def test_a_run_finishes_although_its_report_cannot_be_drawn(
    concluded: Callable[[Callable[[], None]], RunSummary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("0.384 is not\nin list")

    monkeypatch.setattr("adios_ray.tracking.report.page.render", fail)
    assert read_summary(tmp_path) is None
    assert concluded(lambda: None) == read_summary(tmp_path) and (tmp_path / "schedule.json").is_file()
    (event,) = [event for event in read_events(tmp_path)[0] if event.kind == "note" and not event.trial]
    assert event.text.startswith("the report was not written (ValueError: 0.384 is not in list); ")
    assert "Report: " not in capsys.readouterr().out


def test_a_driver_that_was_taken_over_while_it_evaluated_concludes_nothing(
    concluded: Callable[[Callable[[], None]], RunSummary], tmp_path: Path
) -> None:
    def taken() -> None:
        raise ClaimError("taken over")

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ClaimError, match="taken over"):
        concluded(taken)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} <= {"environment.json", "events.jsonl"}
    assert after.items() >= before.items() and not (tmp_path / "events.jsonl").read_bytes()


def test_the_gain_over_the_control_is_that_of_paired_test_images() -> None:
    rng, images = np.random.default_rng(0), 400
    difficulty = rng.uniform(0.2, 0.8, images)
    skills = (0.1, 0.0)
    raw = [
        np.rint(255 * (difficulty + skill + rng.normal(0, 0.02, images)).clip(0, 1)).astype(np.uint8)
        for skill in skills
    ]
    best, control = (Estimate(outcomes.mean() / 255, 0.01, 0.5, outcomes.tobytes()) for outcomes in raw)
    gain = gain_over_control(best, control)
    expected = scipy.stats.ttest_rel(raw[0] / 255, raw[1] / 255)
    assert gain["gain"] is not None and gain["gain_standard_error"] is not None
    assert gain["gain"] / gain["gain_standard_error"] == pytest.approx(expected.statistic, rel=1e-9)
    assert gain["gain_standard_error"] < 0.1 * math.hypot(0.01, 0.01)
    # As macro F1 is: the mean of numbers of which some are outside of [0, 1].
    groups = [3 * outcomes[:50] / 255 - 1 for outcomes in raw]
    gain = gain_over_control(*(Estimate(own.mean(), 0.01, 0.5, encoded(own)) for own in groups))
    expected = scipy.stats.ttest_rel(*groups)
    assert gain["gain"] is not None and gain["gain_standard_error"] is not None
    assert gain["gain"] / gain["gain_standard_error"] == pytest.approx(expected.statistic, rel=1e-9)
    # Where the value is not the mean of the outcomes.
    others = [each._replace(value=each.value + 0.1) for each in (best, control)]
    assert gain_over_control(*others)["gain_standard_error"] == pytest.approx(math.hypot(0.01, 0.01))
    without = gain_over_control(Estimate(0.5), Estimate(0.4))
    assert without == {"gain": pytest.approx(0.1), "gain_standard_error": None}


def test_trials_are_compared_by_the_holdout_of_their_weights_last_reports() -> None:
    assert LAST_REPORTS == 3
    scores = {"a": 0.6, "b": 0.5, "c": WORST_SCORE, "d": None}
    members = {
        name: Member(values={}, number=number, checkpoint=POINTER, epoch=4, score=score)
        for number, (name, score) in enumerate(scores.items())
    }
    holdout = {"a": [0.9, 0.1, 0.2, 0.3], "b": [0.0, 0.4, 0.5, 0.6], "c": [0.9, 0.9, 0.9, 0.9]}
    rows = [
        make_row(name, epoch, 0.99, holdout_fitness=value, holdout_standard_error=0.01 * epoch)
        for name, values in holdout.items()
        for epoch, value in enumerate(values, start=1)
    ]
    state = PopulationState(members=members, next_decision_epoch=9)
    finals = final_fitness(state, rows, [])
    assert list(finals) == ["a", "b"]
    assert finals["a"] == pytest.approx(Final(0.2, 0.03)) and finals["b"] == pytest.approx(Final(0.5, 0.03))
    copied = final_fitness(state, rows, [make_exploit(3, "a", "b")])  # the donor's two, then its own
    assert copied["a"].fitness == pytest.approx((0.4 + 0.5 + 0.3) / 3)
    earlier = [row.model_copy(update={"holdout_fitness": math.nan, "standard_error": None}) for row in rows]
    assert final_fitness(state, earlier, [])["a"] == Final(0.99, None)


def test_a_trial_that_kept_the_configured_values_as_long_as_the_best_is_a_control() -> None:
    """In a search without controls; one that was stopped early is none."""
    finals = {"a": Final(0.4, 0.03), "b": Final(0.6, 0.04), "c": Final(0.5, None)}
    members = {
        name: Member(values={"masking.slots": slots}, number=slots, checkpoint=POINTER, epoch=4, score=0.5)
        for name, slots in (("a", 3), ("b", 4), ("c", 5))
    }
    state, configured = PopulationState(members=members, next_decision_epoch=9), {"masking.slots": 3}
    assert best_control(state, finals, "b") is None
    assert best_control(state, finals, "b", configured) == "a"
    members["a"].epoch = 1
    assert best_control(state, finals, "b", configured) is None
    for member in members.values():  # repetitions of one training, without a search
        member.values, member.epoch = {}, 4
    assert best_control(state, finals, "b", {}) is None

"""The doctor: its checks of an objective, of a machine, and of whether a preset fits."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import COUNTS, make_objects, small_config
from torch import nn

from adios_ray.cli import main
from adios_ray.commands import doctor
from adios_ray.config import TrialConfig
from adios_ray.errors import MemoryLimitError
from adios_ray.experiment.resources import Node
from adios_ray.training import cost
from adios_ray.training.cost import StepCost, measure_step
from adios_ray.training.diagnosis import CHECKS

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a machine of two CPUs without a cluster, and a working directory in which nothing is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adios_ray.devices.best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(doctor, "_cluster", lambda on_gpu: ([Node(2, 0)], False))


@pytest.mark.slow
def test_an_objective_without_faults_passes_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--objective", "simclr"]) == 0
    *checks, last = capsys.readouterr().out.splitlines()
    assert checks == [f"{name}: as it should be" for name in (*CHECKS, "gradients of several workers")]
    assert re.fullmatch(r"simclr: checked in \d+ s", last)


@pytest.mark.slow
def test_a_preset_is_measured_for_a_data_set_and_nothing_is_written(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert main(["doctor", "--preset", "demo", "--data-dir", str(objects_dir), "--seconds", "0"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["cluster"] == "none is running; a run starts one on this machine"
    assert lines["data"] == f"{objects_dir}: 96 training images of 32 pixels"
    assert float(lines["speed"].split()[0]) > 0 and "images/s of 32 pixels on one " in lines["speed"]
    assert re.match(r"4 trials, [1-4] at once, 6 epochs of 96 images: ", lines["preset demo"])
    assert re.fullmatch(r"about \S+ of \S+ GiB", lines["memory"]) and re.fullmatch(
        r"about \S+ of \S+ GiB", lines["disk"]
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("memory", "free", "said"),
    [
        (8, 2, ["memory: about 4 of 8 GiB", "disk: about 1 of 2 GiB"]),
        (
            3,
            0.5,
            [
                "! memory: about 4 of 3 GiB: lower --batch-size or give --micro-batch-size",
                "! disk: about 1 of 0.5 GiB: name another --storage",
            ],
        ),
    ],
)
@pytest.mark.usefixtures("machine")
def test_what_a_preset_needs_follows_from_a_measured_step(
    memory: float, free: float, said: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four trials run at once, with two checkpoints each; 6 epochs of 4,200 images take 504 s on both cores."""
    step = StepCost(seconds_per_image=0.01, state_bytes=GIB // 8, memory_bytes=GIB)
    monkeypatch.setattr(cost, "measure_step", lambda config, size, device, seconds: step)
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: int(memory * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * GIB))
    problems = sum(line.startswith("!") for line in said)
    assert main(["doctor", "--preset", "demo"]) == (1 if problems else 0)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-4:] == [
        "speed: 100 images/s of 32 pixels on one CPU core",
        "preset demo: 4 trials, 4 at once, 6 epochs of 4,200 images: 8 min 24 s of steps (evaluations not counted)",
        *said,
    ]
    assert captured.err == ("error: 2 problems, marked with ! above\n" if problems else "")


@pytest.mark.parametrize(
    ("counts", "options", "problem"),
    [
        ({"train": 20}, [], "has no 'val' split (it has train); prepare it with one"),
        (COUNTS, ["--preset", "in100s"], "batch_size 128 is more than the 96 training images"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_data_that_a_run_would_refuse_are_a_problem(
    counts: dict[str, int],
    options: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = StepCost(seconds_per_image=0.01, state_bytes=1, memory_bytes=1)
    monkeypatch.setattr(cost, "measure_step", lambda config, size, device, seconds: step)
    make_objects(Path("set"), counts=counts)
    assert main(["doctor", "--data-dir", "set", *options]) == 1
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("!")]
    assert len(marked) == 1 and marked[0].startswith("! data: ") and problem in marked[0]


@pytest.mark.usefixtures("machine")
def test_images_without_labels_are_no_problem_and_the_measure_for_them_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = StepCost(seconds_per_image=0.01, state_bytes=1, memory_bytes=1)
    monkeypatch.setattr(cost, "measure_step", lambda config, size, device, seconds: step)
    make_objects(Path("set"), counts={"train": 64, "val": 64, "test": 64}, one_class=True)
    assert main(["doctor", "--data-dir", "set", "--preset", "demo"]) == 0
    advice = "of one class: train with --evaluation.fitness rankme --scheduler none"
    assert f"data: set: 64 training images of 32 pixels {advice}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("machine")
def test_a_memory_too_small_for_any_step_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: object) -> StepCost:
        raise MemoryLimitError("a step of 2 images does not fit")

    monkeypatch.setattr(cost, "measure_step", measure)
    assert main(["doctor", "--preset", "demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "! memory: a step of 2 images does not fit"
    assert captured.err == "error: 1 problem, marked with ! above\n"


def test_a_batch_that_does_not_fit_is_halved_and_its_memory_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose whole batch is tried first."""
    tried, fitting = list[int](), 4
    cpu, config, peaks = torch.device("cpu"), small_config(Path("nowhere")), iter([100, 130, 100])

    def build(config: TrialConfig, size: int, batch_size: int, device: torch.device) -> tuple[object, ...]:
        tried.append(batch_size)
        if batch_size > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nn.Linear(1, 1), SimpleNamespace(all=dict), lambda: None

    monkeypatch.setattr(cost, "random_step", build)
    monkeypatch.setattr(cost, "_peak_bytes", lambda device: next(peaks))
    found = measure_step(config, 32, cpu)
    assert tried == [32, 16, 8, 4]
    assert found.memory_bytes == (130 - 100) * 32 // 4 and found.state_bytes == 2 * 4
    fitting = 1
    with pytest.raises(MemoryLimitError, match="a step of 2 images of 32 pixels does not fit into the memory of this"):
        measure_step(config, 32, cpu)


def test_the_memory_of_a_gpu_is_reset_once_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before CUDA is in use, torch refuses to reset the statistics of a GPU that is given by its number."""
    done = list[str]()

    def build(*_: object) -> tuple[object, ...]:
        done.append("built")
        return nn.Linear(1, 1), SimpleNamespace(all=dict), lambda: None

    monkeypatch.setattr(cost, "random_step", build)
    monkeypatch.setattr(cost, "prepare_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append("reset"))

    def timed(*_: object) -> float:
        done.append("step")
        return 0.1

    monkeypatch.setattr(cost, "timed", timed)
    monkeypatch.setattr(cost, "_peak_bytes", lambda device: 7)
    assert measure_step(small_config(Path("nowhere")), 32, torch.device("cuda", 0)).memory_bytes == 7
    assert done[:3] == ["built", "reset", "step"]


def test_another_error_of_a_measured_step_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> object:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(cost, "random_step", build)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure_step(small_config(Path("nowhere")), 32, torch.device("cpu"))

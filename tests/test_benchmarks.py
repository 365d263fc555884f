"""Benchmarks, each run at its smallest size: what changes in the package must not leave one behind."""

import io
import itertools
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import features
import numpy as np
import pytest
import shared_pages
import torch
from encoded_images import picture
from made_up_run import make_row
from objects_curves import RealRun
from PIL import Image
from small import make_objects
from startup import first_step
from torch import Tensor, nn

from adios_ray.data.shards import open_shards
from adios_ray.errors import DatasetError, EvaluationError, UsageError
from adios_ray.search.state import Observation, PopulationState
from adios_ray.tracking.decisions import Exploit, append_decision, begin_lineage

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        "augment.py",
        "exploit.py --runs 1",
        "features.py --rounds 1 --image-size 32 --features 500 --classes 10",
        "launches.py",
        "loader.py --source pictures --image-size 32 --stored-size 48",
        "memory.py",
        "population.py --populations 4 8",
        "prepare.py --source pictures --images 60 --image-size 32",
        "scale.py --classes 100",
        "schedulers.py --seeds 1",
        "shared_pages.py --images 1024 --trials 2",
        "startup.py --population 2",
        "step.py --rounds 1 --rows 0",
    ],
)
def test_a_benchmark_prints_one_json_object(command: str, tmp_path: Path) -> None:
    for kind in ("ant", "bee"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(300):  # several batches
            image = Image.open(io.BytesIO(picture(number, 40, 56)))
            image.save(tmp_path / "pictures" / kind / f"{number}.jpg")
    name, *options = command.split()
    run = [sys.executable, str(BENCHMARKS / name), *options]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert isinstance(json.loads(done.stdout), dict)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ("exploit.py --runs 0", "--runs 0 must be greater than or equal to 1"),
        ("features.py --classes 1", "--classes 1 must be greater than or equal to 2"),
        ("objects_curves.py", "name at least one run directory"),
        ("population.py --populations 4 0", "--populations 0 must be greater than or equal to 1"),
        ("prepare.py --source /nonexistent", "/nonexistent has no JPEGs"),
        ("schedulers.py --seeds 0", "--seeds 0 must be greater than or equal to 1"),
        ("shared_pages.py --trials 1", "--trials 1 must be greater than or equal to 2"),
        (
            f"search.py --data objects --data-dir data --output {BENCHMARKS / 'step.py'}",
            f"--output {BENCHMARKS / 'step.py'} is there already, and of another kind: remove it, or name another file",
        ),
        ("step.py --rows 99", "--rows 99: the rows are 0 to 14"),
        ("step.py --rouns 3", "--rouns is not known; did you mean --rounds?"),
        (
            "../experiments/compare_orders.py --data-dir data --output runs.jsonl --recipe photos",
            "--recipe photos is not one of photographs, objects; did you mean photographs?",
        ),
    ],
)
def test_a_wrong_use_ends_in_one_line(
    command: str, refusal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command.split()
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert capsys.readouterr() == ("", f"error: {refusal}\n")


def test_a_comparison_of_orders_resumes_behind_a_line_that_was_cut_off(
    objects_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(BENCHMARKS.parent / "experiments" / "compare_orders.py"))
    main, output = script["main"], tmp_path / "deep" / "orders.jsonl"
    options = partial(script["Options"], objects_dir, recipe="objects", seeds=1, threads=torch.get_num_threads())
    trained = []

    def train(options: Any, order: str, seed: int) -> dict[str, Any]:
        trained.append(order)
        run = {"data": script["name_of"](options.data_dir), "recipe": options.recipe, "order": order, "seed": seed}
        return {**run, "epochs": options.epochs, "knn": 50.0, "linear": 50.0, "seconds": 1}

    monkeypatch.setitem(main.__globals__, "train", train)
    with pytest.raises(DatasetError, match="no data set in"):
        main(replace(options(output), data_dir=tmp_path / "nowhere"))
    with pytest.raises(EvaluationError, match="linear: images of .*scenes have several labels each"):
        main(replace(options(output), data_dir=make_objects(tmp_path / "scenes", multi_label=True)))
    without_test = make_objects(tmp_path / "untested", counts={"train": 96, "val": 40})
    with pytest.raises(DatasetError, match="untested has no 'test' split"):
        main(replace(options(output), data_dir=without_test))
    assert not output.parent.exists() and not trained
    main(options(output))
    whole = output.read_bytes()
    output.write_bytes(whole[:-9])
    main(options(output))
    assert trained == ["simultaneous", "alternating", "alternating"] and output.read_bytes() == whole
    output.write_bytes(whole[:9] + whole)
    with pytest.raises(UsageError, match="orders.jsonl, line 1: not JSON"):
        main(options(output))
    foreign = tmp_path / "note.txt"
    foreign.write_text("no run")
    with pytest.raises(UsageError, match="is there already, and of another kind"):
        main(options(foreign))
    assert foreign.read_text() == "no run"


class Counter(nn.Module):
    """Counts the images that pass through it."""

    def __init__(self) -> None:
        """Begin at 0."""
        super().__init__()
        self.weight, self.images = nn.Parameter(torch.zeros(())), 0

    def forward(self, x: Tensor) -> Tensor:
        """Count."""
        self.images += len(x)
        return x.mean(dim=(2, 3)) + self.weight


@pytest.mark.parametrize("images", [100, 300])
def test_an_extraction_is_compared_with_passes_of_as_many_images(
    images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, options = Counter(), features.Options(images=images, image_size=32)
    monkeypatch.setattr(features, "build_backbone", lambda config, size: (backbone, 3))
    split = features.write_images(tmp_path, options)
    assert len(split) == images
    for work in features.extraction_pair(split, options):
        backbone.images = 0
        work()
        assert backbone.images == images


def test_shared_pages_stores_as_many_images_as_asked_for(tmp_path: Path) -> None:
    size = shared_pages.make_data(tmp_path, 1500)
    split = open_shards(tmp_path).split("train")
    assert len(split) == 1500 and size > 1500 * 96 * 96 * 3
    assert not np.array_equal(*split.gather(np.array([0, 1024])))


def test_bends_are_those_of_reports_where_values_stayed(tmp_path: Path) -> None:
    scores = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2]  # by epoch; it rises faster from epoch 6 on
    state = PopulationState(next_decision_epoch=1)
    for epoch, pair in enumerate(itertools.pairwise(scores), start=1):
        state.observations[f"a {epoch}"] = Observation(trial="a", values={}, epochs=(epoch - 1, epoch), scores=pair)
    state.save(tmp_path)
    begin_lineage(tmp_path)
    assert RealRun(tmp_path).bends() == pytest.approx([0, 0, -0.05, 0, 0])
    explored = Exploit(time=datetime.now(UTC), epoch=6, trial="a", donor="a", old={}, new={}, scores={})
    append_decision(tmp_path, explored)
    assert RealRun(tmp_path).bends() == pytest.approx([0, 0, 0])


def test_the_first_step_is_before_training_evaluation_and_checkpoint() -> None:
    row = make_row("a", 1, train_s=4.0, evaluate_s=2.0, checkpoint_s=0.5)
    assert row.time.timestamp() - first_step(row) == pytest.approx(6.5)

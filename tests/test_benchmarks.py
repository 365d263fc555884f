"""Benchmarks, each run at its smallest size: what changes in the package must not leave one behind."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from encoded_images import picture
from PIL import Image

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
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}

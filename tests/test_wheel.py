"""The built package works like a clone: installed elsewhere, it trains a population from there."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from adios_ray.experiment.config import PRESETS, SPACES

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed and return its output."""
    ended = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_wheel_that_is_installed_elsewhere_trains_a_population(objects_dir: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    copy = tmp_path / "clone"  # setuptools builds beside the sources
    run("git", "clone", "--quiet", ROOT, copy, cwd=tmp_path)
    options = ("--quiet", "--no-deps", "--no-build-isolation")  # with the installed setuptools: no network
    run(*pip, "wheel", *options, "--wheel-dir", tmp_path / "built", copy, cwd=tmp_path)
    (wheel,) = (tmp_path / "built").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"adios_ray/search_spaces/{path.name}" for path in SPACES.glob("*.yaml")} < names
    assert {f"adios_ray/presets/{path.relative_to(PRESETS)}" for path in PRESETS.rglob("*.yaml")} < names
    installed = tmp_path / "installed"
    run(*pip, "install", "--quiet", "--no-deps", "--target", installed, wheel, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    settings = ("--data-dir", objects_dir, "--population", "2", "--epochs", "1", "--storage", "runs")
    train = ("-m", "adios_ray", "train", "--preset", "demo", "--space", "asha_demo", *settings)
    printed = run(sys.executable, *train, cwd=elsewhere, PYTHONPATH=str(installed), RAY_ADDRESS="local")
    (directory,) = (elsewhere / "runs").glob("asha_demo-*")
    assert f"Report: {directory / 'report.html'}" in printed
    assert json.loads((directory / "summary.json").read_text())["population"] == 2
    code = "import adios_ray, pathlib; print(pathlib.Path(adios_ray.__file__).parent.parent, adios_ray.__version__)"
    assert run(sys.executable, "-c", code, cwd=elsewhere, PYTHONPATH=str(installed)).split() == [
        str(installed),
        "0.1.0",
    ]

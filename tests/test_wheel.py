"""The built package works like a clone, installed elsewhere and started from there."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # which is built once


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed and return its output."""
    ended = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of the last commit."""
    directory = tmp_path_factory.mktemp("wheel")
    copy = directory / "clone"  # setuptools builds beside the sources
    run("git", "clone", "--quiet", ROOT, copy, cwd=directory)
    options = ("--quiet", "--no-deps", "--no-build-isolation")  # with the installed setuptools: no network
    run(*PIP, "wheel", *options, "--wheel-dir", directory / "built", copy, cwd=directory)
    (built,) = (directory / "built").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Install the wheel in a folder of its own."""
    folder = wheel.parent.parent / "installed"
    run(*PIP, "install", "--quiet", "--no-deps", "--target", folder, wheel, cwd=wheel.parent)
    return folder


def test_a_wheel_has_all_files_of_the_package(wheel: Path) -> None:
    def committed(folder: str) -> set[str]:
        return set(run("git", "ls-tree", "-r", "--name-only", "HEAD", folder, cwd=ROOT).splitlines())

    spaces = {f"adios_ray/{name}" for name in committed("search_spaces")}  # by way of a link, which is no file
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == committed("adios_ray") - {"adios_ray/search_spaces"} | spaces and spaces


def test_a_wheel_that_is_installed_elsewhere_is_what_is_imported(installed: Path, tmp_path: Path) -> None:
    code = "import adios_ray, pathlib; print(pathlib.Path(adios_ray.__file__).parent.parent, adios_ray.__version__)"
    found = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert found.split() == [str(installed), "0.1.0"]


@pytest.mark.long
@pytest.mark.ray
def test_a_wheel_that_is_installed_elsewhere_trains_a_population(
    installed: Path, objects_dir: Path, tmp_path: Path
) -> None:
    settings = ("--data-dir", objects_dir, "--population", "2", "--epochs", "1", "--storage", "runs")
    train = ("-m", "adios_ray", "train", "--preset", "demo", "--space", "asha_demo", *settings)
    printed = run(sys.executable, *train, cwd=tmp_path, PYTHONPATH=str(installed), RAY_ADDRESS="local")
    (directory,) = (tmp_path / "runs").glob("asha_demo-*")
    assert f"Report: {directory / 'report.html'}" in printed
    assert json.loads((directory / "summary.json").read_text())["population"] == 2

"""Startup time of a population of four on this machine, from launch to the first step, by stage.

Prints one JSON object of the seconds after the launch at which the last of the four trials reached each stage: ``ray``
(imports of the driver, Ray itself and the checks), ``trials`` (the processes of their actors), ``workers`` (those of
their workers), ``first_step``; and ``imports``, the seconds that one process of each kind took for its imports. All are
single measurements.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from adios_ray.arguments import parse_arguments
from adios_ray.config import Count
from adios_ray.errors import exit_status
from adios_ray.tracking.results import Row, read_results

ROOT = Path(__file__).resolve().parent.parent
TITLES = {"trials": "ray::ResourceTrainable", "workers": "ray::RayTrainWorker"}
IMPORTS = {
    "driver": "adios_ray.experiment.runner",
    "trial": "adios_ray.backend.trial",
    "worker": "adios_ray.backend.loop",
    "command_line": "adios_ray.experiment.command",
}


@dataclass(frozen=True)
class Options:
    """Size of the measurement."""

    population: Count = 4
    """Number of trials."""


def import_seconds(module: str) -> float:
    """Measure the wall seconds of a fresh interpreter that imports a module, less those of one that imports nothing."""
    seconds = []
    for code in ("pass", f"import {module}"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - began)
    return seconds[1] - seconds[0]


def watch(driver: "subprocess.Popen[bytes]", storage: Path, population: int) -> dict[str, float]:
    """Return the times at which the processes of each kind were complete, and of the last trial's first step."""
    seen: dict[str, dict[int, float]] = {kind: {} for kind in TITLES}
    moments: dict[str, float] = {}
    while driver.poll() is None:
        runs = list(storage.glob("*/population.json"))
        if runs and "ray" not in moments:
            moments["ray"] = time.time()
        for process in psutil.process_iter(["cmdline", "create_time"]):
            line = (process.info["cmdline"] or [""])[0]
            for kind, title in TITLES.items():
                if line.startswith(title):
                    seen[kind].setdefault(process.pid, process.info["create_time"])
        time.sleep(0.25)  # watching takes time of a core, too
    for kind, processes in seen.items():
        moments[kind] = sorted(processes.values())[min(population, len(processes)) - 1]
    rows = [row for row in read_results(next(storage.glob("*-*"))) if row.epoch == 1]
    moments["first_step"] = max(map(first_step, rows))
    return moments


def first_step(row: Row) -> float:
    """Compute when a trial took its first step, in seconds since 1970, from its first report."""
    return row.time.timestamp() - row.train_s - row.evaluate_s - row.checkpoint_s


def main(options: Options) -> None:
    """Start a population that trains one epoch, and print when each stage was reached."""
    with tempfile.TemporaryDirectory() as temporary:
        data, storage = Path(temporary) / "objects", Path(temporary) / "runs"
        program = [str(Path(sys.executable).with_name("adios-ray")), "prepare", "--dataset", "objects"]
        images = ["--num-images", "1000", "--train-images", "640", "--image-size", "32", "--output", str(data)]
        subprocess.run([*program, *images], check=True, capture_output=True)
        script = [sys.executable, str(ROOT / "experiments" / "pbt_in100.py"), "--preset", "demo", "--epochs", "1"]
        where = ["--data-dir", str(data), "--storage", str(storage), "--population", str(options.population)]
        began = time.time()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": dict(os.environ)}
        driver = subprocess.Popen([*script, *where], **quiet)  # type: ignore[call-overload]  # keywords in a dictionary
        moments = watch(driver, storage, options.population)
    parts = {name: round(moment - began, 1) for name, moment in moments.items()}
    imports = {name: round(import_seconds(module), 2) for name, module in IMPORTS.items()}
    print(json.dumps({"population": options.population, **parts, "imports": imports}))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

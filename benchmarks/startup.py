"""From launch to the first step: a population of four on this machine, split into its parts.

Prints one JSON object of seconds since the launch at which each part was reached for the last of the four trials:
``ray`` (imports of the driver, Ray itself and the checks), ``trials`` (their actors' processes), ``controllers`` (Ray
Train's), ``workers`` (their processes), ``first_step``; and ``imports``, seconds that a process of each kind takes to
import what it uses.
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
import tyro

from adios_ray.errors import exit_status
from adios_ray.tracking.records import read_results

ROOT = Path(__file__).resolve().parent.parent
TITLES = {"trials": "ray::ResourceTrainable", "controllers": "ray::TrainController", "workers": "ray::RayTrainWorker"}
IMPORTS = {
    "driver": "adios_ray.experiment.runner",
    "trial": "adios_ray.backend.trial",
    "worker": "adios_ray.backend.loop",
    "command_line": "adios_ray.experiment.command",
}


@dataclass(frozen=True)
class Options:
    """What to start."""

    population: int = 4
    """Trials."""


def import_seconds(module: str) -> float:
    """Wall seconds of a fresh interpreter that imports a module, less those of one that imports nothing."""
    seconds = []
    for code in ("pass", f"import {module}"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - began)
    return seconds[1] - seconds[0]


def watch(driver: "subprocess.Popen[bytes]", storage: Path, population: int) -> dict[str, float]:
    """Moments at which the processes of each kind were all there, and of the last trial's first step."""
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
        time.sleep(0.05)
    for kind, processes in seen.items():
        moments[kind] = sorted(processes.values())[min(population, len(processes)) - 1]
    rows = [row for row in read_results(next(storage.glob("*-*"))) if row.epoch == 1]
    moments["first_step"] = max(row.time.timestamp() - 640 / row.images_per_s for row in rows)
    return moments


def main(options: Options) -> None:
    """Start a population that trains one epoch, and print when what was reached."""
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
    options = tyro.cli(Options)
    sys.exit(exit_status(lambda: main(options)))

"""Ctrl-C in a terminal, its end, and SIGTERM end a run in one line, with nothing left running and no epoch lost."""

import os
import pty
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from waiting import TIMEOUT_S, until

from adios_ray.search.state import PopulationState

AT_ONCE_S = 5.0
"""Most seconds for an end without any cleaning up; one in order takes longer, at least those of Ray's shutdown."""
pytestmark = [pytest.mark.ray, pytest.mark.long]


class Driver:
    """A driver in a terminal of its own."""

    def __init__(self, *command: str) -> None:
        """Start it."""
        self.process, self._terminal = pty.fork()
        if not self.process:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup may have made the tests ignore
            os.execvp(command[0], command)

    def wait_for_epoch(self, run: Path, epoch: int) -> dict[str, int]:
        """Wait until a trial has trained an epoch; return the epochs of all."""

        def reached() -> dict[str, int] | None:
            found = epochs(run)
            return found if max(found.values(), default=0) >= epoch else None

        return until(reached, lambda: not os.waitpid(self.process, os.WNOHANG)[0])

    def press_control_c(self) -> None:
        """Type it: the terminal makes it a signal for all processes in the foreground."""
        os.write(self._terminal, b"\x03")

    def close_terminal(self) -> int:
        """Close it, which the system tells all processes in the foreground; return the status."""
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def end(self) -> tuple[int, list[str], list[psutil.Process]]:
        """Wait for the end; return the status, the lines that were printed, and the processes that ran before."""
        processes = psutil.Process(self.process).children(recursive=True)
        printed = b""
        try:
            while some := os.read(self._terminal, 2**16):
                printed += some
        except OSError:  # what Linux says at the end of a terminal's last process
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self._terminal)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", printed.decode())  # without colors; Ray resets them at its exit
        return status, [line for line in text.splitlines() if line.strip()], processes


def epochs(run: Path) -> dict[str, int]:
    """Read the epoch of each trial; empty before there is a population."""
    if not (run / "population.jsonl").is_file():
        return {}
    return {name: member.epoch for name, member in PopulationState.load(run).members.items()}


def test_an_interrupted_run_ends_in_one_line_and_the_same_command_resumes_it(objects_dir: Path, tmp_path: Path) -> None:
    options = f"--preset demo --data-dir {objects_dir} --batch-size 32 --epochs 500 --population 2 --name one"
    command = [sys.executable, "-m", "adios_ray", "train", *options.split(), "--storage", str(tmp_path)]
    run, before = tmp_path / "one", dict[str, int]()
    for number, cause in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM")):
        driver = Driver("env", "RAY_ADDRESS=local", *command)
        before = driver.wait_for_epoch(run, max(before.values(), default=0) + 1)
        processes = psutil.Process(driver.process).children(recursive=True)
        if number == signal.SIGINT:
            driver.press_control_c()
        else:
            os.kill(driver.process, number)
        status, lines, more = driver.end()
        assert status == 128 + number
        assert lines[-1].endswith(f"{cause}; what was reported is kept: resume with --resume {run}")
        assert not [line for line in lines if "Traceback" in line or "*** SIG" in line or "StackTrace" in line]
        _, alive = psutil.wait_procs({*processes, *more}, TIMEOUT_S)
        assert not alive
        assert all(epoch >= before[name] for name, epoch in epochs(run).items())
        assert not list(run.glob("driver.json"))
    driver = Driver("env", "RAY_ADDRESS=local", *command)
    before = driver.wait_for_epoch(run, max(before.values()) + 1)
    processes = psutil.Process(driver.process).children(recursive=True)
    driver.press_control_c()
    time.sleep(0.2)  # while it ends in order
    driver.press_control_c()
    began = time.monotonic()
    status, lines, more = driver.end()
    assert status == 128 + signal.SIGINT and time.monotonic() - began < AT_ONCE_S
    assert list(run.glob("driver.json"))  # nothing was put in order
    assert not [line for line in lines if "Traceback" in line or "*** SIG" in line or "StackTrace" in line]
    assert not psutil.wait_procs({*processes, *more}, TIMEOUT_S)[1]
    driver = Driver("env", "RAY_ADDRESS=local", *command)
    driver.wait_for_epoch(run, max(before.values()) + 1)
    processes = psutil.Process(driver.process).children(recursive=True)
    assert driver.close_terminal() == 128 + signal.SIGHUP
    assert not psutil.wait_procs(processes, TIMEOUT_S)[1] and not list(run.glob("driver.json"))

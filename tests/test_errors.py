"""Errors: one class tree, equal to the one drawn in its docstring, and one line for the user."""

import inspect
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adios_ray import errors
from adios_ray.errors import (
    AdiosRayError,
    ConfigError,
    InputError,
    Interrupted,
    RunError,
    StorageError,
    check_stop,
    exit_status,
    resumable,
)

ROOT = Path(__file__).parent.parent


def raiser(error: BaseException) -> None:
    """Raise an error, as a program that fails."""
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("epochs = 0: too few"), 2, "error: epochs = 0: too few"),
        (StorageError("storage is full"), 1, "error: storage is full"),
        (FileNotFoundError(2, "No such file", "here"), 2, "error: here: No such file"),
        (KeyboardInterrupt(), 130, "interrupted; run it again"),
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM; run it again"),
        (Interrupted(signal.SIGHUP), 129, "stopped by SIGHUP; run it again"),
    ],
)
def test_an_expected_error_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: raiser(error), "run it again") == status
    assert capsys.readouterr().err == line + "\n"


def test_the_innermost_block_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        with resumable(), resumable("continue there"):
            raise KeyboardInterrupt

    assert exit_status(program, "run it again") == 130
    assert capsys.readouterr().err == "interrupted; continue there\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the destructor's, which is dropped
def test_the_first_signal_is_raised_even_if_a_destructor_drops_it_and_handlers_are_put_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def program() -> None:
        Dropping()
        print("went on")
        check_stop()

    before = signal.getsignal(signal.SIGTERM)
    assert exit_status(program) == 143
    said = capsys.readouterr()
    assert (said.out, said.err) == ("went on\n", "stopped by SIGTERM\n")
    assert signal.getsignal(signal.SIGTERM) is before
    check_stop()  # nothing is left of it


def test_a_signal_is_named_even_if_another_exception_took_the_place_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def program() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # as Ray does

    assert exit_status(program) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_the_second_signal_ends_a_process_that_does_not_come_to_its_end() -> None:
    script = (
        "import os, signal, sys\nfrom adios_ray.errors import exit_status\n"
        "def program():\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGTERM)\n        print('went on')\n"
        "sys.exit(exit_status(program))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


def test_sigterm_that_is_sent_twice_at_once_is_one_request() -> None:
    """SLURM sends it to all processes of a job that is cancelled, and its script passes it on."""
    script = (
        "import os, signal, sys\nfrom adios_ray import errors\n"
        "def program():\n    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGTERM)\n        print('went on', flush=True)\n"
        "        errors.TOGETHER_S = 0.0 if len(sys.argv) > 1 else errors.TOGETHER_S\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        print('ended in order')\n"
        "sys.exit(errors.exit_status(program))"
    )
    for later, said in ((False, "went on\nended in order\n"), (True, "went on\n")):
        arguments = [sys.executable, "-c", script, *(["later"] if later else [])]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        expected = (143, said, "" if later else "stopped by SIGTERM\n")
        assert (done.returncode, done.stdout, done.stderr) == expected


def test_a_closed_terminal_ends_a_program_in_order(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom adios_ray.console import say\n"
        "from adios_ray.errors import check_stop, exit_status\n"
        "def program():\n    try:\n        say('ready')\n        time.sleep(60)\n"
        "    finally:\n        os.kill(os.getpid(), 1)\n        say('ends')\n        Path('ended').touch()\n"
        "sys.exit(exit_status(program))"
    )
    process, terminal = pty.fork()
    if not process:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup may have made the tests ignore
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)})
    assert os.read(terminal, 100).startswith(b"ready")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 129
    assert (tmp_path / "ended").exists()


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        assert exit_status(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_success_is_silent_and_a_fault_of_the_program_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(lambda: 7) == 0 and capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)


def test_the_tree_equals_its_drawing() -> None:
    assert errors.__doc__ is not None
    above: list[str] = []
    drawn = {}
    for line in errors.__doc__.splitlines():
        if found := re.match(r"    ((?:│   |    |├── |└── )*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            drawn[found[2]] = above[depth - 1] if depth else "Exception"
    defined = {
        name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert drawn == {name: kind.__bases__[0].__name__ for name, kind in defined.items()}
    assert issubclass(InputError, ValueError) and issubclass(RunError, RuntimeError)
    assert all(issubclass(kind, AdiosRayError) for kind in defined.values())


@pytest.mark.slow
def test_a_damaged_lineage_ends_a_replay_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "population.json").write_text(
        '{"next_decision_epoch": 2, "lineage_lines": 1, "members": {"trial_00": {"values": {}, "number": 0}}, '
        '"initial": {"trial_00": {}}}'
    )
    (tmp_path / "lineage.jsonl").write_text('{"epoch": \n')
    options = ["--run", str(tmp_path), "--trial", "trial_00", "--output", str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "experiments" / "replay_schedule.py"), *options]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {tmp_path / 'lineage.jsonl'}, line 1: ")
    assert ended.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_reader_that_has_had_enough_ends_the_program_in_silence() -> None:
    code = "import sys; from adios_ray.errors import exit_status; sys.exit(exit_status(lambda: print('x' * 10**6)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b"" and program.wait() == 141


@pytest.mark.slow
def test_a_program_joins_no_cluster_by_a_call_of_rays_interface() -> None:
    """As from a thread that is left when Ray was shut down: Ray itself would start or join a cluster."""
    program = "from adios_ray.errors import exit_status; exit_status(lambda: __import__('ray').put(1))"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert done.returncode == 1 and "Ray has not been started yet" in done.stderr

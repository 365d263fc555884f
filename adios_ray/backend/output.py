"""Copies of the output of workers' processes for the driver, because files of a node are lost with it.

Each process passes its lines on itself. What it prints last before it dies is read from its files afterwards.
"""

import os
import stat
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import BinaryIO, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adios_ray.ray_private import LOG_MARKERS

INTERVAL_S = 0.5
"""Seconds between two looks for new output."""
CHUNK_BYTES = 2**16
"""Most that is passed on of each stream at a time; what is printed faster is left out."""
REST_S = 10.0
"""Seconds that nodes have to return what processes printed last there."""


class Unread(NamedTuple):
    """Files of a process that may hold more than it has passed on.

    Attributes:
        node: ID of its node.
        process: Its own ID, which Ray gives to no other process.
        positions: By the path of each file, the bytes that were passed on.
    """

    node: str
    process: str
    positions: Mapping[str, int]


class OutputCopy(AbstractContextManager["OutputCopy"]):
    """Passes on the lines that this process prints during a block, those of libraries in C++ too."""

    def __init__(self, send: Callable[[str, Mapping[str, int]], None], descriptors: Sequence[int] = (1, 2)) -> None:
        """Follow standard output and error, if they are files, as Ray makes them.

        Args:
            send: Called with new lines and ``Unread.positions`` behind them: now, with each part, and at the end, when
                nothing is left to read.
            descriptors: File descriptors to follow.
        """
        self._send = send
        # Opened again by the descriptor's path, so that reading has a position of its own.
        self._files = [
            open(f"/proc/self/fd/{number}", "rb")  # closed at the end of the block
            for number in descriptors
            if stat.S_ISREG(os.fstat(number).st_mode)
        ]
        for file in self._files:
            file.seek(0, os.SEEK_END)
        send("", self._positions())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Pass on what is left."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._ended.set()
        self._thread.join()
        for file in self._files:
            file.close()

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(INTERVAL_S)
            lines = [line for file in self._files for line in new_lines(file)]
            if lines or ended:
                self._send("\n".join(lines), {} if ended else self._positions())

    def _positions(self) -> dict[str, int]:
        return {os.readlink(f"/proc/self/fd/{file.fileno()}"): file.tell() for file in self._files}


def read_rest(unread: Mapping[int, Unread]) -> dict[int, str]:
    """Read on each process's node what it did not pass on; nothing of a node that is gone or does not answer."""
    task = ray.remote(num_cpus=0, max_retries=0)(read_files)
    answers = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(positions): rank
        for rank, (node, _, positions) in unread.items()
    }
    answered, late = ray.wait(list(answers), num_returns=len(answers), timeout=REST_S) if answers else ([], [])
    for answer in late:
        ray.cancel(answer, force=True)
    rest = dict[int, str]()
    for answer in answered:
        with suppress(RayError):
            rest[answers[answer]] = ray.get(answer)
    return {rank: lines for rank, lines in rest.items() if lines}


def read_files(positions: Mapping[str, int]) -> str:
    """Read the new lines of files, given by their paths, behind positions; see ``new_lines``."""
    lines = list[str]()
    for path, position in positions.items():
        with suppress(OSError), open(path, "rb") as file:
            file.seek(position)
            lines += new_lines(file)
    return "\n".join(lines)


def new_lines(file: BinaryIO) -> list[str]:
    """Read what was appended to a file since the last call, at most ``CHUNK_BYTES``, without Ray's own markers."""
    end = os.fstat(file.fileno()).st_size
    left_out = max(end - file.tell() - CHUNK_BYTES, 0)
    file.seek(left_out, os.SEEK_CUR)
    lines = file.read(CHUNK_BYTES).decode(errors="replace").splitlines()
    kept = [line for line in lines if line and not line.startswith(LOG_MARKERS)]
    return [f"({left_out} bytes are left out here)", *kept] if left_out else kept

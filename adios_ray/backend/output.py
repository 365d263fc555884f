"""Copies of the output of workers' processes for the driver, because files of a node are lost with it."""

import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import BinaryIO

from adios_ray.ray_private import LOG_MARKERS

INTERVAL_S = 0.5
"""Seconds between two looks for new output."""
CHUNK_BYTES = 2**16
"""Most that is passed on of each stream at a time; what is printed faster is left out."""


class OutputCopy(AbstractContextManager["OutputCopy"]):
    """Passes on the lines that this process prints during a block, those of libraries in C++ too."""

    def __init__(self, send: Callable[[str], None], descriptors: Sequence[int] = (1, 2)) -> None:
        """Follow standard output and error, if they are files, as Ray makes them.

        Args:
            send: Called with new lines, from a thread.
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
            if lines := [line for file in self._files for line in new_lines(file)]:
                self._send("\n".join(lines))


def new_lines(file: BinaryIO) -> list[str]:
    """Read what was appended to a file since the last call, at most ``CHUNK_BYTES``, without Ray's own markers."""
    end = os.fstat(file.fileno()).st_size
    left_out = max(end - file.tell() - CHUNK_BYTES, 0)
    file.seek(left_out, os.SEEK_CUR)
    lines = file.read(CHUNK_BYTES).decode(errors="replace").splitlines()
    kept = [line for line in lines if line and not line.startswith(LOG_MARKERS)]
    return [f"({left_out} bytes are left out here)", *kept] if left_out else kept

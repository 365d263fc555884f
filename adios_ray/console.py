"""Consoles for lines and progress."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console


def open_console(stderr: bool = False) -> Console:
    """Return a console as rich chooses it; in a notebook one of plain lines, which need no widgets."""
    console = Console(stderr=stderr)
    # Without the second argument rich would draw for a terminal: ipykernel's streams say that they are one.
    return Console(stderr=stderr, force_jupyter=False, force_terminal=False) if console.is_jupyter else console


@contextmanager
def dispensable() -> Iterator[None]:
    """Ignore failures to write output in the block, for example on a full disk: a run does not depend on its output.

    Raises:
        BrokenPipeError: If the reader of the output has closed it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


def say(text: str, stderr: bool = False) -> None:
    """Print a line at once, if it can be printed; see ``dispensable``."""
    write_line(text, sys.stderr if stderr else sys.stdout)


def write_line(text: str, file: IO[str]) -> None:
    """Write a line to an output at once, if it can be written; see ``dispensable``."""
    with dispensable():
        print(text, file=file, flush=True)

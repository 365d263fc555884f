"""Consoles for lines and progress, and numbers in them."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress


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


def say(text: str) -> None:
    """Print a line at once, if it can be printed; see ``dispensable``."""
    write_line(text, sys.stdout)


def say_aside(text: str) -> None:
    """Print a line to standard error, since standard output may be for a JSON object; see ``dispensable``."""
    write_line(text, sys.stderr)


def printable(name: object) -> str:
    """Write a name, such as that of a file, with its newlines and other control characters escaped."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], str(name))


def counted(number: int, noun: str) -> str:
    """Write a number of things, e.g. "1 copy", "3 classes" or "1,024 images"."""
    if noun.endswith("y"):
        plural = f"{noun[:-1]}ies"
    else:
        plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def progress_bar(unit: str, transient: bool = False) -> "Progress":
    """Return a bar on standard error of a task that counts units, e.g. "images"; may name fields of the task.

    A transient one is removed at its end, and nothing is drawn where standard error is no terminal.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, left:"),
        TimeRemainingColumn(),
        console=open_console(stderr=True),
        transient=transient,
        disable=transient and not sys.stderr.isatty(),
    )


def write_line(text: str, file: IO[str]) -> None:
    """Write a line to an output at once, if it can be written; see ``dispensable``."""
    with dispensable():
        print(text, file=file, flush=True)

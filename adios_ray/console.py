"""Consoles for lines and progress."""

from rich.console import Console


def open_console(stderr: bool = False) -> Console:
    """Return a console as rich chooses it; in a notebook one of plain lines, which need no widgets."""
    console = Console(stderr=stderr)
    # Without the second argument rich would draw for a terminal: ipykernel's streams say that they are one.
    return Console(stderr=stderr, force_jupyter=False, force_terminal=False) if console.is_jupyter else console

"""The terminal view of a running population: a live table, or plain lines if the output is not a terminal."""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adios_ray.console import dispensable, open_console, write_line
from adios_ray.tracking.decisions import Drop, Exploit, Refusal
from adios_ray.tracking.formatting import duration, label, value_text
from adios_ray.tracking.lineage import best_row
from adios_ray.tracking.results import Row

_ALL_SHOWN = 16
_BEST_SHOWN = 8
_WORST_SHOWN = 4
_EVENTS_SHOWN = 6
_NEEDED = ("trial", "epoch", "fitness")
_OPTIONAL = {"accuracy": 8, "images/s": 8, "": 12, "history": 12, "last copied from": 19}
"""Columns shown where all searched values fit, too, the most useful first, with their widths in characters."""
_ORDER = ("trial", "epoch", "", "fitness", "accuracy", "history", None, "images/s", "last copied from")
"""Columns from left to right; None stands for the searched values."""
_PADDING = 2
"""Characters between columns."""
_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Draw the last twelve values as blocks scaled to their own range; "·" for nan."""
    recent = values[-_OPTIONAL["history"] :]
    finite = [value for value in recent if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BLOCKS) - 1) / ((high - low) or 1.0)
    return "".join(_BLOCKS[round((v - low) * scale)] if math.isfinite(v) else "·" for v in recent)


def fitness_text(row: Row) -> str:
    """Write a report's fitness with its standard error if known, e.g. "0.512 ± 0.011"."""
    return f"{row.fitness:.3f}" + ("" if row.standard_error is None else f" ± {row.standard_error:.3f}")


def report_line(row: Row, total_epochs: int) -> str:
    """Write a report as one line of a log."""
    values = "".join(f"{label(path)} {value_text(value)}, " for path, value in row.values.items())
    accuracy = f"accuracy {row.accuracy:.3f}, " if math.isfinite(row.accuracy) else ""
    return (
        f"epoch {row.epoch}/{total_epochs}: {row.trial} fitness {fitness_text(row)}, {accuracy}loss {row.loss:.4g}, "
        f"{values}{row.images_per_s:.0f} images/s"
    )


def exploit_line(exploit: Exploit) -> str:
    """Write an exploit as one line, e.g. "epoch 6: trial_02 copied trial_00 (p 0.01), N 4 -> 5, lambda 0.42 -> 0.5"."""
    if not exploit.copies:
        return f"epoch {exploit.epoch}: {exploit.trial} kept its weights, {exploit.changes}"
    test = "" if exploit.p is None else f" (p {exploit.p:.2g})"
    return f"epoch {exploit.epoch}: {exploit.trial} copied {exploit.donor}{test}, {exploit.changes}"


def refusal_line(refusal: Refusal) -> str:
    """Write a refused copy as one line, e.g. "epoch 6: trial_02 did not copy trial_00, better by 0.012 (p 0.31)"."""
    return (
        f"epoch {refusal.epoch}: {refusal.trial} did not copy {refusal.donor}, "
        f"better by {refusal.difference:.3g} (p {refusal.p:.2g})"
    )


def drop_line(drop: Drop) -> str:
    """Write a trial's end in the opening as one line, e.g. "epoch 5: trial_07 left, rank 9 of 16 (0.412 ± 0.011)"."""
    error = "" if drop.standard_error is None else f" ± {drop.standard_error:.3g}"
    reason = "failed" if drop.score is None else f"{drop.score:.3g}{error}"
    return f"epoch {drop.epoch}: {drop.trial} left, rank {drop.rank} of {drop.trials} ({reason})"


class LiveView:
    """Shows reports and exploits as they arrive; all methods are thread-safe.

    In a terminal, a table is refreshed in place between ``__enter__`` and ``__exit__``; elsewhere, each report, exploit
    and note is printed as one line.
    """

    def __init__(
        self,
        total_epochs: int,
        population: int | None,
        title: str,
        history: Sequence[Row] = (),
        console: Console | None = None,
    ) -> None:
        """Prepare a view without showing it yet.

        Args:
            total_epochs: Epochs that each trial trains.
            population: Number of trials that train all epochs, thus without those that leave in an opening; None if
                a rule stops some early, whose time left has no estimate.
            title: Shown above the table.
            history: Earlier reports of a resumed run, by epoch; they do not enter the estimate of the time left.
            console: Where to print; None takes standard output.
        """
        self._total_epochs, self._population, self._title = total_epochs, population, title
        self._console = console or open_console()
        self._lock = threading.RLock()  # reentrant, as exploit() calls note(); rich renders in a thread of its own
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._donors: dict[str, str] = {}
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._trial_notes: dict[str, str] = {}
        self._held: set[str] = set()
        for row in history:
            self._rows[row.trial].append(row)
        self._epochs_before = self._epochs_done()
        self._start = time.monotonic()
        self._live = (
            Live(get_renderable=self._render, console=self._console, refresh_per_second=2)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        """Start the display."""
        self._start = time.monotonic()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the display; the last state of the table stays in the terminal."""
        if self._live:
            with dispensable():
                self._live.stop()

    def report(self, row: Row) -> None:
        """Show a report."""
        with self._lock:
            self._rows[row.trial].append(row)
            self._trial_notes.pop(row.trial, None)
            if not self._shows_table:
                self._print(report_line(row, self._total_epochs))

    def exploit(self, exploit: Exploit) -> None:
        """Show a copy of a donor's weights."""
        with self._lock:
            if exploit.copies:
                self._donors[exploit.trial] = f"{exploit.donor} (epoch {exploit.epoch})"
            self.note(exploit_line(exploit))

    def note(self, text: str) -> None:
        """Show any other event."""
        with self._lock:
            self._events.append(text)
            if not self._shows_table:
                self._print(text)

    def keep(self, trial: str, note: str) -> None:
        """Keep a note on a trial in sight until the trial's next report."""
        with self._lock:
            self._trial_notes[trial] = note

    def hold(self, trials: Iterable[str], held: bool) -> None:
        """Show that trials wait for the others before the next decision, or no longer."""
        with self._lock:
            self._held = self._held.union(trials) if held else self._held.difference(trials)

    @property
    def _shows_table(self) -> bool:
        """Whether the table is on the screen: before and after, a terminal shows lines too."""
        return self._live is not None and self._live.is_started

    def _print(self, line: str) -> None:
        # Not by rich, whose way to a plain line takes as long as writing three files.
        if not self._console.quiet:
            write_line(line, self._console.file)

    def _epochs_done(self) -> int:
        """Count the epochs completed over the population, the most trained of all trials if its number is known."""
        epochs = sorted((rows[-1].epoch for rows in self._rows.values()), reverse=True)
        return sum(epochs[: self._population])

    def _time_left(self, elapsed: float) -> str:
        """Estimate the time left from the epochs of all trials since the view was made; empty if nothing is known."""
        if self._population is None:
            return ""
        done = self._epochs_done()
        fresh = done - self._epochs_before
        left = max(0, self._population * self._total_epochs - done)
        return f", about {duration(elapsed / fresh * left)} left" if fresh > 0 else ""

    def _shown(self) -> tuple[list[str], int]:
        """Choose the trials to show, of many the best and the worst, best first; returns also how many are hidden."""
        trials = sorted(self._rows)
        if len(trials) <= _ALL_SHOWN:
            return trials, 0
        fitness = {trial: self._rows[trial][-1].fitness for trial in trials}
        ranked = sorted(trials, key=lambda t: -math.inf if math.isnan(fitness[t]) else fitness[t], reverse=True)
        shown = ranked[:_BEST_SHOWN] + ranked[-_WORST_SHOWN:]
        return shown, len(trials) - len(shown)

    def _columns(self, trials: Sequence[str]) -> tuple[list[str], list[str]]:
        """Choose the columns that fit the terminal, best values first; returns also the searched values that do not."""
        last = [self._rows[trial][-1] for trial in trials]
        texts: dict[str, list[str]] = defaultdict(list)
        for row in last:
            texts["trial"].append(row.trial)
            texts["epoch"].append(self._epoch_text(row))
            texts["fitness"].append(f"{fitness_text(row)} ★")
            for path, value in row.values.items():
                texts[path].append(value_text(value))
        widths = {name: max(len(label(name)), *map(len, cells)) for name, cells in texts.items()}
        room = self._console.width - sum(widths.pop(name) + _PADDING for name in _NEEDED if name in widths)
        searched, shown = list(widths), set(_NEEDED)
        for name, width in (widths | _OPTIONAL).items():
            room -= width + _PADDING
            if room < 0:
                break
            shown.add(name)
        ordered = [each for name in _ORDER for each in (searched if name is None else [name])]
        return [name for name in ordered if name in shown], [path for path in searched if path not in shown]

    def _epoch_text(self, row: Row) -> str:
        return f"{row.epoch}/{self._total_epochs}"

    def _table(self, trials: Sequence[str], columns: Sequence[str]) -> Table:
        table = Table(title=Text(self._title, style="bold"), title_justify="left", header_style="dim", box=None)
        for name in columns:
            is_text = name in _ORDER and name != "images/s"
            table.add_column(label(name), justify="left" if is_text else "right", no_wrap=True)
        best = best_row([rows[-1] for rows in self._rows.values()])
        for trial in trials:
            cells = self._cells(trial, best is not None and trial == best.trial)
            table.add_row(*(cells.get(name, "") for name in columns))
        return table

    def _cells(self, trial: str, best: bool) -> dict[str, Text | ProgressBar]:
        """Make a trial's cell for each column."""
        row = self._rows[trial][-1]
        style = "bold green" if best else ""
        return {
            "trial": Text(trial, style=style),
            "epoch": Text(self._epoch_text(row)),
            "": ProgressBar(total=self._total_epochs, completed=row.epoch, width=12),
            "fitness": Text(f"{fitness_text(row)}{' ★' if best else ''}", style=style),
            "accuracy": Text(f"{row.accuracy:.3f}" if math.isfinite(row.accuracy) else "–"),
            "history": Text(sparkline([report.fitness for report in self._rows[trial]]), style="cyan"),
            **{path: Text(value_text(value)) for path, value in row.values.items()},
            "images/s": Text(f"{row.images_per_s:.0f}"),
            "last copied from": Text(self._donors.get(trial, ""), style="dim"),
        }

    def _render(self) -> Group:
        """Build the table, the last events and the time line."""
        with self._lock:
            trials, hidden = self._shown()
            elapsed = time.monotonic() - self._start
            columns, left_out = self._columns(trials)
            parts: list[Table | Text] = [self._table(trials, columns)]
            if left_out:
                parts.append(Text(f"hidden (see results.csv): {', '.join(map(label, left_out))}", style="dim"))
            if hidden:
                parts.append(Text(f"best {_BEST_SHOWN} and worst {_WORST_SHOWN} shown, {hidden} trials hidden"))
            if self._held:
                parts.append(Text(f"waiting for the others to report: {', '.join(sorted(self._held))}", style="yellow"))
            lasting = [note for note in self._trial_notes.values() if note not in self._events]
            parts += [Text(note, style="yellow", no_wrap=True, overflow="ellipsis") for note in lasting]
            parts += [Text(event, style="dim", no_wrap=True, overflow="ellipsis") for event in self._events]
            parts.append(Text(f"{duration(elapsed)} elapsed{self._time_left(elapsed)}", style="bold"))
            return Group(*parts)

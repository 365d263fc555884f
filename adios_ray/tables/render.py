"""Writing a table: Markdown and HTML for people, CSV for programs."""

import csv
import io
from pathlib import Path

import jinja2

from adios_ray.files import write_output
from adios_ray.tables.grid import Column, Published, Table
from adios_ray.tables.summary import Entries, Entry, Gain

NAMES = ("table.md", "table.csv", "table.html")
LEGEND = (
    "ours: mean (standard deviation) over trainings, of all seeds and, where a row has several, of all objectives; "
    "paper: the published number; gain: mean difference to the baseline with its 95 % interval over seeds, paired by "
    "seed and objective. In means and gains each of several objectives counts once. A number in brackets counts the "
    "finished trainings of those planned."
)


def write_table(folder: Path, table: Table, entries: Entries) -> None:
    """Write the table in three formats."""
    texts = (markdown(table, entries), as_csv(table, entries), html(table, entries))
    for name, text in zip(NAMES, texts, strict=True):
        write_output(folder / name, text.encode())


def markdown(table: Table, entries: Entries) -> str:
    """Write the table as Markdown."""
    head, *body = _grid(table, entries)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
    return "\n".join([f"# {table.title}", "", *lines, "", *(f"{note}\n" for note in (LEGEND, *table.notes))])


def html(table: Table, entries: Entries) -> str:
    """Write the table as one self-contained page."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("adios_ray.tables", "."), autoescape=True)
    head, *body = _grid(table, entries)
    template = environment.get_template("table.html.j2")
    return template.render(title=table.title, head=head, body=body, notes=(LEGEND, *table.notes))


def as_csv(table: Table, entries: Entries) -> str:
    """Write one line for each entry, with all its numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    for (row, group, name), entry in entries.items():
        published, gain = entry.published or Published(float("nan")), entry.gain or Gain(float("nan"), None, 0)
        numbers = (entry.mean, entry.std, entry.trainings, entry.planned, *published, *gain)
        writer.writerow([row, group, name, *("" if n is None or n != n else n for n in numbers)])
    return text.getvalue()


_FIELDS = (
    "row", "group", "column", "mean", "std", "trainings", "planned", "published_mean", "published_std", "gain",
    "gain_half_width_95", "gain_pairs",
)  # fmt: skip


def _grid(table: Table, entries: Entries) -> list[list[str]]:
    """Write all entries as text; the first line is the head. Columns that would stay empty are left out."""
    head, body = ["Method"], [[row.name] for row in table.rows]
    for column in table.columns:
        own = [entries[row.name, column.group, column.name] for row in table.rows]
        parts = {
            "": [_ours(entry, column) for entry in own],
            "paper": [
                _paper(entry, column, "+" if row.averaged else "-") for row, entry in zip(table.rows, own, strict=True)
            ],
            "gain": [_gain(entry, column) for entry in own],
        }
        for part, texts in parts.items():
            if not part or any(texts):
                head.append(f"{column.group} {column.name} {part}".strip())
                for line, text in zip(body, texts, strict=True):
                    line.append(text)
    return [head, *body]


def _ours(entry: Entry, column: Column) -> str:
    if not entry.planned:
        return ""
    spread = "" if entry.std is None else f" ({entry.std:.{column.digits}f})"
    count = f" [{entry.trainings}/{entry.planned}]" if entry.trainings < entry.planned else ""
    return ("-" if entry.mean is None else f"{entry.mean:.{column.digits}f}{spread}") + count


def _paper(entry: Entry, column: Column, sign: str) -> str:
    """Write the published number; with the sign "+" also of positive ones, which are gains then."""
    if entry.published is None:
        return ""
    mean, std = entry.published
    return f"{mean:{sign}.{column.digits}f}" + ("" if std is None else f" ({std:g})")


def _gain(entry: Entry, column: Column) -> str:
    if entry.gain is None:
        return ""
    half = entry.gain.half_width
    return f"{entry.gain.mean:+.{column.digits}f}" + ("" if half is None else f" ± {half:.{column.digits}f}")

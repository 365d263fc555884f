"""The files of a run directory: their types, reading them, and writing them so that a killed run stays readable.

``results.csv`` and ``lineage.jsonl`` only grow; a line without its newline is one that was being written, and is
dropped. Every other file is replaced as a whole. Reading needs neither Ray nor torch.
"""

import csv
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from adios_ray.errors import RecordError
from adios_ray.files import append_line, whole_lines, write_whole
from adios_ray.patience import CONFIG_FILE

RESULTS_FILE = "results.csv"
LINEAGE_FILE = "lineage.jsonl"
SUMMARY_FILE = "summary.json"

Pixels = npt.NDArray[np.uint8]
Model = TypeVar("Model", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", use_attribute_docstrings=True)


class Settings(_Record):
    """What the population adapts."""

    sparsity_weight: float
    """Lambda, weight of the sparsity penalty."""
    encoder_lr: float
    occlusion_lr: float
    slots: int
    """Number of masks N."""

    def changes_to(self, new: "Settings") -> str:
        """What differs in ``new``, e.g. "N 4 -> 5, lambda 0.42 -> 0.5"; "settings kept" if nothing does."""
        names = {"slots": "N", "sparsity_weight": "lambda", "encoder_lr": "encoder lr", "occlusion_lr": "occlusion lr"}
        pairs = [(name, getattr(self, key), getattr(new, key)) for key, name in names.items()]
        return ", ".join(f"{name} {a:.3g} -> {b:.3g}" for name, a, b in pairs if a != b) or "settings kept"


class Measure(NamedTuple):
    """How a fitness is called, and how it is written: an accuracy in percent, any other as a number."""

    label: str
    is_share: bool

    def text(self, value: float) -> str:
        """The value for people; a dash for nan."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.3g}"


MEASURES: Mapping[str, Measure] = {
    "knn": Measure("k-NN", True),
    "probe": Measure("probe", True),
    "rankme": Measure("RankMe", False),
    "alpha-req": Measure("α-ReQ", False),
    "lidar": Measure("LiDAR", False),
}
"""By the names of ``evaluation.fitness``."""


def measure_of(config: Mapping[str, Any]) -> Measure:
    """The measure that a run's configuration names; k-NN where it names none."""
    return MEASURES[config.get("evaluation", {}).get("fitness", "knn")]


class Row(_Record):
    """One report of one trial: a line of ``results.csv``."""

    time: AwareDatetime
    trial: str
    epoch: int
    """Epochs completed."""
    fitness: float
    """What ``evaluation.fitness`` says, on the validation images; nan where the trial diverged or collapsed."""
    loss: float
    penalty: float
    """Mean sparsity term."""
    probe_accuracy: float
    sparsity_weight: float
    encoder_lr: float
    occlusion_lr: float
    slots: int
    slot_overlap: float
    """Largest overlap of two slots, 0 to 1."""
    mask_mean_min: float
    """Mean mask value of the smallest slot."""
    mask_mean_max: float
    """Mean mask value of the largest slot."""
    images_per_s: float
    data_wait_fraction: float
    """Share of the epoch spent waiting for data, 0 to 1."""
    idle_s: float
    """Seconds between the report before and the first step after it: decisions, waiting for others, loading."""
    worker_pid: int


class Exploit(_Record):
    """One copy of a donor's weights into a trial, after both reported ``epoch``: a line of ``lineage.jsonl``."""

    time: AwareDatetime
    epoch: int
    trial: str
    donor: str
    old: Settings
    new: Settings
    values: dict[str, Any] = {}
    """All searched values of the trial after the exploit, by configuration path."""
    scores: dict[str, float]
    """Scores that the decision rested on: the trial's and its donor's."""


class Summary(_Record):
    """The outcome of a finished run: ``summary.json``. Accuracies are 0 to 1; fitness is in its measure's units."""

    best_trial: str
    best_fitness: float
    best_epoch: int
    first_best_fitness: float
    """Best of the population's first reports."""
    test_accuracy: float
    """Fitness of the best trial on the test split."""
    chance: float
    """Accuracy of guessing, 1/classes."""
    seconds: float
    exploits: int
    slot_changes: int
    epochs: int
    population: int
    dataset: str
    command: str


@dataclass(frozen=True)
class MaskFile:
    """Masks over the run's fixed validation images, as stored."""

    images: Pixels
    """uint8 [K, S, S, 3]."""
    masks: Pixels
    """uint8 [K, N, S, S]; 0..255 stands for 0..1, and the N slots of a pixel sum to about 255."""


COLUMNS = tuple(Row.model_fields)


def _check_header(path: Path, content: bytes) -> None:
    header = content.split(b"\n", 1)[0].decode().strip()
    if header != ",".join(COLUMNS):
        raise RecordError(f"{path}: the header is {header!r}, expected {','.join(COLUMNS)!r}")


def begin_results(run_dir: Path) -> None:
    """Write the header of ``results.csv``, or check that of a resumed run's file.

    Raises:
        RecordError: the file there has other columns.
    """
    path = run_dir / RESULTS_FILE
    if existing := whole_lines(path):
        _check_header(path, existing)
    else:
        write_whole(path, _csv_line(COLUMNS).encode() + b"\n")


def append_result(run_dir: Path, row: Row) -> None:
    """Append one row to ``results.csv``; the time is written in UTC."""
    values = row.model_dump() | {"time": row.time.astimezone(UTC).isoformat()}
    append_line(run_dir / RESULTS_FILE, _csv_line([values[column] for column in COLUMNS]))


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def append_exploit(run_dir: Path, exploit: Exploit) -> None:
    """Append one line to ``lineage.jsonl``."""
    append_line(run_dir / LINEAGE_FILE, exploit.model_dump_json())


def begin_lineage(run_dir: Path, exploits: int = 0) -> None:
    """Begin ``lineage.jsonl``, or keep its first ``exploits`` lines: a resumed run makes later decisions again."""
    path = run_dir / LINEAGE_FILE
    lines = whole_lines(path).splitlines(keepends=True)
    write_whole(path, b"".join(lines[:exploits]))


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration, JSON-ready values only."""
    write_whole(run_dir / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def write_summary(run_dir: Path, summary: Summary) -> None:
    """Write ``summary.json``."""
    write_whole(run_dir / SUMMARY_FILE, (summary.model_dump_json(indent=2) + "\n").encode())


def _parse(model: type[Model], values: Mapping[str | Any, Any], where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RecordError(f"{where}: {error}") from error


def _load_object(path: Path, text: str | bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{path}{where}: {error}") from error
    if not isinstance(values, dict):
        raise RecordError(f"{path}{where}: expected a JSON object")
    return values


def read_results(run_dir: Path) -> list[Row]:
    """Rows by trial, then epoch; the last row written for a trial and epoch stands. Empty without the file.

    Raises:
        RecordError: other columns, or a whole line that does not parse.
    """
    path = run_dir / RESULTS_FILE
    content = whole_lines(path)
    if not content:
        return []
    _check_header(path, content)
    rows: dict[tuple[str, int], Row] = {}
    for number, values in enumerate(csv.DictReader(io.StringIO(content.decode())), start=2):
        row = _parse(Row, values, f"{path}, line {number}")
        rows[row.trial, row.epoch] = row
    return [rows[key] for key in sorted(rows)]


def read_lineage(run_dir: Path) -> list[Exploit]:
    """Exploits in the order in which they were decided. Empty without the file.

    Raises:
        RecordError: a whole line that does not parse.
    """
    path = run_dir / LINEAGE_FILE
    exploits = []
    for number, line in enumerate(whole_lines(path).splitlines(), start=1):
        where = f", line {number}"
        exploits.append(_parse(Exploit, _load_object(path, line, where), f"{path}{where}"))
    return exploits


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved configuration; empty without the file. Raises RecordError for anything but a JSON object."""
    path = run_dir / CONFIG_FILE
    return _load_object(path, path.read_bytes(), "") if path.exists() else {}


def read_summary(run_dir: Path) -> Summary | None:
    """The outcome, or None while the run is going. Raises RecordError for other fields."""
    path = run_dir / SUMMARY_FILE
    return _parse(Summary, _load_object(path, path.read_bytes(), ""), str(path)) if path.exists() else None


def _mask_folder(run_dir: Path, trial: str) -> Path:
    """Folder of a trial's masks. Raises RecordError for a name that would lead out of ``masks/``."""
    if trial in ("", ".", "..") or "/" in trial or "\\" in trial or "\0" in trial:
        raise RecordError(f"the trial name {trial!r} cannot name a folder")
    return run_dir / "masks" / trial


def write_masks(run_dir: Path, trial: str, epoch: int, masks: MaskFile) -> None:
    """Write ``masks/<trial>/epoch_<epoch>.npz``. Raises RecordError for a trial name that is no folder name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=masks.images, masks=masks.masks)
    write_whole(_mask_folder(run_dir, trial) / f"epoch_{epoch:04d}.npz", buffer.getvalue())


def mask_epochs(run_dir: Path, trial: str) -> list[int]:
    """Epochs at which the trial's masks were written, ascending; empty for a name that is no folder name."""
    try:
        folder = _mask_folder(run_dir, trial)
    except RecordError:
        return []
    stems = (path.stem.removeprefix("epoch_") for path in folder.glob("epoch_*.npz"))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _check_masks(path: Path, images: Pixels, masks: Pixels) -> None:
    fits = images.ndim == masks.ndim == 4 and images.shape == (len(masks), *masks.shape[2:], 3)
    if not fits or images.dtype != np.uint8 or masks.dtype != np.uint8:
        raise RecordError(f"{path}: images {images.shape} {images.dtype} and masks {masks.shape} {masks.dtype}")


def read_masks(run_dir: Path, trial: str, epoch: int) -> MaskFile:
    """Masks of a trial at an epoch.

    Raises:
        FileNotFoundError: none were written.
        RecordError: the file is no archive of fitting uint8 arrays.
    """
    path = _mask_folder(run_dir, trial) / f"epoch_{epoch:04d}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = MaskFile(arrays["images"], arrays["masks"])
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RecordError(f"{path}: {error}") from error
    _check_masks(path, stored.images, stored.masks)
    return stored

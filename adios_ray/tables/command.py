"""The command line of a table's script."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from adios_ray.arguments import parse_arguments
from adios_ray.backend.cluster import submitted_job
from adios_ray.commands.data import Prepare
from adios_ray.commands.masks import Masks
from adios_ray.config import Count
from adios_ray.console import counted, say
from adios_ray.data.manifest import read_manifest
from adios_ray.data.shards import open_shards, verify
from adios_ray.data.sources.catalog import CATALOG
from adios_ray.errors import (
    AGAIN,
    ConfigError,
    DatasetError,
    EvaluationError,
    RunError,
    UsageError,
    exit_status,
    resumable,
)
from adios_ray.experiment.checks import check_job_paths, check_storage
from adios_ray.places import require_local
from adios_ray.store import Location
from adios_ray.tables.grid import Cell, Column, Evaluation, Table, evaluation_of
from adios_ray.tables.summary import entries

if TYPE_CHECKING:
    import torch

CELLS = "cells"
"""Folder of the storage directory with one folder for each cell; all tables share it."""
ROUNDING = 0.01
"""Relative error of a table's number of images, some of which are estimates."""


@dataclass(frozen=True)
class Options:
    """Options of a table."""

    preset: Literal["small", "paper"] = "small"
    """small: what two CPU cores train in minutes, which docs/tables.md has. paper: the paper's setting."""
    data: tuple[tuple[str, str], ...] = ()
    """Data sets made by `adios-ray prepare`: NAME PLACE, once for each data set of the table; --dry-run lists them."""
    storage: Location = "runs/tables"
    """Local directory of trainings, which tables share, and of the tables; shared by all nodes of a cluster."""
    seeds: Count = 3
    """Trainings of each configuration."""
    gpus_per_cell: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPUs of each training, 0, 1 or a part of one; 1 if not given and the cluster has GPUs."""
    dry_run: bool = False
    """Print the trainings, their hours from a measured step, and the disk they need; train nothing."""

    @property
    def places(self) -> dict[str, str]:
        """The place of each data set by its name; a UsageError is raised if one is given twice."""
        places: dict[str, str] = {}
        for name, place in self.data:
            if places.setdefault(name, place) != place:
                raise UsageError(f"--data {name} is given twice, {places[name]} and {place}: leave one out")
        return places

    @property
    def directory(self) -> Path:
        """The path of ``storage``; a UsageError is raised if it is a URI."""
        return require_local(self.storage, "--storage")


def main(script: str, documentation: str | None, presets: Mapping[str, Callable[[], Table]]) -> int:
    """Read the command line, run the table's cells, and write it.

    Args:
        script: The script's file, whose name is that of the table's folder.
        documentation: The script's documentation, which begins ``--help``.
        presets: Makes the table of each preset.

    Returns:
        Exit status; see ``errors.exit_status``.
    """
    name = Path(script).stem
    return exit_status(lambda: run_table(name, presets, parse_arguments(Options, description=documentation)))


def run_table(name: str, presets: Mapping[str, Callable[[], Table]], options: Options) -> None:
    """Run what is not finished of a table, and write it as far as it goes, also after an interruption.

    Raises:
        ConfigError: If an option is not valid, a data set is missing or does not fit, or a node of the cluster lacks
            the storage, the data or the packages.
        DatasetError: If a data set is damaged or lacks a split.
        EvaluationError: If a data set lacks the labels or object masks of an evaluation.
        RunError: If cells have failed; the table is written without them.
        KeyboardInterrupt: With a note that says how to resume.
    """
    table = _choose_table(presets, options)
    if options.dry_run:
        _print_estimate(table, options)
        return
    from adios_ray.tables.cells import cell_name
    from adios_ray.tables.run import run_cells

    data: dict[str, Location | None] = {f"--data {name}": place for name, place in options.places.items()}
    check_job_paths({"--storage": options.directory, **data}, submitted_job())
    storage, folder = Path(check_storage(options.directory)), options.directory / f"{name}-{options.preset}"
    with resumable():
        places, notes = _places(table, options.places, storage)
        table = replace(table, notes=(*notes, *table.notes))
        cells = list(table.cells(places, options.seeds))
        _check_cells(table, cells, places)
        folders = {cell: storage / CELLS / cell_name(cell) for cell in cells}
        try:
            failed = run_cells(storage, folders, places, options.gpus_per_cell)
        except KeyboardInterrupt:
            _write(folder, table, folders, places)
            raise
    print(_write(folder, table, folders, places))
    if table.pictures:
        _draw_masks(folders, folder, table.pictures)
    if failed:
        reasons = "; ".join(f"{cell}: {reason}" for cell, reason in failed.items())
        raise RunError(f"{counted(len(failed), 'cell')} failed, missing in the table ({reasons}); {AGAIN}")


def _write(folder: Path, table: Table, folders: Mapping[Cell, Path], places: Mapping[str, str]) -> str:
    """Write the table of what is finished, say where it is, and return it as Markdown."""
    from adios_ray.tables.cells import measured, sources
    from adios_ray.tables.render import markdown, write_table

    def score(cell: Cell, column: Column) -> float | None:
        found = measured(folders[cell], evaluation_of(table.row(cell.row), column), places)
        # An undefined score, such as that of empty masks, leaves the entry to the other trainings.
        value = math.nan if found is None else found.scores.get(column.score, math.nan)
        return None if math.isnan(value) else value * column.scale

    versions = sorted(set().union(*(sources(of_cell, cell, places) for cell, of_cell in folders.items())))
    if len(versions) > 1:
        said = ", ".join(version[:8] for version in versions)
        note = f"Trainings and evaluations are of {len(versions)} versions of the code, by its checksums {said}."
        table = replace(table, notes=(*table.notes, note))
    found = entries(table, list(folders), score)
    write_table(folder, table, found)
    say(f"written: {folder}/table.md, table.csv, table.html")
    return markdown(table, found)


def _draw_masks(folders: Mapping[Cell, Path], folder: Path, images: int) -> None:
    """Draw the masks of the finished trainings of the first seed, as `adios-ray masks` does."""
    from adios_ray.tables.cells import last_checkpoint

    for cell, of_cell in folders.items():
        checkpoint = last_checkpoint(of_cell, cell)
        if cell.seed == 0 and cell.config.masking.learned and checkpoint.is_dir():
            name = re.sub(r"[^\w.]+", "-", f"{cell.row} {cell.config.objective.name} {cell.group}").strip("-")
            picture = folder / f"{name}.png"
            picture.unlink(missing_ok=True)  # one of an earlier version would be taken for another file
            assert cell.config.data_dir is not None
            shown = min(images, open_shards(cell.config.data_dir).manifest.images("val"))
            Masks(checkpoint, picture, shown, cell.config.data_dir).run()


def _choose_table(presets: Mapping[str, Callable[[], Table]], options: Options) -> Table:
    """Make the table of the chosen preset.

    Raises:
        ConfigError: If an option is not valid.
    """
    if options.preset not in presets:
        raise ConfigError(f"--preset {options.preset}: choose one of {', '.join(presets)}")
    table = presets[options.preset]()
    if unknown := options.places.keys() - table.data.keys():
        raise ConfigError(f"--data {', '.join(sorted(unknown))}: the table's data sets are {', '.join(table.data)}")
    return table


def _check_cells(table: Table, cells: Sequence[Cell], places: Mapping[str, str]) -> None:
    """Check that all trainings and evaluations are possible on the data, before the first one starts.

    Raises:
        ConfigError: If a configuration does not fit its data set.
        DatasetError: If a split is missing.
        EvaluationError: If a data set lacks what an evaluation needs.
    """
    from adios_ray.experiment.trial_checks import check_trial
    from adios_ray.tables.evaluate import check_data

    trained: dict[str, Cell] = {}
    scores = defaultdict[tuple[Evaluation, int | None], set[str]](set)
    for cell in cells:
        if cell.seed == 0:  # the others differ in nothing that is checked
            trained.setdefault(cell.config.model_dump_json(), cell)
            for column in table.columns:
                if (evaluation := evaluation_of(table.row(cell.row), column)) in cell.evaluations:
                    scores[evaluation, cell.config.image_size].add(column.score)
    for (evaluation, image_size), asked in scores.items():
        check_data(evaluation, asked, places, image_size)
    for cell in trained.values():
        place = places[cell.group]
        try:
            check_trial(cell.config, open_shards(place).manifest, place)
        except (ConfigError, DatasetError, EvaluationError) as error:
            raise type(error)(f"{cell.row}: {error}") from None


def _places(table: Table, given: Mapping[str, str], storage: Path) -> tuple[dict[str, str], list[str]]:
    """Return where each data set is, and notes on them; render those that can be rendered, and check the others.

    Raises:
        ConfigError: If one is missing; says how to make it.
        DatasetError: If one is damaged.
    """
    places, used, others = {}, [], []
    for group, data in table.data.items():
        if group in given:
            verify(given[group])
            places[group] = given[group]
        elif data.rendered:
            places[group] = str(storage / "data" / "-".join(data.prepare.replace("--", "").split()))
            parse_arguments(Prepare, [*data.prepare.split(), "--output", places[group]]).run()
        else:
            raise ConfigError(
                f"no data for {group}: make it with `adios-ray prepare {data.prepare} --output PLACE` and give "
                f"--data {group} PLACE"
            )
        manifest = open_shards(places[group]).manifest
        images, stored = manifest.training_images, manifest.image_size
        dataset = str(manifest.recipe.get("dataset", "another source"))
        asked = parse_arguments(Prepare, [*data.prepare.split(), "--output", group])
        size = asked.image_size or CATALOG[asked.dataset].image_size
        used.append(f"{group}: {_described(images, dataset, stored)}, checksum {manifest.checksum[:8]}")
        same = _reader(dataset) == _reader(asked.dataset) and stored == size
        if not same or abs(images - data.images) > ROUNDING * data.images:
            others.append(
                f"The table asks for {_described(data.images, asked.dataset, size)} (`adios-ray prepare "
                f"{data.prepare}`), and {places[group]} has {_described(images, dataset, stored)}: numbers of {group} "
                "are of other data."
            )
            say(f"--data {group}: {others[-1]}")
    return places, [*others, f"Data: {'; '.join(used)}."]


def _reader(dataset: str) -> str:
    """Return the reader of a data set: imagenet100 and imagenet100s are the same images, stored at other sizes."""
    return CATALOG[dataset].reader if dataset in CATALOG else dataset


def _described(images: int, dataset: str, size: int | None) -> str:
    return f"{counted(images, 'training image')} of {dataset}, stored at {size} pixels"


def _print_estimate(table: Table, options: Options) -> None:
    """Print how many trainings a table has, their hours by measured steps, and the disk they need."""
    from adios_ray.devices import best_device
    from adios_ray.tables.estimate import estimate, tuned_images

    device = best_device()
    given = {
        group: replace(table.data[group], images=read_manifest(place).training_images)
        for group, place in options.places.items()
    }
    table = replace(table, data={**table.data, **given})
    cells = list(table.cells({group: options.places.get(group, group) for group in table.data}, options.seeds))
    costs = estimate(table, cells, device)
    hours = defaultdict[tuple[str, str], list[float]](list)
    for cell, cost in zip(cells, costs, strict=True):
        hours[cell.row, cell.group].append(cost.hours)
    for (row, group), own in hours.items():
        print(f"{row}, {group}: {len(own)} trainings, {sum(own):.3g} h")
    for group, data in table.data.items():
        print(f"data {group}: adios-ray prepare {data.prepare}")
    # Not by the names of their folders, which need the data.
    trainings = {
        (cell.group, cell.config.model_dump_json()): (cell, cost) for cell, cost in zip(cells, costs, strict=True)
    }
    disk = sum(cost.disk_bytes for _, cost in trainings.values()) / 2**30
    print(
        f"{len(trainings)} trainings, {sum(cost.hours for _, cost in trainings.values()):.3g} hours of one "
        f"{_name(device)} by measured steps, {disk:.2g} GiB of checkpoints; those that rows share are counted once, "
        "those that other tables share again"
    )
    passes = sum(tuned_images(table, cell) for cell in cells)
    if passes:
        trained = sum(cell.config.epochs * table.data[cell.group].images for cell, _ in trainings.values())
        print(
            f"not counted: fine-tuning, of {passes:.3g} images through the backbone, forward and back; the trainings "
            f"are of {trained:.3g} images, in several views each"
        )


def _name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU core"

"""The command line of a table's script."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from adios_ray.arguments import parse_arguments
from adios_ray.backend.cluster import submitted_job
from adios_ray.commands.data import Prepare
from adios_ray.commands.masks import Masks
from adios_ray.config import Count
from adios_ray.console import counted, say
from adios_ray.data.shards import open_shards, verify
from adios_ray.errors import ConfigError, DatasetError, EvaluationError, RunError, UsageError, exit_status
from adios_ray.experiment.checks import check_job_paths, check_storage
from adios_ray.places import require_local
from adios_ray.store import Location
from adios_ray.tables.grid import Cell, Column, Evaluation, Table, evaluation_of
from adios_ray.tables.summary import entries

if TYPE_CHECKING:
    import torch

CELLS = "cells"
"""Folder of the storage directory with one folder for each cell; all tables share it."""
RESUMES = "run the same command again to resume"
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
    gpus_per_cell: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """GPUs of each training, may be a fraction; 1 if not given and the cluster has GPUs."""
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
    """Run what is not finished of a table, and write it as far as it goes.

    Raises:
        ConfigError: If an option is not valid or a data set is missing.
        DatasetError: If a data set is damaged.
        RunError: If cells have failed; the table is written without them.
    """
    table = _choose_table(presets, options)
    if options.dry_run:
        _print_estimate(table, options)
        return
    from adios_ray.tables.cells import measured
    from adios_ray.tables.render import markdown, write_table

    folders, failed, places = _run_all(table, options)

    def score(cell: Cell, column: Column) -> float | None:
        scores = measured(folders[cell], evaluation_of(table.row(cell.row), column), places)
        # An undefined score, such as that of empty masks, leaves the entry to the other trainings.
        value = math.nan if scores is None else scores.get(column.score, math.nan)
        return None if math.isnan(value) else value * column.scale

    found = entries(table, list(folders), score)
    folder = options.directory / f"{name}-{options.preset}"
    write_table(folder, table, found)
    print(markdown(table, found))
    print(f"written: {folder}/table.md, table.csv, table.html")
    if table.pictures:
        _draw_masks(folders, folder, table.pictures)
    if failed:
        reasons = "; ".join(f"{cell}: {reason}" for cell, reason in failed.items())
        raise RunError(f"{counted(len(failed), 'cell')} failed, missing in the table ({reasons}); {RESUMES}")


def _draw_masks(folders: Mapping[Cell, Path], folder: Path, images: int) -> None:
    """Draw the masks of the finished trainings of the first seed, as `adios-ray masks` does."""
    from adios_ray.tables.cells import last_checkpoint

    for cell, of_cell in folders.items():
        checkpoint = last_checkpoint(of_cell, cell)
        if cell.seed == 0 and cell.config.masking.learned and checkpoint.is_dir():
            name = re.sub(r"[^\w.]+", "-", f"{cell.row} {cell.config.objective.name} {cell.group}").strip("-")
            picture = folder / f"{name}.png"
            picture.unlink(missing_ok=True)  # one of an earlier version would be taken for another file
            Masks(checkpoint, picture, images, cell.config.data_dir).run()


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


def _run_all(table: Table, options: Options) -> tuple[dict[Cell, Path], dict[str, str], dict[str, str]]:
    """Train and evaluate the cells of a table that are not finished.

    Returns:
        The folder of each cell, the reasons of those that failed, and the place of each data set.

    Raises:
        ConfigError: If a data set is missing, or a node of the cluster lacks the storage, the data or the packages.
        DatasetError: If a data set is damaged.
        EvaluationError: If a data set lacks the labels or object masks of an evaluation.
        KeyboardInterrupt: With a note that says how to resume.
    """
    from adios_ray.tables.cells import cell_name
    from adios_ray.tables.run import run_cells

    data: dict[str, Location | None] = {f"--data {name}": place for name, place in options.places.items()}
    check_job_paths({"--storage": options.directory, **data}, submitted_job())
    storage = Path(check_storage(options.directory))
    try:
        places = _places(table, options.places, storage)
        cells = list(table.cells(places, options.seeds))
        _check_cells(table, cells, places)
        folders = {cell: storage / CELLS / cell_name(cell) for cell in cells}
        return folders, run_cells(storage, folders, places, options.gpus_per_cell), places
    except KeyboardInterrupt as stop:
        stop.add_note(RESUMES)
        raise


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


def _places(table: Table, given: Mapping[str, str], storage: Path) -> dict[str, str]:
    """Return where each data set is; render those that can be rendered, and check the others.

    Raises:
        ConfigError: If one is missing; says how to make it.
        DatasetError: If one is damaged.
    """
    places = {}
    for group, data in table.data.items():
        if group in given:
            manifest = verify(given[group])
            places[group] = given[group]
            images = manifest.training_images
            if abs(images - data.images) > ROUNDING * data.images:
                say(
                    f"--data {group}: {given[group]} has {images:,} training images, those of the table "
                    f"{data.images:,} (`adios-ray prepare {data.prepare}`): its numbers are of other data"
                )
        elif data.rendered:
            places[group] = str(storage / "data" / "-".join(data.prepare.replace("--", "").split()))
            parse_arguments(Prepare, [*data.prepare.split(), "--output", places[group]]).run()
        else:
            raise ConfigError(
                f"no data for {group}: make it with `adios-ray prepare {data.prepare} --output PLACE` and give "
                f"--data {group} PLACE"
            )
    return places


def _print_estimate(table: Table, options: Options) -> None:
    """Print how many trainings a table has, their hours by measured steps, and the disk they need."""
    from adios_ray.devices import best_device
    from adios_ray.tables.estimate import estimate, tuned_images

    device = best_device()
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

"""The command that checks a machine, a preset on it, or an objective, before weeks are spent."""

import importlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from adios_ray.config import OBJECTIVES
from adios_ray.console import counted
from adios_ray.errors import InputError, MemoryLimitError, RunError, UsageError
from adios_ray.experiment.config import PresetName
from adios_ray.places import check_place
from adios_ray.store import Location, local_path

if TYPE_CHECKING:
    from adios_ray.data.manifest import Manifest
    from adios_ray.experiment.resources import Node
    from adios_ray.objectives import Objective

GIB = 2**30
STORAGE, SECONDS = "runs", 10.0
"""Defaults of ``--storage`` and ``--seconds``."""
WITHOUT_LABELS = "rankme"
"""A measure of fitness that needs none."""


@dataclass(frozen=True)
class Doctor:
    """Check this machine, its cluster and storage, and whether a preset fits; or an objective for common bugs."""

    preset: PresetName | None = None
    """Preset to measure a step of: whether it fits, hours, memory and disk."""

    storage: Location | None = None
    """Directory or URI that runs would be written into, runs if not given; only its writability and free space are
    checked."""

    data_dir: str | None = None
    """Directory or URI of the data set to train on; the published number of images if not given."""

    seconds: Annotated[float, Field(ge=0, le=600)] | None = None
    """Seconds of the measurement of --preset, 0 to 600, 10 if not given; three steps are measured in any case."""

    objective: str | None = None
    """Check an objective instead: a name such as vicreg, or MODULE:CLASS, a class that you are writing."""

    def run(self) -> None:
        """Print a line for each check.

        Raises:
            UsageError: If options cannot be used.
            RunError: If a check has found a problem.
        """
        if self.objective is not None and (self.preset or self.data_dir or self.storage or self.seconds is not None):
            raise UsageError("--objective is checked by itself: leave the other options out")
        if self.seconds is not None and self.preset is None:
            raise UsageError("--seconds is for the measurement of a preset: give --preset, or leave --seconds out")
        problems = self._check_machine() if self.objective is None else _check_objective(self.objective)
        if problems:
            raise RunError(f"{counted(problems, 'problem')}, marked with ! above")

    def _check_machine(self) -> int:
        """Print what there is, then whether the preset fits; return the number of problems."""
        from adios_ray.devices import best_device
        from adios_ray.tracking.environment import current_environment

        environment, device = current_environment(), best_device()
        print(f"machine: {environment.machine}, {_memory_bytes() / GIB:.3g} GiB of memory")
        none = "no GPU that torch can use: trainings run on CPUs; if there is one, install torch for its driver"
        print(f"devices: {', '.join(_gpus()) or none}")
        print(f"versions: {', '.join(f'{name} {version}' for name, version in environment.versions.items())}")
        problems = int(self._check_storage())
        _print_wandb()
        nodes, unusable = _cluster(device.type == "cuda")
        problems += unusable
        manifest, unfit = self._check_data(device.type == "cuda")
        problems += unfit
        if self.preset is not None:
            problems += self._check_preset(self.preset, nodes, manifest)
        return problems

    def _check_data(self, on_gpu: bool) -> "tuple[Manifest | None, bool]":
        """Print whether the data set can be trained on; return its manifest, and whether there is a problem."""
        from adios_ray.config import replaced
        from adios_ray.data.manifest import read_manifest
        from adios_ray.experiment.presets import preset_config
        from adios_ray.experiment.trial_checks import check_splits, check_trial

        if self.data_dir is None:
            return None, False
        manifest, unlabeled = None, ""
        try:
            manifest = read_manifest(self.data_dir)
            check_splits(manifest, self.data_dir)
            if self.preset is not None:
                config = preset_config(self.preset)
                trial = config.trial()
                if len(manifest.classes) < 2:
                    trial = replaced(trial, {"evaluation.fitness": WITHOUT_LABELS})
                    unlabeled = f" of one class: train with --evaluation.fitness {WITHOUT_LABELS} --scheduler none"
                check_trial(trial, manifest, self.data_dir, config.workers_per_trial, on_gpu)
        except InputError as error:
            print(f"! data: {error}")
            return manifest, True
        found = f"{manifest.training_images:,} training images of {manifest.image_size} pixels{unlabeled}"
        print(f"data: {self.data_dir}: {found}")
        return manifest, False

    @property
    def _place(self) -> Location:
        return self.storage or STORAGE

    def _check_storage(self) -> bool:
        """Print whether the storage can be written to and how much is free; nothing is created."""
        from adios_ray.files import check_writable

        if (path := local_path(self._place)) is None:
            try:
                check_place(self._place)
            except InputError as error:
                print(f"! {error}")
                return True
            print(f"storage: {self._place} can be written to")
            return False
        folder = path.resolve()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            check_writable(existing)
        except OSError as error:
            print(f"! storage: {folder} cannot be written to ({error.strerror or error}): name another --storage")
            return True
        print(f"storage: {folder} can be written to, {shutil.disk_usage(existing).free / GIB:.3g} GiB are free")
        return False

    def _check_preset(self, preset: str, nodes: "list[Node]", manifest: "Manifest | None") -> int:
        """Measure a step and print what a run of the preset would need."""
        from adios_ray.devices import best_device
        from adios_ray.experiment.feasibility import needs, view_size
        from adios_ray.experiment.presets import TRAINING_IMAGES, preset_config
        from adios_ray.tracking.formatting import duration
        from adios_ray.training.allocator import keep_freed_memory
        from adios_ray.training.cost import measure_step

        config, device = preset_config(preset), best_device()
        size = view_size(config, manifest.image_size if manifest else None)
        images = (manifest.training_images if manifest else 0) or TRAINING_IMAGES[preset]
        keep_freed_memory()
        try:
            step = measure_step(config.trial(), size, device, SECONDS if self.seconds is None else self.seconds)
        except MemoryLimitError as error:
            print(f"! memory: {error}")
            return 1
        where = "one GPU" if device.type == "cuda" else "one CPU core"
        print(f"speed: {1 / step.seconds_per_image:.3g} images/s of {size} pixels on {where}")
        found = needs(config, images, step, nodes)
        print(
            f"preset {preset}: {config.population} trials, {found.at_once} at once, {config.epochs} epochs of "
            f"{images:,} images: {duration(3600 * found.hours)} of steps (evaluations not counted)"
        )
        memory = _gpu_memory_bytes() if device.type == "cuda" else _memory_bytes()
        problems: int = _fits("memory", found.memory_bytes, memory, "lower --batch-size or give --micro-batch-size")
        if (path := local_path(self._place)) is not None:
            free = shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
            problems += _fits("disk", found.disk_bytes, free, "name another --storage")
        return problems


def _fits(name: str, needed: float, available: float, advice: str) -> bool:
    """Print whether something is enough; return whether it is not."""
    short = needed > available
    amounts = f"about {needed / GIB:.2g} of {available / GIB:.3g} GiB"
    print(f"! {name}: {amounts}: {advice}" if short else f"{name}: {amounts}")
    return short


def _cluster(on_gpu: bool) -> "tuple[list[Node], bool]":
    """Print which cluster a run would join; return its nodes, and whether there is a problem."""
    import torch

    from adios_ray.backend.cluster import address_to_join, connected
    from adios_ray.experiment.resources import Node, nodes
    from adios_ray.ray_start import LOCAL, check_temporary_directory

    own = Node(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count() if on_gpu else 0))
    try:
        address = address_to_join()
        if address == LOCAL:
            check_temporary_directory()
            print("cluster: none is running; a run starts one on this machine")
            return [own], False
        with connected():
            joined = nodes()
    except (InputError, RunError) as error:
        print(f"! cluster: {error}")
        return [own], True
    has = "; ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in joined)
    print(f"cluster: {address}, {len(joined)} nodes: {has}")
    return joined, False


def _print_wandb() -> None:
    """Print whether wandb has a token; having none is no problem, since --wandb is off by default."""
    from adios_ray.tracking.trackers.wandb import check_login

    try:
        check_login()
    except InputError as error:
        print(f"wandb: {error}")
    else:
        print("wandb: a token is there; --wandb online can be used")


def _check_objective(name: str) -> int:
    """Print a line for each check of an objective; return the number of faults."""
    import torch

    from adios_ray.training.diagnosis import Subject, diagnose

    subject = Subject("simclr" if ":" in name else name, _objective(name))
    torch.set_num_threads(1)  # the checks' tensors are small
    began, faults = time.monotonic(), 0
    for finding in diagnose(subject):
        faults += finding.fault is not None
        print(
            f"! {finding.check}: {finding.fault}" if finding.fault else f"{finding.check}: as it should be", flush=True
        )
    print(f"{name}: checked in {time.monotonic() - began:.0f} s")
    return faults


def _objective(name: str) -> "type[Objective]":
    """Find the class of an objective.

    Raises:
        UsageError: If there is none.
    """
    from adios_ray.objectives import Objective, objective_class
    from adios_ray.training.diagnosis import described
    from adios_ray.validation import suggestion

    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in OBJECTIVES:
            near = suggestion(name, OBJECTIVES)
            raise UsageError(f"--objective {name} is not one of {', '.join(OBJECTIVES)}, or MODULE:CLASS{near}")
        return objective_class(name)
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(
            f"--objective {name}: MODULE:CLASS is a module's dotted name, such as package.module, and a class"
        )
    sys.path.insert(0, str(Path.cwd()))  # the program's own folder is there instead
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # whatever a module raises that is being written
        raise UsageError(f"--objective {name}: {module} cannot be imported: {described(error)}") from None
    if not isinstance(found, type) or not issubclass(found, Objective):
        raise UsageError(f"--objective {name}: {module} has no subclass of Objective of the name {attribute!r}")
    return found


def _memory_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[str]:
    import torch

    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [f"{gpu.name} ({gpu.total_memory / GIB:.3g} GiB)" for gpu in found]


def _gpu_memory_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)

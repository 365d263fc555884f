"""Speed and memory of training on one GPU: the steps, the feed, and trials that share the card.

Usage: ``python benchmarks/gpu.py [--parts card steps] [--seconds 1] [--full] [--output FILE]``. Prints one JSON object,
and on standard error a table for ``docs/hardware.md``. With ``--output`` the object is also written after each
measurement, so that an interrupted run keeps what it has. What fails is listed under ``failures``, the rest is measured
all the same, and the exit status is 1. About seven minutes on an H200 (estimated). Without a GPU, small sizes are
measured on the CPU in less than a minute, and ``left_out`` lists what needs a GPU.
"""

import gc
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

import numpy as np
import torch
from memory import with_slots
from rich.console import Console
from step import count_operations
from stored import store

from adios_ray.arguments import parse_arguments
from adios_ray.config import Positive, TrialConfig, replaced
from adios_ray.data.loader import BatchLoader
from adios_ray.data.shards import open_shards
from adios_ray.data.sources.base import Sample
from adios_ray.devices import best_device, is_out_of_memory, limit_memory, native_bfloat16, prepare_device, timed
from adios_ray.errors import RunError, exit_status
from adios_ray.files import write_output
from adios_ray.models.networks import Networks
from adios_ray.training.cost import random_step
from adios_ray.training.trainer import Trainer

NO_MEMORY = 77
"""Exit status of a training that does not fit into the GPU's memory."""
Part = Literal["card", "steps", "memory", "feed", "trainer", "sharing"]
Changes = dict[str, Any]
"""Configuration values by path, which replace those of ``BASE``."""

BASE: Changes = {
    "backbone.name": "resnet18",
    "image_size": 96,
    "batch_size": 512,
    "precision": "bfloat16",
    "channels_last": True,
    "masking.slots": 4,
    "slots_at_once": 4,
}
SMALL: Changes = {"backbone.name": "resnet_small", "image_size": 32, "batch_size": 8, "masking.width": 8}
"""Sizes on CPUs, in place of those of every row."""
AXES: dict[str, tuple[Any, ...]] = {
    "backbone.name": ("resnet18", "resnet50", "vit_small_patch16_224"),
    "image_size": (96, 224),
    "objective.name": ("simclr", "byol", "simsiam"),
    "masking.scheme": ("none", "adios", "adios-s"),
    "precision": ("bfloat16", "float32"),
    "compile": (False, True),
}
"""Their product is measured with ``--full``."""
LARGE: Changes = {"image_size": 224, "batch_size": 128}
ROWS: tuple[Changes, ...] = (
    # What the game and the objective cost, on the network and the size of most presets.
    *(
        {"objective.name": o, "masking.scheme": m}
        for o in ("simclr", "byol", "simsiam")
        for m in AXES["masking.scheme"]
    ),
    {"objective.name": "simsiam", "objective.masked_views": "both"},
    # What each option gains, and what a small batch loses.
    {"precision": "float32"},
    {"channels_last": False},
    {"slots_at_once": 1},
    {"compile": True},
    {"compile": True, "cuda_graphs": True},
    {"batch_size": 128},
    {"batch_size": 128, "cuda_graphs": True},
    {"batch_size": 128, "compile": True, "cuda_graphs": True},
    {"masking.slots": 8, "slots_at_once": 8},
    # How it grows with network and image.
    *({"masking.scheme": m, **LARGE} for m in ("none", "adios")),
    *({"backbone.name": "resnet50", "masking.scheme": m} for m in ("none", "adios")),
    *({"backbone.name": "resnet50", "masking.scheme": m, **LARGE} for m in ("none", "adios")),
    *({"backbone.name": "vit_small_patch16_224", "masking.scheme": m} for m in ("none", "adios")),
    *({"backbone.name": "vit_small_patch16_224", "masking.scheme": m, **LARGE} for m in ("none", "adios")),
)
"""Measured one factor at a time."""
FEEDS: tuple[Changes, ...] = ({}, {"compile": True}, {"batch_size": 128}, {"batch_size": 128, "compile": True})
FED: tuple[Changes, ...] = (
    {},
    {"compile": True, "cuda_graphs": True},
    {"batch_size": 128},
    {"batch_size": 128, "cuda_graphs": True},
)
"""Trainings that are measured with their feed."""
STORED = 128
"""Side of the stored images, from which views of 96 pixels are cut."""
WARM_UP, PROFILED, FED_STEPS = 5, 3, 20
PATIENCE_S = 90
"""Seconds after which processes that share the card are given up."""
MPS_CONTROL = "nvidia-cuda-mps-control"


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    parts: tuple[Part, ...] = get_args(Part)
    """Parts of the measurement."""
    seconds: Positive = 1.0
    """Time for the steps of a row, without its warm-up."""
    full: bool = False
    """Measure the whole product of networks, sizes, objectives, maskings, precisions and compilation: hours."""
    output: Path | None = None
    """File for the results so far, written after each measurement."""


@dataclass
class Report:
    """The results so far.

    Attributes:
        output: File that they are written to; None for none.
        found: The JSON object that is printed at the end.
    """

    output: Path | None
    found: dict[str, Any] = field(default_factory=lambda: {"failures": [], "left_out": []})
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def measure(self, part: str, name: str, work: Callable[..., Mapping[str, Any]], *arguments: object) -> None:
        """Measure one row of a part, and write all results."""
        began = time.perf_counter()
        row = self.attempt(f"{part}: {name}", work, *arguments)
        release()
        self.console.print(f"{part}: {name}: {json.dumps(row)} ({time.perf_counter() - began:.1f} s)", markup=False)
        if row:
            self.found.setdefault(part, {})[name] = row
        if self.output:
            write_output(self.output, json.dumps(self.found, indent=1).encode())

    def attempt(self, what: str, work: Callable[..., Mapping[str, Any]], *arguments: object) -> dict[str, Any]:
        """Return the measurements of ``work``; if it fails, note the error and return none."""
        try:
            return dict(work(*arguments))
        except Exception as error:  # whatever it is: the other measurements are worth having
            self.found["failures"].append({"what": what, "error": f"{type(error).__name__}: {error}"[:1000]})
            self.console.print(traceback.format_exc(limit=-4), markup=False)
            return {}

    def leave_out(self, what: str) -> None:
        """Note what this machine cannot measure."""
        self.found["left_out"].append(what)


def release() -> None:
    """Give the memory of what is no longer used back to the GPU, so that each row starts alike."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid inside the block that float32 products and convolutions round their factors to TF32."""

    def allow(products: bool, convolutions: bool) -> None:
        # By the older names, which set the newer ones too: torch refuses to read the older ones where only the newer
        # ones were set, and torch.compile reads them.
        torch.set_float32_matmul_precision("high" if products else "highest")
        torch.backends.cudnn.allow_tf32 = convolutions

    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # missing in torch's annotations
    kept = torch.backends.cuda.matmul.fp32_precision == "tf32", convolutions.fp32_precision == "tf32"
    allow(allowed, allowed)
    try:
        yield
    finally:
        allow(*kept)


def config_of(changes: Changes, device: torch.device) -> TrialConfig:
    """Build the configuration of a row; on CPUs with the small sizes, in single precision."""
    small = {**SMALL, "precision": "float32"} if device.type == "cpu" else {}
    return replaced(TrialConfig(), {**BASE, **changes, **small})


def title(changes: Changes) -> str:
    """Name a row by what it changes."""
    words = []
    for path, value in changes.items():
        leaf = path.rpartition(".")[2].replace("_", " ")
        named = isinstance(value, str) and leaf != "masked views"
        words.append(value if named else leaf if value is True else f"{leaf} {value}")
    return ", ".join(words) or "base"


def step_of(config: TrialConfig, device: torch.device) -> tuple[Networks, Callable[[], object]]:
    """Build networks of a configuration that names its image size, and a function that takes a step on one batch."""
    assert config.image_size is not None
    networks, _, step = random_step(config, config.image_size, config.batch_size, device)
    return networks, step


def seconds_of(step: Callable[[], object], device: torch.device, budget_s: float) -> list[float]:
    """Measure the seconds of consecutive steps; on a GPU from its clock, without waiting between them."""
    rounds = int(min(max(budget_s / timed(step, device), 5), 200))
    if device.type == "cpu":
        return [timed(step, device) for _ in range(rounds)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    ends[0].record()
    for end in ends[1:]:
        step()
        end.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1000 for first, second in itertools.pairwise(ends)]


def products_per_s(dtype: torch.dtype, device: torch.device) -> float:
    """Measure floating-point operations per second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 512
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    timed(lambda: a @ b, device)
    return 2 * side**3 / statistics.median(seconds_of(lambda: a @ b, device, 0.5))


def measure_card(device: torch.device) -> dict[str, Any]:
    """Name the device, and measure what it can do at most: products, and copies in its memory."""
    named: dict[str, Any] = {"name": "CPU", "torch": torch.__version__, "cpus": len(os.sched_getaffinity(0))}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
        named |= {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": driver.stdout.split("\n")[0] if driver else None,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    peaks = {}
    for name, dtype, allowed in (
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        if device.type == "cuda" or name == "float32":
            with tf32(allowed):
                peaks[name] = round(products_per_s(dtype, device) / 1e12, 3)
    values = torch.zeros(2**28 if device.type == "cuda" else 2**22, device=device)
    copy = torch.empty_like(values)
    copy_s = statistics.median(seconds_of(lambda: copy.copy_(values), device, 0.2))
    return named | {"peak_tflops": peaks, "copy_gb_per_s": round(2 * values.nbytes / copy_s / 1e9, 1)}


def with_fitting_batch(config: TrialConfig, measure: Callable[[TrialConfig], dict[str, Any]]) -> dict[str, Any]:
    """Measure with half of the batch as long as the GPU's memory is too small; the result names the batch."""
    while True:
        try:
            return {"batch_size": config.batch_size, **measure(config)}
        except RuntimeError as error:
            if config.batch_size < 16 or not is_out_of_memory(error):
                raise
        release()  # after the handler, whose exception holds the step's tensors
        config = replaced(config, {"batch_size": config.batch_size // 2})


def measure_step(changes: Changes, device: torch.device, seconds: float, report: Report, name: str) -> dict[str, Any]:
    """Measure a step."""
    measure = partial(_measure_step, device=device, seconds=seconds, report=report, name=name)
    return {"changes": changes, **with_fitting_batch(config_of(changes, device), measure)}


def _measure_step(
    config: TrialConfig, device: torch.device, seconds: float, report: Report, name: str
) -> dict[str, Any]:
    networks, step = step_of(config, device)
    # Of the first step: the counter sees operators, not what they are fused to, or recorded in.
    flops = count_operations(step)
    began = time.perf_counter()
    if config.compile:
        torch._dynamo.reset()  # else a row counts towards the limit of recompilations of the next
        networks.compile_parts()
    timed(step, device)
    if device.type == "cuda":  # after compiling, and before a recording, whose memory its replays do not take again
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP - 1):
        timed(step, device)
    warm_up_s = time.perf_counter() - began
    step_s = statistics.median(seconds_of(step, device, seconds))
    peaks = report.found.get("card", {}).get("peak", {}).get("peak_tflops", {})
    half = config.precision == "bfloat16" and native_bfloat16(device)  # else it trains in float32
    units = "bfloat16" if half else "tf32" if device.type == "cuda" else "float32"
    row: dict[str, Any] = {
        "ms": round(1000 * step_s, 2),
        "images_per_s": round(config.batch_size / step_s, 1),
        "tflop": round(flops / 1e12, 4),
        "share_of_peak": round(flops / step_s / 1e12 / peaks[units], 4) if units in peaks else None,
        "warm_up_s": round(warm_up_s, 1),
    }
    if device.type == "cpu":
        return row
    row["memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    row |= report.attempt(f"steps: {name}: synchronizations", synchronizations, step)
    return row | report.attempt(f"steps: {name}: kernels", profiled, step, PROFILED)


def synchronizations(work: Callable[[], object]) -> dict[str, Any]:
    """Count how often one call makes the host wait for the GPU, and name the lines that do."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    lines = sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits})
    return {"synchronizations": len(waits), **({"synchronizing": lines} if lines else {})}


def profiled(work: Callable[[], object], steps: int, calls: int | None = None) -> dict[str, Any]:
    """Count the kernels of a step, and measure the share of the time in which the GPU does nothing.

    Args:
        work: Takes one step, or ``steps`` of them.
        steps: Number of steps in all.
        calls: How often to call ``work``; None calls it for each step.
    """
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls or steps):
            work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"], event["cat"])
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    )
    if not spans:
        raise RuntimeError("the profiler saw no kernels")
    kernels = sum(kind == "kernel" for *_, kind in spans)
    return {"kernels": round(kernels / steps), "idle_share": round(idle_share([span[:2] for span in spans]), 4)}


def idle_share(spans: Sequence[tuple[float, float]]) -> float:
    """Compute the share of the time from the first start to the last end in which none of the spans (start, end) runs.

    Spans are in the order of their starts; where several run at the same time, it counts once.
    """
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(end - max(start, until), 0.0)
        until = max(until, end)
    return 1 - busy / (until - spans[0][0])


def growth_mib(config: TrialConfig, slots: int, device: torch.device) -> float:
    """Measure the MiB of a GPU that a step with N masks adds at its peak to networks and batch."""
    release()
    _, step = step_of(with_slots(config, slots), device)
    step()  # momentum buffers and libraries' workspaces
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compare_memory(changes: Changes, device: torch.device) -> dict[str, Any]:
    """Compare the peak memory of a step with eight masks and with one, embedded one at a time."""
    config = config_of(changes, device)
    one, eight = (growth_mib(config, slots, device) for slots in (1, 8))
    return {"one_slot_mib": round(one), "eight_slots_mib": round(eight), "ratio": round(eight / one, 3)}


def store_random_images(directory: Path, count: int) -> dict[str, Any]:
    """Write a data set of noise of ten classes."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, STORED, STORED, 3), dtype=np.uint8)
    samples = [(str(i), Sample(image, i % 10, None, STORED, STORED)) for i, image in enumerate(images)]
    store(directory, STORED, dict.fromkeys(("train", "val"), [samples]), tuple(map(str, range(10))))
    return {}


def measure_feed(changes: Changes, device: torch.device, seconds: float) -> dict[str, Any]:
    """Measure images per second of the feed alone, two views each, and the share of the time it waits for the host."""
    config = config_of(changes, device)
    assert config.data_dir is not None and config.image_size is not None
    feed = BatchLoader(open_shards(config.data_dir).split("train"), config, config.image_size, device)
    batches = feed.batches(0, 0, sys.maxsize)
    for _ in range(WARM_UP):
        next(batches)
    waited, count = feed.waited_s, 0

    def draw() -> None:
        nonlocal count
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            count += len(next(batches).a)

    seconds_taken = timed(draw, device)
    waits = (feed.waited_s - waited) / seconds_taken
    return {"images_per_s": round(count / seconds_taken), "waits_for_host": round(waits, 3)}


def measure_trainer(changes: Changes, device: torch.device) -> dict[str, Any]:
    """Measure a training with its feed: start, first step, images per second, waits of all steps, idle time."""
    return with_fitting_batch(config_of(changes, device), partial(_measure_trainer, device=device))


def _measure_trainer(config: TrialConfig, device: torch.device) -> dict[str, Any]:
    began = time.perf_counter()
    trainer = Trainer(config, device)
    start_s = time.perf_counter() - began

    def train(steps: int) -> None:
        trainer.train_until(trainer.step + steps)

    first_s = timed(lambda: train(1), device)
    train(WARM_UP)
    steps = FED_STEPS if device.type == "cuda" else WARM_UP
    seconds = timed(lambda: train(steps), device)
    row = {
        "start_s": round(start_s, 2),
        "first_step_s": round(first_s, 2),
        "images_per_s": round(steps * config.batch_size / seconds, 1),
    }
    if device.type == "cpu":
        return row
    return row | synchronizations(lambda: train(steps)) | profiled(lambda: train(steps), steps, calls=1)


def train_alongside(
    config: TrialConfig, share: float, seconds: float, start: Barrier, results: "SimpleQueue[float]"
) -> None:
    """Train in a process of its own, and report images per second from when all processes are warm.

    The device is prepared as for a trial of ``--gpus-per-worker SHARE``.
    """
    device = best_device()
    prepare_device(device)
    limit_memory(device, share)
    torch.set_num_threads(1)
    try:
        _, step = step_of(config, device)
        for _ in range(WARM_UP):
            timed(step, device)
        start.wait(PATIENCE_S)
        began, steps = time.perf_counter(), 0
        waiting: list[torch.cuda.Event] = []
        while time.perf_counter() - began < seconds:
            step()
            steps += 1
            if device.type == "cuda":  # at most two steps ahead of the GPU
                waiting.append(torch.cuda.Event())
                waiting[-1].record()
                if len(waiting) > 2:
                    waiting.pop(0).synchronize()
        if waiting:
            waiting[-1].synchronize()
        results.put(steps * config.batch_size / (time.perf_counter() - began))
    except BaseException as error:
        start.abort()  # the others need not wait for this one
        if is_out_of_memory(error):
            sys.exit(NO_MEMORY)
        raise


def share_card(config: TrialConfig, processes: int, seconds: float) -> dict[str, Any]:
    """Measure images per second of several trainings at the same time, in sum and of the slowest."""
    return with_fitting_batch(config, partial(_share_card, processes=processes, seconds=seconds))


def _share_card(config: TrialConfig, processes: int, seconds: float) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.SimpleQueue()
    workers = [
        context.Process(target=train_alongside, args=(config, 1 / processes, seconds, start, results))
        for _ in range(processes)
    ]
    deadline = time.monotonic() + PATIENCE_S + seconds
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(deadline - time.monotonic(), 0))
        failed = [worker.exitcode for worker in workers if worker.exitcode != 0]
        if NO_MEMORY in failed:
            raise torch.OutOfMemoryError(f"{processes} trainings do not fit into the GPU's memory")
        if failed:
            raise RuntimeError(f"{len(failed)} of {processes} processes failed: exit codes {failed} (None: too slow)")
        speeds = [results.get() for _ in workers]
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
    return {"images_per_s": round(sum(speeds), 1), "slowest": round(min(speeds), 1)}


@contextmanager
def mps() -> Iterator[None]:
    """Run a daemon of NVIDIA's Multi-Process Service for the processes started inside the block.

    Raises:
        CalledProcessError: If it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="mps", ignore_cleanup_errors=True) as directory:
        own = {"CUDA_MPS_PIPE_DIRECTORY": directory, "CUDA_MPS_LOG_DIRECTORY": directory}

        def control(*arguments: str, words: str = "") -> None:
            # Without pipes, which the daemon would hold open.
            subprocess.run(
                [MPS_CONTROL, *arguments],
                env={**os.environ, **own},
                input=words.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=30,
                check=True,
            )

        control("-d")
        # While the directory is removed, the daemon may still be writing its last lines there.
        try:
            with patch.dict(os.environ, own):  # inherited by the processes
                yield
        finally:
            control(words="quit\n")


def measure_sharing(report: Report, device: torch.device) -> None:
    """Measure small trainings that share the card, without MPS and with it."""
    config = config_of({"batch_size": 128}, device)
    on_gpu = device.type == "cuda"
    counts, seconds = ((1, 2, 4), 5.0) if on_gpu else ((2,), 1.0)
    for count in counts:
        report.measure("sharing", f"{count} trials", share_card, config, count, seconds)
    if not on_gpu or not shutil.which(MPS_CONTROL):
        report.leave_out(f"sharing with MPS: needs a GPU, and {MPS_CONTROL} on the PATH")
        return

    def all_under_mps() -> dict[str, Any]:
        with mps():
            return {f"{count} trials": share_card(config, count, seconds) for count in counts[1:]}

    report.measure("sharing", "with MPS", all_under_mps)


def rows_of(options: Options, device: torch.device) -> tuple[Changes, ...]:
    """List the rows of the part ``steps``."""
    if device.type == "cpu":
        return tuple(row for row in ROWS[:9] if row["objective.name"] == "simclr")
    if not options.full:
        return ROWS
    product = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    return tuple({**row, **(LARGE if row["image_size"] == 224 else {})} for row in product)


def table(found: Mapping[str, Any]) -> str:
    """Format the steps as a table in Markdown."""
    columns = {
        "batch_size": "batch",
        "ms": "ms",
        "images_per_s": "images/s",
        "tflop": "TFLOP",
        "share_of_peak": "share of peak",
        "memory_mib": "MiB",
        "kernels": "kernels",
        "synchronizations": "synchronizations",
        "idle_share": "GPU idle",
    }
    lines = [f"| step | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in found.get("steps", {}).items():
        cells = [row.get(key) for key in columns]
        lines.append(f"| {name} | {' | '.join('' if cell is None else f'{cell:,}' for cell in cells)} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Measure all parts that were asked for, and print the results.

    Raises:
        RunError: If a measurement failed.
    """
    report, device = Report(options.output), best_device()
    prepare_device(device)
    on_gpu = device.type == "cuda"
    report.found["base"] = BASE if on_gpu else {**BASE, **SMALL, "precision": "float32"}
    if not on_gpu:
        report.leave_out(
            "sizes of a GPU, other precisions, compilation, kernels, synchronizations, memory: needs a GPU"
        )
    with tempfile.TemporaryDirectory() as temporary:
        data: Changes = {"data_dir": Path(temporary) / "noise"}
        if "card" in options.parts:
            report.measure("card", "peak", measure_card, device)
        if "steps" in options.parts:
            for row in rows_of(options, device):
                report.measure("steps", title(row), measure_step, row, device, options.seconds, report, title(row))
        if "feed" in options.parts or "trainer" in options.parts:
            report.attempt("data", store_random_images, data["data_dir"], 4096 if on_gpu else 64)
        if "feed" in options.parts:
            for own in FEEDS if on_gpu else FEEDS[:1]:
                report.measure("feed", title(own), measure_feed, {**own, **data}, device, options.seconds)
        if "trainer" in options.parts:
            for row in FED if on_gpu else FED[:1]:
                report.measure("trainer", title(row), measure_trainer, {**row, **data}, device)
        if "memory" in options.parts and on_gpu:
            for name in ("simclr", "byol"):
                report.measure("memory", name, compare_memory, {"objective.name": name, "slots_at_once": 1}, device)
        if "sharing" in options.parts:
            measure_sharing(report, device)
    report.console.print(table(report.found), markup=False, soft_wrap=True)
    print(json.dumps(report.found))
    if failures := report.found["failures"]:
        raise RunError(f"{len(failures)} measurements failed, the first of them {failures[0]['what']}")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

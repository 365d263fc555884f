"""Resident memory of additional trials that read the same data set on one machine.

Each trial is a process that reads every image once, in random order, in batches of 128, like the batch loader, and then
stays alive. The measure is the proportional set size, in which a page mapped by several processes counts once in total;
the memory before reading (interpreter, libraries) is subtracted.

Prints one JSON object: ``growth_fraction`` is the memory that each trial after the first adds, over the size of the
data set.
"""

import json
import multiprocessing
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from stored import Shard, store

from adios_ray.arguments import parse_arguments
from adios_ray.config import Count
from adios_ray.data.shards import open_shards
from adios_ray.data.sources.base import Sample
from adios_ray.errors import exit_status

SIZE, SHARD_ROWS, BATCH = 96, 1024, 128


@dataclass(frozen=True)
class Options:
    """Size of the measurement."""

    images: Count = 20_480
    """Images of 96 pixels in the data set, 27,648 bytes each."""
    trials: Annotated[int, Field(ge=2)] = 4
    """Largest number of processes; the growth is that from one to these."""


def make_data(directory: Path, images: int) -> int:
    """Write a data set of noise; return the bytes of its shards."""
    rng = np.random.default_rng(0)

    def shard(first: int) -> Shard:
        rows = range(first, min(first + SHARD_ROWS, images))
        pixels = rng.integers(0, 256, (len(rows), SIZE, SIZE, 3), dtype=np.uint8)
        return [(str(row), Sample(image, 0, None, SIZE, SIZE)) for row, image in zip(rows, pixels, strict=True)]

    written = store(directory, SIZE, {"train": map(shard, range(0, images, SHARD_ROWS))}, ("noise",))
    return sum(entry.bytes for entry in written.splits["train"])


def trial(directory: Path, seed: int, connection: Connection) -> None:
    """Open the data set, read it at the first message, and exit at the second."""
    split = open_shards(directory).split("train")
    connection.send("opened")
    connection.recv()
    order = np.random.default_rng(seed).permutation(len(split))
    for first in range(0, len(order), BATCH):
        split.gather(order[first : first + BATCH])
    connection.send("read")
    connection.recv()


def resident_bytes(processes: list[multiprocessing.process.BaseProcess]) -> int:
    """Sum the proportional set size of all processes, in bytes."""
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def grown(directory: Path, trials: int) -> int:
    """Measure the bytes that reading the data adds to ``trials`` processes together."""
    context = multiprocessing.get_context("spawn")  # forked processes would share this one's pages
    pipes = [context.Pipe() for _ in range(trials)]
    processes: list[multiprocessing.process.BaseProcess] = [
        context.Process(target=trial, args=(directory, seed, theirs)) for seed, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, theirs in pipes:
        theirs.close()  # so that a process that dies ends the wait for its messages
    ours = [connection for connection, _ in pipes]
    for connection in ours:
        connection.recv()
    before = resident_bytes(processes)
    for connection in ours:
        connection.send("read")
        connection.recv()
    after = resident_bytes(processes)
    for connection, process in zip(ours, processes, strict=True):
        connection.send("end")
        process.join()
    return after - before


def main(options: Options) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        data_bytes = make_data(directory, options.images)
        counts = range(1, options.trials + 1)
        resident = [grown(directory, count) for count in counts]
    growth = (resident[-1] - resident[0]) / (options.trials - 1) / data_bytes
    result = {"data_bytes": data_bytes, "trials": list(counts), "resident_bytes": resident, "growth_fraction": growth}
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

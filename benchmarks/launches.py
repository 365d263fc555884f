"""Operators that each part of a training step launches: on a fast GPU, about 5 microseconds of the host each.

Usage: ``python benchmarks/launches.py [--compiled]``. Prints one JSON object: the launches of augmenting two views of a
batch as a GPU does it (with ``--compiled`` also the kernels and library calls when it is compiled, which takes a
minute), of what replaces hidden pixels of a view, by the name of the fill, and of whole steps: with SGD, the same in
bfloat16 and with all slots embedded at once, and with LARS. Counted on the CPU with small tensors: the count does not
depend on sizes. Views of memory are not counted.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._inductor import metrics
from torch._ops import OpOverload
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from adios_ray.arguments import parse_arguments
from adios_ray.config import AugmentConfig, TrialConfig
from adios_ray.data.augment import draw_parameters, pack_views, render_views
from adios_ray.devices import CPU
from adios_ray.errors import exit_status
from adios_ray.masking.fill import FILLS, make_fill
from adios_ray.training.cost import random_step
from adios_ray.validation import parse

BATCH, STORED, SIZE = 16, 48, 32
STEPS: tuple[tuple[str, str, int], ...] = (
    ("simclr", "none", 4),
    ("simclr", "adios-s", 4),
    ("simclr", "adios", 4),
    ("simclr", "adios", 8),
    ("byol", "adios", 4),
)
"""Objective, masking scheme and slots of each step."""
VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd, bfloat16": {"precision": "bfloat16"},
    "sgd, slots at once": {"slots_at_once": 8},
    "lars": {"optimizer": {"name": "lars"}},
}

NO_LAUNCH = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "detach")
"""Operators that allocate memory or, like those whose results are views, do nothing on the device."""
TENSORS = (110, 64, 48, 36, 30)
"""Small tensors that one launch of an operator on lists takes, by the number of lists (torch's MultiTensorApply)."""


@dataclass(frozen=True)
class Options:
    """Options of the count."""

    compiled: bool = False
    """Also compile the augmentation, and count its kernels."""


class LaunchCounter(TorchDispatchMode):
    """Counts the operators that compute or copy, each about one launch on a GPU."""

    def __init__(self) -> None:
        """Begin to count at 0."""
        super().__init__()  # type: ignore[no-untyped-call] # torch has no annotation here
        self.count = 0

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator, unless it only makes a view or allocates memory."""
        name = func.overloadpacket.__name__
        if name.startswith(("_foreach", "_fused")):
            lists = [own for own in args if isinstance(own, list | tuple) and own and isinstance(own[0], Tensor)]
            self.count += launches_of_lists(name, lists)
        else:
            self.count += not (func.is_view or name in NO_LAUNCH)
        return func(*args, **(kwargs or {}))


def launches_of_lists(name: str, lists: Sequence[Sequence[Tensor]]) -> int:
    """Count the launches of an operator that reads lists of tensors, by position of one shape; if not, one for each."""
    if name.startswith("_foreach") and any(len({own.shape for own in each}) > 1 for each in zip(*lists, strict=True)):
        return len(lists[0])
    makes_one = not name.endswith("_")
    return -(-len(lists[0]) // TENSORS[len(lists) + makes_one - 1])


def launches(work: Callable[[], object]) -> int:
    """Count the launches of one call after a first one, which may build optimizer states."""
    work()
    with LaunchCounter() as counter:
        work()
    return int(counter.count)


def compiled_launches(work: Callable[[], Tensor]) -> int:
    """Count the kernels that the compiler makes for ``work``, and its calls of libraries."""
    metrics.reset()
    compiled = torch.compile(work, dynamic=False, fullgraph=True)
    compiled()
    kernels = metrics.generated_kernel_count
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        compiled()
    calls = (event.count for event in profiled.key_averages() if event.key in ("aten::bmm", "aten::mm"))
    return int(kernels + sum(calls))


def augmentation(options: Options) -> dict[str, int]:
    """Count the launches of two views."""
    images = torch.randint(0, 256, (BATCH, STORED, STORED, 3), dtype=torch.uint8)
    samples, sides = np.arange(BATCH, dtype=np.int64), np.full(BATCH, STORED, np.int32)
    config = AugmentConfig(solarize_probability=0.2)
    views = [draw_parameters(config, 0, stream, 0, samples, sides, sides) for stream in ("view_a", "view_b")]
    packed = pack_views(views, STORED)
    counts = {"eager": launches(lambda: render_views(images, packed, SIZE))}
    if options.compiled:
        counts["compiled"] = compiled_launches(lambda: render_views(images, packed, SIZE))
    return counts


def fills() -> dict[str, int]:
    """Count the launches of each fill of a view."""
    x, draws = torch.randn(BATCH, 3, SIZE, SIZE), np.random.default_rng(0).random(BATCH)

    def of(name: str) -> int:
        return launches(lambda: make_fill(name, x, draws))

    return {name: of(name) for name in FILLS}


def step(objective: str, scheme: str, slots: int, variant: dict[str, Any]) -> int:
    """Count the launches of a whole step: ResNet-18, U-Net, both optimizers, probe."""
    values = {
        "objective": {"name": objective, "hidden_dim": 64, "output_dim": 32},
        "masking": {"scheme": scheme, "slots": slots, "width": 8},
        **variant,
    }
    return launches(random_step(parse(TrialConfig, values), SIZE, BATCH, CPU)[2])


def main(options: Options) -> None:
    """Count everything."""
    torch.manual_seed(0)
    steps = [
        {"objective": objective, "masking": scheme, "slots": slots}
        | {name: step(objective, scheme, slots, variant) for name, variant in VARIANTS.items()}
        for objective, scheme, slots in STEPS
    ]
    print(json.dumps({"two_views": augmentation(options), "fills": fills(), "steps": steps}))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(parse_arguments(Options, description=__doc__))))

"""The rows of ``benchmarks/gpu.py`` and its idle share, checked without a GPU."""

from typing import Any

import pytest
import torch
from gpu import Options, config_of, idle_share, rows_of, title, with_fitting_batch
from launches import launches
from step import count_operations
from torch import nn

from adios_ray.config import TrialConfig, replaced
from adios_ray.models.stem import StemConv2d, convolve_phases


@pytest.mark.parametrize("full", [False, True])
def test_every_row_is_a_valid_training_with_a_name_of_its_own(full: bool) -> None:
    rows = rows_of(Options(full=full), torch.device("cuda"))
    configs = {config_of(row, torch.device("cuda")).model_dump_json() for row in rows}
    assert len(rows) == len(configs) == len({title(row) for row in rows}) > 20


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_and_named() -> None:
    tried: list[int] = []

    def measure(config: TrialConfig) -> dict[str, Any]:
        tried.append(config.batch_size)
        if config.batch_size > 100:
            raise torch.OutOfMemoryError("too large")
        return {"images_per_s": 1.0}

    config = replaced(TrialConfig(), {"batch_size": 512})
    assert with_fitting_batch(config, measure) == {"batch_size": 64, "images_per_s": 1.0}
    assert tried == [512, 256, 128, 64]

    def fail(config: TrialConfig) -> dict[str, Any]:
        raise RuntimeError("another fault")

    with pytest.raises(RuntimeError, match="another fault"):
        with_fitting_batch(config, fail)


def test_launches_of_lists_are_few_unless_shapes_differ() -> None:
    tensors, factors = [torch.ones(2, 3) for _ in range(100)], [torch.ones(()) for _ in range(100)]
    for work, expected in (
        (lambda: torch._foreach_mul_(tensors, 2.0), 1),
        (lambda: torch._foreach_add(tensors, tensors), 3),  # with the results, 48 at once
        (lambda: torch._foreach_mul_(tensors, factors), 100),
    ):
        assert launches(work) == expected


def test_operations_of_the_stem_are_those_of_its_mathematics() -> None:
    """Two for each product: 2 images, 64 channels of 16 x 16, from 3 of 7 x 7; as many for each gradient."""
    stem = StemConv2d.of(nn.Conv2d(3, 64, 7, 2, 3, bias=False))
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    products = 2 * 64 * 16**2 * 3 * 7**2
    assert count_operations(lambda: stem(x).sum().backward()) == 3 * 2 * products
    assert count_operations(lambda: convolve_phases(x, stem.weight)) > 2 * products


def test_what_streams_do_at_the_same_time_counts_once() -> None:
    # Busy from 1 to 4 and from 6 to 7, of the time from 1 to 7.
    assert idle_share([(1, 3), (1.5, 2), (2, 4), (6, 7)]) == pytest.approx(2 / 6)

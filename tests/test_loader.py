"""Training batches: a function of the seed and the step number alone."""

import itertools
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from small import COUNTS, SIZE, small_config

from adios_ray import parallel
from adios_ray.config import CentralView
from adios_ray.data import loader as feeding
from adios_ray.data.augment import apply_view, center_view, draw_parameters, pack_views
from adios_ray.data.counter_random import module_seed, single_precision, uniforms
from adios_ray.data.loader import Batch, BatchLoader, central_batches, central_views, epoch_order
from adios_ray.data.shards import open_shards
from adios_ray.training.step import choose_slots

SEED = 3


@pytest.fixture
def loader(objects_dir: Path) -> BatchLoader:
    """Load 96 images in batches of 36: two per epoch, 24 left over; random masks draw every stream."""
    config = small_config(objects_dir, batch_size=36, masking={"scheme": "mae"})
    return BatchLoader(open_shards(objects_dir).split("train"), config, SIZE, torch.device("cpu"))


def tensors(batches: list[Batch]) -> list[torch.Tensor]:
    """List the tensors of all batches."""
    return [value for batch in batches for value in batch if isinstance(value, torch.Tensor)]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    """Assert that two lists of batches are equal in every bit."""
    assert len(first) == len(second) > 0
    assert all(map(torch.equal, tensors(first), tensors(second)))


def test_a_pass_drops_what_does_not_fill_its_last_batch(loader: BatchLoader) -> None:
    assert loader.steps_per_epoch == 2
    labels = [batch.labels for batch in loader.batches(SEED, 0, 6)]
    assert all(len(batch) == 36 for batch in labels)
    seen: set[int] = set()
    for epoch in range(3):
        order = epoch_order(SEED, epoch, COUNTS["train"])
        assert sorted(order) == list(range(COUNTS["train"]))
        expected = loader.split.labels[order[:72]]
        np.testing.assert_array_equal(torch.cat(labels[2 * epoch : 2 * epoch + 2]).numpy(), expected)
        seen |= set(order[72:].tolist())
    assert len(seen) > 24  # other images are left out in other epochs


def test_a_batch_is_a_function_of_seed_and_step(loader: BatchLoader) -> None:
    whole = list(loader.batches(SEED, 0, 7))
    assert_same(list(loader.batches(SEED, 3, 7)), whole[3:])
    assert not torch.equal(next(loader.batches(SEED + 1, 0, 1)).a, whole[0].a)
    assert not torch.equal(whole[0].a, whole[2].a)


def test_crops_are_drawn_in_the_proportions_of_each_photograph(loader: BatchLoader) -> None:
    sizes = np.random.default_rng(0).integers(20, 500, (2, len(loader.split)), dtype=np.int32)
    loader.split.heights, loader.split.widths = sizes
    samples = epoch_order(SEED, 1, COUNTS["train"])[:36]
    images = torch.from_numpy(loader.split.gather(samples))
    batch = next(loader.batches(SEED, 2, 3))
    for stream, view in (("view_a", batch.a), ("view_b", batch.b)):
        drawn = draw_parameters(loader.config.augment, SEED, stream, 1, samples, *sizes[:, samples])
        assert torch.equal(view, apply_view(images, drawn, SIZE))


def test_central_views_are_those_of_each_photograph(loader: BatchLoader) -> None:
    sizes = np.random.default_rng(0).integers(20, 500, (2, len(loader.split)), dtype=np.int32)
    loader.split.heights, loader.split.widths = sizes
    indices = np.array([80, 3, 41])
    images, (heights, widths) = torch.from_numpy(loader.split.gather(indices)), sizes[:, indices]
    for view in get_args(CentralView):
        expected = center_view(images, heights, widths, SIZE, view)
        assert torch.equal(central_views(loader.split, indices, SIZE, torch.device("cpu"), view), expected)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_central_views_by_batches_are_those_of_each_batch(loader: BatchLoader, number: int) -> None:
    batches = [np.array([80, 3, 41]), np.array([7]), np.array([3, 3])][:number]
    cpu = torch.device("cpu")
    found = list(central_batches(loader.split, batches, SIZE, cpu, "resize-256"))
    expected = [central_views(loader.split, batch, SIZE, cpu, "resize-256") for batch in batches]
    assert len(found) == number and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("prefetched", [0, 1, 5])
def test_prefetching_changes_nothing(loader: BatchLoader, prefetched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(loader.batches(SEED, 1, 5))
    monkeypatch.setattr(feeding, "PREFETCHED_BATCHES", prefetched)
    assert_same(list(loader.batches(SEED, 1, 5)), expected)


def logging_stream(name: str, log: list[str]) -> SimpleNamespace:
    """Stand in for a CUDA stream: append what it waits for to ``log``; an event is the last entry so far."""
    return SimpleNamespace(
        wait_stream=lambda other: log.append(f"{name} waits for all of {other.name}"),
        wait_event=lambda event: log.append(f"{name} waits for {event}"),
        record_event=lambda: log[-1],
        name=name,
    )


def test_a_side_stream_is_one_batch_ahead(loader: BatchLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, augmented = list(loader.batches(SEED, 0, 3)), loader._augmented
    numbers, log = itertools.count(), list[str]()

    def logged(loaded: feeding._Loaded) -> Batch:
        log.append(f"batch {next(numbers)}")
        return augmented(loaded)

    monkeypatch.setattr(loader, "_augmented", logged)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: logging_stream("main", log))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    side: Any = logging_stream("side", log)
    seen = []
    for number, batch in enumerate(loader._ahead(loader._prefetched(SEED, 0, 3), side)):
        log.append(f"step {number}")
        seen.append(batch)
    assert_same(seen, expected)
    waits = "side waits for all of main"
    assert log == [
        *(waits, "batch 0", waits, "batch 1", "main waits for batch 0", "step 0"),
        *(waits, "batch 2", "main waits for batch 1", "step 1"),
        *("main waits for batch 2", "step 2"),
    ]


def test_loaders_share_their_side_stream(loader: BatchLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream takes memory of a GPU for as long as the process lives."""
    made: list[str] = []

    def make(device: torch.device) -> SimpleNamespace:
        made.append(str(device))
        return logging_stream("side", [])

    monkeypatch.setattr(torch.cuda, "Stream", make)
    feeding._side_stream.cache_clear()
    try:
        for device in ("cuda:0", "cuda:0", "cpu", "cuda:1"):
            BatchLoader(loader.split, loader.config, SIZE, torch.device(device))
    finally:
        feeding._side_stream.cache_clear()
    assert made == ["cuda:0", "cuda:1"]


def test_packed_parameters_make_the_same_batches(loader: BatchLoader) -> None:
    loaded = loader._load(SEED, 0)
    assert loaded.packed is None  # a CPU changes only the images that an operation is for
    packed = pack_views((loaded.view_a, loaded.view_b), SIZE)
    views = loader._views(loaded.images, loaded._replace(packed=packed))
    for view, expected in zip(views, loader._views(loaded.images, loaded), strict=True):
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_batch_of_one(loader: BatchLoader, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(loader.batches(SEED, 0, 2))
    monkeypatch.setattr(parallel, "world_size", lambda: workers)
    for rank in range(workers):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares = [value[rank::workers] for value in tensors(expected)]
        for own, theirs in zip(tensors(list(loader.batches(SEED, 0, 2))), shares, strict=True):
            torch.testing.assert_close(own, theirs, rtol=0, atol=1e-6)  # products of matrices of other sizes


def test_slots_are_drawn_by_seed_epoch_and_image(loader: BatchLoader) -> None:
    drawn = [batch.drawn_slots for batch in loader.batches(SEED, 0, 4)]
    for epoch in range(2):
        samples = epoch_order(SEED, epoch, COUNTS["train"])[:72]
        expected = uniforms(SEED, "slot", epoch, samples, 1)[:, 0]
        found = torch.cat(drawn[2 * epoch : 2 * epoch + 2]).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-24)


def test_a_draw_that_rounds_to_one_keeps_its_slot() -> None:
    """Check draws above 1 - 2^-25, which round to 1 in single precision and would choose slot N of 0 to N - 1."""
    (draw,) = uniforms(0, "slot", 199, np.array([78309]), 1)[:, 0]  # of ImageNet100's 114,020 images, seed 0
    assert draw < 1 and np.float32(draw) == 1
    draws = np.concatenate([uniforms(0, "slot", 0, np.arange(100_000), 1)[:, 0], [draw, 1 - 2.0**-53, 0.0]])
    single = single_precision(draws)
    assert single.dtype == np.float32 and single.max() < 1
    np.testing.assert_array_equal(single[draws < 1 - 2.0**-25], draws[draws < 1 - 2.0**-25].astype(np.float32))
    masks = torch.rand(len(draws), 7, 1, 1, generator=torch.Generator().manual_seed(0))
    chosen = choose_slots(masks, torch.from_numpy(single))[:, 0, 0, 0]
    expected = masks[np.arange(len(draws)), np.floor(single.astype(np.float64) * 7).astype(np.int64), 0, 0]
    assert torch.equal(chosen, expected)
    assert torch.equal(choose_slots(masks[:1], torch.ones(1))[0, 0], masks[0, 6])


def test_modules_draw_by_seed_step_and_worker() -> None:
    keys = list(itertools.product(range(2), range(50), range(3)))
    seeds = [module_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and seeds == [module_seed(*key) for key in keys]
    assert min(seeds) >= 0 and max(seeds) < 2**53

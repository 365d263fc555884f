"""Training batches from shards: sample order, prefetching, two augmented views, masks of schemes that do not learn."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adios_ray import parallel
from adios_ray.config import CentralView, TrialConfig
from adios_ray.data.augment import (
    ViewParameters,
    apply_geometry,
    apply_view,
    center_maps,
    center_view,
    draw_parameters,
    pack_views,
    render_views,
)
from adios_ray.data.counter_random import module_seed, permutation, single_precision, uniforms
from adios_ray.data.shards import Bytes, Split
from adios_ray.masking.fill import make_fill
from adios_ray.masking.schemes import IDS, OBJECT_SCHEMES, PATTERN_SCHEMES

PREFETCHED_BATCHES = 2


class Batch(NamedTuple):
    """Two augmented views of the same images.

    Attributes:
        a: First view, normalized, [B, 3, S, S].
        b: Second view, the one that is masked, [B, 3, S, S].
        labels: Class indices int64 [B], or zeros and ones uint8 [B, C]; only the probe uses them.
        drawn_slots: ADIOS-s: uniform numbers in [0, 1) that choose each image's slot, [B].
        masks: Masks of a scheme that is not learned: [B, N, S, S] for the second view, or [2B, N, S, S] for both views
            where both are masked. None where masks are learned, or there are none.
        module_seed: Seed for modules' own draws in this step, such as dropout.
        fill_a: What hidden pixels of the first view become, [B, 3, S, S]; None where they become 0 or it is not masked.
        fill_b: The same of the second view.
    """

    a: Tensor
    b: Tensor
    labels: Tensor
    drawn_slots: Tensor
    masks: Tensor | None = None
    module_seed: int = 0
    fill_a: Tensor | None = None
    fill_b: Tensor | None = None


class _Loaded(NamedTuple):
    """A batch as the loading thread leaves it: stored images on the CPU, and the parameters of their views.

    ``packed`` has the parameters of both views as ``render_views`` takes them; None on a CPU.
    """

    images: Tensor
    labels: Tensor
    drawn_slots: Tensor
    view_a: ViewParameters
    view_b: ViewParameters
    packed: Tensor | None
    patterns: Tensor | None
    objects: Tensor | None
    module_seed: int
    fill_draws: npt.NDArray[np.float64]


def central_views(
    split: Split, indices: npt.NDArray[np.int64], image_size: int, device: torch.device, view: CentralView = "square"
) -> Tensor:
    """Load images without augmentation, for evaluation; see ``center_view``.

    Args:
        split: The split to read.
        indices: Indices into the split, int64 [B].
        image_size: Side S of the views in pixels.
        device: Device of the result.
        view: Part of each photograph to show.

    Returns:
        Normalized float32 [B, 3, S, S].
    """
    return next(central_batches(split, [indices], image_size, device, view))


def central_batches(
    split: Split,
    batches: Iterable[npt.NDArray[np.int64]],
    image_size: int,
    device: torch.device,
    view: CentralView = "square",
) -> Iterator[Tensor]:
    """Yield ``central_views`` of each of ``batches``; a thread reads the images of the next one meanwhile."""
    for indices, images in stored_batches(split, batches, device):
        yield center_view(images, split.heights[indices], split.widths[indices], image_size, view)


def stored_batches(
    split: Split, batches: Iterable[npt.NDArray[np.int64]], device: torch.device
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Yield the indices of each batch with its images as they are stored, uint8 [B, S, S, 3] on ``device``.

    A thread reads those of the next batch meanwhile.
    """

    def load(indices: npt.NDArray[np.int64]) -> Tensor:
        images = torch.from_numpy(split.gather(indices))
        return images.pin_memory() if device.type == "cuda" else images

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: deque[tuple[npt.NDArray[np.int64], Future[Tensor]]] = deque()
        for batch in batches:
            pending.append((batch, pool.submit(load, batch)))
            if len(pending) > 1:
                indices, loaded = pending.popleft()
                yield indices, loaded.result().to(device, non_blocking=True)
        for indices, loaded in pending:
            yield indices, loaded.result().to(device, non_blocking=True)


def central_instances(
    split: Split, indices: npt.NDArray[np.int64], image_size: int, view: CentralView = "square"
) -> Bytes:
    """Load the instance maps of ``central_views``, uint8 [B, S, S]; see ``center_maps``.

    Raises:
        DatasetError: If the data set has no instance maps.
    """
    maps = split.gather_instances(indices)
    return center_maps(maps, split.heights[indices], split.widths[indices], image_size, view)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return the order of the samples in one epoch, cached for the epoch's steps."""
    return permutation(seed, epoch, count)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which all loaders of this process augment.

    The memory of a stream is reused on that stream alone, and cuBLAS keeps some for each, as long as the process lives.
    Loaders may share it, since each batch waits for all that was enqueued before (``BatchLoader._ahead``).
    """
    return torch.cuda.Stream(device)


class BatchLoader:
    """Loads the batches of a split by step number.

    A step's batch is a function of (seed, step) alone. Every epoch drops the images that do not fill its last batch;
    which images are dropped changes with the order. Each of W workers takes every W-th image of the global batch.

    Attributes:
        config: The trial's configuration; ``ADAPTABLE`` values may be replaced between two calls of ``batches``.
        steps_per_epoch: Full batches in one pass.
        waited_s: Total seconds that the consumer has waited for loading.
    """

    def __init__(self, split: Split, config: TrialConfig, image_size: int, device: torch.device) -> None:
        """Prepare to load a trial's batches, with views of ``image_size`` pixels a side, onto ``device``."""
        self.split, self.config, self.image_size, self.device = split, config, image_size, device
        self.both = config.objective.masked_views == "both"
        self.steps_per_epoch = len(split) // config.batch_size
        self._side = _side_stream(device) if device.type == "cuda" else None
        self._render = torch.compile(render_views, dynamic=False) if config.compile else render_views
        self.waited_s = 0.0

    def batches(self, seed: int, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of the steps from ``first_step`` up to, but not including, ``last_step``."""
        # The thread loads stored images and draws parameters; views are made here, by the consumer, on its device.
        loaded = self._prefetched(seed, first_step, last_step)
        return map(self._augmented, loaded) if self._side is None else self._ahead(loaded, self._side)

    def _prefetched(self, seed: int, first_step: int, last_step: int) -> Iterator[_Loaded]:
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending: deque[Future[_Loaded]] = deque()
            for step in range(first_step, last_step):
                pending.append(pool.submit(self._load, seed, step))
                if len(pending) > PREFETCHED_BATCHES:
                    yield self._wait(pending.popleft())
            while pending:
                yield self._wait(pending.popleft())

    def _ahead(self, batches: Iterator[_Loaded], side: torch.cuda.Stream) -> Iterator[Batch]:
        """Copy and augment each batch on the stream ``side`` while the step of the batch before it runs."""
        stream = torch.cuda.current_stream(self.device)
        ready: deque[tuple[Batch, torch.cuda.Event]] = deque()
        for loaded in batches:
            # The consumer has enqueued all steps before that of ``ready``. Waiting for them keeps the side stream one
            # batch ahead, not more. It also makes it safe to reuse the memory of batches that the consumer has
            # released: whatever read them was enqueued before, so that ``record_stream`` is not needed.
            side.wait_stream(stream)
            with torch.cuda.stream(side):
                ready.append((self._augmented(loaded), side.record_event()))
            if len(ready) > 1:
                batch, augmented = ready.popleft()
                stream.wait_event(augmented)
                yield batch
        for batch, augmented in ready:
            stream.wait_event(augmented)
            yield batch

    def _wait(self, future: Future[_Loaded]) -> _Loaded:
        began = time.perf_counter()
        loaded = future.result()
        self.waited_s += time.perf_counter() - began
        return loaded

    def _load(self, seed: int, step: int) -> _Loaded:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = epoch_order(seed, epoch, len(self.split))
        batch = order[position * self.config.batch_size : (position + 1) * self.config.batch_size]
        samples = batch[parallel.rank() :: parallel.world_size()]
        side = self.split.images[0].shape[1]
        # Gathered into pinned memory, where that is needed, without another copy; see ``_pinned``.
        images = torch.empty(len(samples), side, side, 3, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        self.split.gather(samples, images.numpy())
        sides = self.split.heights[samples], self.split.widths[samples]
        view_a = draw_parameters(self.config.augment, seed, "view_a", epoch, samples, *sides)
        view_b = draw_parameters(self.config.augment, seed, "view_b", epoch, samples, *sides)
        return _Loaded(
            images,
            self._pinned(torch.from_numpy(self.split.labels[samples])),
            self._pinned(torch.from_numpy(single_precision(uniforms(seed, "slot", epoch, samples, 1)[:, 0]))),
            view_a,
            view_b,
            None if self.device.type == "cpu" else self._pinned(pack_views((view_a, view_b), side)),
            self._patterns(seed, epoch, samples),
            self._objects(seed, epoch, samples),
            module_seed(seed, step, parallel.rank()),
            uniforms(seed, "fill", epoch, samples, 2),
        )

    def _pinned(self, values: Tensor) -> Tensor:
        # Only a copy from pinned memory to a GPU is asynchronous; ``_augmented`` relies on it.
        return values.pin_memory() if self.device.type == "cuda" else values

    def _patterns(self, seed: int, epoch: int, samples: npt.NDArray[np.int64]) -> Tensor | None:
        scheme = PATTERN_SCHEMES.get(self.config.masking.scheme)
        if scheme is None:
            return None
        draws = uniforms(seed, "mask", epoch, samples, 2 * scheme.draws)
        views = [draws[:, : scheme.draws], draws[:, scheme.draws :]] if self.both else [draws[:, : scheme.draws]]
        return self._pinned(torch.cat([scheme.make(own, self.image_size) for own in views]))

    def _objects(self, seed: int, epoch: int, samples: npt.NDArray[np.int64]) -> Tensor | None:
        scheme = OBJECT_SCHEMES.get(self.config.masking.scheme)
        if scheme is None:
            return None
        draws = uniforms(seed, "mask", epoch, samples, IDS + 1)
        owners = samples
        if scheme.of_another_image:
            # An offset of 1 to n - 1: every other image is equally likely, and never the image itself.
            others = len(self.split) - 1
            owners = (samples + 1 + (draws[:, IDS] * others).astype(np.int64)) % len(self.split)
        maps = torch.from_numpy(self.split.gather_instances(owners))
        return self._pinned(scheme.make(maps, self.config.masking.slots, draws[:, :IDS]))

    def _augmented(self, loaded: _Loaded) -> Batch:
        images = loaded.images.to(self.device, non_blocking=True)
        a, b = self._views(images, loaded)
        fill, draws = self.config.masking.fill, loaded.fill_draws
        return Batch(
            a,
            b,
            loaded.labels.to(self.device, non_blocking=True),
            loaded.drawn_slots.to(self.device, non_blocking=True),
            self._masks(loaded),
            loaded.module_seed,
            make_fill(fill, a, draws[:, 0]) if self.both else None,
            make_fill(fill, b, draws[:, 1]),
        )

    def _views(self, images: Tensor, loaded: _Loaded) -> Sequence[Tensor]:
        if loaded.packed is None:
            return [apply_view(images, view, self.image_size) for view in (loaded.view_a, loaded.view_b)]
        packed = loaded.packed.to(self.device, non_blocking=True)
        return self._render(images, packed, self.image_size, self.config.channels_last).unbind()

    def _masks(self, loaded: _Loaded) -> Tensor | None:
        if loaded.objects is None:
            return None if loaded.patterns is None else loaded.patterns.to(self.device, non_blocking=True)
        objects = loaded.objects.to(self.device, non_blocking=True)
        views = (loaded.view_a, loaded.view_b) if self.both else (loaded.view_b,)
        return torch.cat([apply_geometry(objects, view, self.image_size) for view in views])

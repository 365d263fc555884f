"""Masks that are not learned: against loops over images, and aligned with their images in the batch loader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from small import SIZE, small_config
from torch import Tensor

from adios_ray.config import SCHEMES
from adios_ray.data.augment import denormalize
from adios_ray.data.loader import Batch, BatchLoader
from adios_ray.data.shards import Split, open_shards
from adios_ray.errors import DatasetError
from adios_ray.masking.schemes import IDS, OBJECT_SCHEMES, PATTERN_SCHEMES
from adios_ray.masking.schemes.beit import block_masks
from adios_ray.masking.schemes.colormae import green_noise, green_noise_masks
from adios_ray.masking.schemes.grid import grid_masks
from adios_ray.masking.schemes.mae import patch_masks
from adios_ray.masking.schemes.objects import box_masks, foreground_masks, object_masks
from adios_ray.training.trainer import Trainer

CPU = torch.device("cpu")
SIZES = (32, 64, 96, 224)


def uniform(rows: int, columns: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Draw uniform numbers [rows, columns]."""
    return np.random.default_rng(seed).random((rows, columns))


def cells(image: np.ndarray[tuple[int, int], np.dtype[np.float32]], side: int) -> list[float]:
    """Read the value of each cell of a grid, row by row; every cell must have one value."""
    edges = np.arange(len(image)) * side // len(image)
    values = [np.unique(image[np.ix_(edges == row, edges == column)]) for row in range(side) for column in range(side)]
    assert all(len(value) == 1 for value in values)
    return [float(value[0]) for value in values]


@pytest.mark.parametrize("size", SIZES)
def test_patches_are_whole_and_three_quarters_of_them_are_removed(size: int) -> None:
    draws = uniform(5, 36)
    masks = patch_masks(draws, size)
    assert masks.shape == (5, 1, size, size)
    for image, row in zip(masks[:, 0].numpy(), draws, strict=True):
        removed = {index for index, value in enumerate(cells(image, 6)) if value == 1}
        assert removed == set(sorted(range(36), key=row.__getitem__)[:27])


def test_every_patch_is_removed_equally_often() -> None:
    share = patch_masks(uniform(4000, 36), 6).mean(dim=0)
    torch.testing.assert_close(share, torch.full_like(share, 0.75), rtol=0, atol=4 * (0.75 * 0.25 / 4000) ** 0.5)


@pytest.mark.parametrize("size", SIZES)
def test_grids_lose_the_drawn_share_of_their_cells(size: int) -> None:
    numbers = uniform(6, 50)
    numbers[:, 0] = (0.0, 0.1, 0.3, 0.5, 0.9, 1 - 2**-53)
    removed = [cells(mask.numpy(), 7) for mask in grid_masks(numbers, size)[:, 0]]
    assert [sum(values) for values in removed] == [2, 3, 5, 7, 11, 12]  # floor(49 (0.05 + 0.2 share))
    for values, row in zip(removed, numbers[:, 1:], strict=True):
        smallest = sorted(range(49), key=row.__getitem__)[: int(sum(values))]
        assert {index for index, value in enumerate(values) if value == 1} == set(smallest)


def test_every_cell_of_a_grid_is_removed_equally_often() -> None:
    share = grid_masks(uniform(4000, 50), 7).mean(dim=0)
    expected = np.floor(49 * (0.05 + 0.2 * np.linspace(0, 1, 100_001))).mean() / 49
    torch.testing.assert_close(share, torch.full_like(share, expected), rtol=0, atol=4 * (expected / 4000) ** 0.5)


def test_green_noise_is_white_noise_less_its_low_and_high_frequencies() -> None:
    white = uniform(3, 196)
    for image, row in zip(green_noise(white), white, strict=True):
        spectrum = np.fft.fft2(row.reshape(14, 14))
        narrow, wide = (np.fft.ifft2(ndimage.fourier_gaussian(spectrum, sigma)).real for sigma in (0.75, 1.5))
        np.testing.assert_allclose(image.reshape(14, 14), narrow - wide, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_colormae_removes_three_quarters_where_the_noise_is_lowest(size: int) -> None:
    white = uniform(4, 196)
    for mask, noise in zip(green_noise_masks(white, size)[:, 0], green_noise(white), strict=True):
        removed = np.array(cells(mask.numpy(), 14)) == 1
        assert removed.sum() == 147 and noise[removed].max() < noise[~removed].min()


def test_the_energy_of_colormaes_masks_is_in_the_middle_band() -> None:
    """Compare with masks of white noise, whose energy is the same at all frequencies."""
    frequency = np.hypot(np.fft.fftfreq(14)[:, None], np.fft.fftfreq(14))
    bands = [(frequency > 0) & (frequency < 0.1), (frequency > 0.1) & (frequency < 0.3), frequency > 0.4]
    white = uniform(500, 196)
    plain = np.argsort(np.argsort(white, axis=1), axis=1).reshape(-1, 14, 14) < 147
    densities = []
    for masks in (green_noise_masks(white, 14)[:, 0].numpy(), plain.astype(np.float64)):
        energy = (np.abs(np.fft.fft2(masks - masks.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
        densities.append([float(energy[band].mean() / energy.sum()) * 195 for band in bands])
    (low, middle, high), flat = densities
    assert flat == pytest.approx([1, 1, 1], abs=0.1)
    assert middle > 1.8 and low < 0.9 and high < 0.6


@pytest.mark.parametrize("size", SIZES)
def test_blocks_remove_three_tenths_and_hardly_more(size: int) -> None:
    removed = block_masks(uniform(100, 256), size).mean(dim=(1, 2, 3))
    assert float(removed.min()) >= 0.3 and float(removed.max()) < 0.33


def test_the_first_block_has_the_drawn_area_ratio_and_place() -> None:
    draws = np.full((1, 256), 0.999)
    draws[0, :4] = (1.0, 0.5, 0.0, 0.999)
    mask = block_masks(draws, 100)[0, 0]
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    side = round((0.3 * 100**2) ** 0.5)
    assert (int(rows[0]), int(rows[-1])) == (0, side - 1)
    assert (int(columns[0]), int(columns[-1])) == (100 - side, 99)
    assert float(mask.sum()) == side**2


@pytest.mark.parametrize(("ratio", "height", "width"), [(0.0, 22, 73), (0.5, 40, 40), (1 - 2**-53, 73, 22)])
def test_the_smallest_block_has_64_pixels_of_96_and_ratios_end_at_three_tenths(
    ratio: float, height: int, width: int
) -> None:
    size = 5 * 96  # 64 pixels become 40 x 40: 22 x 73 has their area and a ratio of 0.3
    draws = np.zeros((1, 64, 4))
    draws[0, 0, 1] = ratio
    draws[0, 1:, 2:] = 0.999  # all other blocks are in the opposite corner
    mask = block_masks(draws.reshape(1, 256), size)[0, 0]
    expected = torch.zeros(240, 240)
    expected[:height, :width] = 1
    assert torch.equal(mask[:240, :240], expected)


@pytest.mark.parametrize("name", list(PATTERN_SCHEMES))
def test_an_images_pattern_depends_on_its_own_numbers_alone(name: str) -> None:
    scheme = PATTERN_SCHEMES[name]
    draws = uniform(6, scheme.draws)
    masks = scheme.make(draws, 48)
    changed = draws.copy()
    changed[2] = uniform(1, scheme.draws, seed=1)
    different = (scheme.make(changed, 48) != masks).flatten(1).any(dim=1)
    assert different.tolist() == [False, False, True, False, False, False]
    assert torch.equal(scheme.make(draws[3:5], 48), masks[3:5])


def instance_maps() -> Tensor:
    """Build four maps: objects 1, 2 and 7; object 255 alone; nothing; the first with object 3 behind object 2."""
    maps = torch.zeros(4, 10, 10, dtype=torch.uint8)
    maps[0, 1:3, 1:4], maps[0, 5:9, 5], maps[0, 6, 4:8], maps[0, 0, 9] = 1, 2, 2, 7
    maps[1, 4:, :5] = 255
    maps[3] = maps[0]
    maps[3, 8, 1:9] = torch.where(maps[0, 8, 1:9] == 0, 3, maps[0, 8, 1:9])
    return maps


@pytest.mark.parametrize("slots", [2, 3, 4, 6])
def test_each_slot_has_one_object_and_the_last_the_rest(slots: int) -> None:
    maps, draws = instance_maps(), uniform(4, IDS)
    masks = object_masks(maps, slots, draws)
    assert masks.shape == (4, slots, 10, 10)
    for image, row, own in zip(maps, draws, masks, strict=True):
        numbers = sorted(set(image.flatten().tolist()) - {0}, key=lambda number: row[number - 1])[: slots - 1]
        for slot in range(slots - 1):
            expected = image == numbers[slot] if slot < len(numbers) else torch.zeros(10, 10, dtype=torch.bool)
            assert torch.equal(own[slot], expected)
        assert torch.equal(own.sum(dim=0), torch.ones(10, 10, dtype=torch.int64))


def test_boxes_bound_their_objects() -> None:
    maps, draws = instance_maps(), uniform(4, IDS)
    objects, boxes = object_masks(maps, 5, draws), box_masks(maps, 5, draws)
    for image in range(4):
        for slot in range(4):
            expected = torch.zeros(10, 10, dtype=torch.bool)
            where = objects[image, slot].nonzero()
            if len(where):
                (top, left), (bottom, right) = where.min(dim=0).values.tolist(), where.max(dim=0).values.tolist()
                expected[top : bottom + 1, left : right + 1] = True
            assert torch.equal(boxes[image, slot], expected)
        assert torch.equal(boxes[image, 4], ~boxes[image, :4].any(dim=0))


@pytest.mark.parametrize("name", ["ground-truth", "box"])
def test_an_images_objects_depend_on_its_own_numbers_alone(name: str) -> None:
    make = OBJECT_SCHEMES[name].make
    maps, draws = instance_maps()[[3, 3, 3, 3]], uniform(4, IDS)
    masks = make(maps, 2, draws)
    changed = draws.copy()
    drawn = int(maps[2][object_masks(maps, 2, draws)[2, 0]][0])
    changed[2, drawn - 1] = 1 - 2**-53  # the object that was drawn comes last
    different = (make(maps, 2, changed) != masks).flatten(1).any(dim=1)
    assert different.tolist() == [False, False, True, False]
    assert torch.equal(make(maps[1:3], 2, draws[1:3]), masks[1:3])


def test_foreground_and_background_share_the_image() -> None:
    maps = instance_maps()
    masks = foreground_masks(maps, 7, uniform(4, IDS))
    assert torch.equal(masks[:, 0], maps > 0) and torch.equal(masks[:, 1], maps == 0)


def first_batch(split: Split, data_dir: Path, scheme: str, masked_views: str = "one", whole: bool = True) -> Batch:
    """Load the first batch; ``whole`` views are the stored images, unchanged."""
    augment = {"min_crop_scale": 1.0, "flip_probability": 0.0} if whole else {}
    config = small_config(
        data_dir, masking={"scheme": scheme}, objective={"masked_views": masked_views}, augment=augment
    )
    return next(BatchLoader(split, config, SIZE, CPU).batches(0, 0, 1))


def test_every_scheme_by_name_can_be_made() -> None:
    assert {name for name, entry in SCHEMES.items() if entry.kind == "pattern"} == set(PATTERN_SCHEMES)
    assert {name for name, entry in SCHEMES.items() if entry.kind == "object"} == set(OBJECT_SCHEMES)


@pytest.mark.parametrize("scheme", sorted(PATTERN_SCHEMES) + sorted(OBJECT_SCHEMES))
@pytest.mark.parametrize("masked_views", ["one", "both"])
def test_the_feed_brings_masks_for_each_masked_view(scheme: str, masked_views: str, objects_dir: Path) -> None:
    split = open_shards(objects_dir).split("train")
    masks = first_batch(split, objects_dir, scheme, masked_views, whole=False).masks
    views = 1 if masked_views == "one" else 2
    slots = 1 if scheme in PATTERN_SCHEMES else 3 if SCHEMES[scheme].uses_slots else 2
    assert masks is not None and masks.shape == (32 * views, slots, SIZE, SIZE)
    assert 0 <= float(masks.min()) and float(masks.max()) <= 1 + 1e-6
    if views == 2:
        assert not torch.equal(masks[:32], masks[32:])


def test_object_masks_follow_their_images(objects_dir: Path) -> None:
    split = open_shards(objects_dir).split("train")
    maps = torch.from_numpy(split.gather_instances(np.arange(len(split))))
    foreground = {image.numpy().tobytes() for image in (maps > 0)}
    whole = first_batch(split, objects_dir, "fg-bg")
    assert whole.masks is not None
    assert all((mask > 0.5).numpy().tobytes() in foreground for mask in whole.masks[:, 0])
    # A view whose object is painted white shows where the object is: the mask must be there, to half a pixel.
    cropped = first_batch(split, objects_dir, "fg-bg", whole=False)
    painted = split.images[0].copy()
    painted[:] = np.where(maps.numpy()[..., None] > 0, 255, 0)
    split.images[0] = painted
    plain = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
    config = small_config(objects_dir, masking={"scheme": "fg-bg"}, augment=plain)
    batch = next(BatchLoader(split, config, SIZE, CPU).batches(0, 0, 1))
    assert batch.masks is not None and cropped.masks is not None and torch.equal(batch.masks, cropped.masks)
    white = denormalize(batch.b).float().mean(dim=3) / 255
    assert float((white - batch.masks[:, 0]).abs().mean()) < 0.02


def test_shuffled_masks_are_those_of_other_images(objects_dir: Path) -> None:
    split = open_shards(objects_dir).split("train")
    own, others = (first_batch(split, objects_dir, scheme).masks for scheme in ("ground-truth", "shuffle"))
    assert own is not None and others is not None
    rest_of_all = {
        (image == 0).numpy().tobytes() for image in torch.from_numpy(split.gather_instances(np.arange(len(split))))
    }
    single = [mask for mask in others if mask[1].sum() == 0]
    assert single and all((mask[-1] > 0.5).numpy().tobytes() in rest_of_all for mask in single)
    assert (own != others).flatten(1).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("scheme", ["mae", "box"])
@pytest.mark.slow
def test_a_training_with_fixed_masks_reports(scheme: str, objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir, epochs=1, masking={"scheme": scheme}), CPU)
    report = trainer.train_to_report()
    assert trainer.networks.occlusion is None and trainer.optimizers.occlusion is None
    assert report.divergence is None and 0 <= report.fitness <= 1 and report.loss > 0


def test_a_data_set_without_object_masks_is_named(objects_dir: Path) -> None:
    split = open_shards(objects_dir).split("train")
    split.instances = None
    with pytest.raises(DatasetError, match="no instance maps"):
        first_batch(split, objects_dir, "box")

"""Masks against instance maps: pinned numbers, scikit-learn, a loop over objects and slots; floors; whole splits."""

import itertools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from naive import golden
from sklearn.metrics import adjusted_rand_score
from small import make_objects, small_config
from torch import Tensor

from adios_ray.config import CentralView
from adios_ray.data.augment import center_maps, denormalize
from adios_ray.data.loader import central_views
from adios_ray.data.manifest import SCHEMA_VERSION, Layout, Manifest, write_manifest
from adios_ray.data.shards import Split, open_shards, write_shard
from adios_ray.data.sources.base import Sample
from adios_ray.errors import DatasetError, EvaluationError
from adios_ray.evaluation import segmentation
from adios_ray.evaluation.segmentation import (
    SegmentationScores,
    color_kmeans,
    image_scores,
    random_partition,
    segment,
)
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, build_networks
from adios_ray.store import Store

CPU = torch.device("cpu")
Maps = npt.NDArray[np.int64]


def random_case(images: int, slots: int, objects: int, size: int, seed: int) -> tuple[npt.NDArray[np.float32], Maps]:
    """Draw soft masks and instance maps that are correlated, objects with gaps in their numbers."""
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, objects + 1, (images, size, size)) * 3
    logits = rng.normal(size=(images, slots, size, size)) + 2 * (
        (instances[:, None] // 3) % slots == np.arange(slots)[:, None, None]
    )
    masks = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return masks.astype(np.float32), instances


def mean_scores(masks: segmentation.Masks, instances: npt.NDArray[np.integer[Any]]) -> SegmentationScores:
    """Average each measure over the images that have objects."""
    return SegmentationScores(*np.nanmean(image_scores(masks, instances), axis=0).tolist())


def naive_scores(masks: npt.NDArray[np.float32], instances: Maps) -> list[float]:
    """Compute the measures of one image object by object and slot by slot, and all assignments of slots to objects."""
    slots, objects = masks.argmax(axis=0), np.unique(instances)
    front = instances > 0
    iou = {}
    for name, slot in itertools.product(objects, range(len(masks))):
        thing, part = instances == name, slots == slot
        iou[int(name), slot] = float((thing & part).sum() / (thing | part).sum())
    scores = [adjusted_rand_score(instances.ravel(), slots.ravel())]
    scores += [adjusted_rand_score(instances[front], slots[front])]
    for some in (objects, objects[objects > 0]):
        best = [max(iou[int(name), slot] for slot in range(len(masks))) for name in some]
        sizes = [int((instances == name).sum()) for name in some]
        scores += [sum(best) / len(best), sum(b * s for b, s in zip(best, sizes, strict=True)) / sum(sizes)]
    names = [int(name) for name in objects if name > 0]
    # Slots that stand for no object are padded, so that there is one place for each object.
    places = [*range(len(masks)), *[-1] * len(names)]
    totals = [
        sum(iou.get(pair, 0.0) for pair in zip(names, chosen, strict=True))
        for chosen in set(itertools.permutations(places, len(names)))
    ]
    return [*scores, max(totals) / len(names)]


def test_scores_agree_with_the_published_implementation() -> None:
    values = golden("segmentation.npz")
    instances = values["gt"][:, 0].numpy()
    keys = ("ari", "ari_fg", "msc", "ssc", "msc_fg", "ssc_fg")
    expected = [float(values[key]) for key in keys]
    for masks in (values["masks"], values["masks"].numpy(), values["masks"].double()):
        np.testing.assert_allclose(mean_scores(masks, instances)[:6], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pixels", [segmentation.PIXELS, 200])
@pytest.mark.parametrize(("slots", "objects"), [(4, 3), (2, 4), (1, 2), (5, 1)])
def test_scores_equal_a_loop_in_parts_of_any_size(
    slots: int, objects: int, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "PIXELS", pixels)
    masks, instances = random_case(7, slots, objects, 9, seed=slots)
    expected = [naive_scores(*image) for image in zip(masks, instances, strict=True)]
    np.testing.assert_allclose(image_scores(masks, instances), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean_scores(masks, instances), np.mean(expected, axis=0), rtol=0, atol=1e-12)


def test_ari_of_large_images_does_not_overflow() -> None:
    rng = np.random.default_rng(1)
    masks, instances = rng.random((1, 2, 400, 400)), rng.integers(0, 3, (1, 400, 400))  # unlike, for many unequal pairs
    expected = adjusted_rand_score(instances.ravel(), masks.argmax(axis=1).ravel())
    assert mean_scores(masks, instances).ari == pytest.approx(expected, abs=1e-9)


def test_scores_do_not_depend_on_the_order_of_slots_and_are_one_for_the_truth() -> None:
    masks, instances = random_case(5, 4, 3, 12, seed=2)
    permuted = mean_scores(masks[:, [2, 0, 3, 1]], instances)
    np.testing.assert_allclose(permuted, mean_scores(masks, instances), rtol=0, atol=1e-12)
    truth = (instances[:, None] == np.array([6, 0, 9, 3])[:, None, None]).astype(np.float32)
    assert mean_scores(truth, instances) == SegmentationScores(1, 1, 1, 1, 1, 1, 1)


def test_one_object_in_one_slot_has_foreground_ari_one_and_the_slots_background_lowers_its_iou() -> None:
    instances = np.zeros((1, 4, 4), np.int64)
    instances[0, :2, :2] = 5
    masks = np.zeros((1, 2, 4, 4), np.float32)
    masks[0, 0, :2], masks[0, 1, 2:] = 1, 1  # the object's 4 pixels and 4 of the background are in slot 0
    scores = mean_scores(masks, instances)
    assert scores.foreground_ari == 1
    assert scores.foreground_covering == scores.foreground_weighted_covering == scores.matched_iou == 4 / 8
    assert scores.covering == pytest.approx((4 / 8 + 8 / 12) / 2)
    assert scores.weighted_covering == pytest.approx((4 * 4 / 8 + 12 * 8 / 12) / 16)


def test_objects_that_share_a_slot_are_matched_once() -> None:
    instances = np.repeat([[1, 1, 2, 2]], 4, axis=0)[None]
    masks = np.zeros((1, 3, 4, 4), np.float32)
    masks[0, 0] = 1
    scores = mean_scores(masks, instances)
    assert (scores.foreground_covering, scores.matched_iou) == (0.5, 0.25)


def test_images_without_objects_have_no_scores_and_change_no_others() -> None:
    masks, instances = random_case(4, 3, 2, 8, seed=3)
    instances[1] = 0
    kept = [0, 2, 3]
    scores = image_scores(masks, instances)
    assert np.isnan(scores).all(axis=1).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(scores[kept], image_scores(masks[kept], instances[kept]))
    assert image_scores(masks[:0], instances[:0]).shape == (0, 7)


def test_bad_input_is_refused_by_name() -> None:
    masks, instances = random_case(2, 3, 2, 8, seed=4)
    for bad in (masks[0], masks[:1], masks[:, :0], masks[..., :7]):
        with pytest.raises(EvaluationError, match=r"\[K, N, S, S\] and \[K, S, S\] are needed"):
            image_scores(bad, instances)
    for value in (-1, 256):
        changed = instances.copy()
        changed[1, 2, 3] = value
        with pytest.raises(EvaluationError, match=r"0 \(background\) to 255 are needed"):
            image_scores(masks, changed)
    for infinite in (math.nan, math.inf):
        broken = masks.copy()
        broken[1, 2, 3, 4] = infinite
        for some in (broken, torch.from_numpy(broken)):
            with pytest.raises(EvaluationError, match="not finite"):
                image_scores(some, instances)
    images = np.zeros((1, 2, 2, 3), np.uint8)
    for wrong in (images[0], images[..., :2], images.astype(np.float32)):
        with pytest.raises(EvaluationError, match="uint8"):
            color_kmeans(wrong, 2, 0)  # type: ignore[arg-type]
    for slots in (0, 5):
        with pytest.raises(EvaluationError, match="1 to 4 are possible"):
            random_partition(images, slots, np.random.default_rng(0))


def test_memory_does_not_grow_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "PIXELS", 2**12)
    masks, instances = random_case(120, 3, 2, 32, seed=5)
    peaks = []
    for images in (12, 120):
        tracemalloc.start()
        image_scores(masks[:images], instances[:images])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_random_partitions_are_the_cells_of_points() -> None:
    images = np.zeros((40, 16, 16, 3), np.uint8)
    masks = random_partition(images, 3, np.random.default_rng(6))
    assert masks.shape == (40, 3, 16, 16) and masks.dtype == np.float32
    np.testing.assert_array_equal(masks.sum(axis=1), 1)
    np.testing.assert_array_equal(np.unique(masks), [0, 1])
    points = np.random.default_rng(6).random((40, 3, 2))
    for image, row, column in ((0, 0, 0), (3, 5, 15), (39, 12, 2)):
        distances = [math.dist(((row + 0.5) / 16, (column + 0.5) / 16), point) for point in points[image]]
        assert masks[image, distances.index(min(distances)), row, column] == 1
    # Every slot has a third of the pixels on average; the share of 40 images has a standard error of about 0.03.
    np.testing.assert_allclose(masks.mean(axis=(0, 2, 3)), 1 / 3, rtol=0, atol=0.12)
    # Masks that do not look at the image have an adjusted Rand index of 0 on average.
    instances = random_case(40, 3, 1, 16, seed=7)[1]
    assert abs(mean_scores(masks, instances).ari) < 0.01


def test_color_kmeans_finds_pieces_of_one_color_each() -> None:
    rng = np.random.default_rng(8)
    instances = np.zeros((3, 16, 16), np.int64)
    instances[:, 3:9, 3:9], instances[:, 10:15, 8:15] = 1, 2
    colors = np.array([[0, 0, 255], [255, 0, 0], [0, 255, 0]])
    images = (colors[instances] * 0.9 + rng.integers(0, 20, (3, 16, 16, 3))).astype(np.uint8)
    masks = color_kmeans(images, 3, seed=0)
    assert masks.shape == (3, 3, 16, 16)
    assert mean_scores(masks, instances) == SegmentationScores(1, 1, 1, 1, 1, 1, 1)
    np.testing.assert_array_equal(color_kmeans(images[2:], 3, seed=0), masks[2:])


def test_color_kmeans_of_one_color_divides_the_square() -> None:
    masks = color_kmeans(np.full((2, 8, 8, 3), 90, np.uint8), 4, seed=1)
    assert masks.mean(axis=(2, 3)).min() > 0.1


def write_photographs(directory: Path, sizes: list[tuple[int, int]]) -> Split:
    """Write photographs with an object of one color, of which the first shows the object only at its edge."""
    layout = Layout(32, None, has_instances=True)
    samples = []
    for number, (height, width) in enumerate(sizes):
        instances = np.zeros((32, 32), np.uint8)
        instances[8:24, : 2 if number == 0 else 20] = 1 + number
        image = np.where(instances[..., None] > 0, 200, 50).astype(np.uint8).repeat(3, axis=2)
        samples.append((str(number), Sample(image, 0, instances, height, width)))
    directory.mkdir()
    entry = write_shard(Store(directory), "test-00000.arrow", layout, samples)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        image_size=32,
        multi_label=False,
        has_instances=True,
        classes=("thing",),
        splits={"test": (entry,)},
        recipe={},
        refused=(),
    )
    write_manifest(Store(directory), manifest)
    return open_shards(str(directory)).split("test")


def by_brightness(x: Tensor) -> Tensor:
    """Separate bright from dark pixels."""
    bright = (denormalize(x).float().mean(dim=-1) / 255 - 0.49) * 4
    return torch.stack([bright.sigmoid(), 1 - bright.sigmoid()], dim=1)


@pytest.mark.parametrize("size", [32, 16, 64])
def test_instance_maps_show_the_part_of_a_photograph_that_its_view_shows(size: int, tmp_path: Path) -> None:
    split = write_photographs(tmp_path / "data", [(100, 300), (100, 160), (200, 100), (32, 32)])
    found = segment(by_brightness, split, np.arange(4), size, CPU)
    assert (found.images, found.without_objects) == (3, 1)  # the first one's object is outside the square
    # An object's edge may be off by one pixel of the view, as an edge of the square is between stored pixels.
    assert found.scores.foreground_covering > 0.9 and found.scores.ari > 0.9
    whole = segment(by_brightness, split, np.array([3, 3]), 32, CPU)
    assert whole.scores == SegmentationScores(1, 1, 1, 1, 1, 1, 1)
    with pytest.raises(EvaluationError, match="1 of 2 images have objects; at least 2 are needed"):
        segment(by_brightness, split, np.array([0, 1]), size, CPU)


@pytest.mark.parametrize("view", ["square", "resize-256"])
def test_maps_are_cut_at_the_centers_of_pixels(view: CentralView) -> None:
    maps = np.arange(8 * 8, dtype=np.uint8).reshape(1, 8, 8).repeat(3, axis=0)
    heights, widths = np.array([512, 300, 700]), np.array([300, 512, 700])
    cut = center_maps(maps, heights, widths, 6, view)
    for image, row, column in itertools.product(range(3), range(6), range(6)):
        height, width = int(heights[image]), int(widths[image])
        side = min(height, width) * (6 / 256 if view == "resize-256" else 1)
        y = ((height - side) / 2 + (row + 0.5) / 6 * side) * 8 / height
        x = ((width - side) / 2 + (column + 0.5) / 6 * side) * 8 / width
        assert cut[image, row, column] == maps[image, int(y), int(x)]


def test_a_split_is_scored_in_batches_with_standard_errors(objects_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(objects_dir)
    torch.manual_seed(0)
    networks = build_networks(Weights(config, 32, 4, "here", Networks(config, 32, 4).state_dict()))
    split = open_shards(str(objects_dir)).split("test")
    indices = np.arange(len(split))
    monkeypatch.setattr(segmentation, "PIXELS", 7 * 32 * 32)
    masks: list[Tensor] = []

    def masks_of(x: Tensor) -> Tensor:
        masks.append(networks.occlude(x))
        return masks[-1]

    found = segment(masks_of, split, indices, 32, CPU)
    assert [len(batch) for batch in masks] == [7, 7, 7, 7, 7, 5] and not masks[0].requires_grad
    with torch.no_grad():
        at_once = networks.occlude(central_views(split, indices, 32, CPU))
    torch.testing.assert_close(torch.cat(masks), at_once, rtol=0, atol=1e-5)
    assert (found.images, found.without_objects) == (len(split), 0)
    rows = image_scores(torch.cat(masks), split.gather_instances(indices))
    np.testing.assert_allclose(found.scores, rows.mean(axis=0), rtol=0, atol=1e-12)
    deviation = np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=0) / (len(rows) - 1) / len(rows))
    np.testing.assert_allclose(found.standard_errors, deviation, rtol=0, atol=1e-12)


def test_floors_are_scored_as_masks_are(objects_dir: Path) -> None:
    split, indices = open_shards(str(objects_dir)).split("test"), np.arange(20)
    images, instances, rng = split.gather(indices), split.gather_instances(indices), np.random.default_rng(9)
    random = segment(lambda x: random_partition(denormalize(x).numpy(), 3, rng), split, indices, 32, CPU)
    clusters = segment(lambda x: color_kmeans(denormalize(x).numpy(), 3, 0), split, indices, 32, CPU)
    assert random.scores == mean_scores(random_partition(images, 3, np.random.default_rng(9)), instances)
    assert clusters.scores == mean_scores(color_kmeans(images, 3, 0), instances)
    assert clusters.scores.foreground_covering > random.scores.foreground_covering


def test_a_split_without_instance_maps_is_refused(tmp_path: Path) -> None:
    layout = Layout(32, None, has_instances=False)
    image = np.zeros((32, 32, 3), np.uint8)
    entry = write_shard(Store(tmp_path), "test-00000.arrow", layout, [("0", Sample(image, 0, None, 32, 32))])
    manifest = open_shards(str(make_objects(tmp_path / "other", counts={"train": 1}))).manifest
    write_manifest(Store(tmp_path), manifest.model_copy(update={"has_instances": False, "splits": {"test": (entry,)}}))
    with pytest.raises(DatasetError, match="no instance maps"):
        segment(by_brightness, open_shards(str(tmp_path)).split("test"), np.arange(1), 32, CPU)

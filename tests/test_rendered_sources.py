"""The two rendered data sets: pictures agree with their labels and instance maps at every size."""

import math
import pickle
from collections import Counter
from collections.abc import Callable
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from adios_ray.config import Variation
from adios_ray.data.rendered import objects, scenes
from adios_ray.data.rendered.rendering import TEXTURES, RenderedSource, cube, cylinder, sphere, window
from adios_ray.data.sources.base import Sample, Source
from adios_ray.errors import RefusedImageError

pytestmark = pytest.mark.slow

Renderer = Callable[[int, int, int], Sample]
Factory = Callable[[int, int], RenderedSource]
both_renderers = pytest.mark.parametrize("render", [scenes.render, objects.render], ids=["scenes", "objects"])
both_sources = pytest.mark.parametrize("source", [scenes.source, objects.source], ids=["scenes", "objects"])


def solids_of(seed: int, index: int) -> list[scenes.Solid]:
    """Return the solids of a scene."""
    return scenes.layout(np.random.default_rng((seed, index)))


def instances_of(sample: Sample) -> npt.NDArray[np.uint8]:
    """Return the instance map, which rendered samples always have."""
    assert sample.instances is not None
    return sample.instances


def grid(size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return pixel centers in unit coordinates, x to the right and y up, [S, S] each."""
    centers = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(centers, -centers)
    return x, y


@both_renderers
def test_picture_is_a_function_of_seed_and_index(render: Renderer) -> None:
    first, again = render(3, 7, 48), render(3, 7, 48)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(instances_of(first), instances_of(again))
    assert np.array_equal(first.label, again.label)
    for other in (render(3, 8, 48), render(4, 7, 48)):
        assert np.abs(first.image.astype(int) - other.image).mean() > 5


@both_renderers
@pytest.mark.parametrize("size", [16, 33, 64])
def test_shapes_and_types(render: Renderer, size: int) -> None:
    sample = render(0, 0, size)
    assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
    assert instances_of(sample).shape == (size, size) and instances_of(sample).dtype == np.uint8
    assert sample.image.flags.c_contiguous


@both_renderers
def test_every_size_shows_the_same_picture(render: Renderer) -> None:
    for index in range(20):
        small, large = render(1, index, 64), render(1, index, 128)
        assert np.array_equal(small.label, large.label)
        assert (instances_of(large)[::2, ::2] == instances_of(small)).mean() > 0.95
        halved = large.image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small.image).mean() < 4


@pytest.mark.parametrize("size", [16, 19, 64])
def test_scene_instances_and_labels_agree_with_the_layout(size: int) -> None:
    for index in range(100):
        sample, solids = scenes.render(2, index, size), solids_of(2, index)
        assert set(np.unique(instances_of(sample))) - {0} == set(range(1, len(solids) + 1))
        assert isinstance(sample.label, np.ndarray) and sample.label.shape == (24,)
        named = {scenes.CLASSES[k] for k in np.flatnonzero(sample.label)}
        colors = list(scenes.COLORS)
        assert named == {f"{colors[solid.color]} {scenes.SHAPES[solid.shape]}" for solid in solids}


def test_scene_objects_are_painted_in_their_color() -> None:
    """Compare colors by direction in RGB, which light and shade hardly change."""
    palette = np.array(list(scenes.COLORS.values()))
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    right = []
    for index in range(60):
        sample = scenes.render(5, index, 64)
        for number, solid in enumerate(solids_of(5, index), start=1):
            color = np.median(sample.image[instances_of(sample) == number], axis=0)
            right.append(np.argmax(palette @ color) == solid.color)
    assert np.mean(right) > 0.98


@pytest.mark.parametrize("pitch", [0.3, 0.7])
@pytest.mark.parametrize("yaw", [0.2, 0.8, 1.3])
def test_solids_cover_the_area_of_their_projection(pitch: float, yaw: float) -> None:
    """Compare with the projected area: the sum over visible faces of area times the cosine to the line of sight."""
    box = window(128, (0.0, 0.0), (1.0, 1.0))
    x, y = box.x * 1.6, box.y * 1.6
    sides = math.cos(pitch) * (math.cos(yaw) + math.sin(yaw))
    expected = {
        "sphere": (sphere(x, y), math.pi),
        "cube": (cube(x, y, pitch, yaw, 0.8), 1.6**2 * (math.sin(pitch) + sides)),
        "cylinder": (
            cylinder(x, y, pitch, 0.7, 0.6),
            2 * 0.7 * 2 * 0.6 * math.cos(pitch) + math.pi * 0.7**2 * math.sin(pitch),
        ),
    }
    for name, (surface, area) in expected.items():
        inside = surface.distance < 0
        assert inside.sum() * (1.6 * box.pixel) ** 2 == pytest.approx(area, rel=0.02), name
        lengths = np.sqrt(sum(part[inside] ** 2 for part in surface.normal))
        assert np.allclose(lengths, 1.0, atol=1e-3), name
        assert (surface.normal[2][inside] >= 0).all(), name


def test_nearer_objects_hide_farther_ones() -> None:
    """Check that within a sphere's disc only the sphere or a nearer object (lower on the ground) is visible."""
    x, y = grid(64)
    hidden_shares = []
    for index in range(80):
        shown, solids = instances_of(scenes.render(8, index, 64)), solids_of(8, index)
        assert all(far.pitch <= near.pitch for far, near in zip(solids, solids[1:], strict=False))
        for number, solid in enumerate(solids, start=1):
            if scenes.SHAPES[solid.shape] == "sphere":
                disc = np.hypot(x - solid.x, y - solid.y) < solid.size
                assert (shown[disc] >= number).all()
                hidden_shares.append(float((shown[disc] > number).mean()))
    assert max(hidden_shares) > 0.3 and min(hidden_shares) == 0.0
    assert np.mean(np.array(hidden_shares) > 0.05) > 0.1


def test_farther_objects_are_smaller_and_higher() -> None:
    spheres = [s for index in range(100) for s in solids_of(9, index) if scenes.SHAPES[s.shape] == "sphere"]
    pitch, height, size = np.array([(s.pitch, s.y - s.size, s.size) for s in spheres]).T
    assert np.corrcoef(pitch, height)[0, 1] < -0.95
    assert np.corrcoef(pitch, size)[0, 1] > 0.5


def test_scenes_have_one_to_ten_objects() -> None:
    counts = Counter(len(solids_of(10, index)) for index in range(400))
    assert set(counts) == set(range(1, 11))
    assert min(counts.values()) > 15


def lone_sphere_scene() -> tuple[scenes.Solid, Sample]:
    """Find the first scene of a seed that shows only a sphere, well inside the picture."""
    for index in range(400):
        solids = solids_of(11, index)
        if len(solids) == 1 and scenes.SHAPES[solids[0].shape] == "sphere" and abs(solids[0].x) < 0.4:
            return solids[0], scenes.render(11, index, 96)
    raise AssertionError("no lone sphere in 400 scenes")


def test_light_and_shadow_lie_on_opposite_sides() -> None:
    solid, sample = lone_sphere_scene()
    x, y = grid(96)
    gray = sample.image.mean(axis=2)
    on_sphere = instances_of(sample) == 1
    assert gray[on_sphere & (x < solid.x)].mean() > 1.2 * gray[on_sphere & (x > solid.x)].mean()
    level = (np.abs(y - (solid.y - 0.8 * solid.size)) < 0.2 * solid.size) & ~on_sphere
    beside = (np.abs(x - solid.x) < 1.5 * solid.size) & level
    assert gray[beside & (x < solid.x)].mean() > 1.1 * gray[beside & (x > solid.x)].mean()


def test_sphere_edge_is_smooth() -> None:
    """Check that the covered shares of pixels add up to a disc's area, at any offset from the grid."""
    for offset in (0.0, 0.013, 0.031):
        box = window(32, (offset, -offset), (0.5, 0.5))
        distance = sphere((box.x - offset) * 2, (box.y + offset) * 2).distance
        share = np.clip(0.5 - distance / (2 * box.pixel), 0, 1)
        assert share.sum() * box.pixel**2 == pytest.approx(math.pi / 4, rel=0.01)


def test_texture_agrees_with_the_class_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(10_000) % 10
    picked = np.array([objects.pick_texture(rng, int(label)) for label in labels])
    assert (picked == labels).mean() == pytest.approx(objects.TEXTURE_AGREEMENT, abs=0.015)
    others = Counter(((picked - labels) % 10)[picked != labels].tolist())
    assert set(others) == set(range(1, 10))
    assert max(others.values()) < 1.4 * min(others.values())


def test_all_object_classes_occur_and_match_the_sample() -> None:
    labels = [objects.draw_subject(1, index).label for index in range(200)]
    assert set(labels) == set(range(10))
    assert [objects.render(1, index, 16).label for index in range(50)] == labels[:50]


def test_object_map_is_one_blob_of_ones() -> None:
    for index in range(100):
        shown = instances_of(objects.render(2, index, 64))
        assert set(np.unique(shown)) == {0, 1}
        assert 0.02 < shown.mean() < 0.5


def mask_of(subject: objects.Subject, size: int) -> npt.NDArray[np.uint8]:
    """Return the instance map of a subject."""
    return objects.instance_map(objects.foreground(subject, size), size)


def test_object_classes_differ_in_outline() -> None:
    upright = objects.draw_subject(0, 0)._replace(x=0.0, y=0.0, tilt=0.0, size=0.6)
    masks = [mask_of(upright._replace(label=label), 32).astype(bool) for label in range(10)]
    for a in range(10):
        for b in range(a):
            assert (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() < 0.9, (a, b)


@pytest.mark.parametrize("label", range(10))
def test_tilt_turns_the_outline_and_mirror_flips_it(label: int) -> None:
    upright = objects.draw_subject(0, 0)._replace(label=label, x=0.0, y=0.0, tilt=0.0, mirror=1.0, size=0.6)
    mask = mask_of(upright, 64)
    turned, flipped = mask_of(upright._replace(tilt=math.pi / 2), 64), mask_of(upright._replace(mirror=-1.0), 64)
    assert (turned == np.rot90(mask)).mean() > 0.995
    assert (flipped == mask[:, ::-1]).mean() > 0.995


def test_light_on_an_object_does_not_turn_with_it() -> None:
    ball = objects.draw_subject(0, 0)._replace(label=objects.CLASSES.index("ball"), x=0.0, y=0.0)
    plain = objects.foreground(ball._replace(tilt=0.0, mirror=1.0), 48)
    turned = objects.foreground(ball._replace(tilt=0.6, mirror=-1.0), 48)
    inside = plain.alpha == 1.0
    assert np.allclose(plain.color[:, inside], turned.color[:, inside], atol=0.02)
    left = (plain.box.x < 0) & inside
    assert plain.color[:, left].mean() > 1.1 * plain.color[:, ~left & inside].mean()


def test_background_and_foreground_are_independent() -> None:
    """Check that another background changes no inner pixel of the object, and is visible everywhere outside it."""
    subject = objects.draw_subject(4, 0)
    front = objects.foreground(subject, 64)
    backs = [objects.background(4, 0, texture, 64) for texture in range(10)]
    pictures = [objects.compose(front, back.copy()) for back in backs]
    inner, outer = np.zeros((2, 64, 64), dtype=bool)
    inner[front.box.place] = front.alpha == 1.0
    outer[front.box.place] = (front.alpha > 0.0) | (front.shadow > 0.0)
    assert inner.sum() > 50
    for picture, back in zip(pictures, backs, strict=True):
        assert np.array_equal(picture[inner], pictures[0][inner])
        expected = np.clip(back.transpose(1, 2, 0) * 255, 0, 255)
        assert np.abs(picture[~outer] - expected[~outer]).max() <= 0.51
    own = objects.render(4, 0, 64).image
    assert [np.array_equal(own, picture) for picture in pictures].index(True) == subject.texture


def regions(index: int, size: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return where picture ``index`` of seed 4 is all object, where it is some object, and the bounding box of that."""
    front = objects.foreground(objects.draw_subject(4, index), size)
    inner, touched, box = np.zeros((3, size, size), dtype=bool)
    inner[front.box.place], touched[front.box.place] = front.alpha == 1.0, front.alpha > 0.0
    rows, columns = np.nonzero(touched)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return inner, touched, box


def background_of(index: int, size: int) -> npt.NDArray[np.uint8]:
    """Return the background of picture ``index`` of seed 4, as the picture's pixels."""
    texture = objects.draw_subject(4, index).texture
    return np.rint(np.clip(objects.background(4, index, texture, size), 0, 1) * 255).transpose(1, 2, 0).astype(np.uint8)


def close(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> bool:
    """Tell whether pixels are equal to a level."""
    return bool((np.abs(a.astype(int) - b) <= 1).all())


@pytest.mark.parametrize("index", range(5))
def test_variations_keep_the_pixels_that_they_are_named_after(index: int) -> None:
    size = 48
    original, back = objects.render(4, index, size).image, background_of(index, size)
    inner, touched, box = regions(index, size)
    shown = {variation: objects.render(4, index, size, variation).image for variation in get_args(Variation)}
    assert np.array_equal(shown["original"], original)
    assert not shown["only_bg_b"][box].any() and close(shown["only_bg_b"][~box], back[~box])
    assert close(shown["only_bg_t"], back)
    assert not shown["no_fg"][inner].any() and np.array_equal(shown["no_fg"][~touched], original[~touched])
    assert not shown["only_fg"][~touched].any() and np.array_equal(shown["only_fg"][inner], original[inner])
    for variation in ("mixed_same", "mixed_rand", "mixed_next"):
        assert np.array_equal(shown[variation][inner], original[inner])
        assert np.abs(shown[variation][~touched].astype(int) - original[~touched]).mean() > 5


def test_mixed_variations_show_the_background_of_a_picture_of_the_named_class() -> None:
    labels: dict[Variation, list[int]] = {"mixed_same": [], "mixed_rand": [], "mixed_next": []}
    for index in range(60):
        front = objects.foreground(objects.draw_subject(4, index), 16)
        unshaded = np.ones((16, 16), dtype=bool)
        unshaded[front.box.place] = (front.alpha == 0.0) & (front.shadow == 0.0)
        for variation, found in labels.items():
            other = objects.donor(4, index, variation)
            assert other != index
            picture = objects.render(4, index, 16, variation).image
            assert close(picture[unshaded], background_of(other, 16)[unshaded])
            found.append((objects.draw_subject(4, other).label - objects.draw_subject(4, index).label) % 10)
    assert set(labels["mixed_same"]) == {0} and set(labels["mixed_next"]) == {1}
    assert set(labels["mixed_rand"]) == set(range(10))


@pytest.mark.parametrize("variation", get_args(Variation))
def test_variations_are_paired_with_the_originals(variation: Variation) -> None:
    source, originals = objects.source(20, 5, variation), objects.source(20, 5)
    assert source.listing() == originals.listing()
    sent: Source = pickle.loads(pickle.dumps(source))
    for item in ("0", "13"):
        sample, original = sent.load(item, 32), originals.load(item, 32)
        assert np.array_equal(sample.image, objects.render(5, int(item), 32, variation).image)
        assert sample.label == original.label
        assert np.array_equal(instances_of(sample), instances_of(original))


@pytest.mark.parametrize("name", ["stripes", "checker", "dots", "waves", "grid", "zigzag", "rings"])
def test_patterned_backgrounds_are_crisp_and_vary(name: str) -> None:
    """Check that a pattern steps between its two colors from one pixel to the next, and differs between indices."""
    texture = list(TEXTURES).index(name)
    gray = [objects.background(6, index, texture, 64).mean(axis=0) for index in range(12)]
    steps = [np.abs(np.diff(plane, axis=1)).max() / np.ptp(plane) for plane in gray]
    assert np.median(steps) > 0.35
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(gray, gray[1:], strict=False))


@both_sources
def test_splits_partition_the_indices(source: Factory) -> None:
    listing = source(101, 0).listing()
    assert list(listing) == ["train", "val", "test"]
    assert [len(items) for items in listing.values()] == [71, 15, 15]
    assert sorted(int(item) for items in listing.values() for item in items) == list(range(101))
    assert all(len(items) > 0 for items in source(10, 0).listing().values())


@both_sources
def test_source_travels_and_loads_what_the_renderer_draws(source: Factory) -> None:
    there: Source = pickle.loads(pickle.dumps(source(20, 5)))
    sample, again = there.load("13", 32), source(20, 5).load("13", 32)
    assert np.array_equal(sample.image, again.image)
    assert there.has_instances and sample.instances is not None
    assert there.multi_label == isinstance(sample.label, np.ndarray)
    assert len(set(there.classes)) == (24 if there.multi_label else 10)
    assert not np.array_equal(sample.image, source(20, 6).load("13", 32).image)


@both_sources
def test_bad_arguments_are_refused_with_the_range(source: Factory) -> None:
    with pytest.raises(ValueError, match="--num-images 9 must be at least 10"):
        source(9, 0)
    with pytest.raises(ValueError, match="seed is -1; it must be at least 0"):
        source(10, -1)
    with pytest.raises(ValueError, match="image_size is 15; it must be at least 16"):
        source(10, 0).load("0", 15)
    for item in ("10", "-1", "cat"):
        with pytest.raises(RefusedImageError, match=f"'{item}'.*0 to 9"):
            source(10, 0).load(item, 16)

"""Primitives of the rendered data sets: pixel windows, solids, light, textures, and the source around a renderer.

Pictures use unit coordinates: x runs right and y up, both from -1 to 1, and z points at the viewer. All random numbers
are drawn in these units, so one (seed, index) is the same picture at every image size. Arrays are float32 with colors
in 0..1; a picture is [3, S, S] until it is finished, because NumPy is fastest on whole planes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adios_ray.data.sources.base import Sample
from adios_ray.data.sources.passed_over import PassedOver
from adios_ray.errors import RefusedImageError

Plane = npt.NDArray[np.floating]  # float32 throughout; numpy's stubs widen it in arithmetic
Color = tuple[float, float, float]
Vector = tuple[float, float, float]

MIN_IMAGE_SIZE = 16
MIN_IMAGES = 10
_TRAIN_SHARE, _VAL_SHARE = 0.70, 0.15
_BEVEL = 0.13  # width of a rounded edge, in units of the solid's size


@lru_cache(maxsize=16)
def axis(image_size: int) -> Plane:
    """Return the centers of the pixel columns in -1..1, left to right, read-only float32 [S].

    Raises:
        ValueError: If ``image_size`` is below 16.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}; it must be at least {MIN_IMAGE_SIZE}")
    centers = ((np.arange(image_size) + 0.5) * (2.0 / image_size) - 1.0).astype(np.float32)
    centers.setflags(write=False)  # the cache hands the same array to every caller
    return centers


class Window(NamedTuple):
    """A rectangle of pixels: its position in the picture and the unit coordinates of its pixels.

    Attributes:
        place: Row and column slices into a [S, S] plane.
        x: Column coordinates, float32 [1, w].
        y: Row coordinates, float32 [h, 1].
        pixel: Side of a pixel in unit coordinates.
    """

    place: tuple[slice, slice]
    x: Plane
    y: Plane
    pixel: float

    def blend(self, picture: Plane, color: Plane, alpha: Plane) -> None:
        """Composite ``color`` [3, h, w] over ``picture`` [3, S, S] in place, with opacity ``alpha`` [h, w]."""
        below = picture[:, self.place[0], self.place[1]]
        below += alpha * (color - below)


def window(image_size: int, center: tuple[float, float], half: tuple[float, float]) -> Window:
    """Select the pixels within ``half`` (width, height) of ``center`` and one pixel around them, cut at the border.

    Raises:
        ValueError: If ``image_size`` is below 16.
    """
    centers = axis(image_size)
    scale = image_size / 2.0

    def span(middle: float, reach: float) -> slice:
        first = math.floor((middle - reach + 1.0) * scale) - 1
        last = math.ceil((middle + reach + 1.0) * scale) + 1
        return slice(max(first, 0), max(min(last, image_size), 0))

    columns, rows = span(center[0], half[0]), span(-center[1], half[1])  # y runs up, rows run down
    return Window((rows, columns), centers[None, columns], -centers[rows, None], 1.0 / scale)


def coverage(distance: Plane, softness: float) -> Plane:
    """Compute the share of a pixel inside a shape, 0..1, from its signed distance (negative inside).

    Args:
        distance: Signed distance to the outline, any units.
        softness: Width of the transition in the same units: a pixel for a clean edge, more for a soft one.
    """
    share: Plane = np.minimum(np.maximum(0.5 - distance * (1.0 / softness), 0.0), 1.0)
    return share


class Surface(NamedTuple):
    """The visible surface of a solid of about unit radius.

    Attributes:
        distance: Signed distance to the outline in the solid's units, negative inside, float32 [h, w].
        normal: Components (x, y, z) of the surface normal, towards the viewer, float32 [h, w] each.
    """

    distance: Plane
    normal: tuple[Plane, Plane, Plane]


def _blend_faces(weights: Sequence[Plane], normals: Sequence[tuple[Plane | float, ...]]) -> tuple[Plane, ...]:
    """Blend face normals by their weights to unit normals: edges are rounded where two faces share a pixel."""
    sums = [sum((w * n[k] for w, n in zip(weights, normals, strict=True)), np.float32(0)) for k in range(3)]
    length = np.sqrt(sums[0] * sums[0] + sums[1] * sums[1] + sums[2] * sums[2]) + 1e-6
    return tuple(part / length for part in sums)


def sphere(x: Plane, y: Plane) -> Surface:
    """Draw a ball of radius 1 around the origin."""
    squared = x * x + y * y
    depth = np.sqrt(np.maximum(1.0 - squared, 0.0))
    zero = np.zeros_like(squared)
    return Surface(np.sqrt(squared) - 1.0, (x + zero, y + zero, depth))


def cylinder(x: Plane, y: Plane, pitch: float, radius: float, half_height: float) -> Surface:
    """Draw an upright cylinder around the origin, seen from above at ``pitch`` radians."""
    up, tilt = math.cos(pitch), math.sin(pitch)
    across = x * (1.0 / radius)
    front = np.sqrt(np.maximum(1.0 - across * across, 0.0))
    bulge = (radius * tilt) * front
    distance = np.maximum(np.abs(x) - radius, np.abs(y) - bulge - half_height * up)
    top = coverage(half_height * up - bulge - y, _BEVEL)
    side = 1.0 - top
    normals: list[tuple[Plane | float, ...]] = [(across, -tilt * front, up * front), (0.0, up, tilt)]
    nx, ny, nz = _blend_faces((side, top), normals)
    return Surface(distance, (nx, ny, nz))


def cube(x: Plane, y: Plane, pitch: float, yaw: float, half_edge: float) -> Surface:
    """Draw a cube around the origin, turned by ``yaw`` (0..pi/2) about the vertical, seen from above at ``pitch``.

    The outline is the intersection of three slabs, one along each direction of edges. The visible face is the one whose
    plane is nearest to the cube's center along the line of sight.
    """
    up, tilt = math.cos(pitch), math.sin(pitch)
    sin, cos = math.sin(yaw), math.cos(yaw)
    faces = ((0.0, up, tilt), (sin, -cos * tilt, cos * up), (-cos, -sin * tilt, sin * up))
    slabs, depths = [], []
    for nx, ny, nz in faces:
        length = math.hypot(nx, ny)
        half = half_edge * sum(abs(nx * other[1] - ny * other[0]) for other in faces) / length
        slabs.append(np.abs(x * (ny / length) - y * (nx / length)) - half)
        depths.append((half_edge - nx * x - ny * y) * (1.0 / nz))
    nearest = np.minimum(np.minimum(depths[0], depths[1]), depths[2])
    weights = [np.maximum(1.0 - (depth - nearest) * (1.0 / _BEVEL), 0.0) for depth in depths]
    nx_, ny_, nz_ = _blend_faces(weights, faces)
    return Surface(np.maximum(np.maximum(slabs[0], slabs[1]), slabs[2]), (nx_, ny_, nz_))


def light_direction(rng: np.random.Generator) -> Vector:
    """Draw the unit vector towards the lamp: from the upper left and the front, with a small random variation."""
    swing, height = rng.uniform(-0.3, 0.3, 2).tolist()
    x, y, z = -0.72 + 0.4 * swing, 0.62 + 0.5 * height, 0.62
    length = math.hypot(x, y, z)
    return x / length, y / length, z / length


def shade(normal: tuple[Plane, Plane, Plane], color: Color, light: Vector, gloss: float) -> Plane:
    """Compute the color of a lit surface, float32 [3, h, w]: ambient and diffuse light, a highlight and a faint rim.

    Args:
        normal: Components of the surface normal, [h, w] each.
        color: Albedo, RGB in 0..1.
        light: Unit vector towards the lamp.
        gloss: Strength of the highlight, 0 (matt) to 1.
    """
    nx, ny, nz = normal
    lit = np.maximum(nx * light[0] + ny * light[1] + nz * light[2], 0.0)
    middle = math.hypot(light[0], light[1], light[2] + 1.0)
    glint = nx * (light[0] / middle) + ny * (light[1] / middle) + nz * ((light[2] + 1.0) / middle)
    glint = np.maximum(glint, 0.0)
    for _ in range(5):  # Blinn's highlight with exponent 32 = 2^5
        glint *= glint
    body = 0.36 + 0.14 * ny + 0.72 * lit
    edge = 1.0 - nz
    extra = gloss * glint + 0.10 * edge * edge
    lit_color: Plane = np.asarray(color, dtype=np.float32)[:, None, None] * body + extra
    return lit_color


@lru_cache(maxsize=32)
def _lattice_weights(image_size: int, points: int) -> Plane:
    """Compute cubic B-spline weights of ``points`` lattice points at every pixel, float32 [S, points]."""
    where = 1.0 + (axis(image_size).astype(np.float64) + 1.0) / 2.0 * (points - 3)
    apart = np.abs(where[:, None] - np.arange(points)[None, :])
    near = 2.0 / 3.0 - apart**2 + apart**3 / 2.0
    far = np.maximum(2.0 - apart, 0.0) ** 3 / 6.0
    return np.where(apart < 1.0, near, far).astype(np.float32)


def smooth_noise(rng: np.random.Generator, image_size: int, octaves: Mapping[int, float]) -> Plane:
    """Draw clouds with values around 0, float32 [S, S].

    Args:
        rng: Generator of the lattice values.
        image_size: Side S of the picture in pixels.
        octaves: Amplitude by lattice points a side (4 or more): few points are wide clouds, many are grain.
    """
    total = np.zeros((image_size, image_size), dtype=np.float32)
    for points, amplitude in octaves.items():
        lattice = rng.random((points, points), dtype=np.float32) * (2.0 * amplitude) - amplitude
        weights = _lattice_weights(image_size, points)
        total += weights @ lattice @ weights.T
    return total


def _swing(phase: Plane) -> Plane:
    """Return a triangle wave of period 1 between -0.25 and 0.25; its slope is 1, so it measures distance in periods."""
    wave: Plane = np.abs(phase - np.floor(phase) - 0.5) - 0.25
    return wave


def _checker(u: Plane, v: Plane, soft: float, cloud: Plane) -> Plane:
    across, along = _swing(u), _swing(v)
    return coverage(np.sign(across * along) * np.minimum(np.abs(across), np.abs(along)), soft)


def _dots(u: Plane, v: Plane, soft: float, cloud: Plane) -> Plane:
    across, along = u - np.round(u), v - np.round(v)
    return coverage(np.sqrt(across * across + along * along) - 0.30, soft)


def _bricks(u: Plane, v: Plane, soft: float, cloud: Plane) -> Plane:
    course = np.floor(1.8 * v)
    place = 0.8 * u + 0.5 * course
    side = (0.5 - np.abs(1.8 * v - course - 0.5)) * (1.0 / 1.8)
    end = np.abs(place - np.round(place)) * (1.0 / 0.8)
    tone = np.sin(2.9 * np.floor(place) + 7.3 * course)
    bricks: Plane = coverage(0.055 - np.minimum(side, end), soft) * (0.8 + 0.2 * tone)
    return bricks


def _grid(u: Plane, v: Plane, soft: float, cloud: Plane) -> Plane:
    return coverage(np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v))) - 0.09, soft)


# Families of textures. Each draws a pattern in 0..1 from its coordinates in periods (u, v), the width of a pixel in
# periods, and clouds around 0; all arrays [S, S].
TEXTURES: dict[str, Callable[[Plane, Plane, float, Plane], Plane]] = {
    "stripes": lambda u, v, soft, cloud: coverage(_swing(u), soft),
    "checker": _checker,
    "dots": _dots,
    "waves": lambda u, v, soft, cloud: coverage(_swing(u + 0.30 * np.sin(v * 3.6)), soft),
    "bricks": _bricks,
    "clouds": lambda u, v, soft, cloud: np.clip(0.5 + 1.8 * cloud, 0.0, 1.0),
    "grid": _grid,
    "zigzag": lambda u, v, soft, cloud: coverage(_swing(u + 1.6 * _swing(0.8 * v)), soft * 1.6),
    "rings": lambda u, v, soft, cloud: coverage(_swing(np.sqrt(u * u + v * v)), soft),
    "gradient": lambda u, v, soft, cloud: np.clip(0.5 + 0.16 * u + 0.15 * cloud, 0.0, 1.0),
}


def to_uint8(picture: Plane) -> npt.NDArray[np.uint8]:
    """Convert a picture [3, S, S] to RGB uint8 [S, S, 3]; values outside 0..1 are clipped."""
    levels = np.clip(picture * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


@dataclass(frozen=True)
class RenderedSource:
    """A source of rendered pictures: item "12" is picture 12 of the seed.

    Attributes:
        render: Function of (seed, index, image_size); one that can be pickled.
        classes: Class names; the label is an index into them.
        multi_label: Whether an image may have any number of the classes.
        num_images: Number of pictures, 10 or more.
        seed: Seed of the pictures, 0 or more.
    """

    render: Callable[[int, int, int], Sample]
    classes: tuple[str, ...]
    multi_label: bool
    num_images: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a source that is too small to split.

        Raises:
            ValueError: If ``num_images`` is below 10 or ``seed`` below 0.
        """
        if self.num_images < MIN_IMAGES:
            raise ValueError(f"--num-images {self.num_images} must be at least {MIN_IMAGES}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")

    @property
    def has_instances(self) -> bool:
        """Always True: the renderer knows which object every pixel shows."""
        return True

    @property
    def resize(self) -> str:
        """The wording of the manifest: nothing is resized."""
        return "drawn at image_size"

    def listing(self) -> dict[str, list[str]]:
        """Return the item ids of each split: the first 70 % are train, the next 15 % val, the rest test."""
        train = round(self.num_images * _TRAIN_SHARE)
        val = train + round(self.num_images * _VAL_SHARE)
        ids = [str(index) for index in range(self.num_images)]
        return {"train": ids[:train], "val": ids[train:val], "test": ids[val:]}

    @property
    def passed_over(self) -> PassedOver:
        """Nothing: every picture is used."""
        return PassedOver()

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def stratum(self, item: str) -> str:
        """Name nothing: splits are not carved, and subsets are taken by a hash."""
        return ""

    def files(self) -> Mapping[str, tuple[int, int]]:
        """Look up no files: there are none."""
        return {}

    def file_of(self, item: str) -> str:
        """Name nothing: there are no files."""
        return ""

    def beside(self, item: str) -> tuple[str, ...]:
        """Name nothing: there are no files."""
        return ()

    def checksum(self, name: str) -> str:
        """Refuse: there are no files."""
        raise KeyError(name)

    def load(self, item: str, image_size: int) -> Sample:
        """Render one item to ``image_size`` pixels a side.

        Raises:
            RefusedImageError: If ``item`` is not an id of this source.
            ValueError: If ``image_size`` is below 16.
        """
        if not (item.isdecimal() and int(item) < self.num_images):
            raise RefusedImageError(f"item is {item!r}; it must be a number from 0 to {self.num_images - 1}")
        return self.render(self.seed, int(item), image_size)

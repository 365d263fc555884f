"""A rendered multi-label data set: scenes of colored solids on a ground plane, after CLEVR (Johnson et al. 2017).

Solids stand apart on the ground in perspective and partly occlude each other. Of every solid, a square that is wider
than a pixel of the smallest image stays visible, so that labels and instance maps agree at every image size.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adios_ray.data.rendered.rendering import (
    MIN_IMAGE_SIZE,
    Color,
    Plane,
    RenderedSource,
    Surface,
    Vector,
    axis,
    coverage,
    cube,
    cylinder,
    light_direction,
    shade,
    smooth_noise,
    sphere,
    to_uint8,
    window,
)
from adios_ray.data.sources.base import Sample

SHAPES = ("cube", "sphere", "cylinder")
COLORS: dict[str, Color] = {
    "gray": (0.42, 0.42, 0.43),
    "red": (0.74, 0.14, 0.14),
    "blue": (0.16, 0.29, 0.84),
    "green": (0.12, 0.48, 0.13),
    "brown": (0.50, 0.28, 0.11),
    "purple": (0.52, 0.16, 0.74),
    "cyan": (0.15, 0.76, 0.78),
    "yellow": (0.94, 0.82, 0.14),
}
CLASSES = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
MAX_OBJECTS = 10

_PALETTE = tuple(COLORS.values())
_CANDIDATES = 40  # positions tried for the objects of one scene
# The ground in perspective: an object at depth Z is 1 / (1 + _RECEDE * Z) of its size and stands at
# _HORIZON - _DROP * scale on the picture, so the camera looks down on it at asin(_DROP * _RECEDE * scale).
_HORIZON, _DROP, _RECEDE, _FARTHEST = 2.18, 2.90, 0.2, 3.3
_SIDE = 0.84  # how far an object's center may be from the middle of the picture, in picture units
_GAP = 0.06  # smallest distance between two objects on the ground
_WITNESS = 1.01 / MIN_IMAGE_SIZE  # half the side of the square of every object that stays visible
# By shape: half height, reach on the ground, and radius of a disc inside the outline, in units of the size.
_CUBE_EDGE, _CYLINDER_RADIUS, _CYLINDER_HEIGHT = 0.84, 0.80, 0.86
_HALF_HEIGHT = np.array([_CUBE_EDGE, 1.0, _CYLINDER_HEIGHT])
_FOOTPRINT = np.array([_CUBE_EDGE * math.sqrt(2.0), 1.0, _CYLINDER_RADIUS])
_INNER = np.array([_CUBE_EDGE, 1.0, _CYLINDER_RADIUS])
# From an object's center to those of its five witness squares. The diagonals are shorter than 1, and ``reach`` leaves
# room for a square's corners, so that all squares are inside the disc of radius _INNER.
_DIRECTIONS = np.array([(0.0, 0.0), (-0.7, -0.7), (-0.7, 0.7), (0.7, -0.7), (0.7, 0.7)])


class Solid(NamedTuple):
    """One object of a scene, in picture coordinates; lengths in picture units.

    Attributes:
        shape: Index into ``SHAPES``.
        color: Index into ``COLORS``.
        x: Center, to the right.
        y: Center, up.
        size: Radius of a sphere; the other shapes are in proportion.
        half_width: Half the width of the outline's box.
        half_height: Half the height of the outline's box.
        pitch: Angle at which the camera looks down on it, radians.
        yaw: Rotation about the vertical, radians in 0..pi/2.
        gloss: Strength of the highlight, 0..1.
    """

    shape: int
    color: int
    x: float
    y: float
    size: float
    half_width: float
    half_height: float
    pitch: float
    yaw: float
    gloss: float


class _Candidates(NamedTuple):
    """Columns of ``Solid`` for all n candidates, and the quantities that decide which of them can share a scene.

    Attributes:
        solids: One row per candidate, [n, 10].
        ground: Position on the ground plane, across and in depth, [n, 2].
        footprint: Radius on the ground, [n].
        reach: Distance of the outer witness squares from the center, in picture units, [n].
    """

    solids: npt.NDArray[np.float64]
    ground: npt.NDArray[np.float64]
    footprint: npt.NDArray[np.float64]
    reach: npt.NDArray[np.float64]


def _draw_candidates(rng: np.random.Generator) -> _Candidates:
    """Draw random solids at random positions, independently of each other."""
    draws = rng.random((8, _CANDIDATES))
    shape = (draws[0] * len(SHAPES)).astype(np.int64)
    color = np.floor(draws[1] * len(COLORS))
    depth = draws[2] * _FARTHEST
    scale = 1.0 / (1.0 + _RECEDE * depth)
    base = 0.19 + 0.12 * draws[3]
    size, x = base * scale, (2.0 * draws[4] - 1.0) * _SIDE
    tilt = _DROP * _RECEDE * scale
    up = np.sqrt(1.0 - tilt * tilt)
    y = _HORIZON - _DROP * scale + size * _HALF_HEIGHT[shape] * up
    yaw = 0.2 + (math.pi / 2 - 0.4) * draws[5]
    wide = np.where(shape == 0, _CUBE_EDGE * (np.sin(yaw) + np.cos(yaw)), _INNER[shape])
    high = np.where(shape == 1, 1.0, _HALF_HEIGHT[shape] * up + wide * tilt)
    gloss = np.where(draws[6] < 0.5, 0.15, 0.45 + 0.4 * draws[7])
    columns = (shape, color, x, y, size, wide * size, high * size, np.arcsin(tilt), yaw, gloss)
    reach = np.maximum(_INNER[shape] * size - math.sqrt(2.0) * _WITNESS, 0.0)
    return _Candidates(np.stack(columns, axis=1), np.stack((x / scale, depth), axis=1), _FOOTPRINT[shape] * base, reach)


def _hidden(them: _Candidates) -> npt.NDArray[np.bool_]:
    """Find whether candidate b hides witness square w of candidate a, at least in part, bool [n, n, 5] by [a, b, w].

    Each candidate has five witness squares within its outline. An occluder counts as its bounding box.
    """
    x, y, half_width, half_height = (them.solids[:, column] for column in (2, 3, 5, 6))
    squares_x = x[:, None] + them.reach[:, None] * _DIRECTIONS[None, :, 0]
    squares_y = y[:, None] + them.reach[:, None] * _DIRECTIONS[None, :, 1]
    beside = np.abs(squares_x[:, None] - x[None, :, None]) > (half_width + _WITNESS)[None, :, None]
    above = np.abs(squares_y[:, None] - y[None, :, None]) > (half_height + _WITNESS)[None, :, None]
    in_front = them.ground[None, :, 1] < them.ground[:, None, 1]
    hidden: npt.NDArray[np.bool_] = ~(beside | above) & in_front[..., None]
    return hidden


def layout(rng: np.random.Generator) -> list[Solid]:
    """Draw 1 to 10 solids, farthest first, that do not touch and are all visible."""
    wanted = int(rng.integers(1, MAX_OBJECTS + 1))
    them = _draw_candidates(rng)
    apart = them.ground[:, None] - them.ground[None, :]
    room = them.footprint[:, None] + them.footprint[None, :] + _GAP
    collisions = apart[..., 0] ** 2 + apart[..., 1] ** 2 < room**2
    hidden = _hidden(them)
    # A candidate joins if it and every solid chosen before keep one witness square that none of them hides.
    lost = np.zeros(hidden.shape[::2], dtype=np.bool_)
    chosen: list[int] = []
    for candidate in range(_CANDIDATES):
        if collisions[candidate, chosen].any():
            continue
        lost_then = lost | hidden[:, candidate]
        if not lost_then[[*chosen, candidate]].all(axis=1).any():
            chosen.append(candidate)
            lost = lost_then
        if len(chosen) == wanted:
            break
    chosen.sort(key=lambda candidate: -float(them.ground[candidate, 1]))
    return [Solid(int(row[0]), int(row[1]), *row[2:]) for row in them.solids[chosen].tolist()]


def _surface(solid: Solid, x: Plane, y: Plane) -> Surface:
    """Draw a solid, in its own units around its center."""
    if SHAPES[solid.shape] == "cube":
        return cube(x, y, solid.pitch, solid.yaw, _CUBE_EDGE)
    if SHAPES[solid.shape] == "sphere":
        return sphere(x, y)
    return cylinder(x, y, solid.pitch, _CYLINDER_RADIUS, _CYLINDER_HEIGHT)


def _cast_shadow(brightness: Plane, solid: Solid, light: Vector) -> None:
    """Darken the ground [S, S] in place by a soft capsule from the solid's foot away from the lamp."""
    size, tilt = solid.size, math.sin(solid.pitch)
    tall, foot = 2.0 * float(_HALF_HEIGHT[solid.shape]), float(_INNER[solid.shape])
    run_x, run_z = -0.75 * tall * light[0] / light[1], 0.30 * tall
    lift = solid.y - size * tall / 2.0 * math.cos(solid.pitch)
    middle = solid.x + size * run_x / 2.0, lift + size * tilt * run_z / 2.0
    half = size * (run_x / 2.0 + 1.4 * foot), size * tilt * (run_z / 2.0 + 1.4 * foot)
    box = window(brightness.shape[0], middle, half)
    x, z = (box.x - solid.x) * (1.0 / size), (box.y - lift) * (1.0 / (size * tilt))
    along = np.minimum(np.maximum((x * run_x + z * run_z) * (1.0 / (run_x**2 + run_z**2)), 0.0), 1.0)
    off_x, off_z = x - run_x * along, z - run_z * along
    shadow = coverage(np.sqrt(off_x * off_x + off_z * off_z) - 0.9 * foot, 0.9 * foot)
    brightness[box.place] *= 1.0 - shadow * shadow * (0.62 - 0.34 * along)


def _ground(rng: np.random.Generator, image_size: int, solids: list[Solid], light: Vector) -> Plane:
    """Draw the mottled ground with its shadows, float32 [3, S, S]: brighter towards the lamp, darker at the corners."""
    tone, warm, fall = rng.random(3).tolist()
    x, y = axis(image_size)[None, :], -axis(image_size)[:, None]
    brightness = smooth_noise(rng, image_size, {6: 0.09, 14: 0.05, 36: 0.05})
    brightness += 1.0 + (0.06 + 0.06 * fall) * (y - x) - 0.10 * (x * x + y * y)
    for solid in solids:
        _cast_shadow(brightness, solid, light)
    level, tint = 0.56 + 0.16 * tone, 0.05 * (warm - 0.5)
    return np.array([level + tint, level, level - tint], dtype=np.float32)[:, None, None] * brightness


def render(seed: int, index: int, image_size: int) -> Sample:
    """Draw scene ``index`` of ``seed``; the same scene at every size.

    The label is uint8 [24], one entry per class; the instance map numbers the objects from 1, farthest first.

    Raises:
        ValueError: If ``image_size`` is below 16.
    """
    rng = np.random.default_rng((seed, index))
    solids, light = layout(rng), light_direction(rng)
    picture = _ground(rng, image_size, solids, light)
    instances = np.zeros((image_size, image_size), dtype=np.uint8)
    label = np.zeros(len(CLASSES), dtype=np.uint8)
    for number, solid in enumerate(solids, start=1):  # farthest first: nearer ones are drawn over it
        box = window(image_size, (solid.x, solid.y), (solid.half_width, solid.half_height))
        surface = _surface(solid, (box.x - solid.x) / solid.size, (box.y - solid.y) / solid.size)
        alpha = coverage(surface.distance, box.pixel / solid.size)
        box.blend(picture, shade(surface.normal, _PALETTE[solid.color], light, solid.gloss), alpha)
        instances[box.place][alpha > 0.5] = number
        label[solid.shape * len(COLORS) + solid.color] = 1
    return Sample(to_uint8(picture), label, instances, image_size, image_size)


def source(num_images: int, seed: int) -> RenderedSource:
    """Make a source of the first ``num_images`` scenes of ``seed``.

    Raises:
        ValueError: If ``num_images`` is below 10 or ``seed`` below 0.
    """
    return RenderedSource(render, CLASSES, True, num_images, seed)

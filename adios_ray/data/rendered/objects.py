"""A rendered data set of one object each, in front of a texture that is spuriously correlated with its class.

Foreground and background are drawn from separate random streams by separate functions, so that pictures with another
background, or without the object, can be composed from the same parts.
"""

import colorsys
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adios_ray.config import Variation
from adios_ray.data.rendered.rendering import (
    TEXTURES,
    Color,
    Plane,
    RenderedSource,
    Surface,
    Vector,
    Window,
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

TEXTURE_AGREEMENT = 0.7  # probability that the background is of the class's own family of textures
DONORS = 2**31
"""Pictures of a seed whose backgrounds the mixed variations take: more than any data set has."""
_MIXED: Mapping[Variation, int | None] = {"mixed_same": 0, "mixed_rand": None, "mixed_next": 1}
"""Number of the background's class minus that of the object's in each mixed variation; None for any."""

_EXTENT = 1.25  # half the side of the box around any shape, in units of the object's size
_SHADOW_SHIFT, _SHADOW_SOFTNESS, _SHADOW_DEPTH = 0.16, 0.30, 0.55
_PITCH = 0.5  # how far the camera looks down on the solids, radians

Outline = Callable[[Plane, Plane], Plane]


def _bevelled(outline: Outline, width: float) -> Callable[[Plane, Plane, float], Surface]:
    """Make a flat shape whose edge is rounded over ``width``, from the signed distance to its outline."""

    # Normals follow the gradient of the distance (forward differences) and lean outward within ``width`` of the edge.
    def surface(x: Plane, y: Plane, _yaw: float) -> Surface:
        step = 0.04
        distance = outline(x, y)
        slope_x = (outline(x + step, y) - distance) * (1.0 / step)
        slope_y = (outline(x, y + step) - distance) * (1.0 / step)
        lean = np.clip(1.0 + distance * (1.0 / width), 0.0, 1.0)
        nx, ny = slope_x * lean, slope_y * lean
        flat = nx * nx + ny * ny
        short = 1.0 / np.sqrt(np.maximum(flat, 1.0))
        return Surface(distance, (nx * short, ny * short, np.sqrt(np.maximum(1.0 - flat, 0.0))))

    return surface


# Outlines: signed distances, negative inside; some are exact only near the edge, where coverage is decided.


def _star(x: Plane, y: Plane) -> Plane:
    """Return the distance to a star of five points, by folding the plane into half of one of them."""
    radius, sector = np.sqrt(x * x + y * y), 2.0 * math.pi / 5.0
    angle = np.arctan2(x, y) * (1.0 / sector)
    angle = (angle - np.round(angle)) * sector
    inner, half = 0.46, sector / 2.0
    across, along = radius * np.abs(np.sin(angle)), radius * np.cos(angle) - 1.1
    edge_x, edge_y = inner * math.sin(half), inner * math.cos(half) - 1.1
    length = math.hypot(edge_x, edge_y)
    return along * (edge_x / length) - across * (edge_y / length)


def _heart(x: Plane, y: Plane) -> Plane:
    """Return the distance to a square on its corner with half a disc on each of its two upper sides."""
    scale = 1.72
    x, y = np.abs(x) * (1.0 / scale), y * (1.0 / scale) + 0.55
    lobe = np.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2) - math.sqrt(0.125)
    foot = 0.5 * np.maximum(x + y, 0.0)
    edge = np.sqrt(np.minimum(x * x + (y - 1.0) ** 2, (x - foot) ** 2 + (y - foot) ** 2))
    return scale * np.where(x + y > 1.0, lobe, np.where(x > y, edge, -edge))


def _arrow(x: Plane, y: Plane) -> Plane:
    shaft = np.maximum(np.abs(y) - 0.24, np.abs(x + 0.42) - 0.62)
    head = np.maximum((x - 1.05) * 0.68 + np.abs(y) * 0.73, 0.02 - x)
    arrow: Plane = np.minimum(shaft, head)
    return arrow


def _moon(x: Plane, y: Plane) -> Plane:
    full = np.sqrt((x + 0.10) ** 2 + y * y) - 1.0
    bite = 0.82 - np.sqrt((x - 0.52) ** 2 + y * y)
    return np.maximum(full, bite)


def _cone(x: Plane, y: Plane, _yaw: float) -> Surface:
    """Draw a cone on its base, seen slightly from above."""
    down = np.clip((1.05 - y) * (1.0 / 1.7), 0.02, 1.0)
    across = np.clip(x / (0.82 * down), -1.0, 1.0)
    front = np.sqrt(1.0 - across * across)
    base = -0.62 - 0.34 * np.sqrt(np.maximum(1.0 - (x * (1.0 / 0.82)) ** 2, 0.0))
    distance = np.maximum((np.abs(x) - 0.82 * (1.05 - y) * (1.0 / 1.7)) * 0.9, base - y)
    return Surface(distance, (0.92 * across, 0.2 + 0.19 * np.abs(across), 0.97 * front))


def _mug(x: Plane, y: Plane, yaw: float) -> Surface:
    """Draw an open cylinder with a handle; the hollow is a cap whose normals face the other way."""
    body = cylinder(x + 0.2, y, _PITCH, 0.66, 0.80)
    rim_y, tilt = 0.80 * math.cos(_PITCH), math.sin(_PITCH)
    radial = np.sqrt((x + 0.2) ** 2 + ((y - rim_y) * (1.0 / tilt)) ** 2)
    hollow = coverage(radial - 0.53, 0.06)
    handle = _bevelled(lambda x, y: np.abs(np.sqrt((x - 0.48) ** 2 + (y * 0.9) ** 2) - 0.42) - 0.12, 0.12)(x, y, yaw)
    shown = (body.distance > 0.0) & (handle.distance < body.distance)
    inside = (-1.1 * (x + 0.2), -0.75 + 0.0 * x, 0.25 + 0.0 * x)
    normal = tuple(
        np.where(shown, h, b + hollow * (i - b)) for b, h, i in zip(body.normal, handle.normal, inside, strict=True)
    )
    return Surface(np.minimum(body.distance, handle.distance), (normal[0], normal[1], normal[2]))


_SHAPES: dict[str, Callable[[Plane, Plane, float], Surface]] = {
    "ball": lambda x, y, yaw: sphere(x, y),
    "cube": lambda x, y, yaw: cube(x, y, _PITCH, yaw, 0.74),
    "cylinder": lambda x, y, yaw: cylinder(x, y, _PITCH, 0.64, 0.86),
    "cone": _cone,
    "ring": _bevelled(lambda x, y: np.abs(np.sqrt(x * x + y * y) - 0.70) - 0.27, 0.27),
    "star": _bevelled(_star, 0.40),
    "heart": _bevelled(_heart, 0.45),
    "arrow": _bevelled(_arrow, 0.24),
    "mug": _mug,
    "moon": _bevelled(_moon, 0.40),
}
CLASSES = tuple(_SHAPES)  # class k is correlated with family k of TEXTURES


class Subject(NamedTuple):
    """The parameters of one picture; lengths in picture units, angles in radians.

    Attributes:
        label: Index into ``CLASSES``.
        texture: Index into ``TEXTURES`` of the background that was drawn for it.
        x: Center, to the right.
        y: Center, up.
        size: About half the object's extent.
        tilt: Rotation in the picture plane, counterclockwise.
        mirror: -1 where the shape is mirrored left to right, else 1.
        yaw: Rotation about the object's own vertical, 0..pi/2.
        color: RGB in 0..1.
        gloss: Strength of the highlight, 0..1.
        light: Unit vector towards the lamp.
    """

    label: int
    texture: int
    x: float
    y: float
    size: float
    tilt: float
    mirror: float
    yaw: float
    color: Color
    gloss: float
    light: Vector


def pick_texture(rng: np.random.Generator, label: int) -> int:
    """Draw the background's family: the class's own with probability ``TEXTURE_AGREEMENT``, else uniformly another."""
    if rng.random() < TEXTURE_AGREEMENT:
        return label
    return (label + int(rng.integers(1, len(CLASSES)))) % len(CLASSES)


def draw_subject(seed: int, index: int) -> Subject:
    """Draw the parameters of picture ``index`` of ``seed``."""
    # The order of the draws is part of the data set: another order gives other pictures for the same seed.
    rng = np.random.default_rng((seed, index, 0))
    label = int(rng.integers(len(CLASSES)))
    texture = pick_texture(rng, label)
    x, y, size, tilt, flip, yaw, hue, rich, bright, gloss = rng.random(10).tolist()
    return Subject(
        label=label,
        texture=texture,
        x=0.6 * x - 0.3,
        y=0.6 * y - 0.3,
        size=0.42 + 0.24 * size,
        tilt=1.3 * tilt - 0.65,
        mirror=1.0 if flip < 0.5 else -1.0,
        yaw=0.35 + 0.87 * yaw,
        color=colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * rich, 0.6 + 0.4 * bright),
        gloss=0.15 + 0.6 * gloss,
        light=light_direction(rng),
    )


class Foreground(NamedTuple):
    """The object and its shadow on a transparent ground.

    Attributes:
        box: Window of the picture that both fit into, h x w pixels.
        alpha: Share of each pixel that the object covers, float32 [h, w] in 0..1.
        color: Color of the object, float32 [3, h, w].
        shadow: Share of the light that the shadow removes, float32 [h, w] in 0..1.
    """

    box: Window
    alpha: Plane
    color: Plane
    shadow: Plane


def foreground(subject: Subject, image_size: int) -> Foreground:
    """Draw the object and its shadow without a background.

    Raises:
        ValueError: If ``image_size`` is below 16.
    """
    reach = subject.size * (_EXTENT + _SHADOW_SHIFT)
    box = window(image_size, (subject.x, subject.y), (reach, reach))
    cos, sin = math.cos(subject.tilt) / subject.size, math.sin(subject.tilt) / subject.size

    def view(shift: float) -> Surface:
        right, up = box.x - (subject.x + shift), box.y - (subject.y - shift)
        x, y = (right * cos + up * sin) * subject.mirror, up * cos - right * sin
        return _SHAPES[CLASSES[subject.label]](x, y, subject.yaw)

    seen, behind = view(0.0), view(_SHADOW_SHIFT * subject.size)
    nx, ny = seen.normal[0] * (subject.mirror * subject.size), seen.normal[1] * subject.size
    # Back from the object's axes to the picture's: the light must not turn with the object.
    normal = (nx * cos - ny * sin, nx * sin + ny * cos, seen.normal[2])
    return Foreground(
        box,
        coverage(seen.distance, box.pixel / subject.size),
        shade(normal, subject.color, subject.light, subject.gloss),
        coverage(behind.distance, _SHADOW_SOFTNESS) * _SHADOW_DEPTH,
    )


def background(seed: int, index: int, texture: int, image_size: int) -> Plane:
    """Draw the background of picture ``index`` in the given family, float32 [3, S, S].

    Colors, scale, phase and angle depend on (seed, index) alone.

    Args:
        seed: Seed of the data set, 0 or more.
        index: Number of the picture.
        texture: Index into ``TEXTURES``.
        image_size: Side S of the picture in pixels.

    Raises:
        ValueError: If ``image_size`` is below 16.
    """
    x, y = axis(image_size)[None, :], -axis(image_size)[:, None]
    rng = np.random.default_rng((seed, index, 1))
    angle, period, start, rise, hue, turn, rich, dark, gap, swap = rng.random(10).tolist()
    angle, period = math.pi * angle, 0.34 + 0.22 * period
    cos, sin = math.cos(angle) / period, math.sin(angle) / period
    u, v = x * cos + y * sin + (2.0 * start - 1.0), y * cos - x * sin + (2.0 * rise - 1.0)
    cloud = smooth_noise(rng, image_size, {7: 0.6, 13: 0.35, 25: 0.2})
    pattern = list(TEXTURES.values())[texture](u, v, 2.0 / (image_size * period), cloud)
    level = 0.25 + 0.35 * dark
    tones = [
        colorsys.hsv_to_rgb(hue, 0.15 + 0.45 * rich, level),
        colorsys.hsv_to_rgb((hue + 0.5 * turn) % 1.0, 0.10 + 0.40 * rich, level + 0.22 + 0.18 * gap),
    ]
    low, high = np.array(tones if swap < 0.5 else tones[::-1], dtype=np.float32)[:, :, None, None]
    picture: Plane = (low + pattern * (high - low)) * (1.0 + 0.12 * cloud)
    return picture


def compose(front: Foreground, back: Plane) -> npt.NDArray[np.uint8]:
    """Draw the shadow and the object onto a background [3, S, S], in place; return RGB uint8 [S, S, 3]."""
    back[:, front.box.place[0], front.box.place[1]] *= 1.0 - front.shadow
    front.box.blend(back, front.color, front.alpha)
    return to_uint8(back)


def instance_map(front: Foreground, image_size: int) -> npt.NDArray[np.uint8]:
    """Return the instance map, uint8 [S, S]: 1 on the object, 0 elsewhere."""
    instances = np.zeros((image_size, image_size), dtype=np.uint8)
    instances[front.box.place] = front.alpha > 0.5
    return instances


def donor(seed: int, index: int, variation: Variation) -> int:
    """Choose the picture whose background a mixed variation of picture ``index`` shows, never that picture itself.

    Returns:
        Number of a picture of the same class (``mixed_same``), of any class (``mixed_rand``), or of the next class
        (``mixed_next``; the first after the last).
    """
    step, label = _MIXED[variation], draw_subject(seed, index).label
    rng = np.random.default_rng((seed, index, 2))
    while True:
        other = int(rng.integers(DONORS))
        if other != index and step in (None, (draw_subject(seed, other).label - label) % len(CLASSES)):
            return other


def _vary(
    variation: Variation, seed: int, index: int, subject: Subject, front: Foreground, image_size: int
) -> npt.NDArray[np.uint8]:
    """Draw a variation of picture ``index``, RGB uint8 [S, S, 3]."""
    if variation in _MIXED:
        other = donor(seed, index, variation)
        return compose(front, background(seed, other, draw_subject(seed, other).texture, image_size))
    if variation == "only_fg":
        return compose(front, np.zeros((3, image_size, image_size), dtype=np.float32))
    back = background(seed, index, subject.texture, image_size)
    if variation == "only_bg_b":
        covered = front.alpha > 0.0
        rows, columns = (np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0))
        below = back[:, front.box.place[0], front.box.place[1]]
        below[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 0.0
    # The shadow is left out where the object is: its outline would tell the class.
    if variation in ("only_bg_b", "only_bg_t"):
        return to_uint8(back)
    if variation == "no_fg":
        front = front._replace(color=np.zeros_like(front.color))
    return compose(front, back)


def render(seed: int, index: int, image_size: int, variation: Variation = "original") -> Sample:
    """Draw picture ``index`` of ``seed``; the same picture at every size.

    The variations are those of the backgrounds challenge (Xiao et al. 2021). Object, pose, label and instance map are
    those of the original picture. ``only_bg_b``: the background, black in the object's bounding box; ``only_bg_t``: the
    background alone, drawn where the object was too; ``no_fg``: the original with the object in black; ``only_fg``: the
    object on black; ``mixed_*``: the object in front of another picture's background, see ``donor``.

    Raises:
        ValueError: If ``image_size`` is below 16.
    """
    subject = draw_subject(seed, index)
    front = foreground(subject, image_size)
    picture = _vary(variation, seed, index, subject, front, image_size)
    return Sample(picture, subject.label, instance_map(front, image_size), image_size, image_size)


def source(num_images: int, seed: int, variation: Variation = "original") -> RenderedSource:
    """Make a source of the first ``num_images`` pictures of ``seed``, or of a variation of each.

    Raises:
        ValueError: If ``num_images`` is below 10 or ``seed`` below 0.
    """
    return RenderedSource(partial(render, variation=variation), CLASSES, False, num_images, seed)

"""Crops and changes of color of one image after another on CPUs, compiled by numba, by the definitions of ``pixels``.

An image stays in the caches from its stored pixels to its view. Its planes are transposed, [W, H], while they are
changed, so that both axes are resized and blurred as weighted sums of rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from adios_ray.data.pixels import GRAY_WEIGHTS, MEAN, STD, TAPS_AT_ONCE

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Function = TypeVar("Function", bound=Callable[..., Any])


class Taps(NamedTuple):
    """``pixels.Taps`` as arrays; T is a multiple of ``TAPS_AT_ONCE``.

    Attributes:
        places: Numbers of the stored pixels, int32 [..., T].
        weights: Their weights, [..., T].
    """

    places: npt.NDArray[np.int32]
    weights: Floats


class Changes(NamedTuple):
    """What is done with each of B images after its crop, in the order of the attributes; see ``ViewParameters``.

    Attributes:
        jitter: [B].
        order: [B, 4].
        factors: [B, 4].
        grayscale: [B].
        blurred: [B].
        blur: Pixels of an axis that each one becomes a sum of, [R, T], and their weights for each image, [B, T].
        solarize: [B].
    """

    jitter: Flags
    order: npt.NDArray[np.int64]
    factors: Floats
    grayscale: Flags
    blurred: Flags
    blur: Taps
    solarize: Flags


# Arithmetic of a plain number and a float32 would be in double precision.
real = np.float32
ZERO, HALF, ONE, TWO, THREE, SIX = (real(number) for number in (0, 0.5, 1, 2, 3, 6))
TINY = real(1e-30)  # keeps the division finite for gray pixels, whose chroma is 0; it is then multiplied by that 0
RED, GREEN, BLUE = (real(weight) for weight in GRAY_WEIGHTS)
MEANS, DEVIATIONS = np.array(MEAN, real), np.array(STD, real)


def compiled(function: Function) -> Function:
    """Compile a function when it is first called, to run without the interpreter's lock."""
    return cast(Function, njit(nogil=True, error_model="numpy")(function))


def compiled_once(function: Function) -> Function:
    """Compile a function as ``compiled`` does, with what it calls; later processes find the result.

    It is in ``__pycache__``, or in the user's cache where that cannot be written to. Where neither can, or the disk is
    full, each process compiles.
    """
    try:
        kept = njit(nogil=True, error_model="numpy", cache=True)(function)
    except (RuntimeError, OSError):
        return compiled(function)

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        try:
            return kept(*values)
        except OSError:  # it is compiled, but could not be kept; the function itself opens no file
            return kept(*values)

    return cast(Function, call)


@compiled
def weighted_rows(source: npt.NDArray[Any], begin: int, end: int, taps: Taps, out: Floats) -> None:
    """Compute weighted sums of rows, from the column ``begin`` up to, but not including, the column ``end``.

    Args:
        source: Rows of any numeric type, [S, K].
        begin: First column.
        end: The column after the last.
        taps: Rows of each sum and their weights, [R, T]; one weight at least is not 0 in each sum.
        out: Where the sums are written, [R, K].
    """
    rows, weights = taps
    begin = max(begin, 0)  # tells the compiler that no index counts from the end
    for i in range(len(rows)):
        first = True
        for t in range(0, rows.shape[1], TAPS_AT_ONCE):
            w, x, y, z = weights[i, t], weights[i, t + 1], weights[i, t + 2], weights[i, t + 3]
            if w == ZERO and x == ZERO and y == ZERO and z == ZERO:
                continue
            a, b, c, d = rows[i, t], rows[i, t + 1], rows[i, t + 2], rows[i, t + 3]
            for j in range(end - begin):
                k = begin + j
                total = w * source[a, k] + x * source[b, k] + y * source[c, k] + z * source[d, k]
                out[i, k] = total if first else out[i, k] + total
            first = False


@compiled
def clamp(value: np.float32) -> np.float32:
    """Limit a number to [0, 1]."""
    return min(max(value, ZERO), ONE)


@compiled
def blend(red: Floats, green: Floats, blue: Floats, own: np.float32, gray: np.float32, base: np.float32) -> None:
    """Blend an image with its gray image, in place: ``own`` times each channel, ``gray`` times luma, plus ``base``."""
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        rest = gray * (RED * r + GREEN * g + BLUE * b) + base
        red[i], green[i], blue[i] = clamp(own * r + rest), clamp(own * g + rest), clamp(own * b + rest)


@compiled
def mean_gray(red: Floats, green: Floats, blue: Floats) -> np.float32:
    """Compute the mean luma of an image."""
    total = 0.0
    for i in range(len(red)):
        total += RED * red[i] + GREEN * green[i] + BLUE * blue[i]
    return real(total / len(red))


@compiled
def turn_hue(red: Floats, green: Floats, blue: Floats, shift: np.float32) -> None:
    """Turn the hue of an image by ``shift`` turns in [-1/2, 1/2], in place, as ``pixels.adjust_hue`` does."""
    turn = SIX * shift
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        low = min(min(r, g), b)
        chroma = max(max(r, g), b) - low
        from_red = (g + b - r - low + chroma) / max(chroma, TINY)
        hue = (from_red if g >= b else -from_red) + turn
        hue = hue - SIX if hue > THREE else hue
        hue = hue + SIX if hue < -THREE else hue
        red[i] = low + chroma * clamp(TWO - abs(hue))
        green[i] = low + chroma * clamp(abs(hue + ONE) - ONE)
        blue[i] = low + chroma * clamp(abs(hue - ONE) - ONE)


@compiled
def transpose(plane: Floats, out: Floats) -> None:
    """Write the transpose of a plane."""
    for j in range(len(plane)):
        for i in range(plane.shape[1]):
            out[i, j] = plane[j, i]


@compiled
def resize(image: npt.NDArray[Any], rows: Taps, columns: Taps, band: Floats, strip: Floats, planes: Floats) -> None:
    """Crop, resize and flip an image.

    Args:
        image: [S, S, C] of any numeric type.
        rows: What each row of the result is a sum of, [H, T].
        columns: What each column is a sum of, [W, T]; all are inside the crop.
        band: Memory for the resized rows, [H, S * C].
        strip: Memory for these as transposed planes, [C, S, H].
        planes: Where the result is written, transposed, [C, W, H].
    """
    stored, _, channels = image.shape
    height = len(rows.places)
    begin, end = stored, 0
    for i in range(len(columns.places)):
        for t in range(columns.places.shape[1]):
            begin, end = min(begin, columns.places[i, t]), max(end, columns.places[i, t] + 1)
    weighted_rows(image.reshape(stored, stored * channels), begin * channels, end * channels, rows, band)
    for i in range(height):
        for j in range(begin, end):
            for c in range(channels):
                strip[c, j, i] = band[i, channels * j + c]
    for c in range(channels):
        weighted_rows(strip[c], 0, height, columns, planes[c])


@compiled_once
def crop_images(images: npt.NDArray[Any], rows: Taps, columns: Taps, out: Floats, begin: int, end: int) -> None:
    """Crop, resize and flip some images.

    Args:
        images: [B, S, S, C] of any numeric type.
        rows: What each row of each result is a sum of, [B, H, T].
        columns: What each column is a sum of, [B, W, T].
        out: Where the results are written, [C, B, H, W].
        begin: The first of these images.
        end: The one after the last.
    """
    stored, channels, (height, width) = images.shape[1], images.shape[3], out.shape[2:]
    band, strip = np.empty((height, stored * channels), real), np.empty((channels, stored, height), real)
    planes = np.empty((channels, width, height), real)
    for k in range(begin, end):
        own_rows, own_columns = Taps(rows.places[k], rows.weights[k]), Taps(columns.places[k], columns.weights[k])
        resize(images[k], own_rows, own_columns, band, strip, planes)
        for c in range(channels):
            transpose(planes[c], out[c, k])


@compiled_once
def make_views(
    images: npt.NDArray[np.uint8], rows: Taps, columns: Taps, changes: Changes, out: Floats, begin: int, end: int
) -> None:
    """Make the views of some images.

    Args:
        images: [B, S, S, 3].
        rows: What each row is a sum of, [B, R, T], divided by 255.
        columns: What each column is a sum of, [B, R, T].
        changes: What follows the crop.
        out: Where the views are written, [B, 3, R, R].
        begin: The first of these images.
        end: The one after the last.
    """
    stored, size = images.shape[1], out.shape[2]
    band, strip = np.empty((size, stored * 3), real), np.empty((3, stored, size), real)
    planes, others = np.empty((3, size, size), real), np.empty((3, size, size), real)
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    blurred = Taps(changes.blur.places, np.empty(changes.blur.places.shape, real))
    for k in range(begin, end):
        own_rows, own_columns = Taps(rows.places[k], rows.weights[k]), Taps(columns.places[k], columns.weights[k])
        resize(images[k], own_rows, own_columns, band, strip, planes)
        blend(red, green, blue, ONE, ZERO, ZERO)  # clamps: bicubic weights overshoot
        for position in range(4 if changes.jitter[k] else 0):
            operation = changes.order[k, position]
            factor = changes.factors[k, operation]
            if operation == BRIGHTNESS:
                blend(red, green, blue, factor, ZERO, ZERO)
            elif operation == CONTRAST:
                blend(red, green, blue, factor, ZERO, (ONE - factor) * mean_gray(red, green, blue))
            elif operation == SATURATION:
                blend(red, green, blue, factor, ONE - factor, ZERO)
            else:
                turn_hue(red, green, blue, factor)
        if changes.grayscale[k]:
            blend(red, green, blue, ZERO, ONE, ZERO)
        for i in range(size):
            for t in range(blurred.weights.shape[1]):
                blurred.weights[i, t] = changes.blur.weights[k, t]
        for c in range(3):
            if changes.blurred[k]:
                weighted_rows(planes[c], 0, size, blurred, others[c])
                transpose(others[c], planes[c])
                weighted_rows(planes[c], 0, size, blurred, others[c])
            else:
                transpose(planes[c], others[c])
            plane, view = others[c].reshape(-1), out[k, c].reshape(-1)
            solarized = changes.solarize[k]
            for i in range(len(plane)):
                value = plane[i]
                value = ONE - value if solarized and value >= HALF else value
                view[i] = (value - MEANS[c]) / DEVIATIONS[c]

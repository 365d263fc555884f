"""Augmented views of image batches, and the central view for evaluation, on the device of the images.

A stored image is a whole photograph squeezed into a square of S x S pixels. Crops are drawn in the photograph's own
pixels and mapped onto the square; each axis is then resized by itself, so that a view has the photograph's proportions.

The augmentation of an image is a function of (seed, stream, epoch, sample) alone. Its parameters are drawn on the CPU;
the pixels are then changed in batches, without synchronizing with the device.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adios_ray.config import RESIZED_SIDE, AugmentConfig, CentralView
from adios_ray.data import pixels
from adios_ray.data.counter_random import uniforms
from adios_ray.devices import copied_to

CROP_ATTEMPTS = 10
ASPECT_RATIOS = (3 / 4, 4 / 3)
BLUR_SIGMAS = (0.1, 2.0)
Bytes = npt.NDArray[np.uint8]
Sides = npt.NDArray[np.integer]
"""Heights or widths of the photographs of a batch in pixels, [B]."""
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_NEUTRAL_FACTORS = (1.0, 1.0, 1.0, 0.0)
_PACKED = (5, 1, 1, 1, 1, 2, 8, 8)  # columns of ``pack_views``, in the order in which ``render_views`` takes them
_DRAWS = 2 * CROP_ATTEMPTS + 16  # area and ratio of each attempt, two for the position, 14 for everything else


class ViewParameters(NamedTuple):
    """Augmentation parameters of each image of a batch; tensors on the CPU.

    Attributes:
        boxes: Crops as top, left, height, width in pixels of the photograph, float32 [B, 4].
        sizes: Height and width of the photograph, float32 [B, 2].
        flip: Whether to mirror the image left to right, bool [B].
        jitter: Whether to change its colors, bool [B].
        order: Order of brightness, contrast, saturation, hue (0-3), int64 [B, 4].
        factors: Their factors; the last is the hue's shift in turns. float32 [B, 4].
        grayscale: Whether to remove color, bool [B].
        blur: Whether to blur, bool [B].
        sigma: The blur's standard deviation in pixels, float32 [B].
        solarize: Whether to invert bright pixels, bool [B].
    """

    boxes: Tensor
    sizes: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor


def draw_parameters(
    config: AugmentConfig,
    seed: int,
    stream: str,
    epoch: int,
    samples: npt.NDArray[np.int64],
    heights: Sides,
    widths: Sides,
) -> ViewParameters:
    """Draw the parameters of one view of an epoch for the images ``samples`` (int64 [B]) with their heights and widths.

    See ``counter_random.uniforms`` for ``seed``, ``stream`` and ``epoch``.
    """
    draws = uniforms(seed, stream, epoch, samples, _DRAWS)
    crops, rest = draws[:, : 2 * CROP_ATTEMPTS + 2], draws[:, 2 * CROP_ATTEMPTS + 2 :]
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    neutral = np.array(_NEUTRAL_FACTORS)
    low, high = BLUR_SIGMAS
    return ViewParameters(
        boxes=torch.from_numpy(_boxes(crops, config.min_crop_scale, heights, widths)),
        sizes=_sizes(heights, widths),
        flip=torch.from_numpy(rest[:, 0] < config.flip_probability),
        jitter=torch.from_numpy(rest[:, 1] < config.jitter_probability),
        order=torch.from_numpy(np.argsort(rest[:, 2:6], axis=1)),  # a uniformly random permutation
        factors=torch.from_numpy((neutral + strengths * (2 * rest[:, 6:10] - 1)).astype(np.float32)),
        grayscale=torch.from_numpy(rest[:, 10] < config.grayscale_probability),
        blur=torch.from_numpy(rest[:, 11] < config.blur_probability),
        sigma=torch.from_numpy((low + (high - low) * rest[:, 12]).astype(np.float32)),
        solarize=torch.from_numpy(rest[:, 13] < config.solarize_probability),
    )


def _sizes(heights: Sides, widths: Sides) -> Tensor:
    return torch.from_numpy(np.stack([heights, widths], axis=1).astype(np.float32))


def _boxes(draws: npt.NDArray[np.float64], min_scale: float, heights: Sides, widths: Sides) -> npt.NDArray[np.float32]:
    """Choose crops as torchvision's RandomResizedCrop does: the first of ten attempts that fits, else the fallback.

    The fallback is the whole image, or its largest central part whose aspect ratio is allowed.

    Args:
        draws: Uniform numbers, [B, 22]: area and ratio of each attempt, then the position.
        min_scale: Smallest share of the image's area, in (0, 1].
        heights: Height of each image in pixels, [B].
        widths: Width of each image in pixels, [B].

    Returns:
        Top, left, height, width as whole numbers, float32 [B, 4].
    """
    sides = np.stack([heights, widths]).astype(np.float64)
    area = (min_scale + (1 - min_scale) * draws[:, :CROP_ATTEMPTS]) * sides[0, :, None] * sides[1, :, None]
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = np.exp(low + (high - low) * draws[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS])  # log-uniform
    # rint rounds halves to even, as Python's round does in torchvision.
    tried = np.rint(np.sqrt(np.stack([area / ratio, area * ratio])))
    fits = np.all((tried > 0) & (tried <= sides[:, :, None]), axis=0)
    first, found = fits.argmax(axis=1), fits.any(axis=1)  # argmax is the first True, or 0 if there is none
    narrowest, widest = ASPECT_RATIOS
    central = np.minimum(sides, np.rint(np.stack([sides[1] / narrowest, sides[0] * widest])))
    box = np.where(found, tried[:, np.arange(len(first)), first], central)
    room = sides - box
    start = np.where(found, np.floor(draws[:, -2:].T * (room + 1)), room // 2)
    return np.concatenate([start, box]).T.astype(np.float32)


def apply_view(images: Tensor, parameters: ViewParameters, out_size: int) -> Tensor:
    """Crop, flip, change colors, blur, solarize and normalize.

    A CPU changes one image after another (``kernels.make_views``), in as many threads as torch has. Other devices
    change all at once (``render_views``).

    Args:
        images: uint8 [B, S, S, 3].
        parameters: Parameters of the same B images.
        out_size: Side of the view in pixels, at least 7.

    Returns:
        Normalized float32 [B, 3, out_size, out_size].
    """
    stored_size = images.shape[1]
    if images.device.type != "cpu":
        packed = pack_views((parameters,), stored_size)
        return render_views(images, copied_to(packed, images.device), out_size)[0]
    from adios_ray.data import kernels  # here, since numba takes a third of a second to start, and GPUs do without

    crops = _stored_crops(parameters.boxes, parameters.sizes, parameters.flip, stored_size)
    rows, columns = _taps(crops, stored_size, out_size, pixels.BICUBIC)
    # Contiguous, as other layouts would be compiled for themselves.
    chosen = ViewParameters(*(values.contiguous() for values in parameters))
    changes = kernels.Changes(
        chosen.jitter.numpy(),
        chosen.order.numpy(),
        chosen.factors.numpy(),
        chosen.grayscale.numpy(),
        chosen.blur.numpy(),
        kernels.Taps(*_arrays(pixels.blur_taps(parameters.sigma, out_size))),
        chosen.solarize.numpy(),
    )
    out = torch.empty(len(images), 3, out_size, out_size)
    taps = kernels.Taps(*_arrays(rows, 255)), kernels.Taps(*_arrays(columns))
    inputs = images.contiguous().numpy(), *taps, changes, out.numpy()
    _in_threads(lambda begin, end: kernels.make_views(*inputs, begin, end), len(images))
    return out


def _arrays(taps: pixels.Taps, divisor: float = 1) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Convert taps for ``kernels.Taps``, with weights divided by ``divisor``."""
    return taps.pixels.int().contiguous().numpy(), taps.weights.div(divisor).contiguous().numpy()


def _in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Call ``work`` with the first number and the end of equal parts of ``count``, in as many threads as torch has."""
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * thread // threads for thread in range(threads + 1)]
    if threads == 1:
        return work(*bounds)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def pack_views(views: Sequence[ViewParameters], stored_size: int) -> Tensor:
    """Convert the parameters of V views of the same B images, S x S as stored, into the numbers of ``render_views``.

    Returns:
        float32 [B, V, 27], one tensor, so that one copy takes it to the device.
    """
    return torch.stack([_packed(view, stored_size) for view in views], dim=1)


def _packed(parameters: ViewParameters, stored_size: int) -> Tensor:
    """Compute the columns of one view, [B, 27].

    These are the crop, sigma, whether to make gray, whether to solarize, the factor of the contrast, the hue's shift
    before and after the contrast (0 where it is not turned there), and the weights of the image and of its gray image
    in eight blends: four before and four after the contrast, of which two are before and two after the hue's place.
    """
    factors = torch.where(parameters.jitter[:, None], parameters.factors, torch.tensor(_NEUTRAL_FACTORS))
    places = parameters.order.argsort(dim=1)  # of each operation, the inverse permutation
    contrast, hue, blended = places[:, _CONTRAST], places[:, _HUE], places[:, [_BRIGHTNESS, _SATURATION]]
    late = hue > contrast
    slots = 4 * (blended > contrast[:, None]) + 2 * (blended > hue[:, None]) + (blended > blended.flip(1))
    own = torch.ones(len(places), 8).scatter_(1, slots, factors[:, [_BRIGHTNESS, _SATURATION]])
    gray = torch.zeros(len(places), 8).scatter_(1, slots[:, 1:], 1 - factors[:, _SATURATION, None])
    columns = (
        _stored_crops(parameters.boxes, parameters.sizes, parameters.flip, stored_size),
        torch.where(parameters.blur, parameters.sigma, pixels.NO_BLUR)[:, None],
        parameters.grayscale[:, None],
        parameters.solarize[:, None],
        factors[:, _CONTRAST, None],
        factors[:, _HUE, None] * torch.stack([~late, late], dim=1),
        own,
        gray,
    )
    return torch.cat(columns, dim=1)


def render_views(images: Tensor, packed: Tensor, out_size: int, channels_last: bool = False) -> Tensor:
    """Make V views of each image by the same operations for all images; up to rounding what a CPU makes otherwise.

    Each operation is neutral for the images that it is not for. No shape depends on a value and nothing waits for the
    device, so that ``torch.compile`` makes few kernels of it. Only the contrast needs a whole image, for its mean; all
    other changes of color are pointwise, and arranged before and after it.

    Args:
        images: uint8 [B, S, S, 3].
        packed: From ``pack_views``, on the images' device, float32 [B, V, 27].
        out_size: Side of the views in pixels, at least 7.
        channels_last: Memory layout of each view.

    Returns:
        Normalized float32 [V, B, 3, out_size, out_size].
    """
    count, views, _ = packed.shape
    parts = packed.flatten(0, 1).split(_PACKED, dim=1)
    crops, sigma, grayscale, solarize, contrast, shifts, own, gray = (part.squeeze(1) for part in parts)
    planes = [plane.contiguous() for plane in _crop_by_matrices(images, crops, out_size, pixels.BICUBIC, 255)]
    planes = [plane.clamp_(0, 1) for plane in planes]  # bicubic weights overshoot
    for slot in range(8):
        if slot == 4:
            pixels.blend_(planes, contrast, torch.zeros_like(contrast), 1 - contrast)
        if slot in (2, 6):
            shift = shifts[:, slot // 4]
            turned = pixels.adjust_hue(planes, shift)
            planes = [torch.where(shift[:, None, None] != 0, *pair) for pair in zip(turned, planes, strict=True)]
        pixels.blend_(planes, own[:, slot], gray[:, slot])
    luma = pixels.grayscale(planes)
    planes = [torch.where(grayscale[:, None, None] > 0, luma, plane) for plane in planes]
    matrix = pixels.blur_matrix(sigma, out_size)
    x = pixels.transform_rows(torch.stack(planes, dim=2), matrix, matrix)
    planes = [torch.where(solarize[:, None, None] > 0, pixels.solarize(plane), plane) for plane in x.unbind(2)]
    planes = [(plane - mean) / std for plane, mean, std in zip(planes, pixels.MEAN, pixels.STD, strict=True)]
    planes = [plane.view(count, views, out_size, out_size).transpose(0, 1) for plane in planes]
    return torch.stack(planes, dim=-1).permute(0, 1, 4, 2, 3) if channels_last else torch.stack(planes, dim=2)


def apply_geometry(masks: Tensor, parameters: ViewParameters, out_size: int) -> Tensor:
    """Crop, resize (antialiased bilinear) and flip masks as their images were.

    Args:
        masks: Masks such as ground truth, [B, N, S, S] of any numeric type.
        parameters: Parameters of the same B images.
        out_size: Side of the view in pixels.

    Returns:
        float32 [B, N, out_size, out_size] in the range of each mask's values.
    """
    crops = _stored_crops(parameters.boxes, parameters.sizes, parameters.flip, masks.shape[-1])
    return _crop(masks.movedim(1, -1), crops, out_size, pixels.BILINEAR).transpose(0, 1).contiguous()


def center_view(images: Tensor, heights: Sides, widths: Sides, out_size: int, view: CentralView = "square") -> Tensor:
    """Show the central square of photographs, without randomness, for evaluation.

    Args:
        images: uint8 [B, S, S, 3].
        heights: Height of each photograph in pixels, [B].
        widths: Width of each photograph in pixels, [B].
        out_size: Side of the view in pixels.
        view: "square" takes the whole central square. "resize-256" takes its central ``out_size`` / 256, which is the
            middle of the photograph resized to 256 pixels on its shorter side.

    Returns:
        Normalized float32 [B, 3, out_size, out_size].
    """
    out = torch.empty(len(images), 3, out_size, out_size, device=images.device)
    boxes, sizes = _central_boxes(heights, widths, out_size, view)
    whole = (sizes == boxes[:, 2:]).all(dim=1)
    # Squares that need no crop use torch's own resizing, whatever else is in the batch: their features stay the same.
    for chosen, cropped in ((whole, False), (~whole, True)):
        if chosen.any():
            indices = copied_to(chosen.nonzero()[:, 0], images.device)
            if cropped:
                upright = torch.zeros(len(indices), dtype=torch.bool)
                crops = _stored_crops(boxes[chosen], sizes[chosen], upright, images.shape[1])
                x = _crop(images.index_select(0, indices), crops, out_size, pixels.BICUBIC, 255).clamp_(0, 1)
            else:
                x = _planes(images.index_select(0, indices)).div_(255)
                x = x if x.shape[-1] == out_size else pixels.resize_square(x, out_size)
            out.index_copy_(0, indices, _normalize(x))
    return out


def center_maps(maps: Bytes, heights: Sides, widths: Sides, out_size: int, view: CentralView = "square") -> Bytes:
    """Cut instance maps as ``center_view`` cuts their images; each pixel has the number at its center.

    Args:
        maps: Object index per pixel, uint8 [B, S, S].
        heights: Height of each photograph in pixels, [B].
        widths: Width of each photograph in pixels, [B].
        out_size: Side of the view in pixels.
        view: Part of each photograph to show.

    Returns:
        uint8 [B, out_size, out_size].
    """
    boxes, sizes = (values.double().numpy() for values in _central_boxes(heights, widths, out_size, view))
    stored = maps.shape[-1]
    centers = boxes[:, :2, None] + boxes[:, 2:, None] * (np.arange(out_size) + 0.5) / out_size  # [B, 2, out_size]
    # A product before the quotient: a whole square of the stored size must be copied without rounding.
    places = np.floor(centers * stored / sizes[:, :, None]).astype(np.int64).clip(0, stored - 1)
    seen: Bytes = maps[np.arange(len(maps))[:, None, None], places[:, 0, :, None], places[:, 1, None, :]]
    return seen


def _central_boxes(heights: Sides, widths: Sides, out_size: int, view: CentralView) -> tuple[Tensor, Tensor]:
    """Compute the crops of central views as top, left, height, width, [B, 4], and the photographs' sizes, [B, 2]."""
    sizes = _sizes(heights, widths)
    side = sizes.amin(dim=1, keepdim=True) * (out_size / RESIZED_SIDE if view == "resize-256" else 1)
    return torch.cat([(sizes - side) / 2, side, side], dim=1), sizes


def denormalize(x: Tensor) -> Tensor:
    """Convert normalized images [B, 3, H, W] back to pictures, uint8 [B, H, W, 3]."""
    planes = [plane * std + mean for plane, mean, std in zip(x.unbind(1), pixels.MEAN, pixels.STD, strict=True)]
    return torch.stack(planes, dim=-1).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _normalize(planes: Tensor) -> Tensor:
    """Normalize planes [3, B, H, W] in [0, 1], in place, by ImageNet's mean and deviation; return [B, 3, H, W]."""
    for plane, mean, std in zip(planes, pixels.MEAN, pixels.STD, strict=True):
        plane.sub_(mean).div_(std)
    return planes.transpose(0, 1)


def _planes(images: Tensor) -> Tensor:
    """Convert images uint8 [B, S, S, 3] to contiguous planes, float32 [3, B, S, S] in [0, 255]."""
    return images.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _stored_crops(boxes: Tensor, sizes: Tensor, flip: Tensor, stored_size: int) -> Tensor:
    """Compute the crops as top, left, height, width in stored pixels, and 1 where they are mirrored, [B, 5]."""
    return torch.cat([boxes * (stored_size / sizes).repeat(1, 2), flip[:, None]], dim=1)


def _crop(images: Tensor, crops: Tensor, out_size: int, kernel: pixels.Kernel, divisor: float = 1) -> Tensor:
    """Crop, resize and flip images or masks.

    Args:
        images: [B, S, S, C] of any numeric type.
        crops: From ``_stored_crops``, on the CPU.
        out_size: Side of the results.
        kernel: BILINEAR or BICUBIC.
        divisor: What the values are divided by.

    Returns:
        Planes, contiguous float32 [C, B, out_size, out_size].
    """
    if images.device.type != "cpu":
        crops = copied_to(crops, images.device)
        return torch.stack(_crop_by_matrices(images, crops, out_size, kernel, divisor))
    from adios_ray.data import kernels  # see ``apply_view``

    count, side, _, channels = images.shape
    rows, columns = _taps(crops, side, out_size, kernel)
    taps = kernels.Taps(*_arrays(rows, divisor)), kernels.Taps(*_arrays(columns))
    out = torch.empty(channels, count, out_size, out_size)
    # For bytes and single precision alone, as each type is compiled for itself.
    images = images if images.dtype == torch.uint8 else images.float()
    inputs = images.contiguous().numpy(), *taps, out.numpy()
    _in_threads(lambda begin, end: kernels.crop_images(*inputs, begin, end), count)
    return out


def _crop_by_matrices(
    images: Tensor, crops: Tensor, out_size: int, kernel: pixels.Kernel, divisor: float
) -> tuple[Tensor, ...]:
    """Make V crops of each image as ``_crop`` does; ``crops`` [B * V, 5] are on the images' device. Return C planes."""
    rows, columns = _taps(crops, images.shape[1], out_size, kernel, dense=True)
    x = images.permute(0, 1, 3, 2).to(torch.float32, memory_format=torch.contiguous_format)
    # The division is in the row matrices, which are smaller than the images.
    return pixels.transform_rows(x, rows.weights / divisor, columns.weights).unbind(2)


def _taps(
    crops: Tensor, stored_size: int, out_size: int, kernel: pixels.Kernel, dense: bool = False
) -> tuple[pixels.Taps, pixels.Taps]:
    """Compute how each crop, [B, 5], is resized: by rows, and by columns with the flip; see ``interpolation_taps``."""
    top, left, height, width, flip = crops.unbind(1)
    start, length, mirrored = (
        torch.cat([top, left]),
        torch.cat([height, width]),
        torch.cat([torch.zeros_like(flip), flip]),
    )
    taps = pixels.interpolation_taps(start, length, mirrored > 0, stored_size, out_size, kernel, dense)
    rows, columns = (pixels.Taps(*parts) for parts in zip(*(values.chunk(2) for values in taps), strict=True))
    return rows, columns

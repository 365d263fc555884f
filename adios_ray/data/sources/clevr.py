"""CLEVR: multi-label classification of 24 combinations of color and shape, with instance maps where masks are released.

The whole picture is squeezed into a square, which then counts as the original, as in the authors' code: the central
square of a wide picture would lose objects that the labels name. Masks are squeezed in the same way.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adios_ray.console import counted
from adios_ray.data.decode import decode
from adios_ray.data.shards import Bytes
from adios_ray.data.sources.base import WHOLE, ListedSource, Sample, file_status, listed
from adios_ray.data.sources.image_files import read_image_file
from adios_ray.data.splits import mixed
from adios_ray.errors import DatasetError, RefusedImageError

if TYPE_CHECKING:
    from torch import Tensor

COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SHAPES = ("cube", "sphere", "cylinder")
TRAIN_SHARE = 0.7
FOLDER = "CLEVR_v1.0"
_INDICES = {"train": "train_indices.pt", "test": "val_indices.pt"}


@dataclass(frozen=True, kw_only=True)
class Clevr(ListedSource):
    """CLEVR pictures with the classes of their objects. Items are paths relative to the root.

    Masks are ``masks/<picture>_<object>.png``; object 0 is the background. A class is color + 8 x shape.

    Attributes:
        kinds: Bit set of the classes in each picture.
        objects: Number of objects in each picture, where there are masks.
    """

    kinds: Mapping[str, int] = field(repr=False)
    objects: Mapping[str, int] = field(default_factory=dict, repr=False)
    multi_label: bool = True
    resize: str = WHOLE

    def stratum(self, item: str) -> str:
        """Name nothing: a picture has several classes."""
        return ""

    def beside(self, item: str) -> tuple[str, ...]:
        """Name the masks of a picture, which count as one file: there are eleven times as many."""
        return (_masks_of(Path(item).stem),) if self.has_instances else ()

    def files(self) -> Mapping[str, tuple[int, int]]:
        """Look up size and time of change of each file; of masks the sizes in all and the last change."""
        masks = _states_of_masks(self.root / "masks") if self.has_instances else {}
        return {name: masks.get(name, state) for name, state in super().files().items()}

    def load(self, item: str, image_size: int) -> Sample:
        """Load one picture squeezed to ``image_size`` pixels a side, with its classes and its instance map, if any.

        Raises:
            RefusedImageError: If the picture or a mask cannot be decoded.
        """
        pixels = decode(read_image_file(self.root / item), image_size).pixels
        kinds = np.array([self.kinds[item] >> kind & 1 for kind in range(len(self.classes))], np.uint8)
        instances = self._instances(item, image_size) if self.has_instances else None
        return Sample(pixels, kinds, instances, image_size, image_size)

    def _instances(self, item: str, image_size: int) -> Bytes:
        """Return the index of the object with the largest share of each pixel, uint8 [S, S]; 0 is the background."""
        name = Path(item).stem
        shares: list[Bytes] = []
        while (path := self.root / "masks" / f"{name}_{len(shares)}.png").is_file():
            shares.append(decode(read_image_file(path), image_size).pixels[:, :, 0])
        if not shares:
            raise RefusedImageError(f"has no mask masks/{name}_0.png")
        if (self.root / "masks" / f"{name}_{len(shares) + 1}.png").exists():
            raise RefusedImageError(f"lacks the mask {path.name}, though not the next one")
        if len(shares) <= self.objects[item]:
            raise RefusedImageError(
                f"lacks the mask {path.name}, though it has {counted(self.objects[item], 'object')}"
            )
        largest: Bytes = np.stack(shares).argmax(axis=0).astype(np.uint8)
        return largest


def _masks_of(picture: str) -> str:
    return f"masks/{picture}_*.png"


def _states_of_masks(folder: Path) -> dict[str, tuple[int, int]]:
    """Add up the sizes of each picture's masks, and find their last change."""
    states: dict[str, tuple[int, int]] = {}
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                name = _masks_of(entry.name.rpartition("_")[0])
                (size, changed_ns), (total, last) = file_status(entry), states.get(name, (0, 0))
                states[name] = (total + size, max(last, changed_ns))
    return states


def source(root: Path) -> Clevr:
    """Read CLEVR as released by its authors, or with masks as released by ADIOS' authors.

    - ``images/train``, ``images/val`` and ``scenes/CLEVR_train_scenes.json``, ``scenes/CLEVR_val_scenes.json``, below
      ``root`` or ``root/CLEVR_v1.0`` or ``root/clevr/CLEVR_v1.0``: 70,000 pictures for train, 15,000 for test.
    - ``images/<i>.png``, ``masks/<i>_<k>.png``, ``shape.pt`` and ``color.pt``, below ``root`` or ``root/clevr``: 70 %
      for train, 30 % for test, or by ``train_indices.pt`` and ``val_indices.pt`` if they exist.

    Raises:
        DatasetError: If neither layout is found, or its files are damaged.
    """
    for base in (root, root / FOLDER, root / "clevr" / FOLDER, root / "clevr"):
        if (base / "scenes").is_dir():
            return _of_scenes(base)
        if (base / "shape.pt").is_file():
            return _of_release(base)
    raise DatasetError(f"{root} holds neither CLEVR's scenes and images nor shape.pt, color.pt, images and masks")


def _of_scenes(base: Path) -> Clevr:
    """Read the release of CLEVR's authors."""
    items: dict[str, list[str]] = {}
    kinds: dict[str, int] = {}
    scenes = {name: f"scenes/CLEVR_{name}_scenes.json" for name in ("train", "val")}
    for split, name in (("train", "train"), ("test", "val")):
        path = base / scenes[name]
        try:
            for scene in json.loads(path.read_bytes())["scenes"]:
                item = f"images/{name}/{listed(scene['image_filename'], path)}"
                pairs = ((COLORS.index(thing["color"]), SHAPES.index(thing["shape"])) for thing in scene["objects"])
                bits = _bits(pairs, len(COLORS))
                if kinds.setdefault(item, bits) != bits:
                    raise DatasetError(f"{path} describes {item} twice, with different objects: remove one of them")
                items.setdefault(split, []).append(item)
        except DatasetError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(f"{path} is not a list of CLEVR's scenes: {error}") from error
    classes = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
    return Clevr(root=base.absolute(), classes=classes, items=items, kinds=kinds, described_in=tuple(scenes.values()))


def _bits(pairs: Iterable[tuple[int, int]], colors: int) -> int:
    """Encode (color, shape) pairs as a bit set of classes."""
    bits = 0
    for color, shape in pairs:
        bits |= 1 << (color + colors * shape)
    return bits


def _of_release(base: Path) -> Clevr:
    """Read the release of ADIOS' authors; its colors and shapes are undocumented numbers from 1, and 0 is no object."""
    shapes, colors = _tensor(base / "shape.pt"), _tensor(base / "color.pt")
    if shapes.ndim != 2 or shapes.shape != colors.shape or bool(((shapes == 0) != (colors == 0)).any()):
        raise DatasetError(f"{base}: shape.pt and color.pt do not describe the same objects")
    most_colors, most_shapes = int(colors.max()), int(shapes.max())
    rows = zip(colors.tolist(), shapes.tolist(), strict=True)
    kinds = {
        f"images/{number}.png": _bits(((c - 1, s - 1) for c, s in zip(*row, strict=True) if c), most_colors)
        for number, row in enumerate(rows)
    }
    objects = {item: int(number) for item, number in zip(kinds, (colors != 0).sum(dim=1), strict=True)}
    classes = tuple(f"color {c + 1} shape {s + 1}" for s in range(most_shapes) for c in range(most_colors))
    indices = _INDICES if (base / _INDICES["train"]).is_file() else {}
    return Clevr(
        root=base.absolute(),
        classes=classes,
        items=_release_splits(base, list(kinds), indices),
        has_instances=True,
        kinds=kinds,
        objects=objects,
        described_in=("shape.pt", "color.pt", *indices.values()),
    )


def _release_splits(base: Path, pictures: Sequence[str], indices: Mapping[str, str]) -> dict[str, list[str]]:
    if indices:
        return {split: _chosen(base / name, pictures) for split, name in indices.items()}
    order = mixed(pictures)
    train = round(TRAIN_SHARE * len(order))
    return {"train": order[:train], "test": order[train:]}


def _chosen(path: Path, pictures: Sequence[str]) -> list[str]:
    """Read which of the pictures are in a split."""
    indices = sorted(_tensor(path).flatten().tolist())
    if not indices or indices[0] < 0 or indices[-1] >= len(pictures):
        raise DatasetError(f"{path} does not name pictures out of {len(pictures)}")
    return [pictures[index] for index in indices]


def _tensor(path: Path) -> "Tensor":
    """Load a stored tensor of integers; ``weights_only`` keeps a hostile file from executing code."""
    import torch

    try:
        content = torch.load(path, weights_only=True)
        return torch.as_tensor(content).long()
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise DatasetError(f"{path} is not a stored tensor: {type(error).__name__}") from error

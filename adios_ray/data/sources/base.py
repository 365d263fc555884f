"""The interface between sources of images and ``prepare``: samples, the protocol, and a base for sources of files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

UNLABELED = "unlabeled"
"""Name of the split of images without labels, which only training uses; also of the one class of a flat folder."""
NO_LABEL = -1
"""Label of an image of that split."""


# These texts are part of the recipe in every manifest: another wording would make finished data sets another recipe's.
SHORT_SIDE = "short side to image_size, bicubic, antialiased; center crop"
"""How images that are already square are resized; the wording of schema version 1."""
WHOLE = "whole picture squeezed into a square, bicubic, antialiased"
PHOTOGRAPH = f"{WHOLE}; its height and width beside it"


@dataclass(frozen=True)
class Sample:
    """One decoded image with its label, instance map and original size.

    Attributes:
        image: RGB, uint8 [S, S, 3].
        label: Class index, or NO_LABEL where it is unknown; uint8 [C] of zeros and ones in a multi-label source.
        instances: Object index per pixel, uint8 [S, S], 0 = background; None where a source has no masks.
        height: Height in pixels of the upright original before it was squeezed; crops have its proportions.
        width: Width in pixels, likewise.
    """

    image: npt.NDArray[np.uint8]
    label: int | npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint8] | None
    height: int
    width: int


class Source(Protocol):
    """A deterministic, picklable listing of images that are decoded one at a time.

    Attributes:
        classes: Class names; the label is an index into them.
        multi_label: Whether an image may have any number of the classes.
        has_instances: Whether samples have instance maps.
        resize: How an image becomes a square, in the wording of the manifest.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102 - described above

    @property
    def multi_label(self) -> bool: ...  # noqa: D102 - described above

    @property
    def has_instances(self) -> bool: ...  # noqa: D102 - described above

    @property
    def resize(self) -> str: ...  # noqa: D102 - described above

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Return the item ids of each split, in an order that does not depend on the machine.

        Splits are train, val, test, UNLABELED, and any others that only an evaluation uses.
        """
        ...

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one item: the whole picture squeezed into a square of ``image_size`` pixels a side.

        Raises:
            RefusedImageError: If the item cannot be used, with the reason.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ListedSource:
    """Base of the sources that read files.

    Attributes:
        root: The folder of the files.
        classes: Class names.
        items: Items of each split; empty in a pickled copy, see ``__getstate__``.
        multi_label: Whether an image may have any number of the classes.
        has_instances: Whether samples have instance maps.
        resize: How an image becomes a square, in the wording of the manifest.
    """

    root: Path
    classes: tuple[str, ...]
    items: Mapping[str, Sequence[str]] = field(repr=False)
    multi_label: bool = False
    has_instances: bool = False
    resize: str = PHOTOGRAPH

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Return the items of each split."""
        return self.items

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the items: workers only decode, and a listing may have millions of entries."""
        return {**self.__dict__, "items": {}}

"""What every source of images offers to ``prepare``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class RefusedImageError(ValueError):
    """An image that cannot be used; the message is the reason that the manifest records."""


@dataclass(frozen=True)
class Sample:
    """One decoded image with what is known about it.

    Attributes:
        image: RGB, uint8 [S, S, 3].
        label: Class index, or uint8 [classes] of zeros and ones for a multi-label source.
        instances: Object index per pixel, uint8 [S, S], 0 = background; None where a source has no masks.
    """

    image: npt.NDArray[np.uint8]
    label: int | npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint8] | None


class Source(Protocol):
    """A deterministic, picklable listing of images that are decoded one at a time.

    Attributes:
        classes: Class names; the label is an index into them.
        multi_label: Whether an image carries any number of the classes.
        has_instances: Whether samples come with instance maps.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102 - described above

    @property
    def multi_label(self) -> bool: ...  # noqa: D102 - described above

    @property
    def has_instances(self) -> bool: ...  # noqa: D102 - described above

    def listing(self) -> Mapping[str, Sequence[str]]:
        """Item ids of each split (train, val, test), in an order that does not depend on the machine."""
        ...

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one item to ``image_size`` pixels a side.

        Raises:
            RefusedImageError: If the item cannot be used, with the reason.
        """
        ...

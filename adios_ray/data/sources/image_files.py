"""Image files with their classes: what most sources are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adios_ray.data.decode import DecodeOptions, decode
from adios_ray.data.sources.base import ListedSource, Sample
from adios_ray.errors import RefusedImageError


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ListedSource):
    """Image files, each of one class. Items are paths relative to the root.

    Attributes:
        labels: Index of the class by item, or by the folder that holds the item.
        options: Limits of decoding, and the range of 16-bit values.
    """

    labels: Mapping[str, int] = field(repr=False)
    options: DecodeOptions = DecodeOptions()

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one file: RGB, upright, the whole picture squeezed into a square (bicubic, antialiased).

        Raises:
            RefusedImageError: If the file cannot be decoded or a side has fewer than 8 pixels.
        """
        picture = decode(read_image_file(self.root / item), image_size, self.options)
        label = self.labels[item if item in self.labels else item.rpartition("/")[0]]
        return Sample(picture.pixels, label, None, picture.height, picture.width, picture.note)


def read_image_file(path: Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        RefusedImageError: If the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RefusedImageError(f"cannot be read: {error.strerror or error}") from error

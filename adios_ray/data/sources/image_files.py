"""Image files with their classes: what most sources are."""

import errno
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adios_ray.data.decode import DecodeOptions, decode
from adios_ray.data.sources.base import NO_LABEL, UNLABELED, ListedSource, Sample, content_checksum
from adios_ray.data.splits import folder_of
from adios_ray.errors import RefusedImageError
from adios_ray.store import Store

_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that concern one file; any other is of the storage."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ListedSource):
    """Image files with one class each. Items are paths relative to the root.

    Attributes:
        labels: Index of the class by item, or by the folder that holds the item.
        options: Limits of decoding, and the range of 16-bit values.
    """

    labels: Mapping[str, int] = field(repr=False)
    options: DecodeOptions = DecodeOptions()

    def stratum(self, item: str) -> str:
        """Name the class of an item; an item without a label has none."""
        label = self._label(item)
        return UNLABELED if label == NO_LABEL else self.classes[label]

    def load(self, item: str, image_size: int) -> Sample:
        """Decode one file: RGB, upright, the whole picture squeezed into a square (bicubic, antialiased).

        Raises:
            RefusedImageError: If the file cannot be decoded or a side has fewer than 8 pixels.
        """
        content = self._content(item)
        picture = decode(content, image_size, self.options)
        label, checksum = self._label(item), content_checksum(content)
        return Sample(picture.pixels, label, None, picture.height, picture.width, picture.note, checksum)

    def _content(self, item: str) -> bytes:
        """Read a file. Errors of remote storage are raised as they are: they say nothing about the image."""
        if self.uri is None:
            return read_image_file(self.root / item)
        try:
            return Store(self.uri).read(item)
        except FileNotFoundError as error:
            raise RefusedImageError("cannot be read: No such file or directory") from error

    def _label(self, item: str) -> int:
        return self.labels[item if item in self.labels else folder_of(item)]


def read_image_file(path: Path) -> bytes:
    """Read the bytes of an image file.

    Raises:
        RefusedImageError: If there is no such file, or it may not be read.
        OSError: If the storage fails, which says nothing about the image.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a device or a pipe may never end
            raise RefusedImageError("is not a regular file")
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise RefusedImageError(f"cannot be read: {error.strerror or error}") from error

"""Pictures for the tests of sources, as pixels and as files, and what a source reads from them."""

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from adios_ray.store import Store


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    """Draw random bytes."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def picture(seed: int, height: int = 12, width: int = 20) -> bytes:
    """Make a PNG of random pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def squeezed(content: bytes, size: int) -> npt.NDArray[np.int64]:
    """Decode and squeeze a picture as a plain loop would."""
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.int64)


def labels_of(read: Any, split: str) -> list[int]:
    """Labels of a split in the order of the listing, after the journey to a worker."""
    sent = pickle.loads(pickle.dumps(read))
    return [sent.load(item, 16).label for item in read.listing()[split]]


def upload(directory: Path, uri: str) -> None:
    """Copy the files below a directory to a URI."""
    store = Store(uri)
    for path in directory.rglob("*"):
        if path.is_file():
            with store.writing(path.relative_to(directory).as_posix()) as target:
                shutil.copy(path, target)

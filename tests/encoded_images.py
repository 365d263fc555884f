"""Encoded pictures, and an S3 server, for the tests of sources that read larger files."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import numpy.typing as npt
import pytest
from fsspec import get_filesystem_class
from moto.server import ThreadedMotoServer
from PIL import Image

from adios_ray.data.store import Store

BUCKET = "images"


def picture(seed: int, height: int = 12, width: int = 20) -> bytes:
    """Make a PNG of random pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def squeezed(content: bytes, size: int) -> npt.NDArray[np.int64]:
    """Decode and squeeze a picture as a plain loop would."""
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.int64)


@contextmanager
def s3_server() -> Iterator[str]:
    """URI of an empty bucket, on a server that the environment names."""
    http = ThreadedMotoServer(port=0)
    http.start()
    host, port = http.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        get_filesystem_class("s3").clear_instance_cache()  # those of another test's server
        yield f"s3://{BUCKET}"
        get_filesystem_class("s3").clear_instance_cache()
    http.stop()


def upload(directory: Path, uri: str) -> None:
    """Copy the files below a directory to a URI."""
    store = Store(uri)
    for path in directory.rglob("*"):
        if path.is_file():
            with store.writing(path.relative_to(directory).as_posix()) as target:
                shutil.copy(path, target)

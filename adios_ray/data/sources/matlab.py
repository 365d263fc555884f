"""Reading of MATLAB .mat files."""

from pathlib import Path
from typing import Any

from adios_ray.errors import DatasetError


def read_mat(path: Path, *names: str) -> list[Any]:
    """Read the named arrays from a .mat file, flattened to vectors.

    Raises:
        DatasetError: If the file is damaged, or lacks one of them.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path)
        return [content[name].ravel() for name in names]
    except OSError:
        raise
    except Exception as error:  # scipy raises almost any exception on a damaged file
        raise DatasetError(f"{path} is damaged, or lacks one of {', '.join(names)} ({type(error).__name__})") from error

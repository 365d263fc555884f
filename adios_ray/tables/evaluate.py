"""The evaluations that tables use, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def evaluate(kind: str, checkpoint: Path, data: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, float]:
    """Evaluate a checkpoint and return its scores by name."""
    return _KINDS[kind](checkpoint, data, **options)


def _nothing(checkpoint: Path, data: Mapping[str, str]) -> dict[str, float]:
    return {}


_KINDS: Mapping[str, Callable[..., dict[str, float]]] = {"nothing": _nothing}

"""ADIOS (adversarial masking for self-supervised learning) with population based training on Ray."""

from typing import TYPE_CHECKING, Any

from adios_ray.errors import (
    AdiosRayError,
    CheckpointError,
    ClaimError,
    ConfigError,
    DatasetError,
    EvaluationError,
    FaultError,
    InputError,
    MemoryLimitError,
    NodeError,
    RecordError,
    RunError,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    from adios_ray.api import evaluate, load_encoder, load_occlusion_model, load_run, train

__version__ = "0.1.0"
__all__ = [
    "AdiosRayError",
    "CheckpointError",
    "ClaimError",
    "ConfigError",
    "DatasetError",
    "EvaluationError",
    "FaultError",
    "InputError",
    "MemoryLimitError",
    "NodeError",
    "RecordError",
    "RunError",
    "StorageError",
    "UsageError",
    "evaluate",
    "load_encoder",
    "load_occlusion_model",
    "load_run",
    "train",
]

if not TYPE_CHECKING:  # a type checker would take every misspelled name for one that this function knows

    def __getattr__(name: str) -> Any:
        """Import the functions at their first use: "import adios_ray" alone stays fast."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from adios_ray import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        """List the functions, too, for completion."""
        return sorted({*globals(), *__all__})

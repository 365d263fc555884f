"""Text for values, names and durations."""

from typing import Any

SLOTS = "masking.slots"
LABELS = {
    SLOTS: "N",
    "masking.sparsity_weight": "lambda",
    "optimizer.encoder_lr": "encoder lr",
    "optimizer.occlusion_lr": "occlusion lr",
}
"""Short names of searched values by configuration path; other values are shown under their paths."""
HEADINGS = {
    SLOTS: "Number of masks N",
    "masking.sparsity_weight": "Sparsity weight λ",
    "optimizer.encoder_lr": "Encoder learning rate",
    "optimizer.occlusion_lr": "Occlusion learning rate",
}
"""Their names in headings."""


def label(path: str) -> str:
    """Name a searched value by its configuration path."""
    return LABELS.get(path, path)


def symbol(path: str) -> str:
    """Name a searched value as ``label`` does, with λ as a letter, where any letter can be shown."""
    return label(path).replace("lambda", "λ")


def value_text(value: Any) -> str:
    """Write a searched value, floating-point numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Write seconds as "42 s", "12 min 5 s" or "3 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"

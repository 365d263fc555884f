"""timm, imported without wandb.

Where wandb is installed timm imports it, for a helper of its own training script. That costs a worker a second, and two
empty temporary directories that stay behind when the worker is killed.
"""

import sys

_hidden = "wandb" not in sys.modules
if _hidden:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
try:
    import timm
    import timm.optim
finally:
    if _hidden:
        del sys.modules["wandb"]

__all__ = ["timm"]

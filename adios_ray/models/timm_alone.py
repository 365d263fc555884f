"""Import of timm without wandb.

If wandb is installed, timm imports it for a helper of its own training script. That costs each worker a second, and
leaves two empty temporary directories behind when the worker is killed.
"""

import sys

_hidden = "wandb" not in sys.modules
if _hidden:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # makes "import wandb" raise ImportError
try:
    import timm
    import timm.optim
finally:
    if _hidden:
        del sys.modules["wandb"]

__all__ = ["timm"]

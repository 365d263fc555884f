"""The device of a process that chooses one by itself; workers of a trial take what Ray gives them."""

import torch


def best_device() -> torch.device:
    """Return the first GPU where torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

"""The device of commands that run in one process; a trial's workers use the device that Ray assigns."""

import torch


def best_device() -> torch.device:
    """Return the first GPU if torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

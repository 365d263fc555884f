"""The largest tensor of a computation."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation allocates; views do not count."""

    def __init__(self) -> None:
        """Start from zero."""
        TorchDispatchMode.__init__(self)
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and measure its outputs."""
        outputs = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [output.numel() for output in tree_iter(outputs) if isinstance(output, Tensor)]
            self.elements = max([self.elements, *sizes])
        return outputs

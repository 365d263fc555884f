"""BatchNorm of several views of the same images in one batch, each normalized by its own statistics.

Masked views of different slots pass through the encoder at once; each is normalized as if it were alone. Statistics are
those of this worker's images, or of all workers' (``sync_batch_norm``).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from adios_ray import parallel


class _SlotNorm(_BatchNorm):
    """BatchNorm over groups of consecutive images; parameters and state are those of the class it replaces.

    Attributes:
        groups: Number K of groups in a batch of K B images; 1 is BatchNorm.
        synchronized: Whether each group's statistics are those of all workers' images.
    """

    groups: int
    synchronized: bool

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [K * B, C, ...]; running statistics move as if the groups came one after the other."""
        shared = self.synchronized and parallel.has_others()
        if not self.training or (self.groups == 1 and not shared):
            return super().forward(x)
        # A worker that measures a step alone takes the same way as in training, since the other needs less memory.
        by_statistics = shared or torch.compiler.is_compiling()
        normalized = self._by_statistics(x) if by_statistics else self._by_parts(x)
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(self.groups)
        return normalized

    def _by_parts(self, x: Tensor) -> Tensor:
        """Apply torch's own kernel to each group."""
        assert self.momentum is not None
        statistics = self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        return torch.cat([functional.batch_norm(part, *statistics) for part in x.chunk(self.groups)])

    def _by_statistics(self, x: Tensor) -> Tensor:
        """Reduce and normalize all groups at once, which a compiler fuses into as many kernels as for one group."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        apart = x.unflatten(0, (self.groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
        dimensions = [1, *range(3, apart.ndim)]
        variance, mean = torch.var_mean(apart, dim=dimensions, correction=0, keepdim=True)
        count = apart.numel() // (self.groups * x.shape[1])
        if self.synchronized and parallel.world_size() > 1:
            mean, variance = _over_workers(mean, variance)
            count *= parallel.world_size()
        shape = (1, 1, -1, *[1] * (x.ndim - 2))
        normalized = (apart - mean) * torch.rsqrt(variance + self.eps)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        with torch.no_grad():
            for group in range(self.groups):
                self.running_mean.lerp_(mean[group].flatten(), self.momentum)
                self.running_var.lerp_(variance[group].flatten() * (count / (count - 1)), self.momentum)
        flat: Tensor = normalized.flatten(0, 1).to(x.dtype)
        return flat


def _over_workers(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the workers' statistics of equally many images, with gradient, by one exchange (Chan et al. 1979)."""
    # Not by sums of squares, whose difference would lose the digits of channels with a large mean.
    means, variances = parallel.gather_with_gradient(torch.stack([mean, variance])[None]).unbind(dim=1)
    return means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)


class SlotNorm1d(_SlotNorm, nn.BatchNorm1d):
    """BatchNorm1d over groups."""


class SlotNorm2d(_SlotNorm, nn.BatchNorm2d):
    """BatchNorm2d over groups."""


_CLASSES: dict[type[nn.Module], type[_SlotNorm]] = {nn.BatchNorm1d: SlotNorm1d, nn.BatchNorm2d: SlotNorm2d}


def use_slot_norms(module: nn.Module) -> bool:
    """Let a module normalize groups of images by themselves, in place.

    Returns:
        Whether it can: False where it has norms over the batch of other kinds, such as timm's with activations.
    """
    norms = [own for own in module.modules() if isinstance(own, _BatchNorm)]
    for norm in norms:
        if type(norm) in _CLASSES and norm.track_running_stats and norm.momentum is not None:
            norm.__class__ = _CLASSES[type(norm)]  # a new instance would need its parameters, hooks and state moved
            assert isinstance(norm, _SlotNorm)
            # Of the instance from the beginning: an attribute that appears later invalidates what has been compiled.
            norm.groups, norm.synchronized = 1, False
    return all(isinstance(norm, _SlotNorm) for norm in norms)


@contextmanager
def grouped(module: nn.Module, groups: int, synchronized: bool = False) -> Iterator[None]:
    """Normalize batches of ``groups`` views by themselves inside the block, over all workers if ``synchronized``."""
    changed = groups > 1 or synchronized
    norms = [norm for norm in module.modules() if isinstance(norm, _SlotNorm)] if changed else []
    for norm in norms:
        norm.groups, norm.synchronized = groups, synchronized
    try:
        yield
    finally:
        for norm in norms:
            norm.groups, norm.synchronized = 1, False

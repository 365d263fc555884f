"""Non-finite losses and gradients: updates that they stop, without waiting for the device, and what reproduces them.

A step records on the device whether its terms are finite, and optimizers skip their updates where one is not
(``found_inf``). The host reads the terms of a step while the device computes the next one.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adios_ray import parallel
from adios_ray.data.loader import Batch


class Terms(NamedTuple):
    """The terms of a step that must be finite, means over the workers: not finite wherever one worker's term is.

    Attributes:
        losses: Objective of each slot that was embedded, [K]; of the passes of an alternating step, [2, K].
        penalties: Sparsity term of each slot, [N]; [1] without masks.
        gradients: Largest absolute value of the gradients of each of ``TRAINED``, [G]; a finite loss may have others.
    """

    losses: Tensor
    penalties: Tensor
    gradients: Tensor

    def found_inf(self) -> Tensor:
        """Tell on the device whether any term is not finite: 1.0 or 0.0, float32."""
        return (~torch.cat([values.flatten() for values in self]).isfinite()).any().float()

    def fault(self) -> str | None:
        """Name the first term that is not finite; None if all are. Waits for the device."""
        for kind, values in (("objective", self.losses), ("penalty", self.penalties)):
            for turn in values.reshape(-1, values.shape[-1]).tolist():
                for slot, value in enumerate(turn):
                    if not math.isfinite(value):
                        return f"{kind} of slot {slot} is {value}"
        for trained, value in zip(TRAINED, self.gradients.tolist(), strict=False):
            if not math.isfinite(value):
                return f"a gradient of the {trained} is {value}"
        return None

    def encoder_moved(self) -> bool:
        """Tell whether the encoder has moved in the step nevertheless: its own pass of an alternating step was finite.

        Waits for the device.
        """
        own = [self.losses[0], self.penalties, self.gradients[:2]]
        return self.losses.ndim == 2 and all(bool(values.isfinite().all()) for values in own)


TRAINED = ("encoder", "probe", "occlusion model")
"""In the order of ``Terms.gradients``, of which the last is missing where no masks are learned."""


def largest(gradients: list[Tensor]) -> Tensor:
    """Compute the largest absolute value of some gradients, [1]; nan if one is nan."""
    return torch.stack(torch._foreach_norm(gradients, math.inf)).amax().reshape(1)


class Failure(NamedTuple):
    """The first step with a term that is not finite.

    Attributes:
        step: Its number.
        fault: The term, by name and value.
        batch: The batch that it was taken on.
        encoder_moved: Whether the encoder had moved before the term was computed.
    """

    step: int
    fault: str
    batch: Batch
    encoder_moved: bool


class DivergenceWatch:
    """Looks for terms that are not finite, one step late, so that the host never waits for the step it has queued."""

    def __init__(self) -> None:
        """Start with no step to look at."""
        self._pending: tuple[int, Batch, Terms, torch.cuda.Event | None] | None = None

    def follow(self, step: int, batch: Batch, terms: Terms) -> Failure | None:
        """Look at the terms of the previous step, and keep those of this one."""
        failure = self.last()
        copied = None
        if terms.losses.is_cuda:
            terms = Terms(*(values.to("cpu", non_blocking=True) for values in terms))
            copied = torch.cuda.Event()
            copied.record()
        self._pending = step, batch, terms, copied
        return failure

    def last(self) -> Failure | None:
        """Look at the terms of the last step that was followed."""
        if self._pending is None:
            return None
        step, batch, terms, copied = self._pending
        self._pending = None
        if copied is not None:
            copied.synchronize()
        fault = terms.fault()
        return None if fault is None else Failure(step, fault, batch, terms.encoder_moved())


def batch_state(batch: Batch) -> dict[str, Any]:
    """Gather the global batch, to be saved with a trainer's state; the module seed is this worker's own."""
    return {
        name: _gathered(values, len(batch.a)) if isinstance(values, Tensor) else values
        for name, values in batch._asdict().items()
    }


def _gathered(values: Tensor, images: int) -> Tensor:
    """Gather the rows of all workers; masks of two views stay in the order of views first, then images."""
    return torch.cat([parallel.gather_with_gradient(view) for view in values.split(images)])

"""SGD with momentum, and LARS: SGD whose learning rate is adapted to each layer (You et al. 2017)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adios_ray.config import LARS_TRUST

EPSILON = 1e-8


class SGD(Optimizer):
    """Equal to torch's fused SGD with momentum, and to timm's Lars in groups whose ``always_adapt`` is True.

    There each layer's update is scaled by the ratio of the norms of weights and gradient, in few calls for all layers.
    As in torch's fused optimizers, the learning rate may be a tensor on the device, and a step changes nothing where
    ``found_inf`` is 1. Other than in torch's SGD, momentum begins at 0, so that a first step that is skipped leaves
    nothing undefined; and a step does not import ``torch.compile``'s front end (``leave_out_dynamo``).

    Attributes:
        found_inf: Scalar on the device: 1 skips the next steps, 0 does not; None is as 0.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[Any], lr: float | Tensor, momentum: float) -> None:
        """Build for parameters or groups of them."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "always_adapt": False})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint; those of earlier versions are of torch's SGD, which knows no adaptation."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("always_adapt", False)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # takes no closure
        """Update all parameters that have gradients."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients, decay = [p.grad for p in parameters], group["weight_decay"]
            if group["always_adapt"]:
                gradients, decay = _adapted(parameters, gradients, group["lr"], decay), 0.0
            for p in parameters:
                if not group["momentum"]:
                    self.state[p].pop("momentum_buffer", None)  # it would be old where momentum returns
                elif "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            torch._fused_sgd_(
                parameters,
                gradients,
                [self.state[p]["momentum_buffer"] for p in parameters] if group["momentum"] else [],
                weight_decay=decay,
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                found_inf=self.found_inf,
            )


def _adapted(
    parameters: list[Tensor], gradients: list[Tensor], lr: float | Tensor, weight_decay: float
) -> list[Tensor]:
    """Add weight decay and scale each layer's gradient, at most to itself: its own learning rate is at most ``lr``."""
    weights, slopes = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(gradients))
    trust = LARS_TRUST * weights / (slopes + weight_decay * weights + EPSILON)
    ratio = torch.where((weights > 0) & (slopes > 0), trust, 1.0).div(lr).clamp(max=1.0)
    adapted = list(torch._foreach_add(gradients, parameters, alpha=weight_decay))
    # One launch a layer: few launches multiply lists only by numbers of the host, or by tensors of the same shapes.
    torch._foreach_mul_(adapted, ratio.unbind())
    return adapted

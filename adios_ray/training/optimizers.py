"""Optimizers of both players and the probe, and their learning rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from adios_ray.config import PROBE_LR, OptimizerConfig
from adios_ray.models.networks import Networks
from adios_ray.training.sgd import SGD

ADAM_BETA2 = 0.999


@dataclass(frozen=True)
class LearningRateSchedule:
    """Linear warm-up, then cosine decay to zero.

    Attributes:
        total_steps: Optimizer steps of the whole training.
        warmup_steps: Steps of the warm-up.
        start_lr: Learning rate of the first warm-up step.
    """

    total_steps: int
    warmup_steps: int
    start_lr: float

    def lr(self, peak: float, step: int) -> float:
        """Compute the learning rate of ``step`` (from 0) for a peak learning rate."""
        if step < self.warmup_steps:
            start = min(self.start_lr, peak)
            return start + (peak - start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return peak * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def make_schedule(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> LearningRateSchedule:
    """Convert the configured schedule from epochs to steps; the warm-up takes at most half of the training."""
    total = epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)
    return LearningRateSchedule(total, warmup, config.warmup_start_lr)


@dataclass
class Optimizers:
    """One optimizer for each player, and one for the probe.

    Attributes:
        encoder: Backbone, projector and predictor; two parameter groups, with and without weight decay, and two more
            for a predictor with its own schedule.
        occlusion: The occlusion model; None without masks.
        probe: The online probe.
        found_inf: 1 on the device from the first step on whose loss, penalty or gradient is not finite, else 0; while
            it is 1, no optimizer moves anything.
    """

    encoder: Optimizer
    occlusion: Optimizer | None
    probe: Optimizer
    found_inf: Tensor

    def __post_init__(self) -> None:
        """Let all optimizers read the same flag, as torch's gradient scaler does."""
        for optimizer in self.all().values():
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]  # torch reads it by this name

    def set_learning_rates(self, encoder_lr: float, occlusion_lr: float, predictor_lr: float | None = None) -> None:
        """Set the learning rates of the next step; None gives the predictor the encoder's."""
        networks, predictor = self.encoder.param_groups[:2], self.encoder.param_groups[2:]
        masks = self.occlusion.param_groups if self.occlusion else []
        own_lr = encoder_lr if predictor_lr is None else predictor_lr
        for groups, lr in ((networks, encoder_lr), (predictor, own_lr), (masks, occlusion_lr)):
            for group in groups:
                group["lr"] = lr

    @property
    def updates(self) -> Tensor:
        """1 on the device while steps update the networks, 0 from a divergence on; a factor of what follows them."""
        return 1 - self.found_inf.double()  # in double precision: factors near 0 are multiplied with it

    def adapt(self, config: OptimizerConfig) -> None:
        """Set momentum and weight decay of both players from the next step on; norms and biases still have no decay."""
        for optimizer in (self.encoder, self.occlusion):
            for group in optimizer.param_groups if optimizer else []:
                group.update(_momentum(config))
            # build_optimizer makes groups in pairs: those at even positions are decayed.
            for group in optimizer.param_groups[::2] if optimizer else []:
                group["weight_decay"] = config.weight_decay

    def all(self) -> dict[str, Optimizer]:
        """Return the optimizers that exist, by name."""
        named = {"encoder": self.encoder, "occlusion": self.occlusion, "probe": self.probe}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}


def build_optimizers(networks: Networks, config: OptimizerConfig) -> Optimizers:
    """Build the configured optimizer for each player, and SGD with a fixed learning rate for the probe."""
    occlusion = networks.occlusion
    encoder = [list(networks.encoder_parameters())]
    if networks.config.constant_predictor_lr:
        predictor = list(networks.objective.predictor.parameters())
        own = {id(parameter) for parameter in predictor}  # by identity: "in" would compare tensors by value
        encoder = [[p for p in networks.encoder_parameters() if id(p) not in own], predictor]
    return Optimizers(
        encoder=build_optimizer(encoder, config),
        occlusion=None if occlusion is None else build_optimizer([occlusion.parameters()], config),
        probe=SGD(networks.probe.parameters(), lr=PROBE_LR, momentum=0.9),
        found_inf=torch.zeros((), device=networks.probe.weight.device),
    )


def build_optimizer(parts: Iterable[Iterable[nn.Parameter]], config: OptimizerConfig) -> Optimizer:
    """Build SGD, LARS or AdamW, with weight decay on matrices and kernels but not on norms and biases.

    LARS (You et al. 2017) is configured as in the authors' code, for both players: trust coefficient 0.02, the
    layer-wise learning rate clipped to the learning rate, norms and biases updated as in SGD.

    Args:
        parts: Parameters that share a learning rate; each part becomes two groups, with and without weight decay.
        config: Optimizer and hyperparameters.
    """
    groups: list[dict[str, Any]] = []
    for parameters in map(list, parts):
        groups.append({"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay})
        groups.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0})
    if config.name == "adamw":
        return AdamW(groups, lr=config.encoder_lr, **_momentum(config), fused=True)
    for group in groups[::2]:
        # Whatever the weight decay, which a search may set to 0.
        group["always_adapt"] = config.name == "lars"
    return SGD(groups, lr=config.encoder_lr, **_momentum(config))


def load_moments(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, whatever the memory layout of the weights that it was saved with.

    Raises:
        ValueError: If the state is that of other parameter groups.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, values in moments.items():
            moment = isinstance(values, Tensor) and values.shape == parameter.shape
            # Fused optimizers read both as flat memory.
            if moment and values.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(values)


def _momentum(config: OptimizerConfig) -> dict[str, Any]:
    """Return the configured momentum under the optimizer's own name for it."""
    return {"betas": (config.momentum, ADAM_BETA2)} if config.name == "adamw" else {"momentum": config.momentum}

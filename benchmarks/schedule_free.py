"""Schedule-free AdamW (Defazio et al. 2024): a rival that needs neither a search nor the length of the training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from schedulefree import AdamWScheduleFree
from torch.optim import Optimizer

from adios_ray.config import TrialConfig
from adios_ray.training.graphs import step_function
from adios_ray.training.optimizers import LearningRateSchedule, Optimizers
from adios_ray.training.trainer import Trainer


@dataclass(frozen=True)
class ConstantRate(LearningRateSchedule):
    """The peak learning rate throughout: the optimizer warms up by itself."""

    def lr(self, peak: float, step: int) -> float:
        """Return the peak."""
        return peak


class ScheduleFreeTrainer(Trainer):
    """Trains both players by schedule-free AdamW; between reports, networks hold the averaged weights."""

    def __init__(self, config: TrialConfig, device: torch.device) -> None:
        """See ``Trainer``; the learning rates are those of AdamW."""
        super().__init__(config, device)
        own, warmup = self.optimizers, self.schedule.warmup_steps
        self.schedule = ConstantRate(self.schedule.total_steps, 0, 0.0)
        self.optimizers = Optimizers(
            encoder=_schedule_free(own.encoder, warmup),
            occlusion=None if own.occlusion is None else _schedule_free(own.occlusion, warmup),
            probe=own.probe,
            found_inf=own.found_inf,
        )
        self._take_step = step_function(self.networks, self.optimizers, config)

    def _adapt(self, config: TrialConfig) -> None:
        """Keep the optimizers and the rate after loading a checkpoint: nothing changes in mid-training."""

    def train_until(self, step: int) -> dict[str, float]:
        """See ``Trainer.train_until``."""
        players = [cast(AdamWScheduleFree, p) for p in (self.optimizers.encoder, self.optimizers.occlusion) if p]
        for player in players:
            player.train()  # gradients are taken between the averaged weights and the fast ones
        try:
            return super().train_until(step)
        finally:
            for player in players:
                player.eval()


def _schedule_free(optimizer: Optimizer, warmup_steps: int) -> Optimizer:
    """Take over an optimizer's parameters, in its groups with and without weight decay."""
    groups: Sequence[dict[str, object]] = [
        {key: group[key] for key in ("params", "weight_decay")} for group in optimizer.param_groups
    ]
    made: Optimizer = AdamWScheduleFree(groups, warmup_steps=warmup_steps)
    return made

"""All networks that one trial trains, and how a view is embedded."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from adios_ray.config import TrialConfig
from adios_ray.masking.occlusion import OcclusionModel
from adios_ray.models.backbones import build_backbone
from adios_ray.objectives import View, build_objective


class Networks(nn.Module):
    """The encoder (backbone, heads), its momentum copy, the occlusion model and the online probe.

    Attributes:
        backbone: Image encoder f.
        objective: Projector g and predictor q with the comparison of views.
        momentum: Averaged copies of backbone and projector, or None.
        occlusion: The occlusion model M, or None without masks.
        probe: Linear classifier on detached features; it measures, and teaches nobody.
    """

    def __init__(self, config: TrialConfig, image_size: int, classes: int) -> None:
        """Initialise from torch's global generator."""
        super().__init__()
        self.config = config
        self.backbone, self.features = build_backbone(config.backbone, image_size)
        self.objective = build_objective(config.objective, self.features)
        self.momentum: nn.ModuleDict | None = None
        if self.objective.uses_momentum:
            copies = {"backbone": self.backbone, "projector": self.objective.projector}
            self.momentum = nn.ModuleDict(copy.deepcopy(copies)).requires_grad_(False)
        masking = config.masking
        self.occlusion: OcclusionModel | None = None
        if masking.scheme != "none":
            self.occlusion = OcclusionModel(image_size, masking.slots, masking.width, masking.norm)
        self.probe = nn.Linear(self.features, classes)

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """What the encoder's player owns: backbone, projector, predictor."""
        yield from self.backbone.parameters()
        yield from self.objective.parameters()

    def embed(self, x: Tensor) -> tuple[View, Tensor]:
        """Embed one view, with gradient.

        Args:
            x: Normalised, possibly masked images [B, 3, S, S].

        Returns:
            The view (online and target, [B, D], at least single precision) and detached features [B, F].
        """
        with self.autocast(x.device):
            features = self.backbone(x)
            projection = self.objective.projector(features)
            online = self.objective.predictor(projection)
            target = projection.detach() if self.momentum is None else self._momentum_projection(x)
        return View(_full(online), _full(target)), _full(features.detach())

    @torch.no_grad()
    def _momentum_projection(self, x: Tensor) -> Tensor:
        assert self.momentum is not None
        projection: Tensor = self.momentum["projector"](self.momentum["backbone"](x))
        return projection

    def occlude(self, x: Tensor) -> Tensor:
        """Masks [B, N, S, S] for images [B, 3, S, S]."""
        assert self.occlusion is not None
        with self.autocast(x.device):
            masks: Tensor = self.occlusion(x)
        return masks

    def autocast(self, device: torch.device) -> torch.autocast:
        """The configured precision of forward passes."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @torch.no_grad()
    def update_momentum(self, progress: float) -> None:
        """Average the encoder into its copy: m rises from its start to 1 on a cosine (paper, Appendix A).

        Args:
            progress: Share of the training that is done, 0 to 1.
        """
        if self.momentum is None:
            return
        start = self.config.objective.momentum_start
        momentum = 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
        online: list[Tensor] = [*self.backbone.parameters(), *self.objective.projector.parameters()]
        averaged: list[Tensor] = list(self.momentum.parameters())
        torch._foreach_lerp_(averaged, online, 1 - momentum)


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values

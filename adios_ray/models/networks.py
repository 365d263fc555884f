"""All networks of one trial, and the forward passes through them."""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from adios_ray import parallel
from adios_ray.config import TrialConfig
from adios_ray.devices import native_bfloat16
from adios_ray.errors import ConfigError
from adios_ray.masking.fill import hide
from adios_ray.masking.occlusion import OcclusionModel
from adios_ray.models.backbones import build_backbone
from adios_ray.models.slot_norm import grouped, use_slot_norms
from adios_ray.objectives import Embedding, Objective, objective_class

_VARIANTS = 64
"""Compiled variants of one part, at most."""


class View(NamedTuple):
    """A view to embed.

    Attributes:
        x: Normalized images [B, 3, S, S].
        mask: Mask [B, 1, S, S] in [0, 1], where 1 removes the pixel; None masks nothing.
        fill: What removed pixels become, [B, 3, S, S]; None makes them 0.
    """

    x: Tensor
    mask: Tensor | None = None
    fill: Tensor | None = None


class Networks(nn.Module):
    """The encoder (backbone, heads), its momentum copy, the occlusion model and the online probe.

    Attributes:
        backbone: Image encoder f.
        objective: Projector g and predictor q with the comparison of views.
        momentum: Averaged copies of backbone and projector, or None.
        occlusion: The occlusion model M, or None without masks.
        probe: Linear classifier on detached features: a measurement, from which no gradient reaches the backbone.
        slots_at_once: Slots of an image whose masked views are embedded in one batch; results do not depend on it.
        averaged: Means of the weights of backbone and probe over the last steps, for evaluations; or None. BatchNorm
            statistics of this backbone are those of the last evaluation.
    """

    def __init__(
        self, config: TrialConfig, image_size: int, classes: int, objective: type[Objective] | None = None
    ) -> None:
        """Initialize from torch's global generator.

        Args:
            config: The trial's configuration.
            image_size: Side S of the images in pixels.
            classes: Classes of the probe.
            objective: Class of the objective; None takes the one that the configuration names.
        """
        super().__init__()
        self.config = config
        self.backbone, self.features = build_backbone(config.backbone, image_size)
        build = objective or objective_class(config.objective.name)
        self.objective = build(config.objective, self.features, image_size)
        self.slots_at_once = config.slots_at_once or 1
        # Before the copies below are made. Both are converted, whatever the first says.
        converted = [use_slot_norms(part) for part in (self.backbone, self.objective)]
        shuffled = self.objective.shuffles_targets and self.objective.uses_masked_targets
        self.can_batch_slots = all(converted) and not shuffled and config.micro_batch_size is None
        if self.slots_at_once > 1 and not self.can_batch_slots:
            raise ConfigError(
                f"slots_at_once {self.slots_at_once}: {config.backbone.name} with {config.objective.name} cannot "
                "normalize views of one batch by themselves, or micro_batch_size is set: leave slots_at_once out"
            )
        if config.sync_batch_norm and not (all(converted) and self.batch_norm):
            raise ConfigError(
                f"sync_batch_norm: {config.backbone.name} with {config.objective.name} has no BatchNorm, or one that "
                "workers cannot share: leave sync_batch_norm out"
            )
        self.momentum: nn.ModuleDict | None = None
        if self.objective.uses_momentum:
            copies = {"backbone": self.backbone, "projector": self.objective.projector}
            self.momentum = nn.ModuleDict(copy.deepcopy(copies)).requires_grad_(False)
        masking = config.masking
        self.occlusion: OcclusionModel | None = None
        if masking.learned:
            self.occlusion = OcclusionModel(image_size, masking.slots, masking.width, masking.norm, masking.levels)
        self.probe = nn.Linear(self.features, classes)
        self.averaged: nn.ModuleDict | None = None
        if config.evaluation.average_weights:
            averaged = {"backbone": self.backbone, "probe": self.probe}
            self.averaged = nn.ModuleDict(copy.deepcopy(averaged)).requires_grad_(False)

    def adapt(self, config: TrialConfig) -> None:
        """Continue under a configuration that differs in ``ADAPTABLE`` values; masks are resized by the trainer."""
        self.config, self.objective.config = config, config.objective

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the encoder's player: backbone, projector, predictor."""
        yield from self.backbone.parameters()
        yield from self.objective.parameters()

    def choose_layouts(self, device: torch.device, compiled: bool) -> None:
        """Store weights in the memory layouts that are the fastest on a device, for parts that are compiled or not."""
        if self.config.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.occlusion is not None:
            self.occlusion.choose_layout(device, compiled)  # whatever the configuration says of the backbone

    def compile_parts(self) -> None:
        """Compile the backbones and the U-Net, in place: names in the state stay the same."""
        # Each number of views at once is a variant of the backbone, as is a frozen backbone. Beyond 8, by torch's
        # default, further ones would silently run without having been compiled.
        options: dict[str, Any] = {}
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            # The setting below is that of one thread there, and GPUs recompute micro-batches in another one.
            options["recompile_limit"] = _VARIANTS
        else:
            from torch._dynamo import config  # takes seconds, which trainings that compile nothing need not wait

            config.recompile_limit = max(config.recompile_limit, _VARIANTS)
        # Not the occlusion model's head: N may change while a trial trains, and each N would be compiled again.
        parts: list[nn.Module] = [self.backbone]
        if self.momentum is not None:
            parts.append(self.momentum["backbone"])
        if self.occlusion is not None:
            parts.append(self.occlusion.mask_encoder)
        if self.averaged is not None:
            parts.append(self.averaged["backbone"])
        for part in parts:
            part.compile(dynamic=False, **options)  # few shapes, each faster by itself than as a case of symbolic ones

    def embed(self, x: Tensor, mask: Tensor | None = None, target: Tensor | None = None) -> tuple[Embedding, Tensor]:
        """Embed one view, with gradient.

        Args:
            x: Normalized images [B, 3, S, S].
            mask: Mask [B, 1, S, S] in [0, 1], where 1 makes the pixel 0.
            target: The view's target, [B, D], if already known; computed if None.

        Returns:
            The embedding (online and target, [B, D], at least single precision) and detached features [B, F].
        """
        views, features = self._embed([View(x, mask)], None if target is None else [target])
        return views[0], features

    def embed_together(self, views: Sequence["View"], targets: Sequence[Tensor] | None = None) -> list[Embedding]:
        """Embed several views of the same images in one batch, with gradient.

        The results are those of ``embed`` view by view, up to rounding.

        Args:
            views: Views, masked or not, but not both among them.
            targets: Their targets, each [B, D], if already known.
        """
        return self._embed(views, targets)[0]

    def _embed(self, views: Sequence["View"], targets: Sequence[Tensor] | None) -> tuple[list[Embedding], Tensor]:
        """Embed views; return also the detached features of all."""
        shown = [x if mask is None else hide(x, mask, fill) for x, mask, fill in views]
        seen, masked = torch.cat(shown) if len(shown) > 1 else shown[0], views[0].mask is not None
        with self.autocast(seen.device), grouped(self, len(views), self.config.sync_batch_norm):
            features = self._in_parts(self.backbone, seen)
            projection = self.objective.projector(features)
            online = self.objective.predictor(projection)
            if targets is None:
                projected = projection.detach()
                if self.momentum is not None and (not masked or self.objective.uses_masked_targets):
                    with torch.no_grad():
                        shuffles = self.shuffles_targets
                        projected = parallel.shuffled(self._project, seen) if shuffles else self._project(seen)
                parts = _full(projected).chunk(len(views))
                targets = [self.objective.target(own, view.x) for own, view in zip(parts, views, strict=True)]
        pairs = zip(_full(online).chunk(len(views)), targets, strict=True)
        return [Embedding(*pair) for pair in pairs], _full(features.detach())

    def _project(self, x: Tensor) -> Tensor:
        """Project images by the momentum networks, [B, 3, S, S] to [B, D]."""
        assert self.momentum is not None
        projection: Tensor = self.momentum["projector"](self._in_parts(self.momentum["backbone"], x))
        return projection

    @property
    def shuffles_targets(self) -> bool:
        """Whether targets are computed in another order of the images: where BatchNorm sees a part of the batch."""
        in_parts = parallel.world_size() > 1 or self.config.micro_batch_size is not None
        return self.objective.shuffles_targets and in_parts

    @property
    def batch_norm(self) -> bool:
        """Whether any part that is trained normalizes over the images that are embedded at once."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    def _in_parts(self, module: nn.Module, x: Tensor) -> Tensor:
        """Apply a module to a batch, in micro-batches if configured.

        Only the output of a micro-batch is kept; its activations are computed again in the backward pass.
        """
        part = self.config.micro_batch_size or len(x)
        if len(x) <= part:
            whole: Tensor = module(x)
            return whole
        parts = x.tensor_split(-(-len(x) // part))
        if not torch.is_grad_enabled():
            return torch.cat([module(images) for images in parts])

        # Checkpointing instead of one backward pass for each micro-batch: objectives compare all images of a batch, so
        # that no gradient is known before all of them are embedded. The forward pass counts into BatchNorm's running
        # statistics, the recomputation must not. Its random numbers are restored by checkpoint() itself, but not in a
        # recorded step, which draws none and must not read the state of generators.
        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _statistics_kept(module)

        draws = not (x.is_cuda and self.config.cuda_graphs)
        recomputed = partial(checkpoint, module, use_reentrant=False, context_fn=contexts, preserve_rng_state=draws)
        return torch.cat([recomputed(images) for images in parts])

    def occlude(self, x: Tensor) -> Tensor:
        """Compute masks [B, N, S, S] in [0, 1] for normalized images [B, 3, S, S]."""
        assert self.occlusion is not None
        with self.autocast(x.device):
            return self._in_parts(self.occlusion, x)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context of the configured precision for forward passes; float32 where bfloat16 is not native."""
        half = self.config.precision == "bfloat16" and native_bfloat16(device)
        return torch.autocast(device.type, torch.bfloat16, enabled=half)

    def weights_cast_once(self, device: torch.device) -> torch.autocast:
        """Return a context around forward passes of the same weights, which ``autocast`` then casts only once.

        Weights without gradients are cast again in each pass, since torch keeps no casts of them: those of momentum
        networks, and the encoder's where it is frozen for the occlusion model's turn. With micro-batches on a GPU all
        are cast again for each: their recomputation, in another thread, forgets all.
        """
        # What has been cast is forgotten at the end of the outermost context, whether or not that one casts by itself.
        return torch.autocast(device.type, enabled=False)

    @torch.no_grad()
    def update_momentum(self, rate: float | Tensor) -> None:
        """Move the momentum networks towards the encoder by the share ``rate``, in [0, 1]; 0 changes no bit."""
        if self.momentum is None:
            return
        online: list[Tensor] = [*self.backbone.parameters(), *self.objective.projector.parameters()]
        averaged: list[Tensor] = list(self.momentum.parameters())
        # Parameters only: the copies' BatchNorm keeps its own running statistics.
        _move(averaged, online, rate)

    @property
    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        """The backbone and the probe that evaluations use: the averaged ones if there are any."""
        if self.averaged is None:
            return self.backbone, self.probe
        return self.averaged["backbone"], self.averaged["probe"]

    @torch.no_grad()
    def update_average(self, weight: float | Tensor) -> None:
        """Move the averaged weights towards the current ones by the share ``weight``, [0, 1]; 1 copies them.

        A no-op where no weights are averaged.
        """
        if self.averaged is None:
            return
        current: list[Tensor] = [*self.backbone.parameters(), *self.probe.parameters()]
        # Not BatchNorm's statistics, which each evaluation computes for the mean weights.
        _move(list(self.averaged.parameters()), current, weight)


def with_average(tensors: Mapping[str, Tensor], averages: bool) -> dict[str, Tensor]:
    """Fit the tensors of ``Networks`` to networks that average their weights, or do not.

    A mean that is missing starts from the weights; one that is not needed is dropped.
    """
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith("averaged.")}
    if not averages:
        return plain
    copies = {f"averaged.{name}": plain[name] for name in plain if name.startswith(("backbone.", "probe."))}
    return {**copies, **tensors}


def _move(means: list[Tensor], current: list[Tensor], weight: float | Tensor) -> None:
    """Replace means by (1 - weight) means + weight current, in place; exact at weights of 0 and 1."""
    # A few calls for all tensors. A weight on the device, which lerp does not take, is not read by the host; in another
    # precision than theirs, it would be multiplied with one tensor after the other.
    kept = 1 - weight
    if isinstance(weight, Tensor) and isinstance(kept, Tensor):
        kept, weight = kept.to(means[0].dtype), weight.to(means[0].dtype)
    torch._foreach_mul_(means, kept)
    torch._foreach_add_(means, torch._foreach_mul(current, weight))


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are inside the block, while it normalizes by the batch's."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    # In training mode: a momentum of 0 adds nothing to the averages, and without a counter none is incremented.
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count

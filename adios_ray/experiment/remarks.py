"""Remarks on a configuration that works, but may not do what is expected of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from adios_ray.config import PREDICTING, TrialConfig, value_at
from adios_ray.experiment.command import changed_settings
from adios_ray.experiment.config import ExperimentConfig
from adios_ray.measures import MEASURES
from adios_ray.search.spaces import SearchSpace

NEEDS: Mapping[str, tuple[str, Callable[[TrialConfig], bool]]] = {
    **dict.fromkeys(
        (
            "masking.sparsity_weight",
            "masking.entropy_weight",
            "masking.width",
            "masking.norm",
            "masking.levels",
            "masking.order",
            "optimizer.occlusion_lr",
        ),
        ("masking.scheme", lambda config: config.masking.learned),
    ),
    "masking.slots": (
        "masking.scheme",
        lambda config: config.masking.learned or config.masking.scheme in ("ground-truth", "box", "shuffle"),
    ),
    "objective.temperature": ("objective.name", lambda config: config.objective.name in ("simclr", "mocov2", "mocov3")),
    "objective.momentum_start": (
        "objective.name",
        lambda config: config.objective.name in ("byol", "mocov2", "mocov3", "dino"),
    ),
    "optimizer.predictor_schedule": (
        "objective.name",
        lambda config: config.objective.name in PREDICTING,
    ),
    "backbone.cifar_stem": ("backbone.name", lambda config: config.backbone.name != "resnet_small"),
    "backbone.stem_padding": ("backbone.cifar_stem", lambda config: config.backbone.cifar_stem),
}
"""By path: the setting that it depends on, and whether a configuration uses it."""


def remarks(config: ExperimentConfig, space: SearchSpace) -> Iterator[str]:
    """Say what of an experiment is without effect, or probably not intended; a sentence each."""
    given = [path for path in changed_settings(config) if path not in space.parameters]
    yield from _unused(config, space.parameters, "searched")
    yield from _unused(config, given, "given")
    trials = space.trials(config.population)
    if not MEASURES[config.evaluation.fitness].is_share and trials > 1:
        yield (
            f"evaluation.fitness {config.evaluation.fitness}: the best of {trials} trials is chosen without "
            "labels; where it was measured, such scores preferred the worse trainings (docs/results.md)"
        )
    warmup = config.optimizer.warmup_epochs
    if warmup > config.epochs / 2:
        yield (
            f"optimizer.warmup_epochs {warmup:g} of {config.epochs} epochs: the warm-up ends after "
            f"{config.epochs / 2:g}, since it takes at most half of a training"
        )
    opening = space.opening.epochs if space.opening else 0
    if space.evolving and opening + space.interval_epochs >= config.epochs:
        after = f" after the opening's {opening}" if opening else ""
        yield (
            f"interval_epochs {space.interval_epochs} of {config.epochs} epochs: {space.scheduler} decides nothing"
            f"{after}; lower it, or raise --epochs"
        )


def _unused(config: TrialConfig, paths: Iterable[str], how: str) -> Iterator[str]:
    """Name those of the settings that are without effect, a sentence for each setting that they depend on."""
    without: dict[str, list[str]] = {}
    for path in paths:
        other, used = NEEDS.get(path, ("", lambda _: True))
        if not used(config):
            without.setdefault(other, []).append(path)
    for other, unused in without.items():
        yield f"{', '.join(unused)}: {how} without effect, as {other} is {value_at(config, other)}"

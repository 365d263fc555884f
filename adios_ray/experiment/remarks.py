"""Remarks on a configuration that works, but may not do what is expected of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from adios_ray.config import SCHEMES, TrialConfig, value_at
from adios_ray.console import counted
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
    "masking.slots": ("masking.scheme", lambda config: SCHEMES[config.masking.scheme].uses_slots),
    "objective.temperature": ("objective.name", lambda config: "temperature" in config.objective.uses),
    "objective.momentum_start": ("objective.name", lambda config: "momentum_start" in config.objective.uses),
    "optimizer.predictor_schedule": ("objective.name", lambda config: "predictor_dim" in config.objective.uses),
    **dict.fromkeys(
        ("augment.brightness", "augment.contrast", "augment.saturation", "augment.hue"),
        ("augment.jitter_probability", lambda config: config.augment.jitter_probability > 0),
    ),
    # Not neighbors and temperature, which evaluations of the checkpoints use, too.
    "evaluation.train_images": ("evaluation.fitness", lambda config: config.evaluation.fitness == "knn"),
    "backbone.cifar_stem": ("backbone.name", lambda config: config.backbone.name != "resnet_small"),
    "backbone.stem_padding": ("backbone.cifar_stem", lambda config: config.backbone.cifar_stem),
}
"""By path: the setting that it depends on, and whether a configuration uses it."""
FEW_DECISIONS = 5
"""Below so many decisions about a trial, an evolving search is remarked upon."""


def remarks(config: ExperimentConfig, space: SearchSpace) -> Iterator[str]:
    """Say what of an experiment is without effect, or probably not intended; a sentence each."""
    changed = changed_settings(config)
    yield from _unused(config, space.parameters, "searched")
    yield from _unused(config, [path for path in changed if path not in space.parameters], "given")
    if drawn := [f"{path} {value}" for path, value in changed.items() if path in space.parameters]:
        first = max(1, space.controls or 0)
        begin = f"only {'the first trial begins' if first == 1 else f'the first {first} trials begin'} with it"
        yield (
            f"{', '.join(drawn)}: searched, so {'no trial has it' if space.search == 'grid' else begin}; "
            "--space single, or a space without it, keeps it"
        )
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
    if space.evolving:
        yield from _few_decisions(config, space)


def _few_decisions(config: ExperimentConfig, space: SearchSpace) -> Iterator[str]:
    """Say it where an evolving search decides seldom or never about a trial."""
    opening = space.opening.epochs if space.opening else 0
    left, reports = config.epochs - opening, config.evaluation.interval_epochs
    decisions = max(0, -(-left // space.interval_epochs) - 1)  # none at the last epoch
    if decisions < FEW_DECISIONS:
        times = counted(decisions, "time") if decisions else "nothing"
        after = f" after the opening's {opening}" if opening else ""
        advised = max(1, left // 10 // reports) * reports
        lower = f"set it to {advised} in a copy of the space, or " if advised < space.interval_epochs else ""
        yield (
            f"interval_epochs {space.interval_epochs} of {config.epochs} epochs: {space.scheduler} decides "
            f"{times}{after}; {lower}raise --epochs"
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

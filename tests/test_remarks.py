"""Remarks on settings without effect, against trainings that differ in nothing but such a setting."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small import small_config

from adios_ray.config import OBJECTIVES, SCHEMES, ObjectiveEntry, SchemeEntry, TrialConfig, replaced, value_at
from adios_ray.experiment.command import read_arguments
from adios_ray.experiment.config import SPACES
from adios_ray.experiment.presets import published
from adios_ray.experiment.remarks import NEEDS, remarks
from adios_ray.measures import MEASURES
from adios_ray.search.spaces import load_space
from adios_ray.training.trainer import Trainer

CPU = torch.device("cpu")
OTHERS: dict[str, Any] = {
    "masking.sparsity_weight": 5.0,
    "masking.entropy_weight": 5.0,
    "masking.width": 16,
    "masking.norm": "none",
    "masking.levels": 5,
    "masking.order": "alternating",
    "masking.slots": 2,
    "optimizer.occlusion_lr": 0.5,
    "objective.temperature": 0.9,
    "objective.momentum_start": 0.3,
    "optimizer.predictor_schedule": "constant",
    "augment.brightness": 0.9,
    "augment.contrast": 0.9,
    "augment.saturation": 0.9,
    "augment.hue": 0.5,
    "backbone.cifar_stem": True,
    "backbone.stem_padding": 2,
    "evaluation.train_images": 30,
}
"""A value for each setting, other than those of the trainings here."""


def said(*flags: str) -> list[str]:
    """Return the remarks on a command line, under the preset of the demo unless it names another."""
    config = read_arguments("", flags if "--preset" in flags else ["--preset", "demo", *flags], "pbt_in100", "pbt_demo")
    return list(remarks(config, load_space(config.space, config.scheduler, config.search)))


def encoder(config: TrialConfig, steps: int) -> torch.Tensor:
    """Train and return the backbone's weights."""
    trainer = Trainer(config, CPU)
    trainer.train_until(steps)
    return torch.cat([value.flatten() for value in trainer.networks.backbone.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("objective.name", name) for name in OBJECTIVES),
        *(("masking.scheme", name) for name in SCHEMES),
        *(("augment.jitter_probability", value) for value in (0.0, 1.0)),
        *(("backbone.name", name) for name in ("resnet_small", "resnet18")),
        *(("backbone.cifar_stem", value) for value in (False, True)),
    ],
)
def test_what_is_said_to_be_without_effect_changes_no_weight(setting: str, value: Any, objects_dir: Path) -> None:
    config = small_config(objects_dir, batch_size=8, optimizer={"warmup_epochs": 0, "predictor_schedule": "cosine"})
    name = "resnet18" if setting == "backbone.cifar_stem" else "resnet_small"
    config = replaced(config, {"backbone.name": name, setting: value})
    # A predictor's rate shows in its second step, and in the backbone in the third; the backbone's own values at once.
    steps = 1 if setting.startswith("backbone.") else 3
    weights = encoder(config, steps)
    for path, (depends_on, used) in NEEDS.items():
        if depends_on == setting:
            other = encoder(replaced(config, {path: OTHERS[path]}), steps)
            assert value_at(config, path) != OTHERS[path]
            assert torch.equal(weights, other) is not used(config), path


@pytest.mark.slow
@pytest.mark.parametrize("fitness", MEASURES)
def test_a_setting_of_evaluations_without_effect_changes_no_fitness(fitness: str, objects_dir: Path) -> None:
    config = small_config(objects_dir, evaluation={"fitness": fitness})
    found = Trainer(config, CPU).evaluate("val")
    for path, (depends_on, used) in NEEDS.items():
        if depends_on == "evaluation.fitness":
            other = Trainer(replaced(config, {path: OTHERS[path]}), CPU).evaluate("val")
            assert (repr(other) == repr(found)) is not used(config), path


def test_each_setting_has_a_case() -> None:
    assert OTHERS.keys() == NEEDS.keys()


@pytest.mark.slow
def test_nothing_is_said_of_the_published_settings_with_learned_masks() -> None:
    for setting in published():
        if SCHEMES[setting.scheme].kind == "learned":
            flags = ["--preset", setting.data, "--family", setting.family, "--objective", setting.objective]
            assert said(*flags, "--backbone", setting.backbone, "--masking", setting.scheme) == []
    assert said() == []


def test_what_is_used_is_said_by_the_lines_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "vicreg", ObjectiveEntry("vicreg:VICReg", {"temperature", "predictor_dim"}))
    monkeypatch.setitem(SCHEMES, "fg-bg", SchemeEntry("object", uses_slots=True))
    flags = ("--space", "single", "--epochs", "60", "--objective", "vicreg", "--masking", "fg-bg")
    values = ("--objective.temperature", "0.3", "--objective.predictor-dim", "16", "--masking.slots", "6")
    assert said(*flags, *values, "--optimizer.predictor-schedule", "constant") == []
    momentum = "objective.momentum_start: given without effect, as objective.name is vicreg"
    assert said(*flags, "--objective.momentum-start", "0.9") == [momentum]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--masking", "none"],
            "masking.sparsity_weight, optimizer.occlusion_lr, masking.slots: searched without effect, as "
            "masking.scheme is none",
        ),
        (
            ["--objective", "byol", "--objective.temperature", "0.3"],
            "objective.temperature: given without effect, as objective.name is byol",
        ),
        (
            ["--preset", "clevr", "--augment.hue", "0.2"],
            "augment.hue: given without effect, as augment.jitter_probability is 0.0",
        ),
        (
            ["--optimizer.warmup-epochs", "6", "--epochs", "6"],
            "optimizer.warmup_epochs 6 of 6 epochs: the warm-up ends after 3, since it takes at most half of a "
            "training",
        ),
        (
            ["--optimizer.warmup-epochs", "0", "--epochs", "1"],
            "interval_epochs 1 of 1 epochs: pbt decides nothing; raise --epochs",
        ),
        (["--epochs", "5"], "interval_epochs 1 of 5 epochs: pbt decides 4 times; raise --epochs"),
        (
            ["--preset", "in100s", "--epochs", "100"],
            "interval_epochs 25 of 100 epochs: pbt decides 3 times; set it to 10 in a copy of the space, or raise "
            "--epochs",
        ),
        (
            ["--masking.slots", "5", "--optimizer.encoder-lr", "0.2", "--batch-size", "32"],
            "masking.slots 5, optimizer.encoder_lr 0.2: searched, so only the first trial begins with it; "
            "--space single, or a space without it, keeps it",
        ),
        (
            ["--evaluation.fitness", "lidar", "--scheduler", "none"],
            "evaluation.fitness lidar: the best of 4 trials is chosen without labels; where it was measured, such "
            "scores preferred the worse trainings (docs/results.md)",
        ),
    ],
)
def test_a_remark_names_the_setting_and_the_reason(flags: list[str], expected: str) -> None:
    assert said(*flags) == [expected]


@pytest.mark.parametrize(
    ("interval", "said_of_it"),
    [
        (1, []),
        (2, ["interval_epochs 2 of 9 epochs: pbt decides 2 times after the opening's 3; set it to 1 in a copy"]),
        (6, ["interval_epochs 6 of 9 epochs: pbt decides nothing after the opening's 3; set it to 1 in a copy"]),
    ],
)
def test_the_first_decision_is_an_interval_after_the_opening(
    interval: int, said_of_it: list[str], tmp_path: Path
) -> None:
    space = changed_space(tmp_path, interval_epochs=interval, opening={"trials": 8, "epochs": 3})
    remarks_on_it = [f"{remark} of the space, or raise --epochs" for remark in said_of_it]
    assert said("--space", space, "--epochs", "9") == remarks_on_it


def changed_space(folder: Path, **changes: Any) -> str:
    """Write the demo's search space with other options, and return its path."""
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load((SPACES / "pbt_demo.yaml").read_text()), **changes}))
    return str(path)


def test_whom_a_searched_value_reaches_follows_from_the_space(tmp_path: Path) -> None:
    flags, slots = ("--masking.slots", "5"), {"masking.slots": {"values": [2, 3]}}
    controlled = changed_space(tmp_path, controls=2)
    assert ["only the first 2 trials begin with it" in remark for remark in said("--space", controlled, *flags)] == [
        True
    ]
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"scheduler": "none", "search": "grid", "parameters": slots}))
    assert ["so no trial has it" in remark for remark in said("--space", str(grid), *flags)] == [True]
    assert said("--space", "single", *flags) == []

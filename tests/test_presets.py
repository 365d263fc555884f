"""Presets against the paper's tables and the authors' scripts, and the choice of one by command line flags."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from adios_ray.config import TrialConfig, replaced
from adios_ray.errors import ConfigError
from adios_ray.evaluation.extraction import CROPS_AND_FLIPS
from adios_ray.experiment.command import named_space, read_arguments, repeating_command
from adios_ray.experiment.config import PRESETS, ExperimentConfig
from adios_ray.experiment.presets import preset_config, published
from adios_ray.search.spaces import load_space
from adios_ray.validation import parse

RECIPES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "authors_recipes.json").read_text())
VIT = "vit_tiny_patch16_224"
OBJECTIVES = ("simclr", "simsiam", "byol")
WITH_MASKS: dict[tuple[str, str], list[tuple[float, ...]]] = {
    # Tables 11 and 12: encoder's and occlusion model's rate, lambda, N, of SimCLR, SimSiam and BYOL.
    ("in100s", "resnet18"): [(0.13, 0.02, 0.57, 4), (0.85, 0.08, 0.29, 4), (0.24, 0.07, 0.40, 4)],
    ("in100s", VIT): [(0.12, 0.03, 0.89, 4), (0.50, 0.07, 0.72, 4), (0.21, 0.33, 0.95, 4)],
    ("stl10", "resnet18"): [(0.21, 0.33, 0.29, 6), (0.52, 0.29, 0.79, 6), (0.49, 0.06, 0.72, 6)],
    ("stl10", VIT): [(0.14, 0.09, 0.50, 6), (0.56, 0.09, 0.12, 6), (0.29, 0.60, 0.18, 6)],
    ("clevr", "resnet18"): [(0.3, 0.1, 0.2, 4), (0.5, 0.1, 0.8, 4), (0.4, 0.3, 0.9, 4)],
}
WITHOUT_MASKS = {
    # Tables 10 and 12: the encoder's rate.
    ("in100s", "resnet18"): (0.15, 0.25, 0.25),
    ("in100s", VIT): (0.15, 0.25, 0.25),
    ("stl10", "resnet18"): (0.15, 0.23, 0.31),
    ("stl10", VIT): (0.15, 0.11, 0.23),
    ("clevr", "resnet18"): (0.2, 0.7, 0.5),
}
HEADS = {"simclr": (2048, 128, None), "simsiam": (2048, 2048, 512), "byol": (4096, 256, 8192)}
JITTER = {"simclr": (0.8, 0.8, 0.8, 0.2), "simsiam": (0.4, 0.4, 0.4, 0.1), "byol": (0.4, 0.4, 0.2, 0.1)}
"""The authors' color jitter on ImageNet100-S: brightness, contrast, saturation, hue."""
TERMS = {"use_symmetry_mask": "unmasked-masked", "use_no_mask": "unmasked-unmasked", "use_both_mask": "masked-masked"}


def check_what_the_paper_shares(config: TrialConfig, data: str, objective: str) -> None:
    """Check Table 9, and the sizes of networks and views."""
    optimizer, heads = config.optimizer, config.objective
    assert (config.epochs, config.batch_size, config.image_size) == (500, 128, 64 if data == "clevr" else 96)
    assert (optimizer.name, optimizer.momentum, optimizer.warmup_epochs) == ("sgd", 0.9, 10)
    assert optimizer.weight_decay == (1e-4 if objective == "simclr" else 1e-5)
    assert (heads.hidden_dim, heads.output_dim, heads.predictor_dim) == HEADS[objective]
    assert heads.masked_views == "one" and not config.constant_predictor_lr
    # CLEVR's labels are colors and shapes: the authors' code changes no color of it.
    assert (config.augment == CROPS_AND_FLIPS) == (data == "clevr")


@pytest.mark.parametrize(("data", "backbone"), WITH_MASKS)
def test_the_papers_presets_are_its_tables(data: str, backbone: str) -> None:
    for objective, row in zip(OBJECTIVES, WITH_MASKS[data, backbone], strict=True):
        config = preset_config(data, None, objective, backbone)
        optimizer, masking = config.optimizer, config.masking
        assert (optimizer.encoder_lr, optimizer.occlusion_lr, masking.sparsity_weight, masking.slots) == row
        assert (config.family, masking.scheme, masking.width, masking.entropy_weight) == ("paper", "adios", 8, 0)
        assert (masking.order, masking.reduction, config.backbone.name) == ("simultaneous", "mean", backbone)
        check_what_the_paper_shares(config, data, objective)
    for objective, rate in zip(OBJECTIVES, WITHOUT_MASKS[data, backbone], strict=True):
        config = preset_config(data, "paper", objective, backbone, "none")
        assert (config.optimizer.encoder_lr, config.masking.scheme, config.backbone.name) == (rate, "none", backbone)
        check_what_the_paper_shares(config, data, objective)


@pytest.mark.parametrize("key", RECIPES)
def test_the_authors_presets_are_their_scripts(key: str) -> None:
    recipe = RECIPES[key]
    data, backbone, method = key.split("/")
    objective, _, scheme = method.partition("_")
    name = {"imagenet100s": "in100s", "imagenet100": "in100"}.get(data, data)
    timm_name = {"vittiny": VIT}.get(backbone, backbone)
    config = preset_config(name, "authors", objective, timm_name)
    masking, heads, optimizer = config.masking, config.objective, config.optimizer
    assert (config.backbone.name, heads.name, masking.scheme) == (timm_name, objective, scheme.replace("_", "-"))
    assert (config.epochs, config.batch_size) == (recipe["max_epochs"], recipe["batch_size"])
    assert config.image_size == (224 if name == "in100" else 96)
    assert (masking.slots, masking.width, masking.levels) == (
        recipe["N"],
        recipe["mask_fbase"],
        recipe.get("num_blocks"),
    )
    assert (masking.sparsity_weight, masking.entropy_weight) == (recipe["alpha_sparsity"], recipe["alpha_entropy"])
    assert masking.norm == {"gn": "group", "in": "instance"}[recipe["unet_norm"]]
    assert (masking.order, masking.reduction) == ("alternating", "sum")
    widths = tuple(recipe.get(option) for option in ("proj_hidden_dim", "output_dim", "pred_hidden_dim"))
    assert (heads.hidden_dim, heads.output_dim, heads.predictor_dim) == widths
    assert heads.temperature == recipe.get("temperature", TrialConfig().objective.temperature)
    assert (optimizer.name, optimizer.encoder_lr, optimizer.occlusion_lr) == ("lars", recipe["lr"], recipe["mask_lr"])
    assert (optimizer.weight_decay, optimizer.warmup_epochs) == (recipe["weight_decay"], 10)
    assert optimizer.warmup_start_lr == 0.003
    jitter = (config.augment.brightness, config.augment.contrast, config.augment.saturation, config.augment.hue)
    silent = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    assert jitter == tuple(recipe.get(option, default) for option, default in silent.items())
    assert (config.augment.blur_probability, config.augment.min_crop_scale) == (0.5, 0.08)
    assert config.backbone.zero_init_last == (backbone != "resnet18")
    if objective == "simsiam":
        terms = {"masked-unmasked"} | {term for option, term in TERMS.items() if recipe[option]}
        assert (heads.masked_views, set(heads.terms)) == ("both", terms)
    else:
        assert heads.masked_views == "one"
    assert config.constant_predictor_lr == (objective == "simsiam")


def test_all_that_is_published_has_a_file() -> None:
    assert len(published()) == 2 * 3 * len(WITH_MASKS) + len(RECIPES)
    assert {setting.family for setting in published()} == {"paper", "authors"}


@pytest.mark.parametrize("path", sorted(PRESETS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_binds_and_names_the_source_of_its_values(path: Path) -> None:
    config = parse(ExperimentConfig, yaml.safe_load(path.read_text()), path.name)
    space = load_space(config.space)
    if config.masking.sparsity_weight:
        space.bind(config.trial())
    else:  # the authors' SimCLR on STL10 has weight 0: trained unchanged, or searched from a value above 0
        with pytest.raises(ConfigError, match="sparsity_weight must stay above 0.*raise its configured value"):
            space.bind(config.trial())
    assert parse(ExperimentConfig, config.model_dump(mode="json")) == config
    if path.parent.name in ("paper", "authors"):
        values = [line for line in path.read_text().splitlines() if ": " in line and not line.startswith("#")]
        named = ("name:", "scheme:")  # the setting itself
        assert all("#" in line or line.strip().startswith(named) for line in values)


def chosen(*arguments: str) -> ExperimentConfig:
    return read_arguments("", arguments, "pbt_in100", "pbt_demo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "demo", "space": named_space("pbt_demo"), "name": "first", "masking.slots": 5},
        {"data_dir": "/a b", "space": named_space("asha_demo"), "scheduler": "median", "backbone.name": "vit_tiny"},
        {"preset": "in100s", "evaluation.average_weights": True, "trackers": ("jsonl", "tensorboard")},
        {
            "preset": "stl10",
            "objective.name": "byol",
            "masking.scheme": "mae",
            "backbone.zero_init_last": False,
        },
    ],
    ids=lambda settings: "-".join(settings),
)
def test_the_command_of_a_run_repeats_it(settings: dict[str, Any]) -> None:
    """Cover the demo and published settings, and a user's space, of which the run's copy has what was overridden."""
    choice = (settings.get(path) for path in ("objective.name", "backbone.name", "masking.scheme"))
    defaults = preset_config(settings.get("preset"), None, *(choice if settings.get("preset") else ()))
    config = replaced(defaults, settings)
    run = Path(PRESETS)  # stands for a run directory
    words = shlex.split(repeating_command(config, run))
    repeated = chosen(*words[2:])
    own = {} if config.space == repeated.space else {"space": f"{run}/space.yaml"}
    assert words[:2] == ["adios-ray", "train"] and repeated == config.model_copy(update=own)


@pytest.mark.slow
def test_flags_choose_among_what_is_published() -> None:
    for flags in (["--objective", "byol"], ["--objective.name", "byol"], ["--objective=byol"]):
        config = chosen("--preset", "in100s", *flags)
        assert (config.objective.name, config.optimizer.encoder_lr, config.masking.sparsity_weight) == (
            "byol",
            0.24,
            0.40,
        )
        jitter = (config.augment.brightness, config.augment.contrast, config.augment.saturation, config.augment.hue)
        assert jitter == JITTER["byol"]
    for objective, expected in JITTER.items():
        config = chosen("--preset=in100s", "--objective", objective, "--optimizer.encoder-lr", "0.5")
        jitter = (config.augment.brightness, config.augment.contrast, config.augment.saturation, config.augment.hue)
        assert jitter == expected and config.optimizer.encoder_lr == 0.5
    vit = chosen("--preset", "stl10", "--backbone", VIT, "--masking", "none", "--objective", "simsiam")
    assert (vit.backbone.name, vit.masking.scheme, vit.optimizer.encoder_lr) == (VIT, "none", 0.11)
    other = chosen("--preset", "in100s", "--masking.scheme", "mae")
    assert (other.masking.scheme, other.optimizer.encoder_lr) == ("mae", 0.13)
    authors = chosen("--preset", "in100s", "--family", "authors")
    assert (authors.family, authors.optimizer.name, authors.masking.slots) == ("authors", "lars", 4)
    large = chosen("--preset", "in100")
    assert (large.family, large.image_size, large.masking.scheme, large.epochs) == ("authors", 224, "adios-s", 400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--preset", "in100s", "--objective", "vicreg"],
            "no published setting for vicreg, resnet18, adios .*leave --pre",
        ),
        (["--preset", "in100s", "--backbone.name", "resnet50"], "no published setting for simclr, resnet50, adios"),
        (
            ["--preset", "in100", "--family", "paper"],
            "for family paper, .* authors: byol, simclr, simsiam with resnet18",
        ),
        (
            ["--preset", "stl10", "--family", "authors", "--masking", "none"],
            "for family authors, simclr, resnet18, none",
        ),
        (["--preset", "stl10", "--masking", "adioss"], "^masking.scheme adioss must be one of .*did you mean adios-s"),
        (["--preset", "stl10", "--objective", "BYOL"], "^objective.name BYOL must be one of simclr, simsiam, byol"),
        (
            ["--preset", "stl10", "--family", "author"],
            "^family author must be one of paper, authors; did you mean auth",
        ),
        (["--preset", "in100z"], "no preset 'in100z'; choose one of .*; did you mean in100"),
        (["--preset", "cifar"], "no preset 'cifar'; choose one of demo, clevr, in100, in100s, stl10"),
        (
            ["--preset", "demo", "--family", "paper"],
            "--family paper chooses among published settings: give",
        ),
        (["--family", "authors"], "--family authors chooses among published settings: give --preset too"),
    ],
)
def test_what_is_not_published_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(*arguments)

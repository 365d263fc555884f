"""Backbones by name: feature widths, accepted image sizes, and the errors for those that do not fit."""

import subprocess
import sys

import pytest
import torch

from adios_ray.config import BackboneConfig
from adios_ray.errors import ConfigError
from adios_ray.models.backbones import build_backbone


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("resnet_small", 32, 128),
        ("resnet18", 48, 512),
        ("test_vit", 96, 64),
        ("mobilenetv3_small_050", 64, 1024),
        ("convnext_atto", 64, 320),
        pytest.param("swin_tiny_patch4_window7_224", 96, 768, marks=pytest.mark.slow),
    ],
)
def test_a_backbone_has_its_stated_width(name: str, size: int, width: int) -> None:
    backbone, features = build_backbone(BackboneConfig(name=name), size)
    assert features == width and backbone.training
    assert backbone(torch.randn(2, 3, size, size)).shape == (2, width)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet19", "cspresnet50, "),
        ("resnet18.a1_in2k", r"resnet18\.a1_in1k, resnet18\.a2_in1k, "),
        ("botnet50ts_256.", r"botnet50ts_256\.untrained; or resnet_small"),
        ("nothing.like_this", r"timm\.list_models\(\); or resnet_small"),
    ],
)
def test_an_unknown_backbone_is_named_with_its_neighbors(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone.name: timm has no model '{name}' \\(near: .*{near}"):
        build_backbone(BackboneConfig(name=name), 64)


@pytest.mark.parametrize("name", ["inception_v3", "coat_tiny"])
@pytest.mark.slow
def test_a_size_that_a_backbone_does_not_take_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot take images of 48 pixels"):
        build_backbone(BackboneConfig(name=name), 48)


def test_the_cifar_stem_keeps_the_resolution_and_needs_a_resnet() -> None:
    backbone, _ = build_backbone(BackboneConfig(name="resnet18", cifar_stem=True), 32)
    seen: list[torch.Size] = []
    backbone.get_submodule("layer1").register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    backbone(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]
    with pytest.raises(ConfigError, match="test_vit has no ResNet stem"):
        build_backbone(BackboneConfig(name="test_vit", cifar_stem=True), 32)


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", 64, None),
        ("vit_small_patch14_dinov2", 64, "see 56 of the 64 of an image: set image_size to 56, 112, 224"),
        ("vit_small_patch14_dinov2", 56, None),
        ("swin_tiny_patch4_window7_224", 48, None),
        ("convnext_atto", 48, None),
        ("resnet18", 48, None),
    ],
)
@pytest.mark.slow
def test_networks_see_whole_images_or_are_refused(name: str, size: int, near: str | None) -> None:
    if near is None:
        build_backbone(BackboneConfig(name=name), size)
    else:
        with pytest.raises(ConfigError, match=f"backbone.name: {name} has patches of 14 pixels and would {near}"):
            build_backbone(BackboneConfig(name=name), size)


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", "bn2"), pytest.param("resnet50", "bn3", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_last_norms_start_at_zero_or_as_in_torchvision(name: str, last: str) -> None:
    states = []
    for zero in (True, False):
        torch.manual_seed(0)
        states.append(build_backbone(BackboneConfig(name=name, zero_init_last=zero), 32)[0].state_dict())
    for key, values in states[0].items():
        if key.endswith(f"{last}.weight") and key.startswith("layer"):
            assert not values.any() and bool((states[1][key] == 1).all())
        else:
            assert torch.equal(values, states[1][key]), key
    for other in ("resnet_small", "test_vit"):
        with pytest.raises(ConfigError, match=f"backbone.zero_init_last: {other} is no ResNet of timm"):
            build_backbone(BackboneConfig(name=other, zero_init_last=False), 32)


@pytest.mark.slow
def test_building_leaves_the_random_state_to_the_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        build_backbone(BackboneConfig(), 64)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.slow
def test_timm_is_imported_without_wandb_which_can_be_imported_all_the_same() -> None:
    code = """if True:
        import sys
        from adios_ray.models.timm_alone import timm
        if "wandb" in sys.modules or not timm.is_model("resnet18") or not timm.optim.Lars:
            sys.exit(1)
        import wandb
        wandb.init
    """
    subprocess.run([sys.executable, "-c", code], check=True)

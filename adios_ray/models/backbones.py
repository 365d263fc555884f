"""Image encoders: any timm model by name, and one small residual network for CPUs."""

import torch
from torch import Tensor, nn

from adios_ray.config import BackboneConfig, image_size_fits
from adios_ray.errors import ConfigError
from adios_ray.models.stem import use_fast_stem

SMALL_WIDTHS = (16, 32, 64, 128)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        """Build the block; a ``stride`` of 2 halves the resolution."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, S, S] to [B, C_out, S / stride, S / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network that two CPU cores can train: stem of stride 2, one block for each stage."""

    def __init__(self) -> None:
        """Build with the standard initialization of residual networks (He et al. 2015, fan-out)."""
        super().__init__()
        first = SMALL_WIDTHS[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        inputs = (first, *SMALL_WIDTHS[:-1])
        strides = (1, 2, 2, 2)
        self.stages = nn.Sequential(
            *(ResidualBlock(i, o, s) for i, o, s in zip(inputs, SMALL_WIDTHS, strides, strict=True))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, S, S] to pooled features [B, 128]."""
        features: Tensor = self.stages(self.stem(x))
        return features.mean(dim=(2, 3))


def build_backbone(config: BackboneConfig, image_size: int) -> tuple[nn.Module, int]:
    """Build a backbone with initial weights from torch's global generator.

    Returns:
        A module from images [B, 3, S, S] to features [B, F], and F.

    Raises:
        ConfigError: If timm has no such model; if it does not take images of this size or would ignore a part of them;
            or if its stem or norms are to be changed and it is not a ResNet.
    """
    backbone = SmallResNet() if config.name == "resnet_small" else _build_from_timm(config, image_size)
    if not config.zero_init_last:
        _start_last_norms_at_one(backbone, config.name)
    _check_patches(backbone, config.name, image_size)
    use_fast_stem(backbone)
    # A forward pass gives the width of the features; num_features of some timm models (MobileNetV3) is another one. In
    # evaluation mode it draws no random numbers and moves no running statistics.
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"backbone.name: {config.name} cannot take images of {image_size} pixels ({error})"
        ) from error
    return backbone.train(), features.shape[1]


def _build_from_timm(config: BackboneConfig, image_size: int) -> nn.Module:
    from adios_ray.models.timm_alone import timm  # here: it takes a second that the small network need not wait

    try:
        known, pretrained = timm.is_model(config.name), timm.get_pretrained_cfg(config.name)
    except RuntimeError:  # a known architecture with an unknown tag
        known, pretrained = False, None
    if not known:
        tagged = timm.list_models(f"{config.name.partition('.')[0]}.*", include_tags=True)
        near = ", ".join((tagged or timm.list_models(f"*{config.name[:6]}*"))[:5]) or "timm.list_models()"
        raise ConfigError(f"backbone.name: timm has no model {config.name!r} (near: {near}; or resnet_small)")
    # Only models of a fixed input size, such as vision transformers, accept img_size; others fail on the argument.
    sized = {"img_size": image_size} if pretrained is not None and pretrained.fixed_input_size else {}
    try:
        backbone: nn.Module = timm.create_model(config.name, pretrained=False, num_classes=0, **sized)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"backbone.name: {config.name} cannot take images of {image_size} pixels ({error})"
        ) from error
    if config.cifar_stem:
        stem = getattr(backbone, "conv1", None)
        if not isinstance(stem, nn.Conv2d) or not hasattr(backbone, "maxpool"):
            raise ConfigError(
                f"backbone.cifar_stem: {config.name} has no ResNet stem to replace; leave it out, or choose a ResNet"
            )
        backbone.conv1 = nn.Conv2d(3, stem.out_channels, 3, 1, config.stem_padding, bias=False)
        backbone.maxpool = nn.Identity()
    return backbone


def _start_last_norms_at_one(backbone: nn.Module, name: str) -> None:
    """Initialize the last norm of each residual block to 1, as torchvision does; timm initializes it to 0."""
    from timm.models.resnet import BasicBlock, Bottleneck

    blocks = [module for module in backbone.modules() if isinstance(module, BasicBlock | Bottleneck)]
    if not blocks:
        raise ConfigError(f"backbone.zero_init_last: {name} is no ResNet of timm; leave zero_init_last out")
    for block in blocks:
        nn.init.ones_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)


def _check_patches(backbone: nn.Module, name: str, image_size: int) -> None:
    """Refuse a network that would ignore pixels that fill no whole patch: with patches of 14 pixels, 8 of 64."""
    patch = _patch_size(backbone)
    if image_size % patch == 0:
        return
    sizes = [size for size in range(32, 1025) if size % patch == 0 and image_size_fits(size)]
    near = sorted(sizes, key=lambda size: abs(size - image_size))[:3]
    raise ConfigError(
        f"backbone.name: {name} has patches of {patch} pixels and would see {image_size // patch * patch} of the "
        f"{image_size} of an image: set image_size to {', '.join(map(str, sorted(near)))}, or choose another backbone"
    )


def _patch_size(backbone: nn.Module) -> int:
    """Return the side of the patches that the first layer cuts images into; 1 if it overlaps or pads them."""
    embedding = getattr(backbone, "patch_embed", None)
    if getattr(embedding, "dynamic_img_pad", False):
        return 1
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or first.padding not in ((0, 0), "valid"):
        return 1
    return first.kernel_size[0]

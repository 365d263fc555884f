"""Import of the authors' release and of solo-learn: the imported networks compute the same as their source.

The sources here are built independently: torchvision's ResNet-18, timm's vision transformer, and heads in the
arrangement of solo-learn, with its biases; the occlusion model's numbers are pinned from the published implementation.
"""

import argparse
import copy
import json
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from naive import golden
from small import make_objects
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adios_ray.cli import main
from adios_ray.config import ALL_TERMS
from adios_ray.data.shards import open_shards
from adios_ray.errors import CheckpointError, ConfigError
from adios_ray.evaluation.subject import build_subject, opened
from adios_ray.models.official import import_official, unsupported
from adios_ray.models.weights import build_networks

SIZE, SLOTS, CLASSES = 32, 3, 5
OCCLUSION = "occlusion_32px_3slots.npz"
AUTHORS = {
    "dataset": "imagenet100s",
    "encoder": "resnet18",
    "img_size": SIZE,
    "n_classes": CLASSES,
    **{"max_epochs": 500, "batch_size": 64, "optimizer": "sgd", "lars": True, "lr": 0.24, "weight_decay": 1e-4},
    "warmup_epochs": 7,
    "temperature": 0.3,
    "base_tau_momentum": 0.98,
    "brightness": [0.4, 0.4],
    "gaussian_prob": [1.0, 0.1],
    "mask_lr": 0.07,
    "alpha_sparsity": 0.4,
    "alpha_entropy": 0.2,
    "unet_norm": "gn",
    "callbacks": "<not serializable>",
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Source:
    """A model with the layers and names of the source."""

    parts: nn.ModuleDict
    """Encoder, heads and their momentum copies by the names that the authors give them."""
    masks: dict[str, Tensor]
    """Tensors of the occlusion model under the authors' names."""

    def state(self, prefix: str) -> "OrderedDict[str, Tensor]":
        """Build a state dict with the encoder named ``prefix``, "encoder" or "backbone", and spare tensors."""
        renamed = {name.replace("encoder.", f"{prefix}."): value for name, value in self.parts.state_dict().items()}
        spare = {"momentum_classifier.weight": torch.ones(2, 3), "queue": torch.ones(4), "knn.k": torch.tensor(20)}
        return OrderedDict({**renamed, **self.masks, **spare})


def shaken(module: nn.Module) -> nn.Module:
    """Fill a module with random biases and normalizations instead of zeros and ones."""
    for name, values in module.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            values.normal_(std=0.3)
        elif name.endswith("running_var") or values.ndim == 1:
            values.uniform_(0.5, 1.5)
    return module


def solo_heads(objective: str, features: int) -> dict[str, nn.Module]:
    """Build projector and predictor as in solo-learn/methods and the authors' src/methods."""
    if objective == "simclr":
        return {"projector": nn.Sequential(nn.Linear(features, 24), nn.ReLU(), nn.Linear(24, 16))}
    if objective == "byol":
        return {
            "projector": nn.Sequential(nn.Linear(features, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16)),
            "predictor": nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16)),
        }
    return {
        "projector": nn.Sequential(
            *(nn.Linear(features, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU()),
            *(nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU()),
            *(nn.Linear(24, 16), nn.BatchNorm1d(16, affine=False)),
        ),
        "predictor": nn.Sequential(nn.Linear(16, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 16)),
    }


def make_source(encoder: nn.Module, features: int, method: str) -> Source:
    """Build a model of one of the nine methods around an encoder."""
    torch.manual_seed(1)
    objective, _, masked = method.partition("_")
    parts = {"encoder": encoder, **solo_heads(objective, features), "classifier": nn.Linear(features, CLASSES)}
    if objective == "byol":
        parts |= {f"momentum_{name}": copy.deepcopy(parts[name]) for name in ("encoder", "projector")}
        shaken(parts["momentum_encoder"])
    for name in parts.keys() - {"encoder", "momentum_encoder"}:
        shaken(parts[name])
    masks = {name: values for name, values in golden(OCCLUSION).items() if name.startswith("mask_")}
    return Source(nn.ModuleDict(parts), masks if masked else {})


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """Build the ResNet-18 of torchvision without its classifier."""
    torch.manual_seed(0)
    encoder: nn.Module = torchvision.models.resnet18()
    encoder.fc = nn.Identity()
    return shaken(encoder)


def write(folder: Path, state: object, arguments: dict[str, Any]) -> Path:
    """Write a folder of the release: Lightning's dictionary, with objects of classes that no longer exist when read."""
    folder.mkdir()
    gone = ModuleType("gone")
    kind = type("Checkpointer", (dict,), {"__module__": "gone"})
    gone.__dict__["Checkpointer"] = kind
    callback = kind(best=torch.ones(2))
    callback.args = argparse.Namespace(lr=0.1, values=[1, {2}])
    content = {"epoch": 499, "state_dict": state, "hyper_parameters": callback.args, "callbacks": {kind: callback}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gone", gone)
        torch.save(content, folder / "model-ep=499.ckpt")
    (folder / "args.json").write_text(json.dumps(arguments))
    return folder


def assert_equal_outputs(folder: Path, source: Source, size: int = SIZE) -> None:
    """Compare features, projections, predictions, targets, logits and masks, in evaluation and in training mode."""
    networks = build_networks(import_official(folder))
    theirs, x = source.parts, torch.randn(4, 3, size, size)
    pairs: list[tuple[str, nn.Module, nn.Module]] = [("projector", networks.objective.projector, theirs["projector"])]
    if "predictor" in theirs:
        pairs.append(("predictor", networks.objective.predictor, theirs["predictor"]))
    if networks.momentum is not None:
        pairs.append(("momentum", networks.momentum["projector"], theirs["momentum_projector"]))
        features = theirs["momentum_encoder"].eval()(x)
        torch.testing.assert_close(networks.momentum["backbone"](x), features, rtol=0, atol=1e-5)
    with torch.no_grad():
        features = theirs["encoder"].eval()(x)
        torch.testing.assert_close(networks.backbone(x), features, rtol=0, atol=1e-5)
        torch.testing.assert_close(networks.probe(features), theirs["classifier"](features), rtol=0, atol=1e-5)
        for mode in (False, True):
            for name, ours, head in pairs:
                inputs = torch.randn(8, 16) if name == "predictor" else torch.randn(8, features.shape[1])
                torch.testing.assert_close(ours.train(mode)(inputs), head.train(mode)(inputs), rtol=0, atol=1e-5)
    if source.masks:
        values = golden(OCCLUSION)
        torch.testing.assert_close(networks.occlude(values["x"]), values["masks"], rtol=0, atol=1e-5)
    assert (networks.occlusion is None) == (not source.masks)


METHODS = [
    f"{objective}{suffix}" for objective in ("simclr", "simsiam", "byol") for suffix in ("", "_adios", "_adios_s")
]


@pytest.mark.parametrize("method", METHODS)
def test_imported_networks_compute_what_the_source_does(method: str, resnet: nn.Module, tmp_path: Path) -> None:
    source = make_source(resnet, 512, method)
    prefix = "backbone" if method.endswith("adios") else "encoder"
    folder = write(tmp_path / "release", source.state(prefix), {**AUTHORS, "method": method})
    assert_equal_outputs(folder, source)


def test_wrapped_names_are_read_and_infinite_values_refused(resnet: nn.Module, tmp_path: Path) -> None:
    source = make_source(resnet, 512, "simclr_adios")
    state, arguments = source.state("encoder"), {**AUTHORS, "method": "simclr_adios"}
    wrapped = {f"module.{name}".replace("encoder.", "encoder._orig_mod."): values for name, values in state.items()}
    assert_equal_outputs(write(tmp_path / "wrapped", wrapped, arguments), source)
    assert not import_official(tmp_path / "wrapped").config.backbone.zero_init_last
    infinite = {**state, "encoder.bn1.weight": state["encoder.bn1.weight"] / 0}
    with pytest.raises(CheckpointError, match="backbone.bn1.weight is not finite"):
        import_official(write(tmp_path / "infinite", infinite, arguments))


def test_a_vision_transformer(tmp_path: Path) -> None:
    encoder = VisionTransformer(img_size=64, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=0)
    source = make_source(encoder, 192, "simclr")
    arguments = {**AUTHORS, "encoder": "vit_tiny", "method": "simclr", "img_size": 64}
    assert_equal_outputs(write(tmp_path / "release", source.state("encoder"), arguments), source, 64)


def test_the_stem_for_cifar_pads_by_two(resnet: nn.Module, tmp_path: Path) -> None:
    encoder = copy.deepcopy(resnet)
    encoder.conv1, encoder.maxpool = nn.Conv2d(3, 64, 3, 1, padding=2, bias=False), nn.Identity()
    source = make_source(encoder, 512, "simsiam")
    arguments = {**AUTHORS, "dataset": "cifar10", "method": "simsiam"}
    assert_equal_outputs(write(tmp_path / "release", source.state("encoder"), arguments), source)


def test_an_occlusion_model_with_a_number_of_levels_of_its_own(resnet: nn.Module, tmp_path: Path) -> None:
    source, size = make_source(resnet, 512, "simsiam_adios"), 2 * SIZE  # their SimSiam: four levels at any size
    side = 2 * size // 16
    masks = {**source.masks, "mask_encoder.mlp.1.weight": torch.randn(128, 16 * side**2) / 16}
    masks |= {
        "mask_encoder.mlp.5.weight": torch.randn(16 * side**2, 128),
        "mask_encoder.mlp.5.bias": torch.randn(16 * side**2),
    }
    state = {**source.state("encoder"), **masks}
    arguments = {**AUTHORS, "method": "simsiam_adios", "num_blocks": 4, "img_size": size}
    networks = build_networks(import_official(write(tmp_path / "release", state, arguments)))
    assert networks.occlude(torch.randn(2, 3, size, size)).shape == (2, SLOTS, size, size)


def test_values_are_translated(resnet: nn.Module, tmp_path: Path) -> None:
    state = make_source(resnet, 512, "byol_adios").state("encoder")
    weights = import_official(write(tmp_path / "release", state, {**AUTHORS, "method": "byol_adios"}))
    config = weights.config
    assert (config.backbone.name, config.image_size, weights.image_size, weights.classes) == ("resnet18", 32, 32, 5)
    assert (config.objective.name, config.objective.hidden_dim, config.objective.output_dim) == ("byol", 24, 16)
    assert (config.epochs, config.batch_size, config.objective.momentum_start) == (500, 64, 0.98)
    optimizer, masking, augment = config.optimizer, config.masking, config.augment
    assert (optimizer.name, optimizer.encoder_lr, optimizer.occlusion_lr) == ("lars", 0.24, 0.07)
    assert (optimizer.weight_decay, optimizer.warmup_epochs) == (1e-4, 7)
    assert (masking.scheme, masking.slots, masking.width, masking.norm) == ("adios", 3, 8, "group")
    assert (masking.sparsity_weight, masking.order, masking.reduction) == (0.4, "alternating", "sum")
    assert (augment.brightness, augment.blur_probability) == (0.4, 0.5), "views that differ keep the default"
    assert "model-ep=499.ckpt (byol_adios, resnet18, imagenet100s)" in weights.origin
    assert weights.config.evaluation.view == "resize-256"  # by which their accuracies were published


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, set(ALL_TERMS)),
        ({"use_symmetry_mask": False}, {"masked-unmasked", "unmasked-unmasked", "masked-masked"}),
        ({"use_symmetry_mask": False, "use_no_mask": False}, {"masked-unmasked", "masked-masked"}),
        ({"use_no_mask": False, "use_both_mask": False}, {"masked-unmasked", "unmasked-masked"}),
        ({"use_symmetry_mask": False, "use_both_mask": False}, {"masked-unmasked", "unmasked-unmasked"}),
    ],
)
def test_the_terms_of_simsiam_are_translated(options: dict[str, bool], terms: set[str], tmp_path: Path) -> None:
    encoder: nn.Module = torchvision.models.resnet18()
    encoder.fc = nn.Identity()
    source = make_source(encoder, 512, "simsiam_adios")
    heads = {"predictor.0.weight": torch.randn(9, 16), "predictor.3.weight": torch.randn(16, 9)}
    heads |= {f"predictor.1.{name}": torch.rand(9) for name in ("weight", "bias", "running_mean", "running_var")}
    arguments = {**AUTHORS, "method": "simsiam_adios", "alpha_sparsity": 0, **options}
    config = import_official(write(tmp_path / "release", {**source.state("encoder"), **heads}, arguments)).config
    assert (config.objective.masked_views, set(config.objective.terms)) == ("both", terms)
    assert (config.objective.predictor_dim, config.objective.output_dim, config.objective.hidden_dim) == (9, 16, 24)
    assert (config.masking.sparsity_weight, config.masking.entropy_weight) == (0.0, 0.2)
    assert config.constant_predictor_lr


def test_what_is_not_imported_is_said_line_by_line(
    resnet: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"scheduler": "warmup_cosine", "min_lr": 0.0, "eta_lars": 0.02, "grad_clip_lars": True, "gpus": [0]}
    other = {"scheduler": "step", "eta_lars": 0.001, "classifier_lr": 0.3, "train_mask_epoch": 10, "gpus": [0, 1]}
    state = make_source(resnet, 512, "byol_adios").state("encoder")
    for name, changes in (("same", {**same, "gaussian_prob": [0.5, 0.5]}), ("other", other)):
        folder = write(tmp_path / name, state, {**AUTHORS, "method": "byol_adios", **changes})
        assert main(["import-official", str(folder), "--output", str(tmp_path / f"{name}.safetensors")]) == 0
    first, *lines = capsys.readouterr().out.splitlines()[-7:]
    assert first.startswith(f"{tmp_path / 'other.safetensors'}: resnet18, byol")
    assert unsupported(tmp_path / "same") == []
    assert lines == [f"not imported: {line}" for line in unsupported(tmp_path / "other")]
    assert {line.split()[2] for line in lines} == {"gaussian_prob", *other}


@pytest.mark.parametrize("name", ["args.json", "m.ckpt"])
def test_what_is_read_is_not_replaced(
    name: str, resnet: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = make_source(resnet, 512, "byol_adios").state("encoder")
    folder = write(tmp_path / "release", state, {**AUTHORS, "method": "byol_adios", "dataset": {"name": "own"}})
    (checkpoint,) = folder.glob("*.ckpt")
    checkpoint.rename(folder / "m.ckpt")
    before = (folder / name).read_bytes()
    assert main(["import-official", str(folder), "--output", str(folder / name)]) == 2
    assert f"--output {folder / name} is there already, and of another kind" in capsys.readouterr().err
    assert (folder / name).read_bytes() == before
    for _ in range(2):  # its own file is replaced
        assert main(["import-official", str(folder), "--output", str(folder / "weights.safetensors")]) == 0


@pytest.mark.parametrize(
    ("dataset", "size", "view"),
    [
        *((name, SIZE, "resize-256") for name in ("imagenet100s", "imagenet100", "imagenet")),
        ("imagenet", 256, "square"),  # no center of 256 pixels
        ("stl10", SIZE, "square"),
    ],
)
def test_photographs_are_evaluated_as_published(
    dataset: str, size: int, view: str, resnet: nn.Module, tmp_path: Path
) -> None:
    state = make_source(resnet, 512, "simclr").state("encoder")
    arguments = {**AUTHORS, "method": "simclr", "dataset": dataset, "img_size": size}
    config = import_official(write(tmp_path / "release", state, arguments)).config
    assert (config.image_size, config.evaluation.view) == (size, view)


def test_the_published_view_is_for_images_that_are_stored_large_enough(
    resnet: nn.Module, objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = make_source(resnet, 512, "simclr").state("encoder")
    weights = import_official(write(tmp_path / "release", state, {**AUTHORS, "method": "simclr"}))
    large = make_objects(tmp_path / "large", size=256, counts={"train": 1, "val": 1, "test": 1})
    with opened(build_subject(weights, open_shards(large))) as subject:
        assert subject.view == "resize-256"
    assert capsys.readouterr().err == ""
    small = open_shards(objects_dir)
    with opened(build_subject(weights, small)) as subject:
        assert subject.view == "square"
    assert capsys.readouterr().err.startswith("evaluates central squares: images stored at 32 pixels are too small")
    with pytest.raises(ConfigError, match="needs images stored at 256 pixels or more"):
        build_subject(weights, small, view="resize-256")


def test_what_the_authors_leave_as_it_is_in_images_of_clevr(resnet: nn.Module, tmp_path: Path) -> None:
    arguments = {**AUTHORS, "method": "simclr", "dataset": "clevr", "gaussian_prob": [0.5, 0.5]}
    folder = write(tmp_path / "release", make_source(resnet, 512, "simclr").state("encoder"), arguments)
    (line,) = unsupported(folder)
    assert line.startswith("images of clevr were not normalized, which the encoder expects")
    augment = import_official(folder).config.augment
    assert (augment.jitter_probability, augment.grayscale_probability, augment.blur_probability) == (0, 0, 0)
    assert (augment.solarize_probability, augment.flip_probability) == (0, 0.5)


@pytest.mark.parametrize("dataset", ["stl10", "cifar10"])
def test_another_normalization_is_said(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(json.dumps({**AUTHORS, "gaussian_prob": [0.5, 0.5], "dataset": dataset}))
    (line,) = unsupported(tmp_path)
    assert line.startswith(f"images of {dataset} were normalized by means and deviations of its own")


def test_arguments_in_sections(resnet: nn.Module, tmp_path: Path) -> None:
    jitter = {"prob": 0.8, "brightness": 0.3}
    arguments = {
        "method": "simclr",
        "backbone": {"name": "resnet18", "kwargs": {}},
        "method_kwargs": {"temperature": 0.15},
        "data": {"dataset": "custom", "num_classes": CLASSES},
        "optimizer": {"name": "adamw", "lr": 0.01, "batch_size": 96},
        "scheduler": {"name": "warmup_cosine", "warmup_epochs": 3},
        "augmentations": [{"crop_size": 64, "color_jitter": jitter}, {"crop_size": 64, "color_jitter": jitter}],
        "max_epochs": 20,
    }
    state = make_source(resnet, 512, "simclr").state("backbone")
    del state["classifier.weight"], state["classifier.bias"]
    weights = import_official(write(tmp_path / "release", state, arguments))
    config = weights.config
    assert (weights.image_size, weights.classes, config.epochs, config.batch_size) == (64, CLASSES, 20, 96)
    assert (config.optimizer.name, config.optimizer.encoder_lr, config.optimizer.warmup_epochs) == ("adamw", 0.01, 3)
    assert (config.objective.temperature, config.augment.brightness) == (0.15, 0.3)
    assert build_networks(weights).probe.out_features == CLASSES


@pytest.mark.parametrize(
    ("method", "changes", "replaced", "message"),
    [
        ("mocov3", {}, {}, "method mocov3 cannot be imported, but simclr, simclr_adios, "),
        ("simclr_gt", {}, {}, "method simclr_gt cannot be imported"),
        ("simclr", {"encoder": "swin_tiny"}, {}, "backbone swin_tiny cannot be imported, but resnet18, vit_tiny can"),
        ("simclr", {"lr": -1}, {}, "args.json: optimizer.encoder_lr = -1"),
        ("simclr", {"img_size": None, "dataset": "custom"}, {}, "args.json has no image size"),
        ("simclr", {}, {"projector.2.weight": None}, "no tensor for objective.projector.2.weight"),
        ("simclr", {}, {}, "does not fit its own configuration: backbone.bn1.bias is missing"),
        ("simclr_adios", {"unet_norm": "bn"}, {}, "unet_norm bn in args.json must be one of gn, in, no"),
        ("simsiam_adios", {"alpha_sparsity": -1}, {}, "args.json: masking.sparsity_weight = -1"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    method: str,
    changes: dict[str, Any],
    replaced: dict[str, Tensor | None],
    message: str,
    tmp_path: Path,
) -> None:
    known = method if method in METHODS else "simclr"
    state = {**make_source(nn.Identity(), 512, known).state("encoder"), **replaced}
    kept = {name: values for name, values in state.items() if values is not None}
    folder = write(tmp_path / "release", kept, {**AUTHORS, "method": method, **changes})
    with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
        import_official(folder)
    assert str(folder) in str(caught.value)


def test_incomplete_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    command = ["import-official", str(folder), "--output", str(tmp_path / "weights.safetensors")]

    def refusal() -> str:
        assert main(command) == 2
        return capsys.readouterr().err

    assert refusal().startswith(f"error: {folder} has no args.json: name a folder of the authors' release or of solo")
    (folder / "args.json").write_text("{}")
    assert refusal() == f"error: {folder} must hold one checkpoint, *.ckpt, and holds none\n"
    checkpoint = folder / "a.ckpt"
    torch.save({"state_dict": {}}, checkpoint, _use_new_zipfile_serialization=False)
    assert "is not a complete zip archive, as torch writes it since version 1.6" in refusal()
    torch.save({"weights": {}}, checkpoint)
    assert "has no state_dict: it is not a checkpoint of Lightning" in refusal()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("other", b"")
    assert "not one of torch: it has no data.pkl" in refusal()
    (folder / "b.ckpt").touch()
    assert "and holds a.ckpt, b.ckpt" in refusal()
    assert not (tmp_path / "weights.safetensors").exists()

"""Weights files, initialization from them, the exported encoder, and their commands."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
from PIL import Image
from small import SIZE, make_objects, small_config
from torch import nn

import adios_ray
from adios_ray.checkpoints import STATE_FILE, load_checkpoint, save_checkpoint
from adios_ray.cli import main
from adios_ray.config import replaced
from adios_ray.data.pixels import MEAN, STD
from adios_ray.data.shards import open_shards
from adios_ray.errors import CheckpointError, ConfigError
from adios_ray.evaluation.fitness import evaluate
from adios_ray.models.export import export_encoder, export_occlusion_model, load_occlusion_model
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, build_networks, load_initial, load_weights, save_weights
from adios_ray.training.trainer import Trainer

CLASSES = 4
VIT = {"name": "vit_tiny_patch16_224"}


def make(size: int = SIZE, seed: int = 0, **changes: Any) -> Networks:
    """Build the networks of a small trial, with running statistics of random images."""
    torch.manual_seed(seed)
    networks = Networks(small_config(Path("data"), **changes), size, CLASSES)
    with torch.no_grad():
        networks.embed(torch.randn(8, 3, size, size))
    return networks.eval()


def weights_of(networks: Networks, size: int = SIZE) -> Weights:
    """Collect the content of a weights file of networks."""
    return Weights(networks.config, size, CLASSES, "made for a test", networks.state_dict())


def saved(path: Path, networks: Networks, size: int = SIZE) -> Path:
    """Write a weights file of networks."""
    save_weights(path, weights_of(networks, size))
    return path


def begin(networks: Networks, path: Path) -> None:
    """Initialize networks with the weights of a file."""
    load_initial(networks, load_weights(path), path)


def same_state(ours: nn.Module, theirs: nn.Module) -> bool:
    """Tell whether two modules have equal tensors."""
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


@pytest.fixture(scope="module")
def byol() -> Networks:
    """Build the networks of a small trial with every part: momentum, occlusion model, probe."""
    return make(objective={"name": "byol"})


@pytest.fixture(scope="module")
def trainer(objects_dir: Path) -> Trainer:
    """Build a trainer before its first step."""
    return Trainer(small_config(objects_dir, objective={"name": "byol"}), torch.device("cpu"))


@pytest.fixture(scope="module")
def vit() -> Networks:
    """Build a vision transformer for 64 pixels with an occlusion model."""
    return make(64, backbone=VIT)


def test_a_weights_file_gives_the_same_networks(byol: Networks, tmp_path: Path) -> None:
    weights = load_weights(saved(tmp_path / "deep" / "w.safetensors", byol))
    assert (weights.config, weights.image_size, weights.classes) == (byol.config, SIZE, CLASSES)
    assert weights.origin == "made for a test"
    networks = build_networks(weights)
    assert same_state(networks, byol) and not any(module.training for module in networks.modules())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["w.safetensors"], "nothing is left aside"


def test_a_checkpoint_gives_the_same_networks(trainer: Trainer, tmp_path: Path) -> None:
    directory, x = trainer.save(tmp_path / "000000").path, torch.randn(2, 3, SIZE, SIZE)
    networks = trainer.networks.eval()
    for path in (directory, directory / STATE_FILE):
        weights = load_weights(path)
        assert same_state(build_networks(weights), networks) and weights.origin == f"checkpoint {directory}, step 0"
        assert torch.equal(adios_ray.load_encoder(path)(x), networks.backbone(x))
    config = replaced(trainer.config, {"initial_weights": directory, "seed": 1})
    begun = Trainer(config, torch.device("cpu")).networks
    assert same_state(begun.backbone, networks.backbone) and not same_state(begun.probe, networks.probe)


@pytest.mark.slow
def test_weights_and_exports_may_have_the_name_of_a_checkpoints_file(tmp_path: Path) -> None:
    networks, x = make(backbone={"name": "resnet18"}), torch.randn(2, 3, SIZE, SIZE)
    for folder in ("weights", "encoder", "occlusion"):
        (tmp_path / folder).mkdir()
    weights = load_weights(saved(tmp_path / "weights" / STATE_FILE, networks))
    assert same_state(build_networks(weights), networks)
    assert torch.equal(adios_ray.load_encoder(tmp_path / "weights" / STATE_FILE)(x), networks.backbone(x))
    export_encoder(weights, tmp_path / "encoder" / STATE_FILE, "timm")
    assert torch.equal(adios_ray.load_encoder(tmp_path / "encoder" / STATE_FILE)(x), networks.backbone(x))
    export_occlusion_model(weights, tmp_path / "occlusion" / STATE_FILE)
    occlusion = load_occlusion_model(tmp_path / "occlusion" / STATE_FILE)
    assert networks.occlusion is not None and torch.equal(occlusion(x), networks.occlusion(x))


def test_a_file_without_probe_gets_a_fresh_one(byol: Networks, tmp_path: Path) -> None:
    weights = weights_of(byol)
    tensors = {name: values for name, values in weights.tensors.items() if not name.startswith("probe.")}
    save_weights(tmp_path / "w.safetensors", dataclasses.replace(weights, tensors=tensors, classes=9))
    networks = build_networks(load_weights(tmp_path / "w.safetensors"))
    assert networks.probe.out_features == 9 and same_state(networks.backbone, byol.backbone)


def test_files_that_are_no_weights_are_named(byol: Networks, trainer: Trainer, tmp_path: Path) -> None:
    good = saved(tmp_path / "good.safetensors", byol)
    newer = {"schema_version": 2, "origin": "", "image_size": SIZE, "classes": 4, "config": {}}
    for name, metadata in (("other", {}), ("bad", {"adios_ray": "{"}), ("newer", {"adios_ray": json.dumps(newer)})):
        safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors", metadata)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    (tmp_path / "text").write_text("no weights")
    for folder in ("folder", "run", "unfinished"):
        (tmp_path / folder).mkdir()
    for folder in ("run", "unfinished"):
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "run" / "summary.json").write_text('{"best_trial": "trial_01", "best_epoch": 5, "seconds": 1.0}')
    state = load_checkpoint(trainer.save(tmp_path / "broken"), torch.device("cpu"))
    (tmp_path / "broken" / STATE_FILE).write_bytes(b"0")
    save_checkpoint(tmp_path / "older", {key: state[key] for key in state.keys() - {"image_size"}}, {})
    for name, kind, message in (
        ("none.safetensors", ConfigError, "do not exist"),
        ("cut.safetensors", CheckpointError, "is not a safetensors file, or a damaged one"),
        ("text", CheckpointError, "is not a safetensors file, or a damaged one"),
        ("other.safetensors", ConfigError, "other.safetensors is no weights file of adios_ray: its metadata has no"),
        ("bad.safetensors", CheckpointError, "metadata: not JSON"),
        ("newer.safetensors", ConfigError, "schema_version = 2"),
        ("folder", ConfigError, "is not a checkpoint of a run, as it has no meta.json"),
        (f"none/{STATE_FILE}", ConfigError, "do not exist"),
        ("run", ConfigError, f"best trial is {tmp_path}/run/checkpoints/trial_01/epoch_00005"),
        ("unfinished", ConfigError, "is a run that has not finished: name one of its checkpoints"),
        ("broken", CheckpointError, "its checksum is not the one it was saved with"),
        ("older", CheckpointError, "has no image_size: it is of another version"),
    ):
        with pytest.raises(kind, match=message) as caught:
            load_weights(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(
        CheckpointError, match=r"made for a test does not fit its own configuration: probe.bias is \[4\]"
    ):
        build_networks(dataclasses.replace(weights_of(byol), classes=5))


def test_training_begins_with_the_weights_of_a_file(byol: Networks, tmp_path: Path) -> None:
    networks = make(seed=1, objective={"name": "byol"})
    probe = networks.probe.weight.clone()
    begin(networks, saved(tmp_path / "w.safetensors", byol))
    for part in ("backbone", "objective", "momentum", "occlusion"):
        assert same_state(getattr(networks, part), getattr(byol, part)), part
    assert torch.equal(networks.probe.weight, probe), "the probe is never taken"
    x = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(networks.embed(x)[0].online, byol.embed(x)[0].online)
    assert torch.equal(networks.occlude(x), byol.occlude(x))


def test_what_the_file_does_not_have_stays_fresh(byol: Networks, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", make(objective={"name": "simclr"}, masking={"scheme": "none"}))
    networks, fresh = (make(seed=1, objective={"name": "byol"}) for _ in range(2))
    begin(networks, path)
    assert networks.momentum is not None and networks.occlusion is not None and fresh.occlusion is not None
    assert not same_state(networks.backbone, fresh.backbone)
    assert same_state(networks.momentum["backbone"], networks.backbone), "averages begin as copies"
    assert same_state(networks.objective, fresh.objective) and same_state(networks.occlusion, fresh.occlusion)
    unmasked = make(seed=1, masking={"scheme": "mae"})
    begin(unmasked, saved(path, byol))
    assert same_state(unmasked.backbone, byol.backbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"name": "resnet18"}}, "its backbone does not fit .*; set backbone.name = resnet_small$"),
        ({"objective": {"hidden_dim": 32}}, "its heads of byol do not fit .*; set objective.hidden_dim = 16"),
        ({"objective": {"hidden_dim": 9, "output_dim": 4}}, "set objective.hidden_dim = 16, objective.output_dim = 8"),
        ({"masking": {"width": 16, "norm": "instance"}}, "set masking.width = 8, masking.norm = group"),
        ({"image_size": 64}, "set image_size = 32"),
    ],
)
def test_what_does_not_fit_is_named_with_its_option(
    changes: dict[str, Any], message: str, byol: Networks, tmp_path: Path
) -> None:
    path = saved(tmp_path / "w.safetensors", byol)
    merged = {**changes, "objective": {"name": "byol", **changes.get("objective", {})}}
    with pytest.raises(ConfigError, match=message) as caught:
        begin(make(changes.get("image_size", SIZE), **merged), path)
    assert str(path) in str(caught.value)


@pytest.mark.slow
def test_options_of_the_backbone_count_where_they_change_what_it_computes(tmp_path: Path) -> None:
    stem, initial = {"name": "resnet18", "cifar_stem": True}, {"zero_init_last": False}
    wide, plain = make(backbone={**stem, **initial, "stem_padding": 2}), make(backbone={"name": "resnet18", **initial})
    for given, changes, wanted in (
        (wide, stem, "backbone.stem_padding = 2"),
        (plain, stem, "backbone.cifar_stem = False"),
        (wide, {"name": "resnet18"}, "backbone.cifar_stem = True, backbone.stem_padding = 2"),
        (wide, {**stem, "stem_padding": 2}, None),
        (plain, {"name": "resnet18", "stem_padding": 2}, None),
    ):
        path, networks = saved(tmp_path / "w.safetensors", given), make(seed=1, backbone=changes)
        if wanted is None:
            begin(networks, path)
            assert same_state(networks.backbone, given.backbone)
        else:
            with pytest.raises(ConfigError, match=f"its backbone does not fit the configured one; set {wanted}$"):
                begin(networks, path)


@pytest.mark.slow
def test_position_embeddings_are_resampled(vit: Networks, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", vit, 64)
    same, smaller = make(64, seed=1, backbone=VIT), make(48, seed=1, backbone=VIT, masking={"scheme": "none"})
    for networks in (same, smaller):
        begin(networks, path)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(same.backbone(x), vit.backbone(x))
    assert smaller.backbone(x[..., :48, :48]).shape == (2, 192)
    given, taken = vit.backbone.state_dict(), smaller.backbone.state_dict()
    assert taken["pos_embed"].shape == (1, 10, 192) and torch.equal(taken["pos_embed"][:, 0], given["pos_embed"][:, 0])
    assert all(torch.equal(taken[name], given[name]) for name in given.keys() - {"pos_embed"})


@pytest.mark.slow
@pytest.mark.parametrize("cifar_stem", [False, True])
def test_an_exported_resnet_loads_into_timm_and_torchvision_as_documented(
    cifar_stem: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = make(backbone={"name": "resnet18", "cifar_stem": cifar_stem, "stem_padding": 2 if cifar_stem else 1})
    x = torch.randn(2, 3, SIZE, SIZE)
    features = networks.backbone(x)
    page = (Path(__file__).parents[1] / "docs" / "weights.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_state_dict" in block)
    for naming in ("timm", "torchvision"):
        output = tmp_path / naming / "encoder.safetensors"
        export_encoder(weights_of(networks), output, naming)
        monkeypatch.chdir(output.parent)
        names: dict[str, Any] = {}
        exec(code, names)
        info = names["info"]
        torch.testing.assert_close(names["model"].eval()(x), features, rtol=0, atol=1e-5)
        torch.testing.assert_close(adios_ray.load_encoder(output)(x), features, rtol=0, atol=1e-5)
        assert (info["naming"], info["features"], info["image_size"]) == (naming, 512, SIZE)
        assert (info["mean"], info["std"], info["cifar_stem"]) == (list(MEAN), list(STD), cifar_stem)
        assert info["config"]["backbone"]["name"] == "resnet18" and info["origin"] == "made for a test"
        assert info["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()


@pytest.mark.slow
def test_an_exported_vision_transformer_loads_into_timm(vit: Networks, tmp_path: Path) -> None:
    output = tmp_path / "encoder.safetensors"
    export_encoder(weights_of(vit, 64), output, "timm")
    info = json.loads(output.with_suffix(".json").read_text())
    assert info["arguments"] == {"num_classes": 0, "img_size": 64}
    model, x = timm.create_model(info["name"], **info["arguments"]), torch.randn(2, 3, 64, 64)
    model.load_state_dict(safetensors.torch.load_file(output), strict=True)
    torch.testing.assert_close(model.eval()(x), vit.backbone(x), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="torchvision has no ResNet with the tensors of vit_tiny_patch16_224"):
        export_encoder(weights_of(vit, 64), output, "torchvision")


def test_encoder_and_occlusion_model_in_one_call(byol: Networks, tmp_path: Path) -> None:
    x, file = torch.randn(2, 3, SIZE, SIZE), saved(tmp_path / "w.safetensors", byol)
    for path in (file, str(file)):
        encoder, occlusion = adios_ray.load_encoder(path), adios_ray.load_occlusion_model(path)
        assert torch.equal(encoder(x), byol.backbone(x)) and not encoder.training
        assert torch.equal(occlusion(x), byol.occlude(x)) and not occlusion.training
        for module in (encoder, occlusion):  # whole modules, as users save them too
            torch.save(module, tmp_path / "module.pt")
            assert torch.equal(torch.load(tmp_path / "module.pt", weights_only=False)(x), module(x))
    with pytest.raises(ConfigError, match="has no averaged weights: evaluation.average_weights was off"):
        adios_ray.load_encoder(file, averaged=True)
    without = saved(tmp_path / "w.safetensors", make(masking={"scheme": "none"}))
    with pytest.raises(ConfigError, match="has no occlusion model: masking.scheme was none"):
        adios_ray.load_occlusion_model(without)


def test_an_onnx_file_is_traced_to_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    for read in (load_weights, adios_ray.load_encoder, adios_ray.load_occlusion_model):
        with pytest.raises(ConfigError, match=r"encoder.onnx is for other programs: name the checkpoint that it was"):
            read(tmp_path / "encoder.onnx")


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, adios_ray; sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'numpy', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_commands(
    byol: Networks,
    objects_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ADIOS_RAY_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "encoder.safetensors"
    inputs = ["--checkpoint", str(saved(tmp_path / "w.safetensors", byol)), "--data-dir", str(objects_dir)]
    assert main(["evaluate", *inputs]) == 0
    result, dataset = json.loads(capsys.readouterr().out), open_shards(objects_dir)
    assert (result["backbone"], result["split"], result["images"]) == ("resnet_small", "test", 40)
    splits = dataset.split("train"), dataset.split("test")
    assert result["knn_accuracy"] == evaluate(byol, *splits, SIZE, byol.config.evaluation).estimates[0].accuracy
    assert result["view"] == "square"
    large = make_objects(tmp_path / "large", size=256)
    assert main(["evaluate", *inputs[:2], "--data-dir", str(large), "--view", "resize-256"]) == 0
    result, dataset = json.loads(capsys.readouterr().out), open_shards(large)
    part = byol.config.evaluation.model_copy(update={"view": "resize-256"})
    assert result["view"] == "resize-256"
    splits = dataset.split("train"), dataset.split("test")
    assert result["knn_accuracy"] == evaluate(byol, *splits, SIZE, part).estimates[0].accuracy
    assert main(["masks", *inputs, "--output", str(tmp_path / "masks.png"), "--images", "5"]) == 0
    assert "5 images, 3 masks each" in capsys.readouterr().out
    with Image.open(tmp_path / "masks.png") as sheet:
        assert sheet.size == (5 * 100 - 4, (2 + 3) * 100 - 4) and len(np.unique(np.asarray(sheet))) > 2
    resnet = saved(tmp_path / "r.safetensors", make(backbone={"name": "resnet18"}))
    assert main(["export", "--checkpoint", str(resnet), "--output", str(output), "--naming", "torchvision"]) == 0
    assert "torchvision resnet18, 512 features, 32 pixels" in capsys.readouterr().out
    output.write_bytes(output.read_bytes()[:-1] + b"0")
    with pytest.raises(CheckpointError, match="its checksum is another one"):
        adios_ray.load_encoder(output)
    output.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match="neither a weights file of adios_ray nor an exported encoder with"):
        adios_ray.load_encoder(output)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate --checkpoint none --data-dir data", "weights none do not exist"),
        ("evaluate --checkpoint w.safetensors --data-dir none", "none"),
        ("export --checkpoint w.safetensors --output e.safetensors", "resnet_small is adios_ray's own and not in timm"),
        ("export --checkpoint w.safetensors --output e.pt", "e.pt: the name of an exported encoder must end in"),
        ("masks --checkpoint w.safetensors --data-dir data --output m.png --images 0", "--images 0 must be at least 1"),
        ("import-official none --output w.safetensors", "none has no args.json: name a folder of the authors' release"),
    ],
)
def test_errors_of_commands_are_one_line(
    command: str,
    message: str,
    byol: Networks,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    saved(tmp_path / "w.safetensors", byol)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.slow
def test_a_description_and_other_files_do_not_replace_each_other(
    byol: Networks, objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = str(saved(tmp_path / "w.safetensors", byol)), tmp_path / "masker.safetensors"
    export = ["export", "--checkpoint", weights, "--output", str(output), "--occlusion"]
    evaluate_ = ["evaluate", "--checkpoint", weights, "--data-dir", str(objects_dir), "--output"]
    description = output.with_suffix(".json")
    description.write_text('{"scores": 1}')
    assert main(export) == 2 and "is another file, which the description of" in capsys.readouterr().err
    assert description.read_text() == '{"scores": 1}' and not output.exists()
    description.unlink()
    assert main(export) == main(export) == 0
    before = description.read_text()
    assert main([*evaluate_, str(description)]) == 2
    assert f"--output {description} is there already, and of another kind: remove it" in capsys.readouterr().err
    assert description.read_text() == before


@pytest.mark.parametrize("place", ["first", "inside"])
def test_names_of_wrappers_are_read_as_if_there_were_none(place: str, byol: Networks, tmp_path: Path) -> None:
    weights = weights_of(byol)
    wrapped = {
        (f"module.{name}" if place == "first" else name.replace("backbone.", "backbone._orig_mod.module.")): values
        for name, values in weights.tensors.items()
    }
    save_weights(tmp_path / "wrapped.safetensors", dataclasses.replace(weights, tensors=wrapped))
    assert same_state(build_networks(load_weights(tmp_path / "wrapped.safetensors")), byol)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    networks = make()
    with torch.no_grad():
        networks.get_parameter("objective.projector.0.weight")[1, 2] = value
    state = {"config": networks.config.model_dump(mode="json"), "image_size": SIZE, "networks": networks.state_dict()}
    save_checkpoint(tmp_path / "checkpoint", {**state, "step": 3}, {})
    with pytest.raises(CheckpointError, match="checkpoint.*step 3: objective.projector.0.weight is not finite"):
        load_weights(tmp_path / "checkpoint")

"""Averaged weights: their closed form, training without them, resumption, exploits and export."""

import json
from pathlib import Path

import pytest
import torch
from small import SIZE, small_config
from torch import Tensor
from trainers import assert_identical, saved, trained

from adios_ray import load_encoder
from adios_ray.checkpoints import load_checkpoint
from adios_ray.cli import main
from adios_ray.config import TrialConfig, replaced
from adios_ray.errors import ConfigError
from adios_ray.evaluation.fitness import evaluate
from adios_ray.evaluation.statistics import refresh_statistics
from adios_ray.models.networks import Networks, with_average
from adios_ray.models.weights import averaged, build_networks, load_weights
from adios_ray.training.trainer import Trainer

CPU = torch.device("cpu")


def plain(data: Path, **changes: object) -> TrialConfig:
    """Configure a trial of 3 steps per epoch, without masks."""
    return small_config(data, masking={"scheme": "none"}, **changes)


def averaging(data: Path, **changes: object) -> TrialConfig:
    """Configure a trial of 3 steps per epoch, without masks, that averages its weights."""
    return plain(data, **{"evaluation": {"average_weights": True}, **changes})


def means(networks: Networks) -> dict[str, Tensor]:
    """Return the averaged parameters by name."""
    assert networks.averaged is not None
    return {name: parameter.detach() for name, parameter in networks.averaged.named_parameters()}


@pytest.mark.slow
def test_the_mean_equals_the_weighted_sum_of_all_steps_and_training_is_the_same(
    objects_dir: Path, tmp_path: Path
) -> None:
    trainer, steps = Trainer(averaging(objects_dir), CPU), []
    for step in range(1, 7):
        trainer.train_until(step)
        own = {"backbone": trainer.networks.backbone, "probe": trainer.networks.probe}
        steps.append(
            {f"{part}.{name}": p.detach().double() for part in own for name, p in own[part].named_parameters()}
        )
    # 1/3 each over the first epoch of 3 steps; each later step takes 1/3 and leaves 2/3 to the steps before.
    coefficients = [8 / 81, 8 / 81, 8 / 81, 4 / 27, 2 / 9, 1 / 3]
    assert sum(coefficients) == pytest.approx(1)
    for name, mean in means(trainer.networks).items():
        expected = sum(c * weights[name] for c, weights in zip(coefficients, steps, strict=True))
        torch.testing.assert_close(mean.double(), expected, rtol=0, atol=1e-6)
    usual = trained(plain(objects_dir), 6)
    state = with_average(trainer.networks.state_dict(), averages=False)
    assert_identical(usual.networks.state_dict(), state)
    assert with_average(state, averages=True).keys() == trainer.networks.state_dict().keys()


@pytest.mark.parametrize("fitness", ["knn", "probe"])
@pytest.mark.slow
def test_resumption_and_exploits_keep_the_mean_bit_for_bit(objects_dir: Path, tmp_path: Path, fitness: str) -> None:
    config = averaging(objects_dir, evaluation={"average_weights": True, "fitness": fitness})
    donor = Trainer(config, CPU)
    donor.train_to_report()
    pointer = donor.save(tmp_path / "donor")
    resumed, trial = Trainer(config, CPU), trained(replaced(config, {"seed": 3}), 2)
    for trainer in (resumed, trial):
        trainer.load(pointer, config)
        assert_identical(load_checkpoint(pointer, CPU), saved(trainer, tmp_path / "copy"))
    reports = [trainer.train_to_report() for trainer in (donor, resumed, trial)]
    assert len({(report.fitness, report.outcomes) for report in reports}) == 1
    states = [saved(trainer, tmp_path / str(number)) for number, trainer in enumerate((donor, resumed, trial))]
    for state in states[1:]:
        assert_identical(states[0], state)


@pytest.mark.slow
def test_evaluations_see_the_mean_with_statistics_of_unmasked_images(objects_dir: Path) -> None:
    trainer = trained(averaging(objects_dir), 4)
    twin = Trainer(plain(objects_dir), CPU)
    with torch.no_grad():
        for name, mean in means(trainer.networks).items():
            twin.networks.get_parameter(name).copy_(mean)
    refresh_statistics(twin.networks.backbone, twin.train_split, SIZE)
    assert repr(trainer.evaluate("val")) == repr(twin.evaluate("val"))
    before = trained(plain(objects_dir), 4)
    assert trainer.evaluate("val") != before.evaluate("val")
    splits = before.train_split, before.val_split
    assert before.evaluate("val") == evaluate(before.networks, *splits, SIZE, before.config.evaluation).estimates[0]


@pytest.mark.slow
def test_checkpoints_without_a_mean_start_it_and_those_with_one_fit_other_trials(
    objects_dir: Path, tmp_path: Path
) -> None:
    with_mean, without = averaging(objects_dir), plain(objects_dir)
    trainer = Trainer(with_mean, CPU)
    trainer.load(trained(without, 2).save(tmp_path / "plain"), with_mean)
    for name, mean in means(trainer.networks).items():
        assert torch.equal(mean, trainer.networks.get_parameter(name))
    trainer.train_until(4)
    other = Trainer(without, CPU)
    other.load(trainer.save(tmp_path / "mean"), without)
    assert torch.equal(other.networks.probe.weight, trainer.networks.probe.weight)


@pytest.mark.slow
def test_the_mean_is_exported_as_it_was_evaluated(
    objects_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(averaging(objects_dir, backbone={"name": "resnet10t"}, epochs=1), CPU)
    trainer.train_to_report()
    trainer.save(tmp_path / "checkpoint")
    output = tmp_path / "encoder.safetensors"
    command = ["export", "--checkpoint", str(tmp_path / "checkpoint"), "--output", str(output)]
    assert main([*command, "--averaged"]) == 0
    x = torch.randn(2, 3, SIZE, SIZE)
    backbone, _ = trainer.networks.evaluated
    with torch.no_grad():
        expected, found = backbone.eval()(x), load_encoder(output)(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(found, trainer.networks.backbone.eval()(x), atol=1e-3)
        assert torch.equal(load_encoder(tmp_path / "checkpoint", averaged=True)(x), expected)
        assert torch.equal(load_encoder(tmp_path / "checkpoint")(x), trainer.networks.backbone(x))
    with pytest.raises(
        ConfigError, match=r"encoder.safetensors has the weights that were exported: leave averaged out"
    ):
        load_encoder(output, averaged=True)
    capsys.readouterr()
    inputs = ["--checkpoint", str(tmp_path / "checkpoint"), "--data-dir", str(objects_dir), "--split", "val"]
    accuracies = []
    for flags in ([], ["--averaged"]):
        assert main(["evaluate", "knn", *inputs, *flags]) == 0
        accuracies.append(json.loads(capsys.readouterr().out)["scores"]["knn_accuracy"]["value"])
    assert accuracies[1] == trainer.evaluate("val").accuracy != accuracies[0]
    rebuilt = build_networks(averaged(load_weights(tmp_path / "checkpoint")))
    assert torch.equal(rebuilt.probe.weight, means(trainer.networks)["probe.weight"])
    trained(plain(objects_dir), 1).save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="has no averaged weights: evaluation.average_weights was off"):
        averaged(load_weights(tmp_path / "plain"))
    assert main([*command, "--averaged", "--occlusion"]) == 2

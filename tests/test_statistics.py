"""BatchNorm statistics of unmasked images: their closed form, and that training is not affected."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SIZE, small_config
from torch import nn

from adios_ray.config import replaced
from adios_ray.data.loader import central_views
from adios_ray.data.shards import open_shards
from adios_ray.evaluation import statistics
from adios_ray.evaluation.statistics import fresh_statistics
from adios_ray.training.trainer import Trainer

CPU = torch.device("cpu")


def test_statistics_are_the_averages_over_batches(objects_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BATCH", 32)
    split = open_shards(objects_dir).split("train")
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()).train()
    norm = backbone[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.fill_(3.0)
    with torch.no_grad(), fresh_statistics(backbone, split, SIZE):
        outputs = [backbone[0](central_views(split, part, SIZE, CPU)) for part in np.array_split(np.arange(96), 3)]
        means = torch.stack([output.mean(dim=(0, 2, 3)) for output in outputs]).mean(dim=0)
        variances = torch.stack([output.var(dim=(0, 2, 3)) for output in outputs]).mean(dim=0)
        torch.testing.assert_close(norm.running_mean, means, rtol=0, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variances, rtol=0, atol=1e-5)
        assert not any(module.training for module in backbone.modules())
    assert all(module.training for module in backbone.modules())
    assert bool((norm.running_mean == 3).all()) and norm.momentum == 0.1 and norm.num_batches_tracked == 0


@pytest.mark.slow
def test_training_is_the_same_bit_for_bit_and_the_fitness_another(objects_dir: Path) -> None:
    trainers, values = [], []
    for fresh in (False, True):
        config = small_config(objects_dir, evaluation={"fresh_statistics": fresh, "fitness": "rankme"})
        trainers.append(Trainer(config, CPU))
        values.append([trainers[-1].train_to_report().fitness for _ in range(2)])
    states = [trainer.networks.state_dict() for trainer in trainers]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert values[0] != values[1]


def test_a_failure_inside_leaves_the_statistics(objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir), CPU)
    before = copy.deepcopy(trainer.networks.backbone.state_dict())
    with (
        pytest.raises(RuntimeError, match="stop"),
        fresh_statistics(trainer.networks.backbone, trainer.train_split, SIZE),
    ):
        raise RuntimeError("stop")
    assert all(torch.equal(values, before[name]) for name, values in trainer.networks.backbone.state_dict().items())


def test_networks_without_batch_norm_are_left_alone(objects_dir: Path) -> None:
    config = small_config(objects_dir, backbone={"name": "test_vit"}, batch_size=8)
    trainer = Trainer(config, CPU)
    plain = trainer.evaluate("val")
    trainer.config = replaced(config, {"evaluation.fresh_statistics": True})
    assert trainer.evaluate("val") == plain

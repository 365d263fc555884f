"""Scores without labels against closed forms and loops written from the papers; fitness by name; collapse."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_config
from torch import Tensor

from adios_ray.errors import EvaluationError
from adios_ray.evaluation.label_free import (
    alignment,
    alpha_req,
    effective_rank,
    feature_std,
    lidar,
    power_law_exponent,
    rankme,
    uniformity,
)
from adios_ray.training.trainer import Trainer


def with_spectrum(values: Tensor) -> Tensor:
    """Build centered features [64, len(values)] with these singular values."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(64, len(values), generator=generator, dtype=torch.float64)
    left, _ = torch.linalg.qr(left - left.mean(dim=0))
    right, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    features: Tensor = left * values @ right.T
    return features


def test_ranks_of_known_spectra() -> None:
    assert rankme(with_spectrum(torch.ones(8))) == pytest.approx(8, abs=1e-4)
    assert effective_rank(with_spectrum(torch.ones(8)) + 5) == pytest.approx(8, abs=1e-4)
    one = torch.zeros(8)
    one[3] = 2.0
    assert rankme(with_spectrum(one)) == pytest.approx(1, abs=1e-4)
    weights = torch.tensor([4.0, 2.0, 1.0, 1.0])
    p = weights / weights.sum()
    assert rankme(with_spectrum(weights)) == pytest.approx(math.exp(-float((p * p.log()).sum())), abs=1e-5)


def test_ranks_do_not_depend_on_rotation_and_scale() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    for score in (rankme, effective_rank, power_law_exponent):
        assert score(3 * features @ rotation) == pytest.approx(score(features), abs=1e-5)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (128, 128)])
def test_ranks_equal_those_of_singular_values(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(7)) + 3
    low = features[:, :5] @ torch.randn(5, shape[1], generator=torch.Generator().manual_seed(8))
    steep = features * torch.logspace(0, -6, shape[1])
    for some, error in ((features, 1e-8), (low, 1e-6), (steep, 1e-6)):
        for score, matrix in ((rankme, some.double()), (effective_rank, some.double() - some.double().mean(dim=0))):
            shares = torch.linalg.svdvals(matrix)
            shares = shares / shares.sum() + 1e-7
            expected = float(torch.exp(-(shares * shares.log()).sum()))
            assert score(some) == pytest.approx(expected, rel=1e-12 if score is rankme else error)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_power_law_is_found(alpha: float) -> None:
    eigenvalues = torch.arange(1, 21, dtype=torch.float64) ** -alpha
    features = with_spectrum(eigenvalues.sqrt())
    assert power_law_exponent(features) == pytest.approx(alpha, abs=1e-6)
    assert alpha_req(features) == pytest.approx(-abs(alpha - 1), abs=1e-6)


def naive_lidar(views: np.ndarray) -> float:
    """Compute LiDAR from the matrices of its paper, image by image."""
    n, q, size = views.shape
    overall = views.reshape(-1, size).mean(axis=0)
    between, within = np.zeros((size, size)), 1e-4 * np.eye(size)  # the paper's delta
    for image in views:
        mean = image.mean(axis=0)
        between += np.outer(mean - overall, mean - overall)
        for view in image:
            within += np.outer(view - mean, view - mean) / (n * q)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    shares = np.linalg.eigvalsh(root @ between @ root).clip(min=0)
    shares = shares / shares.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("noise", [1.0, 0.01])  # the smaller one's variance is that of delta
def test_lidar_against_its_matrices(noise: float) -> None:
    views = noise * torch.randn(30, 4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    views[..., :3] *= 2
    views += 3 * torch.randn(30, 1, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert lidar(views) == pytest.approx(naive_lidar(views.numpy()), rel=1e-6)


def test_lidar_counts_directions_that_survive_augmentation() -> None:
    images = torch.eye(8, dtype=torch.float64)[:4].repeat(5, 1)  # four directions, no noise within an image
    assert lidar(images[:, None].expand(-1, 3, -1)) == pytest.approx(3, abs=1e-3)  # centering takes one of four


def test_feature_std_of_spread_and_of_equal_directions() -> None:
    normal = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(5))
    assert feature_std(normal) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(10, 16)) == pytest.approx(0, abs=1e-9)


def test_equal_features_have_rank_one_and_no_law() -> None:
    assert rankme(torch.ones(10, 4)) == pytest.approx(1, abs=1e-4) and effective_rank(torch.ones(10, 4)) < 1.0001
    assert math.isnan(power_law_exponent(torch.ones(10, 4)))


def test_features_that_are_not_finite_score_nan() -> None:
    features = torch.ones(4, 3, 5)
    features[1, 0, 0] = math.inf
    scores = [score(features[:, 0]) for score in (rankme, effective_rank, feature_std, power_law_exponent, alpha_req)]
    assert all(math.isnan(score) for score in [*scores, lidar(features)])


def test_wrong_shapes_are_refused() -> None:
    for score in (rankme, effective_rank, feature_std, power_law_exponent):
        with pytest.raises(ValueError, match="2 dimensions and 2 rows are needed"):
            score(torch.ones(1, 4))
    with pytest.raises(ValueError, match="3 dimensions"):
        lidar(torch.ones(4, 4))
    with pytest.raises(ValueError, match="at least 2 of each image"):
        lidar(torch.ones(4, 1, 4))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("knn", 0, 1), ("probe", 0, 1), ("rankme", 1, 128), ("alpha-req", -9, 0), ("lidar", 1, 39)],
)
@pytest.mark.slow
def test_fitness_by_name(objects_dir: Path, name: str, low: float, high: float) -> None:
    trainer = Trainer(small_config(objects_dir, evaluation={"fitness": name}), torch.device("cpu"))
    found = trainer.evaluate("val")
    assert low <= found.value <= high and repr(trainer.evaluate("val")) == repr(found)
    assert found.standard_error is not None and found.standard_error > 0
    has_outcomes = name in ("knn", "probe")
    assert (found.outcomes is not None) == has_outcomes == math.isfinite(found.accuracy)


@pytest.mark.slow
def test_a_collapsed_encoder_has_no_fitness_and_says_why(objects_dir: Path) -> None:
    trainer = Trainer(small_config(objects_dir), torch.device("cpu"))
    trainer.train_until(2)
    with torch.no_grad():
        for parameter in trainer.networks.backbone.parameters():
            parameter.zero_()
    assert math.isnan(trainer.evaluate("val").value)
    report = trainer.train_to_report()
    assert math.isnan(report.fitness) and report.divergence == "epoch 1: collapsed: feature std 0 is below 0.01"


@pytest.mark.slow
def test_one_direction_is_a_collapse_too(objects_dir: Path) -> None:
    config = small_config(objects_dir, evaluation={"min_effective_rank": 60.0})
    report = Trainer(config, torch.device("cpu")).train_to_report()
    assert report.divergence is not None
    assert "effective rank" in report.divergence and "is below 60" in report.divergence


def test_uniformity_and_alignment_equal_the_loops_over_pairs() -> None:
    views = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    views[3], views[5, 1] = 0, 0  # as of an encoder that is dead for some images
    unit = views / views.norm(dim=2, keepdim=True).clamp(min=1e-12)
    pairs = [(a, b) for a in range(12) for b in range(a)]
    gaps = [math.exp(-2 * float((unit[a, 0] - unit[b, 0]).square().sum())) for a, b in pairs]
    assert uniformity(views[:, 0]) == pytest.approx(math.log(sum(gaps) / len(gaps)), abs=1e-12)
    near = [float((unit[i, a] - unit[i, b]).square().sum()) for i in range(12) for a in range(4) for b in range(a)]
    assert alignment(views) == pytest.approx(sum(near) / len(near), abs=1e-12)
    assert 0 <= alignment(views[:, :1].expand(-1, 3, -1)) < 1e-12 and alignment(0 * views) == 0
    assert uniformity(views[:1, 0].expand(5, -1)) == pytest.approx(0, abs=1e-12)


def test_pairs_need_two() -> None:
    with pytest.raises(EvaluationError, match="uniformity needs two images or more, not 1"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(EvaluationError, match="alignment needs two views of each image or more, not 1"):
        alignment(torch.ones(4, 1, 3))

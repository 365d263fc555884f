"""The distances against pinned numbers and naive loops; the heads' shapes."""

import math

import pytest
import torch
from test_masking import golden

from adios_ray.config import ObjectiveConfig
from adios_ray.objectives import View, build_objective
from adios_ray.objectives.byol import squared_distance
from adios_ray.objectives.simclr import nt_xent
from adios_ray.objectives.simsiam import negative_cosine


@pytest.mark.parametrize("temperature", [0.1, 0.2, 0.5])
def test_nt_xent_agrees_with_the_published_loss(temperature: float) -> None:
    values = golden("losses.npz")
    expected = float(values[f"simclr_T{temperature}"])
    assert nt_xent(values["z1"], values["z2"], temperature).item() == pytest.approx(expected, abs=1e-5)


def test_distances_agree_with_the_published_ones() -> None:
    values = golden("losses.npz")
    z1, z2 = values["z1"], values["z2"]
    assert squared_distance(z1, z2).item() == pytest.approx(float(values["byol_p1_z2"]), abs=1e-5)
    assert negative_cosine(z1, z2).item() == pytest.approx(float(values["simsiam_p1_z2"]), abs=1e-5)


def test_nt_xent_equals_a_loop_over_anchors() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 5, 7, dtype=torch.float64)
    z = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    total = 0.0
    for i in range(10):
        scores = [math.exp(float(z[i] @ z[j]) / 0.3) for j in range(10) if j != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + 5) % 10]) / 0.3) / sum(scores))
    assert nt_xent(z1, z2, 0.3).item() == pytest.approx(total / 10, rel=1e-12)


@pytest.mark.parametrize("name", ["simclr", "simsiam", "byol"])
def test_comparison_is_symmetric_and_smallest_for_equal_views(name: str) -> None:
    torch.manual_seed(0)
    objective = build_objective(ObjectiveConfig(name=name), 32, 32)
    u, v = (View(*torch.randn(2, 6, 16)) for _ in range(2))
    torch.testing.assert_close(objective.compare(u, v), objective.compare(v, u))
    same = View(u.online, u.online)
    assert objective.compare(same, same) < objective.compare(u, v)


@pytest.mark.parametrize(
    ("name", "hidden", "output"), [("simclr", 2048, 128), ("simsiam", 2048, 2048), ("byol", 4096, 256)]
)
def test_heads_have_the_papers_widths(name: str, hidden: int, output: int) -> None:
    objective = build_objective(ObjectiveConfig(name=name), 64, 32).eval()
    projection = objective.projector(torch.randn(2, 64))
    assert projection.shape == (2, output)
    assert objective.predictor(projection).shape == (2, output)
    linear = [module for module in objective.projector.modules() if isinstance(module, torch.nn.Linear)]
    assert linear[0].out_features == hidden
    assert len(linear) == (3 if name == "simsiam" else 2)

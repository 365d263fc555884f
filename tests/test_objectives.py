"""Losses against pinned numbers and naive loops; the layers of the heads; which views are compared."""

import copy
import importlib
import inspect
import itertools
import math
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from naive import golden
from torch import Tensor, nn

from adios_ray import objectives
from adios_ray.config import OBJECTIVES, ObjectiveConfig, ObjectiveEntry
from adios_ray.errors import ConfigError
from adios_ray.objectives import Embedding, Objective, objective_class
from adios_ray.objectives.barlow import barlow_twins
from adios_ray.objectives.byol import squared_distance
from adios_ray.objectives.dino import Prototypes, distillation
from adios_ray.objectives.mocov2 import info_nce
from adios_ray.objectives.mocov3 import contrast
from adios_ray.objectives.simclr import nt_xent
from adios_ray.objectives.simsiam import negative_cosine
from adios_ray.objectives.vicreg import redundancy, spread_hinge, vicreg
from adios_ray.validation import parse

HEADS = [
    ("simclr", 2048, 128, "H relu O", ""),
    ("simsiam", 2048, 2048, "H norm relu H norm relu O plain", "512 norm relu O"),
    ("byol", 4096, 256, "H norm relu O", "8192 norm relu O"),
    ("barlow", 8192, 8192, "H norm relu H norm relu O", ""),
    ("vicreg", 8192, 8192, "H norm relu H norm relu O", ""),
    ("mocov2", 2048, 128, "H relu O", ""),
    ("mocov3", 4096, 256, "H norm relu H norm relu O plain", "H norm relu O plain"),
    ("dino", 2048, 4096, "H relu H relu 256 prototypes O", ""),
]
"""Objective, hidden and output width, layers of projector and predictor; "plain" is BatchNorm without affine."""

NAMES = [row[0] for row in HEADS]


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
    z1, z2 = torch.randn(2, 5, 7, dtype=torch.float64)
    z = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    total = 0.0
    for i in range(10):
        scores = [math.exp(float(z[i] @ z[j]) / 0.3) for j in range(10) if j != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + 5) % 10]) / 0.3) / sum(scores))
    assert nt_xent(z1, z2, 0.3).item() == pytest.approx(total / 10, rel=1e-12)


def build_objective(config: ObjectiveConfig, features: int, image_size: int) -> Objective:
    return objective_class(config.name)(config, features, image_size)


@pytest.mark.parametrize("name", NAMES)
def test_comparison_is_symmetric_and_smallest_for_equal_views(name: str) -> None:
    objective = build_objective(ObjectiveConfig(name=name, hidden_dim=24, output_dim=16), 32, 32)
    u, v = (Embedding(*torch.randn(2, 6, 16)) for _ in range(2))
    if name != "mocov2":  # whose queries are the second view's alone
        torch.testing.assert_close(objective.loss_between(u, v), objective.loss_between(v, u))
    same = Embedding(u.online, u.online)
    assert objective.loss_between(same, same) < objective.loss_between(u, v)


def outline(head: nn.Module) -> str:
    """Describe a head by the widths and kinds of its layers, in order."""
    words = []
    for module in head.modules():
        match module:
            case nn.Linear():
                words.append(str(module.out_features))
            case nn.BatchNorm1d():
                words.append("norm" if module.affine else "plain")
            case nn.ReLU():
                words.append("relu")
            case Prototypes():
                words.append(f"prototypes {len(module.directions)}")
    return " ".join(words)


@pytest.mark.parametrize(("name", "hidden", "output", "projector", "predictor"), HEADS, ids=NAMES)
@pytest.mark.slow
def test_heads_are_the_papers(name: str, hidden: int, output: int, projector: str, predictor: str) -> None:
    objective = build_objective(ObjectiveConfig(name=name), 64, 32).eval()
    for head, expected in ((objective.projector, projector), (objective.predictor, predictor)):
        assert outline(head) == expected.replace("H", str(hidden)).replace("O", str(output))
    projection = objective.projector(torch.randn(2, 64))
    assert projection.shape == objective.predictor(projection).shape == (2, output)


@pytest.mark.parametrize("name", NAMES)
def test_configured_widths_take_the_place_of_the_papers(name: str) -> None:
    objective = build_objective(ObjectiveConfig(name=name, hidden_dim=24, output_dim=16), 64, 32).eval()
    projection = objective.projector(torch.randn(2, 64))
    assert projection.shape == objective.predictor(projection).shape == (2, 16)
    first = next(module for module in objective.projector.modules() if isinstance(module, nn.Linear))
    assert first.out_features == 24


def test_the_methods_with_momentum_targets() -> None:
    assert {name for name in OBJECTIVES if objective_class(name).uses_momentum} == {"byol", "mocov2", "mocov3", "dino"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_names_the_settings_that_an_objective_reads(name: str) -> None:
    kind, annotation = objective_class(name), get_type_hints(ObjectiveEntry)["uses"]
    some = set(get_args(get_args(annotation)[0]))
    read = set(re.findall(r"config\.(\w+)", inspect.getsource(inspect.getmodule(kind) or kind))) & some
    assert OBJECTIVES[name].uses == read | ({"momentum_start"} if kind.uses_momentum else set())


def random_pair(seed: int = 2) -> tuple[Tensor, Tensor]:
    """Draw two views' embeddings [6, 5] in double precision."""
    torch.manual_seed(seed)
    z1, z2 = torch.randn(2, 6, 5, dtype=torch.float64)
    return z1, z2


def test_barlow_twins_equals_a_loop_over_dimensions() -> None:
    z1, z2 = random_pair()
    first, second = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
    total = 0.0
    for i, j in itertools.product(range(5), repeat=2):
        correlation = float((first[:, i] * second[:, j]).mean())
        total += (1 - correlation) ** 2 if i == j else 0.0051 * correlation**2
    assert barlow_twins(z1, z2).item() == pytest.approx(total, rel=1e-12)


def test_barlow_twins_vanishes_for_equal_views_of_independent_dimensions() -> None:
    z = 100 * torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert barlow_twins(z, z).item() == pytest.approx(0, abs=1e-12)


def test_vicreg_equals_a_loop_over_dimensions() -> None:
    z1, z2 = random_pair()
    total = 25 * float((z1 - z2).square().mean())
    for z in (z1, z2):
        for i in range(5):
            spread = math.sqrt(float(z[:, i].var()) + 1e-4)
            total += 25 * max(0.0, 1 - spread) / 5 / 2
            for j in set(range(5)) - {i}:
                covariance = float(((z[:, i] - z[:, i].mean()) * (z[:, j] - z[:, j].mean())).sum()) / 5
                total += covariance**2 / 5
    assert vicreg(z1, z2).item() == pytest.approx(total, rel=1e-12)


def test_vicregs_terms_vanish_where_they_should() -> None:
    z = 2 * torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert vicreg(z, z).item() == pytest.approx(0, abs=1e-12)
    collapsed = torch.ones(4, 2, dtype=torch.float64)
    assert spread_hinge(collapsed).item() == pytest.approx(0.99, rel=1e-12)
    assert redundancy(z[:, :1].expand(4, 2)).item() == pytest.approx(float(z[:, 0].var()) ** 2, rel=1e-12)


def test_moco_contrast_equals_a_loop_over_keys() -> None:
    prediction, target = random_pair()
    cosine = torch.nn.functional.cosine_similarity(prediction[:, None], target[None], dim=2)
    total = 0.0
    for i in range(6):
        scores = [math.exp(float(cosine[i, j]) / 0.3) for j in range(6)]
        total -= 2 * 0.3 * math.log(scores[i] / sum(scores)) / 6
    assert contrast(prediction, target, 0.3).item() == pytest.approx(total, rel=1e-12)


def test_moco_contrast_of_orthogonal_and_of_equal_targets() -> None:
    orthogonal = 3 * torch.eye(6, dtype=torch.float64)
    expected = 2 * 0.3 * math.log(1 + 5 * math.exp(-1 / 0.3))
    assert contrast(orthogonal, 7 * orthogonal, 0.3).item() == pytest.approx(expected, rel=1e-12)
    collapsed = torch.ones(6, 5, dtype=torch.float64)
    assert contrast(collapsed, collapsed, 0.3).item() == pytest.approx(2 * 0.3 * math.log(6), rel=1e-12)


def test_moco_predicts_each_view_from_the_other() -> None:
    objective = build_objective(ObjectiveConfig(name="mocov3", hidden_dim=24, temperature=0.3), 32, 32)
    u, v = Embedding(*random_pair()), Embedding(*random_pair(seed=3))
    expected = contrast(u.online, v.target, 0.3) + contrast(v.online, u.target, 0.3)
    torch.testing.assert_close(objective.loss_between(u, v), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("length", [4, 7, 12])
def test_moco_v2_equals_a_loop_with_a_list_as_its_queue(length: int) -> None:
    """Check batches that wrap around the queue's end, a smaller last one, and one larger than the queue."""
    config = ObjectiveConfig(name="mocov2", hidden_dim=24, output_dim=5, queue=length, temperature=0.3)
    objective = build_objective(config, 32, 32).double()
    buffers = dict(objective.named_buffers())
    queue = [row.clone() for row in buffers["queue"]]
    for step, batch in enumerate((3, 3, 3, 2, 6, 3, 3)):
        torch.manual_seed(step)
        query, key, ignored = torch.randn(3, batch, 5, dtype=torch.float64)
        total = 0.0
        for q, k in zip(query, key, strict=True):
            positive = math.exp(float(nn.functional.cosine_similarity(q, k, dim=0)) / 0.3)
            negatives = [math.exp(float(q @ old / q.norm()) / 0.3) for old in queue]
            total -= math.log(positive / (positive + sum(negatives))) / batch
        u, v = Embedding(ignored, key), Embedding(query, ignored)
        assert objective.loss_between(u, v).item() == pytest.approx(total, rel=1e-12)
        objective.update_statistics(u)
        queue = [*queue, *(k / k.norm() for k in key)][-length:]
        oldest = int(buffers["pointer"])
        expected = torch.stack([*queue[length - oldest :], *queue[: length - oldest]])
        torch.testing.assert_close(buffers["queue"], expected, rtol=0, atol=1e-12)


def test_moco_v2_queries_masked_views_with_keys_of_the_other_unmasked_view() -> None:
    objective = build_objective(ObjectiveConfig(name="mocov2", hidden_dim=24, output_dim=5, queue=8), 32, 32).double()
    queue = dict(objective.named_buffers())["queue"]
    a, b, hidden_a, hidden_b = (Embedding(*random_pair(seed)) for seed in range(4))
    expected = info_nce(hidden_b.online, a.target, queue, 0.2) + info_nce(hidden_a.online, b.target, queue, 0.2)
    found = objective.loss_of_both((a, b), (hidden_a, hidden_b))
    torch.testing.assert_close(found, expected / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "configured", "expected"),
    [
        ("mocov2", None, (0.999, 0.999, 0.999)),
        ("mocov2", 0.9, (0.9, 0.9, 0.9)),
        ("byol", None, (0.99, 0.995, 1.0)),
        ("byol", 0.9, (0.9, 0.95, 1.0)),
    ],
)
def test_momentum_is_constant_in_moco_v2_and_rises_elsewhere(
    name: str, configured: float | None, expected: tuple[float, ...]
) -> None:
    config = ObjectiveConfig(name=name, hidden_dim=24, output_dim=16, momentum_start=configured)
    objective = build_objective(config, 32, 32)
    assert [objective.momentum_at(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(expected, abs=1e-15)


def test_a_queue_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="objective simclr does not use queue: leave it out"):
        parse(ObjectiveConfig, {"name": "simclr", "queue": 4096})


def test_distillation_equals_a_loop_over_prototypes() -> None:
    student, teacher = random_pair()
    wanted, given = torch.exp(teacher / 0.04), torch.exp(student / 0.1)
    total = 0.0
    for i, k in itertools.product(range(6), range(5)):
        total -= float(wanted[i, k] / wanted[i].sum()) * math.log(float(given[i, k] / given[i].sum())) / 6
    assert distillation(student, teacher).item() == pytest.approx(total, rel=1e-10)


def small_dino() -> Objective:
    """Build DINO with five prototypes, in double precision."""
    return build_objective(ObjectiveConfig(name="dino", hidden_dim=24, output_dim=5), 32, 32).double()


def test_distillation_between_uniform_outputs_is_their_entropy() -> None:
    uniform = torch.full((6, 5), 2.0, dtype=torch.float64)
    assert distillation(uniform, 3 * uniform).item() == pytest.approx(math.log(5), rel=1e-12)


def test_dino_predicts_each_view_from_the_other_less_the_center() -> None:
    objective = small_dino()
    u, v = Embedding(*random_pair()), Embedding(*random_pair(seed=3))
    center = torch.linspace(-1, 1, 5, dtype=torch.float64)
    objective.load_state_dict({"center": center}, strict=False)
    expected = (distillation(u.online, v.target - center) + distillation(v.online, u.target - center)) / 2
    torch.testing.assert_close(objective.loss_between(u, v), expected, rtol=1e-12, atol=0)


def test_prototypes_are_cosines() -> None:
    prototypes, (x, directions) = Prototypes(5, 6).double(), random_pair()
    prototypes.load_state_dict({"directions": directions})
    expected = nn.functional.cosine_similarity(x[:, None], directions[None], dim=2)
    torch.testing.assert_close(prototypes(x), expected, rtol=1e-12, atol=1e-12)


def test_dinos_projector_and_center_survive_being_copied_and_saved() -> None:
    objective = small_dino()
    objective.update_statistics(Embedding(*random_pair()))
    x = torch.randn(4, 32, dtype=torch.float64)
    loaded = small_dino()
    assert not torch.equal(loaded.projector(x), objective.projector(x))
    loaded.load_state_dict(objective.state_dict())
    for other in (copy.deepcopy(objective), loaded):
        assert torch.equal(other.projector(x), objective.projector(x))
        assert torch.equal(other.state_dict()["center"], objective.state_dict()["center"])


def test_dinos_center_follows_the_teachers_mean() -> None:
    objective = small_dino()
    means = []
    for step in range(3):
        torch.manual_seed(step)
        outputs = torch.randn(6, 5, dtype=torch.float64)
        means.append(outputs.mean(dim=0))
        objective.update_statistics(Embedding(-outputs, outputs))
    center = dict(objective.named_buffers())["center"]
    torch.testing.assert_close(center, 0.1 * (0.81 * means[0] + 0.9 * means[1] + means[2]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "pixel"])
def test_collapsed_and_huge_embeddings_have_finite_gradients(name: str) -> None:
    objective = build_objective(ObjectiveConfig(name=name, hidden_dim=24, output_dim=5), 32, 32)
    for values in (torch.ones(6, 5), torch.zeros(6, 5), 1e4 * torch.randn(6, 5)):
        u, v = values.clone().requires_grad_(), values.clone().requires_grad_()
        loss = objective.loss_between(Embedding(u, values), Embedding(v, values))
        loss.backward()
        assert v.grad is not None and (u.grad is not None) == (name != "mocov2")
        gradients = torch.cat([leaf.grad for leaf in (u, v) if leaf.grad is not None])
        assert loss.isfinite() and gradients.isfinite().all()


@pytest.mark.parametrize("size", [32, 48, 96, 224])
def test_the_pixel_objective_paints_images_and_judges_the_masked_one(size: int) -> None:
    objective = build_objective(ObjectiveConfig(name="pixel", hidden_dim=16), 32, size)
    images = torch.randn(2, 3, size, size)
    painted = objective.projector(torch.randn(2, 32))
    assert painted.shape == images.shape and objective.target(painted, images) is images
    other = Embedding(torch.randn_like(images), torch.randn_like(images))
    expected = (painted - images).square().mean()
    torch.testing.assert_close(objective.loss_between(other, Embedding(painted, images)), expected)


def test_the_pixel_objective_masks_one_view() -> None:
    with pytest.raises(ConfigError, match="pixel inpaints one view"):
        parse(ObjectiveConfig, {"name": "pixel", "masked_views": "both"})


def test_the_table_of_objectives_has_every_one_once() -> None:
    folder = Path(objectives.__file__).parent
    defined = {
        (path.stem, value)
        for path in folder.glob("*.py")
        for value in vars(importlib.import_module(f"{objectives.__name__}.{path.stem}")).values()
        if isinstance(value, type) and issubclass(value, Objective) and value.__module__.endswith(f".{path.stem}")
    } - {("base", Objective)}
    assert {(OBJECTIVES[name].defined.partition(":")[0], objective_class(name)) for name in OBJECTIVES} == defined
    assert len(defined) == len(OBJECTIVES)

"""BatchNorm of groups against torch's BatchNorm, group by group."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from adios_ray import parallel
from adios_ray.config import TrialConfig
from adios_ray.errors import ConfigError
from adios_ray.models.networks import Networks
from adios_ray.models.slot_norm import SlotNorm2d, grouped, use_slot_norms
from adios_ray.validation import parse

GROUPS, IMAGES = 3, 5


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.BatchNorm2d(4), (4, 6, 6)),
        (lambda: nn.BatchNorm1d(4), (4,)),
        (lambda: nn.BatchNorm1d(4, affine=False), (4,)),
    ],
)
@pytest.mark.parametrize("way", ["_by_parts", "_by_statistics"])
def test_groups_are_normalized_as_one_after_the_other(
    make: Callable[[], nn.Module], shape: tuple[int, ...], way: str
) -> None:
    literal = make().double()
    for parameter in literal.parameters():
        nn.init.normal_(parameter)
    norm = copy.deepcopy(literal)
    assert use_slot_norms(norm)
    x = 3 + 2 * torch.randn(GROUPS * IMAGES, *shape, dtype=torch.float64)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with grouped(norm, GROUPS):
        got = getattr(norm, way)(mine)
    expected = torch.cat([literal(part) for part in theirs.chunk(GROUPS)])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(x)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), getattr(literal, name), rtol=0, atol=1e-12)
    for own, other in zip(norm.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-11)


def test_counters_groups_and_evaluation_are_those_of_batch_norm() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(2))
    assert use_slot_norms(norm) and isinstance(norm[0], SlotNorm2d)
    x = torch.randn(4, 2, 3, 3)
    with grouped(norm, 2):
        norm(x)
    assert norm[0].num_batches_tracked == 2 and norm[0].groups == 1
    norm.eval()
    with grouped(norm, 2):
        torch.testing.assert_close(norm(x), nn.functional.batch_norm(x, norm[0].running_mean, norm[0].running_var))


def test_a_worker_that_measures_alone_normalizes_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways need different amounts of memory, which the number of slots at once is measured by."""
    norm = nn.Sequential(nn.BatchNorm2d(2))
    assert use_slot_norms(norm)
    x = torch.randn(4, 2, 3, 3)
    taken = list[str]()
    for way in ("_by_parts", "_by_statistics"):
        monkeypatch.setattr(SlotNorm2d, way, lambda self, x, way=way: taken.append(way))
    for others in (False, True):
        monkeypatch.setattr(parallel, "has_others", lambda others=others: others)
        with parallel.alone(), grouped(norm, 2, synchronized=True):
            norm(x)
    assert taken == ["_by_parts", "_by_statistics"]


def test_networks_that_cannot_are_refused() -> None:
    assert not use_slot_norms(nn.SyncBatchNorm(3))
    values = {"backbone": {"name": "mobilenetv3_small_050"}, "slots_at_once": 2}
    with pytest.raises(ConfigError, match="slots_at_once 2: mobilenetv3_small_050 with simclr"):
        Networks(parse(TrialConfig, values), 32, 2)
    for backbone in ("test_vit", "mobilenetv3_small_050"):  # no BatchNorm; one of timm's own
        with pytest.raises(ConfigError, match=f"sync_batch_norm: {backbone} with simclr has no BatchNorm"):
            Networks(parse(TrialConfig, {"backbone": {"name": backbone}, "sync_batch_norm": True}), 32, 2)
    for name, value in (("micro_batch_size", 2), ("compile", True)):
        with pytest.raises(ConfigError, match=f"sync_batch_norm cannot be used with {name} {value}"):
            parse(TrialConfig, {"sync_batch_norm": True, name: value})
    with pytest.raises(ConfigError, match="slots_at_once 2"):
        Networks(
            parse(TrialConfig, {"backbone": {"name": "resnet_small"}, "slots_at_once": 2, "micro_batch_size": 2}), 32, 2
        )

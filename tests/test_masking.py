"""The occlusion model and its penalty against pinned numbers and closed forms; changing the number of slots."""

import math

import pytest
import torch
from naive import golden
from torch import Tensor, nn
from torch.nn import functional

from adios_ray.config import OptimizerConfig
from adios_ray.masking.occlusion import OcclusionModel, SkipConv2d, group_norm
from adios_ray.masking.slots import Head, read_head, replace_head, resize_head, slot_statistics
from adios_ray.masking.sparsity import sparsity
from adios_ray.training.optimizers import build_optimizer
from adios_ray.validation import parse


@pytest.mark.parametrize(("size", "slots"), [(32, 3), (64, 4)])
def test_masks_agree_with_the_published_model(size: int, slots: int) -> None:
    values = golden(f"occlusion_{size}px_{slots}slots.npz")
    x, masks = values.pop("x"), values.pop("masks")
    model = OcclusionModel(size, slots, width=8)
    model.load_state_dict(values)
    torch.testing.assert_close(model(x), masks, rtol=0, atol=1e-5)


def test_masks_share_every_pixel() -> None:
    masks = OcclusionModel(48, 5, width=8, norm="instance")(torch.randn(2, 3, 48, 48))
    assert masks.shape == (2, 5, 48, 48)
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(2, 48, 48), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [40, 72, 24, 100])
def test_sizes_that_cannot_be_halved_are_refused(size: int) -> None:
    if size == 40:
        OcclusionModel(40, 4, 8)
        return
    with pytest.raises(ValueError, match=f"image size {size}"):
        OcclusionModel(size, 4, 8)


def test_a_last_level_of_one_pixel_is_refused_where_it_cannot_be_normalized() -> None:
    with pytest.raises(ValueError, match=r"masking\.levels 6: of an image of 32 pixels one is left, .* take 5"):
        OcclusionModel(32, 2, 8, "instance", 6)
    images = torch.rand(2, 3, 32, 32)
    for model in OcclusionModel(32, 2, 8, "instance", 5), OcclusionModel(32, 2, 8, "group", 6):
        assert model(images).shape == (2, 2, 32, 32)


def test_a_given_number_of_levels_decides_which_sizes_can_be_halved() -> None:
    assert OcclusionModel(72, 2, 8, levels=4)(torch.rand(1, 3, 72, 72)).shape == (1, 2, 72, 72)
    with pytest.raises(ValueError, match=r"image size 96: .* halves it 6 times, so it must be a multiple of 64"):
        OcclusionModel(96, 2, 8, levels=7)


def test_sparsity_agrees_with_the_published_term() -> None:
    values = golden("losses.npz")
    penalties = sparsity(values["masks"])
    torch.testing.assert_close(penalties.mean().double(), values["penalty_mean_over_slots"], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        penalties.mean(dim=0).sum().double(), values["penalty_sum_over_slots"], rtol=1e-5, atol=0
    )


def test_sparsity_has_its_closed_form_and_slope() -> None:
    for level in (0.1, 0.25, 0.5, 0.9):
        masks = torch.full((1, 1, 4, 4), level, dtype=torch.float64, requires_grad=True)
        value = sparsity(masks).sum()
        value.backward()
        assert masks.grad is not None
        slope = -math.pi * math.cos(math.pi * level) / math.sin(math.pi * level) ** 2 / 16
        assert value.item() == pytest.approx(1 / math.sin(math.pi * level), rel=1e-12)
        assert masks.grad[0, 0, 0, 0].item() == pytest.approx(slope, rel=1e-9, abs=1e-12)


def test_sparsity_passes_gradcheck() -> None:
    masks = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsity, (masks,))


@pytest.mark.parametrize(("level", "sign"), [(0.0, -1), (1.0, 1)])
def test_sparsity_is_finite_at_its_poles_and_pushes_away_from_them(level: float, sign: int) -> None:
    masks = torch.full((1, 1, 4, 4), level, requires_grad=True)
    value = sparsity(masks).sum()
    value.backward()
    assert value.isfinite() and masks.grad is not None and masks.grad.isfinite().all()
    assert (sign * masks.grad > 0).all()


def make_model(slots: int, optimizer_name: str = "sgd") -> tuple[OcclusionModel, torch.optim.Optimizer, Tensor]:
    """Build a model whose optimizer has taken one step, and images."""
    torch.manual_seed(1)
    model = OcclusionModel(32, slots, width=8).double()
    optimizer = build_optimizer(
        [model.parameters()], parse(OptimizerConfig, {"name": optimizer_name, "encoder_lr": 0.5})
    )
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    model(x)[:, 0].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, x


def test_a_split_without_noise_leaves_the_union_of_its_halves() -> None:
    model, optimizer, x = make_model(3)
    before = model(x).detach()
    largest = int(before.mean(dim=(0, 2, 3)).argmax())
    head = resize_head(read_head(model, optimizer), before, 4, noise=0.0)
    replace_head(model, optimizer, head)
    after = model(x).detach()
    torch.testing.assert_close(after[:, largest], after[:, 3], rtol=0, atol=1e-12)
    merged = after[:, :3].clone()
    merged[:, largest] += after[:, 3]
    torch.testing.assert_close(merged, before, rtol=0, atol=1e-12)


def test_the_halves_of_a_split_part_by_noise_of_opposite_signs() -> None:
    model, optimizer, x = make_model(3)
    head, masks = read_head(model, optimizer), model(x).detach()
    largest = int(masks.mean(dim=(0, 2, 3)).argmax())
    first, second = resize_head(head, masks, 4).weight[[largest, 3]]
    torch.testing.assert_close((first + second) / 2, head.weight[largest], rtol=0, atol=1e-12)
    assert float((first - second).std() / 2 / head.weight.std()) == pytest.approx(0.02, rel=0.8)  # of 8 weights


@pytest.mark.parametrize("optimizer_name", ["sgd", "lars", "adamw"])
def test_merging_the_halves_of_a_split_restores_model_and_optimizer(optimizer_name: str) -> None:
    model, optimizer, x = make_model(3, optimizer_name)
    before, head = model(x).detach(), read_head(model, optimizer)
    replace_head(model, optimizer, resize_head(head, before, 5, noise=0.0))
    assert model.slots == 5
    shrunk = resize_head(read_head(model, optimizer), model(x).detach(), 3)
    replace_head(model, optimizer, shrunk)
    torch.testing.assert_close(model(x).detach(), before, rtol=0, atol=1e-12)
    restored = read_head(model, optimizer)
    assert restored.moments.keys() == head.moments.keys() and head.moments and restored.steps == head.steps
    for name, originals in head.moments.items():
        for buffer, original in zip(restored.moments[name], originals, strict=True):
            torch.testing.assert_close(buffer, original, rtol=0, atol=1e-12)


def test_shrinking_merges_the_two_slots_that_overlap_most() -> None:
    masks = torch.zeros(1, 4, 4, 4)
    masks[0, 0, :2], masks[0, 1, 2], masks[0, 2, 3], masks[0, 3, 3] = 1, 1, 0.5, 0.5
    statistics = slot_statistics(masks)
    assert float(statistics.overlap[2, 3]) == 1 and float(statistics.overlap[0, 1]) == 0
    head = Head(torch.arange(4.0).view(4, 1, 1, 1), torch.zeros(4), {}, None)
    shrunk = resize_head(head, masks, 3)
    torch.testing.assert_close(shrunk.weight.flatten(), torch.tensor([0.0, 1.0, 2.5]))
    torch.testing.assert_close(shrunk.bias, torch.tensor([0.0, 0.0, math.log(2)]))


@pytest.mark.parametrize("optimizer_name", ["sgd", "lars", "adamw"])
def test_the_optimizer_goes_on_with_a_changed_head(optimizer_name: str) -> None:
    model, optimizer, x = make_model(4, optimizer_name)
    replace_head(model, optimizer, resize_head(read_head(model, optimizer), model(x).detach(), 6))
    before = model.head.weight.detach().clone()
    model(x)[:, 0].square().mean().backward()
    optimizer.step()
    assert model.slots == 6
    assert (model.head.weight != before).any(dim=(1, 2, 3)).all()


def test_group_norm_by_plain_operations_is_torchs() -> None:
    x = (3 + 2 * torch.randn(2, 16, 6, 6, dtype=torch.float64)).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(2, 16, dtype=torch.float64).requires_grad_().unbind()
    weighting = torch.randn_like(x)
    outputs = [group_norm(x, 8, weight, bias, 1e-5), functional.group_norm(x, 8, weight, bias, 1e-5)]
    actual, expected = (torch.autograd.grad((y * weighting).sum(), (x, weight, bias)) for y in outputs)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    half = group_norm(x.bfloat16(), 8, weight.float(), bias.float(), 1e-5)
    torch.testing.assert_close(half.double(), outputs[1], rtol=0.02, atol=0.02)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_skip_convolution_is_one_of_the_concatenation(upsampling: int, bias: bool) -> None:
    convolution = SkipConv2d(7, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 4, 6 // upsampling, 8 // upsampling, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    upsampled = functional.interpolate(x, scale_factor=float(upsampling), mode="nearest")
    outputs = [convolution(x, skip), nn.Conv2d.forward(convolution, torch.cat([upsampled, skip], dim=1))]
    weighting = torch.randn_like(outputs[0])
    tensors = (x, skip, *convolution.parameters())
    actual, expected = (torch.autograd.grad((y * weighting).sum(), tensors) for y in outputs)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


def test_a_merge_of_slots_that_do_not_overlap_keeps_the_largest() -> None:
    """Hard masks: no pair overlaps, and the smallest two become one, instead of the first being lost."""
    masks = torch.zeros(1, 3, 4, 4)
    masks[0, 0, :2], masks[0, 1, 2:, :3], masks[0, 2, 2:, 3:] = 1, 1, 1
    head = Head(torch.eye(3)[:, :, None, None], torch.tensor([10.0, 20.0, 30.0]), {}, None)
    resized = resize_head(head, masks, 2)
    assert resized.bias.tolist() == pytest.approx([10.0, 25.0 + math.log(2)])

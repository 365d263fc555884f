"""Options that make a step cheaper do not change its numbers; optimizers match their formulas."""

import copy
import functools
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from test_step import CLASSES, IMAGES, SIZE, assert_close, make_batch, make_config, make_players
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from adios_ray.config import AugmentConfig, OptimizerConfig, TrialConfig, replaced
from adios_ray.data.loader import Batch
from adios_ray.data.shards import open_shards
from adios_ray.devices import tf32_products
from adios_ray.evaluation.extraction import extract_features, view_feature_batches
from adios_ray.evaluation.statistics import refresh_statistics
from adios_ray.masking.slots import read_head, replace_head, resize_head
from adios_ray.models.networks import Networks
from adios_ray.models.stem import StemConv2d, convolve_phases
from adios_ray.models.timm_alone import timm
from adios_ray.objectives import objective_class
from adios_ray.training.optimizers import Optimizers, build_optimizer, build_optimizers
from adios_ray.training.step import accumulate_gradients, train_step
from adios_ray.validation import parse


def after_steps(config: TrialConfig, networks: Networks, optimizers: Optimizers, steps: int = 2) -> Networks:
    """Return the networks after some steps on random views."""
    for step in range(steps):
        train_step(networks, optimizers, make_batch(step, config.masking.fill), config, step / steps)
    return networks


def assert_same_networks(actual: Networks, expected: Networks) -> None:
    """Assert that parameters and buffers agree to rounding in double precision."""
    state = actual.state_dict()
    for name, values in expected.state_dict().items():
        assert_close(state[name].double(), values.double())


@pytest.mark.parametrize(
    ("objective", "order", "fill"),
    [
        ("simclr", "simultaneous", "mix"),
        pytest.param("byol", "alternating", "zero", marks=pytest.mark.slow),
        pytest.param("simclr", "alternating", "noise", marks=pytest.mark.slow),
        pytest.param("byol", "simultaneous", "zero", marks=pytest.mark.slow),
    ],
)
def test_parts_of_a_batch_keep_the_numbers(objective: str, order: str, fill: str) -> None:
    config = replaced(make_config(objective, order=order, fill=fill), {"backbone.name": "test_vit"})
    parts = replaced(config, {"micro_batch_size": 3})
    assert_same_networks(after_steps(parts, *make_players(parts)), after_steps(config, *make_players(config)))


def test_parts_of_a_batch_count_once_in_batch_norms_statistics() -> None:
    config = replaced(make_config("byol"), {"micro_batch_size": 2})
    networks, _ = make_players(config)
    literal = copy.deepcopy(networks)
    batch = make_batch(0)
    networks.embed(batch.a)[0].online.square().sum().backward()
    for images in batch.a.split(2):
        literal.backbone(images)
    for actual, expected in zip(networks.backbone.buffers(), literal.backbone.buffers(), strict=True):
        assert_close(actual.double(), expected.double())


def test_moco_v2s_keys_are_normalized_with_other_images_than_queries() -> None:
    """Check the shuffle on one worker, where each micro-batch has BatchNorm statistics of its own."""
    networks, _ = make_players(replaced(make_config("mocov2"), {"micro_batch_size": 2}))
    batch = make_batch(0)
    assert networks.momentum is not None
    for seed in range(3):
        torch.manual_seed(seed)
        keys = networks.embed(batch.a)[0].target
        torch.manual_seed(seed)
        order, expected = torch.randperm(4), torch.empty_like(keys)
        for part in order.split(2):
            expected[part] = networks.momentum["projector"](networks.momentum["backbone"](batch.a[part]))
        assert_close(keys, expected)


def test_moco_v2_shuffles_nothing_where_the_whole_batch_is_normalized() -> None:
    networks, _ = make_players(make_config("mocov2"))
    batch, state = make_batch(0), torch.get_rng_state()
    assert networks.momentum is not None
    keys = networks.embed(batch.a)[0].target
    assert_close(keys, networks.momentum["projector"](networks.momentum["backbone"](batch.a)))
    assert torch.equal(torch.get_rng_state(), state)


def test_moco_v2_computes_no_keys_of_masked_views() -> None:
    networks, _ = make_players(make_config("mocov2"))
    assert networks.momentum is not None
    networks.momentum["backbone"].register_forward_hook(lambda *_: pytest.fail("a key of a masked view"))
    batch = make_batch(0)
    networks.embed(batch.b, batch.b[:, :1].sigmoid())


def test_channels_last_keeps_the_numbers() -> None:
    config = make_config("simclr")
    networks, optimizers = make_players(config)
    networks.to(memory_format=torch.channels_last)
    assert_same_networks(after_steps(config, networks, optimizers), after_steps(config, *make_players(config)))


@pytest.mark.parametrize(
    ("device", "compiled", "planar"), [("cpu", False, False), ("cuda", False, True), ("cuda", True, False)]
)
def test_the_u_nets_layout_is_the_devices(device: str, compiled: bool, planar: bool) -> None:
    config = replaced(make_config("simclr"), {"channels_last": True})
    networks, optimizers = make_players(config)
    networks.choose_layouts(torch.device(device), compiled)
    assert networks.occlusion is not None
    seen: list[torch.Tensor] = []
    networks.occlusion.mask_encoder.register_forward_hook(lambda *values: seen.append(values[2]))
    batch = make_batch(0)
    last = {name: getattr(batch, name).contiguous(memory_format=torch.channels_last) for name in ("a", "b")}
    train_step(networks, optimizers, batch._replace(**last), config, 0.0)
    expected = torch.contiguous_format if planar else torch.channels_last
    assert seen and all(values.is_contiguous(memory_format=expected) for values in seen)
    kernels = [kernel for kernel in networks.occlusion.parameters() if kernel.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=expected) for kernel in kernels)
    kernels = [kernel for kernel in networks.backbone.parameters() if kernel.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.slow
def test_compiling_keeps_the_numbers() -> None:
    config = make_config("simclr")
    networks, optimizers = make_players(config)
    networks.compile_parts()
    assert_same_networks(after_steps(config, networks, optimizers, 1), after_steps(config, *make_players(config), 1))


@pytest.mark.slow
def test_each_number_of_views_is_compiled_once_and_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step compiles the U-Net and the backbone for one view and for all slots; the next ones nothing."""
    from torch._dynamo.backends.debugging import aot_eager  # takes seconds, which other tests need not wait

    images: list[tuple[Any, ...]] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        values = [value for value in inputs if not isinstance(value, nn.Parameter)]
        images.extend(tuple(value.shape) for value in values if getattr(value, "ndim", 0) == 4)
        assert not any(isinstance(value, torch.SymInt) for value in inputs)
        compiled: Callable[..., Any] = aot_eager(graph, inputs)
        return compiled

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=record))
    config = replaced(make_config("simclr", slots=4), {"slots_at_once": 4})
    networks, optimizers = make_players(config)
    networks.compile_parts()
    after_steps(config, networks, optimizers, 3)
    assert images == [(IMAGES, 3, SIZE, SIZE), (IMAGES, 3, SIZE, SIZE), (4 * IMAGES, 3, SIZE, SIZE)]


@pytest.mark.slow
def test_compiling_keeps_the_numbers_of_micro_batches() -> None:
    config = replaced(make_config("simclr"), {"micro_batch_size": 2})
    networks, optimizers = make_players(config)
    networks.compile_parts()
    assert_same_networks(after_steps(config, networks, optimizers, 2), after_steps(config, *make_players(config), 2))


@pytest.mark.slow
def test_variants_are_compiled_where_another_thread_recomputes_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients on GPUs are computed in a thread of autograd's, for which torch has settings of its own."""
    torch._dynamo.reset()
    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend="aot_eager")
    )  # saves other tensors than eager code
    config = make_config("simclr")
    networks, _ = make_players(config)
    networks.compile_parts()
    with ThreadPoolExecutor(1) as pool:
        for size in range(2, 12):  # more variants than torch compiles by default
            networks.config = replaced(config, {"micro_batch_size": size})
            views = torch.randn(2 * size, 3, SIZE, SIZE, dtype=torch.float64)
            loss = networks._in_parts(networks.backbone, views).square().mean()
            pool.submit(loss.backward).result()


@pytest.mark.slow
def test_evaluations_compile_nothing(objects_dir: Path) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("an evaluation was compiled")

    torch._dynamo.reset()
    networks, split = make_players(make_config("simclr"))[0].float(), open_shards(objects_dir).split("val")
    networks.backbone.compile(backend=refuse)
    indices, config = np.arange(len(split)), AugmentConfig()
    extract_features(networks.backbone, split, indices, SIZE)
    assert len([*view_feature_batches(networks.backbone, split, [indices], SIZE, config, 0, "evaluation", 0)]) == 1
    refresh_statistics(networks.backbone, split, SIZE)
    assert networks.occlusion is not None
    networks.occlusion.mask_encoder.compile(backend=refuse)
    with torch.no_grad():
        networks.occlude(torch.zeros(2, 3, SIZE, SIZE))
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="an evaluation was compiled"):
        networks.backbone(torch.zeros(2, 3, SIZE, SIZE))


@pytest.mark.slow
def test_changes_of_n_compile_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the recompile limit would return the occlusion model to eager mode after a few changes of N."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # graphs are the same
    config = make_config("byol", order="alternating")
    networks, optimizers = make_players(config)
    networks.compile_parts()
    assert networks.occlusion is not None and optimizers.occlusion is not None
    train_step(networks, optimizers, make_batch(0), config, 0.0)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    for step, slots in enumerate((4, 5, 4, 3), start=1):
        batch = make_batch(step)
        head = read_head(networks.occlusion, optimizers.occlusion)
        resized = resize_head(head, networks.occlude(batch.b).detach(), slots)
        replace_head(networks.occlusion, optimizers.occlusion, resized)
        assert math.isfinite(train_step(networks, optimizers, batch, config, 0.0).measurements.loss)
        if step == 1:  # inference compiled another graph for the masks that decide which slot is split
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


class Dropped(nn.Module):
    """Features with dropout; keeps what was dropped in each pass."""

    def __init__(self) -> None:
        """Start without recorded passes."""
        super().__init__()
        self.layer, self.dropped = nn.Linear(3 * SIZE * SIZE, 12), nn.Dropout(0.5)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Flatten, transform and drop; [B, 3, S, S] to [B, 12]."""
        kept = self.dropped(torch.ones(len(x), 12, dtype=x.dtype))
        self.seen.append(kept)
        features: torch.Tensor = self.layer(x.flatten(1)) * kept
        return features


@pytest.mark.parametrize("objective", ["simclr", "byol"])
def test_both_plays_of_a_step_drop_the_same(objective: str) -> None:
    """The second play does not recompute targets, so its random draws must not depend on those of the first."""
    config = make_config(objective, order="alternating")
    networks, optimizers = make_players(config)
    networks.features, networks.backbone = 12, Dropped().double()
    networks.objective = objective_class(config.objective.name)(config.objective, 12, SIZE).double()
    networks.probe = nn.Linear(12, CLASSES).double()
    if networks.momentum is not None:
        copies = {"backbone": Dropped().double(), "projector": copy.deepcopy(networks.objective.projector)}
        networks.momentum = nn.ModuleDict(copies)
    optimizers = build_optimizers(networks, config.optimizer)
    drops = []
    for seed in (5, 5, 6):
        networks.backbone.seen.clear()
        train_step(networks, optimizers, make_batch(0)._replace(module_seed=seed), config, 0.0)
        drops.append(list(networks.backbone.seen))
        first, second = drops[-1][:4], drops[-1][4:]
        assert len(second) == 4 and all(map(torch.equal, first, second))
        assert not torch.equal(first[0], first[1])
    assert all(map(torch.equal, drops[0], drops[1])) and not torch.equal(drops[0][0], drops[2][0])


def test_bfloat16_follows_full_precision_in_the_forward_pass_alone() -> None:
    config = make_config("simclr", width=16)
    half = replaced(config, {"precision": "bfloat16"})
    networks = Networks(half, SIZE, CLASSES).train()
    optimizers = build_optimizers(networks, half.optimizer)
    full = copy.deepcopy(networks)
    full.config = config
    double = make_batch(0)
    batch = Batch(double.a.float(), double.b.float(), double.labels, double.drawn_slots.float())
    view, features = networks.embed(batch.a)
    masks = networks.occlude(batch.b)
    assert {view.online.dtype, features.dtype, masks.dtype} == {torch.float32}
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(4, SIZE, SIZE), rtol=0, atol=1e-6)
    torch.testing.assert_close(masks, full.occlude(batch.b), rtol=0, atol=0.02)
    similarity = nn.functional.cosine_similarity(view.online, full.embed(batch.a)[0].online).detach()
    assert not torch.equal(view.online, full.embed(batch.a)[0].online) and float(similarity.min()) > 0.99
    before = [parameter.detach().clone() for parameter in networks.encoder_parameters()]
    train_step(networks, optimizers, batch, half, 0.0)
    moved = [not torch.equal(old, new) for old, new in zip(before, networks.encoder_parameters(), strict=True)]
    assert all(moved) and {parameter.dtype for parameter in networks.parameters()} == {torch.float32}


class WeightCasts(TorchDispatchMode):
    """Counts the copies, in bfloat16, of weights that are trained: autocast keeps no others."""

    def __init__(self) -> None:
        """Begin to count at 0."""
        super().__init__()  # type: ignore[no-untyped-call] # torch has no annotation here
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the conversion of a weight."""
        options = kwargs or {}
        weight = isinstance(args[0], nn.Parameter) and args[0].requires_grad
        self.count += weight and options.get("dtype") == torch.bfloat16
        return func(*args, **options)


@pytest.mark.parametrize("objective", ["simclr", "byol", "simsiam"])
def test_a_play_casts_each_trained_weight_once(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replaced(make_config(objective), {"precision": "bfloat16"})
    double = make_batch(0)
    batch = Batch(double.a.float(), double.b.float(), double.labels, double.drawn_slots.float())
    leaves = [mask.detach() for mask in torch.rand(4, 3, SIZE, SIZE).softmax(dim=1).split(1, dim=1)]

    def play(slots: int) -> tuple[int, list[Any]]:
        networks = make_players(config, dtype=torch.float32)[0]
        with WeightCasts() as casts:
            accumulate_gradients(networks, batch, leaves[:slots], config)
        return casts.count, [parameter.grad for parameter in networks.encoder_parameters()]

    (one, _), (three, gradients) = play(1), play(3)
    assert one == three >= 10
    monkeypatch.setattr(Networks, "weights_cast_once", lambda *_: nullcontext())
    casts, expected = play(3)
    assert casts == 4 * one
    assert all(map(torch.equal, gradients, expected)) and len(gradients) == len(expected)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_the_stem_has_a_convolutions_gradients(kernel: int, size: tuple[int, int]) -> None:
    plain = nn.Conv2d(3, 5, kernel, 2, kernel // 2, bias=False).double()
    stem = StemConv2d.of(copy.deepcopy(plain))
    assert StemConv2d.suits(plain) and stem.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weighting = torch.randn_like(plain(x))
    outputs = [(convolution(x) * weighting).sum() for convolution in (plain, stem)]
    expected, actual = (
        torch.autograd.grad(output, (x, *convolution.parameters()))
        for output, convolution in zip(outputs, (plain, stem), strict=True)
    )
    assert_close(outputs[1].detach(), outputs[0].detach())
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_convolution_of_phases_is_the_strided_one(kernel: int) -> None:
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, kernel, kernel, dtype=torch.float64, requires_grad=True)
    outputs = [functional.conv2d(x, weight, stride=2, padding=kernel // 2), convolve_phases(x, weight)]
    weighting = torch.randn_like(outputs[0])
    expected, actual = (torch.autograd.grad((y * weighting).sum(), (x, weight)) for y in outputs)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_convolution_of_phases_keeps_the_memory_layout(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where ``pixel_unshuffle`` does not, as on GPUs."""
    unshuffle = functional.pixel_unshuffle
    monkeypatch.setattr(functional, "pixel_unshuffle", lambda x, factor: unshuffle(x.contiguous(), factor))
    x, weight = torch.randn(2, 3, 8, 12), torch.randn(16, 3, 7, 7)
    assert convolve_phases(x.contiguous(memory_format=layout), weight).is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    "changes",
    [{"stride": 1}, {"padding": 2}, {"bias": True}, {"dilation": 2, "padding": 1}, {"padding_mode": "reflect"}],
)
def test_other_convolutions_are_left_alone(changes: dict[str, Any]) -> None:
    plain = {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
    assert not StemConv2d.suits(nn.Conv2d(3, 4, **{**plain, **changes}))


def make_layer() -> nn.Linear:
    """Make a layer with a matrix and a bias."""
    torch.manual_seed(3)
    return nn.Linear(4, 3).double()


def gradients(layer: nn.Linear, step: int) -> None:
    """Give a layer the gradients of one step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in layer.parameters():
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_optimizers_follow_their_formulas(name: str, weight_decay: float) -> None:
    lr, momentum, steps = 0.3, 0.9, 3
    layer, literal = make_layer(), make_layer()
    config = parse(OptimizerConfig, {"name": name, "encoder_lr": lr, "weight_decay": weight_decay})
    optimizer = build_optimizer([layer.parameters()], config)
    first = {parameter: torch.zeros_like(parameter) for parameter in literal.parameters()}
    second = {parameter: torch.zeros_like(parameter) for parameter in literal.parameters()}
    for step in range(1, steps + 1):
        gradients(layer, step)
        gradients(literal, step)
        optimizer.step()
        with torch.no_grad():
            for p in literal.parameters():
                assert p.grad is not None
                decay = weight_decay if p.ndim > 1 else 0.0
                if name == "adamw":
                    first[p] = momentum * first[p] + (1 - momentum) * p.grad
                    second[p] = 0.999 * second[p] + 0.001 * p.grad**2
                    size = (second[p] / (1 - 0.999**step)).sqrt() + 1e-8
                    p.sub_(lr * decay * p + lr * first[p] / (1 - momentum**step) / size)
                    continue
                gradient = p.grad + decay * p
                if name == "lars" and p.ndim > 1:
                    ratio = 0.02 * p.norm() / (p.grad.norm() + decay * p.norm() + 1e-8)
                    gradient = gradient * min(float(ratio) / lr, 1.0)
                first[p] = momentum * first[p] + gradient
                p.sub_(lr * first[p])
    for actual, expected in zip(layer.parameters(), literal.parameters(), strict=True):
        assert_close(actual.detach(), expected.detach())


SCALES = (1.0, 0.1, 0.0, 1.0, 1.0)


def make_optimizer(name: str, momentum: float) -> tuple[list[nn.Parameter], Optimizer]:
    """Build seeded parameters and an optimizer for them; one starts at 0, where LARS defines no ratio."""
    generator = torch.Generator().manual_seed(4)
    shapes = [(6, 3, 3, 3), (5, 6), (4, 4), (6,), (5,)]
    parameters = [
        nn.Parameter(torch.randn(shape, generator=generator) * scale)
        for shape, scale in zip(shapes, SCALES, strict=True)
    ]
    config = parse(OptimizerConfig, {"name": name, "encoder_lr": 0.3, "weight_decay": 1e-2, "momentum": momentum})
    return parameters, build_optimizer([parameters], config)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    ours, optimizer = make_optimizer("sgd", momentum)
    theirs, _ = make_optimizer("sgd", momentum)
    groups: list[dict[str, Any]] = [{"params": theirs[:3], "weight_decay": 1e-2}, {"params": theirs[3:]}]
    oracle = torch.optim.SGD(groups, lr=0.3, momentum=momentum, fused=True)
    generator = torch.Generator().manual_seed(6)

    def take_steps(count: int) -> None:
        for step in range(count):
            for a, b in zip(ours, theirs, strict=True):
                a.grad = b.grad = torch.randn(a.shape, generator=generator)
            for group in (*optimizer.param_groups, *oracle.param_groups):
                group["lr"] = 0.3 / (1 + step)
            optimizer.step()
            oracle.step()

    take_steps(5)
    # Checkpoints of earlier versions are torch's.
    optimizer.load_state_dict(copy.deepcopy(oracle.state_dict()))
    take_steps(2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_training_does_not_import_the_compiler(objects_dir: Path) -> None:
    program = (
        "import sys, torch, small; from pathlib import Path; from adios_ray.training.trainer import Trainer\n"
        f"Trainer(small.small_config(Path({str(objects_dir)!r})), torch.device('cpu')).train_until(1)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert found.stdout == "False\n"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_is_timms(momentum: float) -> None:
    ours, optimizer = make_optimizer("lars", momentum)
    theirs, _ = make_optimizer("lars", momentum)
    groups: list[dict[str, Any]] = [
        {"params": theirs[:3], "weight_decay": 1e-2, "always_adapt": True},
        {"params": theirs[3:], "weight_decay": 0.0},
    ]
    oracle = timm.optim.Lars(groups, lr=0.3, momentum=momentum, trust_coeff=0.02, trust_clip=True)
    generator = torch.Generator().manual_seed(5)
    for step in range(10):
        for a, b in zip(ours, theirs, strict=True):
            # Small and large gradients: layer-wise rates below and at their limit.
            a.grad = b.grad = torch.randn(a.shape, generator=generator) * (1e-4 if step % 3 else 10.0)
        for group in (*optimizer.param_groups, *oracle.param_groups):
            group["lr"] = 0.3 / (1 + step)
        optimizer.step()
        oracle.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        if momentum:
            expected = oracle.state[b]["momentum_buffer"]
            torch.testing.assert_close(optimizer.state[a]["momentum_buffer"], expected, rtol=1e-6, atol=1e-7)
    # Checkpoints of earlier versions are timm's.
    optimizer.load_state_dict(copy.deepcopy(oracle.state_dict()))
    oracle.step()
    optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_lars_skips_steps_that_are_not_finite_and_takes_rates_as_tensors() -> None:
    (parameters, optimizer), (others, plain) = make_optimizer("lars", 0.9), make_optimizer("lars", 0.9)
    skipping: Any = optimizer
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.3)
    for step, found in enumerate([1.0, 0.0, 1.0, 0.0]):
        skipping.found_inf = torch.tensor(found)
        for a, b in zip(parameters, others, strict=True):
            a.grad = torch.full_like(a, math.nan) if found else torch.full_like(a, step + 1.0)
            b.grad = a.grad
        optimizer.step()
        if not found:
            plain.step()
    for a, b in zip(parameters, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        buffers = (optimizer.state[a]["momentum_buffer"], plain.state[b]["momentum_buffer"])
        torch.testing.assert_close(*buffers, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_momentum_that_returns_begins_at_zero(name: str) -> None:
    (parameters, optimizer), (others, fresh) = make_optimizer(name, 0.9), make_optimizer(name, 0.9)
    for p, q in zip(parameters, others, strict=True):
        p.grad = q.grad = torch.full_like(p, 0.5)
    for momentum in (0.9, 0.0, 0.9):
        for p, q in zip(parameters, others, strict=True):
            q.data.copy_(p.data)
        for group in optimizer.param_groups:
            group["momentum"] = momentum
        optimizer.step()
    fresh.step()
    assert all(map(torch.equal, parameters, others))


def test_only_steps_on_gpus_multiply_in_reduced_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = torch.get_float32_matmul_precision
    before = precision()
    with tf32_products(torch.device("cpu")):
        assert precision() == before
    with tf32_products(torch.device("cuda")):
        assert precision() == "high"
    assert precision() == before
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with tf32_products(torch.device("cuda")):
        assert precision() == before

"""The training step against the literal implementation of ``naive.py``, and the sign of the game."""

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from naive import naive_masks, naive_objective, naive_penalty, naive_step

from adios_ray.config import Term, TrialConfig, replaced
from adios_ray.data.loader import Batch
from adios_ray.masking.fill import FILLS, make_fill
from adios_ray.models.networks import Networks
from adios_ray.training.optimizers import Optimizers, build_optimizers
from adios_ray.training.step import train_step
from adios_ray.validation import parse

CPU = torch.device("cpu")
SIZE, IMAGES, CLASSES = 32, 4, 5

OBJECTIVES = ("simclr", "simsiam", "byol")
OTHERS = ("barlow", "vicreg", "mocov2", "mocov3", "dino", "pixel")
SCHEMES = ("adios", "adios-s")
ORDERS = ("simultaneous", "alternating")
PAPER, AUTHORS = ("mean", "one"), ("sum", "both")


def make_config(
    objective: str = "simclr",
    scheme: str = "adios",
    order: str = "simultaneous",
    reduction: str = "mean",
    masked_views: str = "one",
    **masking: Any,
) -> TrialConfig:
    """Build the configuration of a trial small enough for the literal implementation."""
    heads: dict[str, Any] = {"name": objective, "hidden_dim": 24, "output_dim": 16, "masked_views": masked_views}
    if objective == "mocov2":
        heads["queue"] = 10  # which the third batch of four overruns
    game = {"scheme": scheme, "order": order, "reduction": reduction, "slots": 3, "width": 8, **masking}
    # These two have far larger losses: at the others' learning rates they jump, and rounding errors grow with them.
    scale = 0.01 if objective in ("barlow", "vicreg") else 1.0
    optimizer = {"encoder_lr": 0.1 * scale, "occlusion_lr": 0.2 * scale, "weight_decay": 1e-3}
    values = {"objective": heads, "masking": game, "optimizer": optimizer, "backbone": {"name": "resnet_small"}}
    return parse(TrialConfig, values)


def make_players(
    config: TrialConfig, device: torch.device = CPU, dtype: torch.dtype = torch.float64
) -> tuple[Networks, Optimizers]:
    """Build seeded networks, with their optimizers."""
    torch.manual_seed(0)
    networks = Networks(config, SIZE, CLASSES).to(device, dtype).train()
    optimizers = build_optimizers(networks, config.optimizer)
    optimizers.set_learning_rates(config.optimizer.encoder_lr, config.optimizer.occlusion_lr)
    return networks, optimizers


def make_batch(seed: int, fill: str = "zero", images: int = IMAGES) -> Batch:
    """Draw random views in double precision, and what their hidden pixels become."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, images, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    drawn = torch.rand(images, dtype=torch.float64, generator=generator)
    fills = [make_fill(fill, view, drawn.numpy()) for view in views]
    return Batch(views[0], views[1], labels, drawn, fill_a=fills[0], fill_b=fills[1])


def moved(batch: Batch, device: torch.device, dtype: torch.dtype = torch.float64) -> Batch:
    """Copy a batch of ``make_batch`` to a device, its numbers that are not integers in another precision."""

    def copied(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    return Batch(*map(copied, batch))


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert equality to 1e-9 of the largest value, or of 1e-6 where that is larger (gradients that should be 0)."""
    scale = max(float(expected.abs().max()), 1e-6)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * scale)


def slow_cases(*parts: Iterable[Any]) -> Iterator[Any]:
    """Yield all combinations, marked slow."""
    return (pytest.param(*case, marks=pytest.mark.slow) for case in itertools.product(*parts))


@pytest.mark.parametrize(
    ("objective", "scheme", "order", "convention"),
    [
        ("simclr", "adios", "simultaneous", PAPER),
        ("byol", "adios", "alternating", PAPER),
        *slow_cases(["simclr"], ["adios"], ["alternating"], [PAPER]),
        *slow_cases(["byol"], ["adios"], ["simultaneous"], [PAPER]),
        *slow_cases(["simsiam"], ["adios"], ORDERS, [PAPER]),
        *slow_cases(OBJECTIVES, ["adios-s"], ORDERS, [PAPER]),
        *slow_cases(OBJECTIVES, SCHEMES, ORDERS, [AUTHORS]),
        *slow_cases(OTHERS, SCHEMES, ORDERS, [PAPER]),
        *slow_cases(["mocov2"], ["adios"], ORDERS, [AUTHORS]),
    ],
)
def test_three_steps_equal_the_literal_game(
    objective: str, scheme: str, order: str, convention: tuple[str, str]
) -> None:
    assert_steps_are_literal(make_config(objective, scheme, order, *convention))


@pytest.mark.parametrize(
    ("objective", "scheme", "order", "convention", "fill"),
    [
        *slow_cases(["simclr"], ["adios"], ["simultaneous"], [PAPER], FILLS),
        *slow_cases(["byol"], ["adios"], ["alternating"], [PAPER], FILLS),
        *slow_cases(["simsiam"], ["adios-s"], ORDERS, [AUTHORS], FILLS),
        *slow_cases(["pixel"], SCHEMES, ["simultaneous"], [PAPER], FILLS),
    ],
)
def test_steps_with_filled_masks_equal_the_literal_game(
    objective: str, scheme: str, order: str, convention: tuple[str, str], fill: str
) -> None:
    assert_steps_are_literal(make_config(objective, scheme, order, *convention, fill=fill))


@pytest.mark.parametrize(
    ("objective", "scheme", "order", "convention", "at_once"),
    [
        ("byol", "adios", "simultaneous", PAPER, 2),  # three slots: two, then one
        *slow_cases(["simsiam"], ["adios"], ORDERS, [AUTHORS], [2]),
        *slow_cases(["simclr", "dino", "pixel", "mocov2"], ["adios"], ["alternating"], [PAPER], [3]),
        *slow_cases(["simclr"], ["adios-s"], ["simultaneous"], [PAPER], [3]),
    ],
)
def test_slots_embedded_at_once_equal_the_literal_game(
    objective: str, scheme: str, order: str, convention: tuple[str, str], at_once: int
) -> None:
    assert_steps_are_literal(replaced(make_config(objective, scheme, order, *convention), {"slots_at_once": at_once}))


def assert_steps_are_literal(config: TrialConfig) -> None:
    """Assert that networks and buffers after each of three steps equal those of the literal implementation."""
    fast, fast_optimizers = make_players(config)
    naive, naive_optimizers = make_players(config)
    for step in range(3):
        batch = make_batch(step, config.masking.fill)
        train_step(fast, fast_optimizers, batch, config, step / 3)
        naive_step(naive, naive_optimizers, batch, config, step / 3)
        literal = dict(naive.named_parameters()) | dict(naive.named_buffers())
        for name, tensor in (dict(fast.named_parameters()) | dict(fast.named_buffers())).items():
            if not name.startswith("probe"):
                assert_close(tensor.detach().double(), literal[name].detach().double())


@pytest.mark.parametrize(
    ("options", "scheme"),
    [(("no", "both"), "adios"), *slow_cases([(), ("both",), ("symmetry",), ("no",)], SCHEMES)],
)
def test_the_authors_two_view_game_is_theirs(options: tuple[str, ...], scheme: str) -> None:
    """Check the combinations of terms in the authors' scripts, with both views' penalties and the entropy term."""
    flags: dict[str, Term] = {"symmetry": "unmasked-masked", "no": "unmasked-unmasked", "both": "masked-masked"}
    terms = ["masked-unmasked", *(flags[option] for option in options)]
    config = replaced(
        make_config("simsiam", scheme, "alternating", *AUTHORS),
        {"objective.terms": terms, "objective.predictor_dim": 6}
        | {"masking.sparsity_weight": 0.2, "masking.entropy_weight": 0.29},
    )
    fast, fast_optimizers = make_players(config)
    naive, naive_optimizers = make_players(config)
    for step in range(2):
        train_step(fast, fast_optimizers, make_batch(step), config, 0.0)
        naive_step(naive, naive_optimizers, make_batch(step), config, 0.0)
    literal = dict(naive.named_parameters())
    for name, parameter in fast.named_parameters():
        if not name.startswith("probe"):
            assert_close(parameter.detach(), literal[name].detach())


def test_the_entropy_term_enters_with_its_weight() -> None:
    """Compare with the same step without it: the occlusion model's gradients differ by alpha times the entropy's."""
    gradients = []
    for weight in (0.0, 0.7):
        config = make_config(entropy_weight=weight)
        networks, optimizers = make_players(config)
        naive = copy.deepcopy(networks)
        assert networks.occlusion is not None and optimizers.occlusion is not None
        optimizers.occlusion.register_step_pre_hook(
            lambda *_, model=networks.occlusion: gradients.append(model.head.weight.grad.clone())
        )
        train_step(networks, optimizers, make_batch(0), config, 0.0)
    sizes = naive.occlude(make_batch(0).b).mean(dim=(2, 3))
    entropy = torch.distributions.Categorical(logits=sizes).entropy().sum()
    assert naive.occlusion is not None
    (expected,) = torch.autograd.grad(entropy, [naive.occlusion.head.weight])
    assert_close(gradients[1] - gradients[0], 0.7 * expected)


@pytest.mark.parametrize(
    ("objective", "scheme", "fill"),
    [
        *itertools.product(OBJECTIVES, SCHEMES, ["zero"]),
        ("simclr", "adios", "mix"),
        *slow_cases(["simclr"], ["adios"], [fill for fill in FILLS if fill != "mix"]),
    ],
)
def test_gradients_equal_those_of_the_literal_game(objective: str, scheme: str, fill: str) -> None:
    config = make_config(objective, scheme, fill=fill)
    fast, fast_optimizers = make_players(config)
    naive, naive_optimizers = make_players(config)
    collected: dict[torch.Tensor, torch.Tensor] = {}

    def collect(optimizer: torch.optim.Optimizer) -> None:
        collected.update({p: p.grad.clone() for group in optimizer.param_groups for p in group["params"]})

    for optimizer in fast_optimizers.all().values():
        optimizer.register_step_pre_hook(lambda o, *_: collect(o))
    expected = naive_step(naive, naive_optimizers, make_batch(0, fill), config, 0.0)
    train_step(fast, fast_optimizers, make_batch(0, fill), config, 0.0)
    assert fast.occlusion is not None
    players = list(fast.encoder_parameters()), list(fast.occlusion.parameters())
    for parameters, gradients in zip(players, expected, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert_close(collected[parameter], gradient)


@pytest.mark.parametrize("objective", OBJECTIVES + OTHERS)
def test_without_masks_the_step_is_the_plain_objective(objective: str) -> None:
    config = make_config(objective, scheme="none")
    fast, optimizers = make_players(config)
    plain = copy.deepcopy(fast)
    batch = make_batch(0)
    loss = train_step(fast, optimizers, batch, config, 0.0).measurements.loss
    expected = plain.objective.loss_between(plain.embed(batch.a)[0], plain.embed(batch.b)[0])
    gradients = torch.autograd.grad(expected, list(plain.encoder_parameters()))
    assert_close(loss, expected.detach())
    decay, lr = config.optimizer.weight_decay, config.optimizer.encoder_lr
    for before, after, gradient in zip(plain.encoder_parameters(), fast.encoder_parameters(), gradients, strict=True):
        shrink = decay * before if before.ndim > 1 else 0
        assert_close(after.detach(), (before - lr * (gradient + shrink)).detach())


@pytest.mark.parametrize("objective", ["byol", "mocov3", "dino"])
def test_targets_are_projections_by_the_momentum_networks(objective: str) -> None:
    networks, optimizers = make_players(config := make_config(objective))
    train_step(networks, optimizers, make_batch(0), config, 0.0)
    networks.eval()  # BatchNorm's statistics do not move between the two passes
    assert networks.momentum is not None
    x, momentum = make_batch(1).a, networks.momentum
    target = networks.embed(x)[0].target
    torch.testing.assert_close(target, momentum["projector"](momentum["backbone"](x)), rtol=0, atol=1e-12)
    assert not torch.allclose(target, networks.objective.projector(networks.backbone(x)))


@pytest.mark.parametrize(
    ("objective", "order"), [("byol", "simultaneous"), ("dino", "simultaneous"), ("mocov2", "alternating")]
)
def test_a_step_that_is_not_finite_moves_no_average_and_no_statistics(objective: str, order: str) -> None:
    networks, optimizers = make_players(config := make_config(objective, order=order))
    train_step(networks, optimizers, make_batch(0), config, 0.0)
    assert networks.momentum is not None
    watched = [*networks.momentum.parameters(), *networks.objective.buffers(recurse=False)]
    before, batch = [values.clone() for values in watched], make_batch(1)
    batch.b[0] = torch.nan
    train_step(networks, optimizers, batch, config, 0.5)
    assert all(map(torch.equal, watched, before))


def test_each_embedding_of_a_step_draws_its_own_numbers_and_the_second_pass_the_same() -> None:
    networks, optimizers = make_players(config := make_config(order="alternating"))
    seeds: list[int] = []
    networks.backbone.register_forward_hook(lambda *_: seeds.append(torch.initial_seed()))
    train_step(networks, optimizers, make_batch(0)._replace(module_seed=70), config, 0.0)
    assert seeds == [70, 71, 72, 73] * 2  # the unmasked view, and three slots


def game_value(networks: Networks, batch: Batch, config: TrialConfig) -> float:
    """Compute L - lambda p on a batch (paper, Equation 8)."""
    masks_a, masks_b = naive_masks(networks, batch, both=False)
    with torch.no_grad():
        objective = naive_objective(networks, batch, masks_a, masks_b, config)
        return float(objective - config.masking.sparsity_weight * naive_penalty(masks_b, config))


@pytest.mark.parametrize(("objective", "order"), [*itertools.product(OBJECTIVES, ORDERS), *slow_cases(OTHERS, ORDERS)])
@pytest.mark.slow
def test_the_encoder_lowers_and_the_masks_raise_the_objective(objective: str, order: str) -> None:
    config = make_config(objective, order=order)
    for player, sign in (("encoder", -1), ("occlusion", 1)):
        networks, optimizers = make_players(config)
        batch = make_batch(0)
        before = game_value(copy.deepcopy(networks), batch, config)
        rates = {"encoder": 0.0, "occlusion": 0.0, player: 1e-5}
        optimizers.set_learning_rates(rates["encoder"], rates["occlusion"])
        momentum, statistics = copy.deepcopy(networks.momentum), copy.deepcopy(dict(networks.objective.named_buffers()))
        train_step(networks, optimizers, batch, config, 0.0)
        networks.momentum = momentum
        networks.objective.load_state_dict(statistics, strict=False)
        assert sign * (game_value(networks, batch, config) - before) > 0


def test_the_measured_loss_and_penalty_are_those_of_the_game() -> None:
    config = make_config("byol", reduction="sum")
    networks, optimizers = make_players(config)
    batch = make_batch(1)
    masks_a, masks_b = naive_masks(networks, batch, both=False)
    objective = naive_objective(copy.deepcopy(networks), batch, masks_a, masks_b, config) / 3
    penalty = naive_penalty(masks_b, config) / 3
    measured = train_step(networks, optimizers, batch, config, 0.0).measurements
    assert_close(measured.loss, objective.detach())
    assert_close(measured.penalty, penalty.detach())

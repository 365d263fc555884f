"""Two workers that share each batch take the same steps, gradients included, as one process on the whole batch."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import CPU, IMAGES, SIZE, assert_close, make_batch, make_config, make_players, moved
from torch import Tensor, distributed
from torch.multiprocessing.spawn import start_processes

from adios_ray import parallel
from adios_ray.config import ObjectiveConfig, TrialConfig, replaced
from adios_ray.data.loader import Batch
from adios_ray.data.sources.base import NO_LABEL
from adios_ray.objectives import Embedding, objective_class
from adios_ray.training.divergence import Terms, batch_state
from adios_ray.training.step import train_step

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workers")]  # one process makes what all tests compare
WORKERS, STEPS = 2, 2
CONTRASTS = ("simclr", "barlow", "vicreg", "mocov2", "mocov3", "dino")
GAMES = list(itertools.product(("adios", "adios-s"), ("simultaneous", "alternating"), ("one", "both")))

EXCHANGES = {("none", "simultaneous"): 1, ("adios", "simultaneous"): 2, ("adios", "alternating"): 2}
"""One for each update that others wait for: the encoder with the probe and the terms, and the occlusion model."""

SYNCHRONIZED = (("simclr", "none", 1), ("byol", "adios", 1), ("byol", "adios", 3))
"""Objective, scheme and slots embedded at once."""


def synchronized_config(objective: str, scheme: str, at_once: int) -> TrialConfig:
    """Configure a residual network with BatchNorm over all workers' images."""
    return replaced(make_config(objective, scheme), {"sync_batch_norm": True, "slots_at_once": at_once})


def game_config(scheme: str, order: str, masked_views: str) -> TrialConfig:
    """SimCLR, whose negatives span the workers, on a backbone without batch statistics."""
    config = make_config("simclr", scheme, order, masked_views=masked_views, entropy_weight=0.1)
    return replaced(config, {"backbone.name": "test_vit", "optimizer.encoder_lr": 0.01})


def share(batch: Batch, rank: int, workers: int) -> Batch:
    """Take every ``workers``-th image, the batch loader's division among workers."""
    own = slice(rank, None, workers)
    return Batch(batch.a[own], batch.b[own], batch.labels[own], batch.drawn_slots[own])


def accumulate_gradients(config: TrialConfig, rank: int, workers: int, device: torch.device = CPU) -> dict[str, Tensor]:
    """Train some steps; return the parameters after them and the first step's gradients, by name."""
    networks, optimizers = make_players(config, device)
    names = {parameter: name for name, parameter in networks.named_parameters()}
    seen: dict[str, Tensor] = {}

    def collect(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            seen.setdefault(f"gradient of {names[parameter]}", parameter.grad.clone())

    for optimizer in optimizers.all().values():
        optimizer.register_step_pre_hook(collect)
    for step in range(STEPS):
        whole = make_batch(step)
        whole.labels[:3:2] = NO_LABEL  # of the first worker alone
        batch = moved(share(whole, rank, workers), device)
        train_step(networks, optimizers, batch, config, step / STEPS)
    return seen | {name: values.detach() for name, values in networks.state_dict().items()}


def loss_between(name: str, rank: int, workers: int) -> dict[str, Tensor]:
    """Compute an objective's loss between random embeddings, its gradients, and its buffers after one update."""
    torch.manual_seed(0)
    queue = {"queue": 10} if name == "mocov2" else {}
    objective = objective_class(name)(ObjectiveConfig(name=name, output_dim=6, **queue), 4, SIZE).double()
    embeddings = torch.randn(4, 2 * IMAGES, 6, dtype=torch.float64).chunk(workers, dim=1)[rank]
    online_u, target_u, online_v, target_v = (part.clone() for part in embeddings)
    online_u.requires_grad_()
    online_v.requires_grad_()
    loss = objective.loss_between(Embedding(online_u, target_u), Embedding(online_v, target_v))
    loss.backward()
    objective.update_statistics(Embedding(online_u.detach(), target_u))
    assert online_v.grad is not None
    if online_u.grad is None:  # MoCo v2 compares in one direction
        online_u.grad = torch.zeros_like(online_u)
    # train_step averages gradients over the workers, so each worker's gradient of its own rows is ``workers`` times
    # the global one.
    gradients = {"u": online_u.grad / workers, "v": online_v.grad / workers}
    return {"loss": parallel.average(loss.detach()), **gradients, **dict(objective.named_buffers())}


def shuffled_shares(rank: int) -> Tensor:
    """Subtract the mean of each worker's share of shuffled rows, as BatchNorm does; worker 0 draws the order."""
    torch.manual_seed(rank)
    rows = torch.arange(8, dtype=torch.float64).square().chunk(WORKERS)[rank]
    return parallel.shuffled(lambda share: share - share.mean(), rows)


def gradients_of_a_sum(rank: int, workers: int) -> tuple[Tensor, ...]:
    """Compute the gradients of two gathered tensors' rows, whose sum is squared; autograd gives both the same one."""
    rows = torch.arange(8, dtype=torch.float64).view(2, 4).chunk(workers, dim=1)
    first, second = (row.clone().requires_grad_() for row in rows[rank])
    total = parallel.gather_with_gradient(first) + parallel.gather_with_gradient(second)
    return torch.autograd.grad(total.square().sum(), (first, second))


def count_exchanges(scheme: str, order: str, rank: int) -> int:
    """Count the all-reduces of a step with an objective that exchanges nothing itself."""
    config, counted, all_reduce = make_config("byol", scheme, order), list[int](), distributed.all_reduce
    networks, optimizers = make_players(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "all_reduce", lambda *a, **k: [counted.append(1), all_reduce(*a, **k)][1])  # type: ignore[func-returns-value]  # in a list, None is no matter
        train_step(networks, optimizers, share(make_batch(0), rank, WORKERS), config, 0.0)
    return len(counted)


def work(rank: int, meeting_point: str, directory: str) -> None:
    """Run one worker: train all games and save the results."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=WORKERS)
    results: list[Any] = [accumulate_gradients(game_config(*game), rank, WORKERS) for game in GAMES]
    results += [loss_between(name, rank, WORKERS) for name in CONTRASTS]
    results += [accumulate_gradients(synchronized_config(*case), rank, WORKERS) for case in SYNCHRONIZED]
    results.append(dict(zip("ab", gradients_of_a_sum(rank, WORKERS), strict=True)))
    results.append({"exchanges": torch.tensor([count_exchanges(*game, rank) for game in EXCHANGES])})
    results.append({"shuffled": shuffled_shares(rank)})
    # As where another worker has run out of memory: what one does alone waits for no other.
    with parallel.alone():
        results.append(accumulate_gradients(game_config(*GAMES[0]), 0, 1) if rank == 1 else {})
    terms = Terms(torch.tensor([1.0, torch.nan if rank == 1 else 2.0]), torch.ones(2), torch.ones(2))
    parallel.begin_averaging(terms)()
    assert "objective of slot 1" in str(terms.fault())
    torch.save(results, Path(directory) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Tensor]]]:
    """Run two workers and load the results of each, game by game."""
    directory = tmp_path_factory.mktemp("workers")
    start_processes(work, (str(directory / "meeting"), str(directory)), nprocs=WORKERS, start_method="spawn")
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def test_a_worker_may_take_steps_alone(shared: list[list[dict[str, Tensor]]]) -> None:
    expected = accumulate_gradients(game_config(*GAMES[0]), 0, 1)
    assert all(torch.equal(value, expected[name]) for name, value in shared[1][-1].items()) and shared[1][-1]


@pytest.mark.parametrize("number", range(len(GAMES)), ids=["-".join(game) for game in GAMES])
def test_two_workers_equal_one(number: int, shared: list[list[dict[str, Tensor]]]) -> None:
    alone = accumulate_gradients(game_config(*GAMES[number]), 0, 1)
    for results in shared:
        assert results[number].keys() == alone.keys()
        for name, expected in alone.items():
            assert_close(results[number][name], expected)


@pytest.mark.parametrize("number", range(len(SYNCHRONIZED)), ids=["-".join(map(str, case)) for case in SYNCHRONIZED])
def test_synchronized_workers_equal_one(number: int, shared: list[list[dict[str, Tensor]]]) -> None:
    alone = accumulate_gradients(synchronized_config(*SYNCHRONIZED[number]), 0, 1)
    assert any("running_var" in name for name in alone) and any("momentum" in name for name in alone) == (number > 0)
    for results in shared:
        own = results[len(GAMES) + len(CONTRASTS) + number]
        assert own.keys() == alone.keys()
        for name, expected in alone.items():
            assert_close(own[name].double(), expected.double())


@pytest.mark.parametrize("number", range(len(CONTRASTS)), ids=CONTRASTS)
def test_a_distance_over_two_workers_equals_that_of_the_global_batch(
    number: int, shared: list[list[dict[str, Tensor]]]
) -> None:
    alone = loss_between(CONTRASTS[number], 0, 1)
    results = [own[len(GAMES) + number] for own in shared]
    for row in ("u", "v"):
        assert_close(torch.cat([own.pop(row) for own in results]), alone.pop(row))
    for own in results:
        assert own.keys() == alone.keys()
        for name, expected in alone.items():
            assert_close(own[name].double(), expected.double())


def test_two_gathered_tensors_may_be_added(shared: list[list[dict[str, Tensor]]]) -> None:
    alone = gradients_of_a_sum(0, 1)
    for name, expected in zip("ab", alone, strict=True):  # each worker has the whole loss
        assert_close(torch.cat([own[-4][name] for own in shared]), WORKERS * expected)


def test_a_step_exchanges_once_for_each_player(shared: list[list[dict[str, Tensor]]]) -> None:
    assert [own[-3]["exchanges"].tolist() for own in shared] == WORKERS * [list(EXCHANGES.values())]


def test_shuffled_rows_are_normalized_with_others_and_come_back(shared: list[list[dict[str, Tensor]]]) -> None:
    torch.manual_seed(0)
    rows, order, expected = torch.arange(8, dtype=torch.float64).square(), torch.randperm(8), torch.empty(8).double()
    for share in order.chunk(WORKERS):
        expected[share] = rows[share] - rows[share].mean()
    assert_close(torch.cat([own[-2]["shuffled"] for own in shared]), expected)
    assert set(order[:4].tolist()) != set(range(4))


def test_a_saved_batch_keeps_the_masks_of_both_views_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two workers of two images each: the other one's tensors are this one's plus 100.
    monkeypatch.setattr(parallel, "gather_with_gradient", lambda values: torch.cat([values, values + 100]))
    images = torch.arange(2.0)[:, None, None, None]
    masks = torch.tensor([0.0, 1, 10, 11])[:, None, None, None]  # of the first view's images, then of the second's
    saved = batch_state(Batch(images, images + 10, images.flatten().long(), images.flatten(), masks))
    first, second = saved["masks"].flatten().split(4)
    assert torch.equal(first, saved["a"].flatten()) and torch.equal(second, saved["b"].flatten())

"""The same results on a GPU as on the CPU, and what only a GPU can show; skipped where torch sees none.

The oracle of a training step is the step on the CPU in double precision, which ``test_step.py`` compares with the
literal implementation. Tolerances are relative norms of a difference; single precision is without TF32.
"""

import functools
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import growth_mib, release, tf32
from small import make_objects, small_config
from test_augment import MIXED, pictures
from test_population import experiment
from test_step import CPU, assert_close, make_batch, make_config, make_players, moved
from test_workers import WORKERS, accumulate_gradients, game_config
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from trainers import assert_identical, saved, trained

from adios_ray.checkpoints import META_FILE, load_checkpoint
from adios_ray.config import OBJECTIVES, TrialConfig, replaced
from adios_ray.data.augment import apply_view, draw_parameters
from adios_ray.data.loader import BatchLoader
from adios_ray.data.shards import open_shards
from adios_ray.masking.slots import read_head
from adios_ray.models.stem import StemConv2d
from adios_ray.tracking.decisions import read_lineage
from adios_ray.tracking.results import read_results
from adios_ray.training.cost import measure_step
from adios_ray.training.graphs import WARM_UP_STEPS, GraphedStep
from adios_ray.training.step import train_step
from adios_ray.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
]
GPU = torch.device("cuda")
IMAGES = 32
LEVEL = 1 / 255 / 0.225
"""One level of the stored 8-bit images, in the units of normalized views."""
GAMES = [("none", "simultaneous"), *itertools.product(("adios", "adios-s"), ("simultaneous", "alternating"))]
# Of losses, and of gradients. In single precision rounding switches a ReLU here and there (up to 0.02 on CPUs); in
# bfloat16 it moves gradients by 0.2 to 0.45 on CPUs; one that is missing differs by 1, one with a wrong sign by 2.
TOLERANCES = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 0.05), torch.bfloat16: (0.1, 0.75)}


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    """Compute in whole single precision: TF32 rounds to 10 bits."""
    with tf32(False):
        yield


def difference(actual: Tensor, expected: Tensor) -> float:
    """Compute the relative norm of a difference."""
    return float((actual - expected).norm() / expected.norm())


def in_one(tensors: Any) -> Tensor:
    """Join the numbers of tensors that are not integers, in double precision on the CPU."""
    return torch.cat([t.detach().double().cpu().flatten() for t in tensors if t.is_floating_point()])


def one_step(
    config: TrialConfig, device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> dict[str, Tensor]:
    """Take one step; return the losses, the gradients of each player, and the change of weights and statistics."""
    networks, optimizers = make_players(config, device, dtype)
    before = in_one(networks.state_dict().values())
    if compiled:
        torch._dynamo.reset()
        networks.compile_parts()
    found: dict[str, Tensor] = {}

    def collect(player: str, optimizer: torch.optim.Optimizer) -> None:
        found[f"gradient of {player}"] = in_one(p.grad for group in optimizer.param_groups for p in group["params"])

    for player, optimizer in optimizers.all().items():
        optimizer.register_step_pre_hook(lambda o, *_, player=player: collect(player, o))
    batch = moved(make_batch(0, images=IMAGES), device, dtype)
    measured = train_step(networks, optimizers, batch, config, 0.5).measurements
    found["losses"] = in_one([measured.loss[None], measured.penalty[None]])
    found["change"] = in_one(networks.state_dict().values()) - before
    return found


@functools.cache
def oracle(objective: str, game: tuple[str, str]) -> tuple[TrialConfig, dict[str, Tensor]]:
    """Configure a game, and take its step on the CPU in double precision."""
    config = make_config(objective, *game, masked_views="both" if objective == "simsiam" else "one")
    # So small that the second pass of an alternating step does not magnify what rounding did to the first update.
    config = replaced(config, {"optimizer.encoder_lr": 1e-4})
    return config, one_step(config, CPU, torch.float64)


def assert_step_is_the_cpus(
    objective: str, game: tuple[str, str], at_once: int, dtype: torch.dtype, compiled: bool = False
) -> None:
    """Compare a step on the GPU with the oracle; bfloat16 is autocast over single precision."""
    config, expected = oracle(objective, game)
    half = dtype == torch.bfloat16
    config = replaced(config, {"slots_at_once": at_once, "precision": "bfloat16" if half else "float32"})
    found = one_step(config, GPU, torch.float32 if half else dtype, compiled)
    assert found.keys() == expected.keys()
    apart = {name: difference(found[name], values) for name, values in expected.items()}
    of_losses, of_gradients = TOLERANCES[dtype]
    assert apart["losses"] < of_losses and max(apart.values()) < of_gradients, apart


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("game", "at_once"), [*((game, 1) for game in GAMES), *((game, 3) for game in GAMES[1:3])])
@pytest.mark.parametrize("objective", ["simclr", "byol", "simsiam", "vicreg"])
def test_a_step_is_the_cpus(objective: str, game: tuple[str, str], at_once: int, dtype: torch.dtype) -> None:
    assert_step_is_the_cpus(objective, game, at_once, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("objective", "game", "at_once"),
    [("simclr", ("adios", "simultaneous"), 3), ("byol", ("adios-s", "alternating"), 1)],
)
def test_a_compiled_step_is_the_cpus(objective: str, game: tuple[str, str], at_once: int, dtype: torch.dtype) -> None:
    assert_step_is_the_cpus(objective, game, at_once, dtype, compiled=True)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise an error inside the block where the host waits for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize(
    ("objective", "scheme", "order", "optimizer", "at_once"),
    [
        *itertools.product(OBJECTIVES, ["none"], ["simultaneous"], ["sgd"], [1]),
        *itertools.product(OBJECTIVES, ["adios"], ["simultaneous", "alternating"], ["sgd"], [1]),
        *itertools.product(OBJECTIVES, ["adios"], ["simultaneous"], ["sgd"], [2, 3]),
        *itertools.product(["simclr"], ["adios-s"], ["simultaneous"], ["sgd", "lars", "adamw"], [1]),
    ],
)
def test_a_step_never_waits_for_the_gpu(objective: str, scheme: str, order: str, optimizer: str, at_once: int) -> None:
    config = make_config(objective, scheme, order)
    config = replaced(config, {"optimizer.name": optimizer, "slots_at_once": at_once})
    networks, optimizers = make_players(config, GPU, torch.float32)
    batch = moved(make_batch(0, images=IMAGES), GPU, torch.float32)
    train_step(networks, optimizers, batch, config, 0.5)  # libraries and buffers of optimizers start here
    with no_waiting():
        train_step(networks, optimizers, batch, config, 0.5)


@pytest.mark.parametrize(
    ("fill", "cuda_graphs"), [("zero", False), ("noise", False), ("mix", False), ("zero", True), ("noise", True)]
)
def test_a_training_with_its_feed_never_waits_for_the_gpu(fill: str, cuda_graphs: bool, objects_dir: Path) -> None:
    """By default all slots are embedded at once; a recorded step is replayed."""
    changes = {"epochs": 3, "cuda_graphs": cuda_graphs, "evaluation": {"average_weights": True}}
    config = small_config(objects_dir, masking={"fill": fill}, **changes)
    trainer = trained(config, WARM_UP_STEPS + 1, GPU)
    assert trainer.networks.slots_at_once == config.masking.slots
    assert isinstance(trainer._take_step, GraphedStep) is cuda_graphs
    with no_waiting():
        trainer.train_until(WARM_UP_STEPS + 4)


@pytest.mark.parametrize(
    ("objective", "optimizer", "compiled", "at_once"),
    [
        ("simclr", "sgd", False, {"slots_at_once": 2}),
        ("simclr", "sgd", True, {"slots_at_once": 2}),
        ("byol", "lars", False, {"slots_at_once": 2}),
        ("dino", "adamw", False, {"slots_at_once": 2}),
        ("mocov2", "sgd", False, {"slots_at_once": 2}),
        ("byol", "sgd", False, {"micro_batch_size": IMAGES // 2}),
    ],
)
def test_a_recorded_step_is_the_step(objective: str, optimizer: str, compiled: bool, at_once: dict[str, int]) -> None:
    """Compare weights after eight steps at changing rates, of which five are replayed, with those of plain steps."""
    changes = {"optimizer.name": optimizer, "optimizer.encoder_lr": 1e-3, "cuda_graphs": True, **at_once}
    config = replaced(make_config(objective, order="alternating"), changes)
    (networks, optimizers), (recorded, other_optimizers) = (make_players(config, GPU, torch.float32) for _ in range(2))
    for own in (networks, recorded) if compiled else ():
        own.compile_parts()
    start = in_one(networks.state_dict().values())
    graphed = GraphedStep(recorded, other_optimizers, config)
    for step in range(8):
        batch = moved(make_batch(step, images=IMAGES), GPU, torch.float32)
        for rates in (optimizers, other_optimizers):
            rates.set_learning_rates(encoder_lr=1e-3 / (1 + step), occlusion_lr=1e-2 / (1 + step))
        plain = train_step(networks, optimizers, batch, config, step / 8)
        replay = graphed(batch, step / 8)
        assert difference(in_one(replay.measurements), in_one(plain.measurements)) < 1e-3
    end, found = in_one(networks.state_dict().values()), in_one(recorded.state_dict().values())
    assert float((found - end).norm()) < 0.02 * float((end - start).norm())


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_divergence_is_noticed_a_step_later_and_moves_nothing(cuda_graphs: bool, objects_dir: Path) -> None:
    """In the middle of an epoch; a recorded step is replayed there."""
    trainer = trained(small_config(objects_dir, cuda_graphs=cuda_graphs), WARM_UP_STEPS + 1, GPU)
    with torch.no_grad():
        next(trainer.networks.backbone.parameters()).fill_(torch.inf)
    before = in_one(trainer.networks.parameters())
    assert trainer.train_to_report().divergence == "step 4: objective of slot 0 is nan"
    torch.testing.assert_close(in_one(trainer.networks.parameters()), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("allowed", "tolerance"), [(False, LEVEL / 16), (True, LEVEL / 2)], ids=["float32", "tf32"])
def test_views_are_the_cpus(allowed: bool, tolerance: float) -> None:
    """Views of stored 8-bit images: rounding stays far below one level, under TF32 below a half."""
    images = pictures(64, 48)
    samples, sides = torch.arange(64).numpy(), torch.full((64,), 48, dtype=torch.int32).numpy()
    parameters = draw_parameters(MIXED, 0, "view_a", 0, samples, sides, sides)
    with tf32(allowed):
        found = apply_view(images.to(GPU), parameters, 32).cpu()
    assert float((found - apply_view(images, parameters, 32)).abs().max()) < tolerance


@pytest.mark.parametrize("changes", [{}, {"compile": True, "channels_last": True}], ids=["plain", "compiled"])
@pytest.mark.parametrize(
    ("scheme", "fill"), [("adios-s", "zero"), ("mae", "mix"), ("mae", "noise"), ("ground-truth", "zero")]
)
def test_batches_are_the_cpus(scheme: str, fill: str, changes: dict[str, bool], objects_dir: Path) -> None:
    config = small_config(objects_dir, masking={"scheme": scheme, "fill": fill})
    split = open_shards(objects_dir).split("train")
    torch._dynamo.reset()  # else what other tests compiled counts towards the limit, beyond which nothing is
    (expected, *_), (found, *_) = (
        list(BatchLoader(split, own, 32, device).batches(3, 1, 3))
        for own, device in ((config, CPU), (replaced(config, changes), GPU))
    )
    layout = torch.channels_last if changes else torch.contiguous_format
    assert found.a.is_contiguous(memory_format=layout) and found.b.is_contiguous(memory_format=layout)
    assert found.a.device.type == found.labels.device.type == "cuda"
    assert torch.equal(found.labels.cpu(), expected.labels) and found.module_seed == expected.module_seed
    assert torch.equal(found.drawn_slots.cpu(), expected.drawn_slots)
    for own, other in ((found.a, expected.a), (found.b, expected.b), (found.fill_b, expected.fill_b)):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            assert float((own.cpu() - other).abs().max()) < LEVEL / 16
    assert (found.masks is None) == (expected.masks is None)
    if found.masks is not None and expected.masks is not None:  # rounding may move a pixel over an object's edge
        assert float((found.masks.cpu() - expected.masks).abs().mean()) < 1e-3


@pytest.mark.parametrize("objective", ["simclr", "byol"])
def test_a_resumed_training_goes_on_as_if_never_stopped(objective: str, objects_dir: Path, tmp_path: Path) -> None:
    config = small_config(objects_dir, objective={"name": objective}, masking={"scheme": "adios-s"})
    try:
        # A warning names what has no deterministic kernel: sums in another order, which three steps magnify.
        torch.use_deterministic_algorithms(True, warn_only=True)
        stopped, resumed = trained(config, 3, GPU), Trainer(config, GPU)
        pointer = stopped.save(tmp_path / "stopped")
        resumed.load(pointer, config)
        assert_identical(load_checkpoint(pointer, CPU), saved(resumed, tmp_path / "loaded"))
        for trainer in (stopped, resumed):
            trainer.train_until(6)
    finally:
        torch.use_deterministic_algorithms(False)
    middle, whole, parts = (
        in_one(state["networks"].values())
        for state in (
            load_checkpoint(pointer, CPU),
            saved(stopped, tmp_path / "whole"),
            saved(resumed, tmp_path / "parts"),
        )
    )
    assert float((parts - whole).norm()) < 1e-3 * float((whole - middle).norm())


@pytest.mark.parametrize("slots", [2, 5])
def test_an_exploit_changes_n_as_on_the_cpu_and_trains_on(slots: int, objects_dir: Path, tmp_path: Path) -> None:
    donor = trained(small_config(objects_dir), 3, GPU)
    pointer, changed = donor.save(tmp_path / "donor"), small_config(objects_dir, masking={"slots": slots})
    heads = []
    for device in (CPU, GPU):
        trial = Trainer(small_config(objects_dir, masking={"slots": 4}), device)
        trial.load(pointer, changed)
        assert trial.networks.occlusion is not None and trial.optimizers.occlusion is not None
        head = read_head(trial.networks.occlusion, trial.optimizers.occlusion)
        heads.append([head.weight, head.bias, *itertools.chain(*head.moments.values())])
    for expected, found in zip(*heads, strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    report = trial.train_to_report()  # the last trial is the one on the GPU
    assert math.isfinite(report.loss) and report.epoch == 2 and trial.masks(2)[1].shape == (2, slots, 32, 32)


@pytest.mark.parametrize("slots", [2, 5])
def test_a_recorded_training_goes_on_through_an_exploit_that_changes_n(
    slots: int, objects_dir: Path, tmp_path: Path
) -> None:
    """Compare six steps after the exploit, of which three are replayed, with those of a training without a recording.

    Before it six steps are taken as well: a recording of the old head must not be replayed.
    """
    config = small_config(objects_dir, epochs=4, optimizer={"encoder_lr": 1e-3, "occlusion_lr": 1e-3})
    pointer = trained(replaced(config, {"seed": 7}), 6, GPU).save(tmp_path / "donor")
    starts, ends = list[Tensor](), list[Tensor]()
    for cuda_graphs in (False, True):
        own = replaced(config, {"cuda_graphs": cuda_graphs})
        trial = trained(own, 6, GPU)
        trial.load(pointer, replaced(own, {"masking.slots": slots}))
        starts.append(in_one(trial.networks.state_dict().values()))
        reports = trial.train_to_report(), trial.train_to_report()
        assert trial.step == 12 and all(math.isfinite(report.loss) for report in reports)
        ends.append(in_one(trial.networks.state_dict().values()))
        assert isinstance(trial._take_step, GraphedStep) is cuda_graphs and trial.masks(2)[1].shape[1] == slots
    assert difference(starts[1], starts[0]) < 1e-6
    assert float((ends[1] - ends[0]).norm()) < 0.02 * float((ends[0] - starts[0]).norm())


def test_how_many_slots_fit_is_measured_where_training_begins_and_n_changes(objects_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(small_config(objects_dir), GPU)
    assert trainer.networks.slots_at_once == 1  # an evaluation ends here
    trainer.train_until(1)
    assert trainer.networks.slots_at_once == trainer.config.masking.slots == 3
    trainer.load(trainer.save(tmp_path / "donor"), small_config(objects_dir, masking={"slots": 5}))
    trainer.train_until(2)
    assert trainer.networks.slots_at_once == 5
    scenes = Trainer(small_config(make_objects(tmp_path / "scenes", multi_label=True), batch_size=8), GPU)
    scenes.train_until(1)
    assert scenes.networks.slots_at_once == 3


@pytest.mark.parametrize("fitness", ["knn", "probe"])
def test_the_fitness_is_the_cpus(fitness: str, objects_dir: Path, tmp_path: Path) -> None:
    config = small_config(objects_dir, evaluation={"fitness": fitness})
    trainer, other = trained(config, 6, GPU), Trainer(config, CPU)
    other.load(trainer.save(tmp_path / "weights"), config)
    found, expected = trainer.evaluate("val"), other.evaluate("val")
    # Rounding may exchange neighbors that are equally far: one of 20 of one of 40 images.
    assert abs(found.value - expected.value) <= 1 / 800
    assert abs(found.accuracy - expected.accuracy) <= 1 / 40


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_the_stem_keeps_the_memory_layout(layout: torch.memory_format, half: bool) -> None:
    stem = StemConv2d.of(nn.Conv2d(3, 64, 7, 2, 3, bias=False)).to(GPU).to(memory_format=layout)
    x = torch.randn(4, 3, 32, 32, device=GPU).contiguous(memory_format=layout)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        assert stem(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_u_net_keeps_its_memory_layout(compiled: bool, objects_dir: Path) -> None:
    config = replaced(small_config(objects_dir), {"channels_last": True, "compile": compiled})
    trainer = trained(config, 2, GPU)
    assert trainer.networks.occlusion is not None
    layout = torch.channels_last if compiled else torch.contiguous_format
    x = torch.randn(4, 3, 32, 32, device=GPU).contiguous(memory_format=torch.channels_last)
    features: list[Tensor] = []
    trainer.networks.occlusion.mask_head.register_forward_pre_hook(lambda _, inputs: features.extend(inputs))
    trainer.networks.occlude(x)
    assert features[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("objective", ["simclr", "byol"])
def test_memory_does_not_grow_with_the_slots(objective: str) -> None:
    """Compare what a step adds to the memory of networks and batch, which N does not change."""
    config = replaced(TrialConfig(), {"objective.name": objective, "image_size": 96, "slots_at_once": 1})
    one, eight = (growth_mib(config, slots, GPU) for slots in (1, 8))
    assert eight / one <= 1.15, (one, eight)


def test_the_memory_of_a_step_that_does_not_fit_is_measured_with_a_smaller_batch() -> None:
    """The limit is below what the whole batch takes, and above what a part of it takes."""
    config = replaced(TrialConfig(), {"image_size": 96, "batch_size": 128})
    release()
    needed = measure_step(config, 96, GPU).memory_bytes
    limit = 0.7 * needed
    try:
        release()
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(GPU).total_memory)
        assert measure_step(config, 96, GPU).memory_bytes > limit
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def work_on_gpu(rank: int, meeting_point: str, directory: str) -> None:
    """Run one of the workers, each on a GPU of its own."""
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", init_method=f"file://{meeting_point}", rank=rank, world_size=WORKERS)
    config = game_config("adios", "simultaneous", "one")
    found = accumulate_gradients(config, rank, WORKERS, torch.device("cuda", rank))
    torch.save({name: values.cpu() for name, values in found.items()}, Path(directory) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < WORKERS, reason=f"needs {WORKERS} GPUs")
def test_two_gpus_take_the_steps_of_one_process(tmp_path: Path) -> None:
    start_processes(work_on_gpu, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=WORKERS, start_method="spawn")
    alone = accumulate_gradients(game_config("adios", "simultaneous", "one"), 0, 1)
    for rank in range(WORKERS):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert results.keys() == alone.keys()
        for name, expected in alone.items():
            assert_close(results[name], expected)


@pytest.mark.ray
def test_two_trials_share_one_gpu(ray_cluster: None, objects_dir: Path, tmp_path: Path) -> None:
    from adios_ray.experiment.runner import start

    config = experiment(objects_dir, tmp_path, epochs=2).model_copy(update={"gpus_per_worker": 0.5})
    run_dir = start(config)
    rows = read_results(run_dir)
    assert {(row.trial, row.epoch) for row in rows} == {(f"trial_0{t}", e) for t in (0, 1) for e in (1, 2)}
    assert all(math.isfinite(row.loss) for row in rows)
    assert [exploit.epoch for exploit in read_lineage(run_dir)] == [1]
    metas = [json.loads(file.read_text()) for file in (run_dir / "checkpoints").glob(f"*/*/{META_FILE}")]
    assert metas and {meta["device"] for meta in metas} == {"cuda"}

"""What hidden pixels become: each fill against an independent implementation, and in the batches of a training."""

import cmath
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from launches import launches
from scipy import ndimage
from small import SIZE, small_config
from trainers import assert_identical, saved, trained

from adios_ray import parallel
from adios_ray.config import MaskingConfig, TrialConfig
from adios_ray.data.counter_random import uniforms
from adios_ray.data.loader import Batch, BatchLoader, epoch_order
from adios_ray.data.shards import open_shards
from adios_ray.errors import ConfigError
from adios_ray.masking.fill import FILLS, hide, make_fill
from adios_ray.search.spaces import SearchSpace
from adios_ray.training.trainer import Trainer
from adios_ray.validation import parse

CPU = torch.device("cpu")
NAMES = list(FILLS)


def views(count: int = 4, size: int = SIZE) -> torch.Tensor:
    """Draw random images in double precision."""
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def draws(count: int = 4, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Draw one uniform number for each image."""
    return np.random.default_rng(seed).random(count)


def filled(name: str, x: torch.Tensor, numbers: np.ndarray[tuple[int], np.dtype[np.float64]]) -> torch.Tensor:
    """Make a fill that is not zero."""
    fill = make_fill(name, x, numbers)
    assert fill is not None
    return fill


def first_batch(config: TrialConfig, step: int = 0) -> Batch:
    """Load one batch of a trial."""
    assert config.data_dir is not None
    split = open_shards(config.data_dir).split("train")
    return next(BatchLoader(split, config, SIZE, CPU).batches(0, step, step + 1))


def test_the_configuration_and_the_table_have_the_same_fills() -> None:
    assert set(get_args(MaskingConfig.model_fields["fill"].annotation)) == {"zero", *FILLS}


def test_hidden_pixels_become_the_fill_in_proportion_to_the_mask() -> None:
    x, fill = views(), views(8)[4:]
    mask = torch.rand(4, 1, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(hide(x, mask, fill), x * (1 - mask) + mask * fill, rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad(hide(x, mask, fill).sum(), mask)
    torch.testing.assert_close(gradient, (fill - x).sum(dim=1, keepdim=True), rtol=0, atol=1e-13)
    assert torch.equal(hide(x, torch.ones_like(mask), fill), fill)
    assert torch.equal(hide(x.float(), mask.float()), x.float() * (1 - mask.float()))
    assert make_fill("zero", x, draws()) is None


@pytest.mark.parametrize("size", [32, 96])
def test_blur_is_a_gaussian_in_proportion_to_the_image(size: int) -> None:
    x = views(2, size)
    expected = {}
    for name, sigma in (("blur", 10 / 224), ("highpass", 5 / 224)):  # in the code of Chin et al. 2024
        blurred = ndimage.gaussian_filter(x.numpy(), sigma * size, mode="mirror", truncate=3, axes=(2, 3))
        expected[name] = torch.from_numpy(blurred)
    expected["highpass"] = x - expected["highpass"]
    for name, values in expected.items():
        torch.testing.assert_close(filled(name, x, draws(2)), values, rtol=0, atol=1e-12)


def test_a_blurred_constant_is_itself_and_has_no_high_frequencies() -> None:
    x = torch.full((2, 3, SIZE, SIZE), 0.7)
    torch.testing.assert_close(filled("blur", x, draws(2)), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(filled("highpass", x, draws(2)), torch.zeros_like(x), rtol=0, atol=1e-6)


def test_noise_is_standard_normal_and_independent() -> None:
    rows = filled("noise", views(16), draws(16)).flatten(1)
    error = 4 / rows.numel() ** 0.5
    assert abs(float(rows.mean())) < error and abs(float(rows.std()) - 1) < error
    assert abs(float((rows**4).mean()) - 3) < 10 * error  # the fourth moment has a deviation of sqrt(96)
    correlation = torch.corrcoef(rows) - torch.eye(16)
    assert float(correlation.abs().max()) < 5 / rows.shape[1] ** 0.5


def test_noise_is_made_of_the_numbers_of_splitmix64() -> None:
    """The generator's published first numbers from state 0, through the formula of Box and Muller."""
    numbers = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    halves = [((n % 2**32 + 0.5) / 2**32, (n >> 32) / 2**32) for n in numbers]
    polar = [cmath.rect(math.sqrt(-2 * math.log(first)), math.tau * second) for first, second in halves]
    expected = [z.real for z in polar] + [z.imag for z in polar]
    found = filled("noise", torch.zeros(1, 3, 1, 2, dtype=torch.float64), np.zeros(1))
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_noise_has_the_memory_layout_of_the_images() -> None:
    x = views().contiguous(memory_format=torch.channels_last)
    assert filled("noise", x, draws()).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(filled("noise", x, draws()), filled("noise", views(), draws()))


def test_noise_of_many_images_takes_as_many_launches_as_of_one() -> None:
    def count(images: int) -> int:
        x, numbers = views(images), draws(images)
        return launches(lambda: make_fill("noise", x, numbers))

    assert count(1) == count(64)


def test_mix_takes_every_other_image_equally_often_and_never_the_image_itself() -> None:
    x = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    counts = torch.zeros(5, 5)
    for seed in range(400):
        mixed = filled("mix", x, draws(5, seed))
        counts[torch.arange(5), mixed[:, 0, 0, 0].long()] += 1
    assert torch.equal(counts.diag(), torch.zeros(5))
    others = counts[~torch.eye(5, dtype=torch.bool)]
    assert float((others - 100).abs().max()) < 4.5 * (400 * 0.25 * 0.75) ** 0.5


def test_an_images_noise_depends_on_its_own_number_alone() -> None:
    x, numbers = views(), draws()
    changed = numbers.copy()
    changed[2] = 0.5
    first, second = filled("noise", x, numbers), filled("noise", x, changed)
    assert (first != second).flatten(1).any(dim=1).tolist() == [False, False, True, False]
    assert torch.equal(first[1:3], filled("noise", x[1:3], numbers[1:3]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked_views", ["one", "both"])
def test_a_batch_has_the_fill_of_its_seed_epoch_and_images(name: str, masked_views: str, objects_dir: Path) -> None:
    objective = {"masked_views": masked_views}
    config = small_config(objects_dir, masking={"fill": name, "scheme": "mae"}, objective=objective)
    batch, plain = (first_batch(c, 4) for c in (config, small_config(objects_dir, objective=objective)))
    assert torch.equal(batch.a, plain.a) and torch.equal(batch.b, plain.b)  # fills draw from a stream of their own
    assert plain.fill_a is None and plain.fill_b is None
    samples = epoch_order(0, 1, 96)[32:64]  # step 4 is the second of epoch 1
    numbers = uniforms(0, "fill", 1, samples, 2)
    assert batch.fill_b is not None and torch.equal(batch.fill_b, filled(name, batch.b, numbers[:, 1]))
    if masked_views == "one":
        assert batch.fill_a is None
    else:
        assert batch.fill_a is not None and torch.equal(batch.fill_a, filled(name, batch.a, numbers[:, 0]))
        assert not torch.equal(batch.fill_a, batch.fill_b)


def test_workers_have_the_noise_of_their_images_and_mix_within_their_share(
    objects_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {name: small_config(objects_dir, masking={"fill": name}) for name in ("noise", "mix")}
    alone = {name: first_batch(config) for name, config in configs.items()}
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    noise, mixed = first_batch(configs["noise"]).fill_b, first_batch(configs["mix"]).fill_b
    assert noise is not None and mixed is not None and alone["noise"].fill_b is not None
    assert torch.equal(noise, alone["noise"].fill_b[1::2])
    share = {image.numpy().tobytes() for image in first_batch(configs["mix"]).b}
    assert all(image.numpy().tobytes() in share for image in mixed)


@pytest.mark.parametrize("name", ["noise", "mix"])
@pytest.mark.slow
def test_random_fills_resume_and_are_exploited_bit_for_bit(name: str, objects_dir: Path, tmp_path: Path) -> None:
    masking = {"fill": name, "order": "alternating"}
    config = small_config(objects_dir, masking=masking)
    whole = trained(config, 5)
    pointer = trained(config, 2).save(tmp_path / "middle")
    exploiter = trained(small_config(objects_dir, masking=masking, seed=9), 1)
    exploiter.load(pointer, config)
    torch.rand(3)  # moves the global generator
    exploiter.train_until(5)
    assert_identical(saved(whole, tmp_path / "whole"), saved(exploiter, tmp_path / "exploiter"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "none", "fill": "blur"}, "scheme none hides nothing that fill blur could replace: leave fill out"),
        ({"fill": "red"}, "fill"),
    ],
)
def test_fills_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(MaskingConfig, changes)


def test_mix_is_refused_where_a_worker_has_one_image(objects_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="mix needs another image on each worker: raise batch_size above 2"):
        Trainer(small_config(objects_dir, batch_size=2, masking={"fill": "mix"}), CPU)


@pytest.mark.parametrize(("scheduler", "search"), [("asha", "random"), ("asha", "grid"), ("pbt", "random")])
def test_fills_are_searched(scheduler: str, search: str) -> None:
    parameters = {"masking.fill": {"values": ["zero", *NAMES]}}
    parse(SearchSpace, {"scheduler": scheduler, "search": search, "parameters": parameters}).bind(TrialConfig())

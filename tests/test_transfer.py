"""Transfer to another data set: its training against closed forms, what is kept, and what is refused."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import make_objects, small_config
from torch import nn

from adios_ray.config import replaced
from adios_ray.data.augment import apply_view, draw_parameters
from adios_ray.data.counter_random import permutation
from adios_ray.data.shards import Dataset, Split, open_shards
from adios_ray.errors import ConfigError, EvaluationError
from adios_ray.evaluation import transfer as module
from adios_ray.evaluation.extraction import CROPS_AND_FLIPS, STREAM
from adios_ray.evaluation.linear import Accuracy
from adios_ray.evaluation.result import Score
from adios_ray.evaluation.subject import Subject, build_subject
from adios_ray.evaluation.transfer import (
    Classifier,
    RateResult,
    TransferConfig,
    cosine_sgd,
    train_classifier,
    transfer,
)
from adios_ray.models.networks import Networks
from adios_ray.models.weights import Weights, build_initial_backbone
from adios_ray.validation import parse

pytestmark = pytest.mark.slow


def weights_of(seed: int = 0, image_size: int = 32, **backbone: Any) -> Weights:
    """Make the weights of an untrained trial."""
    config = small_config(Path("nowhere"), backbone={"name": "resnet_small", **backbone}, masking={"scheme": "none"})
    torch.manual_seed(seed)
    networks = Networks(config, image_size, 10)
    return Weights(config, image_size, 10, f"seed {seed}", networks.state_dict())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Open 24 images, the same ones in train, val and test."""
    directory = make_objects(tmp_path_factory.mktemp("transfer") / "objects", counts={"train": 24})
    opened = open_shards(directory)
    splits = dict.fromkeys(("train", "val", "test"), opened.manifest.splits["train"])
    return replace(opened, manifest=opened.manifest.model_copy(update={"splits": splits}))


def test_the_learning_rate_is_a_cosine() -> None:
    optimizer, schedule = cosine_sgd([nn.Parameter(torch.ones(1))], 0.3, 8)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0, False)
    for step in range(8):
        assert group["lr"] == pytest.approx(0.3 * math.cos(math.pi * step / 16) ** 2, rel=1e-12)
        optimizer.step()
        schedule.step()
    assert group["lr"] == pytest.approx(0, abs=1e-12)


def subject_of(dataset: Dataset, own: Weights | None = None, seed: int = 0) -> Subject:
    """Take an untrained encoder and the data set."""
    return build_subject(own or weights_of(), dataset, seed=seed)


def trained(subject: Subject, rate: float = 0.1, **settings: Any) -> Classifier:
    """Train a classifier of the data set's 24 images."""
    model = train_classifier(subject, parse(TransferConfig, {"epochs": 1, **settings}), rate)
    assert model is not None
    return model


def test_the_first_step_of_a_linear_classifier_has_a_closed_form(dataset: Dataset) -> None:
    """Compare with rate * mean((truth - 1 / C) features), the step from zero weights."""
    subject, split = subject_of(dataset, seed=3), dataset.split("train")
    model = trained(subject, mode="linear")
    samples = permutation(3, 0, 24)
    crops = draw_parameters(CROPS_AND_FLIPS, 3, STREAM, 0, samples, split.heights[samples], split.widths[samples])
    with torch.no_grad():
        x = subject.networks.backbone(apply_view(torch.from_numpy(split.gather(samples)), crops, 32))
    truth = nn.functional.one_hot(torch.from_numpy(split.labels[samples]), 10) - 0.1
    torch.testing.assert_close(model.head.weight.detach(), 0.1 * truth.T @ x / 24, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.head.bias.detach(), 0.1 * truth.mean(dim=0), rtol=1e-4, atol=1e-6)


def test_modes_decide_which_weights_begin_and_which_change(dataset: Dataset) -> None:
    subject, modes = subject_of(dataset, weights_of(5)), ("fine-tune", "linear", "scratch")
    given = weights_of(5).part("backbone")
    before = {mode: trained(subject, rate=1e-12, mode=mode) for mode in modes}
    after = {mode: trained(subject, mode=mode, batch_size=8) for mode in modes}
    for name in (key for key in given if key.endswith("weight")):
        begun, ended = (
            {mode: model.backbone.state_dict()[name] for mode, model in models.items()} for models in (before, after)
        )
        for mode in ("fine-tune", "linear"):
            torch.testing.assert_close(begun[mode], given[name], rtol=0, atol=1e-8)
        assert torch.equal(ended["linear"], given[name])
        assert not torch.allclose(ended["fine-tune"], given[name])
        if given[name].ndim > 1:  # norms begin at one in any case
            assert not torch.allclose(begun["scratch"], given[name])
    frozen = after["linear"].backbone.state_dict()
    assert all(torch.equal(frozen[name], given[name]) for name in given)


def test_steps_alone_round_products_to_tf32_and_labels_are_there_before(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither views nor the accuracy on other splits is rounded, and no copy waits for the network's forward pass."""
    log: list[str] = []

    @contextmanager
    def rounding(device: torch.device) -> Iterator[None]:
        log.append("begin")
        yield
        log.append("end")

    def logged(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            log.append(name)
            return work(*arguments)

        return call

    monkeypatch.setattr(module, "tf32_products", rounding)
    for name in ("apply_view", "copied_to", "extract_features"):
        monkeypatch.setattr(module, name, logged(name, getattr(module, name)))
    monkeypatch.setattr(Classifier, "forward", logged("forward", Classifier.forward))
    monkeypatch.setattr(torch.optim.SGD, "step", logged("step", torch.optim.SGD.step))
    trained(subject_of(dataset), batch_size=12).accuracy(dataset.split("test"), 32, "square")
    assert log == [*["apply_view", "copied_to", "begin", "forward", "step", "end"] * 2, "extract_features"]


def test_every_epoch_takes_all_images_in_equal_batches(dataset: Dataset) -> None:
    seen: list[int] = []
    train_classifier(subject_of(dataset), TransferConfig(epochs=2, batch_size=10), 0.01, seen.append)
    assert seen == [8] * 6


@pytest.mark.slow
def test_fine_tuning_fits_what_a_frozen_backbone_does_not(dataset: Dataset) -> None:
    tuned, frozen = (
        trained(subject_of(dataset), mode=mode, epochs=40).accuracy(dataset.split("test"), 32, "square").top1
        for mode in ("fine-tune", "linear")
    )
    assert tuned > 0.7
    assert frozen < 0.4


def test_a_seed_decides_the_result_and_the_callers_random_state_stays(dataset: Dataset) -> None:
    subjects = [subject_of(dataset, seed=seed) for seed in (1, 1, 2)]
    before = torch.get_rng_state()
    first, again, other = (trained(subject, mode="scratch", batch_size=8).state_dict() for subject in subjects)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_stem_alone_is_replaced() -> None:
    weights = weights_of(name="resnet18")
    given = weights.part("backbone")
    replaced, features = build_initial_backbone(weights.config.backbone, given, 32, cifar_stem=True)
    own = replaced.state_dict()
    assert own.keys() == given.keys() and features == 512
    assert given["conv1.weight"].shape == (64, 3, 7, 7) and own["conv1.weight"].shape == (64, 3, 3, 3)
    assert all(torch.equal(own[name], given[name]) for name in given if name != "conv1.weight")
    stem, maxpool = replaced.get_submodule("conv1"), replaced.get_submodule("maxpool")
    assert isinstance(stem, nn.Conv2d) and (stem.stride, stem.padding) == ((1, 1), (2, 2))  # paper, Appendix F
    assert isinstance(maxpool, nn.Identity)
    assert replaced.get_submodule("layer1")(stem(torch.zeros(1, 3, 32, 32))).shape[-1] == 34


@pytest.mark.slow
def test_a_stem_that_is_there_keeps_its_weights() -> None:
    weights = weights_of(name="resnet18", cifar_stem=True)
    given = weights.part("backbone")
    backbone, _ = build_initial_backbone(weights.config.backbone, given, 32, cifar_stem=True)
    assert torch.equal(backbone.state_dict()["conv1.weight"], given["conv1.weight"])


def test_the_rate_that_is_best_on_val_is_reported_on_test(dataset: Dataset, tmp_path: Path) -> None:
    """Replace the results of the rates by others, by which another rate is best on test."""
    subject, config = subject_of(dataset), TransferConfig(rates=(0.01, 0.1, 1.0), epochs=1)
    transfer(subject, config, tmp_path)
    worse, better = Accuracy(0.2, 0.9, 0.01, 0.02), Accuracy(0.4, 0.8, 0.03, 0.04)
    for rate, accuracies in ((0.01, (worse, better)), (0.1, (better, worse)), (1.0, None)):
        (path,) = tmp_path.glob(f"fine-tune-{rate:g}-*.json")
        path.write_text(RateResult(rate=rate, accuracies=accuracies, seconds=2.5).model_dump_json())
    found = transfer(subject, config, tmp_path)
    assert found.scores == {
        "top1": Score(0.2, 0.01),
        "top5": Score(0.9, 0.02),
        "val_top1": Score(0.4, 0.03),
        "val_top5": Score(0.8, 0.04),
    }
    assert found.configuration["selected_rate"] == 0.1 and found.configuration["image_size"] == 32
    assert [row["val top1"] for row in found.details] == [0.2, 0.4, "diverged"]
    assert found.images_per_split == {"train": 24, "val": 24, "test": 24}


def test_finished_rates_are_not_trained_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def train(subject: Subject, config: TransferConfig, rate: float, advance: Any) -> SimpleNamespace:
        rates.append(rate)
        if rates == [0.01, 0.1]:
            raise RuntimeError("killed")
        return SimpleNamespace(accuracy=lambda *of: Accuracy(rate, 1.0, 0.1, 0.0))

    monkeypatch.setattr(module, "train_classifier", train)
    subject, config = subject_of(dataset), TransferConfig(rates=(0.01, 0.1))
    with pytest.raises(RuntimeError, match="killed"):
        transfer(subject, config, tmp_path)
    for _ in range(2):
        assert transfer(subject, config, tmp_path).scores["top1"] == Score(0.1, 0.1)
    assert rates == [0.01, 0.1, 0.1]
    # Other weights, seeds and modes have results of their own; from scratch, the weights do not matter.
    other = subject_of(dataset, weights_of(1))
    transfer(other, config, tmp_path)
    transfer(replace(subject, seed=1), config, tmp_path)
    for own in (subject, other):
        transfer(own, config.model_copy(update={"mode": "scratch"}), tmp_path)
    assert rates == [0.01, 0.1, 0.1, *[0.01, 0.1] * 3]


def test_the_view_is_that_of_the_transfers_image_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle is for views below 256 pixels."""
    large = open_shards(make_objects(tmp_path / "large", size=256, counts={"train": 24}))
    splits = dict.fromkeys(("train", "val", "test"), large.manifest.splits["train"])
    large = replace(large, manifest=large.manifest.model_copy(update={"splits": splits}))
    own = weights_of()
    own = replace(own, config=replaced(own.config, {"evaluation.view": "resize-256"}))
    seen: list[tuple[int, str]] = []

    def accuracy(split: Split, image_size: int, view: str) -> Accuracy:
        seen.append((image_size, view))
        return Accuracy(0.5, 1.0, 0.1, 0.0)

    monkeypatch.setattr(module, "train_classifier", lambda *_: SimpleNamespace(accuracy=accuracy))
    for asked, size, view in ((None, 32, "resize-256"), (256, 256, "square"), (48, 48, "resize-256")):
        found = transfer(subject_of(large, own), TransferConfig(rates=(0.1,), image_size=asked), tmp_path / "kept")
        assert seen[-2:] == [(size, view)] * 2
        assert (found.configuration["image_size"], found.configuration["view"]) == (size, view)
    with pytest.raises(ConfigError, match="resize-256 needs views below 256 pixels, not of 256: take square"):
        transfer(replace(subject_of(large, own), asked_view="resize-256"), TransferConfig(image_size=256), tmp_path)


def test_a_training_that_diverges_is_named(dataset: Dataset, tmp_path: Path) -> None:
    subject, config = subject_of(dataset), TransferConfig(rates=(1e30,), epochs=3, batch_size=8)
    with pytest.raises(EvaluationError, match=r"diverged at all rates \(1e\+30\); add smaller ones"):
        transfer(subject, config, tmp_path)
    found = transfer(subject, config.model_copy(update={"rates": (1e30, 0.01)}), tmp_path)
    assert found.configuration["selected_rate"] == 0.01


def test_what_cannot_be_transferred_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode linear keeps the stem"):
        parse(TransferConfig, {"mode": "linear", "cifar_stem": True})
    subject = subject_of(dataset)
    with pytest.raises(ConfigError, match="resnet_small has no stem to replace"):
        transfer(subject, TransferConfig(cifar_stem=True), tmp_path)
    for changes, message in (
        ({"multi_label": True}, "have several labels each; it needs one class"),
        ({"splits": {**dataset.manifest.splits, "val": ()}}, "chooses its learning rate on val"),
    ):
        other = replace(dataset, manifest=dataset.manifest.model_copy(update=changes))
        with pytest.raises(EvaluationError, match=message):
            transfer(replace(subject, dataset=other), TransferConfig(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rates", "message"), [((), r"rates = \(\) must not be empty$"), ((0.0,), "rates = 0.0 must be greater than 0$")]
)
def test_wrong_rates_get_one_complaint(rates: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TransferConfig, {"rates": rates})


def test_an_image_alone_is_refused_before_training(dataset: Dataset, tmp_path: Path) -> None:
    directory = make_objects(tmp_path / "objects", counts={"train": 5})
    odd = open_shards(directory).manifest.splits["train"]
    manifest = dataset.manifest.model_copy(update={"splits": dict.fromkeys(("train", "val", "test"), odd)})
    subject = replace(subject_of(dataset), dataset=replace(open_shards(directory), manifest=manifest))
    with pytest.raises(EvaluationError, match="5 training images in batches of at most 2 leave one image alone"):
        transfer(subject, TransferConfig(batch_size=2), tmp_path / "kept")
    assert transfer(subject, TransferConfig(batch_size=2, mode="linear", rates=(0.1,), epochs=1), tmp_path / "kept")

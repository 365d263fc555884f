"""Transfer to another data set: fine-tuning, a linear classifier, or training from scratch (paper, Appendix D).

SGD with momentum 0.9 and without weight decay, a cosine from the learning rate to zero, batches of 512, random resized
crops and flips. Each rate of a small grid is trained; the one with the highest top-1 accuracy on the validation split
is reported on the test split. S is the side of a view in pixels, B the number of images of a batch, C of classes.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from adios_ray.config import TRANSFER_RATES, CentralView, Count, Rates, Strict
from adios_ray.data.augment import apply_view, draw_parameters
from adios_ray.data.counter_random import permutation
from adios_ray.data.loader import stored_batches
from adios_ray.data.shards import Split
from adios_ray.devices import copied_to, tf32_products
from adios_ray.errors import EvaluationError, RecordError
from adios_ray.evaluation.extraction import CROPS_AND_FLIPS, STREAM, extract_features
from adios_ray.evaluation.linear import Accuracy, accuracy, accuracy_scores
from adios_ray.evaluation.requirements import check_selection
from adios_ray.evaluation.result import EvaluationResult, Row
from adios_ray.evaluation.subject import Subject
from adios_ray.files import write_output
from adios_ray.models.weights import build_initial_backbone, checksum
from adios_ray.validation import read_json

FOLDER = "transfer"
"""Folder in the cache directory."""
VERSION = 3
"""Raised when results change without their inputs: kept ones are not found then."""
MOMENTUM = 0.9
Mode = Literal["fine-tune", "linear", "scratch"]


class TransferConfig(Strict):
    """Settings of a transfer."""

    mode: Mode = "fine-tune"
    """fine-tune: train all weights; linear: train a classifier on the frozen backbone; scratch: draw all weights."""
    rates: Rates = TRANSFER_RATES
    """Learning rates at the first step; the best one on the validation split is reported."""
    epochs: Count = 100
    """Passes over the training split."""
    batch_size: int = Field(512, ge=2)
    """Most images in a step. An epoch is cut into batches of equal size, so that no image is dropped."""
    image_size: int | None = Field(None, ge=32, le=1024)
    """Side of the views in pixels; None takes the checkpoint's, or that of the stored images if it is smaller."""
    cifar_stem: bool = False
    """ResNets only: replace the stem by a new 3x3 convolution of stride 1 without max-pooling, for images of 32
    pixels (paper, Appendix F). Not for linear, which needs the trained weights of the stem."""

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        if self.cifar_stem and self.mode == "linear":
            raise ValueError("mode linear keeps the stem that the backbone was trained with: leave --cifar-stem out")
        return self


class RateResult(Strict):
    """The result of one learning rate."""

    rate: float
    """The learning rate at the first step."""
    accuracies: tuple[Accuracy, Accuracy] | None
    """Accuracy on the validation and on the reported split; None where the training diverged."""
    seconds: float
    """Wall time of training and evaluation."""


class Classifier(nn.Module):
    """A backbone and a linear classifier of its features."""

    def __init__(self, backbone: nn.Module, features: int, classes: int, frozen: bool) -> None:
        """Put a classifier of zeros (Dosovitskiy et al. 2021, Appendix B.1.1) on a backbone of ``features`` outputs."""
        super().__init__()
        self.backbone, self.frozen = backbone.requires_grad_(not frozen), frozen
        self.head = nn.Linear(features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, except for a frozen backbone: BatchNorm would move its running statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images [B, 3, S, S] to logits [B, C]."""
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def accuracy(self, split: Split, image_size: int, view: CentralView) -> Accuracy:
        """Compute the accuracy on a split, without augmentation."""
        features = extract_features(self.backbone, split, np.arange(len(split)), image_size, view)
        head = torch.cat([self.head.weight, self.head.bias[:, None]], dim=1).detach()
        return accuracy(head, features, torch.from_numpy(split.labels))


def transfer(subject: Subject, config: TransferConfig, folder: Path) -> EvaluationResult:
    """Train a classifier of a data set's images at each rate, and report the one that is best on val.

    On a CPU the result follows from the seed bit for bit; on a GPU sums may be taken in another order.

    Args:
        subject: The pretrained encoder and the data set, opened as ``prepared`` returns it; from scratch, only the
            encoder's configuration is used.
        config: Settings.
        folder: Where the result of each rate is kept, named after the checksum of all that it follows from. A rate
            whose result is there is not trained again.

    Returns:
        Scores ``top1`` and ``top5`` on the reported split, ``val_top1`` and ``val_top5``; a row of details for each
        rate.

    Raises:
        EvaluationError: If there is no val split, images do not have one class each, a batch of BatchNorm has one
            image, or the training diverged at all rates.
        ConfigError: If the backbone does not take such images, or has no stem to replace.
    """
    subject = prepared(subject, config)
    splits = {name: subject.dataset.split(name) for name in ("train", "val", subject.split)}
    config = config.model_copy(update={"image_size": subject.image_size})
    results = []
    for rate in config.rates:
        path = folder / f"{config.mode}-{rate:g}-{_checksum(subject, config, rate)}.json"
        if not path.is_file():
            began = time.perf_counter()
            with subject.progress(f"{config.mode} at rate {rate:g}", config.epochs * len(splits["train"])) as advance:
                model = train_classifier(subject, config, rate, advance)
                accuracies = None
                if model is not None:
                    size, view = subject.image_size, subject.view
                    val, test = (model.accuracy(splits[name], size, view) for name in ("val", subject.split))
                    accuracies = val, test
            seconds = round(time.perf_counter() - began, 3)
            result = RateResult(rate=rate, accuracies=accuracies, seconds=seconds)
            write_output(path, result.model_dump_json().encode())
        results.append(read_json(RateResult, path, RecordError))
    finished = [(result.rate, *result.accuracies) for result in results if result.accuracies is not None]
    if not finished:
        rates = ", ".join(f"{rate:g}" for rate in config.rates)
        raise EvaluationError(f"transfer: the training diverged at all rates ({rates}); add smaller ones")
    rate, val, test = max(finished, key=lambda found: found[1].top1)
    configuration = {
        **config.model_dump(mode="json"),
        "momentum": MOMENTUM,
        "selected_on": "val",
        "selected_rate": rate,
    }
    details: list[Row] = [
        {
            "rate": result.rate,
            "val top1": result.accuracies[0].top1 if result.accuracies else "diverged",
            "seconds": result.seconds,
        }
        for result in results
    ]
    scores = accuracy_scores("", test) | accuracy_scores("val_", val)
    return subject.result("transfer", scores, configuration, tuple(splits), details)


def prepared(subject: Subject, config: TransferConfig) -> Subject:
    """Return a subject with views of the transfer's size, after a check of all that can be checked before training.

    Raises:
        EvaluationError: If there is no val split, images do not have one class each, or a batch of BatchNorm has one
            image.
        ConfigError: If the backbone or the view does not take such images, or there is no stem to replace.
    """
    check_selection(subject, "transfer")
    images, backbone = len(subject.dataset.split("train")), subject.networks.backbone
    norms = (isinstance(module, _BatchNorm) for module in backbone.modules())
    if config.mode != "linear" and images // math.ceil(images / config.batch_size) < 2 and any(norms):
        raise EvaluationError(
            f"transfer: {images} training images in batches of at most {config.batch_size} leave one image alone, "
            "which BatchNorm cannot normalize; change the batch size"
        )
    side = config.image_size or min(subject.image_size, subject.dataset.manifest.image_size)
    with torch.random.fork_rng([]):
        build_initial_backbone(subject.networks.config.backbone, None, side, config.cifar_stem)
    return replace(subject, image_size=side)


def train_classifier(
    subject: Subject,
    config: TransferConfig,
    rate: float,
    advance: Callable[[int], object] = lambda done: None,
) -> Classifier | None:
    """Train a classifier at one learning rate.

    Args:
        subject: The pretrained encoder, the data set, and the side of the views.
        config: Settings, of which ``rates`` and ``image_size`` are not used.
        rate: The learning rate at the first step.
        advance: Called with the number of images after each step.

    Returns:
        The classifier, or None as soon as the losses of an epoch are not finite.
    """
    images, device, pretrained = subject.dataset.split("train"), subject.device, subject.networks
    tensors = None if config.mode == "scratch" else pretrained.backbone.state_dict()
    # The caller's random state stays as it was.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(subject.seed)
        own = pretrained.config.backbone
        backbone, features = build_initial_backbone(own, tensors, subject.image_size, config.cifar_stem)
        classes = len(subject.dataset.manifest.classes)
        model = Classifier(backbone, features, classes, frozen=config.mode == "linear").to(device).train()
        batches = math.ceil(len(images) / config.batch_size)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        optimizer, schedule = cosine_sgd(trained, rate, config.epochs * batches)
        labels = torch.from_numpy(images.labels)
        for epoch in range(config.epochs):
            total = torch.zeros((), device=device)
            order = np.array_split(permutation(subject.seed, epoch, len(images)), batches)
            for samples, stored in stored_batches(images, order, device):
                sides = images.heights[samples], images.widths[samples]
                crops = draw_parameters(CROPS_AND_FLIPS, subject.seed, STREAM, epoch, samples, *sides)
                views = apply_view(stored, crops, subject.image_size)
                truth = copied_to(labels[samples], device)
                with tf32_products(device):
                    loss = functional.cross_entropy(model(views), truth)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                schedule.step()
                total += loss.detach()
                advance(len(samples))
            if not total.isfinite():  # once an epoch: each look makes the host wait for the device
                return None
    return model


def cosine_sgd(parameters: Iterable[nn.Parameter], rate: float, steps: int) -> tuple[SGD, LambdaLR]:
    """Build SGD with momentum, whose learning rate at step t is rate (1 + cos(pi t / steps)) / 2, t from 0."""
    optimizer = SGD(parameters, lr=rate, momentum=MOMENTUM)
    return optimizer, LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)


def _checksum(subject: Subject, config: TransferConfig, rate: float) -> str:
    """Compute the checksum of all that the result of a rate follows from; from scratch, these are no weights."""
    pretrained = subject.networks
    tensors = None if config.mode == "scratch" else checksum(pretrained.backbone.state_dict())
    models = config.model_dump(mode="json", exclude={"rates"}), pretrained.config.backbone.model_dump(mode="json")
    data = subject.dataset.manifest.checksum, subject.split, subject.view
    inputs = [VERSION, rate, subject.seed, tensors, *models, *data]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

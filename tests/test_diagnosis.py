"""The checks of an objective name each of the bugs that are seeded here, and find none in those that ship."""

import atexit
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adios_ray.config import OBJECTIVES, ObjectiveConfig
from adios_ray.masking.sparsity import sparsity
from adios_ray.models.networks import Networks
from adios_ray.objectives import Embedding, objective_class
from adios_ray.objectives.byol import BYOL
from adios_ray.objectives.dino import CENTER_MOMENTUM, DINO
from adios_ray.objectives.simclr import SimCLR, nt_xent
from adios_ray.objectives.simsiam import SimSiam, negative_cosine
from adios_ray.training import diagnosis, step
from adios_ray.training.diagnosis import CHECKS, Subject, diagnose, worker_faults
from adios_ray.training.optimizers import Optimizers


class Similarity(BYOL):
    """BYOL that returns the similarity."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Negate the loss."""
        return torch.neg(super().loss_between(u, v))


class DetachedView(SimCLR):
    """SimCLR that takes the masked view without its gradient."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Detach the second view."""
        return super().loss_between(u, Embedding(v.online.detach(), v.target))


class DividesByTheNorm(BYOL):
    """BYOL that normalizes without an epsilon."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Compute cosines by the formula."""
        first, second = u.online / u.online.norm(dim=1, keepdim=True), v.target / v.target.norm(dim=1, keepdim=True)
        third, fourth = v.online / v.online.norm(dim=1, keepdim=True), u.target / u.target.norm(dim=1, keepdim=True)
        loss: Tensor = 4 - 2 * (first * second).sum(dim=1).mean() - 2 * (third * fourth).sum(dim=1).mean()
        return loss


class NoStop(SimSiam):
    """SimSiam that compares the projections of both views, with gradient."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Leave the predictor out."""
        super().__init__(config, features, image_size)
        self.predictor = nn.Identity()

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Ignore the targets."""
        return negative_cosine(u.online, v.online)


class InPlace(BYOL):
    """BYOL that centers the targets in place."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Center the targets, again for each slot."""
        u.target.sub_(0.3)
        v.target.sub_(0.3)
        return super().loss_between(u, v)


class FrozenTemperature(SimCLR):
    """SimCLR that reads the temperature once."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Keep the first temperature."""
        super().__init__(config, features, image_size)
        self.temperature = config.temperature

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Use the first temperature."""
        return nt_xent(u.online, v.online, self.temperature)


class FrozenMomentum(BYOL):
    """BYOL that reads the momentum once."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Keep the first momentum."""
        super().__init__(config, features, image_size)
        self.momentum = config.momentum_start or 0.99

    def momentum_at(self, progress: float) -> float:
        """Use the first momentum."""
        return self.momentum


class PlainCenter(DINO):
    """DINO whose center is no buffer, and that of one worker."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Replace the buffer by an attribute."""
        super().__init__(config, features, image_size)
        del self.center
        self.center = torch.zeros(())

    @torch.no_grad()
    def update_statistics(self, view: Embedding) -> None:
        """Move the center towards the mean of this worker."""
        self.center = self.center.to(view.target).lerp(view.target.mean(dim=0), 1 - CENTER_MOMENTUM)


class MisnamedPredictor(SimSiam):
    """SimSiam whose predictor has another name."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Rename the predictor."""
        super().__init__(config, features, image_size)
        self.prediction_head, self.predictor = self.predictor, nn.Identity()


class Standardized(nn.Module):
    """Standardizes each dimension over the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D] to [B, D]."""
        return (x - x.mean(dim=0)) / (x.std(dim=0) + 1e-5)


class OwnNorm(SimCLR):
    """SimCLR whose projector normalizes over all that is embedded at once."""

    def __init__(self, config: ObjectiveConfig, features: int, image_size: int) -> None:
        """Standardize projections."""
        super().__init__(config, features, image_size)
        self.projector = nn.Sequential(self.projector, Standardized())


class Dropped(SimCLR):
    """A head with dropout."""

    def __init__(self, *arguments: Any) -> None:
        """Append it to the projector."""
        super().__init__(*arguments)
        self.projector = nn.Sequential(self.projector, nn.Dropout(0.1))


class Overflow(SimCLR):
    """SimCLR without normalization, by its formula."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Take exponentials of products that are not bounded."""
        similarity = torch.exp(u.online @ v.online.T / self.config.temperature)
        return -torch.log(torch.diagonal(similarity) / similarity.sum(dim=1)).mean()


class AbortsAtExit(SimCLR):
    """SimCLR in a process that aborts when it is torn down."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Let a worker abort."""
        if multiprocessing.parent_process() is not None:
            atexit.register(os.abort)
        return super().loss_between(u, v)


class OwnNegatives(SimCLR):
    """SimCLR whose negatives are those of one worker."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Contrast the rows of this worker alone."""
        a, b = nn.functional.normalize(u.online), nn.functional.normalize(v.online)
        scores = a @ b.T / self.config.temperature
        return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


class Unfinished(SimCLR):
    """SimCLR with an error."""

    def loss_between(self, u: Embedding, v: Embedding) -> Tensor:
        """Fail."""
        raise AttributeError("no temprature")


SIMCLR = Subject("simclr", SimCLR)

Patch = pytest.MonkeyPatch


def occlusion_descends(patch: Patch) -> None:
    """Let the occlusion model descend the loss."""
    literal = step.train_step

    def negated(networks: Networks, optimizers: Optimizers, *others: Any) -> Any:
        def negate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad.neg_()

        assert optimizers.occlusion is not None
        hooks = optimizers.occlusion._optimizer_step_pre_hooks
        watching = dict(hooks)
        hooks.clear()
        optimizers.occlusion.register_step_pre_hook(negate)
        hooks.update(watching)  # the hooks that look at the gradients come afterwards
        return literal(networks, optimizers, *others)

    patch.setattr(step, "train_step", negated)


def encoder_not_frozen(patch: Patch) -> None:
    """Let gradients reach the encoder in the occlusion model's turn."""

    @contextmanager
    def nothing(networks: Networks) -> Iterator[None]:
        yield

    patch.setattr(step, "frozen", nothing)


def penalty_diverges(patch: Patch) -> None:
    """Compute the penalty by its formula, infinite at the poles."""
    patch.setattr(step, "sparsity", lambda masks: 1 / torch.sin(math.pi * masks.mean(dim=(2, 3))))


def penalty_negated(patch: Patch) -> None:
    """Reward empty and full masks."""
    literal = sparsity
    patch.setattr(step, "sparsity", lambda masks: -literal(masks))


def slots_begin_equal(patch: Patch) -> None:
    """Begin with a head of zeros."""
    literal = Subject.players

    def zeroed(self: Subject, config: Any) -> Any:
        networks, optimizers = literal(self, config)
        assert networks.occlusion is not None
        nn.init.zeros_(networks.occlusion.head.weight)
        assert networks.occlusion.head.bias is not None
        nn.init.zeros_(networks.occlusion.head.bias)
        return networks, optimizers

    patch.setattr(Subject, "players", zeroed)


def intact(_: Patch) -> None:
    """Change nothing."""


@pytest.mark.parametrize(
    ("subject", "seed", "check", "words"),
    [
        (Subject("byol", Similarity), intact, "direction of the loss", "must be lower where views agree"),
        (Subject("simsiam", NoStop), intact, "constant embeddings", "training collapses"),
        (Subject("byol", InPlace), intact, "embeddings left alone", "changes an embedding that it is given"),
        (Subject("simclr", FrozenTemperature), intact, "values that change", "read it from self.config"),
        (Subject("byol", FrozenMomentum), intact, "values that change", "momentum_start has no effect"),
        (Subject("dino", PlainCenter), intact, "saved state", "a tensor is a plain attribute"),
        (Subject("simsiam", MisnamedPredictor), intact, "heads in use", "no gradient reaches prediction_head.0.weight"),
        (Subject("simclr", OwnNorm), intact, "views in one batch", "combine images"),
        (Subject("simclr", Overflow), intact, "masks at the poles", "the loss of large embeddings"),
        (SIMCLR, occlusion_descends, "sign of the game", "the occlusion model must raise the loss"),
        (Subject("simclr", DetachedView), intact, "gradient of the masks", "no gradient of the loss reaches the mask"),
        (SIMCLR, encoder_not_frozen, "frozen encoder", "leaves gradients in the encoder"),
        (Subject("byol", DividesByTheNorm), intact, "masks at the poles", "the loss of zero embeddings"),
        (SIMCLR, penalty_diverges, "masks at the poles", "penalty of slot"),
        (SIMCLR, penalty_negated, "sparsity penalty", "with the cosine -1.00, not 1"),
        (SIMCLR, slots_begin_equal, "slots differ", "are copies after 3 steps"),
    ],
)
@pytest.mark.slow
def test_each_seeded_bug_is_named(
    subject: Subject, seed: Callable[[Patch], None], check: str, words: str, monkeypatch: Patch
) -> None:
    seed(monkeypatch)
    fault = CHECKS[check](subject)
    assert fault is not None and words in fault


def test_an_error_of_the_objective_itself_is_a_finding(monkeypatch: Patch) -> None:
    monkeypatch.setattr(diagnosis, "CHECKS", {"direction of the loss": CHECKS["direction of the loss"]})
    monkeypatch.setattr(diagnosis, "worker_faults", lambda subjects: [None])
    first, second = diagnose(Subject("simclr", Unfinished))
    assert first.fault is not None and first.fault.startswith("AttributeError: no temprature (")
    assert "test_diagnosis.py, line" in first.fault and second.fault is None


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line(monkeypatch: Patch) -> None:
    monkeypatch.setattr(diagnosis, "CHECKS", {})
    (finding,) = diagnose(Subject("simclr", Unfinished))
    assert finding.fault is not None and finding.fault.startswith("AttributeError: no temprature (")
    assert "test_diagnosis.py, line" in finding.fault and "\n" not in finding.fault


@pytest.mark.slow
def test_a_changed_target_is_no_fault_of_what_is_compared_afterwards() -> None:
    subject = Subject("byol", InPlace)
    assert [check for check, of in CHECKS.items() if of(subject)] == ["embeddings left alone"]


@pytest.mark.slow
def test_a_head_that_draws_random_numbers_is_no_fault() -> None:
    subject = Subject("simclr", Dropped)
    assert [check for check, of in CHECKS.items() if of(subject)] == []


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.slow
def test_the_objectives_that_ship_have_no_fault(name: str) -> None:
    subject = Subject(name, objective_class(name))
    assert [check for check, of in CHECKS.items() if of(subject)] == []


@pytest.mark.slow
def test_losses_over_workers_are_compared_with_the_whole_batch() -> None:
    shipped = [Subject(name, objective_class(name)) for name in OBJECTIVES]
    *without, negatives, center = worker_faults(
        [*shipped, Subject("simclr", AbortsAtExit), Subject("simclr", OwnNegatives), Subject("dino", PlainCenter)]
    )
    assert without == [None] * (len(OBJECTIVES) + 1)
    assert negatives is not None and "must gather those of all workers" in negatives
    assert center is not None and center.startswith("the loss after update_statistics of 2 workers differs")

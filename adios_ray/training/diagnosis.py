"""Checks of an objective in the game, each for a bug that trains without an error and is seen only weeks later.

A small trial in double precision plays single steps on random images; gradients are compared with those that autograd
takes of the whole game in one graph. What may overflow is computed in single precision, as in training. ``adios-ray
doctor --objective`` runs all checks.
"""

import copy
import os
import re
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes
from torch.nn.modules.dropout import _DropoutNd

from adios_ray import parallel
from adios_ray.config import OBJECTIVES, TrialConfig
from adios_ray.data.loader import Batch
from adios_ray.masking.slots import slot_statistics
from adios_ray.masking.sparsity import sparsity
from adios_ray.models.networks import Networks, View
from adios_ray.objectives import Embedding, Objective
from adios_ray.training import step as game
from adios_ray.training.optimizers import Optimizers, build_optimizers
from adios_ray.validation import parse

SIZE, IMAGES, CLASSES, SLOTS = 32, 4, 5, 3
ROWS = 64
"""Images of random embeddings, enough for their sample covariances to be small."""
WORKERS = 2
STEPS = 3
"""Steps after which slots must still differ."""
SAME = 0.99
"""Cosine above which two gradients have the same direction; rounding in double precision leaves 1 - 1e-9."""
COPIED = 1 - 1e-6
"""Soft intersection over union above which two slots are copies."""
COLLAPSED = 1e-3
"""Distance of a slot's mean size from 0 or 1 below which it is collapsed."""
ROUNDING = 1e-9
"""Relative difference of equal losses, gradients or embeddings in double precision."""
LARGE = 10.0
"""Standard deviation of large embeddings: projections are not bounded."""
OTHERS = {"temperature": 0.7, "momentum_start": 0.5}
"""Other values of what may be searched while a trial trains."""
POLE_LOGIT = 1e4
"""Difference of logits whose softmax is exactly 0 and 1."""
_INSTALLED = ("<frozen ", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
"""Beginnings of the file names of Python's own and installed modules."""


class Subject(NamedTuple):
    """An objective under diagnosis.

    Attributes:
        name: Its name in the configuration; where the class is not in the table, any name whose values it reads.
        kind: Its class.
    """

    name: str
    kind: type[Objective]

    def config(self, **masking: object) -> TrialConfig:
        """Build the configuration of a small trial, with some values of masking."""
        queue = {"queue": 2 * IMAGES} if "queue" in OBJECTIVES[self.name].uses else {}
        heads = {"name": self.name, "hidden_dim": 24, "output_dim": 16, **queue}
        values = {
            "backbone": {"name": "resnet_small"},
            "objective": heads,
            "masking": {"slots": SLOTS, "width": 8, "sparsity_weight": 0.0, **masking},
            # Small: some objectives' losses are in the hundreds, and these are single steps.
            "optimizer": {"encoder_lr": 1e-3, "occlusion_lr": 1e-3, "weight_decay": 0.0},
        }
        return parse(TrialConfig, values)

    def players(self, config: TrialConfig, seed: int = 0) -> tuple[Networks, Optimizers]:
        """Build seeded networks in double precision, with their optimizers."""
        torch.manual_seed(seed)
        networks = Networks(config, SIZE, CLASSES, self.kind).double().train()
        optimizers = build_optimizers(networks, config.optimizer)
        optimizers.set_learning_rates(config.optimizer.encoder_lr, config.optimizer.occlusion_lr)
        return networks, optimizers

    def embedding(self) -> Embedding:
        """Embed the first view of a batch, for its shapes."""
        with torch.no_grad():
            return self.players(self.config())[0].embed(_batch().a)[0]


class Finding(NamedTuple):
    """The result of a check.

    Attributes:
        check: What was checked.
        fault: What is wrong, and what to do; None if nothing is.
    """

    check: str
    fault: str | None


def diagnose(subject: Subject) -> Iterator[Finding]:
    """Run all checks of an objective, the cheapest first; a check that raises is a fault, too."""
    for name, check in CHECKS.items():
        yield Finding(name, _fault_or_error(lambda check=check: check(subject)))  # type: ignore[misc]  # the loop's own
    yield Finding("gradients of several workers", _fault_or_error(lambda: worker_faults([subject])[0]))


def check_direction(subject: Subject) -> str | None:
    """Compare the loss of embeddings that agree with that of unrelated ones."""
    objective, parts = _objective_and_embeddings(subject)
    agreeing, unrelated = float(_loss(objective, [parts[0]] * 4)), float(_loss(objective, parts))
    if agreeing < unrelated:
        return None
    return (
        f"the loss of views that agree is {agreeing:.4g}, of unrelated views {unrelated:.4g}: it must be lower "
        "where views agree; loss_between returns a similarity, perhaps, instead of its negative"
    )


def check_collapse(subject: Subject) -> str | None:
    """Compare the loss of predictions that are the same for all images with that of predictions that are right."""
    objective, (z, *_) = _objective_and_embeddings(subject)
    right, collapsed = float(_loss(objective, [z] * 4)), float(_loss(objective, [z[:1].expand_as(z), z] * 2))
    if collapsed - right > ROUNDING * max(abs(right), 1):
        return None
    return (
        f"the loss is {collapsed:.4g} where all images have the same online embedding, and {right:.4g} where images "
        "differ: training collapses; predict the other view's target, which has no gradient, or contrast images"
    )


def check_inputs(subject: Subject) -> str | None:
    """Check that loss and statistics leave embeddings alone, which the step uses again."""
    objective, parts = _objective_and_embeddings(subject)
    before = [part.clone() for part in parts]
    objective.loss_between(Embedding(*parts[:2]), Embedding(*parts[2:]))
    objective.update_statistics(Embedding(*parts[:2]))
    if all(map(torch.equal, before, parts)):
        return None
    return (
        "loss_between or update_statistics changes an embedding that it is given, which all slots of a step share: "
        "compute new tensors instead of changing these in place"
    )


def check_adapting(subject: Subject) -> str | None:
    """Compare an objective whose values change while it trains with one that is built with the new values."""
    config, (_, parts) = subject.config(), _objective_and_embeddings(subject)
    other = config.model_copy(update={"objective": config.objective.model_copy(update=OTHERS)})
    adapted, built = (subject.players(own)[0] for own in (config, other))
    adapted.adapt(other)
    if not _close(_loss(adapted.objective, parts), _loss(built.objective, parts)):
        return (
            f"a temperature of {OTHERS['temperature']} that is set while a trial trains has another loss than one that "
            "is set at the start: read it from self.config in loss_between, not once in __init__"
        )
    if adapted.objective.momentum_at(0.5) != built.objective.momentum_at(0.5):
        return "momentum_start has no effect when it is set while a trial trains: read it from self.config"
    return None


def check_state(subject: Subject) -> str | None:
    """Check that an objective with the state of another one, after a step's statistics, has the same loss."""
    saved, parts = _objective_and_embeddings(subject)
    saved.update_statistics(Embedding(*parts[:2]))
    loaded = subject.players(subject.config(), seed=1)[0].objective
    loaded.load_state_dict(saved.state_dict())
    if _close(_loss(loaded, parts), _loss(saved, parts)):
        return None
    return (
        "the loss is another one after the state has been saved and loaded: a tensor is a plain attribute, lost by "
        "resumed and copied trials; register it (register_buffer), and change it in place"
    )


def check_parameters(subject: Subject) -> str | None:
    """Check that a step's loss has a gradient with respect to each parameter of the objective."""
    config = subject.config()
    networks, _ = subject.players(config)
    batch = _batch()
    game.accumulate_gradients(networks, batch, list(networks.occlude(batch.b).detach().split(1, dim=1)), config)
    unused = [name for name, own in networks.objective.named_parameters() if own.requires_grad and own.grad is None]
    if not unused:
        return None
    return (
        f"no gradient reaches {', '.join(unused)}: only self.projector and self.predictor are applied, so a head of "
        "another name is never used"
    )


def check_batched_views(subject: Subject) -> str | None:
    """Compare views that are embedded in one batch, as on GPUs, with the same views embedded one by one."""
    networks, _ = subject.players(subject.config())
    if not networks.can_batch_slots:
        return None
    for module in networks.modules():
        if isinstance(module, _DropoutNd):
            module.eval()  # its random numbers depend on the batch, as they may
    batch = _batch()
    with torch.no_grad():
        views = [View(batch.b, mask) for mask in networks.occlude(batch.b).split(1, dim=1)]
        together, apart = networks.embed_together(views), [networks.embed(view.x, view.mask)[0] for view in views]
    if all(_close(a, b) for one, own in zip(together, apart, strict=True) for a, b in zip(one, own, strict=True)):
        return None
    return (
        "views of several slots in one batch have other embeddings than one by one: projector and predictor combine "
        "images; normalize by nn.BatchNorm1d, or train with --slots-at-once 1"
    )


def check_game(subject: Subject) -> str | None:
    """Compare both players' gradients with the loss's own: the encoder must descend, the occlusion model ascend."""
    config = subject.config()
    networks, optimizers = subject.players(config)
    encoder, masks = _loss_gradients(networks, config)
    moved = _step_gradients(networks, optimizers, config)
    for name, step, gradient, sign, verb in (
        ("the encoder", moved["encoder"], encoder, 1, "lower"),
        ("the occlusion model", moved["occlusion"], masks, -1, "raise"),
    ):
        cosine = _cosine(step, gradient)
        if sign * cosine < SAME:
            return (
                f"{name} must {verb} the loss, but its step has the cosine {-cosine:.2f} with the loss's gradient, not "
                f"{-sign}: the sign of its gradient, or a term of it, is wrong"
            )
    return None


def check_masks(subject: Subject) -> str | None:
    """Check that the loss of each slot has a gradient with respect to its mask."""
    config = subject.config()
    networks, _ = subject.players(config)
    batch = _batch()
    masks = [mask.detach().requires_grad_() for mask in networks.occlude(batch.b).split(1, dim=1)]
    game.accumulate_gradients(networks, batch, masks, config)
    for slot, mask in enumerate(masks):
        if mask.grad is None or not mask.grad.any():
            return (
                f"no gradient of the loss reaches the mask of slot {slot}, so the occlusion model learns nothing: the "
                "masked view (the second argument of loss_between) is detached, or the mask is rounded, on the way"
            )
    return None


def check_frozen_encoder(subject: Subject) -> str | None:
    """Check that the occlusion model's turn of an alternating step leaves the encoder and its gradients alone."""
    config = subject.config(order="alternating")
    networks, optimizers = subject.players(config)
    after: list[Tensor] = []

    def remember(*_: object) -> None:
        after.extend(parameter.detach().clone() for parameter in networks.encoder_parameters())

    optimizers.encoder.register_step_post_hook(remember)
    game.train_step(networks, optimizers, _batch(), config, 0.0)
    names = [*networks.backbone.named_parameters(), *networks.objective.named_parameters()]
    moved = [name for (name, now), own in zip(names, after, strict=False) if not torch.equal(now, own)]
    if len(after) > len(names) or moved:
        return "the encoder is updated in the occlusion model's turn, too: only the masks may move there"
    given = [name for name, now in names if now.grad is not None and now.grad.any()]
    if given:
        return (
            f"the occlusion model's turn leaves gradients in the encoder ({given[0]} and {len(given) - 1} more), which "
            "its next update adds: freeze its parameters, or clear their gradients"
        )
    return None


def check_poles(subject: Subject) -> str | None:
    """Take a step with masks that are all 1 and all 0, and losses of extreme embeddings: all must be finite."""
    objective, (z, *_) = _objective_and_embeddings(subject)
    objective, z = objective.float(), z.float()
    hides = "which a mask that hides everything makes: bound norms and spreads away from 0 (eps)"
    for name, values, reason in (
        ("equal", torch.ones_like(z), hides),
        ("zero", torch.zeros_like(z), hides),
        ("large", LARGE * z, "in single precision: use logsumexp, log_softmax or cross_entropy instead of exp and log"),
    ):
        u, v = values.clone().requires_grad_(), values.clone().requires_grad_()
        loss = objective.loss_between(Embedding(u, values), Embedding(v, values))
        gradients = torch.autograd.grad(loss, [u, v], allow_unused=True)
        if not all(term.isfinite().all() for term in (loss, *gradients) if term is not None):
            return f"the loss of {name} embeddings, or its gradient, is not finite, {reason}"
    config = subject.config(sparsity_weight=0.5)
    networks, optimizers = subject.players(config)
    networks.float()
    _set_head(networks, torch.tensor([POLE_LOGIT, 0.0, 0.0]))
    if fault := game.train_step(networks, optimizers, _batch(dtype=torch.float32), config, 0.0).terms.fault():
        return f"masks that are all 1 and all 0: {fault}: bound what diverges there away from the poles"
    return None


def check_penalty(subject: Subject) -> str | None:
    """Compare what the penalty adds to the occlusion model's gradient with the penalty's own gradient."""
    added = []
    for weight in (0.0, 1.0):
        config = subject.config(sparsity_weight=weight)
        networks, optimizers = subject.players(config)
        _set_head(networks, torch.tensor([2.0, 0.0, -1.0]))
        added.append(_step_gradients(networks, optimizers, config)["occlusion"])
    networks, _ = subject.players(subject.config())
    _set_head(networks, torch.tensor([2.0, 0.0, -1.0]))
    assert networks.occlusion is not None
    penalty = sparsity(networks.occlude(_batch().b)).mean()
    parameters = list(networks.occlusion.parameters())
    expected = _flat(torch.autograd.grad(penalty, parameters), parameters)
    cosine = _cosine(added[1] - added[0], expected)
    if cosine > SAME:
        return None
    return (
        f"the sparsity penalty enters the occlusion model's gradient with the cosine {cosine:.2f}, not 1: masks "
        "collapse, one of them hides everything; it must be subtracted from what the occlusion model maximizes"
    )


def check_slots(subject: Subject) -> str | None:
    """Play some steps, then look for slots that are copies of each other, or empty or full."""
    config = subject.config(sparsity_weight=0.5)
    networks, optimizers = subject.players(config)
    for number in range(STEPS):
        game.train_step(networks, optimizers, _batch(number), config, number / STEPS)
    with torch.no_grad():
        found = slot_statistics(networks.occlude(_batch().b))
    first, second = divmod(int(found.overlap.argmax()), SLOTS)
    if found.overlap.max() > COPIED:
        return (
            f"slots {min(first, second)} and {max(first, second)} are copies after {STEPS} steps: equal slots get "
            "equal gradients and never part; begin with different weights, and give each slot its own loss's gradient"
        )
    for slot, size in enumerate(found.size.tolist()):
        if not COLLAPSED < size < 1 - COLLAPSED:
            return f"slot {slot} is collapsed after {STEPS} steps: it hides {size:.1%} of the images"
    return None


CHECKS: Mapping[str, Callable[[Subject], str | None]] = {
    "direction of the loss": check_direction,
    "constant embeddings": check_collapse,
    "embeddings left alone": check_inputs,
    "values that change": check_adapting,
    "saved state": check_state,
    "heads in use": check_parameters,
    "views in one batch": check_batched_views,
    "sign of the game": check_game,
    "gradient of the masks": check_masks,
    "frozen encoder": check_frozen_encoder,
    "masks at the poles": check_poles,
    "sparsity penalty": check_penalty,
    "slots differ": check_slots,
}
"""Checks in one process, by what they check."""


def worker_faults(subjects: Sequence[Subject]) -> list[str | None]:
    """Compare loss, gradients and statistics of two workers that share a batch with those of the whole batch.

    Workers are processes that communicate by gloo, started once for all objectives. Embeddings are random: projectors
    with BatchNorm normalize over a worker's own images and so are left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_work, (folder, subjects), nprocs=WORKERS, start_method="spawn")
        results = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]
    return [
        _worker_fault(_loss_terms(subject, 0, 1), [own[i] for own in results]) for i, subject in enumerate(subjects)
    ]


def _work(rank: int, folder: str, subjects: Sequence[Subject]) -> None:
    """Compute one worker's part."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/meeting", WORKERS)  # type: ignore[attr-defined]  # but documents it
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    torch.save([_loss_terms(subject, rank, WORKERS) for subject in subjects], Path(folder) / f"{rank}.pt")
    # No worker closes its connections while another one still reads from them; and none is torn down, since threads of
    # gloo that have not ended by then abort the process.
    store.set(f"saved by {rank}", "")
    store.wait([f"saved by {worker}" for worker in range(WORKERS)])
    os._exit(0)


def _loss_terms(subject: Subject, rank: int, workers: int) -> dict[str, Tensor]:
    """Compute the loss of this worker's rows, its gradients by them, and statistics and loss after one update."""
    view = subject.embedding()
    objective = subject.players(subject.config())[0].objective
    embeddings = _random((4, *view.target.shape), seed=2)
    online_u, target_u, online_v, target_v = (part.clone() for part in embeddings.chunk(workers, dim=1)[rank])
    online = online_u.requires_grad_(), online_v.requires_grad_()
    u, v = Embedding(online_u, target_u), Embedding(online_v, target_v)
    loss = objective.loss_between(u, v)
    loss.backward()
    objective.update_statistics(Embedding(online_u.detach(), target_u))
    with torch.no_grad():
        later = objective.loss_between(u, v)
    # The step averages gradients over workers: each worker's gradient of its own rows counts as its share.
    gradients = [torch.zeros_like(own) if own.grad is None else own.grad / workers for own in online]
    statistics = {f"buffer {name}": values.double() for name, values in objective.named_buffers()}
    return {
        "loss": parallel.average(loss.detach()),
        "gradient": torch.stack(gradients, dim=1),
        **statistics,
        "loss after update_statistics": parallel.average(later),
    }


def _worker_fault(alone: Mapping[str, Tensor], shared: Sequence[Mapping[str, Tensor]]) -> str | None:
    """Compare the terms of one process with those of several."""
    for name, expected in alone.items():
        parts = [own[name] for own in shared]
        found = [torch.cat(parts)] if name == "gradient" else parts
        if not all(_close(own, expected) for own in found):
            return (
                f"the {name} of {len(shared)} workers differs from that of one process with the whole batch: a loss "
                "that combines images must gather those of all workers (parallel.gather_with_gradient), and statistics "
                "are averaged over them (parallel.average)"
            )
    return None


def _close(found: Tensor, expected: Tensor) -> bool:
    """Tell whether two tensors are equal up to rounding."""
    scale = max(float(expected.abs().max()), 1e-6)
    return torch.allclose(found, expected, rtol=0, atol=ROUNDING * scale)


def _objective_and_embeddings(subject: Subject) -> tuple[Objective, Sequence[Tensor]]:
    """Build the objective, and draw four unrelated parts of embeddings, each [ROWS, D]."""
    shape = subject.embedding().target.shape[1:]
    return subject.players(subject.config())[0].objective, _random((4, ROWS, *shape), seed=1).unbind()


@torch.no_grad()
def _loss(objective: Objective, parts: Sequence[Tensor]) -> Tensor:
    """Compute the seeded loss between two views with the given embeddings: online and target of each, [B, D]."""
    torch.manual_seed(0)
    own = [part.clone() for part in parts]  # one that is changed in place is a fault of ``check_inputs`` alone
    return objective.loss_between(Embedding(*own[:2]), Embedding(*own[2:]))


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Draw random views."""
    generator = torch.Generator().manual_seed(seed)
    a, b = _random((2, IMAGES, 3, SIZE, SIZE), seed).to(dtype)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    return Batch(a, b, labels, torch.rand(IMAGES, dtype=torch.float64, generator=generator))


def _set_head(networks: Networks, bias: Tensor) -> None:
    """Give the slots' logits a bias, [N]."""
    assert networks.occlusion is not None
    with torch.no_grad():
        networks.occlusion.head.weight.mul_(0.1)
        assert networks.occlusion.head.bias is not None
        networks.occlusion.head.bias.copy_(bias)


def _loss_gradients(networks: Networks, config: TrialConfig) -> tuple[Tensor, Tensor]:
    """Take the gradients of the mean loss over slots, in one graph: of the encoder, and of the occlusion model."""
    literal, batch = copy.deepcopy(networks), _batch()
    assert literal.occlusion is not None
    game.seed_modules(batch, 0)  # as a step does, so that heads that drop features drop the same ones
    view, losses = literal.embed(batch.a)[0], []
    for number, mask in enumerate(literal.occlude(batch.b).split(1, dim=1), start=1):
        game.seed_modules(batch, number)
        losses.append(literal.objective.loss_between(view, literal.embed(batch.b, mask)[0]))
    encoder, occlusion = list(literal.encoder_parameters()), list(literal.occlusion.parameters())
    gradients = torch.autograd.grad(torch.stack(losses).mean(), [*encoder, *occlusion], allow_unused=True)
    return _flat(gradients[: len(encoder)], encoder), _flat(gradients[len(encoder) :], occlusion)


def _step_gradients(networks: Networks, optimizers: Optimizers, config: TrialConfig) -> dict[str, Tensor]:
    """Take a step; return the gradients that each player's optimizer descends."""
    assert networks.occlusion is not None and optimizers.occlusion is not None
    players: dict[str, list[nn.Parameter]] = {
        "encoder": list(networks.encoder_parameters()),
        "occlusion": list(networks.occlusion.parameters()),
    }
    seen: dict[str, Tensor] = {}

    def see(player: str) -> None:
        seen[player] = _flat([parameter.grad for parameter in players[player]], players[player])

    optimizers.encoder.register_step_pre_hook(lambda *_: see("encoder"))
    optimizers.occlusion.register_step_pre_hook(lambda *_: see("occlusion"))
    game.train_step(networks, optimizers, _batch(), config, 0.0)
    return seen


def _flat(gradients: Iterable[Tensor | None], parameters: Iterable[Tensor]) -> Tensor:
    """Join gradients into one vector; a missing one counts as zeros of its parameter's shape."""
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([gradient.detach().reshape(-1) for gradient in filled])


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a, b, dim=0))


def _fault_or_error(check: Callable[[], str | None]) -> str | None:
    """Return a check's fault, or the description of an error of the objective's own code."""
    try:
        return check()
    except ProcessRaisedException as error:  # its message is the traceback of a worker
        *_, (file, line) = re.findall(r'File "(.+)", line (\d+)', str(error))
        return f"{str(error).splitlines()[-1]} ({file}, line {line})"
    except Exception as error:
        return described(error)


def described(error: Exception) -> str:
    """Describe an error of others' code that the caller has caught: its type, message and line, in one line.

    The line is the last one outside of installed packages, if there is one: a wrong shape is found only inside torch.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first one is the caller's
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text

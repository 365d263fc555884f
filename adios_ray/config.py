"""Configuration of a trial: typed, strict, and validated before anything else uses it.

Units are part of the names. An unknown key or a value out of range raises a ``ConfigError`` that names its path.
"""

import os
from collections.abc import Iterator, Mapping, Set
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adios_ray.errors import ConfigError
from adios_ray.measures import MEASURES
from adios_ray.validation import leaves, parse, suggestion


class ObjectiveEntry(NamedTuple):
    """An objective's line in the table.

    Attributes:
        defined: Module below ``adios_ray.objectives``, and class: ``module:Class``.
        uses: Those settings of ``ObjectiveConfig`` it uses that only some objectives do. ``predictor_dim`` stands for
            a predictor, with a learning rate of its own.
    """

    defined: str
    uses: Set[Literal["temperature", "predictor_dim", "queue", "terms", "momentum_start"]] = frozenset()


OBJECTIVES: Mapping[str, ObjectiveEntry] = {
    "simclr": ObjectiveEntry("simclr:SimCLR", {"temperature"}),
    "simsiam": ObjectiveEntry("simsiam:SimSiam", {"predictor_dim", "terms"}),
    "byol": ObjectiveEntry("byol:BYOL", {"predictor_dim", "momentum_start"}),
    "barlow": ObjectiveEntry("barlow:BarlowTwins"),
    "vicreg": ObjectiveEntry("vicreg:VICReg"),
    "mocov2": ObjectiveEntry("mocov2:MoCoV2", {"temperature", "queue", "momentum_start"}),
    "mocov3": ObjectiveEntry("mocov3:MoCoV3", {"temperature", "predictor_dim", "momentum_start"}),
    "dino": ObjectiveEntry("dino:DINO", {"momentum_start"}),
    "pixel": ObjectiveEntry("pixel:PixelInpainting"),
}
"""Objectives by name. The table is here because configurations are read without torch."""
Scheduler = Literal["pbt", "pb2", "asha", "median", "none"]
EVOLVING: tuple[Scheduler, ...] = ("pbt", "pb2")
"""Schedulers that change the values of trials while they train."""
STOPPING: tuple[Scheduler, ...] = ("asha", "median")
"""Schedulers that stop trials early by their scores."""


class SchemeEntry(NamedTuple):
    """A masking scheme's line in the table.

    Attributes:
        kind: Masks of an occlusion model, none, random patterns, or a data set's object masks.
        uses_slots: Whether it makes ``masking.slots`` masks of an image.
        embedded: Masks of an image with which a step embeds it; None where it is all ``masking.slots``.
    """

    kind: Literal["learned", "none", "pattern", "object"]
    uses_slots: bool = False
    embedded: int | None = 1


SCHEMES: Mapping[str, SchemeEntry] = {
    "adios": SchemeEntry("learned", uses_slots=True, embedded=None),
    "adios-s": SchemeEntry("learned", uses_slots=True),
    "none": SchemeEntry("none", embedded=0),
    "mae": SchemeEntry("pattern"),
    "beit": SchemeEntry("pattern"),
    "grid": SchemeEntry("pattern"),
    "colormae": SchemeEntry("pattern"),
    "ground-truth": SchemeEntry("object", uses_slots=True, embedded=None),
    "fg-bg": SchemeEntry("object", embedded=2),
    "box": SchemeEntry("object", uses_slots=True, embedded=None),
    "shuffle": SchemeEntry("object", uses_slots=True, embedded=None),
}
"""Masking schemes by name. ``adios_ray.masking.schemes`` implements those that are not learned."""
# At run time the names come from the tables; type checkers cannot evaluate such a Literal.
if TYPE_CHECKING:
    ObjectiveName = str
    SchemeName = str
    FitnessName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
    SchemeName = Literal[tuple(SCHEMES)]
    FitnessName = Literal[tuple(MEASURES)]

LARGEST_WIDTH = 2**17
"""Largest width of a projector's or predictor's layer."""
MOST_EPOCHS = 99_999
"""Files are named by epochs of five digits, and sorted by these names (``run_directory.epoch_name``)."""

Place = Annotated[
    str,
    Field(min_length=1),  # else an empty one, such as an unset variable of a shell, would be the current directory
    BeforeValidator(lambda place: os.fspath(place) if isinstance(place, os.PathLike) else place),
]
"""A path or a URI (s3://, gs://, ...)."""

Count = Annotated[int, Field(ge=1)]
"""A number of at least one."""
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above zero."""
Rates = Annotated[tuple[Positive, ...], Field(min_length=1)]
"""Learning rates to choose from."""

LINEAR_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates of the linear protocol for batches of 256, with the next one on either side."""
TRANSFER_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Learning rates of a transfer."""
PROBE_LR = 0.1
"""Learning rate of the online probe."""
LARS_TRUST = 0.02
"""Trust coefficient of LARS."""

Fill = Literal["zero", "blur", "highpass", "noise", "mix"]
Norm = Literal["group", "instance", "none"]
"""Normalization of the U-Net."""
Naming = Literal["timm", "torchvision"]
MaskFormat = Literal["png", "npz"]
OnBadImage = Literal["skip", "fail"]
FolderLayout = Literal["splits", "classes", "flat"]
CentralView = Literal["square", "resize-256"]
Variation = Literal["original", "only_bg_b", "only_bg_t", "no_fg", "only_fg", "mixed_same", "mixed_rand", "mixed_next"]
"""The original images and the seven variations of the backgrounds challenge, by the names of its folders."""
RESIZED_SIDE = 256
"""Shorter side in pixels that the view "resize-256" resizes photographs to."""


_ADAPTABLE = object()
_Value = TypeVar("_Value")
Model = TypeVar("Model", bound=BaseModel)
Adaptable = Annotated[_Value, _ADAPTABLE]
"""Type of a field that may change while a trial trains; of a section, of all its fields. Other fields determine the
shapes of networks, the order of the data, or what a fitness means."""


class Strict(BaseModel):
    """Frozen settings without unknown keys, whose numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_names(cls, values: Any) -> Any:
        return (
            {_RENAMED.get(name, name): value for name, value in values.items()} if isinstance(values, dict) else values
        )


_RENAMED = {
    "greyscale_probability": "grayscale_probability",
    "solarise_probability": "solarize_probability",
    "neighbours": "neighbors",
}
"""Keys of earlier versions, with British spelling, and their current names."""


def by_current_paths(values: Any) -> Any:
    """Translate the configuration paths of an earlier version that a dictionary has as keys, before it is validated."""
    return {_current(path): value for path, value in values.items()} if isinstance(values, dict) else values


def _current(path: Any) -> Any:
    if not isinstance(path, str):
        return path
    section, dot, name = path.rpartition(".")
    return f"{section}{dot}{_RENAMED.get(name, name)}"


SearchedValues = Annotated[dict[str, Any], BeforeValidator(by_current_paths)]
"""Values by configuration path; paths of earlier versions are translated."""


class BackboneConfig(Strict):
    """The image encoder f."""

    name: str = "resnet18"
    """A timm model name, or "resnet_small" (one residual block for each stage, of 16-32-64-128 channels, for CPUs)."""
    cifar_stem: bool = False
    """ResNets only: 3x3 stem of stride 1 without max-pooling, for images of 32 pixels."""
    stem_padding: int = Field(1, ge=1, le=2)
    """Padding of the CIFAR stem; 2 as in solo-learn and the authors' code."""
    zero_init_last: bool = True
    """timm's ResNets only: initialize the last norm of each residual block to 0; False initializes it to 1, as in
    torchvision and the authors' code."""


Term = Literal["masked-unmasked", "unmasked-masked", "unmasked-unmasked", "masked-masked"]
"""A pair of prediction and target, by whether their views are masked: PREDICTION-TARGET."""
ALL_TERMS: tuple[Term, ...] = ("masked-unmasked", "unmasked-masked", "unmasked-unmasked", "masked-masked")


class ObjectiveConfig(Strict):
    """The self-supervised loss between two views (paper, Section 2.1 and Appendix A)."""

    name: ObjectiveName = "simclr"
    """Self-supervised objective; pixel is inpainting."""
    temperature: Adaptable[float] = Field(0.2, gt=0)
    """SimCLR, MoCo v2 and v3: temperature of the contrastive loss."""
    hidden_dim: int | None = Field(None, ge=1, le=LARGEST_WIDTH)
    """Hidden width of projector and predictor; the method's default if not given (SimCLR 2048, BYOL 4096 and 8192)."""
    predictor_dim: int | None = Field(None, ge=1, le=LARGEST_WIDTH)
    """SimSiam, BYOL, MoCo v3: hidden width of the predictor; if not given, a quarter of the output for SimSiam, else
    hidden_dim or the method's default."""
    output_dim: int | None = Field(None, ge=2, le=LARGEST_WIDTH)
    """Width of the projection; the method's default if not given (SimCLR 128, SimSiam 2048, BYOL 256)."""
    queue: int = Field(65536, ge=1, le=2**24)
    """MoCo v2: keys of earlier batches that serve as negatives (about 4096 for CIFAR-10); more than the training
    images include earlier keys of the same image."""
    masked_views: Literal["one", "both"] = "one"
    """Views that are masked: one as in the paper, or both, each by its own (authors' SimSiam: up to eight terms)."""
    terms: tuple[Term, ...] = ALL_TERMS
    """SimSiam with both views masked: pairs of prediction and target, whose losses are averaged in both directions.
    masked-unmasked is required; the authors' scripts omit some of the others."""
    momentum_start: Adaptable[float | None] = Field(None, ge=0, le=1)
    """BYOL, MoCo v3, DINO: initial momentum of the momentum networks, which rises to 1 on a cosine; 0.99 if not given.
    MoCo v2: their momentum throughout; 0.999 if not given (trainings of a few thousand steps need less, about 0.99)."""

    @model_validator(mode="after")
    def _check_masked_views(self) -> Self:
        if self.name == "pixel" and self.masked_views == "both":
            raise ValueError("objective pixel inpaints one view: masked_views must be one")
        if len(set(self.terms)) < len(self.terms) or "masked-unmasked" not in self.terms:
            raise ValueError(f"terms {', '.join(self.terms)} must be different and include masked-unmasked")
        if set(self.terms) != set(ALL_TERMS) and self.masked_views != "both":
            raise ValueError(f"terms need masked_views both, not {self.masked_views}: leave terms out")
        return self

    @model_validator(mode="after")
    def _check_used(self) -> Self:
        # The others may stay where another objective is chosen: remarks name them.
        for setting in ("predictor_dim", "queue", "terms"):
            if setting not in self.uses and getattr(self, setting) != type(self).model_fields[setting].default:
                raise ValueError(f"objective {self.name} does not use {setting}: leave it out")
        return self

    @property
    def uses(self) -> Set[str]:
        """Those settings it uses that only some objectives do."""
        return OBJECTIVES[self.name].uses


class MaskingConfig(Strict):
    """The occlusion model and its game (paper, Section 2.2, Equations 6-9)."""

    scheme: SchemeName = "adios"
    """adios: all masks in each step; adios-s: one random mask of each image; none: the objective without masks. Not
    learned: mae, beit, grid, colormae (random patches, blocks, cells, filtered noise), ground-truth, fg-bg, box,
    shuffle (need object masks in the data)."""
    slots: Adaptable[int] = Field(4, ge=2, le=64)
    """Number of masks N, which sum to one at every pixel; ground-truth, box and shuffle: N - 1 objects and the rest."""
    sparsity_weight: Adaptable[float] = Field(0.5, ge=0, le=100)
    """Lambda: weight of the penalty on masks that remove nothing or everything (Equation 7); 0 disables it."""
    entropy_weight: Adaptable[float] = Field(0.0, ge=0, le=100)
    """Alpha: weight of the negative entropy of an image's mask sizes, which the occlusion model maximizes too (used in
    two of the authors' scripts)."""
    width: int = Field(32, ge=8, le=4096, multiple_of=8)
    """Channels c of the U-Net at full resolution."""
    norm: Norm = "group"
    """Normalization inside the U-Net."""
    levels: int | None = Field(None, ge=4, le=9)
    """Number of resolutions of the U-Net; log2(image size) - 1 if not given (the authors' SimSiam: 4 at any size)."""
    order: Adaptable[Literal["simultaneous", "alternating"]] = "simultaneous"
    """simultaneous: one backward pass updates both players; alternating: the encoder first, then the occlusion model
    against the updated encoder."""
    reduction: Adaptable[Literal["mean", "sum"]] = "mean"
    """Reduction over slots: mean as in the paper, or sum as in the authors' code."""
    fill: Adaptable[Fill] = "zero"
    """Content of hidden pixels. zero: the mean color, as in the paper; blur: the image blurred by a Gaussian of 4.5 %
    of its side; highpass: the image minus a blur of half that width; noise: normal noise; mix: another image of the
    worker's batch."""

    @model_validator(mode="after")
    def _check_fill(self) -> Self:
        if self.scheme == "none" and self.fill != "zero":
            raise ValueError(f"scheme none hides nothing that fill {self.fill} could replace: leave fill out")
        return self

    @property
    def learned(self) -> bool:
        """Whether masks are made by an occlusion model."""
        return SCHEMES[self.scheme].kind == "learned"

    @property
    def embedded(self) -> int:
        """Masks of an image with which a step embeds it, as many times."""
        masks = SCHEMES[self.scheme].embedded
        return self.slots if masks is None else masks

    @property
    def needs_objects(self) -> bool:
        """Whether masks come from the data set's object masks."""
        return SCHEMES[self.scheme].kind == "object"


class OptimizerConfig(Strict):
    """The optimizer of both players, with linear warm-up and cosine decay to zero."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd: as in the paper; lars: SGD with layer-wise learning rates, as in the authors' code; adamw: for vision
    transformers."""
    encoder_lr: Adaptable[float] = Field(0.13, gt=0, le=100)
    """Peak learning rate of backbone, projector and predictor."""
    occlusion_lr: Adaptable[float] = Field(0.02, gt=0, le=100)
    """Peak learning rate of the occlusion model."""
    momentum: Adaptable[float] = Field(0.9, ge=0, lt=1)
    """Momentum of sgd and lars; the first decay rate of adamw."""
    weight_decay: Adaptable[float] = Field(1e-5, ge=0, le=1)
    """Weight decay of both players; not applied to norms and biases."""
    warmup_epochs: Adaptable[float] = Field(10.0, ge=0, le=MOST_EPOCHS)
    """Epochs of linear warm-up; at most half of the training."""
    warmup_start_lr: Adaptable[float] = Field(0.003, ge=0)
    """Learning rate at the first step of the warm-up (never above the peak)."""
    predictor_schedule: Literal["cosine", "constant"] | None = None
    """Learning rate of the predictor: the encoder's schedule, or its peak throughout. If not given, constant for
    SimSiam (Chen & He 2021, Section 4, and the authors' code), else cosine."""


class AugmentConfig(Strict):
    """Random augmentations that make the two views."""

    min_crop_scale: float = Field(0.08, gt=0, le=1)
    """Smallest area of a crop, as a share of the image's area."""
    brightness: float = Field(0.4, ge=0, le=1)
    """Strength of the brightness jitter."""
    contrast: float = Field(0.4, ge=0, le=1)
    """Strength of the contrast jitter."""
    saturation: float = Field(0.2, ge=0, le=1)
    """Strength of the saturation jitter."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Strength of the hue jitter, in turns of the color wheel."""
    jitter_probability: float = Field(0.8, ge=0, le=1)
    """Share of views with color jitter."""
    grayscale_probability: float = Field(0.2, ge=0, le=1)
    """Share of views without color."""
    blur_probability: float = Field(0.5, ge=0, le=1)
    """Share of views blurred by a Gaussian of 0.1 to 2 pixels."""
    solarize_probability: float = Field(0.0, ge=0, le=1)
    """Share of views with pixels above one half inverted."""
    flip_probability: float = Field(0.5, ge=0, le=1)
    """Share of views mirrored left to right."""


class EvaluationConfig(Strict):
    """Fitness of the frozen features."""

    fitness: FitnessName = "knn"
    """knn: mean share of the right class in the votes of the nearest neighbors (multi-label: macro F1); probe: mean
    probability that the online probe gives the right class. Accuracy is reported beside both. Without labels, and
    not for selection: rankme, lidar (effective ranks), alpha-req (-|α - 1| for the exponent α of the spectrum's
    decay)."""
    min_feature_std: float = Field(0.01, ge=0)
    """Spread of the features (1: uniform directions, 0: all the same) below which a trial counts as collapsed."""
    min_effective_rank: float = Field(1.5, ge=0)
    """Effective rank of the centered features below which a trial counts as collapsed."""
    neighbors: int = Field(20, ge=1, le=10**6)
    """Neighbors k that vote."""
    temperature: float = Field(0.07, gt=0)
    """A neighbor of cosine similarity s votes with exp(s / temperature)."""
    interval_epochs: int = Field(1, ge=1, le=MOST_EPOCHS)
    """Epochs between two reports of a trial."""
    train_images: int = Field(50_000, ge=1, le=10**9)
    """Largest number of training images that serve as neighbors."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Weight of the previous score in a trial's score (exponential smoothing); 0 takes each report by itself. Smoothed
    scores hide how much reports fluctuate: above 0, decisions do not hold their level of significance."""
    view: CentralView = "square"
    """Part of a photograph that is evaluated. square: its central square. resize-256: its center after a resize to 256
    pixels on the shorter side, as in the authors' evaluation of ImageNet100 (at 224 pixels 77 % of the square, at 96
    pixels, ImageNet100-S, 14 %), for images stored at 256 pixels or more."""
    fresh_statistics: bool = False
    """Compute BatchNorm's statistics from unmasked training images before each evaluation, instead of using those of
    training, where most views are masked."""
    average_weights: bool = False
    """Evaluate an exponential mean of the weights over about an epoch of steps, with BatchNorm statistics of unmasked
    training images. Checkpoints keep it; `adios-ray export --averaged` writes it."""


class TrialConfig(Strict):
    """The complete configuration of one training."""

    data_dir: Place | None = None
    """Directory or URI (s3://, gs://, ...) of Arrow shards made by `adios-ray prepare`."""
    image_size: int | None = Field(None, ge=32, le=1024)
    """Side of the views in pixels; that of the stored images if not given, whose crops are then magnified."""
    epochs: int = Field(400, ge=1, le=MOST_EPOCHS)
    """Passes over the training split."""
    batch_size: int = Field(128, ge=2, le=2**31)
    """Images in a step, over all workers of the trial."""
    micro_batch_size: int | None = Field(None, ge=2)
    """Images whose activations a worker keeps in memory at once; all if not given. Costs one more forward pass. Results
    are the same, except that BatchNorm normalizes over these images instead of the batch."""
    slots_at_once: int | None = Field(None, ge=1, le=64)
    """Masked views of an image that pass through the encoder in one batch, each normalized by itself: faster on GPUs,
    at the memory of as many views; results are the same up to rounding, except of modules that draw random numbers,
    which draw for all views of a batch. If not given, one on CPUs, on GPUs as many as fit into the memory when training
    begins."""
    sync_batch_norm: bool = False
    """With several workers: BatchNorm normalizes over the images of all workers, as one worker does, instead of each
    worker's own. Each norm then waits for an exchange. Not with micro_batch_size or compile."""
    seed: Seed = 0
    """Seed of initial weights, sample order, augmentations and drawn slots."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the forward passes under autocast, on devices that compute in it."""
    channels_last: bool = False
    """Use the channels-last memory layout for convolutions."""
    compile: bool = False
    """Compile the backbones, the occlusion model's U-Net and, on GPUs, the augmentation with torch.compile."""
    cuda_graphs: bool = False
    """Replay the training step as one CUDA graph, so that a GPU never waits for its host: for small batches."""
    initial_weights: Place | None = None
    """Initial weights, a path or a URI: a checkpoint of a run, or a file made by `adios-ray import-official`."""
    backbone: BackboneConfig = BackboneConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    masking: MaskingConfig = MaskingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: Adaptable[AugmentConfig] = AugmentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def most_at_once(self) -> int:
        """Largest ``slots_at_once`` that makes a difference; 2 where one slot masks both views."""
        masks = self.masking.embedded
        return 2 if masks == 1 and self.objective.masked_views == "both" else max(masks, 1)

    def next_report(self, epoch: int) -> int:
        """Compute the epoch of the first report after ``epoch``, at most the last epoch."""
        interval = self.evaluation.interval_epochs
        return min((epoch // interval + 1) * interval, self.epochs)

    @property
    def constant_predictor_lr(self) -> bool:
        """Whether the predictor's learning rate is the encoder's peak learning rate throughout."""
        schedule = self.optimizer.predictor_schedule or ("constant" if self.objective.name == "simsiam" else "cosine")
        return schedule == "constant"

    @model_validator(mode="after")
    def _check_image_size(self) -> Self:
        if self.image_size is not None:
            if self.masking.learned:
                check_image_size(self.image_size, self.masking.levels)
            check_view(self.evaluation.view, self.image_size)
        return self

    @model_validator(mode="after")
    def _check_sync_batch_norm(self) -> Self:
        # The exchanges would be repeated when activations are computed again, and are not compiled.
        for name, value in (("micro_batch_size", self.micro_batch_size), ("compile", self.compile)):
            if self.sync_batch_norm and value:
                raise ValueError(f"sync_batch_norm cannot be used with {name} {value}: leave one of them out")
        return self


def unet_levels(size: int, levels: int | None = None) -> int:
    """Return the number of resolutions of the U-Net: ``levels``, or log2(``size``) - 1 if not given."""
    return max(size.bit_length() - 2, 1) if levels is None else levels


def image_size_fits(size: int, levels: int | None = None) -> bool:
    """Tell whether the U-Net can halve images of this side in pixels from each of its levels to the next."""
    count = unet_levels(size, levels)
    return count >= 4 and size % 2 ** (count - 1) == 0


def check_view(view: CentralView, image_size: int, stored_size: int | None = None) -> None:
    """Check that views can be cut from resized photographs, without magnifying stored pixels.

    Args:
        view: Part of each photograph.
        image_size: Side of the views in pixels.
        stored_size: Side of the stored images in pixels; None where it is not known yet.

    Raises:
        ConfigError: If they cannot; names the view to choose.
    """
    if view == "square":
        return
    if image_size >= RESIZED_SIDE:
        raise ConfigError(
            f"evaluation.view {view} needs views below {RESIZED_SIDE} pixels, not of {image_size}: take square"
        )
    if stored_size is not None and stored_size < RESIZED_SIDE:
        raise ConfigError(
            f"evaluation.view {view} needs images stored at {RESIZED_SIDE} pixels or more, and these are at "
            f"{stored_size}, which it would magnify: prepare them with a larger --image-size, or take square"
        )


def seen_view(view: CentralView, stored_size: int, image_size: int) -> CentralView:
    """Return what is evaluated under the view of an earlier training: it where ``check_view`` allows it, else square.

    Args:
        view: Part of each photograph in the training's configuration.
        stored_size: Side of the stored images in pixels, which may be others than those of the training.
        image_size: Side of the views in pixels.
    """
    return view if stored_size >= RESIZED_SIDE > image_size else "square"


def check_image_size(size: int, levels: int | None = None) -> None:
    """Check that the U-Net can halve an image size from each of its levels to the next.

    Raises:
        ValueError: If it cannot; names sizes that are allowed.
    """
    if not image_size_fits(size, levels):
        halvings = unet_levels(size, levels) - 1
        cure = "32, 48, 64, 96, 128, 160, 192, 224, 256, ... work" if levels is None else f"masking.levels is {levels}"
        raise ValueError(
            f"image size {size}: the occlusion U-Net halves it {halvings} times, "
            f"so it must be a multiple of {2**halvings} ({cure})"
        )


def check_batch(config: TrialConfig, images: int, workers: int, batch_norm: bool) -> None:
    """Check that the workers of a trial can share its batches.

    Args:
        config: Batch size, micro-batch size and fill.
        images: Training images of the data set.
        workers: Workers of the trial.
        batch_norm: Whether the networks normalize over the images that are embedded at once.

    Raises:
        ConfigError: If they cannot; names the values.
    """
    size, micro = config.batch_size, config.micro_batch_size
    if size > images:
        raise ConfigError(f"batch_size {size} is more than the {images} training images")
    if size % workers:
        raise ConfigError(f"batch_size {size} cannot be shared evenly by workers_per_trial {workers}")
    share = size // workers
    if config.masking.fill == "mix" and share < 2:
        raise ConfigError(f"masking.fill mix needs another image on each worker: raise batch_size above {size}")
    normalized = size if config.sync_batch_norm else share // -(-share // (micro or share))
    if batch_norm and normalized < 2:
        raise ConfigError(
            f"batch_size {size}, workers_per_trial {workers} and micro_batch_size {micro} leave one image to embed at "
            "once, and BatchNorm needs two: change one of the three"
        )


def _declared(model: type[BaseModel], inherited: bool = False) -> Iterator[str]:
    """Yield the paths of the fields of a configuration that are declared ``Adaptable``."""
    for name, field in model.model_fields.items():
        declared, section = inherited or _ADAPTABLE in field.metadata, field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{path}" for path in _declared(section, declared))
        elif declared:
            yield name


ADAPTABLE = frozenset(_declared(TrialConfig))
"""Paths of the values that may change while a trial trains: those declared ``Adaptable``."""


def check_adapted(before: BaseModel, after: BaseModel) -> None:
    """Check that a trial's new configuration changes only values that may change while it trains.

    The seed may differ: a trial trains with its own, or after an exploit with its donor's.

    Raises:
        ConfigError: If it changes others; names them.
    """
    if fixed := sorted(set(_changed(before, after)) - ADAPTABLE - {"seed"}):
        values = ", ".join(f"{path} ({value_at(before, path)} -> {value_at(after, path)})" for path in fixed)
        raise ConfigError(f"{values} cannot change while a trial trains: start another training with it")


def _changed(before: BaseModel, after: BaseModel, section: str = "") -> Iterator[str]:
    """Yield the paths of the values in which two configurations differ."""
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, BaseModel):
            yield from _changed(old, new, f"{section}{name}.")
        elif old != new:
            yield f"{section}{name}"


def replaced(config: Model, changes: Mapping[str, Any], origin: str = "configuration") -> Model:
    """Copy a configuration with some values replaced, by their dotted paths ("masking.slots"), and validate it.

    Raises:
        ConfigError: If a path is unknown or a value out of range.
    """
    values = config.model_dump()
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{origin}: {path} does not exist: {parent} is a value, not a section")
        node[leaf] = deepcopy(value)  # a later path may lead into it
    return parse(type(config), values, origin)


def value_at(config: BaseModel, path: str, origin: str = "configuration") -> Any:
    """Return the value at a dotted path; errors begin with ``origin``.

    Raises:
        ConfigError: If there is no such path.
    """
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, BaseModel) or part not in type(node).model_fields:
            near = suggestion(path, (known for known, _ in leaves(config.model_dump())))
            raise ConfigError(f"{origin}: unknown configuration path {path!r}{near}")
        node = getattr(node, part)
    return node

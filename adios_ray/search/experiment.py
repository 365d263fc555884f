"""Configuration of a whole experiment: a trial's, the population around it, and the published settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import adios_ray
from adios_ray.config import TrialConfig, parse
from adios_ray.search.spaces import Scheduler, Search

SPACES = Path(adios_ray.__file__).resolve().parent.parent / "search_spaces"


class ExperimentConfig(TrialConfig):
    """What a population trains, how large it is, and where it runs."""

    preset: Literal["demo", "in100s", "in100", "stl10"] | None = None
    """demo: rendered objects on CPUs, minutes; in100s: ImageNet100 at 96 pixels; in100: at 224 pixels with ADIOS-s;
    stl10: STL-10 at 96 pixels."""
    space: Path = SPACES / "pbt_in100.yaml"
    """YAML file of the search space."""
    scheduler: Scheduler | None = None
    """Scheduler in place of the search space's."""
    search: Search | None = None
    """Search in place of the search space's."""
    storage: Path = Path("runs")
    """Directory in which each run makes its own; shared by all nodes of a cluster."""
    population: int = Field(4, ge=2)
    """Number of trials; those that do not fit at once take turns. A grid has as many as it has combinations."""
    workers_per_trial: int = Field(1, ge=1)
    """Ray Train workers that share a trial's batches."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs of each worker, may be a fraction; None takes 1 where the cluster has GPUs."""
    cpus_per_worker: float | None = Field(None, gt=0)
    """CPUs of each worker, may be a fraction; None shares the cluster's evenly, at most 1."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; online needs a login, offline keeps files that `wandb sync` uploads."""
    resume: Path | None = None
    """Run directory of a run to go on with, under its own configuration."""

    def trial(self) -> TrialConfig:
        """The part that every trial has in common."""
        return parse(TrialConfig, {key: getattr(self, key) for key in TrialConfig.model_fields})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "demo": {
        "epochs": 10,
        "batch_size": 64,
        "backbone": {"name": "resnet_small"},
        "objective": {"hidden_dim": 256, "output_dim": 64},
        "masking": {"slots": 3, "sparsity_weight": 0.3, "width": 8},
        "optimizer": {"encoder_lr": 0.3, "occlusion_lr": 0.05, "warmup_epochs": 1.0},
        # Colours say nothing about the rendered classes, so that strong jitter makes the features worth more.
        "augment": {
            "min_crop_scale": 0.3,
            "brightness": 0.6,
            "contrast": 0.6,
            "saturation": 0.8,
            "hue": 0.5,
            "greyscale_probability": 0.5,
        },
    },
    # Paper, Tables 9-12 (SimCLR, ResNet-18); schedule and weight decay from the authors' scripts.
    "in100s": {
        "epochs": 400,
        "image_size": 96,
        "masking": {"slots": 4, "sparsity_weight": 0.57},
        "optimizer": {"encoder_lr": 0.13, "occlusion_lr": 0.02, "weight_decay": 1e-4},
    },
    "stl10": {
        "epochs": 400,
        "image_size": 96,
        "masking": {"slots": 6, "sparsity_weight": 0.29},
        "optimizer": {"encoder_lr": 0.21, "occlusion_lr": 0.33, "weight_decay": 1e-4},
    },
    "in100": {
        "epochs": 400,
        "image_size": 224,
        "precision": "bfloat16",
        "channels_last": True,
        "masking": {"scheme": "adios-s", "slots": 4, "sparsity_weight": 0.75},
        "optimizer": {"encoder_lr": 0.19, "occlusion_lr": 0.5, "weight_decay": 1e-4},
    },
}

DEMO_IMAGE_SIZE = 32
DEMO_IMAGES = 3000
DEMO_SEED = 0


def preset_config(name: str | None) -> ExperimentConfig:
    """Defaults of a preset, or of no preset.

    Raises:
        ConfigError: If there is no such preset.
    """
    return parse(ExperimentConfig, {**PRESETS.get(name or "", {}), "preset": name}, "preset")

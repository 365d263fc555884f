"""Published settings by name: one YAML file for each data set, backbone, objective and masking scheme, in two families.

``paper`` holds the tables of the paper's appendix, ``authors`` the scripts of its code, which differ from them. Every
value has a comment with its source. ``demo`` belongs to no family.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from adios_ray.config import OBJECTIVES, SCHEMES
from adios_ray.errors import ConfigError
from adios_ray.experiment.config import DEMO, PRESETS, ExperimentConfig, Family
from adios_ray.validation import parse, suggestion

TRAINING_IMAGES: Mapping[str, int] = {
    DEMO: 4_200,
    "in100s": 114_020,
    "in100": 114_020,
    "stl10": 104_500,
    "clevr": 63_000,
}
"""Images that training uses, by preset: published data sets without the tenth of train that becomes val."""
DATA_SETS: Mapping[str, str] = {"in100s": "imagenet100s", "in100": "imagenet100", "stl10": "stl10", "clevr": "clevr"}
"""The data set of each published preset, as ``adios-ray prepare`` names it."""
BACKBONES = {"vit_tiny": "vit_tiny_patch16_224"}
"""timm's names of backbones that have a shorter name in the files."""
FAMILIES: tuple[Family, ...] = get_args(Family)


class Published(NamedTuple):
    """One published setting, whose values one file of a family holds."""

    family: str
    data: str
    backbone: str
    objective: str
    scheme: str

    @property
    def path(self) -> Path:
        """The file."""
        short = {name: key for key, name in BACKBONES.items()}.get(self.backbone, self.backbone)
        return PRESETS / self.family / f"{self.data}-{short}-{self.objective}-{self.scheme}.yaml"


def published() -> list[Published]:
    """List all published settings, the paper's first."""
    found = []
    for family in FAMILIES:
        for path in sorted((PRESETS / family).glob("*.yaml")):
            data, backbone, objective, scheme = path.stem.split("-", 3)
            found.append(Published(family, data, BACKBONES.get(backbone, backbone), objective, scheme))
    return found


def preset_config(
    name: str | None,
    family: str | None = None,
    objective: str | None = None,
    backbone: str | None = None,
    scheme: str | None = None,
) -> ExperimentConfig:
    """Build the defaults of a preset, or the plain defaults without one.

    Args:
        name: ``demo``, or the data set of published settings; None for the plain defaults.
        family: ``paper`` or ``authors``; None takes the paper's settings, and the authors' where the paper has none.
        objective: None takes SimCLR.
        backbone: None takes a ResNet-18.
        scheme: None takes ADIOS, or ADIOS-s where only that is published. Schemes that are neither learned nor "none"
            train under the values of ADIOS, as in the paper's comparison (Section 4.2).

    Raises:
        ConfigError: If there is no such preset, or nothing is published for the combination.
    """
    if name is None or name == DEMO:
        if family is not None:
            names = ", ".join(sorted({setting.data for setting in published()}))
            raise ConfigError(f"--family {family} chooses among published settings: give --preset too, one of {names}")
        values = {} if name is None else _read(PRESETS / f"{DEMO}.yaml")
        return parse(ExperimentConfig, {**values, "preset": name}, "preset")
    asked = {
        "family": (family, FAMILIES),
        "objective.name": (objective, tuple(OBJECTIVES)),
        "masking.scheme": (scheme, tuple(SCHEMES)),
    }
    for key, (given, choices) in asked.items():
        if given is not None and given not in choices:
            raise ConfigError(f"{key} {given} must be one of {', '.join(choices)}{suggestion(given, choices)}")
    chosen = _choose(name, family, objective or "simclr", backbone or "resnet18", scheme)
    values = {**_read(chosen.path), "preset": name, "family": chosen.family}
    if scheme is not None:
        values["masking"] = {**values["masking"], "scheme": scheme}
    return parse(ExperimentConfig, values, str(chosen.path))


def _choose(name: str, family: str | None, objective: str, backbone: str, scheme: str | None) -> Published:
    """Choose the published setting that matches; one with the same masking scheme is preferred."""
    of_data = [setting for setting in published() if setting.data == name]
    if not of_data:
        known = [DEMO, *sorted({setting.data for setting in published()})]
        raise ConfigError(f"there is no preset {name!r}; choose one of {', '.join(known)}{suggestion(name, known)}")
    candidates = [
        setting
        for setting in of_data
        if family in (None, setting.family)
        and (setting.objective, setting.backbone) == (objective, backbone)
        and (setting.scheme == "none") == (scheme == "none")
    ]
    if not candidates:
        names = [f"family {family}"] * (family is not None) + [objective, backbone, scheme or "adios"]
        asked = ", ".join(map(str, names))
        raise ConfigError(
            f"preset {name}: no published setting for {asked} (published: {_overview(of_data)}); leave --preset out "
            "and give all values, or choose a published setting and change single values"
        )
    # min is stable: among equals the first one stays, and the paper's settings are listed before the authors'.
    return min(candidates, key=lambda setting: setting.scheme != scheme)


def _overview(settings: Sequence[Published]) -> str:
    """List the objectives, backbones and schemes of each family in one line."""
    parts = []
    for family in dict.fromkeys(setting.family for setting in settings):
        own = [setting[2:] for setting in settings if setting.family == family]
        backbones, objectives, schemes = (sorted(set(column)) for column in zip(*own, strict=True))
        parts.append(f"{family}: {', '.join(objectives)} with {', '.join(backbones)}, {', '.join(schemes)}")
    return "; ".join(parts)


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values

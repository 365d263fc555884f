"""ADIOS beside other people's masks (Chin et al., WACV 2024): is their table a matter of the fill or of the objective?

    python experiments/table_wacv24.py --data CIFAR-10 data/cifar10   # small: 37 minutes after Table 6
    python experiments/table_wacv24.py --preset paper --data ImageNet100 data/in100
    python experiments/table_wacv24.py --preset paper --dry-run

Their table has ADIOS below no mask with MoCo v2, and their random masks far above it. This one varies what hidden
pixels become (``masking.fill``) for learned and for grid masks, with SimCLR and with MoCo v2. Their own method adds
focal masks and a high-pass of the whole image to grid masks, so that its numbers stand in a note.
"""

import sys
from typing import get_args

from adios_ray.config import Fill, TrialConfig, replaced
from adios_ray.experiment.presets import preset_config
from adios_ray.tables.command import main
from adios_ray.tables.grid import Published, Row, Table
from adios_ray.tables.methods import IMAGES_NOTE, PREPARED_DATA, classification, small_training

OBJECTIVES = {"simclr": "SimCLR", "mocov2": "MoCo v2"}
FILLS: tuple[Fill, ...] = get_args(Fill)
TOP1 = {
    ("simclr", "none", "zero"): 69.77,
    ("simclr", "adios", "zero"): 71.12,
    ("mocov2", "none", "zero"): 68.22,
    ("mocov2", "adios", "zero"): 62.76,
}
"""Linear top-1 in percent on ImageNet100 (ResNet-50, 200 epochs) by objective, scheme and fill, from their Table 1."""
MASKS = (("none", "zero"), *(("adios", fill) for fill in FILLS), *(("grid", fill) for fill in FILLS))
SMALL_MASKS = (("none", "zero"), *(("adios", fill) for fill in FILLS), ("grid", "zero"), ("grid", "highpass"))
SMALL_EPOCHS = 5


def row(group: str, objective: str, scheme: str, fill: str, config: TrialConfig, column: str) -> Row:
    """Return one row."""
    name = OBJECTIVES[objective]
    number = TOP1.get((objective, scheme, fill))
    published = {(group, column): Published(number)} if column and number else {}
    if scheme == "none":
        return Row(f"{name}, none", {group: (config,)}, published=published)
    return Row(f"{name}, {scheme}, {fill}", {group: (config,)}, f"{name}, none", published)


def training(objective: str, scheme: str, fill: str) -> TrialConfig:
    """Return their setting, as far as it is known: ResNet-50, 200 epochs, batches of 256.

    The other values are those of the paper's SimCLR with ADIOS on ImageNet100-S, also without masks: the paper's rate
    for that is another one, and rows would differ in more than the masks.
    """
    config = preset_config("in100s", "paper", "simclr", "resnet18", "adios").trial()
    changes = {
        "image_size": 224,
        "epochs": 200,
        "batch_size": 256,
        "backbone.name": "resnet50",
        "objective.name": objective,
        "masking.scheme": scheme,
        "masking.fill": fill,
    }
    return replaced(config, changes)


def paper() -> Table:
    """Return the table at the size of Chin et al."""
    rows = tuple(
        row("ImageNet100", objective, scheme, fill, training(objective, scheme, fill), "linear")
        for objective in OBJECTIVES
        for scheme, fill in MASKS
    )
    columns = (classification("ImageNet100")[1],)
    data = {"ImageNet100": PREPARED_DATA["ImageNet100"]}
    notes = (
        "The published column is Chin et al., WACV 2024; their learning rates are not known. Their own masks have "
        "77.2 with SimCLR and 70.3 with MoCo v2.",
        "All rows train at the rate that the paper found for SimCLR with ADIOS on ImageNet100-S.",
        "Evaluations see the central 224 pixels of a photograph after a resize to 256 on the shorter side. Their "
        "linear evaluation may have other settings than ours, which evaluation.md describes.",
        IMAGES_NOTE,
    )
    return Table("Masks and fills on ImageNet100", rows, columns, data, notes)


def small() -> Table:
    """Return the table on CIFAR-10."""
    rows = tuple(
        row("CIFAR-10", objective, scheme, fill, small_training(objective, scheme, SMALL_EPOCHS, fill=fill), "")
        for objective in OBJECTIVES
        for scheme, fill in SMALL_MASKS
    )
    data = {"CIFAR-10": PREPARED_DATA["CIFAR-10"]}
    notes = (f"A small ResNet, {SMALL_EPOCHS} epochs: directions, not published numbers.",)
    return Table("Masks and fills on CIFAR-10", rows, classification("CIFAR-10"), data, notes)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))

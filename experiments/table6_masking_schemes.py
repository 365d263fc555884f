"""Table 6: learned masks against random ones, and none, on photographs.

    python experiments/table6_masking_schemes.py --data CIFAR-10 data/cifar10   # small: 46 minutes
    python experiments/table6_masking_schemes.py --preset paper --data ImageNet100-S data/in100 STL10 data/stl10
    python experiments/table6_masking_schemes.py --preset paper --dry-run

The paper averages over SimCLR, SimSiam and BYOL and three seeds, and gives linear accuracy. ``--preset small`` shows
the objectives apart, with ADIOS-s, on 10,000 images of CIFAR-10, and no masks for as long as ADIOS takes.
"""

import sys

from adios_ray.tables.command import main
from adios_ray.tables.grid import Published, Row, Table
from adios_ray.tables.methods import (
    CHOICES_NOTE,
    IMAGES_NOTE,
    OBJECTIVES,
    PREPARED_DATA,
    VIEW_NOTE,
    classification,
    published_trainings,
    small_training,
)

NAMES = {"mae": "e) MAE", "beit": "f) BEiT", "adios": "ADIOS", "none": "none"}
LINEAR = {
    "mae": {"ImageNet100-S": (43.7, 0.43), "STL10": (78.4, 0.91)},
    "beit": {"ImageNet100-S": (46.4, 0.67), "STL10": (80.7, 1.00)},
    "adios": {"ImageNet100-S": (59.2, 2.92), "STL10": (86.0, 0.40)},
    "none": {"ImageNet100-S": (57.0, 2.27), "STL10": (84.7, 0.40)},
}
"""Table 6 of the paper: top-1 of the linear evaluation in percent."""
SMALL_SCHEMES = ("none", "adios", "adios-s", "mae", "beit")
SMALL_EPOCHS = 5
EQUAL_TIME_EPOCHS = 14
"""Epochs without masks that take as long as ``SMALL_EPOCHS`` of ADIOS with four slots, measured: 2.9 times as many."""


def paper() -> Table:
    """Return the paper's table: ResNet-18 at 96 pixels, mean over three objectives."""
    presets = {"ImageNet100-S": "in100s", "STL10": "stl10"}
    rows = tuple(
        Row(
            name,
            {group: published_trainings(preset, "resnet18", scheme) for group, preset in presets.items()},
            baseline=None if scheme == "none" else NAMES["none"],
            published={(group, "linear"): Published(*value) for group, value in LINEAR[scheme].items()},
        )
        for scheme, name in NAMES.items()
    )
    columns = tuple(column for group in presets for column in classification(group) if column.name == "linear")
    data = {group: PREPARED_DATA[group] for group in presets}
    notes = (CHOICES_NOTE, IMAGES_NOTE, VIEW_NOTE)
    return Table("Table 6: masking schemes on photographs", rows, columns, data, notes)


def small() -> Table:
    """Return each objective with each scheme on CIFAR-10."""
    rows = []
    for objective, name in OBJECTIVES.items():
        none = f"{name}, none"
        for scheme in SMALL_SCHEMES:
            training = small_training(objective, scheme, SMALL_EPOCHS)
            rows.append(Row(f"{name}, {scheme}", {"CIFAR-10": (training,)}, None if scheme == "none" else none))
        longer = small_training(objective, "none", EQUAL_TIME_EPOCHS)
        rows.append(Row(f"{none}, {EQUAL_TIME_EPOCHS} epochs", {"CIFAR-10": (longer,)}, f"{name}, adios"))
    data = {"CIFAR-10": PREPARED_DATA["CIFAR-10"]}
    notes = (
        f"A small ResNet, {SMALL_EPOCHS} epochs: directions, not the paper's numbers.",
        f"{EQUAL_TIME_EPOCHS} epochs without masks take as long as {SMALL_EPOCHS} of ADIOS: their gain is over ADIOS.",
    )
    return Table("Masking schemes on CIFAR-10", tuple(rows), classification("CIFAR-10"), data, notes)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, {"paper": paper, "small": small}))
